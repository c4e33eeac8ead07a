"""What people see while a run works: a progress line on a terminal, plain lines when piped.

Everything here goes to stderr; stdout belongs to results. While a stage works, whatever libraries
print goes to the run's debug.log instead (`quiet`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from .text import duration, visible


class Console:
    """Progress and messages of a run. `debug` shows the libraries' output as well."""

    def __init__(self, debug: bool = False, silent: bool = False) -> None:
        self.debug = debug
        self.silent = silent
        self._stream: TextIO = sys.stderr
        self._last = 0.0
        self._open_line = False
        self._lock = threading.Lock()

    @property
    def terminal(self) -> bool:
        return self._stream.isatty()

    def say(self, text: str) -> None:
        """Print one message."""
        if self.silent:
            return
        with self._lock, contextlib.suppress(OSError):  # a terminal that was closed does not end a run
            self._end_line()
            print(visible(text), file=self._stream, flush=True)

    def confirm(self, question: str) -> bool:
        """Ask the user for a yes; False where no person is at a terminal."""
        if self.silent or not (self.terminal and sys.stdin.isatty()):
            return False
        with self._lock:
            self._end_line()
            print(f"{visible(question)} [y/N] ", end="", file=self._stream, flush=True)
            return sys.stdin.readline().strip().lower() in ("y", "yes")

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}")

    def progress(self, what: str, done: int, total: int, seconds: float, detail: str = "") -> None:
        """Show how far a stage is: one line that changes on a terminal, one every 15 s when piped."""
        now = time.monotonic()
        if self.silent or (done < total and now - self._last < (0.2 if self.terminal else 15.0)):
            return
        self._last = now
        left = f", {duration(seconds / done * (total - done))} left" if 0 < done < total else ""
        text = f"  {what}: {done}/{total}{', ' + detail if detail else ''}, {duration(seconds)}{left}"
        with self._lock, contextlib.suppress(OSError):
            if self.terminal:
                width = (os.get_terminal_size(self._stream.fileno()).columns or 80) - 1
                print(f"\r\x1b[2K{text[:width]}", end="", file=self._stream, flush=True)
                self._open_line = True
            else:
                print(text, file=self._stream, flush=True)

    def _end_line(self) -> None:
        if self._open_line:
            print(file=self._stream, flush=True)
            self._open_line = False

    @contextlib.contextmanager
    def quiet(self, log: Path) -> Iterator[None]:
        """Send all that libraries print or log, from Python or C, to `log` (and show it too with --debug)."""
        log.parent.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        saved_stream, kept = self._stream, [(fd, os.dup(fd)) for fd in (1, 2)]
        handler = logging.StreamHandler(open(log, "a", encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger()
        level = root.level
        stop = threading.Event()
        follower = threading.Thread(target=self._follow, args=(log, log.stat().st_size, stop), daemon=True)
        try:
            # Notebooks and test runners replace sys.stderr by something without a file descriptor.
            if _is_fd(saved_stream, 2):
                self._stream = os.fdopen(
                    os.dup(kept[1][1]), "w", buffering=1, encoding="utf-8", errors="backslashreplace"
                )
            target = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            for fd, _ in kept:
                os.dup2(target, fd)
            os.close(target)
            root.addHandler(handler)
            root.setLevel(logging.INFO)
            if self.debug:
                follower.start()
            out = handler.stream
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                yield
        finally:
            stop.set()
            if follower.is_alive():
                follower.join(2)
            root.removeHandler(handler)
            root.setLevel(level)
            with contextlib.suppress(OSError):  # the disk is full
                handler.stream.close()
            for fd, copy in kept:
                os.dup2(copy, fd)
                os.close(copy)
            with self._lock, contextlib.suppress(OSError):  # the terminal was closed
                self._end_line()
                if self._stream is not saved_stream:
                    self._stream.close()
            self._stream = saved_stream

    def _follow(self, log: Path, start: int, stop: threading.Event) -> None:
        with open(log, encoding="utf-8", errors="replace") as file:
            file.seek(start)
            while True:
                text = file.read()
                if text:
                    with self._lock:
                        self._stream.write(text)
                        self._stream.flush()
                elif stop.wait(0.2):
                    return


def _is_fd(stream: Any, fd: int) -> bool:
    try:
        return bool(stream.fileno() == fd)
    except (OSError, ValueError, AttributeError):
        return False
