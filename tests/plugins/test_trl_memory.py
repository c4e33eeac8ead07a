"""Memory and time before launch, and a training that runs out of memory: it continues with smaller passes."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ftkit.causes import Failure
from ftkit.directory import RunDirectory
from ftkit.files import read_json

torch = pytest.importorskip("torch")

from ftkit_trl import _memory  # noqa: E402
from ftkit_trl._memory import Linear, Setting, Shape, adapter_parameters, answering_memory, training_memory  # noqa: E402
from ftkit_trl._pace import Pace  # noqa: E402
from ftkit_trl._remedies import ANSWERING, adaptations  # noqa: E402
from ftkit_trl.options import LoraOptions  # noqa: E402

# ---------------------------------------------------------------- the estimator, against arithmetic by hand

# Two blocks of hidden size 8: q, k, v, o, gate, up, down.
BLOCK = (
    Linear(8, 8, True),
    Linear(8, 4),
    Linear(8, 4, True),
    Linear(8, 8),
    Linear(8, 16),
    Linear(8, 16),
    Linear(16, 8),
)
TINY = Shape(
    parameters=2 * (2 * 64 + 2 * 32 + 3 * 128 + 16) + 8 + 100 * 8, hidden=8, layers=2, vocabulary=100, heads=2,
    query=8, key=4, inner=16, gated=True, linears=BLOCK * 2,
)  # fmt: skip
LORA = Setting(tokens=10, longest=5, adapter=True, lora_r=2, context=0)


def test_weights_by_precision() -> None:
    in_linears = 2 * (2 * 64 + 2 * 32 + 3 * 128)
    others = TINY.parameters - in_linears  # embeddings and norms stay in 16 bits
    whole = training_memory(TINY, LORA).weights
    four = training_memory(TINY, Setting(**{**vars(LORA), "four_bit": _memory.NF4})).weights
    double = training_memory(TINY, Setting(**{**vars(LORA), "four_bit": _memory.NF4_DOUBLE})).weights
    assert whole == 2 * TINY.parameters
    assert four == pytest.approx(in_linears * 0.5625 + 2 * others)
    assert double == pytest.approx(in_linears * 0.516 + 2 * others, rel=1e-3)


def test_states_of_an_adapter_and_of_all_weights() -> None:
    adapter = 2 * 2 * ((8 + 8) + (8 + 4))  # two layers in each of two blocks, rank 2
    assert adapter_parameters(TINY, 2) == adapter
    assert training_memory(TINY, LORA).training == 16 * adapter  # value, gradient, two moments, in 32 bits
    full = Setting(tokens=10, longest=5, adapter=False, context=0)
    assert training_memory(TINY, full).training == 12 * TINY.parameters  # the values are among the weights
    eight = Setting(**{**vars(full), "optimizer": "adamw_bnb_8bit"})
    assert training_memory(TINY, eight).training == 6 * TINY.parameters


@pytest.mark.parametrize(("stage", "gradients", "moments", "weights"), [(1, 1, 4, 1), (2, 4, 4, 1), (3, 4, 4, 4)])
def test_shards(stage: int, gradients: int, moments: int, weights: int) -> None:
    one = training_memory(TINY, Setting(tokens=1, longest=1, adapter=False, context=0))
    four = training_memory(TINY, Setting(tokens=1, longest=1, adapter=False, context=0, processes=4, zero=stage))
    assert four.training == TINY.parameters * (4 / gradients + 8 / moments)
    gathered = 2 * TINY.in_linears * 2 / 2 if stage == 3 else 0  # the block that computes and the next one
    assert four.weights == pytest.approx(one.weights / weights + gathered)


def test_activations_grow_with_tokens_and_shrink_with_checkpointing() -> None:
    small, large = (training_memory(TINY, Setting(**{**vars(LORA), "tokens": n})).activations for n in (10, 40))
    assert large == pytest.approx(4 * small)
    again = training_memory(TINY, Setting(**{**vars(LORA), "checkpointing": True})).activations
    assert again < small
    eager = training_memory(TINY, Setting(**{**vars(LORA), "eager": True, "longest": 1000})).activations
    assert eager > 10 * small


def test_logits_are_built_by_other_trainers_alone() -> None:
    wide = Shape(**{**vars(TINY), "vocabulary": 500_000})
    own, whole = (training_memory(wide, Setting(**{**vars(LORA), "whole_logits": w})).logits for w in (False, True))
    assert whole == 500_000 * 10 * 10
    assert own == 10 * 32768 * 8


def test_what_a_real_model_keeps_for_the_backward_pass() -> None:
    """The activations that PyTorch saves in a forward pass of a small Llama, counted, against the formula."""
    from ftkit_trl._shape import shape_of
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, attn_implementation="sdpa",
    )  # fmt: skip
    names = ["q_proj", "v_proj"]
    model = LlamaForCausalLM(config).bfloat16()
    shape = shape_of(model, names)
    trained = get_peft_model(model, LoraConfig(r=8, target_modules=names, task_type="CAUSAL_LM"))
    trained.enable_input_require_grads()
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    ids = torch.randint(0, 64, (2, 128))
    weights = {p.untyped_storage().data_ptr() for p in trained.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        hidden = trained.get_base_model().model(input_ids=ids).last_hidden_state
        saved = sum(kept.values())
    setting = Setting(tokens=ids.numel(), longest=128, adapter=True, lora_r=8, context=0)
    counted = training_memory(shape, setting).activations / _memory._SPREAD
    assert hidden.shape == (2, 128, 256)
    assert counted == pytest.approx(saved, rel=0.25), (counted, saved)


def test_a_model_that_answers_keeps_keys_and_values() -> None:
    setting = Setting(**{**vars(LORA), "rows": 3, "prompt": 50})
    found = answering_memory(TINY, setting)
    assert found.weights == 2 * TINY.parameters + 4 * adapter_parameters(TINY, 2)
    assert found.activations == 150 * (2 * 4 * 2 * 2 + 2 * (4 * 8 + 2 * 8 + 3 * 16))


@pytest.mark.skipif(
    "FTKIT_MEMORY_DATA" not in os.environ, reason="FTKIT_MEMORY_DATA names no folder of published peaks"
)
def test_published_peaks() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "memory.py"
    done = subprocess.run(
        [sys.executable, str(script), os.environ["FTKIT_MEMORY_DATA"], "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    held_out = json.loads(done.stdout)["held out"]
    assert held_out["median"] <= 0.15
    assert held_out["lowest"] >= -0.10
    assert held_out["highest"] <= 0.35


# ---------------------------------------------------------------- time


class Counter:
    """Steps of 100 to 300 tokens."""

    def after(self, step: int) -> tuple[int, int]:
        tokens = sum(100 + 100 * (n % 3) for n in range(step))
        return tokens, tokens


def test_the_time_that_is_left_follows_the_tokens() -> None:
    pace = Pace(Counter(), 0)  # type: ignore[arg-type]
    assert pace.left(100) is None
    for step in range(1, 5):
        pace.ended(step, 30.0 + Counter().after(step)[1] / 50)  # the first step took 30 s more than its tokens
    assert pace.measured == 3
    tokens = Counter().after(100)[1] - Counter().after(4)[1]
    assert pace.left(100) == pytest.approx(tokens / 50)


def test_a_resumed_training_measures_its_own_steps() -> None:
    pace = Pace(Counter(), 50)  # type: ignore[arg-type]
    for step in range(51, 54):
        pace.ended(step, (step - 50) * 2.0)
    assert pace.left(100) is None
    pace.ended(54, 8.0)
    assert pace.left(54) == 0.0


# ---------------------------------------------------------------- out of memory

OUT = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


def options(**changes: Any) -> LoraOptions:
    return LoraOptions(base_model="m", **changes)


def test_what_a_run_changes_by_itself() -> None:
    train = Failure("gpu-memory", "train", OUT)
    assert adaptations(options(micro_batch_size=8), train, True) == (
        "backend.micro_batch_size=4",
        "backend.gradient_accumulation_steps=2",
    )
    assert adaptations(options(micro_batch_size=6, global_batch_size=12), train, True) == (
        "backend.micro_batch_size=3",
    )
    assert adaptations(options(micro_batch_size=1), train, True) == ("backend.activation_checkpointing=true",)
    assert adaptations(options(micro_batch_size=1, activation_checkpointing=True), train, True) == ()
    assert adaptations(options(micro_batch_size=8, on_oom="stop"), train, True) == ()
    assert adaptations(options(micro_batch_size=8), train, False) == ()  # the model alone does not fit
    assert adaptations(options(micro_batch_size=8), Failure("disk", "train", OUT), True) == ()
    assert adaptations(options(), Failure("memory", "train"), True) == ()  # killed: nobody knows why
    answering = RuntimeError("CUDA out of memory")
    answering.add_note(ANSWERING)
    assert adaptations(options(), Failure("gpu-memory", "evaluate", answering), True) == ("backend.eval_batch_size=16",)
    assert adaptations(options(eval_batch_size=1), Failure("gpu-memory", "baseline", answering), False) == ()
    assert adaptations(options(), Failure("gpu-memory", "baseline", OUT), False) == ()


# A run whose process may take only so much more memory, from the first training step on.
LIMITED = """
import json, resource, sys
import ftkit, ftkit_trl._train
from ftkit_trl._callbacks import Monitor
from transformers import Trainer

