"""The p-value and the interval that are shown are those that the verdict rests on, in every form of a report."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ftkit
from ftkit.interface import RunResult
from ftkit.records import Delta, Report
from ftkit.report import render_html, render_markdown
from ftkit.report.compare import word_of
from ftkit.text import p_value

TARGET = "one two three four five six seven eight nine ten"


@pytest.fixture
def score(tmp_path: Path, fakes: ModuleType) -> Callable[..., RunResult]:
    """Score a file in which row i holds `words[i]` of the target's ten words."""

    def make(name: str, words: list[int], inputs: list[str] | None = None, **more: Any) -> RunResult:
        path = tmp_path / f"{name}.jsonl"
        rows = [
            {
                "id": str(i),
                "input": inputs[i] if inputs else f"question {i}",
                "prediction": " ".join(TARGET.split()[:n]) or "nothing",
                "target": TARGET,
            }
            for i, n in enumerate(words)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return ftkit.score(path, "fake-overlap", tmp_path / "runs", name, **more)

    return make


def report(tmp_path: Path, *runs: RunResult) -> Report:
    return ftkit.report(*runs, out=tmp_path / "report")


def noisy(seed: int, shift: float, n: int = 40) -> list[int]:
    rng = random.Random(seed)
    return [min(10, max(0, round(rng.gauss(5 + shift, 2)))) for _ in range(n)]


def primary(found: Report) -> list[Delta]:
    return [d for d in found.deltas if d.metric == found.primary]


# ---------------------------------------------------------------- one decision


def test_a_difference_that_holm_takes_back_is_shown_with_the_interval_that_holds_0(
    score: Callable[..., RunResult], tmp_path: Path
) -> None:
    """The page showed p 0.035 and an interval without 0 beside "No difference shown"; the verdict used p 0.299."""
    found = report(tmp_path, *(score(name, noisy(seed, shift)) for name, seed, shift in (
        ("a", 4, 0), ("b", 3, 0.9), ("c", 6, 0.4), ("d", 8, 0.3), ("e", 9, 0.5))))  # fmt: skip
    deltas = primary(found)
    assert len(deltas) == 10
    taken_back = [d for d in deltas if (d.p_value or 1) < 0.05 <= (d.p_adjusted or 0)]
    assert taken_back, "the test needs such a difference"
    for d in taken_back:
        assert d.verdict == "no difference shown" and d.confidence > 0.99
        assert d.low is not None and d.high is not None and d.low <= 0 <= d.high


@pytest.mark.parametrize("shifts", [(0, 0.2, 0.9), (0, 2, 4), (0, 0, 0), (0, 1.1, 1.2, 1.3)])
@pytest.mark.parametrize("n", [8, 40, 120])
def test_p_value_interval_and_verdict_say_the_same(
    score: Callable[..., RunResult], tmp_path: Path, shifts: tuple[float, ...], n: int
) -> None:
    found = report(tmp_path, *(score(f"s{i}", noisy(i, shift, n)) for i, shift in enumerate(shifts)))
    for d in primary(found):
        assert d.low is not None and d.high is not None and d.p_decided is not None
        decided = (d.p_decided < 0.05, not d.low <= 0 <= d.high)
        assert (d.verdict != "no difference shown") == all(decided)
        if d.verdict != "no difference shown":
            assert d.verdict == ("better" if d.delta > 0 else "worse")
    levels = sorted(d.confidence for d in primary(found))
    assert levels[-1] == pytest.approx(1 - 0.05 / len(levels)) and levels[0] >= 0.95


def test_every_form_of_the_report_shows_what_decided(score: Callable[..., RunResult], tmp_path: Path) -> None:
    found = report(tmp_path, score("a", noisy(1, 0)), score("b", noisy(2, 3)), score("c", noisy(3, 1)))
    head = found.deltas[0]
    level = f"{100 * head.confidence:.4g} %"
    assert head.p_adjusted is not None and f"{head.to} is {head.verdict} than {head.from_}" == found.verdict
    low, high = (f"{100 * (x or 0):+.1f}".replace("-", "−") for x in (head.low, head.high))
    shown = p_value(head.p_adjusted)
    assert f"{level} interval [{low}, {high}], p {shown} after Holm's correction" in found.verdict_detail.split("\n")[0]
    page = re.sub(r"\s+", " ", render_html(found))
    escaped = shown.replace("<", "&lt;")
    assert f"({level} interval {low} to {high})" in page  # the sentence under the headline
    lines = render_markdown(found)
    assert f"({level} interval {low} to {high})" in lines
    pair = replace(found, systems=found.systems[:2])  # two systems stand in a table, three in a matrix
    table = re.sub(r"\s+", " ", render_html(pair))
    assert (
        f'<span class="interval">{low} to {high}, {level}</span></td><td class="num">{p_value(head.p_value).replace("<", "&lt;")}</td><td class="num">{escaped}</td>'
        in table
    )
    assert f"| {low} to {high} ({level}) | {shown} |" in render_markdown(pair)
    data = json.loads((tmp_path / "report" / "report.json").read_text())["deltas"][0]
    keys = ("p_value", "p_adjusted", "confidence", "low", "high")
    assert [data[key] for key in keys] == [getattr(head, key) for key in keys]
    assert Report.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_where_the_two_disagree_the_verdict_needs_both() -> None:
    def word(p: float, low: float | None, high: float | None, adjusted: float | None = None) -> str:
        return word_of(Delta("a", "b", "m", 0.1, low, high, p, 50, adjusted), True)

    assert word(0.04, 0.01, 0.2) == "better"
    assert word(0.06, 0.01, 0.2) == word(0.04, -0.01, 0.2) == word(0.04, 0.01, 0.2, 0.06) == "no difference shown"
    # Equal differences in a unit without bounds have no interval.
    assert word(0.04, None, None) == "better" and word(0.5, None, None) == "no difference shown"


def test_a_disagreement_is_said(score: Callable[..., RunResult], tmp_path: Path) -> None:
    """Five of 40 answers became right, none wrong: McNemar's exact p is 0.0625, the interval is without 0."""
    found = report(tmp_path, score("a", [10] * 20 + [0] * 20), score("b", [10] * 25 + [0] * 15))
    (d,) = primary(found)
    assert d.p_value == 0.0625 and d.low is not None and d.low > 0 and d.verdict == "no difference shown"
    assert "Only the interval shows a difference: a verdict needs both." in found.verdict_detail


# ---------------------------------------------------------------- several scored files


def test_each_pair_of_scored_files_that_differs_has_its_line(score: Callable[..., RunResult], tmp_path: Path) -> None:
    found = report(tmp_path, score("a", noisy(1, 0)), score("b", noisy(2, 0)), score("c", noisy(3, 4)))
    assert found.verdict == "c is better than a"
    first, second = found.verdict_detail.split("\n")
    assert first.startswith("overlap ") and second.startswith("c is better than b: overlap ")
    assert (found.deltas[0].from_, found.deltas[0].to) == ("a", "c")  # what the page's headline shows
    assert found.headline is not None and found.headline.title.startswith("c is better than a: overlap ")
    assert '<h2 id="verdict">c is better than a: overlap ' in render_html(found)


def test_scored_files_that_do_not_differ(score: Callable[..., RunResult], tmp_path: Path) -> None:
    found = report(tmp_path, *(score(name, noisy(seed, 0)) for name, seed in (("a", 1), ("b", 2), ("c", 5))))
    assert found.verdict == "No difference shown between any two of a, b and c"
    assert len(found.verdict_detail.split("\n")) == 3


def test_one_scored_file_is_alone(score: Callable[..., RunResult], tmp_path: Path) -> None:
    found = report(tmp_path, score("a", noisy(1, 0)))
    assert found.verdict == "No verdict" and found.verdict_detail.startswith("a is alone: ")


# ---------------------------------------------------------------- what intervals rest on


def test_a_report_says_that_few_examples_are_not_dependable(score: Callable[..., RunResult], tmp_path: Path) -> None:
    few = report(tmp_path, score("a", noisy(1, 0, 12)), score("b", noisy(2, 4, 12)))
    note = "From 12 examples no interval is dependable: it needs 20 (overlap, n=12: a, b, a → b)"
    assert note in few.notes and note in render_html(few)
    enough = report(tmp_path, score("c", noisy(1, 0, 20)), score("d", noisy(2, 4, 20)))
    assert not any("dependable" in n for n in enough.notes)


def test_rows_with_the_same_input_count_as_one(score: Callable[..., RunResult], tmp_path: Path) -> None:
    """24 questions, five rows each with the same answer: 120 rows are worth 24."""

    def five(words: list[int]) -> list[int]:
        return [w for w in words for _ in range(5)]

    inputs = [f"question {i} " for i in range(24) for _ in range(5)]
    first, second = noisy(1, 0, 24), noisy(2, 1.4, 24)
    once = report(tmp_path, score("a", first), score("b", second))
    runs = [score("c", five(first), inputs), score("d", five(second), inputs)]
    many = report(tmp_path, *runs)
    (d,), (alone,) = primary(many), primary(once)
    assert (d.n, d.n_inputs) == (120, 24) and (alone.n, alone.n_inputs) == (24, None)
    assert (d.delta, d.low, d.high) == pytest.approx((alone.delta, alone.low, alone.high))
    assert d.p_value == pytest.approx(alone.p_value, abs=0.01)  # other random signs
    assert d.verdict == alone.verdict
    metric = runs[0].metrics["predictions"]["overlap"]
    assert (metric.n, metric.n_inputs) == (120, 24)
    assert (metric.low, metric.high) == pytest.approx((lambda m: (m.low, m.high))(once.systems[0].metrics["overlap"]))
    assert "n=120 (24 different inputs)" in many.verdict_detail and "120 (24 different inputs)" in render_html(many)
    assert any(
        n.startswith("120 rows hold 24 different inputs: rows with the same input count as one") for n in many.notes
    )


def test_equal_answers_have_an_interval_with_width(score: Callable[..., RunResult], tmp_path: Path) -> None:
    """ "+100 [+100, +100]" and "0 [0, 0]" were shown."""
    found = report(tmp_path, score("a", [0] * 30), score("b", [10] * 30))
    (d,) = primary(found)
    assert d.delta == 1 and d.low is not None and 0.7 < d.low < 0.95 and d.high == 1 and d.verdict == "better"
    same = report(tmp_path, score("c", noisy(1, 0, 30)), score("d", noisy(1, 0, 30)))
    (d,) = primary(same)
    assert d.delta == 0 and d.low is not None and d.low < -0.05 and d.high == -d.low
    assert d.verdict == "no difference shown"
