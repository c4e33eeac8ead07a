"""What `check` finds before anything is spent: settings that the model, or this machine, cannot follow."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_trl import recipe

import ftkit
from ftkit.console import Console
from ftkit.data.task import load_task
from ftkit.directory import RunDirectory
from ftkit.interface import load
from ftkit.records import Example, Finding, GenerationConfig, Message, Metric
from ftkit.run.prepare import preflight

POSITIONS = 512


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that saves a tiny model with the embedded tokenizer: gpt2, opt, llama, and their variants."""
    import torch
    from ftkit_trl._model import source
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, OPTConfig

    tokenizer = AutoTokenizer.from_pretrained(source("package:ftkit_quickstart/model"))

    def make(kind: str, **changes: Any) -> Path:
        ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": len(tokenizer), **changes}
        configs = {
            "gpt2": lambda: GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=POSITIONS, **ids),
            "opt": lambda: OPTConfig(
                hidden_size=32, word_embed_proj_dim=32, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2,
                max_position_embeddings=POSITIONS, **ids,
            ),
            "llama": lambda: LlamaConfig(
                hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                **{"max_position_embeddings": POSITIONS, **ids},
            ),
        }  # fmt: skip
        folder = tmp_path_factory.mktemp(kind)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(configs[kind]()).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def llama(models: Callable[..., Path]) -> Path:
    return models("llama")


@pytest.fixture(scope="module")
def task() -> Any:
    return load_task(load(recipe("trl-sft-lora")))[0]


def check(
    base: Path | str,
    task: Any,
    plugin: str = "trl-sft-lora",
    key: str | None = None,
    trains: bool = True,
    **options: Any,
) -> list[Finding]:
    backend = load(recipe(plugin, base_model=str(base), **options)).backend.make()
    found = list(backend.check(task, trains=trains))
    return [f for f in found if f.level != "note" and (key is None or f.key == key)]


# ---------------------------------------------------------------- positions and context


@pytest.mark.parametrize(("kind", "level"), [("gpt2", "error"), ("opt", "error"), ("llama", "warning")])
def test_sequence_len_beyond_the_positions(kind: str, level: str, models: Callable[..., Path], task: Any) -> None:
    base = models(kind)
    options: dict[str, Any] = {"lora_target_modules": "all-linear", "key": "backend.sequence_len"}
    assert not check(base, task, sequence_len=POSITIONS, **options)
    (found,) = check(base, task, sequence_len=POSITIONS + 1, **options)
    assert found.level == level and found.hint == f"set backend.sequence_len: {POSITIONS}"
    assert f"sequence_len {POSITIONS + 1} is above the model's {POSITIONS} positions" in found.message
    assert not check(base, task, sequence_len=POSITIONS + 1, trains=False, **options), "a control is not trained"


def with_prompt(task: Any, tokens: int, base: Path, max_new_tokens: int) -> Any:
    """Return the task with one test row whose prompt has at least so many tokens, and their number."""
    backend = load(recipe("trl-sft-lora", base_model=str(base))).backend.make()
    from ftkit_trl._model import load_tokenizer
    from ftkit_trl._render import Chat

    chat = Chat(load_tokenizer(backend.options), backend.options)
    text, row = "", None
    while row is None or len(chat.prompts([row])[0]) < tokens:
        text += "Anna: hi\n"
        row = Example("long", (Message("user", text),), ("x",))
    generation = GenerationConfig(max_new_tokens=max_new_tokens)
    splits = {**task.splits, "test": (*task.test[:2], row)}
    return dataclasses.replace(task, splits=splits, generation=generation), len(chat.prompts([row])[0])


