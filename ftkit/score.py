"""Predictions to scores to metrics. Touches no file: a run, `ftkit score` and training all use it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .api import Evaluator
from .errors import FtkitError, RunFailed
from .records import Example, Metric, Prediction, Score


def score_all(
    evaluators: Sequence[Evaluator], examples: Sequence[Example], predictions: Sequence[Prediction]
) -> tuple[list[Score], list[Metric]]:
    """Return one score per prediction (all evaluators' values together) and all metrics.

    A failed prediction is unscored. Raises RunFailed where two evaluators name a metric alike.
    """
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
        for metric in evaluator.aggregate([by_id[p.example_id] for p in predictions], predictions, scores):
            if metric.name in metrics:
                raise RunFailed(
                    f"two evaluators both name a metric {metric.name!r}", "name fewer evaluators in the recipe"
                )
            if not math.isfinite(metric.value):
                raise RunFailed(f"evaluator {evaluator.name!r} gave {metric.value} for {metric.name!r}")
            metrics[metric.name] = metric
        if evaluator.primary not in metrics and any(s.values for s in scores):
            raise RunFailed(f"evaluator {evaluator.name!r} gave no metric named {evaluator.primary!r}, its primary one")
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
    return found


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
