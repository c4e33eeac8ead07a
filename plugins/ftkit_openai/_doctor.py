"""Is the key set, does the host answer, and may this account train (`ftkit doctor`)? Spends nothing, shows no key."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from ftkit.probing import http_status
from ftkit.records import Diagnosis

from ._check import account_findings
from ._client import api_key, base_url, is_loopback, key_env
from ._connect import connection_problem
from .options import ManagedOptions

_LOGIN = "provider login"
_NETWORK = "the network, or the server at its other end, cannot be reached"
_ANY_MODEL = "any"  # without a recipe, no model is asked for


def diagnoses(options: ManagedOptions | None) -> Iterator[Diagnosis]:
    """Yield what works of the account that `options` name; without them, of the key that most people have."""
    o = options or ManagedOptions(base_model=_ANY_MODEL)
    url = base_url(o)
    if url is None and o.dialect == "local":
        yield _own_server()
        return
    problem = connection_problem(o, url)
    if problem is not None or url is None:
        message, fix = problem or ("backend.base_url is missing", "name it in the recipe")
        yield Diagnosis("key", None if options is None else False, message, fix, _LOGIN)
        return
    name = key_env(o)
    if api_key(o):
        yield Diagnosis("key", True, f"{name} is set")
    elif is_loopback(url):
        yield Diagnosis("key", None, "a server on this machine needs none")
    host = _host(o, url, alone=options is None)
    yield host
    if options is None:
        yield Diagnosis("right to train", None, "it is looked up for a recipe: ftkit doctor RECIPE")
    elif host.ok:
        yield from _account(options)


def _own_server() -> Diagnosis:
    missing = [m for m in ("fastapi", "uvicorn") if importlib.util.find_spec(m) is None]
    if missing:
        text = f"the local server needs {' and '.join(missing)}"
        return Diagnosis("server", False, text, "pip install 'ftkit[serve]'", "version mismatch")
    return Diagnosis("server", True, "the run starts its own on this machine")


def _host(o: ManagedOptions, url: str, alone: bool) -> Diagnosis:
    """Ask for the list of models. `alone`: nothing further is asked, so that a key that is refused is said here."""
    key = api_key(o)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        status, _ = http_status(f"{url.rstrip('/')}/models", headers)
    except OSError as error:
        fix = "connect, or name the proxy in HTTPS_PROXY"
        return Diagnosis("host", False, f"{url} cannot be reached: {error}", fix, _NETWORK)
    if status >= 500:
        return Diagnosis("host", False, f"{url} answers with status {status}", "run this again later", _NETWORK)
    if alone and status in (401, 403):
        fix = f"put a valid key into {key_env(o)}"
        return Diagnosis("host", False, f"{url} refuses the key (status {status})", fix, _LOGIN)
    return Diagnosis("host", True, f"{url} answers")


def _account(o: ManagedOptions) -> Iterator[Diagnosis]:
    """Yield what the check of a recipe finds about its account: key, model, and where it can be known, the right to train."""
    found = list(account_findings(o))
    for finding in found:
        ok = False if finding.level == "error" else None
        yield Diagnosis("account", ok, finding.message, finding.hint if ok is False else None, _LOGIN)
    if not any(finding.level == "error" for finding in found):
        yield Diagnosis("account", True, f"the key is accepted, and {o.base_model} is there")
