"""Failures of requests: which kind each is, what the provider says, and how long it asks to wait."""

from __future__ import annotations

import email.utils
import json
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
        return text[:300] if text and not text.startswith("<") else f"HTTP {error.status_code} without an explanation"
    if isinstance(error, openai.APIConnectionError) and error.__cause__ is not None:
        return str(error.__cause__) or type(error.__cause__).__name__
    return str(error) or type(error).__name__


def retry_after(error: BaseException) -> float | None:
    """Return the seconds to wait that the provider's Retry-After headers state; None where there are none."""
    response = getattr(error, "response", None)
    headers = response.headers if response is not None else {}
    if headers.get("retry-after-ms"):
        return _number(headers["retry-after-ms"], 1000.0)
    value = headers.get("retry-after")
    if not value:
        return None
    seconds = _number(value)
    if seconds is None:
        date = email.utils.parsedate_tz(value)
        seconds = email.utils.mktime_tz(date) - time.time() if date else None
    return None if seconds is None else max(0.0, seconds)


def _number(text: str, per: float = 1.0) -> float | None:
    try:
        return max(0.0, float(text)) / per
    except ValueError:
        return None
