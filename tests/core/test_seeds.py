"""Training seeds: what is one system, what its interval covers, what may be claimed, and `ftkit run --seeds`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

import ftkit
from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.errors import InputError, RecipeError
from ftkit.files import read_json, write_json
from ftkit.interface import JointResult, RunResult
from ftkit.records import Delta, Report, System
from ftkit.report import build_report, render_html, render_markdown

Make = Callable[..., dict[str, Any]]
QUIET = Console(silent=True)
NOISY = {"skill": 0.7, "seed_noise": 0.2}


@pytest.fixture
def go(recipe: Make, tmp_path: Path, fakes: ModuleType) -> Callable[..., JointResult]:
    def start(
        *backends: dict[str, Any], seeds: int = 3, names: Sequence[str] = ("fake-run", "other"), **keys: Any
    ) -> JointResult:
        made = [recipe(b, name=name, **keys) for b, name in zip(backends or (NOISY,), names, strict=False)]
        found = ftkit.run(*made, out=tmp_path / "runs", console=QUIET, seeds=seeds)
        assert isinstance(found, JointResult)
        return found

    return start


@pytest.fixture
def one(recipe: Make, tmp_path: Path, fakes: ModuleType) -> Callable[..., RunResult]:
    def start(backend: dict[str, Any] | None = None, **keys: Any) -> RunResult:
        return ftkit.run(recipe({**NOISY, **(backend or {})}, **keys), out=tmp_path / "runs", console=QUIET)

    return start


def report(*runs: RunResult, anyway: bool = False) -> Report:
    return build_report([r.directory for r in runs], anyway)


def between(found: Report, a: str, b: str, metric: str = "overlap") -> Delta:
    (delta,) = (d for d in found.deltas if (d.from_, d.to, d.metric) == (a, b, metric))
    return delta


def system(found: Report, name: str) -> System:
    (only,) = (s for s in found.systems if s.name == name)
    return only


# ---------------------------------------------------------------- ftkit run --seeds


def test_one_recipe_three_seeds(go: Callable[..., JointResult]) -> None:
    joint = go()
    records = [run.directory.record() for run in joint]
    assert [r.name for r in records] == ["fake-run-seed42", "fake-run-seed43", "fake-run-seed44"]
    assert [run.directory.recipe.seed for run in joint] == [42, 43, 44]
    assert [run.directory.record().status for run in joint] == ["done"] * 3
    costs = [read_json(run.dir / "baseline" / "cost.json") for run in joint]
    assert [c.get("reused_from") for c in costs] == [None, joint[0].directory.id, joint[0].directory.id]
    assert len({(run.dir / "tuned" / "predictions.jsonl").read_bytes() for run in joint}) == 3
    found = joint.report
    assert [s.name for s in found.systems] == ["baseline", "tuned"]
    assert found.title == "fake-run (3 training seeds)" and found.verdict == "tuned is better than baseline"
    assert joint.to_dict()["report"] == str(joint.dir) and len(joint.to_dict()["runs"]) == 3


def test_the_numbers_of_a_group(go: Callable[..., JointResult]) -> None:
    joint = go()
    values = [run.metrics["tuned"]["overlap"].value for run in joint]
    tuned = system(joint.report, "tuned")
    assert tuned.metrics["overlap"].value == pytest.approx(statistics.mean(values))
    assert [s["seed"] for s in tuned.seeds] == [42, 43, 44]
    assert [s["runs"] for s in tuned.seeds] == [[run.directory.id] for run in joint]
    assert [s["metrics"]["overlap"] for s in tuned.seeds] == pytest.approx(values)
    spread = tuned.spread["overlap"]
    assert spread["sd"] == pytest.approx(statistics.stdev(values)) and spread["sd"] > 0
    assert (spread["min"], spread["max"]) == (min(values), max(values))
    metric = tuned.metrics["overlap"]
    assert metric.low is not None and metric.high is not None and 0 <= metric.low < metric.value < metric.high <= 1
    assert metric.method and "3 training seeds and 24 examples" in metric.method and metric.n == 24
    assert tuned.train_usd == 0.25 and tuned.usd == pytest.approx(0.75) and tuned.n_predictions == 72
    base = system(joint.report, "baseline")
    assert base.seeds == () and base.spread == {}
    delta = between(joint.report, "baseline", "tuned")
    assert delta.about == "recipe" and delta.verdict == "better" and delta.n == 24
    assert delta.delta == pytest.approx(metric.value - base.metrics["overlap"].value)
    assert "3 training seeds (standard deviation" in joint.report.verdict_detail
    alone = report(joint[0])
    assert "one training seed" in alone.verdict_detail and alone.verdict == "tuned is better than baseline"
    assert between(alone, "baseline", "tuned").about == "run" and len(system(alone, "tuned").seeds) == 1


def test_the_interval_is_the_documented_one(go: Callable[..., JointResult]) -> None:
    joint = go()
    ids = [e.id for e in joint[0].directory.task.test]
    scores = [{s.example_id: s.values["overlap"] for s in r.directory.scores("tuned") if s.values} for r in joint]
    base = {s.example_id: s.values["overlap"] for s in joint[0].directory.scores("baseline") if s.values}
    tuned = np.array([[s[i] for i in ids] for s in scores])
    differences = tuned.mean(axis=0) - np.array([base[i] for i in ids])
    rows = differences.std(ddof=1) / np.sqrt(24) * scipy_stats.t.ppf(0.975, 23)
    seeds = tuned.mean(axis=1).std(ddof=1) / np.sqrt(3) * scipy_stats.t.ppf(0.975, 2)
    half = float(np.hypot(rows, seeds))
    delta = between(joint.report, "baseline", "tuned")
    assert (delta.low, delta.high) == (pytest.approx(delta.delta - half), pytest.approx(min(1, delta.delta + half)))


def test_two_recipes_and_seeds(go: Callable[..., JointResult]) -> None:
    joint = go({**NOISY, "skill": 0.95, "seed_noise": 0.02}, {**NOISY, "skill": 0.1, "seed_noise": 0.02}, seeds=3)
    assert len(joint) == 6
    found = joint.report
    assert [s.name for s in found.systems] == ["fake-run baseline", "fake-run tuned", "other tuned"]
    assert found.title == "fake-run (3 training seeds) vs other (3 training seeds)"
    delta = between(found, "fake-run tuned", "other tuned")
    assert delta.verdict == "worse" and delta.about == "recipe"
    assert found.verdict == "other tuned is worse than fake-run tuned"  # two things are compared: that is the question
    assert found.headline and found.headline.title.startswith("fake-run is better than other: overlap ")
    assert {(d.from_, d.to) for d in found.deltas} == {
        ("fake-run baseline", "fake-run tuned"),
        ("fake-run baseline", "other tuned"),
        ("fake-run tuned", "other tuned"),
    }


@pytest.mark.parametrize(
    ("seed", "seeds", "says"),
    [
        (2**32 - 2, 3, f"{2**32} is too large for a seed"),
        (42, 0, "not a number of trainings"),
        (42, -1, "not a number of trainings"),
        (42, True, "not a number of trainings"),
    ],
)
def test_seeds_that_cannot_be(go: Callable[..., JointResult], tmp_path: Path, seed: int, seeds: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        go(seed=seed, seeds=seeds)
    assert not (tmp_path / "runs").exists()
    assert len(go(seed=2**32 - 2, seeds=2)) == 2


def test_one_seed_is_a_joint_result_that_claims_as_one_run(go: Callable[..., JointResult]) -> None:
    joint = go(seeds=1)
    assert [r.directory.record().name for r in joint] == ["fake-run-seed42"]
    assert "one training seed" in joint.report.verdict_detail
    assert [s.name for s in joint.report.systems] == ["baseline", "tuned"]


def test_a_long_name_stays_a_name(go: Callable[..., JointResult]) -> None:
    joint = go(names=["x" * 80], seeds=2)
    names = [r.directory.record().name for r in joint]
    assert [len(name) for name in names] == [80, 80] and names[1].endswith("xx-seed43")
    assert all(RunDirectory.open(r.dir).recipe.name == name for r, name in zip(joint, names, strict=True))
    assert joint.report.title == "x" * 73 + " (2 training seeds)"


def test_mistakes_and_prices_are_told_once_for_all_seeds(
    go: Callable[..., JointResult], recipe: Make, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        go({"refuse": "no memory"})
    assert len(caught.value.problems) == 1 and not list(tmp_path.glob("runs/*"))
    with pytest.raises(InputError, match=r"it would cost about \$1\.50"):
        ftkit.run(recipe({"usd": 0.5}), out=tmp_path / "runs", console=QUIET, seeds=3)
    with pytest.raises(InputError, match=r"it would cost about \$1\.00"):  # 43 and 44 differ in name and seed alone
        ftkit.run(recipe({"usd": 0.5}), recipe({"usd": 0.5}, seed=44), out=tmp_path / "runs", console=QUIET)


# ---------------------------------------------------------------- what is one system


def test_runs_made_one_by_one_are_grouped_whatever_their_names(one: Callable[..., RunResult]) -> None:
    runs = [one(seed=seed, name=name) for seed, name in ((1, "a"), (2, "b"), (3, "b"))]
    found = report(*runs)
    assert [s.name for s in found.systems] == ["baseline", "tuned"] and found.title == "a and 2 more (3 training seeds)"
    assert report(*runs[1:]).title == "b (2 training seeds)"
    again = report(*reversed(runs))
    assert [s["seed"] for s in system(again, "tuned").seeds] == [1, 2, 3]
    assert between(again, "baseline", "tuned") == between(found, "baseline", "tuned")


@pytest.mark.parametrize("names", [("demo-s{}", "demo_{}"), ("demo-seed{}", "demo")])
def test_names_that_hold_the_seed(one: Callable[..., RunResult], names: tuple[str, ...]) -> None:
    runs = [one(seed=seed, name=name.format(seed)) for seed, name in zip((7, 8), names, strict=True)]
    assert report(*runs).title == "demo (2 training seeds)"


@pytest.mark.parametrize(
    "change",
    [{"backend": {"steps": 7}}, {"backend": {"skill": 0.71}}, {"note": "another"}, {"controls": ["fake-echo"]}],
    ids=["steps", "skill", "note", "controls"],
)
def test_another_recipe_is_another_system(one: Callable[..., RunResult], change: dict[str, Any]) -> None:
    found = report(one(seed=1, name="a"), one(seed=2, name="b", **change))
    assert {"a tuned", "b tuned"} <= {s.name for s in found.systems}
    assert all(len(s.seeds) == (s.role == "tuned") for s in found.systems)


def test_other_training_rows_are_another_system(one: Callable[..., RunResult], rows: Path) -> None:
    first = one(seed=1, name="a")
    kept = (rows / "train.jsonl").read_text().splitlines(keepends=True)
    (rows / "train.jsonl").write_text("".join(kept[:-1]))
    assert [s.name for s in report(first, one(seed=2, name="b")).systems] == ["a baseline", "a tuned", "b tuned"]


def test_a_seed_that_was_trained_twice_counts_once(one: Callable[..., RunResult]) -> None:
    runs = [one(seed=seed) for seed in (1, 2, 2)]
    found = report(*runs)
    tuned = system(found, "tuned")
    assert [(s["seed"], len(s["runs"])) for s in tuned.seeds] == [(1, 1), (2, 2)]
    assert "tuned: seed 2 was trained 2 times; their mean counts as one seed" in found.notes
    once = between(report(*runs[:2]), "baseline", "tuned")
    twice = between(found, "baseline", "tuned")
    assert (twice.delta, twice.low, twice.high) == pytest.approx((once.delta, once.low, once.high))


def test_one_seed_twice_is_no_group(one: Callable[..., RunResult]) -> None:
    found = report(one(seed=1, name="a"), one(seed=1, name="b"))
    assert [s.name for s in found.systems] == ["a baseline", "a tuned", "b tuned"]
    assert between(found, "a tuned", "b tuned").verdict == "no difference shown"


def test_seeds_that_change_nothing_count_as_one_training(go: Callable[..., JointResult]) -> None:
    joint = go({"skill": 0.9}, {"skill": 0.2})  # the seed does not reach this training
    found = joint.report
    assert sum("gave the same answers to all rows" in w for w in found.warnings) == 2
    delta = between(found, "fake-run tuned", "other tuned")
    assert delta.verdict == "scored lower" and delta.about == "run"
    assert between(found, "fake-run baseline", "fake-run tuned").verdict == "better"
    assert "one training seed" in found.verdict_detail and "nothing is claimed of the recipes" in found.verdict_detail


def test_a_backends_own_measurements_are_grouped_too(go: Callable[..., JointResult]) -> None:
    found = go({**NOISY, "extras": True, "losses": True}, controls=["fake-echo"]).report
    assert [s.name for s in found.systems] == ["baseline", "control-fake-echo", "tuned", "tuned-train-rows"]
    rows = system(found, "tuned-train-rows")
    assert len(rows.seeds) == 3 and rows.role == "extra" and "loss" in rows.metrics
    assert {(d.from_, d.to) for d in found.deltas} == {("baseline", "tuned"), ("control-fake-echo", "tuned")}


def test_failed_answers_of_one_seed_are_not_hidden_by_the_others(go: Callable[..., JointResult]) -> None:
    joint = go()
    folder = joint[1].dir / "tuned"
    scores = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    for score in scores[:2]:
        score["values"] = None
    (folder / "scores.jsonl").write_text("".join(json.dumps(s) + "\n" for s in scores))
    metrics = read_json(folder / "metrics.json")
    metrics["metrics"]["overlap"] |= {"n": 22, "n_unscored": 2}
    write_json(folder / "metrics.json", metrics)
    found = report(*joint)
    metric = system(found, "tuned").metrics["overlap"]
    assert (metric.n, metric.n_unscored) == (22, 2)
    assert any("No verdict on tuned against baseline: 2 of 24 answers of" in w for w in found.warnings)
    assert between(found, "baseline", "tuned").verdict == "" and between(found, "baseline", "tuned").n == 22


def test_an_old_report_is_read_without_the_new_keys(go: Callable[..., JointResult]) -> None:
    data = go().report.to_dict()
    for entry in data["systems"]:
        del entry["seeds"], entry["spread"]
    for entry in data["deltas"]:
        del entry["about"]
    old = Report.from_dict(data)
    assert old.systems[1].seeds == () and "Training seeds" not in render_markdown(old) + render_html(old)


# ---------------------------------------------------------------- what is claimed


def test_single_training_runs_claim_nothing_of_the_recipes(one: Callable[..., RunResult]) -> None:
    found = report(one({"skill": 0.95}, name="a"), one({"skill": 0.1}, name="b"))
    delta = between(found, "a tuned", "b tuned")
    assert delta.verdict == "scored lower" and delta.about == "run" and delta.p_value is not None
    assert delta.p_value < 0.001
    assert found.verdict == "This training run scored lower than that one: b tuned against a tuned"
    assert found.headline and found.headline.title.startswith("a scored higher than b: overlap ")
    line = found.verdict_detail.split("\n")[0]
    assert "Each is one training run" in line and "ftkit run RECIPE --seeds 3" in line
    for text in (found.verdict_detail, render_markdown(found)):
        assert "b tuned is worse" not in text and "a tuned is better than b" not in text


def test_six_seeds_one_by_one_make_no_pair(one: Callable[..., RunResult]) -> None:
    """One recipe, six seeds: fifteen pairs of single runs would be compared, and none may be."""
    runs = [one({"seed_noise": 0.3, "skill": 0.5}, seed=seed, name=f"s{seed}") for seed in range(6)]
    found = report(*runs)
    assert {(d.from_, d.to) for d in found.deltas} == {("baseline", "tuned")}
    as_others = [one({"seed_noise": 0.3, "skill": 0.5}, seed=s, name=f"n{s}", note=f"note {s}") for s in range(6)]
    found = report(*as_others)  # six recipes, one training each
    pairs = [d for d in found.deltas if d.metric == "overlap" and d.about == "run" and "baseline" not in d.from_]
    assert len(pairs) == 15
    assert {d.verdict for d in pairs} <= {"scored higher", "scored lower", "no difference shown"}
    assert any(d.verdict.startswith("scored") for d in pairs)
    assert any("nothing is claimed of the recipes" in note for note in found.notes)


def test_a_group_against_a_single_run_claims_nothing(
    go: Callable[..., JointResult], one: Callable[..., RunResult]
) -> None:
    joint, single = go({**NOISY, "skill": 0.95, "seed_noise": 0.02}), one({"skill": 0.05}, name="single")
    found = report(*joint, single)
    assert "better than single" not in found.verdict_detail
    assert [s.name for s in found.systems] == ["fake-run baseline", "fake-run tuned", "single tuned"]
    delta = between(found, "fake-run tuned", "single tuned")
    assert delta.verdict == "scored lower" and delta.about == "run"
    assert found.verdict == "single tuned scored lower than fake-run tuned"
    assert "single tuned is one training run" in found.verdict_detail
    assert between(found, "fake-run baseline", "fake-run tuned").verdict == "better"


def test_two_recipes_are_in_the_verdict_beside_a_single_run(
    go: Callable[..., JointResult], one: Callable[..., RunResult]
) -> None:
    joint = go({"skill": 0.95, "seed_noise": 0.02}, {"skill": 0.1, "seed_noise": 0.02})
    lines = report(*joint, one({"skill": 0.5}, name="single")).verdict_detail.split("\n")
    assert any(line.startswith("other tuned is worse than fake-run tuned:") for line in lines)
    assert not any(line.startswith(("single tuned scored", "This training run")) for line in lines)


def test_answers_from_elsewhere_count_as_fixed(go: Callable[..., JointResult], tmp_path: Path) -> None:
    joint = go()
    path = tmp_path / "x.jsonl"
    rows = [{"id": e.id, "prediction": "no", "target": e.targets[0]} for e in joint[0].directory.task.test]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = report(*joint, ftkit.score(path, "fake-overlap", tmp_path / "runs", "other"))
    delta = between(found, "fake-run tuned", "other")
    assert delta.verdict == "worse" and delta.about == "recipe" and delta.n == 24


# ---------------------------------------------------------------- the pages


def test_md_and_html_show_the_seeds(go: Callable[..., JointResult]) -> None:
    joint = go()
    found = joint.report
    written = {name: (joint.dir / name).read_text(encoding="utf-8") for name in ("report.md", "report.html")}
    values = [100 * run.metrics["tuned"]["overlap"].value for run in joint]
    each = ", ".join(f"{seed}: {value:.1f}" for seed, value in zip((42, 43, 44), values, strict=True))
    for text in written.values():
        assert "Training seeds" in text and each in text and f"{statistics.stdev(values):.1f}" in text
    assert "3 training seeds: 42, 43, 44" in written["report.html"]
    assert written["report.html"].count('class="seed-dot tuned"') == 3
    assert "seed-dot baseline" not in written["report.html"]
    assert "a small dot for each training seed" in written["report.html"]
    assert "<title>seed 43: " in written["report.html"]
    assert {"tuned, seed 42", "tuned, seed 44", "baseline"} <= set(found.pairs[0].answers)
    data = read_json(joint.dir / "report.json")
    entry = next(s for s in data["systems"] if s["role"] == "tuned")
    assert {"name", "run", "stage", "role", "metrics", "settings", "seeds", "spread"} <= set(entry)
    assert set(entry["seeds"][0]) == {"seed", "runs", "metrics"} and set(entry["spread"]["overlap"]) == {
        "sd",
        "min",
        "max",
    }


def test_a_lone_run_shows_no_table_of_seeds(one: Callable[..., RunResult]) -> None:
    run = one()
    for name in ("report.md", "report.html"):
        text = (run.dir / name).read_text()
        assert "Training seeds" not in text and 'class="seed-dot' not in text


# ---------------------------------------------------------------- stopped, watched


def test_stopped_in_the_second_says_how_to_finish(
    recipe: Make, tmp_path: Path, fakes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKES", "train=crash")
    with pytest.raises(ftkit.FtkitError) as caught:
        ftkit.run(recipe(NOISY), out=tmp_path / "runs", console=QUIET, seeds=3)
    hint = str(caught.value.hint)
    assert "seed43" in hint and "seed44" in hint and "ftkit report" in hint
    monkeypatch.setenv("FAKES", "")
    runs = [ftkit.resume(p.parent, console=QUIET) for p in sorted((tmp_path / "runs").glob("*/run.json"))]
    assert [len(s.seeds) for s in report(*runs).systems] == [0, 3]


def test_trackers_hear_of_each_training(go: Callable[..., JointResult], tmp_path: Path) -> None:
    go(tracking=[{"plugin": "fake-recorder", "file": str(tmp_path / "told")}], seeds=2)
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    started = [line[1] for line in told if line[0] == "started"]
    assert [name.split("-2")[0] for name in started] == ["fake-run-seed42", "fake-run-seed43"]
    assert [line[0] for line in told].count("finished") == 2
