"""`ftkit check` tries each evaluator on one made-up answer, before anything is spent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ftkit
from ftkit import hookimpl, interface
from ftkit.api import Evaluator
from ftkit.console import Console
from ftkit.errors import InputError, RecipeError
from ftkit.plugins import PluginSource, installed_plugins
from ftkit.records import Example, Finding, Metric, Prediction, Score
from ftkit.run.prepare import preflight
from ftkit.run.trial import try_evaluators
from ftkit.stats import mean_metrics

Make = Callable[..., dict[str, Any]]


class Right(Evaluator):
    """1 where the answer is a target; remembers what it was given."""

    name = "right"
    primary = "right"
    asked: list[tuple[str, str]] = []  # noqa: RUF012

    def score(self, example: Example, prediction: Prediction) -> Score:
        self.asked.append((example.id, prediction.text))
        return Score(example.id, {"right": float(prediction.text in example.targets)}, prediction.sample)


class Misnamed(Right):
    name = "misnamed"
    primary = "rihgt"


class CorpusMisnamed(Right):
    name = "corpus-misnamed"
    primary = "blue"

    def score(self, example: Example, prediction: Prediction) -> Score:
        return Score(example.id, {}, prediction.sample)

    def aggregate(self, examples: Any, predictions: Any, scores: Any) -> list[Metric]:
        return [Metric("bleu", 0.5)]


class Raising(Right):
    name = "raising"

    def score(self, example: Example, prediction: Prediction) -> Score:
        return Score(example.id, {"right": float(example.meta["gold"])}, prediction.sample)


class RaisingLater(Right):
    name = "raising-later"

    def aggregate(self, examples: Any, predictions: Any, scores: Any) -> list[Metric]:
        raise ZeroDivisionError("no rows of kind 2")


class Offline(Right):
    name = "offline"

    def prepare(self, examples: Sequence[Example]) -> None:
        raise ConnectionError("the hub cannot be reached")


class Refusing(Right):
    name = "refusing"

    def check(self) -> Iterable[Finding]:
        return [Finding("error", "refusing: no key", "set one", "key")]


class Percent(Right):
    name = "percent"

    def score(self, example: Example, prediction: Prediction) -> Score:
        return Score(example.id, {"right": 100.0}, prediction.sample)


class SomeRows(Right):
    """Scores rows from the third on alone, as an evaluator does that looks for a column."""

    name = "some-rows"

    def score(self, example: Example, prediction: Prediction) -> Score:
        self.asked.append((example.id, prediction.text))
        return Score(example.id, {"right": 1.0} if example.id.endswith("2") else None)


class Directionless(Right):
    name = "directionless"

    def aggregate(self, examples: Any, predictions: Any, scores: Any) -> list[Metric]:
        return mean_metrics(scores, higher_is_better={"right": None})


class Evaluators:
    @hookimpl
    def ftkit_evaluators(self) -> list[type[Evaluator]]:
        return [
            Right,
            Misnamed,
            CorpusMisnamed,
            Raising,
            RaisingLater,
            Offline,
            Refusing,
            Percent,
            SomeRows,
            Directionless,
        ]


@pytest.fixture(autouse=True)
def evaluators(fakes: ModuleType) -> Iterator[None]:
    plugin = Evaluators()
    installed_plugins().register(plugin, PluginSource("trial", "trial", "trial", "1"))
    Right.asked.clear()
    yield
    installed_plugins().manager.unregister(plugin)


def found(recipe: dict[str, Any]) -> list[Finding]:
    return [f for f in preflight(interface.load(recipe)).findings if (f.key or "").startswith("evaluator")]


def test_one_answer_is_made_up_from_the_first_test_row(recipe: Make) -> None:
    assert found(recipe(evaluator="right")) == []
    assert Right.asked == [("test-0", "TEST ROW 0 SAYS")]


@pytest.mark.parametrize(
    ("name", "says", "hint"),
    [
        ("misnamed", "evaluator 'misnamed' gave no metric named 'rihgt', its primary one", "it gives: right"),
        (
            "corpus-misnamed",
            "evaluator 'corpus-misnamed' gave no metric named 'blue', its primary one",
            "it gives: bleu",
        ),
        ("raising", "evaluator 'raising' raised KeyError on example 'test-0': 'gold'", None),
        ("raising-later", "evaluator 'raising-later': aggregate() raised ZeroDivisionError: no rows of kind 2", None),
        ("offline", "evaluator 'offline' raised ConnectionError: the hub cannot be reached", "target of a test row"),
        ("refusing", "refusing: no key", "set one"),
        ("percent", "evaluator 'percent' gave 100.0 for 'right' of example 'test-0': its unit", "return fractions"),
    ],
)
def test_what_is_wrong_with_an_evaluator_is_a_finding(
    recipe: Make, tmp_path: Path, name: str, says: str, hint: str | None
) -> None:
    (finding,) = found(recipe(evaluator=name))
    assert finding.level == "error" and finding.message.startswith(says)
    assert hint is None or hint in (finding.hint or "")
    with pytest.raises(RecipeError) as caught:
        ftkit.run(recipe(evaluator=name), out=tmp_path / "runs", console=Console(silent=True))
    assert says in str(caught.value) and not (tmp_path / "runs").exists()


def test_each_of_several_evaluators_is_tried(recipe: Make) -> None:
    findings = found(recipe(evaluator=[{"plugin": "right"}, {"plugin": "offline"}, {"plugin": "percent"}]))
    assert [f.key for f in findings] == ["evaluator.1", "evaluator.2"]
    (twice,) = found(recipe(evaluator=[{"plugin": "right"}, {"plugin": "some-rows"}]))
    assert twice.message == "evaluators 'right' and 'some-rows' both name a metric 'right'"


def test_a_row_that_cannot_be_scored_is_no_finding(recipe: Make) -> None:
    assert found(recipe(evaluator="some-rows")) == []
    assert [i for i, _ in Right.asked] == ["test-0", "test-1", "test-2"]


def test_without_data_the_options_are_checked(recipe: Make) -> None:
    (finding,) = try_evaluators(interface.load(recipe(evaluator="refusing")), None)
    assert finding.message == "refusing: no key" and Right.asked == []


def test_a_metric_without_direction(recipe: Make, fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no verdict; and where training chooses by the metric, it is an error."""
    (note,) = found(recipe(evaluator="directionless"))
    assert (
        note.level == "note"
        and "whether a higher or a lower 'right' is better: there will be no verdict" in note.message
    )
    monkeypatch.setattr(fakes.FakeBackend, "needs_direction", True)
    (error,) = found(recipe(evaluator="directionless"))
    assert error.level == "error" and "backend 'fake' chooses the weights to keep by it" in error.message
    assert found(recipe(evaluator="right")) == []


def test_no_verdict_without_a_direction(recipe: Make, tmp_path: Path) -> None:
    result = ftkit.run(recipe(evaluator="directionless"), out=tmp_path / "runs", console=Console(silent=True))
    assert result.verdict == "No verdict on tuned against baseline"
    assert "Neither a higher nor a lower right is known to be better." in result.report.verdict_detail
    assert all(d.verdict == "" for d in result.report.deltas)


def test_an_evaluator_that_needs_the_network_is_told_of(recipe: Make) -> None:
    pytest.importorskip("evaluate")
    evaluator = {"plugin": "hf-metric", "metric": "./no/such/metric.py", "allow_code": True}
    with pytest.raises((InputError, RecipeError)):
        interface.load(recipe(evaluator={**evaluator, "metric": ""}))
    (finding,) = (f for f in found(recipe(evaluator=evaluator)) if f.level == "error")
    assert "there is no metric script at" in finding.message
