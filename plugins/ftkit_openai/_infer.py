"""Answers over HTTP: many at once, as many as the provider lets through, each given on as it comes."""

from __future__ import annotations

import contextlib
import json
import queue
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx2

from ftkit.api import Run, Session
from ftkit.files import Journal, digest
from ftkit.records import Example, GenerationConfig, ModelRef, Prediction

from ._client import Malformed, Provider, jittered, kind, retry_after
from ._connect import connected
from ._preflight import price_of
from ._prices import Price
from ._rows import messages

if TYPE_CHECKING:
    from . import ManagedOptions

_ATTEMPTS = 6  # of one request whose failures pass by themselves, while others succeed
_LAST_WAIT = 30.0  # seconds that an interrupted session waits for the answers under way
_HOPELESS = 10  # requests refused as invalid, before any answer: it is the recipe, not the rows
_FATAL = frozenset(
    {"key", "unavailable", "forbidden", "quota", "billing", "not_found", "model"}
)  # the same for every request


@contextlib.contextmanager
def open_session(options: ManagedOptions, model: ModelRef, run: Run) -> Iterator[Session]:
    """Give a session that asks `model`; the Batch API's where the recipe wants it."""
    with connected(options, run) as provider:
        if options.use_batch_api:
            from ._batch import BatchSession

            yield BatchSession(provider, model, run)
        else:
            session = ChatSession(provider, model, run)
            try:
                yield session
            finally:
                session.drain()


def chat_body(provider: Provider, model: ModelRef, example: Example, generation: GenerationConfig) -> dict[str, Any]:
    """Return the request for one example: all its samples at once, since the prompt is paid for once."""
    body: dict[str, Any] = {
        "model": model.uri,
        "messages": messages(example),
        provider.dialect.tokens_field: generation.max_new_tokens,
        "temperature": generation.temperature,
    }
    if generation.temperature > 0:
        body |= {"top_p": generation.top_p, "seed": generation.seed}
    if generation.samples > 1:
        body["n"] = generation.samples
    return body


def predictions_of(
    example: Example,
    data: Mapping[str, Any],
    generation: GenerationConfig,
    price: Price | None,
    tuned: bool,
    batch: bool = False,
) -> list[Prediction]:
    """Return the predictions in a chat completion. Raises Malformed where it holds none.

    The request's tokens and price stand with its first sample; the others carry their share of the output.
    """
    choices = data.get("choices")
    if not isinstance(choices, list) or len(choices) != generation.samples:
        raise Malformed(f"{json.dumps(data)[:200]} is no answer with {generation.samples} choice(s)")
    usage = data.get("usage") or {}
    tokens_in, tokens_out = usage.get("prompt_tokens"), usage.get("completion_tokens")
    usd = None
    if price is not None and tokens_in is not None and tokens_out is not None:
        usd = round(price.answer(tokens_in, tokens_out, tuned, batch), 9)
    predictions = []
    for sample, choice in enumerate(choices):
        message = choice.get("message") if isinstance(choice, Mapping) else None
        if not isinstance(message, Mapping):
            raise Malformed(f"{json.dumps(choice)[:200]} is no choice")
        text = message.get("content") if message.get("content") is not None else message.get("refusal")
        finish = str(choice.get("finish_reason") or "stop")
        error = None
        if finish == "content_filter":
            error = "blocked by the provider's content filter"
        elif not isinstance(text, str):
            error = "the answer has no text"
        first = sample == 0
        predictions.append(
            Prediction(
                example.id,
                text.strip() if isinstance(text, str) and error is None else "",
                sample,
                "error" if error else finish,
                tokens_in if first else None,
                (tokens_out if first else None) if generation.samples > 1 else tokens_out,
                error=error,
                usd=usd if first else None,
            )
        )
    return predictions


