"""Notify observers (trackers, and plugins that implement a notifying hook) of what happens in a run.

Each observer has a thread of its own behind a bounded queue, so that one which raises, hangs or waits for a
network delays nothing: it is dropped with a warning. A tracker may have a process of its own as well
(`tracker_process`).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..api import Tracker
from ..plugins import Plugins
from ..text import one_line
from .tracker_process import RemoteError, TrackerProcess

_QUEUE_SIZE = 1000  # events; an observer that far behind is dropped
_SILENCE = 2.0  # seconds of waiting, after which it is said for what

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
        self,
        name: str,
        functions: Mapping[str, Callable[..., object]],
        patience: float,
        warn: Callable[[str], None],
        end: Callable[[], None] = lambda: None,  # called once it is dropped or closed
    ) -> None:
        self.name = name
        self.patience = patience
        self._functions = functions
        self._warn = warn
        self._end = end
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

    def close(self, began: float, hurry: Callable[[], bool] = lambda: False) -> None:
        """Let the thread finish what is queued, within its patience since `began` (monotonic seconds).

        `hurry` says whether the user does not want to wait.
        """
        deadline = began + self.patience
        ending = False
        while self._thread.is_alive() and time.monotonic() < deadline and not hurry():
            if not ending:
                with contextlib.suppress(queue.Full):
                    self._queue.put_nowait(None)
                    ending = True
            self._thread.join(0.05)
        if self._thread.is_alive() and not self._dropped:
            stopped = hurry() and time.monotonic() < deadline
            self._drop("was not waited for" if stopped else f"did not finish within {self.patience:g} s")
        self._end()

    @property
    def is_busy(self) -> bool:
        return self._thread.is_alive() and not self._dropped

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            method, arguments = item
            function = self._functions[method]
            try:
                function(**_accepted(function, arguments))
            except Exception as error:  # whatever a plugin raises must not end a run
                kind = error.kind if isinstance(error, RemoteError) else type(error).__name__
                self._drop(f"raised {kind} in {getattr(function, '__name__', method)}: {one_line(error)}")
                return

    def _drop(self, why: str) -> None:
        if self._dropped:  # its thread may come back long after the run
            return
        self._dropped = True
        self._warn(f"observer {self.name!r} {why}; it is dropped, the run continues")
        self._end()


def _accepted(function: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that an implementation takes: a hook may take fewer than it is given."""
    names = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in names.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in names}


class Observers:
    """All observers of one run: the trackers that its recipe names, and plugins with notifying hooks."""

    def __init__(
        self,
        plugins: Plugins | None,
        trackers: Sequence[tuple[str, Tracker]],
        folder: Path,
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._say = say
        hooks = _hook_functions(plugins) if plugins is not None else {}
        self._observers = [Observer(name, functions, Tracker.patience, warn) for name, functions in hooks.items()]
        for number, (name, tracker) in enumerate(trackers):
            tell = _teller(name, say, warn)
            if tracker.own_process:
                process = TrackerProcess(folder, number, tracker, tell)
                functions = {method: functools.partial(process.call, method) for method in _overridden(tracker)}
                self._observers.append(Observer(name, functions, tracker.patience, warn, process.end))
            else:
                tracker._tell = tell
                self._observers.append(Observer(name, _overridden(tracker), tracker.patience, warn))

    def notify(self, method: str, **arguments: Any) -> None:
        for observer in self._observers:
            observer.notify(method, arguments)

    def close(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """Wait for each, within its patience and until `hurry` (Ctrl-C) says that the user does not want to."""
        began = time.monotonic()
        shown = threading.Timer(_SILENCE, self._say_what_is_awaited)
        shown.daemon = True
        shown.start()
        for observer in self._observers:
            observer.close(began, hurry)
        shown.cancel()

    def _say_what_is_awaited(self) -> None:
        names = [observer.name for observer in self._observers if observer.is_busy]
        longest = max((observer.patience for observer in self._observers if observer.is_busy), default=0.0)
        if names:
            self._say(f"waiting for {' and '.join(names)}, at most {longest:g} s; Ctrl-C ends the waiting")


def _teller(name: str, say: Callable[[str], None], warn: Callable[[str], None]) -> Callable[[str, str], None]:
    """Return what passes on the words of one tracker."""
    return lambda how, text: (warn if how == "warn" else say)(f"{name}: {text}")


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
