"""The connection to a provider: the openai client made once, one policy of retries, errors in our own words."""

from __future__ import annotations

import email.utils
import functools
import json
import os
import random
import re
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import httpx2
import openai

from ftkit.errors import FtkitError, RunFailed

from ._dialects import DIALECTS, Dialect

if TYPE_CHECKING:
    from . import ManagedOptions

T = TypeVar("T")

CONNECT_SECONDS = 5.0
# What kinds of failure pass by themselves; the others are the same however often one asks.
PASSING = frozenset({"rate", "server", "network", "timeout", "malformed"})
BARRED = (
    "OpenAI has let no new organisation train since 2026-05-07, none without a fine-tune in use since 2026-07-02, and "
    "lets nobody train from 2027-01-06. Other ways: recipes/samsum.yaml on a GPU, dialect: nebius or azure, "
    "or `ftkit serve`"
)


class Malformed(Exception):
    """The provider answered with success and something that is no answer."""


def api_key(options: ManagedOptions) -> str | None:
    """Return the key from the environment or a .env file here or above; None where there is none."""
    name = key_env(options)
    return secret(name) if name is not None else None


def secret(name: str) -> str | None:
    """Return the value of a variable from the environment or a .env file here or above; None where there is none."""
    if os.environ.get(name):
        return os.environ[name].strip()
    import dotenv

    found = dotenv.find_dotenv(usecwd=True)
    value = dotenv.dotenv_values(found).get(name) if found else None
    return value.strip() if value else None


def key_env(options: ManagedOptions) -> str | None:
    """Return the name of the variable that holds the key; None where the provider needs none."""
    return options.api_key_env or DIALECTS[options.dialect].key_env


def base_url(options: ManagedOptions) -> str | None:
    return options.base_url or DIALECTS[options.dialect].base_url


def _is_an_answer(response: httpx2.Response) -> None:
    """Raise Malformed for a success that is no JSON object of the API: the client would make an empty thing of it."""
    if response.is_success and not response.request.url.path.endswith("/content"):
        data = json.loads(response.read() or b"null")
        if not isinstance(data, dict) or data.keys().isdisjoint(("id", "object", "data", "choices")):
            raise Malformed(response.text[:200] or "an empty answer")


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Return the trusted certificates, read once: a run connects several times."""
    return httpx2.create_ssl_context()


class Provider:
    """One provider, connected. No request is sent twice unless `read` sends it; nothing here tells the key."""

    def __init__(
        self, options: ManagedOptions, url: str, patience: float | None = None, directory: Path | None = None
    ) -> None:
        self.options = options
        # How to go on after an error; nothing outside a run, where there is nothing to go on with.
        kept = "what was paid for is kept"
        self.again = (
            f"when the cause is mended, go on with `ftkit run --resume {directory}`: {kept}" if directory else ""
        )
        self.dialect: Dialect = DIALECTS[options.dialect]
        self.url = url
        parts = urlsplit(url)  # never its user and password
        self.host = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
        self.patience = options.patience if patience is None else patience  # seconds that a read is tried
        self._key = api_key(options)
        self.client = openai.OpenAI(
            api_key=self._key or "no-key",
            base_url=url,
            max_retries=0,  # the client would also repeat a POST whose answer it did not get
            timeout=httpx2.Timeout(options.timeout, connect=min(CONNECT_SECONDS, options.timeout)),
            http_client=openai.DefaultHttpxClient(
                limits=httpx2.Limits(max_connections=options.concurrency + 4, max_keepalive_connections=options.concurrency + 4),
                verify=_certificates(),
                event_hooks={"response": [_is_an_answer]},
                trust_env=not is_loopback(url),  # a proxy of the environment knows no way to this machine
            ),
        )  # fmt: skip

    def close(self) -> None:
        self.client.close()

    @property
    def lives(self) -> str:
        """Where the provider's models are, for the report."""
        return self.dialect.where if self.dialect.authoritative else f"{self.dialect.where} ({self.host})"

    def clean(self, text: object) -> str:
        """Return text from outside as one line without the key, and without what looks like one."""
        line = " ".join(str(text).split())
        if self._key:
            line = line.replace(self._key, "[key]")
        return re.sub(r"\b(?:sk|key)-[A-Za-z0-9*_\-]{4,}|(?i:bearer) +[^\s'\",]{4,}", "[key]", line)[:600]

    def read(self, what: str, call: Callable[[], T], patience: float | None = None) -> T:
        """Return what `call` returns; what passes by itself is tried again, with growing waits. Raises FtkitError.

        Only for requests that may be sent twice: reading, and uploading a file.
        """
        until = time.monotonic() + (self.patience if patience is None else patience)
        for attempt in range(10**6):
            try:
                return call()
            except Exception as error:
                failure = kind(error)
                wait = max(retry_after(error) or 0.0, jittered(min(0.5 * 2**attempt, 15.0)))
                if failure not in PASSING or time.monotonic() + wait > until:
                    raise self.explain(error, what) from None
                time.sleep(wait)
        raise AssertionError("unreachable")

    def explain(self, error: BaseException, what: str, model: str | None = None) -> FtkitError:
        """Return an error of the provider as one short message with the way out."""
        if isinstance(error, FtkitError):
            return error
        failure = kind(error)
        said = self.clean(said_by(error))
        where, name = self.dialect.where, key_env(self.options) or "the API key"
        model = model or self.options.base_model
        status = getattr(error, "status_code", None)
        again = self.again
        message, hint = {
            "key": self._key_refused(),
            "unavailable": (f"{where} does not let this organisation train (403 training_not_available)", BARRED),
            "forbidden": (f"{where} forbids this to the key in {name} (403): {said}", f"while {what}; give the key or its project that right"),
            "model": (f"{where} has no model {model!r} for this key (404)", self._model_hint(model)),
            "quota": (f"{where}: the quota is used up (429 insufficient_quota)", f"buy credit or raise the limit at the provider. {again}"),
            "billing": (f"{where}: billing stops the request: {said}", f"mend it in the account's billing settings. {again}"),
            "rate": (f"{where} kept refusing for its rate limit (429) while {what}", f"lower backend.concurrency, or wait. {again}"),
            "moderation": (f"{where} blocked it by moderation while {what}: {said}", "look at the rows that it names; remove what it may not see"),
            "invalid": (f"{where} refused the request while {what} ({status}): {said}", "mend what it names in the recipe or the data"),
            "not_found": (f"{where} does not know what was asked for while {what} (404): {said}", "is backend.base_url right?"),
            "server": (f"{where} failed while {what} ({status}): {said}", again),
            "timeout": (f"{where} did not answer within {self.options.timeout:g} s while {what}", f"raise backend.timeout, or try later. {again}"),
            "malformed": (f"{where} answered with something that is no answer while {what}: {said}", f"is backend.base_url right? {again}"),
            "network": (f"no connection to {self.host} while {what}: {said}", f"check the network and backend.base_url. {again}"),
        }.get(failure, (f"{type(error).__name__} while {what}: {said}", again))  # fmt: skip
        return RunFailed(message, hint.strip() or None)

    def _model_hint(self, model: str) -> str:
        if self.dialect.deploy == "azure" and model in (self.options.base_model, self.options.base_deployment):
            return "Azure answers by the name of a deployment: deploy the base model, and give its name as `backend.base_deployment`"
        return "`backend.base_model` must be one of the provider's /v1/models"

    def _key_refused(self) -> tuple[str, str]:
        """Return the message and the hint of a 401."""
        where, name = self.dialect.where, key_env(self.options)
        if name is None:
            return f"{where} wants a key (401)", "name the variable that holds it: `backend.api_key_env: NAME`"
        put = f"put a valid key into the environment or into .env as {name}=..."
        if self._key is None:
            return f"{where} wants a key, and {name} is not set (401)", put
        return f"{where} does not accept the key in {name} (401)", put


