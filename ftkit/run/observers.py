"""Notify observers (trackers, and plugins that implement a notifying hook) of what happens in a run.

Each observer has a thread of its own behind a bounded queue, so that one which raises, hangs or waits for a
network delays nothing: it is dropped with a warning.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..api import Tracker
from ..plugins import Plugins
from ..text import one_line

_QUEUE_SIZE = 1000  # events; an observer that far behind is dropped

# method of a Tracker -> the hook that notifies plugin modules of the same
HOOKS = {
    "started": "ftkit_run_started",
    "logged": "ftkit_metrics_logged",
    "stage_finished": "ftkit_stage_finished",
    "failed": "ftkit_run_failed",
    "finished": "ftkit_run_finished",
}


class Observer:
    """One plugin's functions, by the method of a Tracker, called one after the other in one thread."""

    def __init__(
        self, name: str, functions: Mapping[str, Callable[..., object]], patience: float, warn: Callable[[str], None]
    ) -> None:
        self.name = name
        self.patience = patience
        self._functions = functions
        self._warn = warn
        self._queue: queue.Queue[tuple[str, dict[str, Any]] | None] = queue.Queue(_QUEUE_SIZE)
        self._dropped = False
        self._thread = threading.Thread(target=self._work, name=f"observer-{name}", daemon=True)
        self._thread.start()

    def notify(self, method: str, arguments: dict[str, Any]) -> None:
        if self._dropped or method not in self._functions:
            return
        try:
            self._queue.put_nowait((method, arguments))
        except queue.Full:
            self._drop(f"is {_QUEUE_SIZE} events behind")

    def close(self, began: float) -> None:
        """Let the thread finish what is queued, within its patience since `began` (monotonic seconds)."""
        deadline = began + self.patience
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=max(0.0, deadline - time.monotonic()))
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive() and not self._dropped:
            self._drop(f"did not finish within {self.patience:g} s")

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            method, arguments = item
            function = self._functions[method]
            try:
                function(**_accepted(function, arguments))
            except Exception as error:  # whatever a plugin raises must not end a run
                self._drop(f"raised {type(error).__name__} in {function.__name__}: {one_line(error)}")
                return

    def _drop(self, why: str) -> None:
        if self._dropped:  # its thread may come back long after the run
            return
        self._dropped = True
        self._warn(f"observer {self.name!r} {why}; it is dropped, the run continues")


def _accepted(function: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that an implementation takes: a hook may take fewer than it is given."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in names}


class Observers:
    """All observers of one run: the trackers that its recipe names, and plugins with notifying hooks."""

    def __init__(self, plugins: Plugins, trackers: list[tuple[str, Tracker]], warn: Callable[[str], None]) -> None:
        self._observers = [
            Observer(name, functions, Tracker.patience, warn) for name, functions in _hook_functions(plugins).items()
        ]
        self._observers += [Observer(name, _overridden(t), t.patience, warn) for name, t in trackers]

    def notify(self, method: str, **arguments: Any) -> None:
        for observer in self._observers:
            observer.notify(method, arguments)

    def close(self) -> None:
        began = time.monotonic()
        for observer in self._observers:
            observer.close(began)


def _hook_functions(plugins: Plugins) -> dict[str, dict[str, Callable[..., object]]]:
    """Return the decorated notifying hooks of each plugin module, by its name."""
    found: dict[str, dict[str, Callable[..., object]]] = {}
    for method, hook in HOOKS.items():
        for implementation in getattr(plugins.manager.hook, hook).get_hookimpls():
            found.setdefault(implementation.plugin_name, {})[method] = implementation.function
    return found


def _overridden(tracker: Tracker) -> dict[str, Callable[..., object]]:
    return {m: getattr(tracker, m) for m in HOOKS if getattr(type(tracker), m) is not getattr(Tracker, m)}


@contextlib.contextmanager
def follow(path: Path, notify: Callable[[dict[str, Any]], None], warn: Callable[[str], None]) -> Iterator[None]:
    """Call `notify` for each object that is added to a JSON Lines file meanwhile, by any process.

    An exception of `notify` costs that one event, and is warned about once.
    """
    start = path.stat().st_size if path.exists() else 0
    stop = threading.Event()
    failed: list[Exception] = []

    def handle(line: bytes) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            return
        if not isinstance(event, dict):
            return
        try:
            notify(event)
        except Exception as error:
            if not failed:
                warn(f"an event of {path.name} could not be shown ({type(error).__name__}: {one_line(error, 200)})")
            failed.append(error)

    def work() -> None:
        position, rest = start, b""
        while True:
            ended = stop.is_set()
            with contextlib.suppress(OSError):  # it may not be there yet, or be out of reach for a moment
                with open(path, "rb") as file:
                    file.seek(position)
                    data = file.read()
                position += len(data)
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    handle(line)
            if ended:
                return
            stop.wait(0.2)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
