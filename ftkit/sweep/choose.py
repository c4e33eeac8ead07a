"""Which setting is best on the validation rows, and what may be said of the numbers that it was chosen by.

All trials are measured on the same validation rows, so the best of N is the best partly by chance. Each gain over the base
model has an interval at level 1 - 0.05 / N (Bonferroni): with 95 % certainty all N hold at once, and so does that of
whichever trial was chosen. The test rows take no part in the choice, so the winner's interval there needs no correction.
`benchmarks/selection.py` shows both; docs/sweep.md explains them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..directory import RunDirectory
from ..errors import RunFailed
from ..records import Metric, Record
from ..report.compare import UNSCORED_LIMIT
from ..report.seed_stats import seed_interval
from ..stats import CONFIDENCE, clusters_of, example_means, paired_interval
from .directory import DONE, Plan, SweepDirectory, Trial
from .prune import evaluations
from .search import Tried

_FEW = 5  # different numbers of a key that are shown one by one; more become two halves
_Means = Mapping[str, float]  # example id -> value
Gain = tuple[float | None, float | None, float | None]


@dataclasses.dataclass(frozen=True)
class Line(Record):
    """A trial of the leaderboard. `value` is the metric on the validation rows, the mean over its `seeds`; `delta` the gain over its base model
    with the interval `low`..`high`, which holds for all trials at once. `seconds` and `usd` are of all its runs."""

    trial: int
    values: dict[str, str]
    status: str
    seeds: int
    base: float | None = None
    value: float | None = None
    delta: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = "fraction"
    seconds: float | None = None
    usd: float | None = None
    why: str | None = None  # it was pruned, or it failed
    chosen: bool = False


@dataclasses.dataclass(frozen=True)
class Effect(Record):
    """What one value of one key does: the mean of its `trials`, and the difference `delta` from the trials with
    another value (`low`..`high` holds for all values of all keys at once, over the rows and not over trainings)."""

    key: str
    value: str
    trials: int
    mean: float
    delta: float | None
    low: float | None
    high: float | None
    unit: str = "fraction"


# ---------------------------------------------------------------- the choice


def score(trial: Trial) -> float | None:
    """Return what a trial is ranked by: the mean over its seeds; None where it is not done, or too few rows are scored."""
    if trial.status != DONE or _too_few_scored(trial):
        return None
    values = [m.value for m in trial.primary("tuned")]
    return math.fsum(values) / len(values)


def _too_few_scored(trial: Trial) -> str | None:
    """Return why a finished trial cannot be ranked: others were scored on rows that it was not scored on."""
    metrics = trial.primary("tuned")
    if len(metrics) < len(trial.runs):
        return "no answer could be scored"
    missing = max(m.n_unscored / max(1, m.n + m.n_unscored) for m in metrics)
    return f"{missing:.0%} of the answers are unscored" if missing > UNSCORED_LIMIT else None


def direction(trials: Sequence[Trial]) -> bool:
    """Return whether a higher value is better, as the measured trials say. Raises RunFailed where neither is."""
    metric = next((m for t in trials if t.status == DONE for m in t.primary("tuned")), None)
    if metric is not None and metric.higher_is_better is None:
        raise RunFailed(f"a sweep cannot choose by {metric.name!r}: neither a higher nor a lower value is better")
    return metric is None or bool(metric.higher_is_better)


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """Return the best trial, of equal ones the first; None where none was measured."""
    scored = [(value, t) for t in trials if (value := score(t)) is not None]
    if not scored:
        return None
    sign = 1 if direction(trials) else -1
    return max(scored, key=lambda pair: (sign * pair[0], -pair[1].number))[1]


def seen_by_search(trial: Trial, primary: str) -> Tried:
    metric, values = evaluations(trial.runs[0], primary)
    return Tried(trial.values, trial.status, score(trial), values if metric == primary else {})


# ---------------------------------------------------------------- the leaderboard


def leaderboard(sweep: SweepDirectory) -> list[Line]:
    """Return the trials, the best first; those that were not measured follow in their order."""
    plan, trials, chosen = sweep.plan, sweep.trials(), sweep.chosen
    level = simultaneous(max(plan.trials, len(trials)))
    lines = [dataclasses.replace(_line(t, level), chosen=t.number == chosen) for t in trials]
    sign = -1 if direction(trials) else 1
    return sorted(lines, key=lambda x: (x.value is None, sign * (x.value or 0.0), x.trial))


def simultaneous(n: int) -> float:
    """Return the level of each of `n` intervals of which all hold at once with 95 % certainty (Bonferroni)."""
    return 1 - (1 - CONFIDENCE) / max(1, n)


def _line(trial: Trial, level: float) -> Line:
    runs = trial.runs
    spent = [stage.usd for run in runs for stage in run.record().stages if stage.usd is not None]
    seconds = math.fsum(stage.seconds or 0.0 for run in runs for stage in run.record().stages)
    line = Line(
        trial.number,
        trial.values,
        trial.status,
        len(runs),
        seconds=seconds or None,
        usd=math.fsum(spent) if spent else None,
        why=_why(trial),
    )
    value = score(trial)
    if value is None:
        return line
    metric, base = trial.primary("tuned")[0], trial.primary("baseline")
    delta, low, high = gain(runs, metric, level)
    return dataclasses.replace(
        line,
        value=value,
        base=math.fsum(m.value for m in base) / len(base) if base else None,
        unit=metric.unit,
        delta=delta,
        low=low,
        high=high,
    )


def _why(trial: Trial) -> str | None:
    if trial.pruned is not None:
        return f"at step {trial.pruned['step']}: {trial.pruned['metric']} {trial.pruned['value']:.4g}"
    return trial.error or (_too_few_scored(trial) if trial.status == DONE else None)


def gain(runs: Sequence[RunDirectory], metric: Metric, level: float) -> Gain:
    """Return the mean, and both ends of the interval, of the gain of a setting's trainings over the base model, at a confidence level.

    One training counts as fixed: the interval covers the rows. Several trainings are a source of chance of their own.
    """
    tuned = [example_means(run.scores("tuned"), metric.name) for run in runs]
    base = [example_means(run.scores("baseline"), metric.name) for run in runs]
    ids = sorted(set.intersection(*(set(means) for means in (*tuned, *base))))
    if not ids:
        return None, None, None
    if len(runs) > 1 and len(ids) > 1:
        sides = [np.array([[means[i] for i in ids] for means in side]) for side in (base[:1], tuned)]
        over = seed_interval(sides[0], sides[1], level)
        return over.delta, over.low, over.high
    before, after = ({i: means[0][i] for i in ids} for means in (base, tuned))
    interval = paired_interval(before, after, metric.unit, clusters_of(runs[0].task.measured), level)
    delta = math.fsum(after[i] - before[i] for i in ids) / len(ids)
    return delta, interval.low, interval.high


# ---------------------------------------------------------------- what each key does


def effects(sweep: SweepDirectory) -> list[Effect]:
    """Return the effect of each value of each key, over the trials that were measured; keys with one value have none."""
    trials = [t for t in sweep.trials() if score(t) is not None]
    if not trials:
        return []
    plan, metric = sweep.plan, trials[0].primary("tuned")[0]
    means = {t.number: _mean_rows([example_means(r.scores("tuned"), metric.name) for r in t.runs]) for t in trials}
    clusters = clusters_of(trials[0].runs[0].task.measured)
    groups = [(key, name, members) for key in plan.keys for name, members in _groups(plan, key, trials)]
    level = simultaneous(len(groups))
    found = []
    for key, name, members in groups:
        rest = _rest(plan, key, members, trials)
        values = [v for t in members if (v := score(t)) is not None]
        delta = low = high = None
        if members and rest:
            ours, theirs = (_mean_rows([means[t.number] for t in side]) for side in (members, rest))
            interval = paired_interval(theirs, ours, "", clusters, level)
            ids = ours.keys() & theirs.keys()
            delta = math.fsum(ours[i] - theirs[i] for i in ids) / len(ids) if ids else None
            low, high = interval.low, interval.high
        mean = math.fsum(values) / len(values)
        found.append(Effect(key, name, len(members), mean, delta, low, high, metric.unit))
    return found


def _mean_rows(several: Sequence[_Means]) -> dict[str, float]:
    ids = set.intersection(*(set(means) for means in several))
    return {i: math.fsum(means[i] for means in several) / len(several) for i in sorted(ids)}


def _value(plan: Plan, trial: Trial, key: str) -> str:
    return trial.values.get(key, plan.own.get(key, ""))


def _groups(plan: Plan, key: str, trials: Sequence[Trial]) -> list[tuple[str, list[Trial]]]:
    """Return the trials of each value of a key; where a search tried many numbers, those of the lower and upper half."""
    if plan.search == "one-at-a-time":  # only the trials that leave the other keys alone
        trials = [t for t in trials if set(t.values) <= {key}]
    by_value: dict[str, list[Trial]] = {}
    for t in trials:
        by_value.setdefault(_value(plan, t, key), []).append(t)
    parameter = next(p for p in plan.varied if p.key == key)
    if not parameter.is_range or len(by_value) <= _FEW:
        order = {value: i for i, value in enumerate(parameter.values)}
        found = sorted(by_value.items(), key=lambda pair: order.get(pair[0], _number(pair[0])))
        return found if len(found) > 1 else []
    ordered = sorted(trials, key=lambda t: _number(_value(plan, t, key)))
    half = len(ordered) // 2
    parts = (ordered[:half], ordered[half:])
    return [(f"{_value(plan, p[0], key)} to {_value(plan, p[-1], key)}", list(p)) for p in parts]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0


def _rest(plan: Plan, key: str, members: Sequence[Trial], trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that a value is compared with: the recipe's own setting, or all that have another value."""
    if plan.search == "one-at-a-time":
        own = [t for t in trials if not t.values]
        return [] if own and own[0] in members else own
    return [t for t in trials if t not in members]


def to_dicts(lines: Sequence[Record]) -> list[dict[str, Any]]:
    return [line.to_dict() for line in lines]
