"""A run that continues by itself after it ran out of memory: what changes, what is measured again, what is recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ftkit
from ftkit.console import Console
from ftkit.errors import RunFailed
from ftkit.files import read_json

Run = Callable[..., Path]


@pytest.fixture
def run(recipe: Callable[..., Any], fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs the fake recipe where `fails` fails; it returns the run's directory."""

    def start(fails: str, ends: bool = True, **backend: Any) -> Path:
        monkeypatch.setenv("FAKES", fails)
        keys = recipe({"adapts": "halve", **backend})
        if ends:
            ftkit.run(keys, out=tmp_path / "runs", console=Console(silent=True))
        else:
            with pytest.raises(RunFailed):
                ftkit.run(keys, out=tmp_path / "runs", console=Console(silent=True))
        (found,) = (path.parent for path in tmp_path.glob("runs/*/run.json"))
        return found

    return start


def test_training_goes_on_with_smaller_parts(run: Run) -> None:
    done = run("train=gpu-memory")
    record = read_json(done / "run.json")
    assert record["status"] == "done"
    assert [(c["key"], c["from"], c["to"], c["stage"], c["adapted"]) for c in record["changes"]] == [
        ("backend.part_size", 4, 2, "train", True),
        ("backend.parts", 1, 2, "train", True),
    ]
    said = "the GPU has not enough memory in train: the run continues with backend.part_size: 4 -> 2; backend.parts: 1 -> 2"
    assert record["warnings"] == [said]
    notes = " ".join(read_json(done / "report.json")["notes"])
    assert "after a failure in train, the run continued by itself with backend.part_size 2 instead of 4" in notes
    assert "OutOfMemoryError" in (done / "debug.log").read_text()


def test_fewer_rows_at_once_are_measured_again(run: Run) -> None:
    done = run("baseline=gpu-memory", batch_size=4)
    assert [(c["from"], c["to"]) for c in read_json(done / "run.json")["changes"]] == [(4, 2), (2, 1)]
    for name in ("baseline", "tuned"):
        assert {len(batch) for batch in read_json(done / name / "plan.json")} == {1}


def test_where_nothing_is_left_to_change_the_run_ends(
    run: Run, fakes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(fakes.FakeBackend, "train", train)  # smaller parts do not help
    left = run("", ends=False)
    record = read_json(left / "run.json")
    assert record["status"] == "failed"
    assert [c["to"] for c in record["changes"]] == [2, 2]


def test_a_change_that_may_not_be_made_is_not_made(run: Run) -> None:
    """A backend's adaptation is held to the rules of --resume --set: it must not change a measured number."""
    left = run("train=gpu-memory", ends=False, adapts="backend.skill=0.9")
    record = read_json(left / "run.json")
    assert not record["changes"]
    assert any("could not adapt to a failure" in text for text in record["warnings"])
