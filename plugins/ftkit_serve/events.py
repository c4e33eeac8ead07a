"""A job's events: what clients see of its progress. Training steps come from the training process's log."""

from __future__ import annotations

import json
import math
from typing import Any

from ftkit.directory import RunDirectory

from .store import Database, Doc, new_id, now

# OpenAI's name of a metric -> the names that backends log it under
_METRICS = {
    "train_loss": ("loss", "train_loss"),
    "train_mean_token_accuracy": ("mean_token_accuracy", "train_mean_token_accuracy"),
    "valid_loss": ("valid_loss", "eval_loss"),
}


def record_event(database: Database, job: str, message: str, level: str = "info", **data: Any) -> None:
    """Add one event to a job; `data` are metrics of a training step."""
    database.add(
        "event",
        {
            "object": "fine_tuning.job.event",
            "id": new_id("ftevent-"),
            "created_at": now(),
            "level": level,
            "message": message,
            "type": "metrics" if data else "message",
            "data": data,
        },
        parent=job,
    )


def record_log(database: Database, job: Doc, run: RunDirectory) -> None:
    """Add an event for each new step, note and warning in the training log, and estimate when the job finishes.

    The job keeps how many bytes of the log were read, so that lines which a killed server or training process left
    behind are recorded later, and once.
    """
    path = run.path("train", "log.jsonl")
    if not path.exists():
        return
    with open(path, "rb") as file:
        file.seek(job["_log_read"])
        data = file.read()
    lines = data[: data.rfind(b"\n") + 1]  # without a line that is not complete yet
    if not lines:
        return
    step, finish, clock = job["_step"], job["estimated_finish"], job["_clock"]
    with database.transaction():
        for row in map(json.loads, lines.splitlines()):
            if row["event"] == "step":
                seconds = row.get("seconds") or 0.0
                if clock is None or seconds < clock["seconds"]:  # a new training process counts from 0
                    clock = {"first": row["step"] - 1, "seconds": 0.0}
                clock = {**clock, "seconds": seconds}
                pace = seconds / max(1, row["step"] - clock["first"])  # seconds per step
                finish = int(row["time"] + pace * (row["max_steps"] - row["step"])) + 1
                if row["step"] > step:  # a resumed training repeats the steps since its checkpoint
                    step = row["step"]
                    _record_step(database, job["id"], row)
            elif row["event"] in ("note", "warning"):
                record_event(database, job["id"], row["message"], "warn" if row["event"] == "warning" else "info")
        read = job["_log_read"] + len(lines)
        database.update("job", job["id"], _log_read=read, _step=step, _clock=clock, estimated_finish=finish)


def _record_step(database: Database, job: str, row: Doc) -> None:
    data = metrics(row)
    if "train_loss" in data:
        text = f"Step {row['step']}/{row['max_steps']}: training loss={data['train_loss']:.4f}"
        record_event(database, job, text, total_steps=row["max_steps"], **data)


def metrics(row: dict[str, Any]) -> dict[str, Any]:
    """Return a logged step with OpenAI's names of metrics. Numbers that are not finite are left out."""
    found: dict[str, Any] = {"step": row["step"]}
    for name, keys in _METRICS.items():
        value = next((row[key] for key in keys if isinstance(row.get(key), int | float)), None)
        if value is not None and math.isfinite(value):
            found[name] = value
    return found
