"""Reach the hub: which commit a repository is at, or in one message why a model or dataset cannot be had from it."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import socket
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import InputError
from .probing import http_status, within

_PAGES = {"model": "huggingface.co/", "dataset": "huggingface.co/datasets/"}
_KEYS = {"model": "backend.base_model", "dataset": "dataset.path"}
_REVISIONS = {"model": "backend.revision", "dataset": "dataset.revision"}

_PATIENCE = 5.0  # seconds to reach the hub
_ATTEMPTS = 3  # of asking which commit a repository is at
_LONGEST_WAIT = 10.0  # seconds between two of them: a hub that wants more patience is reported instead
_LONGEST_SLEEP = 60  # seconds that a download waits because the hub says so
_COMMIT = re.compile(r"[0-9a-f]{40}")


@functools.cache
def prefer_cache_when_unreachable() -> None:
    """Switch the hub's libraries to their offline mode if the hub does not answer; call before loading from it.

    They retry a dead connection for a minute and more; offline, what is in the cache loads and the rest
    fails at once.
    """
    with contextlib.suppress(ImportError):
        _refuse_long_waits()
    url = urllib.parse.urlsplit(endpoint())
    if urllib.request.getproxies().get(url.scheme) and not urllib.request.proxy_bypass(url.hostname or ""):
        return  # a proxy resolves names for us: only the libraries can tell
    try:
        port = url.port or (80 if url.scheme == "http" else 443)
        socket.create_connection((url.hostname or "", port), _PATIENCE).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        # Modules that were imported earlier have already read the variable.
        for module, name in (("huggingface_hub.constants", "HF_HUB_OFFLINE"), ("datasets.config", "HF_HUB_OFFLINE")):
            if module in sys.modules:
                setattr(sys.modules[module], name, True)


# ---------------------------------------------------------------- which commit


def commit_of(kind: str, name: str, revision: str | None) -> str | None:
    """Return the commit, 40 hexadecimal digits, that `revision` (None: main) of a hub repository is at.

    `kind` is "model" or "dataset". The hub is asked once per preparation (see `forget_commits`), so that all
    downloads are of one commit while the branch moves. Where the hub does not answer, the local cache says which
    commit it last knew; None where it does not know. Raises InputError where the hub refuses.
    """
    if revision and _COMMIT.fullmatch(revision):
        return revision
    locked = _locked.get(f"{kind} {name} {revision or 'main'}")
    return locked or _asked(kind, name, revision or "main")


_locked: dict[str, str] = {}


@contextlib.contextmanager
def locked_commits(commits: Mapping[str, str]) -> Iterator[None]:
    """Let `commit_of` give these commits for a while, without asking: those that a run is to repeat.

    A key is "KIND NAME REVISION", such as "model acme/tiny main": as runs keep them in their state `hub`.
    """
    _locked.update(commits)
    try:
        yield
    finally:
        _locked.clear()


def forget_commits() -> None:
    """Ask the hub again for what follows: a new run in the same process takes the newest commit."""
    _asked.cache_clear()


@functools.cache
def _asked(kind: str, name: str, revision: str) -> str | None:
    from huggingface_hub import HfApi, constants

    prefer_cache_when_unreachable()
    reference = Path(constants.HF_HUB_CACHE, f"{kind}s--{name.replace('/', '--')}", "refs", revision)
    failure: Exception | None = None
    for attempt in range(0 if constants.HF_HUB_OFFLINE else _ATTEMPTS):
        try:
            info: Any = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=2 * _PATIENCE)
        except Exception as error:  # each version of the library has an HTTP client, and exceptions, of its own
            failure = error
            status = _status(_causes(error))
            if isinstance(error, ValueError) or (status is not None and status != 429 and status < 500):
                raise explain(kind, name, error, revision) from None
            wait = _wait(error, attempt)
            if attempt + 1 == _ATTEMPTS or wait > _LONGEST_WAIT:
                break
            time.sleep(wait)
        else:
            _remember(reference, info.sha)
            return str(info.sha)
    try:
        return reference.read_text().strip()
    except OSError:
        if failure is None:
            return None  # offline, and there may be a copy in the cache of another library
        raise explain(kind, name, failure, revision) from None


class _Busy(Exception):
    """The hub asks for more patience than a command has; `response` is its answer."""

    def __init__(self, response: Any) -> None:
        super().__init__(f"status {response.status_code}")
        self.response = response


def _refuse_long_waits() -> None:
    """Let a request fail at once where the hub asks to wait for long: its library would sleep for an hour, and say nothing."""
    from huggingface_hub import get_session

    def look(response: Any) -> None:
        wait = response.headers.get("retry-after", "")
        if response.status_code in (429, 503) and wait.isdigit() and int(wait) > _LONGEST_SLEEP:
            raise _Busy(response)

    session: Any = get_session()
    hooks = getattr(session, "event_hooks", None)  # absent in old versions, whose library does not wait
    if hooks is not None:
        session.event_hooks = {**hooks, "response": [*hooks.get("response", ()), look]}


def _remember(reference: Path, commit: str) -> None:
    """Write into the cache which commit a branch is at, as the libraries do for what is not downloaded by its commit."""
    try:
        reference.parent.mkdir(parents=True, exist_ok=True)
        beside = reference.with_name(f".{reference.name}.{os.getpid()}")
        beside.write_text(commit)
        beside.replace(reference)
    except OSError:
        pass  # a cache that cannot be written is reported by what is downloaded into it


def _wait(error: BaseException, attempt: int) -> float:
    """Return the seconds to wait before the next attempt: as the hub says, else 1, 2, ..."""
    try:
        return float(_header(error, "retry-after") or 2**attempt)
    except ValueError:  # a date
        return 2.0**attempt


def _header(error: BaseException, name: str) -> str | None:
    found = (getattr(getattr(e, "response", None), "headers", {}).get(name) for e in _causes(error))
    return next((str(value) for value in found if value), None)


# ---------------------------------------------------------------- what went wrong


def explain(kind: str, name: str, error: BaseException, revision: str | None = None) -> InputError:
    """Return the message for `error`, raised while loading hub `kind` ("model" or "dataset") `name`.

    The libraries raise a dozen unrelated types for one failed download, so the whole chain of causes is read.
    """
    causes = list(_causes(error))
    status = _status(causes)
    types = {cls.__name__ for e in causes for cls in type(e).__mro__}
    text = " ".join(f"{type(e).__name__} {e}" for e in causes)
    what = f"{kind} {name!r}"
    full = next((e for e in causes if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT)), None)
    denied = next((e for e in causes if isinstance(e, OSError) and e.errno in (errno.EACCES, errno.EROFS)), None)
    if full or denied:
        why = "the disk is full" if full else f"the cache cannot be written ({denied.filename if denied else ''})"
        return InputError(f"{what} cannot be downloaded: {why}", "set HF_HOME to a folder with room that is writable")
    if re.search(r"Invalid (credentials|user token|username)|token .{0,20}(is )?expired", text, re.I):
        return InputError(f"the hub does not know the token that {what} is asked for with",
                          "run `hf auth login`, or set HF_TOKEN to a valid token, or unset it")  # fmt: skip
    if "GatedRepoError" in types or re.search(r"is a gated (dataset|repo)|Access to \w+ \S+ is restricted", text):
        return _not_allowed(kind, name)
    if "RevisionNotFoundError" in types or re.search(r"not a valid git identifier|Invalid rev id", text):
        at = f" {revision!r}" if revision else ""
        return InputError(f"{what} has no revision{at} on the hub",
                          f"{_REVISIONS[kind]} is a branch, a tag or a commit: see {_PAGES[kind]}{name}/commits")  # fmt: skip
    if types & {"RepositoryNotFoundError", "DatasetNotFoundError", "HFValidationError"} or re.search(
        r"not a valid model identifier|Repo id must", text
    ):
        return InputError(
            f"there is no {what} on the hub (or it is private)",
            f"check the spelling of {_KEYS[kind]}; if it is private: `hf auth login`",
        )
    if status == 429:
        wait = next((w for e in causes if (w := _header(e, "retry-after"))), None)
        again = f"in {wait} seconds" if wait and wait.isdigit() else "in a few minutes"
        return InputError(f"{what} cannot be downloaded: the hub received too many requests (status 429)",
                          f"run it again {again}; with `hf auth login` or HF_TOKEN the limit is higher")  # fmt: skip
    if status is not None and status >= 500:
        return InputError(f"{what} cannot be downloaded: the hub has a failure (status {status})",
                          "run it again later; finished downloads are kept in the cache")  # fmt: skip
    if status in (401, 403) or re.search(r"\b40[13]\b", text):
        return _not_allowed(kind, name)
    if re.search(
        r"RemoteProtocolError|IncompleteRead|ChunkedEncoding|[Cc]onsistency check failed|without sending complete"
        r"|peer closed|Connection broken|ReadError",
        text,
    ):
        return InputError(f"{what} cannot be downloaded: the connection to the hub broke",
                          "run it again; finished downloads are kept in the cache")  # fmt: skip
    if re.search(
        r"Connect|resolve host|Name or service|Timeout|Offline|offline|Max retries|nreachable|Couldn't reach|LocalEntryNotFound"
        r"|find cache for",
        text,
    ):
        return InputError(
            f"{what} is neither a local folder nor in the local cache, and the hub cannot be reached",
            "connect once (it is cached then and works with HF_HUB_OFFLINE=1), or download it elsewhere and name its folder: "
            f"--set {_KEYS[kind]}=FOLDER",
        )
    if status == 404 or re.search(r"\b404\b", text):
        return InputError(f"there is no {what} on the hub (or it is private)",
                          "check the spelling; if it is private: `hf auth login`")  # fmt: skip
    return InputError(f"{what} cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _not_allowed(kind: str, name: str) -> InputError:
    return InputError(
        f"{kind} {name!r} is gated or private, and this machine may not read it",
        f"accept its licence at {_PAGES[kind]}{name}, then run `hf auth login` or set HF_TOKEN",
    )


def _status(causes: Iterator[BaseException] | list[BaseException]) -> int | None:
    """Return the HTTP status of the last failed answer in a chain of causes."""
    found = (getattr(getattr(e, "response", None), "status_code", None) for e in causes)
    return next((s for s in found if isinstance(s, int)), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(8):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


# ---------------------------------------------------------------- what can be asked of it


def endpoint() -> str:
    """Return the address of the hub."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def token() -> str | None:
    """Return the token that the hub is asked with; None where no one is logged in."""
    try:
        from huggingface_hub import get_token
    except ImportError:
        return os.environ.get("HF_TOKEN") or None
    return get_token()


