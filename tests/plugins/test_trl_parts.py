"""Parts of the TRL backends: names that the libraries renamed, one GPU of several, what is hashed and loaded once."""

from __future__ import annotations

import builtins
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ftkit_trl._world import World
from ftkit_trl.options import LoraOptions, TrainOptions
from test_trl import recipe

import ftkit
from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.recipe.load import load_recipe
from ftkit.records import ModelRef

# ---------------------------------------------------------------- activation checkpointing


@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
@pytest.mark.parametrize("value", [True, False])
def test_both_names_of_activation_checkpointing_are_accepted(name: str, value: bool) -> None:
    assert TrainOptions(base_model="m", **{name: value}).activation_checkpointing is value
    written = load_recipe(recipe("trl-sft-lora", **{name: value}))
    overridden = load_recipe(recipe("trl-sft-lora"), overrides=[f"backend.{name}={json.dumps(value)}"])
    for loaded in (written, overridden, load_recipe(json.loads(json.dumps(written.to_dict())))):
        assert loaded.backend.make().options.activation_checkpointing is value


def test_one_name_of_activation_checkpointing_is_enough() -> None:
    with pytest.raises(ftkit.FtkitError, match="`gradient_checkpointing`: in ftkit this is `activation_checkpointing`"):
        load_recipe(recipe("trl-sft-lora", activation_checkpointing=True, gradient_checkpointing=False))
    with pytest.raises(ftkit.FtkitError, match=r"`backend\.gradient_checkpointing` must be true or false, not 'yes'"):
        load_recipe(recipe("trl-sft-lora", gradient_checkpointing="yes"))


def test_the_trainer_is_given_the_name_that_the_installed_version_knows(tmp_path: Path) -> None:
    from ftkit_trl import _train

    assert _train._CHECKPOINTING == "activation_checkpointing"  # of the version in constraints.txt
    for value in (True, False):
        arguments = _train._arguments(LoraOptions(base_model="m", activation_checkpointing=value), tmp_path, 0, World())
        assert arguments.activation_checkpointing is arguments.gradient_checkpointing is value


def test_an_older_version_is_given_the_older_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ftkit_trl import _train

    given: dict[str, Any] = {}
    monkeypatch.setattr(_train, "_CHECKPOINTING", "gradient_checkpointing")
    monkeypatch.setattr(_train, "_with_one_gpu", lambda arguments: arguments)
    monkeypatch.setattr(_train, "SFTConfig", lambda **arguments: given.update(arguments))
    _train._arguments(LoraOptions(base_model="m", activation_checkpointing=True), tmp_path, 0, World())
    assert given["gradient_checkpointing"] is True and "activation_checkpointing" not in given


