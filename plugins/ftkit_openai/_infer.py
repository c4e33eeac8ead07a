"""Answers over HTTP: many requests in flight at once, as many as the provider allows, each answer yielded as it comes."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx2

from ftkit.api import Run, Session
from ftkit.records import Example, GenerationConfig, ModelRef, Prediction

from ._client import Provider
from ._errors import RETRYABLE, classify, retry_after
from ._estimate import price_of
from ._requests import LateAnswers, chat_body, failed_predictions, predictions_of
from ._throttle import RateLimiter, backoff_delay, jittered

_ATTEMPTS = 6  # of one request whose failures are retryable, while other requests succeed
_LAST_WAIT = 30.0  # seconds that an interrupted session waits for the answers in flight
_MALFORMED_ATTEMPTS = 3  # of one request that is answered without an answer: each may be paid for
_MOST_WRONG = 10  # requests that are refused as invalid, or malformed answers, before any answer: it is not the rows
_FATAL = frozenset(
    {"key", "unavailable", "forbidden", "quota", "billing", "not_found", "model", "redirect"}
)  # the same for every request


class ChatSession(Session):
    """Sends one request per example, `concurrency` at once."""

    def __init__(self, provider: Provider, model: ModelRef, run: Run) -> None:
        self.provider, self.model, self.run = provider, model, run
        self.options = provider.options
        self.tuned = model.base is not None
        self.price = price_of(self.options)
        self.limiter = RateLimiter(self.options.concurrency, longest=self.options.patience)
        self.stop = threading.Event()
        self.began = self.succeeded = time.monotonic()  # when this session began, and when a request last succeeded
        self.in_flight: dict[Future[list[Prediction]], Sequence[Example]] = {}
        self.pool: ThreadPoolExecutor | None = None
        self.late: LateAnswers | None = None
        self.rate_limited = 0  # requests refused by a rate limit
        self.invalid = 0  # requests refused as invalid
        self.malformed = 0  # malformed answers in a row
        self.fingerprints: set[str] = set()  # the provider's names of what answered, as lock.json records them
        self.warned = False  # that answers have another number of choices than was requested

    def generate(
        self, batches: Iterable[Sequence[Example]], generation: GenerationConfig
    ) -> Iterator[list[Prediction]]:
        """Yield each batch's answers as soon as they arrive. Raises FtkitError where no request can succeed."""
        late = self.late = LateAnswers(self.run, self.model, generation)
        self.stop.clear()
        self.succeeded = time.monotonic()
        waiting = iter(batches)
        done: queue.SimpleQueue[Future[list[Prediction]]] = queue.SimpleQueue()
        pool = self.pool = ThreadPoolExecutor(self.options.concurrency, thread_name_prefix="ask")
        try:
            more = True
            while more or self.in_flight:
                while more and len(self.in_flight) < self.options.concurrency:
                    batch = next(waiting, None)
                    if batch is None:
                        more = False
                        break
                    kept = late.take(batch)
                    if kept is not None:
                        yield kept
                    else:
                        future = pool.submit(self.answer_batch, batch, generation)
                        self.in_flight[future] = batch
                        future.add_done_callback(done.put)
                if self.in_flight:
                    future = done.get()
                    yield future.result()
                    del self.in_flight[future]  # only now: `drain` keeps what the caller did not take
        finally:
            self.drain()

    def drain(self) -> None:
        """Send nothing more. Save the answers in flight for the next session: they are paid for, whatever ended this one."""
        self.stop.set()
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + min(self.options.timeout, _LAST_WAIT)
        while self.in_flight and self.late is not None:
            future, batch = self.in_flight.popitem()
            with contextlib.suppress(Exception):
                if not future.cancelled():
                    self.late.keep(batch, future.result(timeout=max(0.0, deadline - time.monotonic())))

    def answer_batch(self, batch: Sequence[Example], generation: GenerationConfig) -> list[Prediction]:
        answers = [p for example in batch for p in self.answer(example, generation)]
        failed = sum(p.error is not None for p in answers)
        if self.late is not None and 0 < failed < len(answers):
            # Paid for as a whole: the core requests again what failed, and then gets the same answers.
            self.late.keep(batch, answers)
        return answers

    def answer(self, example: Example, generation: GenerationConfig) -> list[Prediction]:
        """Return the predictions of one example, failed ones where only this request cannot succeed.

        Raises FtkitError where no request can succeed.
        """
        body = chat_body(self.provider, self.model, example, generation)
        attempt = 0
        while True:
            with self.limiter.slot(self.stop) as sent:
                try:
                    # The same request as chat.completions.create, without building objects that nobody reads.
                    raw = self.provider.client.post("/chat/completions", body=body, cast_to=httpx2.Response)
                    data = json.loads(raw.content)
                    found = predictions_of(example, data, generation, self.price, self.tuned)
                except Exception as error:
                    failure = error
                else:
                    self.succeeded, self.malformed = time.monotonic(), 0
                    self.check_choices(len(data["choices"]), generation)
                    self.note_fingerprint(data.get("system_fingerprint"))
                    if not self.any_answered() and self.late is not None:
                        self.late.note_answer()
                    self.limiter.on_answer(raw.headers)
                    latency = round((time.monotonic() - sent) / len(found), 4)
                    return [replace(p, latency=latency) for p in found]
            attempt += 1
            self.wait_after(failure, attempt, sent)
            if self.is_final(failure, attempt):
                why = self.provider.explain(failure, "asking the model", self.model.uri).message
                return failed_predictions(example, generation, why)

    def wait_after(self, error: Exception, attempt: int, sent: float) -> None:
        """Wait as long as the failure requires.

        Raises FtkitError where the failure is the same for every request, or has lasted for `patience` seconds.
        """
        failure = classify(error)
        now = time.monotonic()
        if failure == "model" and self.tuned and now - self.began < self.options.model_wait:
            # A new model does not appear on all of the provider's servers at once.
            self.limiter.pause(jittered(backoff_delay(attempt, 1.0, 15.0, 1.6)))
            return
        if failure in _FATAL or not failure:
            raise self.provider.explain(error, "asking the model", self.model.uri) from None
        if failure == "invalid" and "context_length" not in f"{error.code}":  # type: ignore[attr-defined]
            self.invalid += 1
        if failure == "malformed":
            self.malformed += 1
        for wrong in (self.invalid, self.malformed):
            if wrong >= _MOST_WRONG and not self.any_answered():
                what = f"asking the model, {_MOST_WRONG} times out of {_MOST_WRONG}"
                raise self.provider.explain(error, what) from None
        if failure in RETRYABLE and now - self.succeeded > self.options.patience:
            raise self.provider.explain(error, "asking the model") from None
        wait = min(retry_after(error) or jittered(backoff_delay(attempt, 0.5, 30.0 if failure == "rate" else 15.0)),
                   self.options.patience)  # fmt: skip
        if failure == "rate":
            self.rate_limited += 1
            self.limiter.on_refusal(wait, sent)
        elif failure == "network" or (failure == "malformed" and self.malformed > _MOST_WRONG):
            self.limiter.pause(wait)  # an outage, and no matter of this request
        elif failure not in ("invalid", "moderation"):
            self.stop.wait(wait)

    def check_choices(self, count: int, generation: GenerationConfig) -> None:
        """Warn once where an answer has another number of choices than was requested. It is not requested again."""
        if count == generation.samples or self.warned:
            return
        self.warned = True
        text = (
            f"{self.provider.dialect.label} returned {count} of {generation.samples} requested choices: it may not "
            "support `n`. Missing samples are failed predictions; `generation.samples: 1` requests one answer to each row"
        )
        self.run.log("warning", message=text)

    def note_fingerprint(self, fingerprint: object) -> None:
        """Record in lock.json under which fingerprints the provider answered: another one may answer otherwise."""
        if isinstance(fingerprint, str) and fingerprint and fingerprint not in self.fingerprints:
            self.fingerprints.add(fingerprint)
            self.run.log("lock", **{f"system_fingerprint {self.model.uri}": sorted(self.fingerprints)})

    def any_answered(self) -> bool:
        """Say whether a request of this kind was answered, in this session or an earlier one."""
        return self.late is not None and self.late.any_answered

    def is_final(self, error: Exception, attempt: int) -> bool:
        """Say whether this request cannot succeed, while others can."""
        failure = classify(error)
        attempts = _MALFORMED_ATTEMPTS if failure == "malformed" else _ATTEMPTS
        return failure in ("invalid", "moderation") or (
            failure in ("server", "timeout", "malformed") and attempt >= attempts
        )

    def stats(self) -> dict[str, Any]:
        return {"device": self.provider.hosted_by, "rate_limited": self.rate_limited}