def account_status() -> int:
    """Return the status with which the hub answers who the token belongs to: 200, or 401 for a token it does not know.

    Without a token it is 401. Raises OSError where the hub does not answer in seconds.
    """
    known = token()
    headers = {"Authorization": f"Bearer {known}"} if known else {}
    return http_status(f"{endpoint()}/api/whoami-v2", headers, seconds=_PATIENCE)[0]


def in_cache(kind: str, name: str) -> bool:
    """Return whether the local cache holds files of a repository, of any commit."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return False
    return any(Path(constants.HF_HUB_CACHE, f"{kind}s--{name.replace('/', '--')}", "snapshots").glob("*/*"))


def size_of(kind: str, name: str, revision: str | None) -> int:
    """Return the bytes of a repository's files, 0 where the hub does not say. Asks once.

    Raises InputError where they may not be read: there is no such repository or revision, or it is gated.
    """
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    def ask() -> Any:
        about = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=_PATIENCE, files_metadata=True)
        # The hub describes a gated repository to everybody: only its files say who may read them.
        url = hf_hub_url(name, "config.json", repo_type=kind, revision=about.sha)
        with contextlib.suppress(EntryNotFoundError):
            get_hf_file_metadata(url, timeout=_PATIENCE)
        return about

    try:
        about = within(4 * _PATIENCE, ask)
    except Exception as error:
        raise explain(kind, name, error, revision) from None
    return sum(file.size or 0 for file in about.siblings or ())
