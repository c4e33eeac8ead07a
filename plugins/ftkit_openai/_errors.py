"""Failures of requests: which kind each is, what the provider says, and how long it asks to wait."""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Mapping

import httpx2
import openai

# Kinds of failure that may disappear without a change; the others stay the same however often a request is retried.
RETRYABLE = frozenset({"rate", "server", "network", "timeout", "malformed"})
TRAINING_NOT_ALLOWED = (
    "OpenAI stopped training for new organisations on 2026-05-07, for those without a fine-tune in use on 2026-07-02, "
    "and stops it for all on 2027-01-06. Alternatives: recipes/samsum.yaml on a GPU, dialect: nebius or azure, "
    "or `ftkit serve`"
)


class Malformed(Exception):
    """The provider answered with a success status, and the content is not a valid answer."""


def classify(error: BaseException) -> str:
    """Return the kind of a failed request (see `Provider.explain` for all kinds); "" where no request failed."""
    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return "timeout"
    if isinstance(error, openai.APIStatusError):
        return _classify_status(error)
    broken = (
        openai.APIResponseValidationError,
        json.JSONDecodeError,
        UnicodeDecodeError,
        Malformed,
        RecursionError,  # of json: brackets without end
        httpx2.DecodingError,
    )
    if isinstance(error, broken) or isinstance(error.__cause__, broken):
        return "malformed"
    if isinstance(error, openai.APIConnectionError | httpx2.TransportError):
        return "network"
    return ""


def _classify_status(error: openai.APIStatusError) -> str:
    status, code = error.status_code, f"{error.code or ''} {error.type or ''}".lower()
    text = f"{code} {message_of(error)}".lower()
    if 300 <= status < 400:
        return "redirect"
    if status >= 500 or status in (408, 409):  # whatever the text says of billing or models: the request got no answer
        return "server"
    if status == 429:  # the code comes first: the message of a used-up quota mentions billing as well
        quota = "insufficient_quota" in code or "exceeded your current quota" in text
        return "quota" if quota else "billing" if "billing" in code else "rate"
    if status == 402 or "billing" in code or "billing hard limit" in text:
        return "billing"
    if status == 401:
        return "key"
    if status == 403:
        return "unavailable" if "training_not_available" in text else "forbidden"
    if status == 404:
        return "model" if "model" in text or "deployment" in text else "not_found"
    if re.search(r"content_filter|content_policy|moderation|unsafe|safety", text):
        return "moderation"
    return "invalid"


def never_sent(error: BaseException) -> bool:
    """Say whether a request certainly did not reach the provider: no connection was made."""
    return isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)


def message_of(error: BaseException) -> str:
    """Return the provider's own message, or the cause of a lost connection."""
    body = getattr(error, "body", None)
    if isinstance(body, Mapping):
        inner = body.get("error", body)
        if isinstance(inner, Mapping) and inner.get("message"):
            return str(inner["message"])
    if isinstance(error, openai.APIStatusError):
        text = error.response.text.strip() if error.response.is_closed else ""
        if 300 <= error.status_code < 400 and error.response.headers.get("location"):
            return f"to {error.response.headers['location'][:300]}"
        return text[:300] if text and not text.startswith("<") else f"HTTP {error.status_code} without an explanation"
    if isinstance(error, openai.APIConnectionError) and error.__cause__ is not None:
        return str(error.__cause__) or type(error.__cause__).__name__
    return str(error) or type(error).__name__


def retry_after(error: BaseException) -> float | None:
    """Return the seconds to wait that the provider's Retry-After headers state, from 0; None where they state none.

    They may be any number: the caller limits the wait.
    """
    response = getattr(error, "response", None)
    headers = response.headers if response is not None else {}
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000.0
    value = headers.get("retry-after")
    seconds = _number(value)
    return _seconds_until(value) if seconds is None else seconds


def _number(text: str | None) -> float | None:
    """Return a number from 0; None for anything else, also for NaN and infinity."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _seconds_until(text: str | None) -> float | None:
    """Return the seconds until a date of HTTP, 0 for one in the past; None for what is no date."""
    try:
        date = email.utils.parsedate_tz(text or "")
        return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else None
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
