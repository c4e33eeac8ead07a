"""Training that continues another: from the model of a run (`base_model: RUN`), and after the last step of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from kill_at import Stopper
from test_trl_use import QUIET, recipe

import ftkit
from ftkit.errors import InputError, RecipeError
from ftkit.files import read_json

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> ftkit.RunResult:
    return ftkit.run(recipe(), out=tmp_path_factory.mktemp("runs"), console=QUIET)


def texts(run: ftkit.RunResult, name: str) -> list[str]:
    return [p.text for p in run.directory.predictions(name)]


def child_of(parent: ftkit.RunResult, plugin: str = "trl-sft-qlora", **options: Any) -> ftkit.RunResult:
    chained = recipe(plugin, base_model=str(parent.dir), max_steps=4, **options)
    return ftkit.run({**chained, "name": "child"}, out=parent.dir.parent, console=QUIET)


@pytest.fixture(scope="module")
def child(parent: ftkit.RunResult) -> ftkit.RunResult:
    return child_of(parent)


def test_an_adapter_is_trained_further(parent: ftkit.RunResult, child: ftkit.RunResult) -> None:
    assert texts(child, "baseline") == texts(parent, "tuned"), "it starts where the first run ended"
    assert texts(child, "tuned") != texts(child, "baseline")
    config = read_json(child.dir / "train" / "model" / "adapter_config.json")
    assert config["base_model_name_or_path"] == "package:ftkit_quickstart/model", "it stands on the first base model"
    chain = ["package:ftkit_quickstart/model", parent.directory.id]
    lock = read_json(child.dir / "lock.json")["model"]
    assert lock["about"]["chain"] == chain and lock["continues"]["run"] == parent.directory.id
    models = {s.name: s.model for s in child.report.systems}
    assert models["baseline"] == " -> ".join(chain) and models["tuned"] == " -> ".join(chain) + " + adapter"
    assert ftkit.verify(child.dir).ok, ftkit.verify(child.dir)
    assert ftkit.verify(parent.dir).ok


def test_a_continued_adapter_is_exported_without_the_run_before(
    parent: ftkit.RunResult, child: ftkit.RunResult, tmp_path: Path
) -> None:
    alone = ftkit.open_run(shutil.copytree(child.dir, tmp_path / "alone"))
    moved = parent.dir.rename(tmp_path / "moved")
    try:
        ftkit.export(alone.dir, tmp_path / "merged", merge=True, console=QUIET)
    finally:
        moved.rename(parent.dir)
    assert exported_as_tuned(alone, "export-merged") >= 18 and ftkit.verify(alone.dir).ok


def test_a_third_run_names_both_and_answers_without_them(
    parent: ftkit.RunResult, child: ftkit.RunResult, tmp_path: Path
) -> None:
    third = child_of(child)
    assert third.report.systems[0].model == (
        f"package:ftkit_quickstart/model -> {parent.directory.id} -> {child.directory.id}"
    )
    assert texts(third, "baseline") == texts(child, "tuned")
    lonely = ftkit.open_run(shutil.copytree(third.dir, tmp_path / "third"))
    moved = child.dir.rename(tmp_path / "moved")
    try:
        dialogue = lonely.directory.task.test[0].input
        assert isinstance(lonely.generate(dialogue), str), "the tuned model needs the first base model alone"
        lonely.close()
        with pytest.raises(InputError, match="there is no folder"):
            lonely.generate(dialogue, base=True)
        lacking = ftkit.rerun(lonely.dir, out=tmp_path / "again", console=QUIET)
        assert lacking.verdict == "cannot be compared" and "there is no folder" in lacking.detail
    finally:
        moved.rename(child.dir)
        lonely.close()


def test_all_weights_are_trained_from_the_merged_adapter(parent: ftkit.RunResult, tmp_path: Path) -> None:
    full = child_of(parent, "trl-sft-full", learning_rate=1e-4)
    same = sum(a == b for a, b in zip(texts(full, "baseline"), texts(parent, "tuned"), strict=True))
    assert same >= 15, "the merged, dequantised model answers nearly as the adapter on the 4-bit model"
    assert ftkit.verify(full.dir).ok, ftkit.verify(full.dir)
    # A run of full fine-tuning is a base model for every method.
    lora = child_of(full, "trl-sft-lora")
    assert texts(lora, "baseline") == texts(full, "tuned")
    assert ftkit.verify(lora.dir).ok
    ftkit.export(lora.dir, tmp_path / "merged", merge=True, console=QUIET)
    assert exported_as_tuned(lora, "export-merged") >= 18, "onto the weights of the run that it continues"
    done = ftkit.export(lora.dir, tmp_path / "adapter", console=QUIET)
    assert exported_as_tuned(lora, "export-adapter") == 20
    assert any("--merge" in note for note in done.notes), "its base model is no model that others can load"
    assert str(full.dir.parent) not in (tmp_path / "adapter" / "adapter_config.json").read_text()


def exported_as_tuned(run: ftkit.RunResult, name: str) -> int:
    """Return to how many of the 20 test rows an export gives the answer of the tuned model."""
    return sum(a == b for a, b in zip(texts(run, name), texts(run, "tuned"), strict=True))


def problems(parent: Path, **options: Any) -> str:
    with pytest.raises(RecipeError) as error:
        ftkit.run(recipe(base_model=str(parent), **options), out=parent.parent / "never", console=QUIET)
    return str(error.value)


def test_what_cannot_be_continued_is_refused(parent: ftkit.RunResult, tmp_path: Path) -> None:
    assert "lora_r is 4, and the adapter of the run" in problems(parent.dir, lora_r=4)
    copy = shutil.copytree(parent.dir, tmp_path / "copy")
    assert "is an adapter, and not a whole model" in problems(copy / "train" / "model")
    (copy / "train" / "model" / "adapter_config.json").write_text(
        (copy / "train" / "model" / "adapter_config.json").read_text() + "\n"
    )
    assert "adapter_config.json was changed after training" in problems(copy)
    (copy / "train" / "model" / "adapter_model.safetensors").unlink()
    assert "holds no weights" in problems(copy)
    (copy / "train" / "model.json").unlink()
    assert "has no tuned model" in problems(copy) and "ftkit run --resume" in problems(copy)


def test_a_finished_run_takes_more_steps(parent: ftkit.RunResult, tmp_path: Path) -> None:
    run = ftkit.open_run(shutil.copytree(parent.dir, tmp_path / "longer"))
    longer = ftkit.resume(run.dir, console=QUIET, overrides=["backend.max_steps=12"])
    assert [s.name for s in longer.report.systems] == ["baseline", "tuned-8", "tuned"]
    assert texts(longer, "tuned-8") == texts(parent, "tuned") != texts(longer, "tuned")
    steps = {row["step"]: row for row in longer.directory.log_rows() if row["event"] == "step"}
    assert max(steps) == 12
    # The cosine schedule over 12 steps, at its last logged step: not the end of one over 4 further steps.
    assert steps[10]["learning_rate"] == pytest.approx(_cosine(9, 12), rel=1e-3)
    end = [row for row in longer.directory.log_rows() if row["event"] == "end"][-1]
    assert end["steps"] == 12
    assert ftkit.verify(longer.dir).ok, ftkit.verify(longer.dir)
    done = ftkit.export(longer.dir, tmp_path / "merged", merge=True, console=QUIET)
    assert exported_as_tuned(longer, "export-merged") >= 18 and list(done.systems) == ["export-merged"]
    assert ftkit.verify(longer.dir).ok
    with pytest.raises(RecipeError, match="max_steps 12 decides"):
        ftkit.resume(run.dir, console=QUIET, overrides=["backend.num_epochs=3"])


def _cosine(step: int, steps: int) -> float:
    import math

    return 4e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))


def test_more_steps_survive_a_kill(parent: ftkit.RunResult, tmp_path: Path) -> None:
    """Killed in the middle of the added steps, it ends with the weights of a training that nothing stopped."""
    options = ["--set", "backend.max_steps=14", "--set", "backend.save_steps=2"]
    with Stopper(tmp_path) as stopper:
        whole = shutil.copytree(parent.dir, tmp_path / "whole")
        assert stopper.run("run", "--resume", whole, *options).status == 0
        killed = shutil.copytree(parent.dir, tmp_path / "killed")
        ended = stopper.run("run", "--resume", killed, *options, at="checkpoint-12/trainer_state.json")
        assert ended.status != 0
        resumed = stopper.run("run", "--resume", killed)
        assert resumed.status == 0, resumed.said
    for file in ("train/model/adapter_model.safetensors", "tuned/predictions.jsonl", "tuned-8/predictions.jsonl"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes(), file
    assert ftkit.verify(killed).ok


def test_sharded_training_does_not_go_on(parent: ftkit.RunResult) -> None:
    from ftkit_trl._remedies import resumed_findings
    from ftkit_trl.options import LoraOptions

    options = {"base_model": "x", "launch": {"deepspeed": "zero2"}}
    before, after = (LoraOptions.model_validate({**options, "max_steps": n}) for n in (4, 8))
    assert any("its checkpoints are gone" in f.message for f in resumed_findings(before, after))
    assert not list(resumed_findings(before, before))
