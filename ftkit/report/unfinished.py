"""What is known of a run that is not done: how far it is, what it has measured, and how it ended if it did."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..api import Backend
from ..causes import Failure
from ..directory import RunDirectory
from ..errors import FtkitError
from ..files import Journal
from ..records import Metric, Remedy, RunRecord, StageRecord
from ..text import finite
from .alive import death_of, read_sign_of_life
from .failure import kept_traceback, remedies_of

STAGES = ("prepare", "baseline", "train", "evaluate", "report")


@dataclass(frozen=True)
class Progress:
    """How far one piece of work is: `done` of `total`, and the seconds that are left, where they are known."""

    what: str
    done: int
    total: int
    left: float | None = None


class TrainingLog:
    """What the events of training say so far; give it one after the other."""

    def __init__(self) -> None:
        self.points: dict[str, dict[float, float]] = {}  # a curve's name -> step -> value
        self.progress: Progress | None = None
        self.last: float | None = None  # seconds since the epoch, of the last event
        self._first: tuple[float, float] | None = None  # step and time of the first one of this attempt

    def add(self, event: Mapping[str, Any]) -> None:
        moment, step = finite(event.get("time")), finite(event.get("step"))
        self.last = moment or self.last
        kind = event.get("event")
        if kind == "start":
            self._first = None
        if step is None or kind not in ("step", "eval"):
            return
        for name, value in event.items():
            number = finite(value)
            if name == "loss" and number is not None:
                self.points.setdefault("loss" if kind == "step" else "validation loss", {})[step] = number
            elif kind == "eval" and name not in ("event", "time", "step", "n") and number is not None:
                self.points.setdefault(name, {})[step] = number
        total = finite(event.get("max_steps"))
        if kind == "step" and total and moment is not None:
            self._first = self._first or (step, moment)
            began, at = self._first
            reported = finite(event.get("seconds_left"))
            left = (
                reported if reported is not None or step <= began else (moment - at) / (step - began) * (total - step)
            )
            self.progress = Progress("step", int(step), int(total), left)

    def restarted(self) -> None:
        """Say that what follows is of another attempt: the time between the two says nothing of its speed."""
        self._first = self.progress = None


@dataclass(frozen=True)
class Unfinished:
    """All that the page of an unfinished run shows. `status` is running, failed, interrupted, killed or prepared.

    `why` is the first line of what ended it, `hints` are the rest. Times are seconds since the epoch: `written` of this
    page, `life` of the process's last sign of life, `logged` of the last training event. `every` is in how many seconds
    the page is written again; None where nobody does.
    """

    dir: Path
    record: RunRecord
    status: str
    stage: str | None
    written: float
    why: str = ""
    hints: tuple[str, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    progress: Progress | None = None
    points: Mapping[str, Mapping[float, float]] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, Metric]] = field(default_factory=dict)
    primary: str | None = None
    answers: tuple[dict[str, str], ...] = ()  # {"id", "input", "reference", "answer"} of some rows of the base model
    traceback: str | None = None
    recipe: str | None = None
    life: float | None = None
    logged: float | None = None
    every: float | None = None

    @property
    def stages(self) -> list[StageRecord]:
        """Return the stages of a run in their order; those that have not begun have the status ""."""
        known = {stage.name: stage for stage in self.record.stages}
        names = [*STAGES, *(name for name in known if name not in STAGES)]
        return [known.get(name) or StageRecord(name, "", "") for name in names]

    def stage_seconds(self, name: str) -> float | None:
        """Return the seconds of a stage that is done."""
        return next((s.seconds for s in self.record.stages if s.name == name and s.status == "done"), None)


def is_unfinished(run: RunDirectory) -> bool:
    record = run.record()
    return record.kind == "run" and record.status != "done"


def look_at(run: RunDirectory, written: float) -> Unfinished:
    """Return what the directory of an unfinished run says, also where its process was killed."""
    record, status = run.record(), run.status()
    log = TrainingLog()
    for row in Journal(run.path("train", "log.jsonl")):
        if isinstance(row, dict):
            log.add(row)
    found = snapshot(run, record, log, written)
    why, remedies = record.error or "", record.remedies
    if status == "killed":
        death = death_of(run)
        why = death.text
        remedies = remedies_of(Failure(death.cause.name, found.stage or ""), run, _backend(run))
    first, *hints = [line.strip() for line in why.splitlines() if "--resume" not in line] or [""]
    return replace(
        found,
        record=replace(record, stages=tuple(replace(s, status=status) if s.status == "running" else s for s in record.stages)),
        status=status,
        why="" if first == status else first,
        hints=tuple(hints),
        remedies=remedies,
        progress=replace(log.progress, left=None) if log.progress and found.stage == "train" else None,
        answers=_answers(run),
        traceback=kept_traceback(run) if status == "failed" else None,
        recipe=_text(run.path("recipe.yaml")),
        life=finite(read_sign_of_life(run).get("time")),
    )  # fmt: skip


def snapshot(run: RunDirectory, record: RunRecord, log: TrainingLog, written: float) -> Unfinished:
    """Return what is known of a run that is executed now; its record and its training log are those in memory."""
    metrics, primary = _metrics(run, record)
    stage = next((s.name for s in reversed(record.stages) if s.status != "done"), None)
    return Unfinished(
        dir=run.dir.absolute(),
        record=record,
        status="running",
        stage=stage,
        written=written,
        points={name: dict(points) for name, points in log.points.items()},
        metrics=metrics,
        primary=primary,
        logged=log.last,
    )


def _backend(run: RunDirectory) -> Backend | None:
    """Return the run's backend, or None where its plugin is not installed here."""
    with contextlib.suppress(Exception):
        backend: Backend = run.recipe.backend.make()
        return backend
    return None


def _metrics(run: RunDirectory, record: RunRecord) -> tuple[dict[str, dict[str, Metric]], str | None]:
    """Return the metrics of each finished measurement, and the name of the primary one."""
    found: dict[str, dict[str, Metric]] = {}
    primary: str | None = None
    for name in record.systems:
        with contextlib.suppress(FtkitError, OSError, ValueError):
            if run.path(name, "metrics.json").exists():
                found[name] = run.metrics(name)
                primary = primary or run.measurement(name)["settings"].get("primary")
    return found, primary


def _answers(run: RunDirectory, count: int = 3) -> tuple[dict[str, str], ...]:
    """Return the base model's answers to the first test rows, where it has given them."""
    try:
        predictions = {p.example_id: p for p in run.predictions("baseline")}
        examples = [e for e in run.task.measured if e.id in predictions][:count]
    except (FtkitError, OSError, ValueError, TypeError, KeyError):
        return ()
    return tuple(
        {
            "id": e.id,
            "input": e.input,
            "reference": e.targets[0] if e.targets else "",
            "answer": predictions[e.id].error or predictions[e.id].text,
        }
        for e in examples
    )


def _text(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return None


def rows_of(record: RunRecord) -> dict[str, int]:
    """Return how many rows each split has, as `prepare` counted them."""
    counts = next((s.meta.get("rows") for s in record.stages if s.name == "prepare"), None)
    return {str(k): int(v) for k, v in counts.items()} if isinstance(counts, dict) else {}


def seconds_since(text: str, now: float) -> float | None:
    """Return the seconds since an ISO 8601 time, or None where it is none."""
    try:
        return max(0.0, now - datetime.datetime.fromisoformat(text).timestamp())
    except (TypeError, ValueError):
        return None
