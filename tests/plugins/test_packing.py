"""How training examples are laid out in forward passes: packed examples see themselves alone, order survives a resume."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: TID253 (all of this file needs it)
from ftkit_trl._batches import Order, TokenCounter, choose_layout
from ftkit_trl._packing import ATTENTION, PackingCollator, attention, can_share_prefix, obstacle
from ftkit_trl.options import LoraOptions
from test_trl import BASE, recipe
from transformers import (  # noqa: TID253
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    MambaConfig,
    MistralConfig,
)

from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.errors import RunFailed
from ftkit.recipe.load import load_recipe
from ftkit.run.prepare import prepare

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "sliding_window": 6,
}  # fmt: skip


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """The embedded Llama, and two small random models whose layers see six tokens back (all of them, every other)."""
    torch.manual_seed(0)
    backend = load_recipe(recipe("trl-sft-lora")).backend.make()
    from ftkit_trl._model import load_base

    gemma = Gemma3TextConfig(**SIZES, sliding_window_pattern=2)
    return {
        "llama": load_base(backend),
        "mistral": AutoModelForCausalLM.from_config(MistralConfig(**SIZES), attn_implementation="sdpa"),
        "gemma": AutoModelForCausalLM.from_config(gemma, attn_implementation="sdpa"),
    }


def examples() -> list[dict[str, list[int]]]:
    random = torch.Generator().manual_seed(1)
    rows = [torch.randint(3, 60, (n,), generator=random).tolist() for n in (17, 5, 9)]
    return [{"input_ids": ids, "labels": [-100, -100, *ids[2:]]} for ids in rows]


def learn(model: Any, batches: list[dict[str, Any]]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the logits of all tokens one behind the other, and the gradients of the summed loss."""
    model.zero_grad()
    logits = []
    for batch in batches:
        labels = batch.pop("labels")
        out = model(**batch, use_cache=False).logits[0]
        logits.append(out.detach())
        torch.nn.functional.cross_entropy(out[:-1], labels[0, 1:], reduction="sum", ignore_index=-100).backward()
    return torch.cat(logits), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma"])
@pytest.mark.parametrize("implementation", [ATTENTION, "sdpa", "eager"])
def test_a_packed_example_is_read_and_learned_as_if_it_were_alone(
    models: dict[str, Any], name: str, implementation: str
) -> None:
    model = models[name]
    alone = [{key: torch.tensor([ids]) for key, ids in row.items()} for row in examples()]
    with attention(model, "eager"):
        logits, gradients = learn(model, alone)
    assert obstacle(model, implementation) is None
    with attention(model, implementation):
        packed_logits, packed_gradients = learn(model, [PackingCollator(0).torch_call(examples())])
    torch.testing.assert_close(packed_logits, logits, rtol=1e-4, atol=1e-4)
    assert len(gradients) == len(packed_gradients) > 10
    for packed, separate in zip(packed_gradients, gradients, strict=True):
        torch.testing.assert_close(packed, separate, rtol=1e-3, atol=1e-4)


def test_the_first_token_of_a_neighbour_is_not_learned() -> None:
    row = PackingCollator(0).torch_call([{"input_ids": [1, 2], "labels": [1, 2]}, {"input_ids": [3], "labels": [3]}])
    assert row["labels"].tolist() == [[-100, 2, -100]]
    assert row["position_ids"].tolist() == [[0, 1, 0]] and row["segments"] == [2, 1]


# ---------------------------------------------------------------- the shared beginning of prompts


