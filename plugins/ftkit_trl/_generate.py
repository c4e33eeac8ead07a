"""Generate predictions for planned batches with a loaded model."""

from __future__ import annotations

import contextlib
import math
import queue
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftkit.api import Run, Session
from ftkit.records import Example, GenerationConfig, ModelRef, Prediction

from ._decode import StopFlag, decode, in_parallel
from ._model import (
    context_length,
    dtype,
    generation_end_tokens,
    load_model,
    load_tokenizer,
    peak_memory,
    release_memory,
)
from ._remedies import ANSWERING
from ._render import Chat, truncate_middle
from ._shared import Weights
from ._stop import StopStrings
from ._world import is_sharded
from .options import TrainOptions

if TYPE_CHECKING:
    from . import TrlSftLora

_PART = 32  # prompts at most that a CPU generates for at once: more take longer per prompt, and so do half as many
_FEWEST = 8  # prompts that two threads share
_ROW = 1  # tokens of a prompt that take as long to read as one step takes for one more row, about: to balance parts


class _Prompt(NamedTuple):
    position: int  # of its example in the batch
    example: Example
    ids: list[int]
    truncated: bool  # whether the context has no room for the whole prompt


class TrlSession(Session):
    """A model that is loaded on this machine."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        options: TrainOptions,
        weights: Weights | None = None,
        adapter: str | None = None,
    ) -> None:
        """`weights`: where other sessions may share those of `model`, with this session's `adapter` in them.

        None: the model computes as it is, such as one that is being trained.
        """
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.weights, self.adapter = weights, adapter
        self.on_tokens: Callable[[list[int]], None] | None = (
            None  # called with the new tokens of a batch's first prompt
        )
        self.truncated_prompts = 0  # so far
        self.stop = StopFlag()
        self.chat = Chat(tokenizer, options)
        self.ends = sorted(self.chat.ends | generation_end_tokens(model))

    def generate(
        self, batches: Iterable[Sequence[Example]], generation: GenerationConfig
    ) -> Iterator[list[Prediction]]:
        """Yield `generation.samples` predictions per example. A CPU generates for parts of batches in parallel."""
        greedy = generation.temperature == 0
        # Sampling: a batch's random numbers are one sequence. The processes of a sharded model keep in step.
        parallel = greedy and self.model.device.type == "cpu" and not is_sharded(self.model)
        stop = self.stop = StopFlag(self.on_tokens)
        stops = StopStrings(self.tokenizer, generation.stop) if generation.stop else None
        arguments = _arguments(generation)

        def generate_part(part: list[_Prompt]) -> tuple[list[list[int]], float]:
            """Return the new tokens of each sample of each prompt, and the seconds per sample."""
            began = time.monotonic()
            if not greedy:
                torch.manual_seed(_batch_seed(generation, part[0].example))
            inputs = self.tokenizer.pad({"input_ids": [prompt.ids for prompt in part]}, return_tensors="pt")  # (B, T)
            ids, mask = (
                inputs[name].to(self.model.device).repeat_interleave(generation.samples, dim=0)
                for name in ("input_ids", "attention_mask")
            )
            pad, new = self.tokenizer.pad_token_id, generation.max_new_tokens
            rows = decode(self.model, ids, mask, new, self.ends, stop, stops, pad_token_id=pad, **arguments)
            return rows, (time.monotonic() - began) / len(rows)

        def parts(batch: Sequence[Example]) -> list[list[_Prompt]]:
            prompts = self.prompts(batch, generation)
            if not parallel:
                return [prompts]
            prompts.sort(key=lambda prompt: -len(prompt.ids))  # the batch plan knows only their characters
            return _balanced(prompts, [len(prompt.ids) + _ROW * generation.max_new_tokens for prompt in prompts])

        try:
            with self.answering():
                # Tokenizers are not thread-safe: this thread makes all prompts and decodes all texts.
                for group, results in in_parallel(
                    generate_part, map(parts, batches), stop.event.set, 4 if parallel else 1
                ):
                    predictions = {
                        prompt.position: self.predictions(
                            prompt, rows[i * generation.samples :][: generation.samples], seconds, stops
                        )
                        for part, (rows, seconds) in zip(group, results, strict=True)
                        for i, prompt in enumerate(part)
                    }
                    yield [prediction for position in sorted(predictions) for prediction in predictions[position]]
        except Exception as error:
            error.add_note(ANSWERING)  # where memory ran out, fewer prompts at once may help
            raise

    def stream(self, example: Example, generation: GenerationConfig) -> Generator[str, None, Prediction]:
        """Yield the answer piece by piece, as `generate` answers a batch of this example alone."""
        (prompt,) = self.prompts([example], generation)
        self.truncated_prompts += prompt.truncated  # before the first piece: see `Session.stream`
        pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        reader = Partial(self.tokenizer, self.ends, generation.stop, pieces.put)

        def whole() -> Prediction:
            try:
                (prediction,) = (p for batch in self.generate([[example]], generation) for p in batch)
                return prediction
            finally:
                pieces.put(None)

        self.on_tokens = reader.read  # the tokens come in the thread that generates, while this one waits for pieces
        with ThreadPoolExecutor(1) as pool:
            try:
                future = pool.submit(whole)
                while (piece := pieces.get()) is not None:
                    yield piece
                prediction = future.result()
                self.truncated_prompts -= prompt.truncated  # `generate` has counted it, too
            finally:
                self.stop.event.set()
                self.on_tokens = None
        if prediction.text.startswith(reader.shown) and (rest := prediction.text[len(reader.shown) :]):
            yield rest
        return prediction

    def answering(self) -> contextlib.AbstractContextManager[None]:
        """Let this session's own adapter, or none, compute until the block ends."""
        return self.weights.answering(self.adapter) if self.weights is not None else contextlib.nullcontext()

    def prompts(self, batch: Sequence[Example], generation: GenerationConfig) -> list[_Prompt]:
        """Return the examples with their prompts, truncated in the middle where the context has no room."""
        limit = prompt_limit(self.model.config, generation)
        pairs = zip(batch, self.chat.prompts(batch), strict=True)
        return [_Prompt(i, e, truncate_middle(ids, limit), len(ids) > limit) for i, (e, ids) in enumerate(pairs)]

    def predictions(
        self, prompt: _Prompt, rows: list[list[int]], seconds: float, stops: StopStrings | None
    ) -> list[Prediction]:
        """Return the samples of one prompt as predictions, one per row of new tokens; `seconds` is of each row."""
        self.truncated_prompts += prompt.truncated
        predictions = []
        for sample, row in enumerate(rows):
            end = next((n for n, token in enumerate(row) if token in self.ends), None)
            ids = row if end is None else row[:end]
            cut = stops.cut(ids) if stops else None  # an end token behind a stop string is padding
            text, used = cut or (self.tokenizer.decode(ids, skip_special_tokens=True), len(ids) + (end is not None))
            predictions.append(
                Prediction(
                    example_id=prompt.example.id,
                    text=text.strip(),
                    sample=sample,
                    finish_reason="length" if end is None and cut is None else "stop",
                    tokens_in=len(prompt.ids),
                    tokens_out=used,
                    latency=round(seconds, 4),
                )
            )
        return predictions

    @torch.inference_mode()
    def loss(self, batch: Sequence[Example]) -> list[float]:
        """Return each example's mean loss in nats per target token."""
        losses = []
        with self.answering():
            for shown in self.chat.render(batch):
                ids = torch.tensor([shown.ids], device=self.model.device)  # (1, T)
                logits = self.model(input_ids=ids).logits[0, shown.n_prompt - 1 : -1]  # (target tokens, vocabulary)
                losses.append(torch.nn.functional.cross_entropy(logits.float(), ids[0, shown.n_prompt :]).item())
        return losses

    def stats(self) -> dict[str, Any]:
        return {
            "peak_memory": peak_memory(),
            "device": str(self.model.device),
            "truncated_prompts": self.truncated_prompts,
            "usd_per_hour": self.options.usd_per_hour,
        }