@pytest.mark.parametrize(
    ("max_new_tokens", "level"),
    [(100, None), (POSITIONS - 200, "warning"), (POSITIONS - 60, "error"), (POSITIONS, "error"), (5000, "error")],
)
def test_an_answer_that_leaves_no_room_for_the_prompt(
    max_new_tokens: int, level: str | None, llama: Path, task: Any
) -> None:
    asked, length = with_prompt(task, 250, llama, max_new_tokens)
    for trains in (True, False):
        found = check(llama, asked, key="generation.max_new_tokens", trains=trains)
        assert [f.level for f in found] == ([level] if level else [])
        if found:
            room = max(0, POSITIONS - max_new_tokens)
            assert f"leaves {room} of the model's {POSITIONS} positions" in found[0].message
            assert str(length) in found[0].message
            assert (
                found[0].hint == f"set generation.max_new_tokens to {POSITIONS - length} or less: then each prompt fits"
            )


def test_no_answer_length_helps_a_prompt_longer_than_the_context(llama: Path, task: Any) -> None:
    asked, _ = with_prompt(task, POSITIONS * 2, llama, 8)
    (found,) = check(llama, asked, key="generation.max_new_tokens")
    assert found.level == "error" and found.hint.startswith("shorten the rows")


# ---------------------------------------------------------------- vocabulary


def test_a_tokenizer_larger_than_the_model(models: Callable[..., Path], task: Any) -> None:
    (found,) = check(models("llama", vocab_size=300), task, key="backend.base_model")
    assert found.level == "error" and "the model's embedding has 300 rows" in found.message
    assert "resize_token_embeddings(1024)" in found.hint


def test_tokens_that_no_text_uses_are_a_note(llama: Path, task: Any, tmp_path: Path) -> None:
    """As in Gemma 3 1B: its tokenizer has a token for images that the text model lacks."""
    import shutil

    from transformers import AutoTokenizer

    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<image_soft_token>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    backend = load(recipe("trl-sft-lora", base_model=str(folder))).backend.make()
    (found,) = (f for f in backend.check(task) if "token ids up to" in f.message)
    assert found.level == "note" and "none of the texts uses such a token" in found.message
    rows = (Example("a", (Message("user", "hi"),), ("x",)),)
    tokenizer.pad_token = "<image_soft_token>"
    tokenizer.save_pretrained(folder)
    assert [f.level for f in check(folder, dataclasses.replace(task, splits={"train": rows}), key="backend.base_model")] == ["error"]  # fmt: skip


# ---------------------------------------------------------------- adapters


def test_an_adapter_on_the_output_layer_is_refused(models: Callable[..., Path], llama: Path, task: Any) -> None:
    for base in (llama, models("llama", tie_word_embeddings=True)):
        (found,) = check(base, task, key="backend.lora_target_modules", lora_target_modules=["q_proj", "lm_head"])
        assert found.level == "error" and found.message.startswith("'lm_head' is the model's output layer")
        assert "choose from: down_proj, gate_proj, k_proj" in found.hint and "lm_head" not in found.hint


def test_a_wrong_name_gets_the_nearest(llama: Path, task: Any) -> None:
    (found,) = check(llama, task, key="backend.lora_target_modules", lora_target_modules=["qproj", "self_attn.v_proj"])
    assert found.message == "the model has no linear layer 'qproj'"
    assert found.hint == "did you mean q_proj? it has: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"


@pytest.mark.parametrize("plugin", ["trl-sft-lora", "trl-sft-qlora"])
def test_gpt2s_layers_get_adapters(plugin: str, models: Callable[..., Path], task: Any, tmp_path: Path) -> None:
    import torch
    from ftkit_trl._model import _dequantised, load_base

    base = models("gpt2")
    (found,) = check(base, task, plugin, key="backend.lora_target_modules", lora_target_modules=["attn"])
    assert found.hint.endswith("it has: c_attn, c_fc, c_proj")
    asked = recipe(plugin, base_model=str(base), lora_target_modules=["c_attn", "c_fc"], learning_rate=0.02)
    run = ftkit.run(asked, out=tmp_path / "runs", console=Console(silent=True))
    (changed,) = (r for r in run.directory.log_rows() if r["event"] == "weights_changed")
    assert changed["changed"] == changed["tensors"] == 4
    backend, ids = load(asked).backend.make(), torch.arange(4, 60)[None]
    with torch.inference_mode():
        logits = [make(load_base(backend)).eval()(input_ids=ids).logits for make in (lambda m: m, _dequantised)]
    assert torch.allclose(*logits, atol=1e-4)


