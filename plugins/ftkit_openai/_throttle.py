"""How fast requests are sent: waits between retries, and how many requests are in flight at once."""

from __future__ import annotations

import contextlib
import math
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping


def backoff_delay(attempt: int, first: float, most: float, factor: float = 2.0) -> float:
    """Return the seconds to wait after failure number `attempt` (0, 1, ...): first * factor**attempt, at most `most`.

    Any `attempt` is allowed: where the power is too large for a float (after about 1,024 doublings), the delay is `most`.
    """
    try:
        return min(first * factor**attempt, most)
    except OverflowError:
        return most


def jittered(seconds: float) -> float:
    """Return `seconds` with a random change of up to 30 %, so that clients that failed together do not retry together."""
    return seconds * random.uniform(0.7, 1.3)


def seconds_of(text: str | None) -> float:
    """Return the seconds of OpenAI's "6m0s", "1.5s", "20ms"; 0 for anything else."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    return sum(float(n) * units[u] for n, u in re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text or ""))


class Stopped(Exception):
    """The session ends before this request was sent."""


class RateLimiter:
    """How many requests may be in flight at once, and from when: follows refusals and the rate-limit headers.

    No pause is longer than `longest` seconds, whatever a provider asks for.
    """

    def __init__(self, most: int, longest: float = math.inf) -> None:
        self.most, self.longest = most, longest
        self.limit = most  # requests in flight at once: a refusal halves it, successes raise it by one each round
        self.paused_until = 0.0  # time.monotonic() before which nothing is sent
        self._active = 0
        self._successes = 0  # since the limit changed
        self._halved_at = 0.0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def slot(self, stop: threading.Event) -> Iterator[float]:
        """Wait until one more request may be sent. Yield that moment. Raises Stopped when the session ends first."""
        with self._changed:
            while True:
                if stop.is_set():
                    raise Stopped
                left = self.paused_until - time.monotonic()
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
        """Send nothing for so many seconds from now, at most `longest`."""
        with self._changed:
            self.paused_until = max(self.paused_until, time.monotonic() + min(seconds, self.longest))

    def on_refusal(self, seconds: float, sent: float) -> None:
        """A request sent at the moment `sent` was refused by a rate limit: pause, then allow half as many in flight.

        Refusals of requests that were in flight together count once.
        """
        self.pause(seconds)
        with self._changed:
            self._successes = 0
            if sent > self._halved_at:
                self.limit = max(1, self.limit // 2)
                self._halved_at = time.monotonic()

    def on_answer(self, headers: Mapping[str, str]) -> None:
        """An answer came: raise the limit step by step, and pause where the headers say that nothing is left for now."""
        with self._changed:
            self._successes += 1
            if self._successes >= self.limit and self.limit < self.most:
                self.limit, self._successes = self.limit + 1, 0
                self._changed.notify()
        for what in ("requests", "tokens"):
            if headers.get(f"x-ratelimit-remaining-{what}") == "0":
                self.pause(min(seconds_of(headers.get(f"x-ratelimit-reset-{what}")), 120.0))