def made_alike(prefix: int, *sizes: tuple[int, int]) -> list[dict[str, list[int]]]:
    """Return examples that begin with the same tokens; the sizes are those of the rest of the prompt and of the target."""
    random = torch.Generator().manual_seed(prefix)
    common = torch.randint(3, 60, (prefix,), generator=random).tolist()
    rows = []
    for i, (prompt, target) in enumerate(sizes):
        rest = torch.randint(3, 60, (prompt + target,), generator=random).tolist()
        rest[0] = 3 + i  # the prefix ends here
        rows.append({"input_ids": common + rest, "labels": [-100] * (prefix + prompt) + rest[prompt:]})
    return rows


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma"])
@pytest.mark.parametrize("sizes", [((9, 4), (2, 7), (12, 1)), ((0, 3), (1, 3)), ((5, 2), (30, 6), (5, 2), (0, 1))])
def test_a_shared_beginning_is_read_once_and_changes_no_gradient(
    models: dict[str, Any], name: str, sizes: tuple[tuple[int, int], ...]
) -> None:
    model, rows = models[name], made_alike(21, *sizes)
    shared = PackingCollator(0, share_prefix=True).torch_call([dict(row) for row in rows])
    # The token behind the prefix has no label, since it follows another example in the row.
    prefix = 21 if all(prompt > 0 for prompt, _ in sizes) else 20
    assert shared["shared_prefix"] == prefix
    assert shared["input_ids"].shape[1] == sum(len(row["input_ids"]) for row in rows) - prefix * (len(rows) - 1)
    alone = [{key: torch.tensor([ids]) for key, ids in row.items()} for row in rows]
    with attention(model, "eager"):
        logits, gradients = learn(model, alone)
    with attention(model, ATTENTION):
        shared_logits, shared_gradients = learn(model, [shared])
    starts = [sum(len(row["input_ids"]) for row in rows[:i]) for i in range(len(rows))]
    kept = torch.cat(
        [torch.arange(n + (prefix if i else 0), n + len(rows[i]["input_ids"])) for i, n in enumerate(starts)]
    )
    torch.testing.assert_close(shared_logits, logits[kept], rtol=1e-4, atol=1e-4)
    assert len(gradients) == len(shared_gradients) > 10
    for ours, separate in zip(shared_gradients, gradients, strict=True):
        torch.testing.assert_close(ours, separate, rtol=1e-3, atol=1e-4)


def test_a_shared_beginning_is_computed_again_with_activation_checkpointing(models: dict[str, Any]) -> None:
    model, rows = models["llama"], made_alike(21, (9, 4), (2, 7))
    batches = [PackingCollator(0, share_prefix=True).torch_call([dict(row) for row in rows]) for _ in range(2)]
    with attention(model, ATTENTION):
        logits, gradients = learn(model, batches[:1])
        model.train()
        model.gradient_checkpointing_enable()
        try:
            again_logits, again_gradients = learn(model, batches[1:])
        finally:
            model.gradient_checkpointing_disable()
            model.eval()
    torch.testing.assert_close(again_logits, logits)
    torch.testing.assert_close(again_gradients, gradients)


def test_no_labelled_token_and_no_short_beginning_is_shared() -> None:
    def prefix(*rows: dict[str, list[int]]) -> int:
        row = PackingCollator(0, share_prefix=True).torch_call([dict(row) for row in rows])
        labels = [i for made in rows for i in made["labels"][1:] if i != -100]
        assert row["labels"][row["labels"] != -100].tolist() == labels
        return int(row.get("shared_prefix", 0))

    same = {"input_ids": list(range(40)), "labels": [-100] * 30 + list(range(30, 40))}
    assert prefix(same, same) == 29
    assert prefix(same) == 0, "alone"
    assert prefix(same, {"input_ids": same["input_ids"], "labels": same["input_ids"]}) == 0, "the prompt has labels"
    assert prefix(same, {"input_ids": [1] * 40, "labels": [-100] * 40}) == 0, "the rows begin differently"
    assert prefix(*made_alike(15, (9, 4), (9, 4))) == 0 and prefix(*made_alike(16, (9, 4), (9, 4))) == 16
    assert prefix(same, {"input_ids": list(range(25)), "labels": [-100] * 25}) == 24, "a row without a label"
    assert prefix(same, {"input_ids": [], "labels": []}) == 0
    assert "shared_prefix" not in PackingCollator(0).torch_call([dict(same), dict(same)])


