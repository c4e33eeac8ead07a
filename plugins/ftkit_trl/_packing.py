"""Packing: several examples in one row, and attention that keeps each example to its own tokens.

Prompts made from one template begin alike. The tokens of this beginning (the shared prefix) have the same hidden states
in each example of a forward pass, so the row holds them once, in its first example.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from ._prefix import SHORTEST, shared_prefix
from .options import TrainOptions

ATTENTION = "ftkit_segments"
_PROBE = 8  # tokens of each of the probe's two examples


class PackingCollator(DataCollatorForLanguageModeling):
    """Concatenates the examples of a forward pass: (1, sum of lengths), positions from 0 in each example.

    Adds to TRL's row `segments`, the examples' lengths as plain numbers: as a tensor, each layer would fetch them from
    the GPU. With `share_prefix`, all examples but the first lack their shared prefix; its length is `shared_prefix`.
    """

    def __init__(self, pad_token_id: int, share_prefix: bool = False) -> None:
        super().__init__(pad_token_id=pad_token_id, padding_free=True)
        self.share_prefix = share_prefix

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        prefix = _unlabelled_prefix(examples) if self.share_prefix else 0
        if not prefix:
            return {**super().torch_call(examples), "segments": [len(e["input_ids"]) for e in examples]}
        first, *others = examples
        kept = [first, *({name: values[prefix:] for name, values in e.items()} for e in others)]
        whole = super().torch_call(kept)
        # Without TRL's bounds of the examples (cu_seq_lens): these know of no shared prefix.
        row = {name: whole[name] for name in ("input_ids", "labels", "position_ids")}
        row["position_ids"][0, len(first["input_ids"]) :] += prefix
        return {**row, "segments": [len(e["input_ids"]) for e in kept], "shared_prefix": prefix}


def _unlabelled_prefix(examples: Sequence[dict[str, Any]]) -> int:
    """Return how many tokens at the beginning of all examples are the same and can be read once; 0 for a few.

    None of them has a label, and neither has the token behind them: the loss predicts it from the token in front of it
    in the row, which is that of another example.
    """
    labels = [e["labels"] for e in examples]
    unlabelled = min(next((i for i, label in enumerate(row) if label != -100), len(row)) for row in labels)
    return shared_prefix([e["input_ids"] for e in examples], unlabelled - 1)


def attend_within_segments(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, heads, T, head size); the keys may have fewer heads
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: Sequence[int],
    shared_prefix: int = 0,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend causally within each segment of the row, one segment at a time: no mask over the whole row is needed.

    `segments` are the lengths of the examples in the row, in tokens. The first `shared_prefix` tokens of the row belong
    to each of them. Returns (1, T, heads, head size). Raises NotImplementedError for attention with a soft cap, sinks or
    a position bias.
    """
    for name in ("softcap", "s_aux", "position_bias"):
        if others.get(name) is not None:
            raise NotImplementedError(f"attention with {name}")
    outputs: list[torch.Tensor] = []
    for q, k, v in zip(*(_examples(part, segments, shared_prefix) for part in (query, key, value)), strict=True):
        length = q.shape[2]
        mask = None
        if sliding_window is not None and length > sliding_window:
            near = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
            mask = near.triu(1 - sliding_window)
        output = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=dropout, scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
        outputs.append(output[:, :, shared_prefix:] if outputs else output)
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _examples(part: torch.Tensor, segments: Sequence[int], shared_prefix: int) -> list[torch.Tensor]:
    """Return a row's queries, keys or values, (1, heads, T, head size), example by example, each with its prefix."""
    first, *others = part.split(list(segments), dim=2)
    if not shared_prefix:
        return [first, *others]
    prefix = first[:, :, :shared_prefix]
    return [first, *(torch.cat([prefix, other], dim=2) for other in others)]


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
    tolerance = _tolerance(model) * alone.abs().max()
    if not torch.equal(behind, behind_other):
        return "with this model and attention, packed examples attend to each other"
    if (behind - alone).abs().max() > tolerance:
        return "with this model and attention, a packed example gets other logits than alone"
    return None


def can_share_prefix(model: PreTrainedModel, options: TrainOptions) -> bool:
    """Return whether the packed examples of a forward pass may share the beginning of their prompts.

    Not with dropout: each example would lose the same values there. Runs the model: an example must get the logits that
    it gets alone.
    """
    rates = [layer.p for layer in model.modules() if isinstance(layer, torch.nn.Dropout)]
    rates += [value for name, value in model.config.get_text_config().to_dict().items() if "drop" in name]
    if packed_attention(options) != ATTENTION or any([*rates, getattr(options, "lora_dropout", 0)]):
        return False
    prefix = torch.arange(SHORTEST) % 5 + 3
    first, second = (torch.cat([prefix, torch.arange(_PROBE) % 7 + start]) for start in (9, 4))
    was_training = model.training
    model.eval()
    try:
        with attention(model, ATTENTION), torch.no_grad():
            alone, behind = (
                model(**_row(model, *row, n_prompt=SHORTEST + 1), use_cache=False).logits[0, -_PROBE:].float()
                for row in ((second,), (first, second))
            )
    finally:
        model.train(was_training)
    return bool((behind - alone).abs().max() <= _tolerance(model) * alone.abs().max())


def _tolerance(model: PreTrainedModel) -> float:
    return {torch.float32: 1e-4, torch.float16: 1e-2}.get(model.dtype, 5e-2)


def _row(model: PreTrainedModel, *examples: torch.Tensor, n_prompt: int = 0) -> dict[str, Any]:
    """Return examples as a packed row on the model's device; they share a prefix where they have a prompt."""
    rows = [{"input_ids": e.tolist(), "labels": [-100] * n_prompt + e[n_prompt:].tolist()} for e in examples]
    row = PackingCollator(0, share_prefix=n_prompt > 0).torch_call(rows)
    del row["labels"]
    return {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in row.items()}
