"""Which provider a run talks to: the recipe's, or a server of the run's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ftkit.api import Run
from ftkit.errors import InputError

from ._client import Provider, api_key, base_url, is_loopback, key_env

if TYPE_CHECKING:
    from .options import ManagedOptions


@contextlib.contextmanager
def connect(options: ManagedOptions, run: Run | None, patience: float | None = None) -> Iterator[Provider]:
    """Yield the provider of a run. Raises InputError where its address or key is missing."""
    url = base_url(options)
    if url is None and options.dialect == "local" and run is not None:
        from ._local import server_for

        url = server_for(run)
    problem = connection_problem(options, url)
    if problem is not None or url is None:
        raise InputError(*(problem or ("backend.base_url is missing", None)))
    provider = Provider(options, url, patience, run.dir if run is not None else None)
    try:
        yield provider
    finally:
        provider.close()
        if run is not None and run.sealed:  # nothing else ends the server of a run that is only used
            from ._local import stop

            stop(run)


def connection_problem(options: ManagedOptions, url: str | None) -> tuple[str, str] | None:
    """Return what is missing or wrong in the address or the key, as (message, hint); None where nothing is."""
    if url is None and options.dialect != "local":
        return (
            f"dialect {options.dialect} needs backend.base_url",
            "for Azure: https://RESOURCE.openai.azure.com/openai/v1/",
        )
    name = key_env(options)
    key = api_key(options)
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        return (
            f"the key in {name} contains a character that no key has: a space, a line break or a curly quote",
            "copy the key again, without the text around it",
        )
    if name is not None and not (url and is_loopback(url)) and not key:
        return f"no API key: {name} is not set", f"set it in the environment, or write {name}=... into a file .env here"
    return None
