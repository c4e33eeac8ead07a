"""report.html while a run works: written again every few seconds, at the cost of less than one per cent of its time."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..directory import RunDirectory
from ..files import Journal
from ..records import RunRecord
from ..report.alive import remove_sign_of_life, write_sign_of_life
from ..report.page.live import render_live
from ..report.unfinished import Progress, TrainingLog, look_at, snapshot

_EVERY = 5.0  # seconds between two pages
_SHARE = 0.005  # of the run's time that pages may take: where one takes long, the next comes later
PAGE = "report.html"


class LivePage:
    """The page of a run that this process executes. Whatever goes wrong with it is passed over: it never ends a run."""

    def __init__(self, run: RunDirectory, record: Callable[[], RunRecord]) -> None:
        """`record` returns the run's record as it is now."""
        self._run, self._record = run, record
        self._log = TrainingLog()
        self._progress: Progress | None = None
        self._lock = threading.Lock()  # progress comes from other threads
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._every = _EVERY

    def start(self) -> None:
        """Write the first page at once, and further ones from a thread."""
        with contextlib.suppress(Exception):
            for row in Journal(self._run.path("train", "log.jsonl")):
                if isinstance(row, dict):
                    self._log.add(row)
        self._log.restarted()
        self._write()
        self._thread = threading.Thread(target=self._work, name="live-page", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write no more pages: what follows is the report, or the page of a run that ended early."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        remove_sign_of_life(self._run)

    def ended_early(self) -> None:
        """Write the page that says what ended the run."""
        self.stop()
        with contextlib.suppress(Exception):
            self._replace(render_live(look_at(self._run, time.time())))

    # ---- what the page shows

    def stage(self) -> None:
        """Say that another stage begins."""
        with self._lock:
            self._progress = None

    def progress(self, what: str, done: int, total: int, seconds: float) -> None:
        """Say how far a measurement is; `seconds` are those that `done` rows took."""
        with self._lock:
            left = seconds / done * (total - done) if done else None
            self._progress = Progress(what, done, total, left)

    def logged(self, event: dict[str, Any]) -> None:
        """Take in one event of training."""
        with self._lock:
            self._log.add(event)
            if event.get("event") == "step":
                self._progress = self._log.progress

    # ---- writing

    def _work(self) -> None:
        while not self._stop.wait(self._every):
            self._write()

    def _write(self) -> None:
        with contextlib.suppress(Exception):  # a full disk, a deleted directory
            began, now = time.thread_time(), time.time()
            with self._lock:
                found = snapshot(self._run, self._record(), self._log, now)
                found = replace(found, progress=self._progress, every=self._every)
            self._replace(render_live(found))
            write_sign_of_life(self._run)
            self._every = max(_EVERY, (time.thread_time() - began) / _SHARE)

    def _replace(self, page: str) -> None:
        """Put the page in its place. It is not forced to the disk: after a power cut it may be an older one."""
        path = self._run.dir / PAGE  # not `run.path`: a deleted directory must not be made again
        temporary = path.with_name(f".{PAGE}.{os.getpid()}.tmp")
        try:
            temporary.write_text(page, encoding="utf-8", newline="\n")
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
