"""Scores and metrics are what their unit says, or an error names who gave them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ftkit.api import Evaluator
from ftkit.errors import RunFailed
from ftkit.records import Example, Message, Metric, Prediction, Score
from ftkit.score import score_all
from ftkit.stats import mean_metrics


class Marks(Evaluator):
    """Gives the prediction's text as a number."""

    name = "marks"
    primary = "mark"
    unit = "fraction"

    def score(self, example: Example, prediction: Prediction) -> Score:
        return Score(example.id, {"mark": self.value(prediction.text)}, prediction.sample)

    def value(self, text: str) -> Any:
        return float(text)

    def aggregate(self, examples: Any, predictions: Any, scores: Any) -> list[Metric]:
        return mean_metrics(scores, {"mark": self.unit})


def rows(*texts: str, **same: str) -> tuple[list[Example], list[Prediction]]:
    examples = [
        Example(f"row-{i}", (Message("user", same.get("input", f"question {i}")),), ("t",)) for i in range(len(texts))
    ]
    return examples, [Prediction(e.id, text) for e, text in zip(examples, texts, strict=True)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("55", "evaluator 'marks' gave 55.0 for 'mark' of example 'row-1': its unit is \"fraction\""),
        ("-0.1", "evaluator 'marks' gave -0.1 for 'mark' of example 'row-1': its unit is \"fraction\""),
        ("nan", "evaluator 'marks' gave nan for 'mark' of example 'row-1': a value must be a finite number"),
        ("inf", "evaluator 'marks' gave inf for 'mark' of example 'row-1': a value must be a finite number"),
    ],
)
def test_a_value_outside_its_unit_names_who_gave_it(text: str, says: str) -> None:
    with pytest.raises(RunFailed, match=r"\A" + says) as caught:
        score_all([Marks()], *rows("0.5", text, "0.7"))
    assert caught.value.hint


@pytest.mark.parametrize("value", ["0.5", None, [0.5], 0.5j])
def test_a_value_that_is_no_number_names_who_gave_it(value: Any) -> None:
    class Wrong(Marks):
        def value(self, text: str) -> Any:
            return value

    with pytest.raises(
        RunFailed, match=r"'marks' gave .* for 'mark' of example 'row-0': a value must be a finite number"
    ):
        score_all([Wrong()], *rows("x"))


@pytest.mark.parametrize("value", [0, 1, 1 + 1e-12, np.float32(0.5), True])
def test_numbers_of_any_type_are_values(value: Any) -> None:
    class Right(Marks):
        def value(self, text: str) -> Any:
            return value

    _, (metric,) = score_all([Right()], *rows("x", "y"))
    assert metric.value == pytest.approx(float(value))


def test_other_units_have_no_bounds() -> None:
    class Words(Marks):
        unit = "words"

    _, (metric,) = score_all([Words()], *rows("55", "-3"))
    assert metric.value == 26


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        (Metric("mark", 55.0), "gave 55.0 for 'mark' over the split: its unit is"),
        (Metric("mark", math.nan), "gave nan for 'mark' over the split: it must be a finite number"),
        (Metric("mark", 0.5, -0.2, 0.7), "gave -0.2 for 'mark' over the split .lower bound.: its unit is"),
        (Metric("mark", 0.5, 0.2, math.inf), "gave inf for 'mark' over the split .upper bound.: it must be"),
        (Metric("mark", math.nan, unit="words"), "gave nan for 'mark' over the split: it must be a finite number"),
    ],
)
def test_a_metric_outside_its_unit_names_who_gave_it(metric: Metric, says: str) -> None:
    class Corpus(Marks):
        def score(self, example: Example, prediction: Prediction) -> Score:
            return Score(example.id, {}, prediction.sample)

        def aggregate(self, examples: Any, predictions: Any, scores: Any) -> list[Metric]:
            return [metric]

    with pytest.raises(RunFailed, match="evaluator 'marks' " + says):
        score_all([Corpus()], *rows("x"))


def test_an_evaluator_need_not_know_of_repeated_inputs() -> None:
    texts = [str(i % 7 / 10) for i in range(60)]
    _, (apart,) = score_all([Marks()], *rows(*texts))
    _, (same,) = score_all([Marks()], *rows(*texts, input="the same question"))
    assert apart.n_inputs is None and apart.low is not None
    assert (same.n, same.n_inputs, same.low) == (60, 1, None) and same.value == apart.value
