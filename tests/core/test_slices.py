"""Slices of the report, and what its examples carry: from real runs, held against numbers computed another way."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ftkit
from ftkit.api import Evaluator
from ftkit.console import Console
from ftkit.files import read_json, read_jsonl
from ftkit.hookspecs import hookimpl
from ftkit.interface import RunResult
from ftkit.plugins import PluginSource, installed_plugins
from ftkit.records import Example, Metric, Prediction, Report, Score
from ftkit.report import build_report
from ftkit.stats import mean_metrics, repeated_inputs

Make = Callable[..., dict[str, Any]]
TOPICS = ("travel", "food", "travel", "travel", "食べ物")


class Facts(Evaluator):
    """Whether an answer is in upper case, with what was read and why; and a metric that is no mean over rows."""

    name = "fake-facts"
    summary = "is it upper case"
    primary = "upper"

    def score(self, example: Example, prediction: Prediction) -> Score:
        upper = prediction.text.isupper()
        reason = None if upper else "lower case"
        values = {"upper": float(upper), "corpus": 0.25}
        return Score(example.id, values, prediction.sample, prediction.text.split()[0], reason)

    def aggregate(
        self, examples: Sequence[Example], predictions: Sequence[Prediction], scores: Sequence[Score]
    ) -> list[Metric]:
        means = mean_metrics(scores)
        return [m if m.name == "upper" else Metric("corpus", 0.75, n=m.n) for m in means]


class Corpus(Facts):
    name = "fake-corpus"
    primary = "corpus"


class FactsPlugin:
    @hookimpl
    def ftkit_evaluators(self) -> list[type[Evaluator]]:
        return [Facts, Corpus]


@pytest.fixture
def facts(fakes: ModuleType) -> Iterator[None]:
    plugin = FactsPlugin()
    installed_plugins().register(plugin, PluginSource("facts", "facts", "facts", "1"))
    yield
    installed_plugins().manager.unregister(plugin)


@pytest.fixture
def go(recipe: Make, rows: Path, tmp_path: Path, facts: None) -> Callable[..., RunResult]:
    """Run a recipe whose rows have a topic, a number, an id of their own, and one value that all share."""
    for path in rows.glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for i, line in enumerate(lines):
            line |= {"topic": TOPICS[i % 5], "year": 1990 + i, "key": f"k{i}", "set": "A", "rare": i if i % 3 else None}
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = {"meta": ["topic", "year", "key", "set"]}

    def start(backend: dict[str, Any] | None = None, **keys: Any) -> RunResult:
        made = recipe(backend, dataset={"path": str(rows), "columns": columns}, **keys)
        return ftkit.run(made, out=tmp_path / "runs", console=Console(silent=True))

    return start


def report(*runs: RunResult) -> Report:
    return build_report([r.directory for r in runs])


def table(found: Report, by: str) -> dict[str, Any]:
    (one,) = (t for t in found.slices if t["by"] == by)
    return one


# ---------------------------------------------------------------- slices


def test_slices_by_column_are_means_of_their_rows_with_the_interval_of_any_metric(go: Callable[..., RunResult]) -> None:
    run = go({"fail": ["test-0"]})
    found = table(report(run), "topic")
    assert [(g["name"], g["n"]) for g in found["groups"]] == [("travel", 15), ("food", 5), ("食べ物", 4)]
    for group in found["groups"]:
        assert "no interval is dependable" in group["few"]
        examples = [e for e in run.directory.task.test if e.meta["topic"] == group["name"]]
        for stage in ("baseline", "tuned"):
            scores = [s for s in run.directory.scores(stage) if s.example_id in {e.id for e in examples}]
            with repeated_inputs(examples):
                (wanted,) = (m for m in mean_metrics(scores) if m.name == "overlap")
            cell = group["systems"][stage]
            assert cell["value"] == pytest.approx(wanted.value) and cell["n"] == wanted.n
            assert (cell["low"], cell["high"], cell["method"]) == (wanted.low, wanted.high, wanted.method)
    assert found["groups"][0]["systems"]["tuned"]["n"] == 14, "the failed row is left out"


def test_slices_by_length_and_by_number_are_thirds(go: Callable[..., RunResult]) -> None:
    run = go()
    found = report(run)
    lengths = {e.id: len(e.input) for e in run.directory.task.test}
    by_length = table(found, "input length")
    assert by_length["unit"] == "characters" and sum(g["n"] for g in by_length["groups"]) == 24
    ranges = [[int(x) for x in g["name"].split(" to ")] for g in by_length["groups"]]
    assert ranges[0][0] == min(lengths.values()) and ranges[-1][-1] == max(lengths.values())
    for group, bounds in zip(by_length["groups"], ranges, strict=True):
        assert group["n"] == sum(bounds[0] <= n <= bounds[-1] for n in lengths.values()), "equal lengths stay together"
    assert [(g["name"], g["n"]) for g in table(found, "year")["groups"]] == [
        ("1,990 to 1,997", 8),
        ("1,998 to 2,005", 8),
        ("2,006 to 2,013", 8),
    ]


def test_a_column_that_makes_no_groups_says_why(go: Callable[..., RunResult]) -> None:
    found = report(go())
    assert (table(found, "key")["groups"], table(found, "key")["left_out"]) == ([], "hardly two rows share a value")
    assert (table(found, "set")["groups"], table(found, "set")["left_out"]) == ([], "all rows have one value")
    assert table(found, "topic")["left_out"] is None


def test_a_metric_that_is_no_mean_over_rows_has_no_slices(go: Callable[..., RunResult]) -> None:
    found = report(go(evaluator="fake-corpus"))
    assert found.systems[0].metrics["corpus"].value == 0.75 and found.slices == ()


def test_slices_of_several_seeds_are_means_over_the_seeds(go: Callable[..., RunResult]) -> None:
    runs = [go({"seed_noise": 0.4, "skill": 0.5}, seed=seed, name=f"s-{seed}") for seed in (1, 2, 3)]
    found = report(*runs)
    group = table(found, "topic")["groups"][0]
    ids = [e.id for e in runs[0].directory.task.test if e.meta["topic"] == "travel"]
    means = []
    for run in runs:
        values = {s.example_id: (s.values or {})["overlap"] for s in run.directory.scores("tuned")}
        means.append(sum(values[i] for i in ids) / len(ids))
    cell = group["systems"]["tuned"]
    assert cell["value"] == pytest.approx(sum(means) / 3) and cell["low"] <= min(means) < max(means) <= cell["high"]
    assert "3 training seeds" in cell["method"]


def test_rows_with_one_input_count_once_in_a_slice(go: Callable[..., RunResult], rows: Path) -> None:
    def repeat(path: Path) -> None:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines for _ in range(2)))

    repeat(rows / "test.jsonl")
    group = table(report(go()), "topic")["groups"][0]
    assert group["n"] == 30 and "15 different inputs" in group["few"]
    assert "15 different ones" in group["systems"]["tuned"]["method"]


def test_slices_stand_in_report_json_as_plain_data(go: Callable[..., RunResult]) -> None:
    run = go()
    written = read_json(run.directory.dir / "report.json")
    assert Report.from_dict(written).slices == report(run).slices
    assert all(math.isfinite(c["low"]) for g in written["slices"][0]["groups"] for c in g["systems"].values())


def test_scored_files_without_inputs_are_sliced_by_what_the_run_knows(
    go: Callable[..., RunResult], tmp_path: Path
) -> None:
    run = go()
    path = tmp_path / "other.jsonl"
    lines = [{"id": e.id, "prediction": e.targets[0], "target": e.targets[0]} for e in run.directory.task.test]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    scored = ftkit.score(path, "fake-overlap", tmp_path / "runs", "other")
    for order in ((run, scored), (scored, run)):
        groups = table(report(*order), "topic")["groups"]
        assert groups[0]["systems"]["other"]["value"] == 1.0


# ---------------------------------------------------------------- what an example carries


def test_an_example_carries_every_metric_the_reason_and_what_was_read(go: Callable[..., RunResult]) -> None:
    run = go({"fail": ["test-2"]}, evaluator=["fake-overlap", "fake-facts"])
    answers = report(run).pairs[1].answers
    base = answers["baseline"]
    assert base["reason"] == "lower case" and base["answer"] == "test" and base["score"] == base["values"]["overlap"]
    assert set(base["values"]) == {"overlap", "words", "upper", "corpus"} and base["values"]["upper"] == 0.0
    failed = report(run).pairs[2].answers["tuned"]
    assert failed == {"text": "", "score": None, "error": "the fake server said 503"}


def test_an_answer_that_was_cut_says_so(go: Callable[..., RunResult]) -> None:
    run = go()
    path = run.directory.path("tuned", "predictions.jsonl")
    lines = list(read_jsonl(path))
    lines[4]["finish_reason"] = "length"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    pairs = report(run).pairs
    assert [i for i, p in enumerate(pairs) if p.answers["tuned"].get("finish_reason") == "length"] == [4]
    assert not any("finish_reason" in p.answers["baseline"] for p in pairs)


def test_values_are_means_over_samples(go: Callable[..., RunResult]) -> None:
    run = go(generation={"max_new_tokens": 16, "samples": 2, "temperature": 1.0})
    pair = report(run).pairs[5]
    scores = [s.values or {} for s in run.directory.scores("tuned") if s.example_id == pair.example_id]
    assert len(scores) == 2
    for name in ("overlap", "words"):
        assert pair.answers["tuned"]["values"][name] == pytest.approx(sum(s[name] for s in scores) / 2)
