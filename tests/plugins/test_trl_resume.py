"""Training that is resumed with other options: the steps keep their examples. And what helps where it failed."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kill_at import Stopper

from ftkit.causes import Failure, cause_of
from ftkit.files import read_json
from ftkit.recipe.load import load_recipe
from ftkit.recipe.resumable import why_not_resumable

torch = pytest.importorskip("torch")

from ftkit_trl._batches import Order  # noqa: E402
from ftkit_trl._remedies import LossNotFinite, remedies, resumed_findings  # noqa: E402
from ftkit_trl.options import LoraOptions, TrainOptions  # noqa: E402

BACKEND = {
    "plugin": "trl-sft-lora",
    "base_model": "package:ftkit_quickstart/model",
    "chat_template": "plain",
    "learning_rate": 4e-3,
    "micro_batch_size": 4,
    "max_steps": 6,
    "save_steps": 2,
    "eval_batch_size": 4,
    "logging_steps": 1,
}


def recipe(folder: Path, **backend: Any) -> Path:
    data = {
        "path": "loader:quickstart-dialogues",
        "train_rows": 22,  # an epoch ends with a short pass
        "validation_rows": 4,
        "test_rows": 4,
        "columns": {"input": "dialogue", "target": "summary"},
    }
    keys = {
        "name": "resumed",
        "dataset": data,
        "prompt": {"template": "{input}\nSummary:"},
        "backend": {**BACKEND, **backend},
        "generation": {"max_new_tokens": 4},
        "evaluator": "rouge",
    }
    path = folder / f"recipe-{len(backend)}.yaml"
    path.write_text(json.dumps(keys))
    return path


@pytest.fixture(scope="module")
def stopper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stopper]:
    folder = tmp_path_factory.mktemp("trl-resume")
    with Stopper(folder, "ftkit_trl._train", "ftkit_trl._generate", OMP_NUM_THREADS="1") as stopper:
        yield stopper


def only(folder: Path) -> Path:
    (run,) = folder.iterdir()
    return run


@pytest.mark.parametrize("layout", ["padded", "grouped", "packed"])
def test_smaller_forward_passes_train_the_same_model(stopper: Stopper, layout: str) -> None:
    layouts = {
        "padded": {"sample_packing": False, "group_by_length": False},
        "grouped": {"sample_packing": False, "group_by_length": True},
        "packed": {"sample_packing": True},
    }
    path = recipe(stopper.cwd, **layouts[layout])
    ended = stopper.run("run", path, "--out", f"whole-{layout}")
    assert ended.status == 0, ended.said
    whole = only(stopper.cwd / f"whole-{layout}")
    killed = stopper.run("run", path, "--out", f"killed-{layout}", at=r"open .*/checkpoint-4/trainer_state\.json")
    assert killed.status == -signal.SIGKILL, killed.said
    run = only(stopper.cwd / f"killed-{layout}")
    changes = ["backend.micro_batch_size=1", "backend.gradient_accumulation_steps=4", "backend.save_steps=3"]
    changes += ["backend.activation_checkpointing=true"]
    ended = stopper.run("run", "--resume", run, *(word for text in changes for word in ("--set", text)))
    assert ended.status == 0, ended.said
    logs = [read_log(path) for path in (whole, run)]
    for step in range(1, 7):  # sums are made in another order, and Adam enlarges that in weights of no effect
        for value in ("loss", "grad_norm"):
            assert logs[0][step][value] == pytest.approx(logs[1][step][value], rel=1e-3), (step, value)
        assert logs[0][step]["tokens"] == logs[1][step]["tokens"]
    events = [json.loads(line) for line in (run / "train" / "log.jsonl").read_text().splitlines()]
    assert {e["layout"] for e in events if e["event"] == "start"} == {layout}


def read_log(run: Path) -> dict[int, dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "train" / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows if row["event"] == "step"}


def test_the_interval_of_checkpoints_and_of_the_log_follows(stopper: Stopper) -> None:
    path = recipe(stopper.cwd, max_steps=8)
    killed = stopper.run("run", path, "--out", "intervals", at=r"open .*/checkpoint-4/trainer_state\.json")
    assert killed.status == -signal.SIGKILL, killed.said
    run = only(stopper.cwd / "intervals")
    ended = stopper.run("run", "--resume", run, "--set", "backend.save_steps=5", "--set", "backend.logging_steps=4")
    assert ended.status == 0, ended.said
    assert any("checkpoint-5" in step for step in ended.steps)
    assert not any("checkpoint-6" in step for step in ended.steps)
    assert sorted(read_log(run)) == [1, 2, 3, 4, 8]  # each until it was killed, then every fourth
    assert [c["key"] for c in read_json(run / "run.json")["changes"]] == ["backend.logging_steps", "backend.save_steps"]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("first", "now"), [(4, 1), (4, 2), (8, 2), (2, 4), (6, 3)])
def test_the_order_is_that_of_the_beginning(first: int, now: int, grouped: bool) -> None:
    lengths = [7 + i * 13 % 29 for i in range(53)]
    before, after = Order(lengths, first, 3, grouped), Order(lengths, now, 3, grouped, first)
    for epoch in (0, 1):
        before.set_epoch(epoch)
        after.set_epoch(epoch)
        assert list(before) == list(after)
        assert [len(b) for b in after.batches(epoch)][:-1] == [now] * (len(after.batches(epoch)) - 1)


def options(**keys: Any) -> LoraOptions:
    return LoraOptions.model_validate({"base_model": "x", **keys})


@pytest.mark.parametrize(
    ("before", "now", "says"),
    [
        ((4, 1), (2, 2), None),
        ((4, 2), (8, 1), None),
        ((4, 1), (2, 1), "gradient_accumulation_steps=2"),
        ((4, 1), (4, 2), "gradient_accumulation_steps=1"),
        ((4, 1), (3, 1), "divides 4: 1, 2, 4"),
    ],
)
def test_a_step_keeps_its_number_of_examples(before: tuple[int, int], now: tuple[int, int], says: str | None) -> None:
    made = [options(micro_batch_size=a, gradient_accumulation_steps=b) for a, b in (before, now)]
    found = list(resumed_findings(*made))
    assert bool(found) == (says is not None)
    assert says is None or says in (found[0].hint or "")


OUT = Failure("gpu-memory", "train", RuntimeError("CUDA out of memory"))


@pytest.mark.parametrize("failure", [OUT, Failure("memory", "train"), Failure("gpu-memory", "evaluate")])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_remedies_are_options_that_work(tmp_path: Path, failure: Failure, size: int) -> None:
    """Each remedy can be carried out: options that resume a run are accepted by `check_resumed`, others by a recipe."""
    path = recipe(tmp_path, micro_batch_size=size, eval_steps=2)
    loaded = load_recipe(path)
    before: TrainOptions = loaded.backend.make().options
    found = list(remedies(before, failure, quantised=False, adapter=True))
    assert found
    for remedy in found:
        if "trl-sft-qlora" in str(remedy.changes):
            continue  # bitsandbytes may not be installed
        changed = load_recipe(path, remedy.changes).backend.make().options
        assert changed != before
        if not any(why_not_resumable(loaded.backend, c.partition("=")[0]) for c in remedy.changes):
            assert list(resumed_findings(before, changed)) == []


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path))
    found = list(
        remedies(loaded.backend.make().options, Failure("other", "train", LossNotFinite(float("nan"), 3)), False, True)
    )
    assert found[0].changes == ("backend.learning_rate=0.0004",)
    assert all(load_recipe(recipe(tmp_path), remedy.changes) for remedy in found)


def test_what_torch_raises_is_known() -> None:
    """A real allocation that fails, and the type of a GPU's: no GPU is needed to make one."""
    with pytest.raises(RuntimeError) as host:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert cause_of(host.value).name == "memory"
    assert cause_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")).name == "gpu-memory"
