"""Execute a run directory on another machine over a `Transport`: send it, start it once, follow it, bring it back.

What is known of the remote run is in the launcher's state before anything waits for it, so that a process that is killed
finds it again:

    phase      new        a token was chosen; there may be a folder with this name there
               starting   the supervisor may have been started
               started    it was
               pulled     all files are here and were compared; the folder there may still exist
               returned   nothing is left there: the next attempt takes a new token
    token, where, folder (of ftkit there), job (of this attempt), python (there)
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ftkit.api import Run, State
from ftkit.errors import FtkitError, InputError, Interrupted, RunFailed
from ftkit.records import Cancelled
from ftkit.text import duration, size

from . import _bundle, _pull
from ._follow import Follower
from ._transport import Answer, Lost, Transport

T = TypeVar("T")
MARK = b"@ftkit "
REMOTE = Path(__file__).with_name("_remote.py")
SEND = "FTKIT_SEND_ENV"  # names of variables that the run needs there, with commas between them
PYTHON = "FTKIT_REMOTE_PYTHON"  # a Python there that has all that the run needs
PATIENCE = "FTKIT_REMOTE_PATIENCE"  # seconds
_PATIENCE = 900.0  # seconds for which a lost connection is tried again
_AT_FIRST = 10.0  # seconds for which a first connection is tried
_SECOND = 8.0  # seconds in which a second Ctrl-C ends the run there

# Finds a Python that can run ftkit, goes to the folder, and lets that Python say what is there.
_PROBE = r"""
folder=$1 wanted=$2 job=$3
cd "$HOME" 2>/dev/null || cd /
mkdir -p -- "$folder" || exit 1
cd -- "$folder" || exit 1
seen=
for python in ${wanted:-python3 python3.14 python3.13 python3.12 python3.11}; do
  if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    exec "$python" -c '
import importlib.metadata, json, os, shutil, sys
job, packages = sys.argv[1], {}
if sys.argv[2]:
    packages = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
folder = os.path.join("runs", job)
print("@ftkit " + json.dumps({"folder": os.getcwd(), "python": sys.executable, "version": sys.version.split()[0],
  "rsync": bool(shutil.which("rsync")), "free": shutil.disk_usage(".").free, "packages": packages,
  "job": os.path.exists(os.path.join(folder, "remote.py")), "begun": os.path.exists(os.path.join(folder, "status.json"))}))
' "$job" "$wanted"
  fi
  seen="$seen $("$python" --version 2>&1 | head -n 1)"
