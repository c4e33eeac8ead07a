"""`python -m ftkit.run.worker DIR`: what it leaves in the run directory, and when it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.files import read_json
from ftkit.recipe.load import load_recipe
from ftkit.run.prepare import prepare

# A backend whose model is the list of the splits that it was given.
PLUGIN = """
import json
from ftkit.hookspecs import hookimpl
from ftkit.records import ModelRef
from ftkit_fakes import FakeBackend

class Splits(FakeBackend):
    name = "splits"
    def train(self, task, run):
        return ModelRef("rule", "splits", meta={name: len(rows) for name, rows in task.splits.items()})

@hookimpl
def ftkit_backends():
    return [Splits]
"""


@pytest.fixture
def prepared(fakes: ModuleType, recipe: Callable[..., Any], tmp_path: Path) -> Callable[..., RunDirectory]:
    """Return a function that prepares a run directory with the fake backend."""

    def make(**options: Any) -> RunDirectory:
        (run,) = prepare([load_recipe(recipe(backend=options))], tmp_path / "runs", Console(silent=True))
        return run

    return make


def start(run: Path, site: Path, *options: str, stdin: int = subprocess.DEVNULL, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ftkit.run.worker", str(run), *options],
        stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(site), **env},
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=30)
    return process.returncode, said


def test_it_trains_and_leaves_the_model(prepared: Any, fake_site: Path) -> None:
    run = prepared(steps=4)
    assert finish(start(run.dir, fake_site)) == (0, "")
    model = run.model()
    assert model is not None and model.uri == "train/model"
    assert read_json(run.path("train", "model", "rule.json"))["learned_from"] == 20
    assert [row["step"] for row in run.log_rows() if row["event"] == "step"] == [1, 2, 3, 4]
    assert not run.path("train", "error.json").exists()


def test_the_backend_gets_no_test_rows(prepared: Any, fake_site: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    info = site / "ftkit_splits-0.1.dist-info"
    info.mkdir(parents=True)
    (site / "ftkit_splits.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ftkit-splits\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[ftkit]\nsplits = ftkit_splits\n")
    run = prepared()
    recipe = run.path("recipe.yaml")
    recipe.write_text(recipe.read_text().replace("plugin: fake\n", "plugin: splits\n"))
    assert finish(start(run.dir, fake_site, PYTHONPATH=f"{site}{os.pathsep}{fake_site}")) == (0, "")
    model = run.model()
    assert model is not None and model.meta == {"train": 20, "validation": 4}


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("input", {"message": "the token has no access", "hint": "log in", "cause": "other", "kind": "InputError"}),
        (
            "crash",
            {"message": "RuntimeError: the fake trainer broke", "hint": None, "cause": "other", "kind": "RuntimeError"},
        ),
    ],
)
def test_an_error_is_left_and_the_next_attempt_resumes(
    prepared: Any, fake_site: Path, how: str, expected: dict[str, Any]
) -> None:
    run = prepared(steps=4)
    status, said = finish(start(run.dir, fake_site, FAKES=f"train={how}"))
    assert status == 1 and "Traceback" in said
    assert read_json(run.path("train", "error.json")) == expected and run.model() is None
    assert finish(start(run.dir, fake_site)) == (0, "")
    assert not run.path("train", "error.json").exists() and run.model() is not None
    assert [row["step"] for row in run.journal if row["event"] == "step"] == [1, 2, 3, 4]


def test_it_ends_when_its_standard_input_closes(prepared: Any, fake_site: Path) -> None:
    run = prepared(steps=200)
    worker = start(run.dir, fake_site, "--end-with-stdin", stdin=subprocess.PIPE, FAKES="slow=0.1")
    deadline = time.monotonic() + 20
    while not list(run.journal):
        assert time.monotonic() < deadline and worker.poll() is None
        time.sleep(0.05)
    assert worker.stdin is not None
    worker.stdin.close()
    assert worker.wait(10) == 0
    assert run.model() is None and not run.path("train", "error.json").exists()
    steps = len(list(run.journal))
    assert 0 < steps < 200


def test_without_the_option_standard_input_may_be_closed(prepared: Any, fake_site: Path) -> None:
    run = prepared(steps=3)
    worker = start(run.dir, fake_site, stdin=subprocess.PIPE, FAKES="slow=0.1")
    assert worker.stdin is not None
    worker.stdin.close()
    assert worker.wait(30) == 0 and run.model() is not None


def test_a_folder_that_is_no_run_directory_is_one_message(fake_site: Path, tmp_path: Path) -> None:
    status, said = finish(start(tmp_path, fake_site))
    assert status == 2 and "is not a run directory" in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())
