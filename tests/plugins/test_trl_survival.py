"""A real run of the TRL backend, killed where it hurts, resumed: it ends as if nothing had happened. No pickle is handed over."""

from __future__ import annotations

import json
import pickletools
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kill_at import Stopper, results, unfinished

PLACES = [  # in the order of a run: what was about to happen when it was killed
    (r"open .*/baseline/predictions\.journal", 2, "kill"),  # one batch of three is done
    (r"open .*/checkpoint-4/trainer_state\.json", 1, "kill"),  # half of a checkpoint is written
    (r"open .*/checkpoint-4/ftkit-complete", 1, "kill"),  # a checkpoint is whole and not marked as such
    (r"open .*/\.work/model/adapter_config\.json", 1, "kill"),  # weights are saved, their config is not
    (r"os\.rename .*/\.work/model", 1, "kill"),  # the model is whole and not in its place
    (r"open .*/train/\.model\.json", 1, "kill"),  # it is in its place, and its handle is not written
    (r"open .*/tuned/predictions\.journal", 2, "torn"),
    (r"open .*/tuned/\.metrics\.json", 1, "kill"),
]


@pytest.fixture(scope="module")
def stopper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stopper]:
    folder = tmp_path_factory.mktemp("trl-survival")
    backend = {
        "plugin": "trl-sft-lora",
        "base_model": "package:ftkit_quickstart/model",
        "chat_template": "plain",
        "learning_rate": 4e-3,
        "micro_batch_size": 4,
        "max_steps": 6,
        "save_steps": 2,
        "eval_steps": 3,
        "eval_batch_size": 4,
        "logging_steps": 1,
        "lora_dropout": 0.1,  # random numbers continue where they stopped
    }
    data = {
        "path": "loader:quickstart-dialogues",
        "train_rows": 48,
        "validation_rows": 4,
        "test_rows": 12,
        "columns": {"input": "dialogue", "target": "summary"},
    }
    recipe = {
        "name": "killed",
        "dataset": data,
        "prompt": {"template": "{input}\nSummary:"},
        "backend": backend,
        "generation": {"max_new_tokens": 8},
        "evaluator": "rouge",
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    with Stopper(folder, "ftkit_trl._train", "ftkit_trl._generate", OMP_NUM_THREADS="1") as stopper:
        yield stopper


@pytest.fixture(scope="module")
def whole(stopper: Stopper) -> Path:
    """The run directory of an undisturbed run."""
    ended = stopper.run("run", "recipe.yaml", "--out", "whole")
    assert ended.status == 0, ended.said
    (run,) = (stopper.cwd / "whole").iterdir()
    return run


def test_killed_where_it_hurts_a_run_ends_as_if_nothing_had_happened(stopper: Stopper, whole: Path) -> None:
    line: list[Any] = ["run", "recipe.yaml", "--out", "killed"]
    for place, nth, how in PLACES:
        ended = stopper.run(*line, at=place, nth=nth, how=how)
        assert ended.status == -signal.SIGKILL, f"was not killed at {place}: {ended.said}"
        (run,) = (stopper.cwd / "killed").iterdir()
        assert unfinished(run, working=True) == []
        line = ["run", "--resume", run]
    done = stopper.run(*line)
    assert done.status == 0, done.said
    assert unfinished(run) == []
    found, expected = results(run), results(whole)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


def test_nothing_that_is_left_of_a_run_can_be_unpickled(whole: Path) -> None:
    files = [p for p in whole.rglob("*") if p.is_file()]
    assert any(p.suffix == ".safetensors" for p in files)
    assert [p for p in files if is_pickle(p)] == []


def is_pickle(path: Path) -> bool:
    """Return whether a file is a pickle, or an archive (as torch writes them) with one inside."""
    if zipfile.is_zipfile(path):
        return True
    try:
        return sum(1 for _ in pickletools.genops(path.read_bytes())) > 0
    except Exception:  # whatever it says: no sequence of opcodes that ends in a STOP
        return False


def test_that_test_knows_a_pickle(tmp_path: Path) -> None:
    import pickle

    import torch

    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    (tmp_path / "b.bin").write_bytes(pickle.dumps({"b": 1}))
    (tmp_path / "c").write_bytes(pickle.dumps([1], protocol=0))
    assert all(is_pickle(p) for p in tmp_path.iterdir())


def test_checkpoints_of_elsewhere_are_not_loaded(stopper: Stopper) -> None:
    """They hold pickles: a run directory that was made to look elsewhere for them is refused."""
    killed = stopper.run("run", "recipe.yaml", "--out", "linked", at=r"open .*/checkpoint-4/ftkit-complete")
    assert killed.status == -signal.SIGKILL, killed.said
    (run,) = (stopper.cwd / "linked").iterdir()
    checkpoints = run / ".work" / "checkpoints"
    checkpoints.rename(stopper.cwd / "elsewhere")
    checkpoints.symlink_to(stopper.cwd / "elsewhere")
    refused = stopper.run("run", "--resume", run)
    assert refused.status == 2 and "is a link to" in refused.err, refused.said
