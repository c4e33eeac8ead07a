"""How a run ends early: signals that stop it, and errors explained in one message."""

from __future__ import annotations

import errno
import shutil
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

from ..causes import cause_of
from ..directory import RunDirectory
from ..errors import FtkitError, Interrupted, RunFailed
from ..masking import masked
from ..records import Remedy
from ..report.failure import command_for
from ..text import one_line

_FULL = (errno.ENOSPC, errno.EDQUOT)
_ROOM = 64 * 1024  # bytes; of a disk with less it is said, since a library may hide that it was the cause


class StopSignals:
    """Lets SIGTERM and a closed terminal stop a run as Ctrl-C does. While the run winds down, a further one only ends the
    waiting for trackers.

    A signal that is ignored stays ignored (nohup). Only the main thread may set handlers; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.interrupted = False  # a library may wrap the KeyboardInterrupt in its own exception (pydantic does)
        self.winding_down = False
        self.insisted = False  # a signal came while the run wound down
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        if self.winding_down:
            self.insisted = True
            return
        self.interrupted = True
        raise KeyboardInterrupt


def interrupted(run: RunDirectory | None) -> Interrupted:
    """Return what is said after Ctrl-C; `run` is None before there is a run directory."""
    if run is None:
        return Interrupted("interrupted: nothing was spent, nothing is left", "run the recipe again")
    return Interrupted(f"interrupted in {run.dir}", how_to_resume(run))


def how_to_resume(run: RunDirectory) -> str:
    return f"resume with: ftkit run --resume {run.dir}"


def explained(error: Exception, run: RunDirectory, remedies: Sequence[Remedy] = ()) -> FtkitError:
    """Return an error that ended a run as one message with the fix; `remedies` are shown with their commands."""
    if not run.path("run.json").exists():  # `path` raises where not even the directory is there
        return RunFailed(f"the run directory lost its run.json while the run was in progress: {run.dir}")
    resume = _lines(*remedy_lines(remedies, run), f"when the cause is fixed: ftkit run --resume {run.dir}")
    place = error.filename if isinstance(error, OSError) and error.filename else run.dir
    if isinstance(error, OSError) and error.errno in _FULL:
        return RunFailed(f"the disk is full: {place}", resume)
    full = " (and the disk is nearly full)" if shutil.disk_usage(run.dir).free < _ROOM else ""
    if isinstance(error, FileNotFoundError) and str(place).startswith(f"{run.dir}/"):
        return RunFailed(f"{place} is missing from the run directory{full}", resume)
    if isinstance(error, OSError) and error.errno in (errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO):
        return RunFailed(f"{place}: {error.strerror}{full}", resume)
    log = f"the traceback is in {run.dir / 'debug.log'}; what is known so far: {run.dir / 'report.html'}"
    return RunFailed(f"{what_is(error)}{full}", _lines(resume, log))


def what_is(error: Exception) -> str:
    """Return an error in one line, without secrets: its cause in words where that is known, its type, its text."""
    words = cause_of(error).words
    return f"{words}: " * bool(words) + f"{type(error).__name__}: {masked(one_line(error, 500))}"


def remedy_lines(remedies: Sequence[Remedy], run: RunDirectory) -> list[str]:
    """Return remedies as the lines of a message: what each does, and its command."""
    return [line for r in remedies for line in (f"{r.text}:", f"  {command_for(r, run.dir)}")]


def _lines(*lines: str) -> str:
    return "\n  ".join(lines)