class Gate:
    """How many requests may be under way, and since when: follows refusals and the rate-limit headers."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = most  # requests at once: halved by a refusal, grown again by successes
        self.opens = 0.0  # time.monotonic() before which nothing is sent
        self._active = 0
        self._good = 0
        self._halved = 0.0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def passed(self, stop: threading.Event) -> Iterator[float]:
        """Wait until one more request may be sent; give the moment. Raises Stopped when the session ends first."""
        with self._changed:
            while True:
                if stop.is_set():
                    raise Stopped
                left = self.opens - time.monotonic()
                if left <= 0 and self._active < self.limit:
                    break
                self._changed.wait(min(left, 0.5) if left > 0 else 0.5)
            self._active += 1
        try:
            yield time.monotonic()
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify()

    def pause(self, seconds: float) -> None:
        with self._changed:
            self.opens = max(self.opens, time.monotonic() + seconds)

    def refused(self, seconds: float, sent: float) -> None:
        """A rate limit was hit by a request of that moment: wait so long, and go on with half as many.

        Requests that were under way together count once.
        """
        self.pause(seconds)
        with self._changed:
            self._good = 0
            if sent > self._halved:
                self.limit = max(1, self.limit // 2)
                self._halved = time.monotonic()

    def answered(self, headers: Mapping[str, str]) -> None:
        """An answer came: grow again, and hold back where the headers say that nothing is left for now."""
        with self._changed:
            self._good += 1
            if self._good >= self.limit and self.limit < self.most:
                self.limit, self._good = self.limit + 1, 0
                self._changed.notify()
        for what in ("requests", "tokens"):
            if headers.get(f"x-ratelimit-remaining-{what}") == "0":
                self.pause(min(seconds_of(headers.get(f"x-ratelimit-reset-{what}")), 120.0))


def seconds_of(text: str | None) -> float:
    """Return the seconds of OpenAI's "6m0s", "1.5s", "20ms"; 0 for anything else."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    return sum(float(n) * units[u] for n, u in re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text or ""))


