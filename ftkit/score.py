"""Predictions to scores to metrics. Touches no file: a run, `ftkit score` and training all use it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

from .api import Evaluator
from .errors import FtkitError, RunFailed
from .records import Example, Metric, Prediction, Score


def score_all(
    evaluators: Sequence[Evaluator], examples: Sequence[Example], predictions: Sequence[Prediction]
) -> tuple[list[Score], list[Metric]]:
    """Return one score per prediction (all evaluators' values together) and all metrics.

    A failed prediction is unscored. Rows with the same input are one unit of every interval. Raises RunFailed where two
    evaluators name a metric alike, and for a value that is no finite number or outside its unit.
    """
    from .stats import repeated_inputs

    by_id = {e.id: e for e in examples}
    merged: dict[tuple[str, int], Score] = {}
    metrics: dict[str, Metric] = {}
    for evaluator in evaluators:
        evaluator.prepare(examples)
        scores = []
        for p in predictions:
            if p.error is not None:
                s = Score(p.example_id, None, p.sample, reason=f"failed: {p.error}")
            else:
                s = _scored(evaluator, by_id[p.example_id], p)
            scores.append(s)
            key = (p.example_id, p.sample)
            merged[key] = merge_scores(merged[key], s) if key in merged else s
        with repeated_inputs(examples):
            found = _aggregated(evaluator, [by_id[p.example_id] for p in predictions], predictions, scores)
        for metric in found:
            if metric.name in metrics:
                raise RunFailed(
                    f"two evaluators both name a metric {metric.name!r}", "name fewer evaluators in the recipe"
                )
            _check_metric(evaluator, metric, scores)
            metrics[metric.name] = metric
        if evaluator.primary not in metrics and any(s.values for s in scores):
            raise RunFailed(
                f"evaluator {evaluator.name!r} gave no metric named {evaluator.primary!r}, its primary one",
                f"it gives: {', '.join(m.name for m in found) or 'none'}",
            )
    return list(merged.values()), list(metrics.values())


def _scored(evaluator: Evaluator, example: Example, prediction: Prediction) -> Score:
    try:
        found = evaluator.score(example, prediction)
    except FtkitError:
        raise
    except Exception as error:
        raise RunFailed(
            f"evaluator {evaluator.name!r} raised {type(error).__name__} on example {example.id!r}: {error}"
        ) from error
    if not isinstance(found, Score):
        raise RunFailed(f"evaluator {evaluator.name!r} returned {type(found).__name__} instead of a Score")
    for name, value in (found.values or {}).items():
        if not _is_number(value):
            raise RunFailed(
                f"{_gave(evaluator, name, value, found.example_id)}: a value must be a finite number",
                "an answer that cannot be scored has `values` None",
            )
    return found


def _aggregated(
    evaluator: Evaluator, examples: Sequence[Example], predictions: Sequence[Prediction], scores: Sequence[Score]
) -> list[Metric]:
    try:
        return evaluator.aggregate(examples, predictions, scores)
    except FtkitError:
        raise
    except Exception as error:
        raise RunFailed(f"evaluator {evaluator.name!r}: aggregate() raised {type(error).__name__}: {error}") from error


def _gave(evaluator: Evaluator, name: str, value: Any, example_id: str | None) -> str:
    where = "over the split" if example_id is None else f"of example {example_id!r}"
    return f"evaluator {evaluator.name!r} gave {value!r} for {name!r} {where}"


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)


def _is_fraction(value: Any) -> bool:
    return bool(-1e-9 <= value <= 1 + 1e-9)  # a sum of fractions may come out a hair above 1


def _check_metric(evaluator: Evaluator, metric: Metric, scores: Sequence[Score]) -> None:
    """Raise RunFailed where a metric, or a value that it is made of, is not what its unit says."""
    whole = [
        ("", metric.value),
        *((f" ({end} bound)", x) for end, x in (("lower", metric.low), ("upper", metric.high))),
    ]
    for end, value in whole:
        if not (_is_number(value) or (end and value is None)):
            raise RunFailed(f"{_gave(evaluator, metric.name, value, None)}{end}: it must be a finite number")
    if metric.unit != "fraction":
        return
    outside = ': its unit is "fraction", so it must be within 0 to 1'
    hint = 'return fractions (0.55, not 55), or name another unit in `aggregate`, such as "score"'
    for score in scores:
        value = (score.values or {}).get(metric.name)
        if value is not None and not _is_fraction(value):
            raise RunFailed(_gave(evaluator, metric.name, value, score.example_id) + outside, hint)
    for end, value in whole:
        if value is not None and not _is_fraction(value):
            raise RunFailed(f"{_gave(evaluator, metric.name, value, None)}{end}{outside}", hint)


def merge_scores(a: Score, b: Score) -> Score:
    """Return one answer's values of two evaluators as one score."""
    values = None if a.values is None and b.values is None else {**(a.values or {}), **(b.values or {})}
    return Score(a.example_id, values, a.sample, a.answer or b.answer, a.reason or b.reason)


def settings_of(evaluators: Sequence[Evaluator]) -> dict[str, Any]:
    """Return each evaluator's settings by name; a second one of a name gets a number."""
    settings: dict[str, Any] = {}
    for e in evaluators:
        count = sum(name.split("#")[0] == e.name for name in settings)
        settings[f"{e.name}#{count + 1}" if count else e.name] = e.settings()
    return settings
