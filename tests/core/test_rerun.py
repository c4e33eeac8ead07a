"""A run is run again from its directory alone, and ends in one of four verdicts."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ftkit
from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.errors import InputError
from ftkit.files import read_json, read_jsonl, write_json
from ftkit.locked import changes
from ftkit.report.diff import diff_runs, headline
from ftkit.run.manifest import faults, seal
from ftkit.run.rerun import DIFFERENT, EQUAL, IDENTICAL, NOT_COMPARABLE, Rerun, rerun

Make = Callable[..., Any]
QUIET = Console(silent=True)


@pytest.fixture
def original(recipe: Make, fakes: ModuleType, tmp_path: Path) -> RunDirectory:
    return ftkit.run(recipe(controls=["fake-echo"]), out=tmp_path / "runs", console=QUIET).directory


def again(original: RunDirectory, *overrides: str, **rest: Any) -> tuple[Rerun, RunDirectory | None]:
    out = original.dir.parent.parent / "again"
    found = rerun(original, out, QUIET, overrides, **rest)
    return found, RunDirectory.open(out / found.run) if found.run else None


# ---------------------------------------------------------------- from the directory alone


def test_killed_resumed_packed_unpacked_elsewhere_verified_and_rerun_it_is_identical(
    recipe_file: Make, rows: Path, command: Make, tmp_path: Path
) -> None:
    recipe = recipe_file(controls=["fake-echo"])
    done = command("run", recipe, "--out", tmp_path / "runs", FAKES="crash=3")
    assert done.returncode == 1
    (run,) = (tmp_path / "runs").iterdir()
    assert command("run", "--resume", run).returncode == 0
    archive = tmp_path / "sent.tar.gz"
    assert command("pack", run, "--out", archive).returncode == 0
    elsewhere = tmp_path / "another machine"
    elsewhere.mkdir()
    archive = archive.rename(elsewhere / "sent.tar.gz")
    shutil.rmtree(run)
    shutil.rmtree(rows)
    recipe.unlink()
    verified = command("verify", archive, cwd=elsewhere)
    assert verified.returncode == 0, verified.stdout
    assert command("rerun", archive, "--out", "runs", "--dry-run", cwd=elsewhere).returncode == 0
    assert not list(elsewhere.glob("runs/*"))
    found = command("rerun", archive, "--out", "runs", "--json", cwd=elsewhere)
    assert found.returncode == 0, found.stderr
    said = json.loads(found.stdout)
    assert said["verdict"] == IDENTICAL and said["differences"] == []
    new = elsewhere / said["run"]
    assert read_json(new / "run.json")["reuse"] is False
    texts = [row["text"] for row in read_jsonl(new / "tuned" / "predictions.jsonl")]
    assert all(texts) and len(set(texts)) > 10, "answers that are empty or alike would prove nothing"
    assert faults(new) == [] and read_json(new / "rerun.json")["verdict"] == IDENTICAL
    assert json.loads(command("diff", archive, new, "--json", cwd=elsewhere).stdout)["identical"]


def test_differences_are_named_before_anything_runs(original: RunDirectory, command: Make, tmp_path: Path) -> None:
    lock = read_json(original.path("lock.json"))
    lock["packages"]["click"] = "0.1"
    write_json(original.path("lock.json"), lock)
    done = command("rerun", original.dir, "--out", tmp_path / "again", MKL_CBWR="AVX2")
    before, _, _ = done.stderr.partition("baseline ...")
    for text in ("click 0.1 -> ", "variable MKL_CBWR none -> AVX2", "lock.json: was changed after the run was sealed"):
        assert f"differs: {text}" in before, done.stderr
    assert done.stdout.startswith("identical: ")


def test_a_recipe_that_was_edited_in_the_run_is_not_what_is_run(original: RunDirectory) -> None:
    path = original.path("recipe.yaml")
    path.write_text(path.read_text().replace("skill: 0.8", "skill: 0.1"))
    found, new = again(RunDirectory.open(original.dir))
    assert found.verdict == IDENTICAL and new is not None and new.recipe.backend.options.skill == 0.8
    assert any("recipe.yaml: was changed" in text for text in found.differences)
    path.unlink()
    assert again(RunDirectory.open(original.dir))[0].verdict == IDENTICAL
    original.path("report.json").unlink()
    with pytest.raises(InputError, match="it is missing"):
        again(RunDirectory.open(original.dir))


def test_a_row_that_was_changed_in_the_run_is_named(original: RunDirectory) -> None:
    path = original.path("data", "test.jsonl")
    path.write_text(path.read_text().replace("test row 3 ", "test row 33 ", 1))
    found, _ = again(RunDirectory.open(original.dir))
    assert any(text.startswith("data rows test ") for text in found.differences)
    assert found.verdict == NOT_COMPARABLE and "data/test.jsonl: was changed" in found.detail
    seal(original)
    found, _ = again(RunDirectory.open(original.dir))
    assert found.verdict == NOT_COMPARABLE and "the rows in data/ are not those that were run" in found.detail


# ---------------------------------------------------------------- the other verdicts


def test_another_result_names_the_first_locked_thing_that_changed(original: RunDirectory) -> None:
    found, new = again(original, "backend.skill=0.1")
    assert found.verdict == DIFFERENT and new is not None
    assert "the first locked thing that changed: recipe backend.skill 0.8 -> 0.1" in found.detail
    assert read_json(new.path("rerun.json"))["detail"] == found.detail


def test_a_result_that_changed_without_a_locked_reason_says_so(original: RunDirectory) -> None:
    path = original.path("tuned", "predictions.jsonl")
    path.write_text(path.read_text().replace("SAYS", "SAY"))
    metrics = read_json(original.path("tuned", "metrics.json"))
    metrics["metrics"]["overlap"] |= {"value": 0.2, "low": 0.1, "high": 0.3}
    write_json(original.path("tuned", "metrics.json"), metrics)
    seal(original)
    found, _ = again(original)
    assert found.verdict == DIFFERENT and found.detail.endswith("nothing that lock.json records changed")


def test_a_result_within_the_interval(recipe: Make, fakes: ModuleType, tmp_path: Path) -> None:
    options = {"skill": 0.6, "seed_noise": 0.001}
    original = ftkit.run(recipe(options), out=tmp_path / "runs", console=QUIET).directory
    found, new = again(original, "seed=5")
    assert new is not None and diff_runs(original, new).answers, "some answers must differ"
    assert found.verdict == EQUAL and "of 24 answers of tuned differ" in found.detail


def test_a_model_that_the_provider_has_withdrawn(recipe: Make, fakes: ModuleType, tmp_path: Path) -> None:
    gone = ftkit.run(recipe({"shutdown_date": "2020-01-31"}), out=tmp_path / "runs", console=QUIET).directory
    found, new = again(gone)
    assert found.verdict == NOT_COMPARABLE and new is None
    assert "withdrawn" in found.detail and "2020-01-31" in found.detail
    later = ftkit.run(recipe({"shutdown_date": "2999-01-31"}), out=tmp_path / "runs", console=QUIET).directory
    assert again(later)[0].verdict == IDENTICAL


def test_answers_that_fail_cannot_be_compared(
    original: RunDirectory, monkeypatch: pytest.MonkeyPatch, recipe: Make, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAKES", "answers=none")
    found, _ = again(original)
    assert found.verdict == NOT_COMPARABLE and "gave no answer" in found.detail
    monkeypatch.delenv("FAKES")
    partly = ftkit.run(recipe({"fail_tuned": 2}), out=tmp_path / "runs", console=QUIET).directory
    found, _ = again(partly)
    assert found.verdict == NOT_COMPARABLE and "2 of 24 answers of tuned" in found.detail


def test_what_cannot_be_prepared_here_cannot_be_compared(original: RunDirectory) -> None:
    found, new = again(original, "backend.refuse=the model is not on this machine")
    assert found.verdict == NOT_COMPARABLE and "the model is not on this machine" in found.detail and new is None
    assert not list((original.dir.parent.parent / "again").glob("*"))


# ---------------------------------------------------------------- what is refused


def test_what_has_no_result_or_no_recipe_is_refused(
    recipe_file: Make, fakes: ModuleType, command: Make, tmp_path: Path
) -> None:
    command("run", recipe_file(), "--out", tmp_path / "runs", FAKES="crash=1")
    (unfinished,) = (tmp_path / "runs").iterdir()
    with pytest.raises(InputError, match="is not done"):
        again(RunDirectory.open(unfinished))
    (tmp_path / "p.jsonl").write_text('{"prediction": "a", "target": "a"}\n')
    scored = ftkit.score(tmp_path / "p.jsonl", "fake-overlap", out=tmp_path / "scored")
    with pytest.raises(InputError, match="no recipe made them"):
        again(scored.directory)


@pytest.mark.parametrize("override", ["dataset.path=other", "prompt.template=x {input}", "dataset.splits.test=3"])
def test_rows_and_prompts_cannot_be_changed(original: RunDirectory, override: str) -> None:
    with pytest.raises(InputError, match="uses the rows and prompts in"):
        again(original, override)


def test_money_is_spent_after_a_yes_alone(recipe: Make, fakes: ModuleType, tmp_path: Path) -> None:
    paid = ftkit.run(recipe({"usd": 3.0}), out=tmp_path / "runs", console=QUIET, yes=True).directory
    with pytest.raises(InputError, match="nothing was spent"):
        again(paid)
    assert not list((tmp_path / "again").glob("*")), "nothing is left"
    assert again(paid, yes=True)[0].verdict == IDENTICAL


def test_an_interrupted_rerun_can_be_resumed(original: RunDirectory, command: Make, tmp_path: Path) -> None:
    stopped = command("rerun", original.dir, "--out", tmp_path / "again", FAKES="interrupt=2")
    assert stopped.returncode == 130 and "--resume" in stopped.stderr
    (new,) = (tmp_path / "again").iterdir()
    assert command("run", "--resume", new).returncode == 0
    assert "the same answers and the same metrics" in command("diff", original.dir, new).stdout


# ---------------------------------------------------------------- diff


def test_a_diff_names_recipe_lock_data_metrics_and_answers(
    recipe: Make, rows: Path, fakes: ModuleType, tmp_path: Path, command: Make
) -> None:
    before = ftkit.run(recipe(name="one"), out=tmp_path / "runs", console=QUIET).directory
    test = rows / "test.jsonl"
    lines = test.read_text().splitlines()
    changed = [lines[0].replace("test row 0 ", "test row zero "), *lines[1:-1]]
    test.write_text("\n".join([*changed, json.dumps({"input": "new", "target": "NEW"}), lines[-1]]) + "\n")
    now = ftkit.run(recipe({"skill": 0.3}, name="two"), out=tmp_path / "runs", console=QUIET).directory
    found = diff_runs(before, now)
    assert {c["name"] for c in found.recipe} == {"name", "backend.skill"}
    assert [c["name"] for c in found.lock] == ["data rows test"]
    (split,) = [s for s in found.data if not s.same]
    assert (split.split, split.n_before, split.n_now) == ("test", 24, 25)
    assert "test-0" in split.changed and split.added == ("test-24",)
    assert found.compared["tuned"] < 24 and not found.identical and "in tuned" in headline(found)
    overlap = next(m for m in found.metrics if (m.measurement, m.metric) == ("tuned", "overlap"))
    assert overlap.delta is not None and overlap.delta < 0 and overlap.n == found.compared["tuned"]
    assert overlap.p_adjusted is not None and overlap.p_value is not None and overlap.p_adjusted >= overlap.p_value
    tuned = [a for a in found.answers if a.measurement == "tuned"]
    assert all(a.before != a.now for a in tuned)
    assert any(a.score_before == 1.0 and a.score_now is not None and a.score_now < 1.0 for a in tuned)
    done = command("diff", before.dir, now.dir)
    assert done.returncode == 0, done.stderr
    for part in ("recipe: backend.skill 0.8 -> 0.3", "data: test: 1 added (test-24)", "tuned overlap: ", "(Holm)"):
        assert part in done.stdout, done.stdout
    assert json.loads(command("diff", before.dir, now.dir, "--json").stdout)["data"][0]["split"] == "test"


def test_a_joint_report_of_two_runs_has_a_section_on_what_differs(
    recipe: Make, fakes: ModuleType, tmp_path: Path
) -> None:
    runs = [
        ftkit.run(recipe({"skill": skill}, name=name), out=tmp_path / "runs", console=QUIET)
        for name, skill in (("one", 0.8), ("two", 0.3))
    ]
    report = ftkit.report(*runs, out=tmp_path / "report")
    (section,) = [s for s in report.sections if s.title == "What differs between one and two"]
    assert {block["kind"] for block in section.blocks} == {"text", "table", "examples"}
    facts = next(b["rows"] for b in section.blocks if b["kind"] == "table" and b["header"][0] == "In")
    assert ["recipe", "backend.skill", "0.8", "0.3"] in facts
    assert "What differs between one and two" in (tmp_path / "report" / "report.html").read_text()


def test_runs_that_differ_in_nothing_but_their_name_get_no_section(
    recipe: Make, fakes: ModuleType, tmp_path: Path
) -> None:
    runs = [ftkit.run(recipe(name=name), out=tmp_path / "runs", console=QUIET) for name in ("one", "two")]
    assert not ftkit.report(*runs, out=tmp_path / "report").sections


@pytest.mark.needs("git")
def test_the_recipe_may_lie_in_no_repository_or_in_another(original: RunDirectory, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(original.dir.parent)], check=True)
    found, new = again(original)
    assert found.verdict == IDENTICAL and new is not None
    assert changes(read_json(original.path("lock.json")), read_json(new.path("lock.json"))) == []
