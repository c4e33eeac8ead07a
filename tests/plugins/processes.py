"""What the tests of several processes share: a recipe, a training alone, and what a training left.

Importing PyTorch and the libraries around it takes longer than a training here. So the tests train without the measurements around it where those do not matter, and a process trains several runs one after the other (`rank_many.py`).
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.files import write_json
from ftkit.recipe.load import load_recipe
from ftkit.run.prepare import prepare

STEPS = 4
PATIENCE = 600  # seconds: on a new machine, DeepSpeed first compiles a part of itself
FSDP = {"processes": 2, "fsdp": 2}
ZERO2 = {"processes": 2, "deepspeed": "zero2"}
ZERO3 = {"processes": 2, "deepspeed": "zero3"}


def recipe(plugin: str = "trl-sft-lora", launch: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    return {
        "name": plugin,
        "seed": 1,
        "dataset": {
            "path": "loader:quickstart-dialogues", "train_rows": 64, "validation_rows": 8, "test_rows": 8,
            "columns": {"input": "dialogue", "target": "summary"},
        },
        "prompt": {"template": "{input}\nSummary:"},
        "generation": {"max_new_tokens": 4},
        "evaluator": "rouge",
        "backend": {
            "plugin": plugin, "base_model": "package:ftkit_quickstart/model", "chat_template": "plain",
            "max_steps": STEPS, "micro_batch_size": 4, "global_batch_size": 8, "learning_rate": 4e-3, "sequence_len": 128,
            "logging_steps": 1, "eval_batch_size": 4, "sample_packing": False, "group_by_length": False, "launch": launch, **options,
        },
    }  # fmt: skip


def prepared(out: Path, plugin: str = "trl-sft-lora", launch: dict[str, Any] | None = None, **options: Any) -> RunDirectory:  # fmt: skip
    (found,) = prepare([load_recipe(recipe(plugin, launch, **options))], out, Console(silent=True))
    found.path("train").mkdir()
    return found


def alone(out: Path, plugin: str = "trl-sft-lora", **options: Any) -> RunDirectory:
    """Train in this process, without measurements before and after."""
    found = prepared(out, plugin, **options)
    model = found.recipe.backend.make().train(found.task.for_training(), found)
    write_json(found.path("train", "model.json"), model.to_dict())
    return found


def together(runs: list[RunDirectory]) -> None:
    """Train the runs one after the other, with two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]  # fmt: skip
    command += [str(Path(__file__).with_name("rank_many.py")), *(str(run.dir) for run in runs)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout[-6000:]


# ---------------------------------------------------------------- what a training left


def steps(found: RunDirectory) -> list[dict[str, Any]]:
    return [row for row in found.log_rows() if row["event"] == "step"]


def losses(found: RunDirectory) -> list[float]:
    return [row["loss"] for row in steps(found)]


def evals(found: RunDirectory) -> list[float]:
    return [row["rouge1"] for row in found.log_rows() if row["event"] == "eval"]


def end(found: RunDirectory) -> dict[str, Any]:
    return next(row for row in found.log_rows() if row["event"] == "end")


def weights(found: RunDirectory) -> dict[str, Any]:
    (file,) = found.path("train", "model").glob("*.safetensors")
    return load_file(file)


def assert_loads_in_one_process(found: RunDirectory, like: RunDirectory) -> None:
    """The saved model has the tensors of one that a process trained alone, none empty, no B zero, and can be loaded."""
    from ftkit_trl._model import load_model

    saved, expected = weights(found), weights(like)
    assert {name: value.shape for name, value in saved.items()} == {n: v.shape for n, v in expected.items()}
    assert all(value.size and abs(value).max() > 0 for value in saved.values()), "no tensor is empty, no B is zero"
    model = found.model()
    assert model is not None
    load_model(found.recipe.backend.make(), model, found)


def wait_for(condition: Any, seconds: float = PATIENCE) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)
    return found