# ---------------------------------------------------------------- optimizer, attention, warm-up


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("adamw_torch", None, None),
        ("adafactor", None, None),
        ("paged_adamw_8bit", None, None),
        ("adamw_tortch", "transformers has no optimizer 'adamw_tortch'", "did you mean adamw_torch?"),
        ("paged_adamw", "transformers has no optimizer", "did you mean paged_adamw_"),
        ("xyz", "transformers has no optimizer 'xyz'", "it knows: adamw_torch, "),
        ("grokadamw", "the optimizer 'grokadamw' cannot be used here", "install what it needs, or use adamw_torch"),
        ("galore_adamw", "the optimizer 'galore_adamw' cannot be used here", "or use adamw_torch"),
    ],
)
def test_optimizers(name: str, message: str | None, hint: str | None, llama: Path, task: Any) -> None:
    found = check(llama, task, key="backend.optimizer", optimizer=name)
    assert len(found) == (message is not None)
    if message is not None and hint is not None:
        assert found[0].level == "error" and message in found[0].message and hint in found[0].hint


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("sdpa", None, ""),
        ("eager", None, ""),
        ("flash_attention_2", "attention 'flash_attention_2' cannot be used: ", "remove the key"),
        ("flash_attention_3", "attention 'flash_attention_3' cannot be used: ", "remove the key"),
        ("flash_attn2", "attention 'flash_attn2' cannot be used: ", "did you mean flash_attention_2?"),
        ("spda", "is not supported", "did you mean sdpa?"),
    ],
)
def test_attention(name: str, message: str | None, hint: str, llama: Path, task: Any) -> None:
    for trains in (True, False):
        found = check(llama, task, key="backend.attn_implementation", attn_implementation=name, trains=trains)
        assert len(found) == (message is not None)
        if message is not None:
            assert found[0].level == "error" and message in found[0].message and hint in found[0].hint


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_steps": 6, "warmup_steps": 5}, None),
        ({"max_steps": 6, "warmup_steps": 6}, 6),
        ({"max_steps": None, "num_epochs": 1, "warmup_steps": 100}, 16),  # 64 rows, 4 at a time
        ({"max_steps": None, "num_epochs": 2, "gradient_accumulation_steps": 3, "warmup_steps": 12}, 12),
        ({"max_steps": None, "num_epochs": 2, "gradient_accumulation_steps": 3, "warmup_steps": 11}, None),
    ],
)
def test_a_warm_up_as_long_as_the_training(options: dict[str, Any], steps: int | None, llama: Path, task: Any) -> None:
    found = check(llama, task, key="backend.warmup_steps", **options)
    assert [f.level for f in found] == (["warning"] if steps else [])
    if steps:
        assert f"{options['warmup_steps']} of {steps} steps" in found[0].message


# ---------------------------------------------------------------- prompts that lose more than half


def test_a_prompt_that_is_cut_to_less_than_half_stops_the_run(tmp_path: Path) -> None:
    rows = [{"input": "Anna: hi\n" * 60, "target": "Anna says hi."}, {"input": "Anna: hi", "target": "Hi."}]
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {**recipe("trl-sft-lora", sequence_len=64), "dataset": {"path": str(tmp_path)}}
    found = preflight(load(asked))
    (error,) = found.errors
    assert error.message.startswith(
        "train: example 'train-0': backend.sequence_len leaves less than half of the prompt"
    )
    assert "raise backend.sequence_len" in error.hint and "allow_cut_prompts: true" in error.hint
    insists = preflight(load({**asked, "backend": {**asked["backend"], "allow_cut_prompts": True}}))
    assert not insists.errors and any("1 of 2 examples lose prompt tokens" in text for text in insists.warnings)


