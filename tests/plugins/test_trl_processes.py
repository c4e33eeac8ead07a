"""Several processes train what one process trains, and what they cannot do is refused.

Real processes with gloo on a CPU. On a CPU, accelerate silently trains with DDP where DeepSpeed or FSDP was asked for:
each test looks at the class of the engine, and at how much of the model a process holds.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import hungry
import pytest
from processes import (
    FSDP,
    ZERO2,
    ZERO3,
    alone,
    assert_loads_in_one_process,
    end,
    evals,
    losses,
    prepared,
    recipe,
    steps,
    together,
    weights,
)

import ftkit
from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.plugins import PluginSource, installed_plugins
from ftkit.recipe.load import load_recipe
from ftkit.run.prepare import prepare

WATCHED = {"eval_steps": 2, "keep_best": True, "snapshots": [2]}
FULL = {"learning_rate": 1e-3, "max_steps": 3, "eval_steps": 3}
FOUR_BIT = {"max_steps": 2, "eval_steps": 2}
STORED = {**FOUR_BIT, "bnb_4bit_quant_storage": "bfloat16"}
HALF = {"max_steps": 2, "dtype": "bfloat16", "activation_checkpointing": True}
# What two processes train, and like which run of one process: plugin, launch, options.
TOGETHER: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "fsdp lora": ("lora", "trl-sft-lora", FSDP, WATCHED),
    "fsdp full": ("full", "trl-sft-full", FSDP, FULL),
    "fsdp 4-bit": ("4-bit", "trl-sft-qlora", FSDP, STORED),
    "fsdp half": ("half", "trl-sft-lora", FSDP, HALF),
    "zero2 4-bit": ("4-bit", "trl-sft-qlora", ZERO2, FOUR_BIT),
    "zero3 lora": ("lora", "trl-sft-lora", ZERO3, WATCHED),
    "zero3 full": ("full", "trl-sft-full", ZERO3, FULL),
    "zero3 4-bit": ("4-bit", "trl-sft-qlora", ZERO3, STORED),
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all runs: the measurement of the base model is made once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def ones(out: Path) -> dict[str, RunDirectory]:
    """The runs of one process that the others must equal."""
    return {
        "lora": alone(out, eval_steps=2),
        "full": alone(out, "trl-sft-full", **FULL),
        "4-bit": alone(out, "trl-sft-qlora", **FOUR_BIT),
        "half": alone(out, **HALF),
    }


@pytest.fixture(scope="module")
def twos(out: Path) -> dict[str, RunDirectory]:
    """The runs of two processes. They are trained by the same two, one after the other."""
    runs = {name: prepared(out, plugin, launch, **more) for name, (_, plugin, launch, more) in TOGETHER.items()}
    together(list(runs.values()))
    return runs


@pytest.mark.parametrize("name", TOGETHER)
def test_two_processes_train_what_one_trains(
    ones: dict[str, RunDirectory], twos: dict[str, RunDirectory], name: str
) -> None:
    like, plugin, launch, options = TOGETHER[name]
    one, two = ones[like], twos[name]
    found = end(two)
    engine = {"trl-sft-full": "FSDPLlamaForCausalLM"}.get(plugin, "FSDPPeftModelForCausalLM")
    assert found["engine"] == (engine if launch is FSDP else "DeepSpeedEngine") and found["processes"] == 2
    assert losses(two) == pytest.approx(losses(one), rel=1e-3 if "full" in name else 1e-4)
    assert [row["learning_rate"] for row in steps(two)] == pytest.approx([row["learning_rate"] for row in steps(one)])
    assert [row["tokens"] for row in steps(two)] == [row["tokens"] for row in steps(one)]
    if options.get("eval_steps"):
        assert evals(two) == pytest.approx(evals(one), abs=0.02)
    if options.get("snapshots"):
        assert (two.path("train", "snapshots", "2") / "adapter_model.safetensors").exists()
    assert_loads_in_one_process(two, one)


@pytest.mark.parametrize("name", TOGETHER)
def test_a_process_holds_its_part_of_a_sharded_model(twos: dict[str, RunDirectory], name: str) -> None:
    _, plugin, launch, _ = TOGETHER[name]
    whole = 1_967_808 + (0 if plugin == "trl-sft-full" else end(twos[name])["trainable_parameters"])
    held = end(twos[name])["parameters_held"]
    if plugin != "trl-sft-qlora":
        assert held == pytest.approx(whole / 2, rel=0.01)
    elif launch is ZERO2:  # two weights in one value of the 4-bit layers
        assert whole / 2 < held < whole
    else:  # four weights in one value, and half of these
        assert whole / 8 < held < whole / 4


def test_all_weights_are_put_together(ones: dict[str, RunDirectory], twos: dict[str, RunDirectory]) -> None:
    expected = weights(ones["full"])
    for name in ("fsdp full", "zero3 full"):
        saved = weights(twos[name])
        # Adam takes a whole step where a gradient is all but 0, either way: rounding grows (2e-4 was measured at step 3).
        assert all(abs(saved[key] - value).mean() < 2e-4 for key, value in expected.items()), name
        assert json.loads((twos[name].path("train", "model") / "config.json").read_text())["architectures"] == [
            "LlamaForCausalLM"
        ]


def test_the_log_says_in_which_precision_adapters_are_trained(twos: dict[str, RunDirectory]) -> None:
    notes = [row["message"] for row in twos["fsdp half"].log_rows() if row["event"] == "note"]
    assert any("the adapter is trained in float32 beside a bfloat16 model" in note for note in notes), notes


# ---------------------------------------------------------------- whole runs


def run(out: Path, launch: dict[str, Any] | None = None, **options: Any) -> ftkit.Run:
    return ftkit.run(recipe(launch=launch, **options), out=out, console=Console(silent=True))


@pytest.fixture(scope="module")
def whole(out: Path) -> ftkit.Run:
    return run(out, {"processes": 2}, **WATCHED)


def test_two_processes_measure_and_train(ones: dict[str, RunDirectory], whole: ftkit.Run) -> None:
    """DDP, with the measurements before and after training, which are spread over two processes, too."""
    one, two = ones["lora"], whole.directory
    assert (end(two)["engine"], end(two)["processes"]) == ("DistributedDataParallel", 2)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert evals(two) == pytest.approx(evals(one), abs=0.02)
    assert (whole.dir / "train/snapshots/2/adapter_model.safetensors").exists()
    assert_loads_in_one_process(two, one)
    assert len(two.predictions("tuned")) == 8, "the saved adapter is loaded and answers"


def test_one_process_without_sharding_trains_in_this_process(whole: ftkit.Run, tmp_path: Path) -> None:
    found = run(tmp_path, {"processes": 1}, max_steps=1)
    assert "engine" not in end(found.directory)
    assert found.directory.predictions("baseline") == whole.directory.predictions("baseline")


def test_the_cause_is_that_of_the_process_that_failed_first(whole: ftkit.Run, out: Path) -> None:
    with pytest.raises(ftkit.FtkitError) as failed:
        run(out, {"processes": 2}, learning_rate=1.0, weight_decay=1e30, max_steps=3)
    said = str(failed.value)
    assert "the loss is nan at step" in said and "lower backend.learning_rate" in said
    assert "train with a tenth of the learning rate" in said and "--set backend.learning_rate=0.1" in said
    assert "Connection" not in said


def test_a_process_without_memory_leads_to_the_remedies_of_one_process(
    whole: ftkit.Run, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins = installed_plugins()
    sources, entries = list(plugins.sources), {key: list(found) for key, found in plugins.entries.items()}
    plugins.register(hungry, PluginSource("hungry", "hungry", "ftkit-hungry", "0.1"))
    hungry.install(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    asked = {**recipe(launch={"processes": 2}, eval_steps=2, on_oom="stop"), "evaluator": "hungry"}
    try:
        with pytest.raises(ftkit.FtkitError) as failed:
            ftkit.run(asked, out=out, console=Console(silent=True))
    finally:
        plugins.manager.unregister(hungry)
        plugins.sources, plugins.entries = sources, entries
    said = str(failed.value)
    assert said.startswith("process 1: this machine has not enough memory: "), said
    assert "DefaultCPUAllocator" in said
    assert "put fewer examples into one forward pass" in said and "--set backend.micro_batch_size=2" in said
    assert "Connection" not in said
    assert not [name for name in os.listdir("/proc") if name.isdigit() and is_rank_of(name, out)], "none is left"


def is_rank_of(process: str, out: Path) -> bool:
    try:
        command = Path("/proc", process, "cmdline").read_text()
    except OSError:
        return False
    return "ftkit_trl.rank" in command and str(out) in command


# ---------------------------------------------------------------- refused before anything starts


@pytest.mark.parametrize(
    ("plugin", "launch", "options", "expected"),
    [
        ("trl-sft-qlora", {"processes": 2, "deepspeed": "zero3"}, {}, "ZeRO-3 does not shard 4-bit weights that lie in uint8 tensors"),
        ("trl-sft-qlora", FSDP, {}, "set backend.bnb_4bit_quant_storage: bfloat16, or shard optimizer"),
        ("trl-sft-lora", FSDP, {"optimizer": "paged_adamw_32bit"}, "keeps its state in pages of its own, which FSDP cannot shard"),
        ("trl-sft-lora", {"fsdp": 2}, {}, "FSDP2 shards a model among processes, and there is one process"),
        ("trl-sft-lora", None, {"device_map": "auto"}, "to spread a model over several GPUs, use backend.launch: {fsdp: 2}"),
        ("trl-sft-lora", {"processes": 3}, {}, "a step of 8 examples cannot be divided among 3 processes"),
        ("trl-sft-lora", {"processes": 2}, {"global_batch_size": 4}, "cannot be divided among 2 processes"),
        ("trl-sft-lora", {"processes": 2}, {"micro_batch_size": 8, "global_batch_size": 8}, "of 16, or backend.micro_batch_size=4"),
        ("trl-sft-lora", {"processes": 2}, {"micro_batch_size": 8, "global_batch_size": None},
         "or backend.micro_batch_size=4 with backend.global_batch_size=8"),
        ("trl-sft-lora", {"processes": 2}, {"micro_batch_size": 3, "global_batch_size": 6, "max_steps": 30},
         "64 training rows do not divide among 2 processes"),
        ("trl-sft-lora", {"deepspeed": "zero9"}, {}, "there is no file zero9"),
        ("trl-sft-lora", {"deepspeed": "zero2", "fsdp": 2}, {}, "choose one of deepspeed and fsdp"),
        ("trl-sft-lora", {"nodes": 2}, {}, "need rendezvous: HOST:PORT"),
        ("trl-sft-lora", {"procesess": 2}, {}, "procesess"),
        ("trl-sft-lora", {}, {"gradient_accumulation_steps": 3}, "write one of the two"),
    ],
)  # fmt: skip
def test_what_processes_cannot_do_is_refused(
    tmp_path: Path, plugin: str, launch: dict[str, Any] | None, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ftkit.FtkitError) as refused:
        prepare([load_recipe(recipe(plugin, launch, **options))], tmp_path, Console(silent=True))
    assert expected in f"{refused.value}" and not list(tmp_path.glob("*/run.json"))


def test_a_file_that_is_no_deepspeed_config_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(["zero"]))
    with pytest.raises(ftkit.FtkitError, match="is not a DeepSpeed config"):
        prepare([load_recipe(recipe(launch={"deepspeed": str(file)}))], tmp_path, Console(silent=True))
