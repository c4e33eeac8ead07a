"""Tell observers (trackers, and any plugin that implements a notifying hook) what happens in a run.

Each observer works in a thread of its own behind a bounded queue, so that one which raises, hangs or
waits for a network delays nothing: it is warned about and dropped.
"""

from __future__ import annotations

import contextlib
import inspect
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from .plugins import Plugins

_QUEUE_SIZE = 1000  # events; an observer that far behind loses further log lines, and is told of
_PATIENCE = 10.0  # seconds that a run waits at its end for all observers together


class Observer:
    """One plugin's notifying hooks, called one after the other in one thread."""

    def __init__(self, name: str, plugin: object, warn: Callable[[str], None]) -> None:
        self.name = name
        self.plugin = plugin
        self._warn = warn
        self._queue: queue.Queue[tuple[str, dict[str, Any]] | None] = queue.Queue(_QUEUE_SIZE)
        self._dropped = False
        self._thread = threading.Thread(target=self._work, name=f"observer-{name}", daemon=True)
        self._thread.start()

    def tell(self, hook: str, arguments: dict[str, Any]) -> None:
        if self._dropped or not hasattr(self.plugin, hook):
            return
        try:
            self._queue.put_nowait((hook, arguments))
        except queue.Full:
            self._drop(f"is {_QUEUE_SIZE} events behind")

    def close(self, deadline: float) -> None:
        """Let the thread finish what is queued, until `deadline` (monotonic seconds)."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=max(0.0, deadline - time.monotonic()))
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive() and not self._dropped:
            self._drop("did not finish in time")

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            hook, arguments = item
            function = getattr(self.plugin, hook)
            try:
                function(**_accepted(function, arguments))
            except Exception as error:  # whatever a stranger's tracker raises must not end a run
                self._drop(f"raised {type(error).__name__} in {hook}: {' '.join(str(error).split())}")
                return

    def _drop(self, why: str) -> None:
        if self._dropped:  # its thread may come back long after the run
            return
        self._dropped = True
        self._warn(f"observer {self.name!r} {why}; it is left out from here on, the run goes on")


def _accepted(function: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that a hook implementation asks for: it may take fewer than the hook gives."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in names}


class Observers:
    """All observers of one run: the trackers that its recipe names, and plugins with notifying hooks."""

    def __init__(self, plugins: Plugins, trackers: list[tuple[str, object]], warn: Callable[[str], None]) -> None:
        modules = [(str(plugins.manager.get_name(p)), p) for p in plugins.manager.get_plugins()]
        notifying = [(name, p) for name, p in modules if any(hasattr(p, hook) for hook in NOTIFYING)]
        self._observers = [Observer(name, plugin, warn) for name, plugin in [*notifying, *trackers]]

    def tell(self, hook: str, **arguments: Any) -> None:
        for observer in self._observers:
            observer.tell(hook, arguments)

    def close(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        for observer in self._observers:
            observer.close(deadline)


NOTIFYING = (
    "ftkit_run_started",
    "ftkit_metrics_logged",
    "ftkit_stage_finished",
    "ftkit_run_failed",
    "ftkit_run_finished",
)