def test_a_prompt_that_keeps_half_is_trained_on() -> None:
    kept = {}
    for limit in (32, 48, 64, 96):
        backend = load(recipe("trl-sft-lora", sequence_len=limit)).backend.make()
        (shown,) = backend.render([Example("a", (Message("user", "Anna: hi there\n" * 12),), ("Hi.",))])
        whole = shown.n_prompt + shown.truncated[0]
        kept[limit] = shown.n_prompt / whole
        assert (shown.finding is None) == (shown.n_prompt * 2 >= whole)
    assert min(kept.values()) < 0.5 < max(kept.values())


# ---------------------------------------------------------------- what training came to


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path, "outcome")


def logged(run: RunDirectory, event: str) -> list[dict[str, Any]]:
    path = run.path("train", "log.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row for row in rows if row["event"] == event]


@pytest.mark.parametrize(
    ("losses", "warned"),
    [([], False), ([2.0], False), ([2.0, 2.5], True), ([2.0, 9.0, 1.0], False), ([2.0, 2.0], False),
     ([1.0, 3.0, *[2.0] * 16, 1.5, 1.0], False), ([1.0, 1.0, *[0.5] * 16, 1.5, 1.0], True)],
)  # fmt: skip
def test_a_loss_that_rises_is_a_warning(losses: list[float], warned: bool, run: RunDirectory) -> None:
    from ftkit_trl._outcome import warn_of_rising_loss

    warn_of_rising_loss([*({"loss": x, "step": n} for n, x in enumerate(losses)), {"train_runtime": 1.0}], run)
    found = logged(run, "warning")
    assert len(found) == warned and all("the training loss rose" in row["message"] for row in found)


def test_a_training_whose_loss_rises_says_so(tmp_path: Path) -> None:
    asked = recipe("trl-sft-full", learning_rate=0.5, max_steps=4)
    run = ftkit.run(asked, out=tmp_path, console=Console(silent=True))
    assert [r for r in run.directory.log_rows() if r["event"] == "warning" and "loss rose" in r["message"]]


def test_keep_best_says_which_step_it_kept(tmp_path: Path) -> None:
    asked = recipe("trl-sft-lora", eval_steps=2, keep_best=True)
    run = ftkit.run(asked, out=tmp_path, console=Console(silent=True))
    rows = run.directory.log_rows()
    evals = {row["step"]: row["rouge1"] for row in rows if row["event"] == "eval" and row["step"] > 0}
    best = max(evals, key=lambda step: (evals[step], -step))
    (note,) = (r["message"] for r in rows if r["event"] == "note" and "keep_best" in r["message"])
    assert note.startswith(f"keep_best: the weights of step {best} of 6 are kept (rouge1 {evals[best]:.4f}")
    (end,) = (r for r in rows if r["event"] == "end")
    assert end["selected_step"] == best
    lock = json.dumps(json.loads((run.dir / "lock.json").read_text()))
    assert '"keep_best": {"step": ' + str(best) in lock


@pytest.mark.parametrize(("direction", "message"), [(None, "neither higher nor lower is better"), (False, None)])
def test_keep_best_needs_a_metric_with_a_direction(
    direction: bool | None, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftkit_metrics import Rouge
    from ftkit_trl import _train

    aggregate = Rouge.aggregate

    def undirected(self: Any, *arguments: Any) -> list[Metric]:
        return [dataclasses.replace(m, higher_is_better=direction) for m in aggregate(self, *arguments)]

    loaded: list[int] = []
    load_start = _train.load_start
    monkeypatch.setattr(Rouge, "aggregate", undirected)
    monkeypatch.setattr(_train, "load_start", lambda *a, **k: loaded.append(1) or load_start(*a, **k))
    asked = recipe("trl-sft-lora", eval_steps=1, keep_best=True, max_steps=1)
    if message is None:
        ftkit.run(asked, out=tmp_path, console=Console(silent=True))
    else:
        with pytest.raises(ftkit.FtkitError, match=rf"backend\.keep_best cannot choose by 'rouge\w+': {message}"):
            ftkit.run(asked, out=tmp_path, console=Console(silent=True))
    assert len(loaded) == (message is None), "it is known before the model is loaded for training"
