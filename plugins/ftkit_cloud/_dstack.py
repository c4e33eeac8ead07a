"""A machine that dstack rents: asked for once, followed over ssh, ended in every case.

    asked for -> running -> attached (ssh knows its name) -> the engine executes the run -> ended

What is known stands in the run's state before anything waits. A process that is killed at any point leaves at most one
machine, which has its own limit; the next attempt, and `ftkit cloud`, find it by its name.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ftkit.api import MeasuredRun, Run
from ftkit.errors import FtkitError, InputError, Interrupted, RunFailed
from ftkit.files import read_json
from ftkit.records import Cancelled
from ftkit.text import dollars, duration

from ._dstack_cli import CallFailed, Cli, DstackRun
from ._dstack_list import POLL, PREFIX, STOPS
from ._dstack_offers import BOOT, no_server, price_of
from ._dstack_task import END, as_yaml, task_of
from ._engine import Engine
from ._money import CloudOptions, Ledger, Limit, key_of, next_limit, seconds_of
from ._ssh import DIR, Destination, SshTransport
from ._transport import Lost

T = TypeVar("T")
FOLDER = DIR  # of ftkit on the machine
SOURCE = "dstack: the machine's price an hour and its time"
_PATIENCE = "FTKIT_REMOTE_PATIENCE"  # seconds for which a server that does not answer is asked again
_SHARE, _MOST, _LEAST = 0.1, 900.0, 120.0  # of its time that a machine keeps for bringing the files back
_SECOND = 3  # how often Ctrl-C must be pressed to leave a machine that cannot be ended

_REASONS = {
    "failed_to_start_due_to_no_capacity": "no machine of this kind is free",
    "interrupted_by_no_capacity": "the provider took the machine back",
    "max_duration_exceeded": "the machine reached its time limit",
    "instance_unreachable": "the machine stopped to answer",
    "creating_container_error": "the machine could not start its image",
    "container_exited_with_error": "the machine's program ended with an error",
    "terminated_by_user": "it was stopped with dstack",
    "aborted_by_user": "it was aborted with dstack",
    "terminated_by_server": "dstack's server ended it",
}


def run_name(mark: str) -> str:
    """Return the name of a run's machine: dstack takes 41 characters, of a-z, 0-9 and hyphens."""
    return f"{PREFIX}{key_of(mark)}"


# ---------------------------------------------------------------- one machine