def kind(error: BaseException) -> str:
    """Return which of a dozen ways a request failed; "" for what is no failure of a request."""
    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return "timeout"
    if isinstance(error, openai.APIStatusError):
        return _kind_of_status(error)
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


def _kind_of_status(error: openai.APIStatusError) -> str:
    status, code = error.status_code, f"{error.code or ''} {error.type or ''}".lower()
    said = f"{code} {said_by(error)}".lower()
    if status >= 500 or status in (408, 409):  # whatever it says of billing or models: it is no answer
        return "server"
    if status == 429:  # by its code: the words for a used-up quota speak of billing as well
        quota = "insufficient_quota" in code or "exceeded your current quota" in said
        return "quota" if quota else "billing" if "billing" in code else "rate"
    if status == 402 or "billing" in code or "billing hard limit" in said:
        return "billing"
    if status == 401:
        return "key"
    if status == 403:
        return "unavailable" if "training_not_available" in said else "forbidden"
    if status == 404:
        return "model" if "model" in said or "deployment" in said else "not_found"
    if re.search(r"content_filter|content_policy|moderation|unsafe|safety", said):
        return "moderation"
    return "invalid"


def never_sent(error: BaseException) -> bool:
    """Say whether a request surely did not reach the provider: no connection was made."""
    return isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)


def said_by(error: BaseException) -> str:
    """Return the provider's own words, or the cause of a lost connection."""
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
    """Return the seconds that the provider asks to wait, from its Retry-After headers; None where it says nothing."""
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


def jittered(seconds: float) -> float:
    """Return about so many seconds: many clients that were refused together do not come back together."""
    return seconds * random.uniform(0.7, 1.3)


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == "localhost" or host.startswith("127.") or host == "::1"


def file_bytes(content: Any) -> bytes:
    """Return a downloaded file's bytes."""
    data: bytes = content.read() if hasattr(content, "read") else Path(content).read_bytes()
    return data