done
echo "no Python:$seen" >&2
exit 3
"""


class Engine:
    """One run and one machine."""

    def __init__(
        self,
        run: Run,
        transport: Transport,
        name: str,
        folder: str,
        environment: Mapping[str, str] | None = None,
        max_seconds: float | None = None,
    ) -> None:
        """`name` is that of the launcher's state; `folder` is ftkit's on the machine, absolute or below the home folder."""
        self.run, self.transport, self.name, self.folder = run, transport, name, folder
        self.environment, self.max_seconds = dict(environment or {}), max_seconds
        self.state: State = run.state(name)
        self.place = transport.place
        self.patience = float(os.environ.get(PATIENCE) or _PATIENCE)

    # ---- the whole

    def execute(self) -> None:
        """Execute the run there and bring it back. Raises FtkitError; what was done is brought back where it can be."""
        self._check_place()
        if self.state.get("phase") == "pulled":  # killed a moment before its end
            self._leave()
            return
        if self.state.get("phase") in (None, "returned"):
            token = secrets.token_hex(8)
            self.state.update(token=token, job=f"{self.run.mark}-{token[:8]}", where=self._where(), phase="new")
        try:
            status = self._begin_and_follow()
        except KeyboardInterrupt:
            if self.state["phase"] not in ("starting", "started"):
                raise
            status = self._interrupted()
        self._bring_back(status)
        self._judge(status)

    def cancel(self, running: bool) -> Cancelled:
        """End the run there, and bring it back unless a process here (`running`) does. Return what was ended."""
        if self.state.get("phase") not in ("starting", "started"):
            return Cancelled()
        self._check_place()
        status = self._patiently(self._stop)
        if not running:
            self._bring_back(status)
        return Cancelled(({"what": "run", "id": f"{self.place}:{self.state['job']}", "status": "ended"},))

    # ---- its parts

    def _where(self) -> str:
        return f"{self.place}:{self.folder}"

    def _check_place(self) -> None:
        """Raise InputError where the run is at another place: it must never be executed twice."""
        at = self.state.get("where")
        if self.state.get("phase") in ("starting", "started") and at != self._where():
            raise InputError(
                f"this run was started at {at}, and may still be executed there",
                f"bring it back first: ftkit run --resume {self.run.dir}\n  or end it: ftkit cancel {self.run.dir}",
            )

    def _begin_and_follow(self) -> dict[str, Any]:
        """Start the run unless it was started, follow it to its end, and return its last status."""
        known = self.state["phase"] in ("starting", "started")
        facts = self._patiently(self._probe, None if known else _AT_FIRST)
        if known and not facts["job"]:
            self._note(f"{self.place} no longer has the folder of this run: it is started again from what is here")
            self.state.update(phase="new")
        if not facts["begun"]:
            spec = self._send(facts)
            self._patiently(lambda: self._start(spec))
        elif known:
            self._note(f"found again on {self.place}: {self._job()}")
        self.state.update(phase="started")
        return self._patiently(self._follow)

    def _probe(self) -> dict[str, Any]:
        """Look at the machine: its Python, its folder, and whether this run was started there."""
        wanted = os.environ.get(PYTHON, "")
        command = ["sh", "-s", "--", self.folder, wanted, self.state["job"]]
        done = self.transport.run(command, _PROBE.encode())
        facts = _answer(done)
        if done.status == 3:
            found = done.err.partition("no Python:")[2].strip() or "none"
            raise InputError(
                f"{self.place} has no Python 3.11 or newer (found: {found})",
                f"install one there, or name it: {PYTHON}=/path/to/python",
            )
        if facts is None:
            raise self._failed(f"the folder {self.folder} cannot be used on {self.place}", done)
        self.state.update(folder=facts["folder"], python=facts["python"])
        return facts

    def _send(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Put the program and the bundle there; return what the job is."""
        self._environment()  # what is wrong with it is said before anything is sent
        own_python = bool(os.environ.get(PYTHON))
        folder = Path(_pull.scratch(self.run)) / "bundle"
        bundle = _bundle.build(self.run, self.name, folder, with_sources=not own_python)
        if own_python:
            _check_packages(self.place, bundle.needed, facts["packages"])
        if bundle.size * 2 > facts["free"]:
            raise RunFailed(
                f"the disk of {self.place} is full: {size(facts['free'])} are free", "make room, then resume"
            )
        for line in bundle.summary_lines():
            self._note(line.format(place=self.place))
        version = facts["version"].rpartition(".")[0]
        spec = {
            "token": self.state["token"],
            "run": self.run.id,
            "python": facts["python"] if own_python else None,
            "venvs": f"{facts['folder']}/venvs",
            "venv": f"{bundle.venv}-py{version}",
            "requirements": list(bundle.requirements),
            "max_seconds": self.max_seconds,
            "bundle": {"name": bundle.name, "size": bundle.size, "sha256": bundle.sha256},
        }
        try:
            begin = ["sh", "-c", 'mkdir -p "$1" && cat > "$1/remote.py"', "sh", self._job()]
            self._patiently(lambda: self._run(begin, REMOTE.read_bytes()))
            self._patiently(lambda: self.transport.put(bundle.path, f"{self._job()}/{bundle.name}"))
        except FtkitError:
            with contextlib.suppress(FtkitError, Lost):
                self.transport.run(["rm", "-rf", "--", self._job()])
            raise
        finally:
            _pull.remove(folder)
        return spec

    def _start(self, spec: Mapping[str, Any]) -> None:
        """Start the supervisor. A second call finds it started."""
        self.state.update(phase="starting")
        self._verb("start", json.dumps({"job": spec, "environment": self._environment()}).encode())

    def _environment(self) -> dict[str, str]:
        """Return the variables that travel: those that FTKIT_SEND_ENV names, or HF_TOKEN where it is set."""
        named = os.environ.get(SEND)
        names = ["HF_TOKEN"] if named is None else [n for n in re.split(r"[,\s]+", named) if n]
        missing = [name for name in names if named is not None and name not in os.environ]
        if missing:
            raise InputError(f"{SEND} names {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not set")
        return {**{name: os.environ[name] for name in names if name in os.environ}, **self.environment}

    def _follow(self) -> dict[str, Any]:
        follower = Follower(self.run, self.name, self._note, lambda: _pull.finished(self, self.run))
        return follower.follow(self.transport, self._line("follow"))

    def _stop(self) -> dict[str, Any]:
        return dict(self._verb("stop", seconds=120)["status"])

    def _interrupted(self) -> dict[str, Any]:
        """After Ctrl-C: leave the run, or end it after a second one. Returns the status of one that was ended."""
        try:
            self._note(f"the run continues on {self.place}; press Ctrl-C again within {_SECOND:g} s to end it there")
            time.sleep(_SECOND)
        except KeyboardInterrupt:
            self._note(f"ending the run on {self.place}")
            return self._patiently(self._stop)
        raise Interrupted(
            f"left the run on {self.place}, where it continues",
            f"follow it again: ftkit run --resume {self.run.dir}\n  end it there: ftkit cancel {self.run.dir}",
        )

    def _bring_back(self, status: Mapping[str, Any]) -> None:
        """Bring all files here, compare them, and remove the folder there."""
        if status.get("ran"):
            try:
                self._patiently(lambda: _pull.everything(self, self.run, status.get("why") == "done"))
            except (FtkitError, OSError) as error:
                if not isinstance(error, Interrupted):
                    self._note(f"the files remain on {self.place}: {self._job()}")
                raise
        self.state.update(phase="pulled")
        self._leave()

    def _leave(self) -> None:
        """Remove the folder there, and put run.json in its place: from here on the run is here alone."""
        try:
            self._patiently(lambda: self._verb("clean", seconds=600))
        except RunFailed as error:
            self._note(f"{self._job()} could not be removed from {self.place}: {error.message}")
        _pull.finish(self.run)
        self.state.update(phase="returned")

    def _judge(self, status: Mapping[str, Any]) -> None:
        """Raise what ended the run early."""
        why, output = status.get("why"), str(status.get("output", ""))
        if why == "done":
            return
        resume = f"resume with: ftkit run --resume {self.run.dir}"
        if why in ("cancelled", "interrupted"):
            raise Interrupted(f"the run was ended on {self.place}; what it had done is here", resume)
        if why == "deadline":
            limit = duration(self.max_seconds)
            raise RunFailed(f"the run was ended on {self.place} after its limit of {limit}", resume)
        reason = self._error() if status.get("ran") else None
        if reason and why == "failed":
            raise RunFailed(f"on {self.place}: {reason}", resume)
        exit = status.get("exit")
        messages = {
            "killed": f"the process of the run was killed on {self.place}"
            + (f" (signal {-exit})" if isinstance(exit, int) and exit < 0 else ""),
            "full": f"the disk of {self.place} is full",
        }
        message = status.get("message")
        text = messages.get(str(why)) or f"on {self.place}: {message or f'ftkit ended with status {exit}'}"
        raise RunFailed(text, "\n  ".join([*_last_lines(output), resume]))

    def _error(self) -> str | None:
        """Return what the run itself says of its failure, in the run.json that was brought back."""
        with contextlib.suppress(OSError, ValueError):
            data = json.loads(self.run.path("run.json").read_text("utf-8"))
            if data.get("status") == "failed" and data.get("error"):
                return str(data["error"])
        return None

    # ---- what they share

    def _job(self) -> str:
        return f"{self.state['folder']}/runs/{self.state['job']}"

    def _line(self, verb: str) -> list[str]:
        return [self.state["python"], "-B", f"{self._job()}/remote.py", verb, self._job()]

    def _run(self, command: list[str], input: bytes = b"", seconds: float | None = 60) -> Answer:
        done = self.transport.run(command, input, seconds)
        if done.status:
            raise self._failed(f"a command failed on {self.place}", done)
        return done

    def _verb(self, verb: str, input: bytes = b"", seconds: float | None = 60) -> dict[str, Any]:
        done = self._run(self._line(verb), input, seconds)
        found = _answer(done)
        if found is None or "error" in found:
            raise self._failed(f"`{verb}` failed on {self.place}{': ' + found['error'] if found else ''}", done)
        return found

    def _failed(self, what: str, done: Answer) -> RunFailed:
        if "No space left on device" in done.err or "Disk quota exceeded" in done.err:
            return RunFailed(
                f"the disk of {self.place} is full", f"make room there, then: ftkit run --resume {self.run.dir}"
            )
        return RunFailed(what, "\n  ".join([*_last_lines(done.err), f"then: ftkit run --resume {self.run.dir}"]))

    def _note(self, text: str) -> None:
        """Show one line here. It stands in the log of this side alone: `launcher` says so."""
        with contextlib.suppress(OSError, FtkitError):
            self.run.log("note", message=text, launcher=self.name)

    def _patiently(self, work: Callable[[], T], patience: float | None = None) -> T:
        """Do `work` until the connection lasts; each failure is followed by a longer wait, up to 30 s."""
        patience = self.patience if patience is None else min(patience, self.patience)
        since: float | None = None
        wait = 0.5
        while True:
            began = time.monotonic()
            try:
                done = work()
                if since is not None:
                    self._note(f"connected to {self.place} again")
                return done
            except Lost as error:
                now = time.monotonic()
                if since is None or now - began > 60:  # it had lasted: a new break
                    since, wait = now, 0.5
                    self._note(f"the connection to {self.place} failed ({error}); it is tried again")
                if now - since + wait > patience:
                    raise self._unreachable(str(error)) from None
            time.sleep(wait)
            wait = min(30.0, 2 * wait)

    def _unreachable(self, why: str) -> FtkitError:
        if self.state["phase"] in ("starting", "started"):
            return Interrupted(
                f"{self.place} cannot be reached ({why}); the run continues there if the machine does",
                f"follow it again: ftkit run --resume {self.run.dir}",
            )
        return RunFailed(f"{self.place} cannot be reached: {why}", f"then: ftkit run --resume {self.run.dir}")


def _answer(done: Answer) -> dict[str, Any] | None:
    """Return the last line of an answer; None where there is none."""
    lines = [line for line in done.out.splitlines() if line.startswith(MARK)]
    return dict(json.loads(lines[-1][len(MARK) :])) if lines else None


def _last_lines(text: str, most: int = 12) -> list[str]:
    lines = [line.rstrip()[:300] for line in text.splitlines() if line.strip()]
    return ["its last lines there:", *(f"  {line}" for line in lines[-most:])] if lines else []


def _check_packages(place: str, needed: Mapping[str, str], there: Mapping[str, str]) -> None:
    """Raise InputError where the Python that the user named has other versions than this machine."""
    known = {_bundle.canonical(name): version for name, version in there.items()}
    wrong = [
        f"{name} {known.get(_bundle.canonical(name), 'is missing')} instead of {version}"
        for name, version in needed.items()
        if known.get(_bundle.canonical(name), "").partition("+")[0] != version.partition("+")[0]
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(
            f"{PYTHON} on {place} has other versions than this machine: {', '.join(wrong[:5])}{more}",
            f"install them there, or unset {PYTHON}: ftkit then makes an environment of its own",
        )
