"""What is said of a run in a list: its scores, age, time, status and why it failed; which runs are asked for."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .directory import RunDirectory, list_runs
from .errors import FtkitError, InputError
from .recipe.yaml import Node, Unreadable, read_file, scalar
from .records import Metric, RunRecord
from .text import nearest, one_line

_FAILED = ("failed", "killed")


@dataclass(frozen=True)
class Summary:
    """One run as a list shows it: `metrics` holds the primary metric of each measurement that can be read."""

    run: RunDirectory
    record: RunRecord
    status: str
    metrics: dict[str, Metric]
    unreadable: list[str]  # files
    rows: str | None = None  # what was measured: runs with other rows do not compare
    now: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.UTC), compare=False)

    @property
    def base(self) -> Metric | None:
        return self.metrics.get("baseline")

    @property
    def tuned(self) -> Metric | None:
        """The tuned model's metric; of a run that only scored a file, that file's."""
        return self.metrics.get("tuned") or self.metrics.get("predictions")

    @property
    def change(self) -> float | None:
        """The primary metric of the tuned model minus that of the base model."""
        if self.base is None or self.tuned is None or self.base.name != self.tuned.name:
            return None
        return self.tuned.value - self.base.value

    @property
    def seconds(self) -> float | None:
        """Seconds of all stages together."""
        known = [stage.seconds for stage in self.record.stages if stage.seconds is not None]
        return sum(known) if known else None

    @property
    def age(self) -> float | None:
        """Seconds since the run was started."""
        try:
            return (self.now - datetime.datetime.fromisoformat(self.record.started)).total_seconds()
        except (ValueError, TypeError):
            return None

    @property
    def failed(self) -> bool:
        return self.status in _FAILED

    @property
    def why(self) -> str | None:
        """One line on why a run is not done; None where it is, or is not known."""
        if self.status == "killed":
            stage = next((s.name for s in self.record.stages if s.status == "running"), None)
            return f"its process ended without a word{f', during {stage}' if stage else ''}"
        return one_line(self.record.error) if self.record.error and self.status != "done" else None

    def to_dict(self) -> dict[str, Any]:
        """Return what `ftkit runs --json` prints of a run; values are fractions 0..1, or in the metric's unit."""
        return {
            "run": str(self.run.dir),
            "id": short_id(self.run.id),
            "name": self.record.name,
            "status": self.status,
            "started": self.record.started,
            "seconds": self.seconds,
            "metrics": {
                stage: {"metric": m.name, "value": m.value, "unit": m.unit} for stage, m in self.metrics.items()
            },
            "change": self.change,
            "why": self.why,
            "unreadable": self.unreadable,
        }


def short_id(name: str) -> str:
    """Return the end of a run directory's name that tells it from all others: NAME-TIME-3f2a1c is 3f2a1c."""
    return name.rpartition("-")[2]


def summaries(out: Path) -> list[Summary]:
    """Return what is to say of each run in the folder `out`, the oldest first."""
    return [summary(run) for run in list_runs(out)]


def summary(run: RunDirectory) -> Summary:
    metrics: dict[str, Metric] = {}
    unreadable: list[str] = []
    rows = None
    for stage in run.measured():
        try:
            settings = run.measurement(stage)["settings"]
            metric = run.metrics(stage).get(settings.get("primary"))
        except (FtkitError, OSError, TypeError, AttributeError, KeyError):
            unreadable.append(str(run.path(stage, "metrics.json")))
            continue
        rows = rows or settings.get("rows")
        if metric is not None:
            metrics[stage] = metric
    return Summary(run, run.record(), run.status(), metrics, unreadable, rows)


# ---------------------------------------------------------------- which ones, and in what order

_Key = Callable[[Summary], Any]
ORDERS: dict[str, _Key] = {  # what comes first is smallest; None comes last
    "age": lambda s: s.age,
    "name": lambda s: s.record.name.lower(),
    "time": lambda s: _negative(s.seconds),
    "base": lambda s: _best_first(s, s.base.value if s.base else None),
    "tuned": lambda s: _best_first(s, s.tuned.value if s.tuned else None),
    "change": lambda s: _best_first(s, s.change),
    "status": lambda s: s.status,
}


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _best_first(s: Summary, value: float | None) -> float | None:
    metric = s.tuned or s.base
    lower_is_better = metric is not None and metric.higher_is_better is False
    return value if lower_is_better else _negative(value)


def in_order(found: Iterable[Summary], order: str) -> list[Summary]:
    """Return runs sorted by one of ORDERS: the newest, longest or best first; runs without such a value come last.

    Raises InputError for another order.
    """
    if order not in ORDERS:
        near = nearest(order, ORDERS)
        hint = f"did you mean {near!r}?" if near else f"choose one of {', '.join(ORDERS)}"
        raise InputError(f"runs cannot be sorted by {order!r}", hint)
    key = ORDERS[order]
    return sorted(found, key=lambda s: ((value := key(s)) is None, 0 if value is None else value))


def chosen(found: Sequence[Summary], conditions: Sequence[str]) -> list[Summary]:
    """Return the runs whose recipe has each of the given values, such as "backend.lora_r=8"; also "status=failed".

    Raises InputError where a condition has no `=`, or no recipe has its key.
    """
    kept = list(found)
    recipes = {s.run.dir: _recipe(s.run) for s in found} if conditions else {}
    for condition in conditions:
        key, equals, value = condition.partition("=")
        if not equals or not key:
            raise InputError(f"--where {condition}: not of the form KEY=VALUE", "such as --where backend.lora_r=8")
        if key == "status":
            kept = [s for s in kept if s.status == value]
            continue
        if found and not any(_value(recipes[s.run.dir], key) for s in found):
            known = sorted({name for node in recipes.values() for name in _keys(node)})
            near = nearest(key, known)
            raise InputError(
                f"--where {condition}: no recipe of these runs has the key {key!r}",
                f"did you mean {near!r}?" if near else f"keys such as: {', '.join(known[:8])}",
            )
        kept = [s for s in kept if _matches(_value(recipes[s.run.dir], key), value)]
    return kept


def _recipe(run: RunDirectory) -> Node:
    """Return a run's recipe as it is written, without looking at its plugins; an empty one where there is none."""
    try:
        return read_file(str(run.path("recipe.yaml")), [])
    except (Unreadable, FtkitError):
        return Node({})


def _value(recipe: Node, key: str) -> Node | None:
    node: Node | None = recipe
    for part in key.split("."):
        node = node.below(int(part) if part.isdecimal() else part) if node is not None else None
    return node


def _matches(node: Node | None, value: str) -> bool:
    if node is None:
        return False
    return node.text == value or (not isinstance(node.value, dict | list) and node.value == scalar(value))


def _keys(node: Node, before: str = "") -> Iterable[str]:
    if not isinstance(node.value, dict):
        return
    for key, below in node.value.items():
        yield before + key
        yield from _keys(below, f"{before}{key}.")