folder, recipe, room = sys.argv[1], json.load(open(sys.argv[2])), int(sys.argv[3])
begin = Monitor.on_train_begin

def limited(self, *arguments, **keys):
    begin(self, *arguments, **keys)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:  # once: the limit stays
        used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (used + room, hard))

Monitor.on_train_begin = limited
ftkit.run(recipe, out=folder)
"""


def test_training_under_a_memory_limit_goes_on_with_smaller_passes(tmp_path: Path) -> None:
    """RLIMIT_AS makes an allocation of the first steps fail; the run ends with the same examples in each step."""
    keys = {
        "name": "limited",
        "dataset": {
            "path": "loader:quickstart-dialogues", "train_rows": 192, "validation_rows": 4, "test_rows": 4,
            "columns": {"input": "dialogue", "target": "summary"},
        },
        "prompt": {"template": "{input}\nSummary:"},
        "backend": {
            "plugin": "trl-sft-lora", "base_model": "package:ftkit_quickstart/model", "chat_template": "plain",
            "micro_batch_size": 96, "max_steps": 2, "save_steps": 1, "logging_steps": 1, "sample_packing": False,
            "group_by_length": False, "lora_target_modules": "all-linear", "eval_batch_size": 4,
        },
        "generation": {"max_new_tokens": 4},
        "evaluator": "rouge",
    }  # fmt: skip
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(keys))
    room = 600 * 2**20  # 96 examples keep about 0.8 GB for the backward pass
    # RLIMIT_AS counts addresses: what is freed is to leave the process at once, not to stay in the C library's heap.
    heap = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **heap}
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "runs"), str(recipe), str(room)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert ended.returncode == 0, ended.stderr[-3000:]
    (path,) = (found.parent for found in tmp_path.glob("runs/*/run.json"))
    record = read_json(path / "run.json")
    changed = {c["key"] for c in record["changes"]}
    assert record["status"] == "done"
    assert all(c["adapted"] and c["stage"] == "train" for c in record["changes"])
    last = RunDirectory.open(path).recipe.backend.options
    assert changed == {"backend.micro_batch_size", "backend.gradient_accumulation_steps"}
    assert last.micro_batch_size < 96
    assert last.micro_batch_size * last.gradient_accumulation_steps == 96  # the global batch is the same
    assert "this machine has not enough memory in train: the run continues with" in record["warnings"][0]
    assert (
        "can't allocate memory" in (path / "debug.log").read_text() or "MemoryError" in (path / "debug.log").read_text()
    )
    steps = [row for row in RunDirectory.open(path).log_rows() if row["event"] == "step"]
    assert [row["step"] for row in steps] == [1, 2]
    assert all(math.isfinite(row["loss"]) for row in steps)
    notes = " ".join(read_json(path / "report.json")["notes"])
    assert "the run continued by itself with backend.micro_batch_size" in notes


# ---------------------------------------------------------------- does it fit?


def checked(gpu: str | None = None, *overrides: str) -> Any:
    import ftkit

    recipe = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
    return ftkit.check(recipe, ("dataset.train_rows=64", *overrides), gpu=gpu)


def test_check_answers_for_a_gpu_that_is_not_here() -> None:
    found = checked("a10g").to_dict()
    estimate = found["estimate"]
    assert estimate["machine"] == {"name": "a10g", "memory_bytes": 23028 * 2**20, "count": 1}
    assert estimate["fits"]
    assert estimate["memory"].startswith("needs about ") and estimate["memory"].endswith("a10g has 24.1 GB: it fits")
    assert sum(estimate["memory_parts"][k] for k in ("weights", "training", "activations", "logits", "context")) == (
        pytest.approx(estimate["memory_bytes"], abs=5)
    )


def test_check_names_the_cheapest_changes_that_make_it_fit() -> None:
    found = checked("0.75GB", "backend.micro_batch_size=64")
    (warning,) = [w for w in found.warnings if w.key == "backend.micro_batch_size"]
    assert "0.75gb has 0.8 GB: it does not fit" in warning.message
    first, second = warning.hint.split("\n  ")
    assert first.startswith("--set backend.micro_batch_size=")
    assert "about 0.7 GB" in first or "about 0.6 GB" in first
    assert second.startswith("--set backend.")
    for line in (first, second):  # what is named is true
        sets = line.split(":")[0].replace("--set ", "").split(" ")
        assert checked("0.75GB", "backend.micro_batch_size=64", *sets).estimate["fits"]


def test_check_says_where_nothing_helps() -> None:
    (warning,) = [w for w in checked("0.1GB").warnings if "does not fit" in w.message]
    assert "no change makes it fit" in str(warning)


def test_the_page_of_setups_is_current() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "which_setup.py"
    spec = importlib.util.spec_from_file_location("which_setup", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.page() == module.PAGE.read_text("utf-8"), "run benchmarks/which_setup.py --write"
