"""Reach the hub, or say at once and in one message why a model or dataset cannot be had from it."""

from __future__ import annotations

import functools
import os
import re
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator

from .errors import InputError

_PAGES = {"model": "huggingface.co/", "dataset": "huggingface.co/datasets/"}


_PATIENCE = 5.0  # seconds to reach the hub


@functools.cache
def prefer_cache_when_unreachable() -> None:
    """Switch the hub's libraries to their offline mode if the hub does not answer; call before loading from it.

    They retry a dead connection for a minute and more; offline, what is in the cache loads and the rest
    fails at once.
    """
    if urllib.request.getproxies().get("https"):
        return  # a proxy resolves names for us: only the libraries can tell
    url = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        socket.create_connection((url.hostname or "", url.port or 443), _PATIENCE).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        # Modules that were imported earlier have already read the variable.
        for module, name in (("huggingface_hub.constants", "HF_HUB_OFFLINE"), ("datasets.config", "HF_HUB_OFFLINE")):
            if module in sys.modules:
                setattr(sys.modules[module], name, True)


def explain(kind: str, name: str, error: BaseException) -> InputError:
    """Return the message for `error`, raised while loading hub `kind` ("model" or "dataset") `name`.

    The libraries raise a dozen unrelated types for one failed download, so the whole chain of causes is read.
    """
    chain = " ".join(f"{type(e).__name__} {e}" for e in _causes(error))
    if re.search(r"Gated|gated repo|\b401\b|\b403\b", chain):
        return InputError(
            f"{kind} {name!r} is gated or private, and this machine may not read it",
            f"accept its licence at {_PAGES[kind]}{name}, then run `hf auth login` or set HF_TOKEN",
        )
    if re.search(
        r"Connect|resolve host|Name or service|Timeout|Offline|offline|Max retries|nreachable|Couldn't reach|LocalEntryNotFound",
        chain,
    ):
        return InputError(
            f"{kind} {name!r} is neither a local folder nor in the local cache, and the hub cannot be reached",
            "connect once (it is cached then and works with HF_HUB_OFFLINE=1), or download it elsewhere and name its folder: "
            f"--set {'dataset.path' if kind == 'dataset' else 'backend.base_model'}=FOLDER",
        )
    if re.search(r"RepositoryNotFound|DatasetNotFound|\b404\b|not a valid model identifier|Repo id must", chain):
        return InputError(
            f"there is no {kind} {name!r} on the hub (or it is private)",
            "check the spelling; if it is private: `hf auth login`",
        )
    return InputError(f"{kind} {name!r} cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(8):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__
