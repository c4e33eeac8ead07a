"""Follow a remote run: its growing files appear here as they grow, its status is noted, a silent connection is given up."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ftkit.api import Run

from ._transport import Lost, Transport

MARK = b"@ftkit "
LOG = "train/log.jsonl"
JOURNALS = ("predictions.journal", "losses.journal")
_SILENT = 40.0  # seconds without a word after which a connection is given up; there is a sign of life every 5 s

_PHASES = {
    "waiting": "another run installs the same packages on {place}: waiting for it",
    "installing": "installing the packages on {place}; a second run finds them there",
}


class Follower:
    """One connection after the other; what is here already is not sent again."""

    def __init__(self, run: Run, name: str, note: Callable[[str], None], stage_done: Callable[[], None]) -> None:
        """`stage_done` brings the files of a finished stage; it is called before its event is shown."""
        self.run, self.name, self.note, self.stage_done = run, name, note, stage_done
        self._rest = b""  # of the log: a line that has not ended
        self._phase: str | None = None

    def follow(self, transport: Transport, command: Sequence[str]) -> dict[str, Any]:
        """Return the run's last status. Raises Lost where the connection breaks before."""
        process = transport.open(command)
        assert process.stdin and process.stdout and process.stderr
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps({"offsets": self._offsets()}).encode() + b"\n")
                process.stdin.flush()
            for message in self._messages(process):
                if "status" in message:
                    self.show_phase(message["status"], transport.place)
                elif "file" in message:
                    self._grew(message["file"], message["offset"], base64.b64decode(message["data"]))
                elif "end" in message:
                    return dict(message["end"])
            process.stdin.close()
            process.wait(10)
            err = process.stderr.read().decode("utf-8", "replace")
            raise transport.lost(process.returncode, err) or Lost(f"the connection ended: {err.strip()[-300:]}")
        except subprocess.TimeoutExpired:
            raise Lost("the connection ended") from None
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                with contextlib.suppress(OSError):
                    stream.close()

    @staticmethod
    def _messages(process: subprocess.Popen[bytes]) -> Any:
        assert process.stdout
        descriptor, rest = process.stdout.fileno(), b""
        heard = time.monotonic()
        while True:
            if not select.select([descriptor], [], [], 1.0)[0]:
                if time.monotonic() - heard > _SILENT:
                    raise Lost(f"nothing was heard for {_SILENT:g} s")
                continue
            data = os.read(descriptor, 1 << 16)
            heard = time.monotonic()
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.startswith(MARK):
                    yield json.loads(line[len(MARK) :])

    def show_phase(self, status: dict[str, Any], place: str) -> None:
        phase = status.get("phase")
        if phase != self._phase and phase in _PHASES:
            self.note(_PHASES[phase].format(place=place))
        self._phase = phase

    # ---- growing files

    def _offsets(self) -> dict[str, int]:
        """Return how much of each growing file is here. A line of the log is here when it has ended."""
        self._rest = b""
        found = {LOG: sum(map(len, remote_lines(self.run.path(LOG))))}
        for name in JOURNALS:
            for path in self.run.dir.glob(f"*/{name}"):
                found[path.relative_to(self.run.dir).as_posix()] = path.stat().st_size
        return found

    def _grew(self, path: str, offset: int, data: bytes) -> None:
        folder, _, name = path.rpartition("/")
        if path == LOG:
            self._append_log(data)
        elif name in JOURNALS and folder and "/" not in folder and not folder.startswith("."):
            file = self.run.path(folder, name)
            file.parent.mkdir(exist_ok=True)
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                os.ftruncate(descriptor, offset)
                os.pwrite(descriptor, data, offset)
            finally:
                os.close(descriptor)

    def _append_log(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if b'"stage"' in line and _is_done_stage(line):
                self.stage_done()
            append_line(self.run.path(LOG), line + b"\n")


def _is_done_stage(line: bytes) -> bool:
    with contextlib.suppress(ValueError, AttributeError):
        event = json.loads(line)
        return event.get("event") == "stage" and event.get("stage", {}).get("status") == "done"
    return False


def append_line(path: Path, line: bytes) -> None:
    """Add one whole line to the log as it is: its bytes are compared with those of the other side."""
    path.parent.mkdir(exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def remote_lines(path: Path) -> list[bytes]:
    """Return the lines of the log that came from, or go to, the other side: all but a launcher's own notes."""
    if not path.exists():
        return []
    with open(path, "rb") as file:
        return [line for line in file if line.endswith(b"\n") and not _is_own(line)]


def _is_own(line: bytes) -> bool:
    if b'"launcher"' not in line:
        return False
    with contextlib.suppress(ValueError):
        event = json.loads(line)
        return isinstance(event, dict) and event.get("event") == "note" and "launcher" in event
    return False
