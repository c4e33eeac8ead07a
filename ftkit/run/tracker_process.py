"""Call a tracker in a process of its own (`Tracker.own_process`).

    python -m ftkit.run.tracker_process DIR NUMBER PATIENCE

DIR is the run directory, NUMBER the tracker's place in the recipe's `tracking`, PATIENCE its seconds. Lines of JSON on standard input are calls:

    {"method": "logged", "arguments": {"event": {...}}}

Each is answered on standard output by any number of {"tell": ["say" or "warn", TEXT]} and one of {"done": true} and
{"error": [KIND, TEXT]}. The run and its report are read from DIR. When standard input ends before a call says that the run is
finished or failed, the parent process was killed: the tracker receives the events that it has not received, its `failed`
is called, and the process ends within PATIENCE.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..api import Tracker
from ..directory import RunDirectory
from ..files import dump_json, read_json
from ..records import Record, Report, RunRecord, StageRecord
from ..text import one_line

_SYSTEM = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_*", "TZ", "TMPDIR", "TEMP", "TMP", "XDG_*"),
    *("LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
)
_NICE = 10  # lower priority than the run's
_LAST_CALLS = ("finished", "failed")


# ---------------------------------------------------------------- the run's process


class RemoteError(Exception):
    """What a tracker raised in its process; `kind` is the name of the exception's class."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class TrackerProcess:
    """A tracker's process, as one thread of the run calls it. It is started with the first call."""

    def __init__(self, folder: Path, number: int, tracker: Tracker, tell: Callable[[str, str], None]) -> None:
        self._line = [sys.executable, "-P", "-m", __name__, str(folder), str(number), str(tracker.patience)]
        self._environment = environment(tracker, os.environ)
        self._tell = tell
        self._process: subprocess.Popen[str] | None = None
        self._ended = False

    def call(self, method: str, **arguments: Any) -> None:
        """Let the process call a method. Raises RemoteError with what the method raised, or how the process ended."""
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        plain = {k: v.to_dict() if isinstance(v, Record) else v for k, v in arguments.items()}
        plain = {k: v for k, v in plain.items() if k not in ("run", "report")}
        with contextlib.suppress(OSError):  # how it ended is read below
            process.stdin.write(dump_json({"method": method, "arguments": plain}) + "\n")
            process.stdin.flush()
        for line in process.stdout:
            answer = json.loads(line)
            if "tell" in answer:
                self._tell(*answer["tell"])
            elif "error" in answer:
                raise RemoteError(*answer["error"])
            else:
                return
        raise RemoteError("ChildProcessError", f"its process ended with status {process.wait()}")

    def end(self) -> None:
        """End the process, whatever it does."""
        self._ended = True
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            self._line, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, encoding="utf-8", errors="backslashreplace",
            env=self._environment, start_new_session=True,
        )  # fmt: skip
        if self._ended:  # while it started
            self.end()
        return self._process


def environment(tracker: Tracker, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a tracker's process is given: those of the system, and those that its class names."""
    patterns = (*_SYSTEM, *tracker.environment)
    names = {p for p in patterns if not p.endswith("*")}
    beginnings = tuple(p[:-1] for p in patterns if p.endswith("*"))
    return {k: v for k, v in variables.items() if k in names or k.upper() in names or k.startswith(beginnings)}


# ---------------------------------------------------------------- the tracker's process


def main() -> None:
    os.nice(_NICE)
    calls, answers = _pipes()
    folder, number, patience = sys.argv[1:]
    incoming, answer = _read_calls(calls, float(patience)), _Answers(answers)
    run, tracker, ended, heard = RunDirectory(Path(folder)), None, False, time.time()
    while (call := incoming.get()) is not None:
        method = call["method"]
        ended = ended or method in _LAST_CALLS
        heard = call["arguments"].get("event", {}).get("time", heard)
        try:
            if tracker is None:
                tracker = run.recipe.tracking[int(number)].make()
                tracker._tell = lambda how, text: answer(tell=[how, text])
            getattr(tracker, method)(**_arguments(run, method, call["arguments"]))
            answer(done=True)
        except Exception as error:
            answer(error=[type(error).__name__, one_line(error, 1000)])
    if tracker is not None and not ended:
        with contextlib.suppress(Exception):
            for event in run.journal:
                if isinstance(event, dict) and event.get("time", 0) > heard:
                    tracker.logged(run, event)
            tracker.failed(run, replace(run.record(), status="killed", error="the process of the run was killed"))
    os._exit(0)  # a library's threads and exit handlers must not keep the process


def _pipes() -> tuple[Any, Any]:
    """Return standard input and output; what reads or prints from now on is alone with /dev/null."""
    calls, answers = (os.fdopen(os.dup(fd), mode, encoding="utf-8") for fd, mode in ((0, "r"), (1, "w")))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(nowhere, fd)
    return calls, answers


class _Answers:
    """Writes answers, from any thread; where no process reads them any more, that is not the tracker's concern."""

    def __init__(self, file: Any) -> None:
        self._file, self._lock = file, threading.Lock()

    def __call__(self, **answer: Any) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._file.write(json.dumps(answer) + "\n")
            self._file.flush()


def _read_calls(file: Any, patience: float) -> queue.Queue[dict[str, Any] | None]:
    """Return the calls as they come, then None. A call that hangs then has `patience` seconds left."""
    calls: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def read() -> None:
        for line in file:
            calls.put(json.loads(line))
        calls.put(None)
        end = threading.Timer(patience, os._exit, [1])
        end.daemon = True
        end.start()

    threading.Thread(target=read, daemon=True).start()
    return calls


def _arguments(run: RunDirectory, method: str, plain: dict[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {**plain, "run": run}
    if "record" in plain:
        arguments["record"] = RunRecord.from_dict(plain["record"])
    if "stage" in plain:
        arguments["stage"] = StageRecord.from_dict(plain["stage"])
    if method == "finished":
        arguments["report"] = Report.from_dict(read_json(run.path("report.json")))
    return arguments


if __name__ == "__main__":
    main()
