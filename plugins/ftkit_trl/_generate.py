"""Answer planned batches with a loaded model."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftkit.api import Run, Session
from ftkit.records import Example, GenerationConfig, ModelRef, Prediction

from ._decode import Stopped, decode, side_by_side
from ._model import known_ends, load_model, load_tokenizer, peak_memory
from ._render import Chat, cut_middle

if TYPE_CHECKING:
    from . import TrainOptions, TrlSftLora

_PART = 16  # prompts that a CPU answers together at most: a larger cache takes longer than it saves


class _Asked(NamedTuple):
    place: int  # in the batch
    example: Example
    prompt: list[int]  # token ids
    cut: bool  # whether some of the prompt had no room


class TrlSession(Session):
    """A model on this machine."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: TrainOptions) -> None:
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.prompts_cut = 0  # of those answered, prompts longer than the context leaves room for
        self.stopped = Stopped()
        self.chat = Chat(tokenizer, options)
        self.ends = sorted(self.chat.ends | known_ends(model))

    def generate(
        self, batches: Iterable[Sequence[Example]], generation: GenerationConfig
    ) -> Iterator[list[Prediction]]:
        """Yield `generation.samples` predictions per example. A CPU answers parts of batches side by side."""
        greedy = generation.temperature == 0
        beside = greedy and self.model.device.type == "cpu"  # sampled: the random numbers are taken from one row
        stopped = self.stopped = Stopped()
        arguments: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if not greedy:
            arguments = {
                "do_sample": True,
                "temperature": generation.temperature,
                "top_p": generation.top_p,
                "top_k": 0,
            }

        def answer(part: list[_Asked]) -> tuple[list[list[int]], float]:
            began = time.monotonic()
            if not greedy:
                torch.manual_seed(_batch_seed(generation, part[0].example))
            inputs = self.tokenizer.pad({"input_ids": [asked.prompt for asked in part]}, return_tensors="pt")  # (B, T)
            ids, mask = (
                inputs[name].to(self.model.device).repeat_interleave(generation.samples, dim=0)
                for name in ("input_ids", "attention_mask")
            )
            pad, new = self.tokenizer.pad_token_id, generation.max_new_tokens
            rows = decode(self.model, ids, mask, new, self.ends, stopped, pad_token_id=pad, **arguments)
            return rows, (time.monotonic() - began) / len(rows)

        def parts(batch: Sequence[Example]) -> list[list[_Asked]]:
            whole = self.prompts(batch, generation)
            if not beside:
                return [whole]
            whole.sort(key=lambda asked: -len(asked.prompt))  # the plan knows their characters only
            count = max(math.ceil(len(whole) / _PART), 2 if len(whole) >= _PART // 2 else 1)
            size = math.ceil(len(whole) / count)
            return [whole[i : i + size] for i in range(0, len(whole), size)]

        most = 4 if beside else 1
        # Tokenizers cannot stand two threads: prompts are made, and answers read, in this one.
        for group, answers in side_by_side(answer, map(parts, batches), stopped.event.set, most):
            predictions = {
                asked.place: self.predictions(asked, rows[i * generation.samples :][: generation.samples], seconds)
                for part, (rows, seconds) in zip(group, answers, strict=True)
                for i, asked in enumerate(part)
            }
            yield [prediction for place in sorted(predictions) for prediction in predictions[place]]

    def prompts(self, batch: Sequence[Example], generation: GenerationConfig) -> list[_Asked]:
        """Return the examples with their prompts, cut in the middle where the context has no room."""
        context = getattr(self.model.config, "max_position_embeddings", None) or 1 << 30
        limit = max(16, context - generation.max_new_tokens)
        whole = zip(batch, self.chat.prompts(batch), strict=True)
        return [_Asked(i, e, cut_middle(ids, limit), len(ids) > limit) for i, (e, ids) in enumerate(whole)]

    def predictions(self, asked: _Asked, rows: list[list[int]], seconds: float) -> list[Prediction]:
        """Return what each row of new tokens says, all of them answers to one example; `seconds` is of each row."""
        self.prompts_cut += asked.cut
        predictions = []
        for sample, row in enumerate(rows):
            stop = next((n for n, token in enumerate(row) if token in self.ends), None)
            answer = row if stop is None else row[:stop]
            predictions.append(
                Prediction(
                    example_id=asked.example.id,
                    text=self.tokenizer.decode(answer, skip_special_tokens=True).strip(),
                    sample=sample,
                    finish_reason="length" if stop is None else "stop",
                    tokens_in=len(asked.prompt),
                    tokens_out=len(answer) + (stop is not None),
                    latency=round(seconds, 4),
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


def _batch_seed(generation: GenerationConfig, first: Example) -> int:
    """A seed of the batch's own, so that sampled text does not depend on which batches came before."""
    import zlib

    return zlib.crc32(f"{generation.seed} {first.id}".encode("utf-8", "surrogatepass"))


@contextlib.contextmanager
def open_session(backend: TrlSftLora, ref: ModelRef, run: Run) -> Iterator[TrlSession]:
    """Load `ref` and its tokenizer; the memory is free again afterwards."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    model = load_model(backend, ref, run).eval()
    session = TrlSession(model, load_tokenizer(backend.options), backend.options)
    try:
        yield session
    finally:
        session.stopped.event.set()  # whoever reads the answers may have gone, and a part still be at work
        del model, session
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
