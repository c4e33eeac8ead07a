"""Keep run.json true: stages, status and warnings are on disk before and after each change."""

from __future__ import annotations

import contextlib
import datetime
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ..console import Console
from ..directory import RunDirectory, utc_now
from ..errors import Interrupted
from ..lang import tr, word
from ..masking import masked
from ..records import RunRecord, StageRecord
from ..text import duration
from .signals import StopSignals


class Recorder:
    """The record of one run while a process executes it."""

    def __init__(self, run: RunDirectory, console: Console, signals: StopSignals) -> None:
        self.run, self.console, self.signals = run, console, signals
        self.record: RunRecord = run.record()
        self._pending: list[str] | None = None  # warnings that wait for run.json while another process may replace it
        self._lock = threading.RLock()  # observers and the log's follower warn from threads of their own

    def save(self, **changes: Any) -> None:
        with self._lock:
            self.record = replace(self.record, **changes)
            self.run.save_record(self.record)

    def reload(self) -> None:
        """Read run.json again, after it was written without this recorder."""
        with self._lock:
            self.record = self.run.record()

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Leave run.json to a launcher until the block ends, then read it again; warnings are added to it then."""
        with self._lock:
            self._pending = []
        try:
            yield
        finally:
            with self._lock:
                texts, self._pending = self._pending, None
                self.record = self.run.record()
                new = [text for text in texts if text not in self.record.warnings]
                if new:
                    self.save(warnings=(*self.record.warnings, *new))

    def save_stage(self, stage: StageRecord) -> None:
        with self._lock:
            self.save(stages=(*(s for s in self.record.stages if s.name != stage.name), stage))

    def warn(self, text: str) -> None:
        self.console.warn(text)
        with self._lock:
            if self._pending is not None:
                self._pending.append(text)
            elif text not in self.record.warnings:
                self.save(warnings=(*self.record.warnings, text))

    def is_done(self, stage: str) -> bool:
        return any(s.name == stage and s.status == "done" for s in self.record.stages)

    def stage(
        self, name: str, work: Callable[[], dict[str, Any]], headline: Callable[[], str] = str
    ) -> StageRecord | None:
        """Do one stage unless it is done, and return its record; `headline` is shown behind its time."""
        if self.is_done(name):
            return None
        before = next((s for s in self.record.stages if s.name == name), None)
        self.console.say(tr("{stage} ...", stage=word(name)))
        record = StageRecord(name, "running", utc_now(), seconds=self._earlier_seconds(before) if before else None)
        self.save_stage(record)
        began = time.monotonic()
        try:
            with self.console.working(word(name)):
                meta = work()
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | Interrupted)
            status = "interrupted" if stopped or self.signals.interrupted else "failed"
            text = status if self.signals.interrupted and not stopped else masked(str(error)) or status
            self.save_stage(replace(record, status=status, seconds=_seconds(record, began), error=text))
            if self.signals.interrupted and not stopped:
                raise KeyboardInterrupt from error
            raise
        record = replace(record, status="done", seconds=_seconds(record, began), usd=meta.get("usd"), meta=meta)
        self.save_stage(record)
        self.console.say(
            tr("{stage}: done in {time}", stage=word(name), time=duration(time.monotonic() - began)) + headline()
        )
        return record

    def _earlier_seconds(self, stage: StageRecord) -> float:
        """Return the seconds that earlier attempts at a stage took: of a killed one, up to its last log line."""
        seconds = stage.seconds or 0.0
        if stage.status == "running":
            logged = max((row["time"] for row in self.run.log_rows() if "time" in row), default=0.0)
            seconds += max(0.0, logged - datetime.datetime.fromisoformat(stage.started).timestamp())
        return round(seconds, 3)


def _seconds(record: StageRecord, began: float) -> float:
    """Return the seconds of a stage, those of interrupted attempts included."""
    return round((record.seconds or 0.0) + time.monotonic() - began, 3)