def test_a_beginning_is_shared_where_each_example_computes_the_same(models: dict[str, Any]) -> None:
    options = LoraOptions(base_model="m")
    assert all(can_share_prefix(model, options) for model in models.values())
    assert not can_share_prefix(models["llama"], LoraOptions(base_model="m", lora_dropout=0.1))
    assert not can_share_prefix(models["llama"], LoraOptions(base_model="m", attn_implementation="flash_attention_2"))
    dropping = AutoModelForCausalLM.from_config(MistralConfig(**SIZES, attention_dropout=0.1))
    assert not can_share_prefix(dropping, options)
    plain = AutoModelForCausalLM.from_config(MistralConfig(**SIZES))
    assert can_share_prefix(plain, options)
    plain.model.layers[0].mlp.down_proj = torch.nn.Sequential(
        torch.nn.Dropout(0.1), plain.model.layers[0].mlp.down_proj
    )
    assert not can_share_prefix(plain, options)


def test_a_model_whose_packed_examples_see_each_other_is_found_out(models: dict[str, Any]) -> None:
    def leaky(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float = 1.0, **_: Any) -> Any:
        answer = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return answer.transpose(1, 2), None

    AttentionInterface.register("leaky", leaky)
    AttentionMaskInterface.register("leaky", lambda *_, **__: None)
    assert "attend to each other" in str(obstacle(models["llama"], "leaky"))
    assert "do not work" in str(obstacle(models["llama"], "no such attention"))
    assert models["llama"].config._attn_implementation == "sdpa", "it attends as before"
    state = AutoModelForCausalLM.from_config(
        MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=64, state_size=4)
    )
    assert obstacle(state, ATTENTION), "a state continues from one example to the next"


def test_an_order_is_a_function_of_seed_and_epoch() -> None:
    lengths = [n % 97 + 3 for n in range(0, 1000, 7)]  # 143 examples
    for grouped in (False, True):
        order = Order(lengths, 4, seed=5, grouped=grouped)
        first = order.batches(0)
        assert sorted(i for batch in first for i in batch) == list(range(143))
        assert [len(b) for b in first] == [4] * 35 + [3]
        assert first == Order(lengths, 4, seed=5, grouped=grouped).batches(0)
        assert first != order.batches(1) and first != Order(lengths, 4, seed=6, grouped=grouped).batches(0)
        order.set_epoch(1)
        assert list(order) == [i for batch in order.batches(1) for i in batch]
    assert Order(lengths, 4, 5, grouped=True).pad_share() < Order(lengths, 4, 5).pad_share() / 2


def test_padding_is_counted_as_it_is_made() -> None:
    lengths = [5, 9, 2, 7, 3]
    order = Order(lengths, 2, seed=0)
    passes = [b for epoch in (0, 1) for b in order.batches(epoch)]
    padded, packed = TokenCounter(order, 2, packed=False), TokenCounter(order, 2, packed=True)
    # two passes a step, three an epoch: the second step of an epoch has one pass
    for step, through in ((1, 2), (2, 3), (3, 5), (4, 6)):
        tokens = sum(lengths[i] for b in passes[:through] for i in b)
        slots = sum(len(b) * max(lengths[i] for i in b) for b in passes[:through])
        assert padded.after(step) == (tokens, slots) and packed.after(step) == (tokens, tokens)


def test_what_is_chosen_follows_the_lengths() -> None:
    even, uneven = [100] * 64, [10, 100] * 200

    def name(lengths: list[int], obstacle: str | None = None, **options: Any) -> str:
        return choose_layout(LoraOptions(base_model="m", **options), lengths, 0, obstacle).name

    assert name(even) == "padded"
    assert name(uneven) == "packed"
    assert name(uneven, "no") == "grouped"
    assert name(uneven, sample_packing=False) == "grouped"
    assert name(uneven, sample_packing=False, group_by_length=False) == "padded"
    assert name(even, sample_packing=True) == "packed"
    assert name(even, "no", sample_packing=True) == "grouped"
    refused = choose_layout(LoraOptions(base_model="m", sample_packing=True), even, 0, "its layers mix neighbours")
    assert refused.why == "the recipe asks for packing, which is not possible: its layers mix neighbours"
    assert name(even, group_by_length=True) == "grouped"
    with pytest.raises(ValueError, match="choose one"):
        LoraOptions(base_model="m", sample_packing=True, group_by_length=True)


