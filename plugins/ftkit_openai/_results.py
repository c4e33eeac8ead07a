"""Losses of a job: from its events, and from its result file."""

from __future__ import annotations

import base64
import binascii
import csv
import io
import re
from typing import Any

# The provider's names -> the names in the log of a local run.
_NAMES = {
    "train_loss": "loss",
    "train_mean_token_accuracy": "token_accuracy",
    "train_accuracy": "token_accuracy",
    "valid_loss": "valid_loss",
    "full_valid_loss": "full_valid_loss",
    "valid_mean_token_accuracy": "valid_token_accuracy",
    "valid_accuracy": "valid_token_accuracy",
}
_MESSAGE = re.compile(r"[Ss]tep (\d+)(?:/(\d+))?:? .*?loss[=: ]+([0-9.]+(?:e-?\d+)?)")


def step_of(event: Any) -> dict[str, Any] | None:
    """Return {"step", "loss", "max_steps", ...} where an event reports a training step, else None."""
    data = getattr(event, "data", None)
    if isinstance(data, dict) and data.get("step") is not None:
        step = _values(data)
        total = _number(data.get("total_steps"))
        if step and total:
            step["max_steps"] = int(total)
        return step
    match = _MESSAGE.search(event.message or "")
    if match is None:
        return None
    step = {"step": int(match[1]), "loss": float(match[3].rstrip("."))}
    return {**step, "max_steps": int(match[2])} if match[2] else step


def parse_results(data: bytes) -> tuple[str, list[dict[str, Any]]]:
    """Return a result file as text and as steps. Some providers send it as base64; its header shows which it is."""
    text = data.decode("utf-8-sig", "replace")
    if "step" not in text[:200].split("\n")[0]:
        try:
            text = base64.b64decode("".join(text.split()), validate=True).decode("utf-8-sig", "replace")
        except (binascii.Error, ValueError):
            return text, []
    rows = [_values(row) for row in csv.DictReader(io.StringIO(text))]
    return text, [row for row in rows if row is not None]


def _values(raw: dict[str, Any]) -> dict[str, Any] | None:
    """Return a step's numbers under ftkit's names; None where it has no step or no number."""
    step = _number(raw.get("step"))
    numbers = {theirs: _number(raw.get(theirs)) for theirs in _NAMES}
    known = {_NAMES[theirs]: number for theirs, number in numbers.items() if number is not None}
    return {"step": int(step), **known} if step is not None and known else None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if number == number and abs(number) != float("inf") else None
