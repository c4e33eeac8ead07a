"""Pruning: a training whose validation metric is worse than that of most others, at the same step, is ended early.

The median rule, as `optuna.pruners.MedianPruner` has it: the best value that a training has had up to a step is held
against the median, at that step, of the trials that are done.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ..directory import RunDirectory

AFTER = 4  # trials that must be done before one is pruned
LOSS = "loss"  # where a training logs no metric

Values = dict[int, float]  # step -> value


@dataclass(frozen=True)
class Verdict:
    """A training that is to be ended: at `step` its best value so far was `value`, and the others' median `median`."""

    step: int
    metric: str
    value: float
    median: float


def evaluations(run: RunDirectory, primary: str) -> tuple[str, Values]:
    """Return the metric that a training has logged on its validation rows (the primary one, else the loss), by step."""
    found: dict[str, Values] = {}
    for row in run.log_rows():
        if row["event"] == "eval" and isinstance(row.get("step"), int | float):
            for name in (primary, LOSS):
                if isinstance(row.get(name), int | float):
                    found.setdefault(name, {})[int(row["step"])] = float(row[name])
    return (primary, found[primary]) if primary in found else (LOSS, found.get(LOSS, {}))


def verdict(values: Values, others: Sequence[Values], metric: str, higher_is_better: bool) -> Verdict | None:
    """Return why a training is to be ended, from its values and those of the trials that are done; None to continue."""
    if len(others) < AFTER:
        return None
    best = max if higher_is_better else min
    for step in sorted(values):
        theirs = [other[step] for other in others if step in other]
        if len(theirs) < AFTER:
            continue
        own, median = best(v for s, v in values.items() if s <= step), statistics.median(theirs)
        if own != median and best(own, median) == median:
            return Verdict(step, metric, own, median)
    return None
