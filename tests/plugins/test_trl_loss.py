"""TRL's loss on a CPU: positions without a label take no time, and change neither loss nor gradients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_trl import recipe

import ftkit
from ftkit.console import Console
from ftkit.files import Journal

ROWS, TOKENS, WIDTH, VOCABULARY = 2, 40, 32, 3000
ALL = [(row, column) for row in range(ROWS) for column in range(TOKENS)]


def step(labelled: Sequence[tuple[int, int]], tied: bool) -> tuple[float, dict[str, Any], int]:
    """Return the loss of a forward pass, the gradients, and the floating-point operations of both passes."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    ids = torch.arange(ROWS * TOKENS).reshape(ROWS, TOKENS)
    labels = torch.full_like(ids, -100)
    for row, column in labelled:
        labels[row, column] = ids[row, column]
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids, labels=labels, num_items_in_batch=7, fused_lm_head=True).loss
        loss.backward()
    return (
        loss.item(),
        {n: p.grad for n, p in model.named_parameters() if p.grad is not None},
        counter.get_total_flops(),
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "labelled",
    [[(0, 39), (1, 38), (1, 39)], [(0, 20)], [], [(0, 0)], ALL],
    ids=["some", "one", "none", "the first, which nothing predicts", "all"],
)
def test_loss_and_gradients_are_those_of_all_positions(
    labelled: list[tuple[int, int]], tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftkit_trl import _loss
    from trl.trainer import utils

    monkeypatch.setattr(utils, "_use_triton", _loss._trl_skips)
    loss, gradients, operations = step(labelled, tied)
    _loss.skip_unlabelled_positions()
    skipping = step(labelled, tied)
    assert skipping[0] == pytest.approx(loss, rel=1e-6)
    assert skipping[1].keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (skipping[1][name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
    left_out = ROWS * (TOKENS - 1) - sum(column > 0 for _, column in labelled)
    assert operations - skipping[2] >= left_out * 2 * WIDTH * VOCABULARY  # at least their logits


def test_training_skips_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ftkit_trl import _loss
    from trl.trainer import utils

    seen: list[tuple[int, int]] = []
    kernel = utils._ChunkedLogProbFunction
    monkeypatch.setattr(utils, "_use_triton", _loss._trl_skips)

    class Counted:
        @staticmethod
        def apply(hidden: Any, weight: Any, *others: Any) -> Any:
            seen.append((len(hidden), len(others[1])))
            return kernel.apply(hidden, weight, *others)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Counted)
    run = ftkit.run(recipe("trl-sft-lora", max_steps=2), out=tmp_path, console=Console(silent=True))
    end = next(row for row in Journal(run.directory.path("train", "log.jsonl")).read() if row["event"] == "end")
    assert seen and 0 < sum(n for n, _ in seen) < end["tokens"] / 2
    assert all(positions == targets for positions, targets in seen)
