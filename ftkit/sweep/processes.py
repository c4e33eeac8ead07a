"""The processes of a sweep's runs: started, followed line by line, interrupted, and awaited."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable

from ..console import Console
from ..directory import RunDirectory

_ENDS_WITHIN = 60.0  # seconds that an interrupted run has to end by itself


class Process:
    """One run in a process of its own; what it says is shown with `label` before each line.

    `parallel` is how many runs of the sweep share the processor cores.
    """

    def __init__(self, run: RunDirectory, label: str, console: Console, parallel: int = 1) -> None:
        self.run = run
        self._label, self._console = label, console
        self._last: deque[str] = deque(maxlen=1)
        self._interrupted = False
        # A session of its own: Ctrl-C reaches the sweep alone, which then interrupts its runs.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ftkit.sweep.child", str(run.dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=_environment(parallel),
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"sweep {label}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if line.strip():
                self._last.append(line.strip())
            if line.strip() and not self._interrupted:
                self._console.say(f"{self._label} {line.rstrip()}")

    @property
    def ended(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        status = self._process.poll()
        if status is not None:
            self._reader.join(5)
            for stream in (self._process.stdin, self._process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        return status

    @property
    def last_line(self) -> str:
        return self._last[-1] if self._last else ""

    def interrupt(self) -> None:
        """Interrupt the run as Ctrl-C does; what it says of that is not shown."""
        self._interrupted = True
        with contextlib.suppress(OSError):
            self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._process.kill()


def stop(processes: Iterable[Process]) -> None:
    """Interrupt processes and wait for their end; one that does not end in time is killed, and resumes all the same."""
    processes = list(processes)
    for process in processes:
        process.interrupt()
    deadline = time.monotonic() + _ENDS_WITHIN
    while any(p.ended is None for p in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in processes:
        if process.ended is None:
            process.kill()


def _environment(parallel: int) -> dict[str, str]:
    """Return the variables of a run. Where several runs share the cores, each gets its share of threads, unless the user
    has set their number: PyTorch's threads wait actively, and too many of them slow each other down several times."""
    given = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    if parallel > 1:
        given.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // parallel)))
    return given
