"""What lock.json records before anything runs, what is kept in the run directory, and manifest.json."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ftkit
from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.files import file_digest, read_json, write_json
from ftkit.locked import changes
from ftkit.recipe.load import load_recipe
from ftkit.run.manifest import MANIFEST, faults, read_manifest, resealing, seal
from ftkit.run.prepare import prepare
from ftkit.run.used import keep_files

Make = Callable[..., Any]
QUIET = Console(silent=True)


def locked(source: Any, out: Path) -> tuple[RunDirectory, dict[str, Any]]:
    """Prepare a run, execute nothing, and return its lock."""
    (run,) = prepare([load_recipe(source)], out, QUIET)
    return run, read_json(run.path("lock.json"))


def test_the_lock_is_complete_before_anything_runs(recipe: Make, fakes: ModuleType, tmp_path: Path) -> None:
    run, lock = locked(recipe(controls=["fake-echo"], seed=7), tmp_path / "runs")
    assert lock["seed"] == 7 and lock["generation"]["max_new_tokens"] == 16
    assert lock["evaluators"] == {"fake-overlap": {"ignore_case": False, "broken": False}}
    assert lock["controls"]["fake-echo"]["options"]["word"] == ""
    assert lock["model"]["plugin"] == "fake" and lock["model"]["model"]["uri"] == "fake-base"
    assert set(lock["data"]["rows"]) == set(lock["data"]["fingerprints"]) == {"train", "validation", "test"}
    assert lock["recipe"] == file_digest(run.path("recipe.yaml"))
    assert {"cpu", "cores", "usable_cores", "memory", "gpus"} == set(lock["hardware"])
    assert len(lock["packages"]) > 20 and lock["python"] and lock["code"]["ftkit"] and "environment" in lock
    assert not run.path("baseline").exists() and not run.path(MANIFEST).exists()


def test_a_trained_model_and_what_training_logged_are_added(recipe: Make, fakes: ModuleType, tmp_path: Path) -> None:
    done = ftkit.run(recipe(), out=tmp_path / "runs", console=QUIET)
    lock = read_json(done.dir / "lock.json")
    assert lock["trained"] == {"train/model/rule.json": file_digest(done.dir / "train" / "model" / "rule.json")}


# ---------------------------------------------------------------- git


def git(folder: Path, *arguments: str) -> str:
    line = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout


@pytest.mark.needs("git")
def test_files_that_were_used_and_are_in_no_commit_are_named(recipe: Make, fakes: ModuleType, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    (tmp_path / "rows").rename(repository / "rows")
    base = {**recipe(), "dataset": {"path": "./rows"}}
    (repository / "base.yaml").write_text(json.dumps(base))
    (repository / "mine.yaml").write_text("extends: base.yaml\nname: mine\n")
    (repository / "unused.txt").write_text("not part of the run")
    (repository / ".gitignore").write_text("rows/\n")
    git(repository, "init", "-q")
    git(repository, "add", "base.yaml", ".gitignore")
    git(repository, "commit", "-qm", "base")
    (repository / "base.yaml").write_text(json.dumps({**base, "seed": 3}))
    found = locked(repository / "mine.yaml", tmp_path / "runs")[1]["git"]
    assert found["commit"] == git(repository, "rev-parse", "HEAD").strip()
    assert len(found["dirty"]) == 64, "base.yaml was changed"
    rows = {f"rows/{split}.jsonl" for split in ("train", "validation", "test")}  # ignored by git, and used
    assert set(found["untracked"]) == {"mine.yaml", *rows}
    assert found["untracked"]["mine.yaml"] == file_digest(repository / "mine.yaml")
    git(repository, "config", "color.ui", "always")
    git(repository, "config", "diff.external", "false")
    again = locked(repository / "mine.yaml", tmp_path / "runs")[1]["git"]
    assert again == found, "the user's settings of git change no hash"


# ---------------------------------------------------------------- what changed, by name


def test_one_change_of_each_kind_is_named(
    recipe_file: Make, rows: Path, command: Make, tmp_path: Path, fake_site: Path
) -> None:
    extra = tmp_path / "extra"
    (extra / "acme_kernels").mkdir(parents=True)
    version = extra / "acme_kernels" / "__init__.py"
    version.write_text('__version__ = "1.0"\n')
    path = f"{fake_site}:{extra}"

    def lock(name: str, **variables: str) -> dict[str, Any]:
        done = command("run", recipe_file(name="one"), "--out", tmp_path / name, PYTHONPATH=path, **variables)
        assert done.returncode == 0, done.stderr
        (found,) = (tmp_path / name).glob("*/lock.json")
        return read_json(found)

    before = lock("a")
    assert changes(before, lock("same")) == []
    assert [str(c) for c in changes(before, lock("b", MKL_CBWR="AVX2"))] == ["variable MKL_CBWR none -> AVX2"]
    version.write_text('__version__ = "1.1"\n')
    assert [str(c) for c in changes(before, lock("c"))] == ["acme_kernels 1.0 -> 1.1"]
    version.write_text('__version__ = "1.0"\n')
    test = rows / "test.jsonl"
    test.write_text(test.read_text().replace("row 3 ", "row 33 ", 1))
    assert [c.name for c in changes(before, lock("d"))] == ["data rows test"]


def test_the_first_change_is_the_one_that_decides_most() -> None:
    before = {
        "packages": {"numpy": "1"}, "python": "3.11", "code": {"ftkit": "a" * 64}, "environment": {"OMP_X": "1"},
        "data": {"rows": {"test": "a" * 64}}, "model": {"weights": "a" * 64, "flags": {"exact": True}}, "seed": 1,
        "hardware": {"cpu": "x", "gpus": []},
    }  # fmt: skip
    now = json.loads(json.dumps(before))
    now["hardware"]["cpu"], now["packages"]["numpy"], now["environment"]["OMP_X"] = "y", "2", "2"
    now["model"]["flags"]["exact"], now["data"]["rows"]["test"], now["code"]["ftkit"] = False, "b" * 64, "b" * 64
    names = [c.name for c in changes(before, now)]
    assert names == ["data rows test", "model flags exact", "code of ftkit", "numpy", "variable OMP_X", "CPU"]


# ---------------------------------------------------------------- files that options name


def test_a_small_file_that_an_option_names_is_kept_and_a_secret_is_not(
    recipe: Make, fakes: ModuleType, tmp_path: Path
) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "word.txt").write_text("a word")
    (folder / "api_key.txt").write_text("s3cret")
    path = folder / "r.yaml"
    echo = {"plugin": "fake-echo", "word": "./word.txt"}
    path.write_text(json.dumps(recipe({"warn": "./api_key.txt"}, controls=[echo])))
    run, lock = locked(path, tmp_path / "runs")
    text = run.path("recipe.yaml").read_text()
    assert "word: ./files/word.txt" in text and str(folder / "api_key.txt") in text
    assert run.path("files", "word.txt").read_text() == "a word" and len(list(run.path("files").iterdir())) == 1
    content = hashlib.sha256(b"a word").hexdigest()
    assert lock["files"] == {"word.txt": content}
    assert lock["controls"]["fake-echo"]["options"]["word"] == f"files/word.txt sha256:{content}"
    (folder / "word.txt").unlink()
    assert RunDirectory.open(run.dir).recipe.controls[0].options.word == str(run.path("files", "word.txt"))
    assert keep_files(run, RunDirectory.open(run.dir).recipe) == text, "kept files stay as they are"
    (folder / "word.txt").write_text("another word")
    other = locked(path, tmp_path / "runs")[1]
    assert [c.name for c in changes(lock, other)] == ["file word.txt", "control fake-echo options word"]


def test_two_files_of_one_name_are_both_kept(recipe: Make, fakes: ModuleType, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(name)
    echo = {"plugin": "fake-echo", "word": str(tmp_path / "b" / "x.txt")}
    run, lock = locked(recipe({"warn": str(tmp_path / "a" / "x.txt")}, controls=[echo]), tmp_path / "runs")
    assert set(lock["files"]) == {"x.txt", "x-2.txt"}
    assert run.path("files", "x-2.txt").read_text() == "b"


# ---------------------------------------------------------------- the manifest


def test_a_finished_run_is_sealed_whole(recipe: Make, fakes: ModuleType, tmp_path: Path) -> None:
    run = ftkit.run(recipe(), out=tmp_path / "runs", console=QUIET)
    listed = read_manifest(run.dir)
    files = {p.relative_to(run.dir).as_posix() for p in run.dir.rglob("*") if p.is_file() and p.name[0] != "."}
    assert listed is not None and set(listed) == files - {MANIFEST} and len(listed) > 20
    assert all(listed[path]["sha256"] == file_digest(run.dir / path) for path in listed)
    assert faults(run.dir) == []
    (run.dir / "new.txt").write_text("x")
    (run.dir / "debug.log").unlink()
    (run.dir / "audit.json").write_text("{}")
    (run.dir / "data" / "task.json").rename(run.dir / "elsewhere")
    (run.dir / "data" / "task.json").symlink_to(run.dir / "elsewhere")
    assert [str(f) for f in faults(run.dir)] == [
        "audit.json: was changed after the run was sealed", "data/task.json: is a link", "debug.log: is missing",
        "elsewhere: is not in the manifest", "new.txt: is not in the manifest",
    ]  # fmt: skip


def test_a_report_written_again_is_sealed_again_unless_something_else_changed(
    recipe: Make, fakes: ModuleType, tmp_path: Path
) -> None:
    run = ftkit.run(recipe(), out=tmp_path / "runs", console=QUIET)
    ftkit.report(run, out=run.dir)
    assert faults(run.dir) == []
    (run.dir / "audit.json").write_text("{}")
    ftkit.report(run, out=run.dir)
    assert {f.path for f in faults(run.dir)} >= {"audit.json", "report.json"}, "sealing again must not hide a change"


def test_a_resumed_run_is_sealed_at_its_end(recipe_file: Make, command: Make, tmp_path: Path) -> None:
    done = command("run", recipe_file(), "--out", tmp_path / "runs", FAKES="train=crash")
    (run,) = (tmp_path / "runs").iterdir()
    assert done.returncode == 1 and not (run / MANIFEST).exists()
    assert command("run", "--resume", run).returncode == 0
    assert faults(run) == []


def test_a_manifest_that_is_none_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    run = RunDirectory.open(tmp_path)
    seal(run)
    for content in ("[]", '{"files": []}', '{"files": {"a": 1}}', "no json"):
        (tmp_path / MANIFEST).write_text(content)
        with pytest.raises(ftkit.FtkitError, match=r"manifest\.json"):
            faults(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with resealing(tmp_path, ["run.json"]) as wrong:
        write_json(tmp_path / "run.json", {"a": 1})
    assert wrong == [] and not (tmp_path / MANIFEST).exists(), "an older run stays without one"


def test_a_warning_that_came_after_the_report_is_in_it(recipe: Make, fakes: ModuleType, tmp_path: Path) -> None:
    run = ftkit.run(recipe(tracking=["fake-hanging"]), out=tmp_path / "runs", console=QUIET)
    fakes.Hanging.released.set()
    fakes.Hanging.released.clear()
    (warning,) = run.directory.record().warnings
    assert "dropped" in warning and warning in run.report.warnings and faults(run.dir) == []
