"""Answer planned batches with a loaded model."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftkit.api import Session
from ftkit.records import Example, Generation, ModelRef, Prediction
from ftkit.store import RunContext

from ._decode import Stopped, decode, side_by_side
from ._model import known_ends, load_model, load_tokenizer, peak_memory
from ._render import Chat, cut_middle

if TYPE_CHECKING:
    from . import TrainOptions, TrlSftLora

_PART = 16  # prompts that a CPU answers together: a cache that is larger takes longer than it saves


class TrlSession(Session):
    """A model on this machine."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: TrainOptions) -> None:
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.prompts_cut = 0  # prompts longer than the context leaves room for
        self.chat = Chat(tokenizer, options)
        self.ends = sorted(self.chat.ends | known_ends(model))

    def generate(self, batches: Iterable[Sequence[Example]], generation: Generation) -> Iterator[list[Prediction]]:
        for batch in batches:
            yield self.answer(batch, generation)

    def answer(self, batch: Sequence[Example], generation: Generation) -> list[Prediction]:
        """Return `generation.samples` predictions per example. A CPU answers parts of the batch side by side."""
        began = time.monotonic()
        context = getattr(self.model.config, "max_position_embeddings", None) or 1 << 30
        limit = max(16, context - generation.max_new_tokens)
        whole = self.chat.prompts(batch)
        prompts = [cut_middle(ids, limit) for ids in whole]
        self.prompts_cut += sum(len(ids) > limit for ids in whole)
        arguments: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        parts = math.ceil(len(batch) / _PART) if self.model.device.type == "cpu" else 1
        if generation.temperature > 0:
            torch.manual_seed(_batch_seed(generation, batch))
            parts = 1  # the random numbers are taken from one row
            arguments = {
                "do_sample": True,
                "temperature": generation.temperature,
                "top_p": generation.top_p,
                "top_k": 0,
            }
        stopped = Stopped()

        def part(rows: range) -> list[list[int]]:
            inputs = self.tokenizer.pad({"input_ids": [prompts[i] for i in rows]}, return_tensors="pt")  # (B, T)
            ids, mask = (
                inputs[name].to(self.model.device).repeat_interleave(generation.samples, dim=0)
                for name in ("input_ids", "attention_mask")
            )
            pad = self.tokenizer.pad_token_id
            return decode(
                self.model, ids, mask, generation.max_new_tokens, self.ends, stopped, pad_token_id=pad, **arguments
            )

        # Every second prompt, say: a batch is sorted by length, and the parts are to take equally long.
        shares = [range(first, len(batch), parts) for first in range(parts)]
        answers: list[list[list[int]]] = [[] for _ in batch]  # of each example, of each sample
        for rows, made in zip(shares, side_by_side(part, shares, stopped.event.set), strict=True):
            for n, i in enumerate(rows):
                answers[i] = made[n * generation.samples : (n + 1) * generation.samples]
        latency = (time.monotonic() - began) / (len(batch) * generation.samples)
        predictions = []
        for example, prompt, samples in zip(batch, prompts, answers, strict=True):
            for sample, row in enumerate(samples):
                stop = next((n for n, token in enumerate(row) if token in self.ends), None)
                answer = row if stop is None else row[:stop]
                predictions.append(
                    Prediction(
                        example_id=example.id,
                        text=self.tokenizer.decode(answer, skip_special_tokens=True).strip(),
                        sample=sample,
                        finish_reason="length" if stop is None else "stop",
                        tokens_in=len(prompt),
                        tokens_out=len(answer) + (stop is not None),
                        latency=round(latency, 4),
                    )
                )
        return predictions

    @torch.inference_mode()
    def loss(self, batch: Sequence[Example]) -> list[float]:
        losses = []
        for shown in self.chat.render(batch):
            ids = torch.tensor([shown.ids], device=self.model.device)  # (1, T)
            logits = self.model(input_ids=ids).logits[0, shown.n_prompt - 1 : -1].float()  # (learned, vocabulary)
            losses.append(torch.nn.functional.cross_entropy(logits, ids[0, shown.n_prompt :]).item())
        return losses

    def stats(self) -> dict[str, Any]:
        return {
            "peak_memory": peak_memory(),
            "device": str(self.model.device),
            "prompts_cut": self.prompts_cut,
            "usd_per_hour": self.options.usd_per_hour,
        }


def _batch_seed(generation: Generation, batch: Sequence[Example]) -> int:
    """A seed of the batch's own, so that sampled text does not depend on which batches came before."""
    import zlib

    return zlib.crc32(f"{generation.seed} {batch[0].id}".encode("utf-8", "surrogatepass"))


@contextlib.contextmanager
def open_session(backend: TrlSftLora, ref: ModelRef, run: RunContext) -> Iterator[TrlSession]:
    """Load `ref` and its tokenizer; the memory is free again afterwards."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    model = load_model(backend, ref, run).eval()
    try:
        yield TrlSession(model, load_tokenizer(backend.options), backend.options)
    finally:
        del model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
