"""dstack's command line, called as a program: it lives in an environment of its own and is never imported."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit.errors import InputError
from ftkit.text import one_line

COMMAND = "FTKIT_DSTACK"  # the program, where it is not `dstack` on PATH
INSTALL = "install it in an environment of its own: uv tool install 'dstack[runpod]==0.22.5' (or pipx install)"
NO_PROJECT = "No default project"  # what dstack says that was never set up
FINISHED = ("terminated", "failed", "done", "aborted")
_SECONDS = 60.0  # for one call; dstack itself tries its server three times


class CallFailed(Exception):
    """A call failed, or its answer was lost: `str(error)` is the reason. What it was to do may be done."""

    def __init__(self, text: str, answered: bool) -> None:
        super().__init__(text)
        self.answered = answered  # dstack said no itself: nothing was done


@dataclass(frozen=True)
class DstackRun:
    """One run as `dstack ps --json` shows it. Dollars, seconds since the epoch."""

    name: str
    status: str
    reason: str = ""  # why it ended, in dstack's words: "failed_to_start_due_to_no_capacity"
    message: str = ""
    usd: float = 0.0
    usd_per_hour: float | None = None
    submitted: float | None = None
    seconds: float | None = None  # from its submission to its end
    label: str = ""
    backend: str = ""
    what: str = ""  # the machine: "runpod, EU-NL-1, NVIDIA A100 80GB PCIe"
    instance: str = ""  # the provider's id of the machine
    image_ready: bool = False

    @property
    def finished(self) -> bool:
        return self.status in FINISHED


class Cli:
    """dstack, found on PATH or named by FTKIT_DSTACK."""

    def __init__(self) -> None:
        self.line = shlex.split(os.environ.get(COMMAND) or "dstack")
        if shutil.which(self.line[0]) is None:
            raise InputError(f"{self.line[0]} is not installed", INSTALL)
        # Its words are read, so without colours and line breaks. A profile would change what was confirmed.
        own = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "400", "DSTACK_NO_PROFILE": "1"}
        self._environment = {**os.environ, **own}

    def call(self, *arguments: str, seconds: float = _SECONDS, cwd: Path | None = None) -> str:
        """Return the standard output of one call. Raises CallFailed."""
        try:
            done = subprocess.run(
                [*self.line, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds,
                env=self._environment,
                cwd=cwd,
                start_new_session=True,  # Ctrl-C is for ftkit alone
            )
        except subprocess.TimeoutExpired:
            raise CallFailed(f"`dstack {arguments[0]}` did not end within {seconds:g} s", answered=False) from None
        except OSError as error:
            raise CallFailed(f"dstack cannot be started: {error.strerror}", answered=True) from None
        if done.returncode:
            text = _words(done.stdout) or _words(done.stderr) or f"status {done.returncode}"
            gone = done.returncode < 0 or re.search(r"[Ff]ailed to connect|timed out|Internal|5\d\d ", text)
            raise CallFailed(text, answered=not gone)
        return done.stdout

    def json(self, *arguments: str) -> dict[str, Any]:
        """Return the JSON object that a call prints. Raises CallFailed."""
        printed = self.call(*arguments)
        for line in printed.splitlines():
            if line.startswith("{"):
                with contextlib.suppress(ValueError):
                    return dict(json.loads(line))
        raise CallFailed(f"`dstack {arguments[0]}` printed no JSON: {one_line(printed, 200)}", answered=False)

    def runs(self, all: bool = False) -> list[DstackRun]:
        """Return the unfinished runs of the project; with `all`, the newest 100 of any status. Raises CallFailed."""
        arguments = ["--all"] if all else []
        return [_run(found) for found in self.json("ps", *arguments, "--json").get("runs", ())]

    def find(self, name: str) -> DstackRun | None:
        """Return the unfinished run of this name, or else its last one; None for none. Raises CallFailed."""
        for all in (False, True):  # an unfinished run may be older than the newest 100
            named = [run for run in self.runs(all) if run.name == name]
            found = next((run for run in named if not run.finished), named[0] if all and named else None)
            if found is not None:
                return found
        return None

    def apply(self, file: Path) -> None:
        """Submit a configuration and return. Raises CallFailed."""
        self.call("apply", "--file", str(file), "--yes", "--detach", seconds=180, cwd=file.parent)

    def stop(self, name: str, abort: bool = False) -> None:
        self.call("stop", "--yes", *(["--abort"] if abort else []), name)

    def offers(self, *arguments: str) -> list[dict[str, Any]]:
        """Return the machines that fit, the cheapest first. Raises CallFailed."""
        found = self.json("offer", "--json", "--max-offers", "20", *arguments).get("offers", [])
        return sorted(found, key=lambda offer: float(offer["price"]))

    def attach(self, name: str, log: Path) -> subprocess.Popen[bytes]:
        """Keep a connection to a run open: until it ends, ssh knows the run's name as a host."""
        with open(log, "ab") as output:
            return subprocess.Popen(
                [*self.line, "attach", name],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,
            )


def refs(arguments: Sequence[tuple[str, str | None]]) -> list[str]:
    """Return options for the command line, without those that have no value."""
    return [part for name, value in arguments if value is not None for part in (name, value)]


def _words(text: str) -> str:
    """Return the last line of dstack's own words."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return one_line(lines[-1], 300) if lines else ""


def _run(data: dict[str, Any]) -> DstackRun:
    spec, last = data.get("run_spec") or {}, data.get("latest_job_submission") or {}
    configuration = spec.get("configuration") or {}
    machine = last.get("job_provisioning_data") or {}
    kind = (machine.get("instance_type") or {}).get("name")
    parts = (machine.get("backend"), machine.get("region"), kind)
    began, ended = _epoch(data.get("submitted_at")), _epoch(last.get("finished_at"))
    return DstackRun(
        name=spec.get("run_name") or configuration.get("name") or "",
        status=str(data.get("status", "")),
        reason=str(last.get("termination_reason") or data.get("termination_reason") or ""),
        message=str(last.get("termination_reason_message") or data.get("status_message") or data.get("error") or ""),
        usd=float(data.get("cost") or 0.0),
        usd_per_hour=machine.get("price"),
        submitted=began,
        seconds=None if began is None or ended is None else max(0.0, ended - began),
        label=str((configuration.get("tags") or {}).get("ftkit-run") or ""),
        backend=str(machine.get("backend") or ""),
        what=", ".join(map(str, filter(None, parts))),
        instance=str(machine.get("instance_id") or ""),
        image_ready=str(last.get("status", "")) == "running",
    )


def _epoch(text: Any) -> float | None:
    import datetime

    with contextlib.suppress(TypeError, ValueError):
        moment = datetime.datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
    return None
