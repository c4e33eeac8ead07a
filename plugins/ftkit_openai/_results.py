"""Losses of a job: from its events, and from its result file."""

from __future__ import annotations

import base64
import binascii
import codecs
import csv
import math
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
        total = _count(data.get("total_steps"))
        if step and total:
            step["max_steps"] = total
        return step
    match = _MESSAGE.search(text_of(getattr(event, "message", None)))
    if match is None:
        return None
    step = _values({"step": match[1], "train_loss": match[3].rstrip(".")})
    total = _count(match[2])
    return {**step, "max_steps": total} if step and total else step


def parse_results(data: bytes) -> tuple[str, list[dict[str, Any]]]:
    """Return a result file as text and as steps; no steps where the file is no table of them.

    Some providers send it as base64: its header shows which it is. Any line ends and a byte order mark are read, and
    characters that are not UTF-8 are replaced.
    """
    text = _decoded(data)
    if "step" not in _header(text):
        try:
            text = _decoded(base64.b64decode("".join(text.split()), validate=True))
        except (binascii.Error, ValueError):
            return text, []
    lines = [line.replace("\0", "") for line in text.splitlines() if line.strip()]
    try:
        names = [name.strip().lower() for name in next(csv.reader(lines[:1]), [])]
        rows = [_values(row) for row in csv.DictReader(lines[1:], names)]
    except csv.Error:
        return text, []
    return text, [row for row in rows if row is not None]


def _header(text: str) -> str:
    lines = text[:2000].lstrip().splitlines()
    return lines[0].lower() if lines else ""


def _decoded(data: bytes) -> str:
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if utf16 else "utf-8-sig", "replace")


def _values(raw: dict[str, Any]) -> dict[str, Any] | None:
    """Return a step's numbers under ftkit's names; None where it has no step or no number."""
    step = _count(raw.get("step"))
    numbers = {theirs: number_of(raw.get(theirs)) for theirs in _NAMES}
    known = {_NAMES[theirs]: number for theirs, number in numbers.items() if number is not None}
    return {"step": step, **known} if step is not None and known else None


def _count(value: Any) -> int | None:
    number = number_of(value)
    return int(number) if number is not None and 0 <= number < 2**53 else None


def number_of(value: Any) -> float | None:
    """Return a finite number from what a provider sent as a number or as text; None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def tokens_of(value: Any) -> int | None:
    """Return a count of tokens; None for anything else than a whole number from 0."""
    number = _count(value)
    return number if number is not None and number == number_of(value) else None


def text_of(value: Any) -> str:
    """Return a field as text; an empty one where it is missing."""
    return "" if value is None else str(value)
