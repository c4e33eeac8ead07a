"""The remote side of a launcher: what differs where `ftkit run --resume DIR --on here` was started by one.

A launcher sets the variable FTKIT_LAUNCHED. Trackers are then called on the machine that launched the run. That machine
sees how far the run is by two further events of train/log.jsonl:

- `stage`: a stage began or ended; `stage` is its record, `systems` are the measurements so far
- `progress`: `what`, `done`, `total`, `seconds` of a measurement, every few seconds
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

from ..directory import RunDirectory
from ..errors import FtkitError
from ..files import read_json, write_json
from ..locked import changes
from ..records import StageRecord
from .lock import lock_of, read_lock, recorded_environment

VARIABLE = "FTKIT_LAUNCHED"
EVENTS = ("stage", "progress")
_EVERY = 2.0  # seconds between two events of one measurement
# Facts of the machine that prepared the run; those of the machine that executes it decide the numbers.
_PREPARED = ("git", "data", "recipe", "files", "seed", "generation", "evaluators")
_NAMED = 8  # differences that the note names


def is_launched() -> bool:
    return bool(os.environ.get(VARIABLE))


class Relay:
    """Adds the two events to the run's log."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._what, self._last = "", 0.0

    def stage(self, record: StageRecord) -> None:
        systems = list(self._run.record().systems)
        self._run.log("stage", stage=record.to_dict(), systems=systems)

    def progress(self, what: str, done: int, total: int, seconds: float) -> None:
        now = time.monotonic()
        if what == self._what and done < total and now - self._last < _EVERY:
            return
        self._what, self._last = what, now
        with contextlib.suppress(OSError):
            self._run.log("progress", what=what, done=done, total=total, seconds=round(seconds, 3))


def stage_of(event: dict[str, Any]) -> StageRecord | None:
    """Return the record that a `stage` event holds; None for what is none."""
    with contextlib.suppress(TypeError, AttributeError, KeyError):
        return StageRecord.from_dict(event["stage"])
    return None


def relock(run: RunDirectory) -> str | None:
    """Write lock.json again with the facts of this machine; return what differs from the one that prepared the run.

    Called before the first stage. What was decided there (data, recipe, files) stays.
    """
    before = read_lock(run)
    with contextlib.suppress(FtkitError):  # what cannot be known here is reported when the model is loaded
        now = lock_of(run, run.recipe, recorded_environment(run.recipe))
        now |= {key: before[key] for key in _PREPARED if key in before}
        write_json(run.path("lock.json"), now)
        found = [str(change) for change in changes(before, read_json(run.path("lock.json")))]
        if found:
            more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
            return f"this machine differs from the one that prepared the run: {', '.join(found[:_NAMED])}{more}"
    return None
