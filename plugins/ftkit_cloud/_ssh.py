"""The transport over the system's ssh, with rsync where both sides have it; and the launcher's two entry points.

    execute(run, Destination("gpu.example.org", user="me"))

A launcher whose provider gives an ssh destination calls `execute` with a name of its own.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ftkit.api import MeasuredRun, Run
from ftkit.errors import FtkitError, InputError, RunFailed
from ftkit.records import Cancelled
from ftkit.text import one_line

from ._engine import Engine
from ._transport import Answer, Lost, Transport

DIR = ".cache/ftkit"  # below the home folder there
_EXAMPLE = "such as --on ssh://me@gpu.example.org or --on ssh://me@gpu.example.org:2222/scratch/me"
_LOST = 255  # the exit status of ssh itself
_RSYNC_PART = (23, 24)  # a file was not there any more: the engine compares what arrived
_RSYNC_LOST = (10, 12, 30, 35, 255)  # of rsync: the connection broke, or took too long


@dataclass(frozen=True)
class Destination:
    """A machine that ssh reaches. `dir` is where ftkit keeps its files there: absolute, or below the home folder.

    `identity` and `known_hosts` are files of this machine; without them ssh's own settings hold.
    """

    host: str
    port: int | None = None
    user: str | None = None
    dir: str = DIR
    identity: Path | None = None
    known_hosts: Path | None = None

    def __str__(self) -> str:
        return f"{self.user}@{self.host}" if self.user else self.host


def destination_of(where: str) -> Destination:
    """Return what `//user@host:port/dir` means. Raises InputError with an example."""
    if not where.startswith("//"):
        raise InputError(f"--on ssh:{where} names no host", _EXAMPLE)
    try:
        found = urllib.parse.urlsplit(f"ssh:{where}")
        host, port = found.hostname, found.port
    except ValueError as error:
        raise InputError(f"--on ssh:{where}: {error}", _EXAMPLE) from None
    if not host or host.startswith("-") or (found.username or "").startswith("-"):
        raise InputError(f"--on ssh:{where} names no host", _EXAMPLE)
    if found.password is not None:
        raise InputError("--on ssh://... holds a password", "use a key: ssh-keygen, ssh-copy-id")
    if found.query or found.fragment:
        raise InputError(f"--on ssh:{where}: nothing may follow the folder", _EXAMPLE)
    netloc = found.netloc.rpartition("@")[2]
    host = netloc[: len(host)] if netloc.lower().startswith(host) else host  # urlsplit writes it in lower case
    folder = urllib.parse.unquote(found.path).rstrip("/")
    folder = folder[3:] if folder.startswith("/~/") else folder
    return Destination(host, port, urllib.parse.unquote(found.username) if found.username else None, folder or DIR)


def execute(
    run: Run,
    destination: Destination,
    *,
    name: str = "ssh",
    max_seconds: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Execute a run directory at the destination and bring it back; find it again where it was started before.

    `name` is the launcher's: its state has it. After `max_seconds` the run is ended there. `environment` are variables for
    the run beside those that FTKIT_SEND_ENV names; none is written to a file.
    """
    engine = Engine(run, SshTransport(destination), name, destination.dir, dict(environment or {}), max_seconds)
    engine.execute()


def cancel(run: MeasuredRun, destination: Destination, running: bool, name: str = "ssh") -> Cancelled:
    """End the run there. `running` says whether a process here follows it: that one then brings it back."""
    return Engine(run, SshTransport(destination), name, destination.dir).cancel(running)


