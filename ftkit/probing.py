"""Look at what may be absent, hang or crash, within a time limit: modules, servers, and code in a process of its own."""

from __future__ import annotations

import contextlib
import functools
import http.client
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from .text import one_line

T = TypeVar("T")

SECONDS = 5.0  # for one answer of a server
_LONGEST = 1_000_000  # bytes of an answer that are read


def missing_modules(modules: Iterable[str]) -> list[str]:
    """Return those modules that cannot be found; nothing is imported."""
    return [module for module in modules if not _installed(module)]


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


_IMPORTS = """
import contextlib, importlib, json, sys
found = {}
with contextlib.redirect_stdout(sys.stderr):
    for module in sys.argv[1:]:
        print("importing", module)
        try:
            importlib.import_module(module)
        except Exception as error:
            found = {"module": module, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            break
print(json.dumps(found))
"""


@functools.cache
def import_error(modules: tuple[str, ...], seconds: float = 150.0) -> tuple[str, str] | None:
    """Import modules in a process of its own. Return the first that fails, and why; None where all can be imported.

    Where the process crashes, the module is the one that it was importing. Asks once for the same modules.
    """
    outcome = in_python(["-c", _IMPORTS, *modules], seconds)
    if outcome.result is None:
        crashed = next((m for m in modules if outcome.error.endswith(f"importing {m}")), modules[0])
        return crashed, outcome.error
    return (outcome.result["module"], outcome.result["error"]) if outcome.result else None


# ---------------------------------------------------------------- a time limit


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return what `call` returns, or raise what it raises. Raises TimeoutError after `seconds`: the call is left alone.

    For calls that no timeout of their own ends, such as the lookup of a host's name.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return results[0]


# ---------------------------------------------------------------- servers


def http_status(
    url: str, headers: Mapping[str, str] | None = None, data: bytes | None = None, seconds: float = SECONDS
) -> tuple[int, bytes]:
    """Return the status and the body of one request: GET, or POST where there is `data`. Redirects are not followed.

    Raises OSError, with a short text, where the server cannot be reached or does not answer within `seconds`. A proxy
    of the environment is used, but not for a server on this machine.
    """
    try:
        return within(seconds + 1, lambda: _requested(url, dict(headers or {}), data, seconds))
    except urllib.error.URLError as error:
        raise OSError(one_line(error.reason, 200)) from None
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}: {one_line(error, 200)}") from None
    except ValueError:  # its text may hold a header, and so a key
        raise OSError("the address, or a header, holds a character that is not allowed") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the headers, and with them a key, to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _requested(url: str, headers: dict[str, str], data: bytes | None, seconds: float) -> tuple[int, bytes]:
    host = urlsplit(url).hostname or ""
    here = host == "localhost" or host == "::1" or host.startswith("127.")
    handlers: list[Any] = [_NoRedirect, *([urllib.request.ProxyHandler({})] if here else [])]
    request = urllib.request.Request(url, data, {"User-Agent": "ftkit", **headers})
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=seconds) as answer:
            return answer.status, answer.read(_LONGEST)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(_LONGEST)


# ---------------------------------------------------------------- code that may crash


@dataclass(frozen=True)
class Outcome:
    """How a process ended: `result` is the JSON value that its last line on stdout holds; `error` says why there is none."""

    result: Any = None
    error: str = ""


def in_python(arguments: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None) -> Outcome:
    """Run this Python with `arguments` in a process of its own, such as ["-m", "my_plugin._probe"]; never raises.

    The process has `seconds`, and is then killed together with those that it started. `environment` is added to that
    of this process.
    """
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return Outcome(error=f"not finished after {seconds:.0f} s")
    finally:
        _end(process)
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        return Outcome(error=f"crashed with {name}{_after(err)}")
    if process.returncode:
        return Outcome(error=_last(err) or f"ended with status {process.returncode}")
    try:
        return Outcome(json.loads(out.splitlines()[-1]))
    except (ValueError, IndexError):
        return Outcome(error="ended without a result")


def _end(process: subprocess.Popen[str]) -> None:
    """Kill the process and all that it started, where any of them is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last(text: str) -> str:
    """Return the last line that says something: of a traceback, the exception."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return one_line(lines[-1], 300) if lines else ""


def _after(text: str) -> str:
    said = _last(text)
    return f": {said}" if said else ""
