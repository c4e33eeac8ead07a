"""Packing: several examples in one row, and attention that keeps each example to its own tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from .options import TrainOptions

ATTENTION = "ftkit_segments"
_PROBE = 8  # tokens of each of the probe's two examples


class PackingCollator(DataCollatorForLanguageModeling):
    """Concatenates the examples of a forward pass: (1, sum of lengths), positions from 0 in each example.

    Adds to TRL's row the examples' lengths as plain numbers: as a tensor, each layer would fetch them from the GPU.
    """

    def __init__(self, pad_token_id: int) -> None:
        super().__init__(pad_token_id=pad_token_id, padding_free=True)

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return {**super().torch_call(examples), "segments": [len(e["input_ids"]) for e in examples]}


def attend_within_segments(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, heads, T, head size); the keys may have fewer heads
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: Sequence[int],
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend causally within each segment of the row, one segment at a time: no mask over the whole row is needed.

    `segments` are the lengths of the examples, in tokens. Returns (1, T, heads, head size). Raises
    NotImplementedError for attention with a soft cap, sinks or a position bias.
    """
    for name in ("softcap", "s_aux", "position_bias"):
        if others.get(name) is not None:
            raise NotImplementedError(f"attention with {name}")
    outputs = []
    for q, k, v in zip(*(part.split(list(segments), dim=2) for part in (query, key, value)), strict=True):
        length = q.shape[2]
        mask = None
        if sliding_window is not None and length > sliding_window:
            near = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
            mask = near.triu(1 - sliding_window)
        outputs.append(
            scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=dropout, scale=scaling,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        )  # fmt: skip
    return torch.cat(outputs, dim=2).transpose(1, 2), None


AttentionInterface.register(ATTENTION, attend_within_segments)
AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)


def packed_attention(options: TrainOptions) -> str:
    """Return the attention implementation for packed rows: this module's in place of sdpa, otherwise the recipe's.

    sdpa would compute all pairs of tokens of the row and mask those of different examples: in a row of 16 examples
    that took longer than padding them (measured on a CPU). Flash attention finds the examples' bounds by itself.
    """
    named: str | None = options.attn_implementation
    return ATTENTION if named in (None, "sdpa") else named


@contextlib.contextmanager
def attention(model: Any, name: str) -> Iterator[None]:
    """Set the attention implementation of the model, with an adapter or without, for the duration of the context."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = base.config._attn_implementation
    base.set_attn_implementation(name)
    try:
        yield
    finally:
        base.set_attn_implementation(before)


def obstacle(model: PreTrainedModel, implementation: str) -> str | None:
    """Return why this model cannot be trained on packed rows with this attention; None where it can.

    Runs the model: the logits of an example must not depend on the example in front of it, and must be those of the
    example alone. Layers that mix tokens in another way than by attention fail this test.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if kinds or getattr(config, "attention_chunk_size", None):
        return f"packing does not support {', '.join(sorted(kinds)) or 'chunked attention'} layers"
    first, other, second = (torch.arange(_PROBE) % 7 + start for start in (3, 11, 5))
    was_training = model.training
    model.eval()
    try:
        with attention(model, implementation), torch.no_grad():
            alone, behind, behind_other = (
                model(**_row(model, *row), use_cache=False).logits[0, -_PROBE:].float()
                for row in ((second,), (first, second), (other, second))
            )
    except Exception as error:  # a model that does not accept such rows may raise anything
        return f"packed rows do not work with this model ({type(error).__name__}: {error})"
    finally:
        model.train(was_training)
    tolerance = {torch.float32: 1e-4, torch.float16: 1e-2}.get(model.dtype, 5e-2) * alone.abs().max()
    if not torch.equal(behind, behind_other):
        return "with this model and attention, packed examples attend to each other"
    if (behind - alone).abs().max() > tolerance:
        return "with this model and attention, a packed example gets other logits than alone"
    return None


def _row(model: PreTrainedModel, *examples: torch.Tensor) -> dict[str, Any]:
    rows = [{"input_ids": e.tolist(), "labels": e.tolist()} for e in examples]
    row = PackingCollator(0).torch_call(rows)
    del row["labels"]
    return {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in row.items()}
