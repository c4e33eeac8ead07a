"""The evaluator `gsm8k-answer`: is the final number right?"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from ftkit.api import Evaluator
from ftkit.errors import InputError
from ftkit.records import Example, Metric, Prediction, Score

from ._estimators import ks, majority, pass_at_k
from ._numbers import WrongTarget, annotated, final, in_form_of, marked, show, target

RULE = "2"  # increased when the same solutions would get other scores
NONE = "contains no number"
FIX = "mark one number as the answer in that row's target (#### 18), or leave the row out"


class Gsm8kAnswer(Evaluator):
    """Compares the final number of a worked solution with the reference's, exactly.

    `accuracy_flexible` takes the number that the solution ends at: after `####`, in a box, after "the answer is", else
    the last one. `accuracy_strict` takes the number that is marked as the answer. The probe's verdict uses the flexible
    one: strict accuracy underestimates a base model that was never trained on the marks.
    With k > 1 samples per question, pass@k and maj@k are reported as well.
    """

    name = "gsm8k-answer"
    summary = "final number of a worked solution, exact; format, step arithmetic, pass@k"
    primary = "accuracy_flexible"

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "rule": RULE}

    def prepare(self, examples: Sequence[Example]) -> None:
        """Raise InputError where a reference's answer cannot be read, or can be read in two ways; it names the row."""
        wrong = wrong_targets(examples)
        if wrong and len(wrong) == len(examples) and all(NONE in message for message in wrong):
            raise InputError(
                "gsm8k-answer: no reference contains a number", "dataset.columns.target must name the worked solutions"
            )
        if wrong:
            more = f" (and {len(wrong) - 1} more rows)" if len(wrong) > 1 else ""
            raise InputError(f"gsm8k-answer: {wrong[0]}{more}", FIX)

    def score(self, example: Example, prediction: Prediction) -> Score:
        wrong = wrong_targets([example])
        if wrong:
            return Score(example.id, None, prediction.sample, reason=wrong[0])
        right = gold(example)
        strict, flexible = marked(prediction.text), final(prediction.text)
        values = {
            "accuracy_flexible": float(flexible in right),
            "accuracy_strict": float(strict in right),
            "answer_format": float(in_form_of(example.targets[0], prediction.text)),
            "no_answer": float(flexible is None),
        }
        steps = annotated(prediction.text)
        if steps:
            values["step_arithmetic"] = sum(s.right for s in steps) / len(steps)
        reason = "no answer" if flexible is None else None
        return Score(example.id, values, prediction.sample, answer=show(flexible), reason=reason)

    def aggregate(
        self, examples: Sequence[Example], predictions: Sequence[Prediction], scores: Sequence[Score]
    ) -> list[Metric]:
        from ftkit.stats import mean_metrics, ratio_metric  # imports numpy: only where it is needed

        means = mean_metrics(scores, higher_is_better={"no_answer": False})
        metrics = [m for m in means if m.name != "step_arithmetic"]
        steps: dict[str, list[bool]] = {}
        for p, s in zip(predictions, scores, strict=True):
            if s.values is not None:
                steps.setdefault(p.example_id, []).extend(step.right for step in annotated(p.text))
        # The share of all steps; the share of one solution's steps is its score. Steps of one question depend on
        # each other, so that the interval is over questions.
        n_unscored = len({s.example_id for s in scores} - steps.keys())
        share = ratio_metric("step_arithmetic", {i: (sum(found), len(found)) for i, found in steps.items()}, n_unscored)
        return metrics + ([share] if share else []) + mean_metrics(_of_samples(examples, predictions, scores))


def gold(example: Example) -> set[Fraction]:
    """Return the correct numbers, one of each target that can be read."""
    found = set()
    for text in example.targets:
        with contextlib.suppress(WrongTarget):
            found.add(target(text))
    return found


def wrong_targets(examples: Sequence[Example]) -> list[str]:
    """Return one message per row with a target whose answer cannot be read, or can be read in two ways."""
    found = []
    for e in examples:
        try:
            for text in e.targets:
                target(text)
            if not e.targets:
                raise WrongTarget("the reference is missing")
        except WrongTarget as error:
            found.append(f"row {e.id!r}: {error}")
    return found


def _of_samples(examples: Sequence[Example], predictions: Sequence[Prediction], scores: Sequence[Score]) -> list[Score]:
    """Return one Score per question with pass@k and maj@k, where there are several samples per question."""
    samples = 1 + max((p.sample for p in predictions), default=0)
    if samples < 2:
        return []
    solutions: dict[str, list[Prediction]] = {}
    right: dict[str, list[bool]] = {}
    for p, s in zip(predictions, scores, strict=True):
        if s.values is not None:
            solutions.setdefault(p.example_id, []).append(p)
            right.setdefault(p.example_id, []).append(s.values["accuracy_flexible"] == 1)
    found = []
    for e in {e.id: e for e in examples}.values():
        n = len(right.get(e.id, ()))
        if n < samples:  # some requests failed: pass@k cannot be estimated from fewer than k samples
            found.append(Score(e.id, None, reason=f"{samples - n} of {samples} samples are unscored"))
            continue
        votes = ["right" if r else final(p.text) for p, r in zip(solutions[e.id], right[e.id], strict=True)]
        values = {f"pass@{k}": pass_at_k(n, sum(right[e.id]), k) for k in ks(n)}
        found.append(Score(e.id, {**values, f"maj@{n}": majority(votes, "right")}))
    return found
