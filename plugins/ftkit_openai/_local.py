"""The server that the `local` dialect starts for a run, and stops with it."""

from __future__ import annotations

import atexit
import contextlib
import threading
from pathlib import Path

from ftkit.api import Run

_running: dict[Path, tuple[contextlib.ExitStack, str]] = {}
_lock = threading.Lock()


def server_for(run: Run) -> str:
    """Return the address of this run's own server, started on first use; its data are in the run directory."""
    from .server.local import local_server

    with _lock:
        if run.dir not in _running:
            stack = contextlib.ExitStack()
            _running[run.dir] = (stack, stack.enter_context(local_server(run.path("train", "server"))))
        return _running[run.dir][1]


def stop(run: Run) -> None:
    """Stop the server of a run, where it has one; its data stay."""
    with _lock:
        stack, _ = _running.pop(run.dir, (None, ""))
    if stack is not None:
        stack.close()


@atexit.register
def _stop_all() -> None:
    for stack, _ in _running.values():
        with contextlib.suppress(Exception):  # the process ends; the server ends with it all the same
            stack.close()
    _running.clear()
