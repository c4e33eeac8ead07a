"""What people see while a run works: a line that changes on a terminal and in a notebook, plain lines when piped.

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from . import terminal
from .lang import joined, tr
from .text import duration, visible

_REDRAWN = 0.2  # seconds between two versions of the line that changes
_PIPED = 15.0  # seconds between two lines of progress where they stay
_SILENT = 30.0  # seconds without any line after which one says that work continues


@dataclass
class _Work:
    """What is going on: `seconds` had gone into it when it was last heard of, at `heard`."""

    what: str
    done: int = 0
    total: int = 0
    detail: str = ""
    seconds: float = 0.0
    heard: float = field(default_factory=time.monotonic)
    first: tuple[int, float] = (0, 0.0)  # of `total`, and `seconds`, when this process began to count
    left: float | None = None  # seconds, where what works knows them better

    def line(self) -> str:
        """Return one line: how far it is, how long it has taken, and how long it will still take."""
        seconds = self.seconds + time.monotonic() - self.heard
        if not self.total:
            return f"  {joined([self.what, duration(seconds)])}"
        parts = [f"{self.what}: {self.done:,}/{self.total:,}", self.detail, duration(seconds), self._left(seconds)]
        return f"  {joined([part for part in parts if part])}"

    def _left(self, seconds: float) -> str:
        if self.left is not None and self.done < self.total:
            return tr("{time} left", time=duration(max(0.0, self.left - (seconds - self.seconds))))
        done, began = self.first  # what was done before this process began says nothing of its speed
        if not done < self.done < self.total or self.seconds <= began:
            return ""
        expected = (self.seconds - began) / (self.done - done) * (self.total - self.done)
        return tr("{time} left", time=duration(max(0.0, expected - (seconds - self.seconds))))


class Console:
    """Progress and messages of a run. `debug` shows the libraries' output as well."""

    def __init__(self, debug: bool = False, silent: bool = False) -> None:
        self.debug = debug
        self.silent = silent
        self._stream: TextIO = sys.stderr
        self._notebook = terminal.in_notebook()
        self._work: _Work | None = None
        self._last_progress = self._last_line = 0.0
        self._shown = 0  # cells of the line that changes
        self._lock = threading.RLock()

    @property
    def live(self) -> bool:
        """Whether progress is one line that changes."""
        return self._notebook or terminal.steerable(self._stream)

    # ---- messages

    def say(self, text: str) -> None:
        """Print one message."""
        self._say(visible(text))

    def warn(self, text: str) -> None:
        self._say(terminal.paint(tr("warning:"), "yellow", stream=self._stream) + f" {visible(text)}")

    def _say(self, text: str) -> None:
        if self.silent:
            return
        with self._lock, contextlib.suppress(OSError):  # a terminal that was closed does not end a run
            self._erase()
            print(text, file=self._stream, flush=True)
            self._last_line = time.monotonic()

    def confirm(self, question: str) -> bool:
        """Ask the user for a yes; False where no person is at a terminal."""
        if self.silent or not (self._stream.isatty() and sys.stdin.isatty()):
            return False
        with self._lock:  # nothing else is printed until the answer is there
            self._erase()
            print(f"{visible(question)} [y/N] ", end="", file=self._stream, flush=True)
            return sys.stdin.readline().strip().lower() in ("y", "yes")

    # ---- progress

    @contextlib.contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Show that `what` is going on, and for how long, until the block ends."""
        with self._lock:
            before, self._work = self._work, _Work(what)
        try:
            yield
        finally:
            with self._lock, contextlib.suppress(OSError):
                self._erase()
                self._work = before

    def phase(self, what: str) -> None:
        """Say what the work in progress does now; its time continues."""
        with self._lock:
            work = self._work
            self._work = _Work(what) if work is None else _Work(what, seconds=work.seconds, heard=work.heard)
        if self.live:
            self._show(force=True)
        else:
            self._last_progress = time.monotonic()  # a line follows if it takes long

    def progress(
        self,
        what: str,
        done: int,
        total: int,
        seconds: float | None = None,
        detail: str = "",
        left: float | None = None,
    ) -> None:
        """Show how far a stage is: one line that changes on a terminal, one every 15 s when piped.

        `seconds` went into it so far; without them, this process counts from the start of the stage. `left` are the
        seconds that it will still take, where they are known better than from the share that is done.
        """
        now = time.monotonic()
        with self._lock:
            before = self._work or _Work(what)
            if seconds is None:
                seconds = before.seconds + now - before.heard
            first = before.first if (before.what, before.total) == (what, total) else (done, seconds)
            self._work = _Work(what, done, total, detail, seconds, now, first, left)
        self._show(force=done >= total)

    def _show(self, force: bool = False) -> None:
        """Draw the line of progress, if it is time for it."""
        now, work = time.monotonic(), self._work
        if self.silent or work is None:
            return
        if not force and now - self._last_progress < (_REDRAWN if self.live else _PIPED):
            return
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._last_progress = self._last_line = now
            if not self.live:
                print(work.line(), file=self._stream, flush=True)
                return
            text = terminal.fit(visible(work.line()), terminal.columns(self._stream, 2) - 1)
            self._erase()
            print(text, end="", file=self._stream, flush=True)
            self._shown = terminal.cells(text)

    def _erase(self) -> None:
        """Take the line that changes away."""
        if self._shown:
            gone = f"\r{' ' * self._shown}\r" if self._notebook else "\r\x1b[2K"
            print(gone, end="", file=self._stream, flush=True)
            self._shown = 0

    def _beat(self, stop: threading.Event) -> None:
        """Keep the line of progress alive between two events."""
        while not stop.wait(1.0 if self.live else 5.0):
            if self.live or time.monotonic() - self._last_line > _SILENT:
                self._show(force=True)

    # ---- what libraries print

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
        threads = [threading.Thread(target=self._beat, args=(stop,), daemon=True)]
        if self.debug:
            threads.append(threading.Thread(target=self._follow, args=(log, log.stat().st_size, stop), daemon=True))
        try:
            # Notebooks and test runners replace sys.stderr by something without a file descriptor.
            if _is_fd(saved_stream, 2):
                self._stream = os.fdopen(
                    os.dup(kept[1][1]), "w", buffering=1, encoding=saved_stream.encoding, errors=saved_stream.errors
                )
            target = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            for fd, _ in kept:
                os.dup2(target, fd)
            os.close(target)
            root.addHandler(handler)
            root.setLevel(logging.INFO)
            for thread in threads:
                thread.start()
            out = handler.stream
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                yield
        finally:
            stop.set()
            for thread in threads:
                if thread.is_alive():
                    thread.join(2)
            root.removeHandler(handler)
            root.setLevel(level)
            with contextlib.suppress(OSError):  # the disk is full
                handler.stream.close()
            for fd, copy in kept:
                os.dup2(copy, fd)
                os.close(copy)
            with self._lock, contextlib.suppress(OSError):  # the terminal was closed
                self._erase()
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