def _balanced(prompts: list[_Prompt], work: Sequence[int]) -> list[list[_Prompt]]:
    """Split the prompts, in their order, into parts of about equal `work` and of `_PART` prompts at most."""
    count = max(math.ceil(len(prompts) / _PART), 2 if len(prompts) >= _FEWEST else 1)
    count += count % 2 if count > 1 else 0  # for the two or four threads that take parts
    parts: list[list[_Prompt]] = []
    begin, left = 0, sum(work)
    for remaining in range(count, 0, -1):
        fewest = len(prompts) - begin - (remaining - 1) * _PART  # the parts behind have no room for more
        end, done = begin, 0
        while (
            end < len(prompts)
            and end - begin < _PART
            and (end - begin < fewest or done + work[end] / 2 <= left / remaining)
        ):
            done += work[end]
            end += 1
        parts.append(prompts[begin:end])
        begin, left = end, left - done
    return [part for part in parts if part]


def prompt_limit(config: Any, generation: GenerationConfig) -> int:
    """Return how many tokens of a prompt the model can read beside an answer of full length; at least 16."""
    return max(16, (context_length(config) or 1 << 30) - generation.max_new_tokens)


def _arguments(generation: GenerationConfig) -> dict[str, Any]:
    """Return the arguments of `model.generate`; the model's own generation config holds the ids of tokens alone."""
    arguments: dict[str, Any] = {"do_sample": generation.temperature > 0}
    if generation.repetition_penalty != 1:
        arguments["repetition_penalty"] = generation.repetition_penalty
    if generation.temperature > 0:
        # top_k 0 is written, because transformers' default is 50.
        arguments |= {"temperature": generation.temperature, "top_p": generation.top_p, "top_k": generation.top_k}
        arguments |= {"min_p": generation.min_p} if generation.min_p else {}
    return arguments


