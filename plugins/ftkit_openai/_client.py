"""The connection to a provider: one openai client, one retry policy, and errors as short messages."""

from __future__ import annotations

import functools
import os
import re
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import httpx2
import openai

from ftkit.errors import FtkitError, RunFailed

from ._dialects import DIALECTS, Dialect
from ._errors import RETRYABLE, TRAINING_NOT_ALLOWED, classify, message_of, retry_after
from ._http import HttpClient
from ._mask import MASK, Mask
from ._throttle import backoff_delay, jittered

if TYPE_CHECKING:
    from .options import ManagedOptions

T = TypeVar("T")

CONNECT_SECONDS = 5.0
_LONGEST = 10_000  # characters of a provider's text that are looked at, for a message of 600


def api_key(options: ManagedOptions) -> str | None:
    """Return the key from the environment, or from a .env file in this folder or above; None where there is none."""
    name = key_env(options)
    return secret(name) if name is not None else None


def secret(name: str) -> str | None:
    """Return a variable of the environment, or of a .env file in this folder or above; None where there is none."""
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
    """Return the address of the API; None where the run starts the server, or the recipe must name it."""
    return options.base_url or DIALECTS[options.dialect].base_url


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == "localhost" or host.startswith("127.") or host == "::1"


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Return the trusted certificates, read once: a run connects several times."""
    return httpx2.create_ssl_context()


class Provider:
    """One provider, connected. Only `read` sends a request again. No message from here contains the key."""

    def __init__(
        self, options: ManagedOptions, url: str, patience: float | None = None, directory: Path | None = None
    ) -> None:
        self.options = options
        # How to resume after an error; empty outside a run, where there is nothing to resume.
        kept = "what was paid for is kept"
        self.resume_hint = (
            f"after the cause is fixed, resume with `ftkit run --resume {directory}`: {kept}" if directory else ""
        )
        self.dialect: Dialect = DIALECTS[options.dialect]
        self.url = url
        parts = urlsplit(url)  # never its user and password
        self.host = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
        self.patience = options.patience if patience is None else patience  # seconds during which `read` retries
        self._key = api_key(options)
        self.mask = Mask(self._key)
        self.client = openai.OpenAI(
            api_key=self._key or "no-key",
            base_url=url,
            max_retries=0,  # the client would also repeat a POST whose answer was lost
            timeout=httpx2.Timeout(options.timeout, connect=min(CONNECT_SECONDS, options.timeout)),
            http_client=HttpClient(
                self.mask,
                limits=httpx2.Limits(max_connections=options.concurrency + 4, max_keepalive_connections=options.concurrency + 4),
                verify=_certificates(),
                trust_env=not is_loopback(url),  # a proxy of the environment cannot reach a server on this machine
            ),
        )  # fmt: skip

    def close(self) -> None:
        self.client.close()

    @property
    def hosted_by(self) -> str:
        """Who hosts the provider's models, for the report."""
        return self.dialect.label if self.dialect.authoritative else f"{self.dialect.label} ({self.host})"

    def clean(self, text: object) -> str:
        """Return text from outside as one line, without the key and without anything that looks like a key.

        The key is also found where it is encoded (in a URL, in JSON, in base64) or cut to 8 characters or more.
        """
        line = self.mask(" ".join(str(text)[:_LONGEST].split()))
        return re.sub(r"\b(?:sk|key)-[A-Za-z0-9*_\-]{4,}|(?i:bearer) +[^\s'\",]{4,}", MASK, line)[:600]

    def read(self, what: str, call: Callable[[], T], patience: float | None = None) -> T:
        """Return what `call` returns. Retries failures that are RETRYABLE, with growing waits. Raises FtkitError.

        `patience` is in seconds. Only for requests that may be sent twice: reading, and uploading a file.
        """
        deadline = time.monotonic() + (self.patience if patience is None else patience)
        for attempt in range(10**6):
            try:
                return call()
            except Exception as error:
                wait = max(retry_after(error) or 0.0, jittered(backoff_delay(attempt, 0.5, 15.0)))
                if classify(error) not in RETRYABLE or time.monotonic() + wait > deadline:
                    raise self.explain(error, what) from None
                time.sleep(wait)
        raise AssertionError("unreachable")

    def explain(self, error: BaseException, what: str, model: str | None = None) -> FtkitError:
        """Return an error of the provider as one short message and a hint that says what to do.

        `what` is the activity, such as "listing the models".
        """
        if isinstance(error, FtkitError):
            return error
        text = self.clean(message_of(error))
        label, name = self.dialect.label, key_env(self.options) or "the API key"
        model = model or self.options.base_model
        status = getattr(error, "status_code", None)
        resume = self.resume_hint
        message, hint = {
            "key": self._explain_key(),
            "unavailable": (f"{label} does not let this organisation train (403 training_not_available)", TRAINING_NOT_ALLOWED),
            "forbidden": (f"{label} forbids this to the key in {name} (403): {text}", f"while {what}; give the key or its project that right"),
            "model": (f"{label} has no model {model!r} for this key (404)", self._model_hint(model)),
            "quota": (f"{label}: the quota is used up (429 insufficient_quota)", f"buy credit or raise the limit at the provider. {resume}"),
            "billing": (f"{label}: billing stops the request: {text}", f"fix it in the account's billing settings. {resume}"),
            "rate": (f"{label} kept refusing requests for its rate limit (429) while {what}", f"wait, or ask less at once with --set backend.concurrency={max(1, self.options.concurrency // 4)}. {resume}"),
            "moderation": (f"{label} blocked the request by moderation while {what}: {text}", "look at the rows that it names; remove what is not allowed"),
            "invalid": (f"{label} refused the request while {what} ({status}): {text}", "fix what it names in the recipe or the data"),
            "not_found": (f"{label} has no such object (404) while {what}: {text}", "is backend.base_url right?"),
            "server": (f"{label} failed while {what} ({status}): {text}", resume),
            "timeout": (f"{label} did not answer within {self.options.timeout:g} s while {what}", f"try later, or wait longer for each answer with --set backend.timeout={4 * self.options.timeout:g}. {resume}"),
            "malformed": (f"{label} returned a malformed answer while {what}: {text}", f"is backend.base_url right? {resume}"),
            "redirect": (f"{label} answered with a redirect while {what} ({status}): {text}", f"ftkit follows no redirect of a request that may cost money: give the right address as backend.base_url. {resume}"),
            "network": (f"no connection to {self.host} while {what}: {text}", f"check the network and backend.base_url. {resume}"),
        }.get(classify(error), (f"{type(error).__name__} while {what}: {text}", resume))  # fmt: skip
        return RunFailed(message, hint.strip() or None)

    def _model_hint(self, model: str) -> str:
        if self.dialect.deploy == "azure" and model in (self.options.base_model, self.options.base_deployment):
            return "Azure answers by the name of a deployment: deploy the base model, and give its name as `backend.base_deployment`"
        return "`backend.base_model` must be one of the provider's /v1/models"

    def _explain_key(self) -> tuple[str, str]:
        """Return the message and the hint of a 401."""
        label, name = self.dialect.label, key_env(self.options)
        if name is None:
            return f"{label} requires a key (401)", "name the variable that holds it: `backend.api_key_env: NAME`"
        hint = f"put a valid key into the environment or into .env as {name}=..."
        if self._key is None:
            return f"{label} requires a key, and {name} is not set (401)", hint
        return f"{label} does not accept the key in {name} (401)", hint
