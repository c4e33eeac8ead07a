"""Try each evaluator on one made-up answer before anything is spent: the target of a test row, as the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..api import Backend, Evaluator
from ..errors import FtkitError
from ..recipe.load import Recipe
from ..records import Example, Finding, Metric, Prediction, Task
from ..score import score_all
from ..stats import without_intervals

_ROWS = 10  # tried until one gives a metric: a row may lack what is looked for in it


def try_evaluators(recipe: Recipe, task: Task | None) -> list[Finding]:
    """Return what is wrong with the recipe's evaluators; without a task, what can be said of their options alone."""
    findings: list[Finding] = []
    known: dict[str, str] = {}  # metric -> the evaluator that gives it
    for number, ref in enumerate(recipe.evaluators):
        key = f"evaluator.{number}" if len(recipe.evaluators) > 1 else "evaluator"
        evaluator = ref.make()
        if not isinstance(getattr(evaluator, "primary", None), str):
            message = f"evaluator {ref.name!r} does not say which metric is its `primary`"
            findings.append(Finding("error", message, key=key))
            continue
        own, metrics = _try_one(evaluator, task)
        findings += [replace(f, key=f"{key}.{f.key}" if f.key else key) for f in own]
        for name in metrics:
            if name in known:
                message = f"evaluators {known[name]!r} and {ref.name!r} both name a metric {name!r}"
                findings.append(Finding("error", message, "name fewer evaluators in the recipe", key))
            known.setdefault(name, ref.name)
        primary = metrics.get(evaluator.primary)
        if number == 0 and primary is not None and primary.higher_is_better is None:
            findings += _without_direction(recipe, ref.name, primary, key, decided=bool(own))
    return findings


def primary_metric(recipe: Recipe, task: Task) -> Metric | None:
    """Return the recipe's primary metric for one made-up answer, with its direction and unit; None where it gave none."""
    evaluator: Evaluator = recipe.evaluators[0].make()
    return _metrics(evaluator, task.measured).get(evaluator.primary)


def _try_one(evaluator: Evaluator, task: Task | None) -> tuple[list[Finding], dict[str, Metric]]:
    """Return findings, with keys relative to the evaluator's options, and the metrics that it gave."""
    try:
        findings = list(evaluator.check())
        metrics = _metrics(evaluator, task.measured) if task is not None else {}
    except FtkitError as error:
        return [Finding("error", error.message, error.hint)], {}
    except Exception as error:  # a defect of a third-party plugin is a finding, not a crash
        what = f"evaluator {evaluator.name!r} raised {type(error).__name__}: {error}"
        return [Finding("error", what, "it was given the target of a test row as the prediction")], {}
    if metrics and evaluator.primary not in metrics:
        message = f"evaluator {evaluator.name!r} gave no metric named {evaluator.primary!r}, its primary one"
        findings.append(Finding("error", message, f"it gives: {', '.join(metrics)}"))
    return findings, metrics


def _metrics(evaluator: Evaluator, examples: Sequence[Example]) -> dict[str, Metric]:
    for example in examples[:_ROWS]:
        prediction = Prediction(example.id, example.targets[0] if example.targets else "")
        with without_intervals():
            _, metrics = score_all([evaluator], examples, [prediction])
        if metrics:
            return {metric.name: metric for metric in metrics}
    return {}


def _without_direction(recipe: Recipe, name: str, primary: Metric, key: str, decided: bool) -> list[Finding]:
    """Return what follows where neither way of the primary metric is better, or it is not known which."""
    backend: Backend = recipe.backend.make()
    what = f"evaluator {name!r} does not say whether a higher or a lower {primary.name!r} is better"
    if backend.needs_direction:
        message = f"{what}, and backend {backend.name!r} chooses the weights to keep by it"
        hint = "set the evaluator's option for it, if there is one (such as `higher_is_better`), or do not choose by the metric"
        return [Finding("error", message, hint, key)]
    return [] if decided else [Finding("note", f"{what}: there will be no verdict", key=key)]