def test_a_run_with_recomputed_activations_learns_the_same_and_no_library_calls_an_option_deprecated(
    tmp_path: Path,
) -> None:
    """In a process of its own: a warning that is an error there, and the libraries' own log lines, end up in stderr."""
    options: dict[str, dict[str, Any]] = {
        "trl-sft-qlora": {"max_steps": 2, "eval_steps": 1},
        "trl-sft-full": {"max_steps": 2, "eval_steps": 1, "learning_rate": 1e-3},
    }
    command = [sys.executable, "-W", "error::FutureWarning", "-m", "ftkit", "run", "--out", str(tmp_path / "runs")]
    for plugin, more in options.items():
        path = tmp_path / f"{plugin}.yaml"
        path.write_text(json.dumps(recipe(plugin, gradient_checkpointing=True, **more)))
        command.append(str(path))
    env = {**os.environ, "PYTHONWARNINGS": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    for plugin, more in options.items():
        plain = ftkit.run(recipe(plugin, **more), out=tmp_path / "plain", console=Console(silent=True))
        (folder,) = (tmp_path / "runs").glob(f"{plugin}-*")
        shown = done.stderr + (folder / "debug.log").read_text()
        assert "deprecated" not in shown, shown
        losses = [
            [row["loss"] for row in run.directory.log_rows() if row["event"] == "step"]
            for run in (plain, ftkit.open_run(folder))
        ]
        assert len(losses[0]) == 2 and losses[1] == pytest.approx(losses[0], abs=1e-3)


# ---------------------------------------------------------------- one GPU of several

FAKE_SMI = """#!/bin/sh
echo "called" >> "$SMI_CALLS"
test -n "$SMI_FAILS" && exit 9
for n in $SMI_GPUS; do echo "GPU $n: NVIDIA Fake (UUID: GPU-$n)"; done
"""


@pytest.mark.parametrize(
    ("gpus", "set_to", "becomes", "note"),
    [
        ("0 1", {}, "0", "2 GPUs are visible (0, 1), and this backend uses one: GPU 0."),
        (
            "0 1 2 3",
            {"CUDA_VISIBLE_DEVICES": "2,3"},
            "2",
            "2 GPUs are visible (2, 3), and this backend uses one: GPU 2.",
        ),
        ("", {"CUDA_VISIBLE_DEVICES": " GPU-b, GPU-a"}, "GPU-b", "(GPU-b, GPU-a)"),
        ("0 1", {"CUDA_VISIBLE_DEVICES": "1"}, "1", None),
        ("0 1", {"CUDA_VISIBLE_DEVICES": "1,-1,0"}, "1,-1,0", None),  # CUDA itself ends the list at -1
        ("0 1", {"CUDA_VISIBLE_DEVICES": ""}, "", None),
        ("0 1", {"LOCAL_RANK": "0"}, None, None),
        ("0 1", {"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "2,3"}, "2,3", None),
        ("0", {}, None, None),
        ("", {}, None, None),
        ("0 1", {"SMI_FAILS": "1"}, None, None),
    ],
)
def test_one_gpu_is_chosen_before_cuda_starts(
    gpus: str, set_to: dict[str, str], becomes: str | None, note: str | None, tmp_path: Path
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(FAKE_SMI)
    program.chmod(0o755)
    code = (
        "import json, os, sys; from ftkit_trl._device import use_one_gpu;"
        "notes = [use_one_gpu(), use_one_gpu()];"
        "print(json.dumps([os.environ.get('CUDA_VISIBLE_DEVICES'), notes, 'torch' in sys.modules]))"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK")}
    env |= {"PATH": f"{tmp_path}:{env['PATH']}", "SMI_GPUS": gpus, "SMI_CALLS": str(tmp_path / "calls"), **set_to}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    chosen, notes, torch_loaded = json.loads(done.stdout)
    assert chosen == becomes and not torch_loaded
    assert notes[0] == notes[1] and (note in notes[0] if note else notes[0] is None)
    calls = (tmp_path / "calls").read_text().split() if (tmp_path / "calls").exists() else []
    asked = not {"CUDA_VISIBLE_DEVICES", "LOCAL_RANK"} & set_to.keys()
    assert len(calls) == (1 if asked else 0), "a process asks once, and only where the variable says nothing"


def test_every_method_that_may_start_cuda_chooses_the_gpu_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ftkit_trl

    class Chosen(Exception):
        pass

    def choose() -> None:
        raise Chosen

    monkeypatch.setattr(ftkit_trl, "use_one_gpu", choose)
    loaded = load_recipe(recipe("trl-sft-lora"))
    backend, run = loaded.backend.make(), RunDirectory.create(tmp_path, "gpu")
    base = backend.base_model()
    for call in (
        lambda: backend.check(None, run),
        lambda: backend.estimate(None),
        lambda: backend.identity(base, run),
        lambda: backend.train(None, run),
        lambda: backend.load(base, run),
    ):
        with pytest.raises(Chosen):
            call()


def test_the_trainer_uses_one_gpu_where_cuda_started_with_several(tmp_path: Path) -> None:
    from ftkit_trl._train import _arguments, _with_one_gpu

    arguments = _arguments(LoraOptions(base_model="m", micro_batch_size=4), tmp_path, 0, World())
    arguments._n_gpu = 2  # as transformers counts them
    assert arguments.train_batch_size == 8
    assert _with_one_gpu(arguments).n_gpu == 1 and arguments.train_batch_size == 4


def test_the_log_says_which_gpu_was_chosen(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe("trl-sft-lora", max_steps=1)))
    command = [sys.executable, "-m", "ftkit", "run", "recipe.yaml", "--json"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "2,3"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = ftkit.open_run(tmp_path / json.loads(done.stdout)["run"]).directory.log_rows()
    (note,) = [r["message"] for r in rows if r["event"] == "note" and "GPU" in r["message"]]
    assert note.startswith("2 GPUs are visible (2, 3), and this backend uses one: GPU 2.")
    (start,) = [r for r in rows if r["event"] == "start"]
    assert start["resumed"] is False


# ---------------------------------------------------------------- what is hashed and loaded once


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the embedded model that may be rewritten."""
    from ftkit_trl._model import source

    return Path(shutil.copytree(source("package:ftkit_quickstart/model"), tmp_path / "model"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the files that are opened to be hashed, one entry per open."""
    from ftkit_trl import _files

    names: list[str] = []

    def counted(path: str, mode: str) -> Any:
        names.append(Path(path).name)
        return builtins.open(path, mode)

    monkeypatch.setattr(_files, "open", counted, raising=False)
    return names


def test_identity_reads_each_file_once_and_a_rewritten_one_again(
    model: Path, reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftkit_trl import _identity

    loads: list[str] = []
    for name in ("load_config", "load_tokenizer"):
        load = getattr(_identity, name)

        def counted(options: Any, name: str = name, load: Any = load) -> Any:
            loads.append(name)
            return load(options)

        monkeypatch.setattr(_identity, name, counted)
    run = RunDirectory.create(tmp_path, "identity")

    def identity() -> dict[str, Any]:
        backend = load_recipe(recipe("trl-sft-lora", base_model=str(model))).backend.make()
        found: dict[str, Any] = backend.identity(backend.base_model(), run)
        return found

    first, *others = [identity() for _ in range(3)]
    assert others == [first, first]
    assert reads.count("model.safetensors") == reads.count("config.json") == 1
    assert loads == ["load_config", "load_tokenizer"]

    weights = model / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)  # in its place, of the same size
    second = identity()
    assert second["weights"] != first["weights"] and second["chat_template"] == first["chat_template"]
    assert reads.count("model.safetensors") == 2 and reads.count("config.json") == 1
    assert loads == ["load_config", "load_tokenizer"], "weights decide no template"

    replaced = tmp_path / "new"
    replaced.write_bytes(changed[:-1] + b"\0")
    os.replace(replaced, weights)  # another inode
    assert len({first["weights"], second["weights"], identity()["weights"]}) == 3


def test_a_rewritten_template_gives_a_new_identity(model: Path, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "template")
    template = tmp_path / "chat.jinja"
    turn = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"

    def identity() -> str:
        backend = load_recipe(recipe("trl-sft-lora", base_model=str(model), chat_template=str(template))).backend.make()
        return str(backend.identity(backend.base_model(), run)["chat_template"])

    found = []
    for text in (turn, turn, turn.replace("[", "<").replace("]", ">")):
        template.write_text(text)
        found.append(identity())
    assert found[0] == found[1] != found[2]


def test_a_tuned_model_is_hashed_beside_its_base(model: Path, reads: list[str], tmp_path: Path) -> None:
    backend = load_recipe(recipe("trl-sft-lora", base_model=str(model))).backend.make()
    run = RunDirectory.create(tmp_path, "tuned")
    adapter = run.path("train", "model")
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_bytes(b"first")
    ref = ModelRef("adapter", "train/model", base=str(model))
    before, again = backend.identity(ref, run), backend.identity(ref, run)
    (adapter / "adapter_model.safetensors").write_bytes(b"second")
    after = backend.identity(ref, run)
    assert before == again and before["trained"] != after["trained"] and before["weights"] == after["weights"]
    assert reads.count("adapter_model.safetensors") == 2


# ---------------------------------------------------------------- measuring in training, and after a kill


def test_seconds_between_two_attempts_are_not_seconds_of_training(tmp_path: Path) -> None:
    from ftkit_trl._train import _earlier_seconds

    run = RunDirectory.create(tmp_path, "seconds")
    rows = [
        (0, "note"), (9, "note"), (10, "start"), (12, "step"), (13, "warning"), (15, "step"),
        (1000, "note"), (1001, "warning"), (1010, "start"), (1013, "eval"),
        (5000, "note"),
    ]  # fmt: skip
    path = run.path("train", "log.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"time": t, "event": e}) + "\n" for t, e in rows))
    assert _earlier_seconds(run) == 5 + 3


def test_the_primary_metric_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ftkit_metrics import Rouge
    from ftkit_trl import _callbacks

    made: list[int] = []
    measured: list[int] = []
    before = Rouge.__init__
    measure = _callbacks.Monitor.measure

    def counted(self: Any, *arguments: Any) -> None:
        made.append(len(measured))
        before(self, *arguments)

    def watched(self: Any, step: int) -> None:
        monkeypatch.setattr(self.run, "evaluate", lambda *_: [])  # the run makes its evaluators by itself
        count = len(made)
        measure(self, step)
        measured.append(len(made) - count)

    monkeypatch.setattr(Rouge, "__init__", counted)
    monkeypatch.setattr(_callbacks.Monitor, "measure", watched)
    ftkit.run(recipe("trl-sft-lora", max_steps=3, eval_steps=1), out=tmp_path, console=Console(silent=True))
    assert measured == [0] * 4