class SshTransport(Transport):
    """Commands over `ssh`, files over `rsync`. FTKIT_SSH_COMMAND replaces `ssh`, as GIT_SSH_COMMAND does for git."""

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        self.place = str(destination)
        self.has_rsync = shutil.which("rsync") is not None
        self.ssh = [
            *shlex.split(os.environ.get("FTKIT_SSH_COMMAND") or "ssh"),
            *("-T", "-o", "BatchMode=yes", "-o", "ControlMaster=no", "-o", "ConnectTimeout=15"),
            *("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3"),
        ]
        if destination.port is not None:
            self.ssh += ["-p", str(destination.port)]
        if destination.user is not None:
            self.ssh += ["-l", destination.user]
        if destination.identity is not None:
            self.ssh += ["-i", str(destination.identity), "-o", "IdentitiesOnly=yes"]
        if destination.known_hosts is not None:
            self.ssh += ["-o", f"UserKnownHostsFile={destination.known_hosts}"]
        if shutil.which(self.ssh[0]) is None:
            raise InputError(f"{self.ssh[0]} is not installed", "install OpenSSH's client")

    def _line(self, command: Sequence[str]) -> list[str]:
        return [*self.ssh, "--", self.destination.host, shlex.join(command)]

    def run(self, command: Sequence[str], input: bytes = b"", seconds: float | None = 60) -> Answer:
        try:
            done = subprocess.run(
                self._line(command), input=input, capture_output=True, timeout=seconds, start_new_session=True
            )
        except subprocess.TimeoutExpired:
            raise Lost(f"no answer within {seconds:g} s") from None
        err = done.stderr.decode("utf-8", "replace")
        if error := self.lost(done.returncode, err):
            raise error
        return Answer(done.returncode, done.stdout, err)

    def open(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        # A session of its own: Ctrl-C is for ftkit alone, which then says what becomes of the run.
        return subprocess.Popen(self._line(command), stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)

    def lost(self, status: int, err: str) -> Exception | None:
        if status != _LOST and status >= 0:
            return None
        return _refusal(self.destination, err) or Lost(_reason(err) or "ssh was ended")

    def put(self, source: Path, target: str) -> None:
        if self.has_rsync:
            self._rsync(["--partial", "--inplace", str(source), self._at(target)])
            return
        script = 'cat > "$1.part" && mv -f "$1.part" "$1"'
        with open(source, "rb") as file:
            line = self._line(["sh", "-c", script, "sh", target])
            done = subprocess.run(line, stdin=file, capture_output=True, start_new_session=True)
        err = done.stderr.decode("utf-8", "replace")
        if error := self.lost(done.returncode, err):
            raise error
        if done.returncode:
            raise self._no_room(err)

    def get(self, folder: str, paths: Sequence[str], into: Path) -> bool:
        if self.has_rsync:
            names = "".join(f"{path}\0" for path in paths).encode()
            # The engine knows what differs. A file of equal size, changed within the same second, is no equal file.
            options = ["--partial", "--ignore-times", "--from0", "--files-from=-"]
            self._rsync([*options, self._at(f"{folder}/"), str(into)], names)
        return self.has_rsync

    def _at(self, path: str) -> str:
        host = self.destination.host
        return f"[{host}]:{path}" if ":" in host else f"{host}:{path}"

    def _rsync(self, arguments: Sequence[str], input: bytes = b"") -> None:
        # `-s`: names are taken as they are. The checksum of what arrives is compared by the engine.
        line = ["rsync", "-s", "-t", "--timeout=120", "-e", shlex.join(self.ssh), *arguments]
        done = subprocess.run(line, input=input, capture_output=True, start_new_session=True)
        err = done.stderr.decode("utf-8", "replace")
        full = "No space left on device" in err
        if done.returncode == 0 or (done.returncode in _RSYNC_PART and not full):
            return
        if done.returncode in _RSYNC_LOST or done.returncode < 0:
            raise _refusal(self.destination, err) or Lost(_reason(err))
        raise self._no_room(err)

    def _no_room(self, err: str) -> FtkitError:
        if "No space left on device" in err or "Disk quota exceeded" in err:
            return RunFailed(f"the disk of {self.place} is full", "make room there, then resume")
        return RunFailed(f"files cannot be copied to or from {self.place}: {_reason(err)}")


def _refusal(to: Destination, err: str) -> InputError | None:
    """Return what ssh refuses, and no repetition changes."""
    host = f"[{to.host}]:{to.port}" if to.port else to.host
    login = shlex.join(["ssh", *(["-p", str(to.port)] if to.port else []), str(to)])
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in err:
        return InputError(
            f"the host key of {to.host} is not the one that this machine knows: nothing was sent",
            "another machine may answer in its place. Ask who runs it whether the key was changed;\n"
            f"  if it was: ssh-keygen -R {shlex.quote(host)}, then {login} and compare the new key",
        )
    if "Host key verification failed" in err:
        return InputError(
            f"this machine does not know the host key of {to.host}", f"connect once and confirm it: {login}"
        )
    if "Permission denied (" in err or "Too many authentication failures" in err:
        return InputError(
            f"{to} does not let this machine in: {_reason(err)}", f"this must work without a question: {login} true"
        )
    if "Bad configuration option" in err or "Bad owner or permissions" in err or "unsupported option" in err:
        return InputError(f"ssh does not accept its settings: {_reason(err)}")
    return None


def _reason(err: str) -> str:
    """Return the line of ssh's words that says why."""
    lines = [line.strip() for line in err.splitlines() if line.strip() and not line.startswith("rsync")]
    with contextlib.suppress(IndexError):
        return one_line(lines[-1].removeprefix("ssh: "), 300)
    return one_line(err, 300)