LAYOUTS: dict[str, dict[str, object]] = {
    "packed": {"sample_packing": True},
    "grouped": {"sample_packing": False, "group_by_length": True},
    "padded": {"sample_packing": False, "group_by_length": False},
}


def prepared(folder: Path, **options: object) -> RunDirectory:
    """Return a run directory as it is before training: 23 rows, two epochs of six steps."""
    made = recipe("trl-sft-lora", max_steps=12, save_steps=4, **options)
    made["dataset"] = {**BASE["dataset"], "train_rows": 23}  # type: ignore[dict-item]
    made["prompt"] = {"template": "Write in one sentence what the people below say to each other.\n\n{input}\nSummary:"}
    (run,) = prepare([load_recipe(made)], folder, Console(silent=True))
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDirectory]:
    """A run directory of each layout after training, the last checkpoints still there."""
    runs = {name: prepared(tmp_path_factory.mktemp(name), **options) for name, options in LAYOUTS.items()}
    for run in runs.values():
        run.recipe.backend.make().train(run.task, run)
    return runs


def losses(run: RunDirectory) -> list[float]:
    return [row["loss"] for row in run.log_rows() if row["event"] == "step"]


def test_packing_changes_no_step(trained: dict[str, RunDirectory]) -> None:
    packed, padded, grouped = (losses(trained[name]) for name in ("packed", "padded", "grouped"))
    assert len(padded) == 12 and packed == pytest.approx(padded, abs=2e-3)
    assert grouped != pytest.approx(padded, abs=2e-3)


def test_packed_training_reads_the_shared_beginning_once(trained: dict[str, RunDirectory]) -> None:
    from ftkit_trl._model import load_tokenizer
    from ftkit_trl._render import Chat
    from ftkit_trl._train import _tokenised

    run = trained["packed"]
    options = run.recipe.backend.make().options
    dataset, _ = _tokenised(Chat(load_tokenizer(options), options), run.task.train)
    row = PackingCollator(0, share_prefix=True).torch_call([dataset[i] for i in range(4)])
    assert row["shared_prefix"] >= 16
    assert {row["shared_prefix"] for row in run.log_rows() if "shared_prefix" in row} == {True}


def test_padding_and_layout_are_recorded(trained: dict[str, RunDirectory]) -> None:
    ends = {name: run.log_rows()[-1] for name, run in trained.items()}
    assert {name: row["layout"] for name, row in ends.items()} == {name: name for name in LAYOUTS}
    assert ends["packed"]["pad_share"] == 0 < ends["grouped"]["pad_share"] < ends["padded"]["pad_share"] < 0.5
    assert ends["packed"]["tokens"] == ends["padded"]["tokens"] > 12 * 4 * 20
    for name, run in trained.items():
        locked = [row["name"] for row in run.log_rows() if row["event"] == "lock" and "name" in row]
        assert locked == [name]  # the core puts it in the lock
        assert any(row["event"] == "note" and name in row["message"] for row in run.log_rows())


def test_a_resumed_run_goes_on_with_the_same_batches(trained: dict[str, RunDirectory]) -> None:
    """From the checkpoint in the second epoch, for every layout: the weights end equal, byte for byte."""
    for run in trained.values():
        weights = run.path("train", "model", "adapter_model.safetensors")
        unbroken, before = weights.read_bytes(), losses(run)
        shutil.rmtree(run.path("train", "model"))
        shutil.rmtree(run.path(".work", "checkpoints", "checkpoint-12"))
        assert run.path(".work", "checkpoints", "checkpoint-8", "ftkit-complete").exists()
        run.recipe.backend.make().train(run.task, run)
        assert run.log_rows()[-1]["steps"] == 12 and losses(run) == before
        assert weights.read_bytes() == unbroken


def test_a_loss_that_is_not_a_number_ends_the_run(tmp_path: Path) -> None:
    """The Trainer by itself leaves such losses out of the mean that it logs."""
    from ftkit_trl._model import source
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "model"
    shutil.copytree(source("package:ftkit_quickstart/model"), broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    run = prepared(tmp_path, base_model=str(broken), sample_packing=False)
    with pytest.raises(RunFailed, match=r"the loss is nan at step 1"):
        run.recipe.backend.make().train(run.task, run)