class Rented:
    """The machine of one run. Its name comes from the run: there is never more than one."""

    def __init__(self, run: Run, launcher: str, options: CloudOptions, asked: Mapping[str, Any] | None = None) -> None:
        self.run, self.launcher, self.options, self.asked = run, launcher, options, dict(asked or {})
        self.cli, self.ledger = Cli(), Ledger(run, launcher)
        self.name, self.key = run_name(run.mark), key_of(run.mark)
        self.poll = float(os.environ.get(POLL) or 5.0)
        self.patience = float(os.environ.get(_PATIENCE) or 900.0)
        self._attached: subprocess.Popen[bytes] | None = None
        self._looked = 0.0

    def launch(self) -> dict[str, Any]:
        """Execute the run on its machine, and end the machine. Return what it cost."""
        if self.run.state(self.launcher).get("phase") == "returned" and self.ledger.open() is not None:
            self._end_and_settle()  # all was brought back, and the machine could not be ended then
            if is_complete(self.run):
                return self.ledger.rental()
        try:
            limit = self._ask()
            self._wait()
            self._attach()
            self._execute(limit)
        except BaseException as error:
            if self._is_kept(error):
                self._detach()
                raise
            self._end_and_settle(error)
            raise
        self._end_and_settle()
        return self.ledger.rental()

    def cancel(self, running: bool) -> Cancelled:
        """End the machine, whatever runs on it."""
        found = self._patiently(lambda: self.cli.find(self.name))
        if found is None or found.finished:
            return Cancelled()
        self._note(f"ending the machine {self.name}")
        self._end()
        usd = self._settle()
        note = (f"the machine has cost {dollars(usd)} ({SOURCE})",) if usd is not None else ()
        return Cancelled(({"what": "machine", "id": self.name, "status": "ended"},), notes=note)

    # ---- asking for it

    def _ask(self) -> Limit:
        """Ask for the machine unless there is one. The ledger has it before it is asked for."""
        found = self._patiently(lambda: self.cli.find(self.name))
        if found is not None and not found.finished:
            self._note(f"found again: machine {self.name} ({found.what or found.status})")
            return self._known_limit()
        if self.ledger.open() is not None:
            self._settle(found)  # it ended while nobody looked
        price, what, _ = price_of(self.cli, self.asked, self.options)
        limit = next_limit(self.run, self.options, price, BOOT)
        entry = f"{self.name}/{len(self.ledger.machines()) + 1}"
        self.ledger.begin(entry, limit, SOURCE)
        self._note(f"asking for a machine: {what}, at most {dollars(price)} an hour for {duration(limit.seconds)}")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "task.dstack.yml")
            file.write_text(as_yaml(task_of(self.name, self.key, self.asked, limit.seconds, price)), encoding="utf-8")
            try:
                self.cli.apply(file)
            except CallFailed as error:
                self._look_again(error)
        return limit

    def _look_again(self, error: CallFailed) -> None:
        """After an `apply` that failed or was lost: continue with the machine where there is one; never ask twice."""
        found = None
        for attempt in range(4):
            time.sleep(min(self.poll * attempt, 10.0))
            with contextlib.suppress(CallFailed):
                found = self.cli.find(self.name)
            if found is not None and not found.finished:
                self._note(f"the answer was lost ({error}), and the machine is there")
                return
        if error.answered:
            self._settle(found, never=found is None)
        raise RunFailed(f"no machine was had through dstack: {error}", f"{no_server(str(error))}\n  {self._resume()}")

    def _known_limit(self) -> Limit:
        entry = self.ledger.open()
        if entry is not None:
            data = self.ledger.machines()[entry]
            return Limit(data["limit_usd"], data["usd_per_hour"], data["limit_seconds"])
        limit = Limit(0.0, self.options.max_price or 0.0, seconds_of(self.options.max_duration))
        self.ledger.begin(f"{self.name}/{len(self.ledger.machines()) + 1}", limit, SOURCE)
        return limit

    def _wait(self) -> None:
        """Wait until the machine runs. Raises RunFailed where it ends first, or is not up in time."""
        shown = ""
        while True:
            found = self._patiently(lambda: self.cli.find(self.name))
            if found is None:
                raise RunFailed(f"dstack no longer knows the machine {self.name}", self._resume())
            if found.finished:
                raise self._ended_early(found)
            if found.status == "running" and found.image_ready:
                self.ledger.note(self.ledger.open() or self.name, what=found.what, instance=found.instance)
                return
            if found.status != shown:
                shown = found.status
                self._note(f"machine {self.name}: {shown}{f' ({found.what})' if found.what else ''}")
            began = found.submitted or time.time()
            if time.time() - began > self._boot():
                raise RunFailed(
                    f"the machine was not up after {duration(self._boot())} (it is {found.status}): it was ended",
                    f"try another region or GPU; {self._resume()}",
                )
            time.sleep(self.poll)

    def _boot(self) -> float:
        return float(os.environ.get("FTKIT_CLOUD_BOOT") or BOOT)

    def _ended_early(self, found: DstackRun) -> RunFailed:
        why = _REASONS.get(found.reason, found.reason.replace("_", " ") or found.status)
        more = f" ({found.message})" if found.message and found.message != why else ""
        if found.reason == "failed_to_start_due_to_no_capacity":
            return RunFailed(
                f"{why}: {self._kind()}{more}; no machine was started",
                f"name another GPU or region, or try later: {self._resume()}",
            )
        return RunFailed(f"the machine {self.name} ended early: {why}{more}", self._resume())

    def _kind(self) -> str:
        return str((self.asked.get("resources") or {}).get("gpu") or self.name)

    # ---- the run on it

    def _attach(self) -> None:
        """Let ssh know the machine's name, and wait until it lets us in."""
        transport = SshTransport(Destination(self.name))
        deadline = time.monotonic() + min(self.patience, 180.0)
        why = ""
        while time.monotonic() < deadline:
            self._keep_attached()
            try:
                done = transport.run(["true"], seconds=30)
                if done.status == 0:
                    return
                why = done.err.strip()[-200:]
            except Lost as error:
                why = str(error)
            except InputError as error:  # a name that ssh does not know yet looks like a refusal
                why = error.message
            time.sleep(min(self.poll, 2.0))
        log = self._log().read_text("utf-8", "replace").strip()[-300:] if self._log().exists() else ""
        raise RunFailed(
            f"the machine {self.name} runs, and ssh does not reach it: {why}",
            f"dstack attach says: {log or 'nothing'}\n  the machine was ended; {self._resume()}",
        )

    def _keep_attached(self) -> None:
        if self._attached is None or self._attached.poll() is not None:
            self._attached = self.cli.attach(self.name, self._log())

    def _log(self) -> Path:
        return self.run.scratch("launcher") / "attach.log"

    def _detach(self) -> None:
        process, self._attached = self._attached, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)  # it takes the name out of ssh's settings
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _execute(self, limit: Limit) -> None:
        """Let the engine execute the run; it ends there some time before the machine does."""
        found = self._patiently(lambda: self.cli.find(self.name))
        began = found.submitted if found and found.submitted else time.time()
        left = limit.seconds - max(0.0, time.time() - began)
        reserve = min(_MOST, max(_LEAST, _SHARE * limit.seconds))
        destination = Destination(self.name, dir=FOLDER)
        transport = _Attached(destination, self)
        Engine(self.run, transport, self.launcher, destination.dir, {}, max(60.0, left - reserve)).execute()

    def lost(self) -> FtkitError | None:
        """A connection broke: attach again, or return why there is no machine any more."""
        now = time.monotonic()
        if now - self._looked < min(self.poll, 10.0):
            return None
        self._looked = now
        with contextlib.suppress(CallFailed):
            found = self.cli.find(self.name)
            if found is None or found.finished:
                return (
                    self._ended_early(found) if found else RunFailed(f"the machine {self.name} is gone", self._resume())
                )
        self._keep_attached()
        return None

    # ---- its end

    def _is_kept(self, error: BaseException) -> bool:
        """Whether the machine continues: it executes the run still, or has files that are not here yet."""
        phase = self.run.state(self.launcher).get("phase")
        if phase not in ("starting", "started"):
            return False
        found = None
        with contextlib.suppress(CallFailed):
            found = self.cli.find(self.name)
            if found is None or found.finished:
                return False
        if not isinstance(error, Interrupted):
            self._note(
                f"the machine {self.name} keeps the files until its limit; reach it with: dstack attach {self.name}, then "
                f"ssh {self.name}; bring them back: ftkit run --resume {self.run.dir}; end it: ftkit cloud stop {self.run.id}"
            )
        else:
            self._note(
                f"the machine {self.name} costs money until the run ends; end it: ftkit cloud stop {self.run.id}"
            )
        return True

    def _end_and_settle(self, error: BaseException | None = None) -> None:
        """End the machine, whatever happens meanwhile, and write down what it cost."""
        try:
            if self._attached is not None and error is None:
                with contextlib.suppress(Lost, FtkitError):  # the machine's own watchdog hears of it, too
                    SshTransport(Destination(self.name)).run(["touch", END], seconds=15)
        finally:
            self._detach()
            self._end()
            self._settle()

    def _end(self) -> None:
        """End the machine: gently, then by force, until dstack says that it has ended. Ctrl-C does not stop this."""
        pressed, attempt, since, why = 0, 0, time.monotonic(), ""
        wait = min(self.poll, 2.0)
        while True:
            try:
                time.sleep(wait if attempt else 0.0)
                attempt += 1
                found = self.cli.find(self.name)
                if found is None or found.finished:
                    return
                if found.status != "terminating" or attempt > STOPS:
                    self.cli.stop(self.name, abort=attempt > STOPS)
            except CallFailed as error:
                why = str(error)
            except KeyboardInterrupt:
                pressed += 1
                self._note("the machine is being ended first; please wait")
                if pressed >= _SECOND:
                    raise self._cannot_end(why or "it was not waited for") from None
            if time.monotonic() - since > self.patience:
                raise self._cannot_end(why or "it is still ending")
            wait = min(10.0, wait * 1.5)

    def _cannot_end(self, why: str) -> RunFailed:
        return RunFailed(
            f"THE MACHINE {self.name} MAY STILL RUN, AND COST MONEY: dstack could not end it ({why})",
            f"end it: dstack stop --abort {self.name}, or delete it on the provider's page\n"
            f"  then: ftkit run --resume {self.run.dir}",
        )

    def _settle(self, found: DstackRun | None = None, never: bool = False) -> float | None:
        """Write down what the machine has cost, by dstack's own account."""
        entry = self.ledger.open()
        if entry is None:
            return None
        if found is None and not never:
            with contextlib.suppress(CallFailed):
                found = self.cli.find(self.name)
                never = found is None  # dstack knows no such machine: there was none
        usd, seconds = (found.usd, found.seconds) if found else (0.0 if never else None, 0.0 if never else None)
        if found and found.usd_per_hour is not None:
            self.ledger.note(entry, usd_per_hour=found.usd_per_hour)
        self.ledger.end(entry, usd, seconds)
        if usd:
            self._note(f"the machine {self.name} was ended; it has cost {dollars(usd)} ({SOURCE})")
        return usd

    # ---- what they share

    def _resume(self) -> str:
        return f"resume with: ftkit run --resume {self.run.dir}"

    def _note(self, text: str) -> None:
        with contextlib.suppress(OSError, FtkitError):
            self.run.log("note", message=text, launcher=self.launcher)

    def _patiently(self, work: Callable[[], T]) -> T:
        """Ask dstack's server until it answers. Raises RunFailed where it does not for a long time."""
        since, wait, shown = time.monotonic(), 0.5, False
        while True:
            try:
                return work()
            except CallFailed as error:
                if time.monotonic() - since + wait > (self.patience if self.ledger.open() else 5.0):
                    text = f"dstack does not answer: {error}"
                    if self.ledger.open():
                        text += f"; the machine {self.name} may run until its limit"
                    raise RunFailed(text, f"{no_server(str(error))}\n  {self._resume()}") from None
                if not shown:
                    shown = True
                    self._note(f"dstack does not answer ({error}); it is asked again")
            time.sleep(wait)
            wait = min(30.0, 2 * wait)


class _Attached(SshTransport):
    """ssh to a machine that dstack attaches; a lost connection asks whether the machine still exists."""

    def __init__(self, destination: Destination, rented: Rented) -> None:
        super().__init__(destination)
        self._rented = rented

    def lost(self, status: int, err: str) -> Exception | None:
        found = super().lost(status, err)
        return found and (self._rented.lost() or (found if isinstance(found, Lost) else Lost(str(found))))


def is_complete(run: Run) -> bool:
    """Return whether all stages of the run are done, as its record here says."""
    stages = {stage["name"]: stage["status"] for stage in read_json(run.path("run.json")).get("stages", ())}
    return all(stages.get(name) == "done" for name in ("baseline", "train", "evaluate"))


def cancel(run: MeasuredRun, launcher: str, options: CloudOptions, running: bool) -> Cancelled:
    return Rented(run, launcher, options).cancel(running)