class ChatSession(Session):
    """Asks one request per example, `concurrency` at once."""

    def __init__(self, provider: Provider, model: ModelRef, run: Run) -> None:
        self.provider, self.model, self.run = provider, model, run
        self.options = provider.options
        self.tuned = model.base is not None
        self.price = price_of(self.options)
        self.gate = Gate(self.options.concurrency)
        self.stop = threading.Event()
        self.began = self.succeeded = time.monotonic()  # when this session began, when something last succeeded
        self.under_way: dict[Future[list[Prediction]], Sequence[Example]] = {}
        self.pool: ThreadPoolExecutor | None = None
        self.spill: Spill | None = None
        self.answers = 0
        self.refusals = 0  # for a rate limit
        self.invalid = 0  # refused for good

    def generate(
        self, batches: Iterable[Sequence[Example]], generation: GenerationConfig
    ) -> Iterator[list[Prediction]]:
        """Yield each batch's answers as soon as they are there. Raises FtkitError where no request can succeed."""
        spill = self.spill = Spill(self.run, self.model, generation)
        self.stop.clear()
        self.succeeded = time.monotonic()
        waiting = iter(batches)
        done: queue.SimpleQueue[Future[list[Prediction]]] = queue.SimpleQueue()
        pool = self.pool = ThreadPoolExecutor(self.options.concurrency, thread_name_prefix="ask")
        try:
            more = True
            while more or self.under_way:
                while more and len(self.under_way) < self.options.concurrency:
                    batch = next(waiting, None)
                    if batch is None:
                        more = False
                        break
                    kept = spill.take(batch)
                    if kept is not None:
                        yield kept
                    else:
                        asked = pool.submit(self.answer_all, batch, generation)
                        self.under_way[asked] = batch
                        asked.add_done_callback(done.put)
                if self.under_way:
                    future = done.get()
                    yield future.result()
                    del self.under_way[future]  # only now: what was not taken is kept by `drain`
        finally:
            self.drain()

    def drain(self) -> None:
        """Send nothing more; keep for the next attempt what is under way: it is paid for, whatever ended this."""
        self.stop.set()
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)
        until = time.monotonic() + min(self.options.timeout, _LAST_WAIT)
        while self.under_way and self.spill is not None:
            future, batch = self.under_way.popitem()
            with contextlib.suppress(Exception):
                if not future.cancelled():
                    self.spill.keep(batch, future.result(timeout=max(0.0, until - time.monotonic())))

    def answer_all(self, batch: Sequence[Example], generation: GenerationConfig) -> list[Prediction]:
        return [p for example in batch for p in self.answer(example, generation)]

    def answer(self, example: Example, generation: GenerationConfig) -> list[Prediction]:
        """Return the predictions of one example; failed ones where it fails for good. Raises FtkitError where all would."""
        body = chat_body(self.provider, self.model, example, generation)
        attempt = 0
        while True:
            with self.gate.passed(self.stop) as sent:
                try:
                    # The same request as chat.completions.create, without building objects that nobody reads.
                    raw = self.provider.client.post("/chat/completions", body=body, cast_to=httpx2.Response)
                    found = predictions_of(example, json.loads(raw.content), generation, self.price, self.tuned)
                except Exception as error:
                    failure = error
                else:
                    self.succeeded = time.monotonic()
                    self.answers += 1
                    if not self.answered_before() and self.spill is not None:
                        self.spill.mark()
                    self.gate.answered(raw.headers)
                    latency = round((time.monotonic() - sent) / len(found), 4)
                    return [replace(p, latency=latency) for p in found]
            attempt += 1
            self.failed(failure, attempt, sent)  # raises where nobody could succeed
            if self.for_good(failure, attempt):
                return self.failures(example, generation, failure)

    def failed(self, error: Exception, attempt: int, sent: float) -> None:
        """Wait as the failure asks. Raises FtkitError where it is the same for every request, or has lasted too long."""
        failure = kind(error)
        now = time.monotonic()
        if failure == "model" and self.tuned and now - self.began < self.options.model_wait:
            self.gate.pause(jittered(min(1.0 * 1.6**attempt, 15.0)))  # a fresh model is not everywhere at once
            return
        if failure in _FATAL or not failure:
            raise self.provider.explain(error, "asking the model", self.model.uri) from None
        if failure == "invalid" and "context_length" not in f"{error.code}":  # type: ignore[attr-defined]
            self.invalid += 1
            if self.invalid >= _HOPELESS and not self.answered_before():
                raise self.provider.explain(error, f"asking the model, {_HOPELESS} times out of {_HOPELESS}") from None
        if failure in ("rate", "network", "server", "timeout") and now - self.succeeded > self.options.patience:
            raise self.provider.explain(error, "asking the model") from None
        if failure == "rate":
            self.refusals += 1
            self.gate.refused(retry_after(error) or jittered(min(0.5 * 2**attempt, 30.0)), sent)
        elif failure == "network":
            self.gate.pause(jittered(min(0.5 * 2**attempt, 15.0)))
        elif failure not in ("invalid", "moderation"):
            self.stop.wait(retry_after(error) or jittered(min(0.5 * 2**attempt, 15.0)))

    def answered_before(self) -> bool:
        """Say whether this session or an earlier one got an answer to this kind of request."""
        return self.spill is not None and self.spill.answered

    def for_good(self, error: Exception, attempt: int) -> bool:
        """Say whether this request alone will not succeed."""
        failure = kind(error)
        return failure in ("invalid", "moderation") or (
            failure in ("server", "timeout", "malformed") and attempt >= _ATTEMPTS
        )

    def failures(self, example: Example, generation: GenerationConfig, error: Exception) -> list[Prediction]:
        why = self.provider.explain(error, "asking the model", self.model.uri).message
        return [Prediction(example.id, "", s, "error", error=why) for s in range(generation.samples)]

    def stats(self) -> dict[str, Any]:
        return {"device": self.provider.lives, "rate_limited": self.refusals}


class Stopped(Exception):
    """The session ends before this request was sent."""


class Spill:
    """Answers that came after their session had to end: paid for, and given on by the next one."""

    def __init__(self, run: Run, model: ModelRef, generation: GenerationConfig) -> None:
        name = digest([model.uri, generation.to_dict()])[:16]
        self.journal = Journal(run.scratch("answers") / f"{name}.jsonl")
        self.marker = run.scratch("answers") / f"{name}.answered"
        self.answered = self.marker.exists()  # there was an answer
        self.kept: dict[str, list[Prediction]] = {}
        for row in self.journal.read():
            self.kept[row["key"]] = [Prediction.from_dict(p) for p in row["predictions"]]

    def mark(self) -> None:
        self.answered = True
        self.marker.touch()

    def take(self, batch: Sequence[Example]) -> list[Prediction] | None:
        """Return the answers to a batch that an earlier session left, once."""
        return self.kept.pop(_key(batch), None) if self.kept else None

    def keep(self, batch: Sequence[Example], predictions: Sequence[Prediction]) -> None:
        if any(p.error is None for p in predictions):
            self.journal.append({"key": _key(batch), "predictions": [p.to_dict() for p in predictions]})


def _key(batch: Sequence[Example]) -> str:
    return digest([[e.id, messages(e)] for e in batch])