def _batch_seed(generation: GenerationConfig, first: Example) -> int:
    """Return a seed for the batch alone, so that sampled text does not depend on which batches came before."""
    import zlib

    return zlib.crc32(f"{generation.seed} {first.id}".encode("utf-8", "surrogatepass"))


class Partial:
    """The text of an answer so far, without what further tokens could still change."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int], stops: Sequence[str], give: Callable[[str], None]
    ) -> None:
        self.tokenizer, self.ends, self.stops, self.give = tokenizer, set(ends), stops, give
        self.shown = ""

    def read(self, tokens: list[int]) -> None:
        """Give the text that is new with these tokens of the answer."""
        text = self.tokenizer.decode([t for t in tokens if t not in self.ends], skip_special_tokens=True).lstrip()
        cut = min((text.index(stop) for stop in self.stops if stop in text), default=len(text))
        held = max((n for s in self.stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        text = text[: min(cut, len(text) - held)].rstrip("\ufffd").rstrip()  # a character may lack its last bytes
        if text.startswith(self.shown) and text != self.shown:
            self.give(text[len(self.shown) :])
            self.shown = text


def sharing_key(backend: TrlSftLora, ref: ModelRef) -> tuple[Any, ...] | None:
    """Return what must agree for two models to share the weights of a base model; None where `ref` shares none."""
    options = backend.options
    if ref.meta.get("trained") or (backend.start is not None and not backend.adapter):
        return None
    shared = (options.base_model, options.revision, options.trust_remote_code, options.attn_implementation)
    return (*shared, backend.quantised, str(dtype(options)))


@contextlib.contextmanager
def open_session(backend: TrlSftLora, ref: ModelRef, run: Run) -> Iterator[TrlSession]:
    """Load `ref` and its tokenizer; free the memory afterwards. Raises as `load_model` does."""
    release_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    weights = Weights(load_model(backend, ref, run).eval(), sharing_key(backend, ref))
    adapter = "default" if hasattr(weights.model, "peft_config") else None
    session = TrlSession(weights.model, load_tokenizer(backend.options), backend.options, weights, adapter)
    try:
        yield session
    finally:
        session.stop.event.set()  # the reader of the predictions may have left while a part is running
        del weights, session
        release_memory()


@contextlib.contextmanager
def _beside(weights: Weights, adapter: str | None, backend: TrlSftLora) -> Iterator[TrlSession]:
    session = TrlSession(weights.model, load_tokenizer(backend.options), backend.options, weights, adapter)
    try:
        yield session
    finally:
        session.stop.event.set()
        if adapter is not None:
            weights.detach(adapter)


def open_beside(
    loaded: Session, backend: TrlSftLora, ref: ModelRef, run: Run
) -> contextlib.AbstractContextManager[TrlSession] | None:
    """Return a session in the memory of a loaded one, or None where they do not share a base model."""
    if not isinstance(loaded, TrlSession) or loaded.weights is None or loaded.weights.key is None:
        return None
    if loaded.weights.key != sharing_key(backend, ref):
        return None
    folder = run.resolve_uri(ref.uri) if ref.kind == "adapter" else None
    if folder is None and backend.start is not None and backend.start.is_adapter:
        folder = backend.start.folder
    adapter = loaded.weights.attach(folder) if folder is not None else None
    return _beside(loaded.weights, adapter, backend)
