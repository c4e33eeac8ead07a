"""The rate limiter, the waits between retries, and the classes of errors."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from ftkit_openai._errors import classify
from ftkit_openai._throttle import RateLimiter, Stopped, backoff_delay, seconds_of

# ---------------------------------------------------------------- waits and rate limits


@pytest.mark.parametrize("attempt", [1023, 1024, 1025, 5000, 10**6])
def test_a_wait_never_overflows(attempt: int) -> None:
    assert backoff_delay(attempt, 0.5, 15.0) == 15.0
    assert backoff_delay(attempt, 1.0, 15.0, 1.6) == 15.0


def test_a_wait_doubles_up_to_its_limit() -> None:
    assert [backoff_delay(n, 0.5, 15.0) for n in range(7)] == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    assert [backoff_delay(n, 0.5, 30.0) for n in (5, 6)] == [16.0, 30.0]
    assert [round(backoff_delay(n, 1.0, 15.0, 1.6), 3) for n in range(7)] == [
        1.0,
        1.6,
        2.56,
        4.096,
        6.554,
        10.486,
        15.0,
    ]


@pytest.mark.parametrize(
    ("text", "seconds"), [("1.5s", 1.5), ("6m0s", 360), ("20ms", 0.02), ("1h2m3s", 3723), (None, 0), ("x", 0)]
)
def test_reset_times_are_parsed(text: str | None, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds)


def test_a_limiter_halves_once_for_refusals_in_flight_together_and_grows_again() -> None:
    limiter = RateLimiter(16)
    sent = time.monotonic()
    for _ in range(5):
        limiter.on_refusal(0.0, sent)
    assert limiter.limit == 8
    for _ in range(8 + 9):
        limiter.on_answer({})
    assert limiter.limit == 10
    for _ in range(1000):
        limiter.on_answer({})
    assert limiter.limit == 16


def test_a_limiter_allows_no_more_requests_than_its_limit() -> None:
    limiter, stop = RateLimiter(2), threading.Event()
    inside: list[int] = []
    most = []

    def ask() -> None:
        with limiter.slot(stop):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 2 and len(most) == 8
    stop.set()
    with pytest.raises(Stopped), limiter.slot(stop):
        pass


def test_a_limiter_pauses_when_the_headers_say_so() -> None:
    limiter = RateLimiter(4)
    limiter.on_answer({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "30s"})
    assert 29 < limiter.paused_until - time.monotonic() <= 30


# ---------------------------------------------------------------- classes of errors

QUOTA = (
    "You exceeded your current quota, please check your plan and billing details. For more information on this error, "
    "read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors."
)


@pytest.mark.parametrize(
    ("status", "error", "which"),
    [
        (429, {"message": QUOTA, "type": "insufficient_quota", "param": None, "code": "insufficient_quota"}, "quota"),
        (429, {"message": QUOTA, "type": None, "code": None}, "quota"),
        (429, {"message": "Your account is not active, please check your billing details on our website.", "type": "billing_not_active", "code": "billing_not_active"}, "billing"),
        (429, {"message": "Rate limit reached for gpt-4o-mini. Add a payment method in your billing settings.", "type": "requests", "code": "rate_limit_exceeded"}, "rate"),
        (400, {"message": "Billing hard limit has been reached", "type": "invalid_request_error", "code": "billing_hard_limit_reached"}, "billing"),
        (400, {"message": "Billing hard limit has been reached", "type": "invalid_request_error", "code": None}, "billing"),
        (400, {"message": "the row speaks of billing", "type": "invalid_request_error", "code": None}, "invalid"),
        (403, {"message": "see your billing page", "type": "x", "code": "training_not_available"}, "unavailable"),
        (503, {"message": "the billing service is overloaded", "type": "server_error", "code": None}, "server"),
    ],
)  # fmt: skip
def test_an_error_is_classified_by_its_code_before_its_message(status: int, error: dict[str, Any], which: str) -> None:
    import httpx2
    import openai

    answer = httpx2.Response(status, json={"error": error}, request=httpx2.Request("POST", "http://provider"))
    assert classify(openai.APIStatusError("refused", response=answer, body=error)) == which
