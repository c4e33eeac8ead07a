"""A run as a Hugging Face Job: what travels and what comes back lies in a private bucket, so that no side waits for the other.

    NAMESPACE/ftkit-runs (bucket) / KEY / TOKEN / in   bundle, remote.py, worker.py, job.json: mounted into the job
                                              / out  what `_worker.py` has written

Hugging Face ends the job at its time limit. The job needs this machine for nothing: what it has done stays in the bucket
until it was brought here.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from huggingface_hub import BucketFile, BucketInfo, HfApi, JobInfo, Volume, get_token
from huggingface_hub.errors import HfHubHTTPError

from ftkit.api import MeasuredRun, Run
from ftkit.errors import FtkitError, InputError, RunFailed
from ftkit.hub import endpoint
from ftkit.probing import within
from ftkit.records import Cancelled
from ftkit.text import dollars, duration, nearest, one_line

from ._hf_box import HubEngine
from ._money import LABEL, Ledger, Limit, Machine, NotAsked, estimate_of, first_limit, key_of, next_limit
from ._transport import Lost

T = TypeVar("T")
NAME = "hf-jobs"
FLAVOR = "a10g-small"
IMAGE = "python:3.12"
ATTEMPT = "ftkit-attempt"
SOURCE = "Hugging Face Jobs: seconds that the job ran, at the listed price"
ENDED = ("COMPLETED", "CANCELED", "ERROR", "DELETED")
_CALL = 60.0  # seconds for one call
_START = 30 * 60.0  # seconds that a job may wait for a machine; they cost nothing
_SHARE, _MOST, _LEAST = 0.1, 900.0, 120.0  # of its time that a job keeps for sending the files
_LOOKS = 5  # looks for a job whose request got no answer
_UNITS = {"second": 3600, "minute": 60, "hour": 1}


# ---------------------------------------------------------------- the account


class Account:
    """The Hub, asked within a time limit. What may succeed later raises Lost; a refusal is an InputError."""

    def __init__(self, namespace: str | None = None) -> None:
        if not get_token():
            raise NotAsked("not logged in to Hugging Face")
        self.api = HfApi(endpoint=endpoint())
        self._namespace = namespace

    def call(self, work: Callable[[], T], seconds: float = _CALL) -> T:
        try:
            return within(seconds, work)
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status in (401, 402, 403, 404, 400, 409, 422):
                raise _refused(status, error) from None
            raise Lost(f"Hugging Face answers with status {status}") from None
        except FtkitError:
            raise
        except (OSError, TimeoutError, RuntimeError) as error:
            raise Lost(one_line(error, 200) or type(error).__name__) from None
        except Exception as error:  # the HTTP library's own: a connection that failed or broke
            if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2", "hf_xet"):
                raise
            raise Lost(f"{type(error).__name__}: {one_line(error, 200)}") from None

    @property
    def namespace(self) -> str:
        if self._namespace is None:
            self._namespace = str(self.call(self.api.whoami)["name"])
        return self._namespace

    def price(self, flavor: str) -> tuple[float, str]:
        """Return a machine's price an hour in dollars, and its name in words. Raises InputError for an unknown one."""
        flavors = self.call(self.api.list_jobs_hardware)
        found = next((f for f in flavors if f.name == flavor), None)
        if found is None:
            near = nearest(flavor, [f.name for f in flavors])
            some = ", ".join(f"{f.name} {dollars(_hourly(f))}" for f in sorted(flavors, key=_hourly) if f.accelerator)
            raise InputError(
                f"Hugging Face Jobs has no machine {flavor!r}",
                f"did you mean {near!r}?" if near else f"GPUs, with dollars an hour: {some}",
            )
        return _hourly(found), f"{found.name} ({found.pretty_name})"

    def jobs(self, labels: Mapping[str, str], active: bool = False) -> list[JobInfo]:
        """Return the jobs with these labels, the oldest first."""
        status = ["SCHEDULING", "RUNNING"] if active else None
        found = self.call(
            lambda: list(self.api.list_jobs(labels=dict(labels), status=status, namespace=self.namespace, timeout=30))
        )
        return sorted(found, key=lambda job: (job.created_at.timestamp() if job.created_at else 0.0, job.id))

    def bucket(self, name: str) -> BucketInfo:
        """Return a bucket; a private one is made where there is none."""

        def looked() -> BucketInfo:
            try:
                return self.api.bucket_info(name)
            except HfHubHTTPError as error:
                if error.response is None or error.response.status_code != 404:
                    raise
            self.api.create_bucket(name, private=True, exist_ok=True)
            return self.api.bucket_info(name)

        return self.call(looked)

    def files(self, bucket: str, folder: str) -> list[BucketFile]:
        """Return the files below a folder of a bucket; none where there is no such folder yet."""

        def listed() -> list[BucketFile]:
            try:
                return [f for f in self.api.list_bucket_tree(bucket, folder, recursive=True) if f.type == "file"]
            except HfHubHTTPError as error:
                if error.response is not None and error.response.status_code == 404:
                    return []
                raise

        return self.call(listed)

    def cancel(self, job: str) -> None:
        self.call(lambda: self.api.cancel_job(job_id=job, namespace=self.namespace))

    def end(self, job: str, seconds: float = 120.0, poll: float = 2.0, grace: float = 0.0) -> JobInfo | None:
        """End a job and wait until it has ended. Raises Lost where it does not; None where it is not known.

        It has `grace` seconds to end by itself.
        """
        began = time.monotonic()
        while True:
            with contextlib.suppress(Lost):
                try:
                    info = self.call(lambda: self.api.inspect_job(job_id=job, namespace=self.namespace))
                except InputError:
                    return None
                if stage_of(info) in ENDED:
                    return info
                if time.monotonic() - began >= grace:
                    with contextlib.suppress(InputError):  # it ended a moment before
                        self.cancel(job)
            if time.monotonic() - began > seconds:
                raise Lost(f"job {job} has not ended after {duration(seconds)}")
            time.sleep(poll)

    def output(self, job: str) -> str:
        """Return the last lines that a job printed, or ""."""
        with contextlib.suppress(Exception):
            lines = within(20, lambda: list(self.api.fetch_job_logs(job_id=job, namespace=self.namespace, tail=20)))
            return "\n".join(lines)
        return ""


def _refused(status: int, error: Exception) -> InputError:
    text = one_line(error, 300)
    if status == 401:
        return InputError(f"Hugging Face does not accept the token ({text})", "log in again: hf auth login")
    if status == 402:
        page = "https://huggingface.co/settings/billing"
        return InputError(f"the account cannot pay for jobs ({text})", f"add credit: {page}")
    if status == 403:
        return InputError(
            f"the token may not do this ({text})",
            "make a token with the right to run jobs, and to write to buckets: https://huggingface.co/settings/tokens",
        )
    return InputError(f"Hugging Face refuses the request ({text})", "see docs/cloud.md, Hugging Face Jobs")


def _hourly(flavor: Any) -> float:
    return float(flavor.unit_cost_usd) * _UNITS.get(str(flavor.unit_label).rstrip("s"), 60)


def stage_of(job: JobInfo) -> str:
    stage = job.status.stage
    return str(getattr(stage, "value", stage))


def account(options: Any) -> Account:
    try:
        return Account(options.namespace)
    except NotAsked as error:
        raise InputError(str(error), "log in: hf auth login (or set HF_TOKEN)") from None


# ---------------------------------------------------------------- the launcher's methods


def estimate(where: str, options: Any) -> dict[str, Any]:
    try:
        hourly, what = account(options).price(where or FLAVOR)
    except Lost as error:
        raise InputError(f"Hugging Face cannot be reached: {error}", "connect, or try later") from None
    return estimate_of(first_limit(options, hourly), what, "Hugging Face's list, billed by the minute")


def launch(run: Run, where: str, options: Any) -> dict[str, Any]:
    job = Job(run, where or FLAVOR, options)
    try:
        job.execute()
    finally:
        job.settle()
    return job.ledger.rental()


def cancel(run: MeasuredRun, where: str, options: Any, running: bool) -> Cancelled:
    return Job(run, where or FLAVOR, options).cancel(running)


class Job(HubEngine):
    """One run, and its job at Hugging Face: asked for once, found again by its labels."""

    def __init__(self, run: Run, flavor: str, options: Any) -> None:
        self.account, self.flavor, self.options = account(options), flavor, options
        self.ledger, self.key = Ledger(run, NAME), key_of(run.mark)
        super().__init__(run, self.account, NAME, self.key, f"Hugging Face Jobs ({flavor})")

    # ---- the job

    def ask(self) -> None:
        """Ask for the job, unless there is one with this attempt's label. Its ledger has it before it is asked for."""
        if self.state["phase"] == "new":
            self.state.update(job_id=None)  # that of an earlier attempt
        token = self.state["token"]
        if self.found() is not None:
            return
        if self.ledger.open() == token:  # it was asked for, and there is none
            self.ledger.end(token, 0.0, 0.0)
        hourly, what = self.account.price(self.flavor)
        limit = next_limit(self.run, self.options, hourly)
        self.upload(self._reserved(limit))
        self.ledger.begin(token, limit, SOURCE)
        self.state.update(phase="starting")
        self._note(f"asking for a job: {what}, {dollars(hourly)} an hour, ended after {duration(limit.seconds)}")
        try:
            job = self.account.call(lambda: self._request(token, limit))
            self.state.update(job_id=job.id, phase="started")
            self._note(f"job {job.id}: {job.url}")
        except Lost as error:
            self._look_again(error)
        except InputError:
            self.ledger.end(token, 0.0, 0.0)
            self.state.update(phase="new")
            raise

    def _reserved(self, limit: Limit) -> float:
        """Return the seconds that the run has: some time before the job ends, what it has done is sent."""
        return max(60.0, limit.seconds - min(_MOST, max(_LEAST, _SHARE * limit.seconds)))

    def _request(self, token: str, limit: Limit) -> JobInfo:
        return self.account.api.run_job(
            image=self.options.image or IMAGE,
            command=["python3", "-u", f"{self.mount}/in/worker.py", self.mount],
            env={"FTKIT_RUN": self.key},
            secrets=self._environment(),
            flavor=self.flavor,
            timeout=int(limit.seconds),
            labels={LABEL: self.key, ATTEMPT: token, "name": f"ftkit-{self.key}"},
            volumes=[Volume(type="bucket", source=self.bucket, mount_path=self.mount, path=self.base)],
            namespace=self.account.namespace,
        )

    def _look_again(self, error: Lost) -> None:
        """After a request without an answer: look for its job. It is never asked for a second time here."""
        for attempt in range(_LOOKS):
            time.sleep(min(self.poll * attempt, 10.0))
            with contextlib.suppress(Lost):
                if self.found() is not None:
                    self._note(f"the answer was lost ({error}), and the job is there")
                    return
        raise RunFailed(
            f"the request for a job got no answer ({error}), and no job is there",
            f"look again, and ask again where there is none: ftkit run --resume {self.run.dir}",
        )

    def found(self) -> JobInfo | None:
        """Return this attempt's job; a second one, which a lost answer may have made, is ended. None for none."""
        jobs = self.account.jobs({LABEL: self.key, ATTEMPT: self.state["token"]})
        for extra in [job for job in jobs[1:] if stage_of(job) not in ENDED]:
            self._note(f"job {extra.id} is a second one of this run: it is ended")
            self.account.cancel(extra.id)
        if jobs and self.state.get("job_id") != jobs[0].id:
            self.state.update(job_id=jobs[0].id, phase="started")
        return jobs[0] if jobs else None

    def check_start(self, job: JobInfo) -> None:
        """Raise RunFailed, with the job ended, where it has waited for a machine for too long."""
        waited = time.time() - job.created_at.timestamp() if job.created_at else 0.0
        limit = float(os.environ.get("FTKIT_CLOUD_BOOT") or _START)
        if stage_of(job) == "SCHEDULING" and waited > limit:
            self.account.end(job.id, poll=self.poll)
            self.ledger.end(self.state["token"], 0.0, 0.0)
            self.state.update(phase="returned")
            self.forget()
            raise RunFailed(
                f"no machine {self.flavor} was free within {duration(limit)}: the job was ended, and cost nothing",
                f"name another: ftkit run --resume {self.run.dir} --on hf-jobs:FLAVOR",
            )

    def died(self, job: JobInfo) -> dict[str, Any]:
        """Return the status of a run whose job ended without its last word."""
        stage, message = stage_of(job), one_line(job.status.message or "", 200)
        said = f"job {job.id} ended with {stage}{f' ({message})' if message else ''} before the run did"
        return {"why": "job", "message": said, "ran": self.has_files(), "output": self.account.output(job.id)}

    def end_job(self) -> JobInfo | None:
        """End the job, whatever it does. Ctrl-C does not stop this."""
        id = self.state.get("job_id")
        if id is None:
            job = self.found()
            if job is None:
                return None
            id = job.id
        for _ in range(3):
            try:
                return self.account.end(id, self.patience, self.poll, grace=2 * self.poll)
            except KeyboardInterrupt:
                self._note("the job is being ended first; please wait")
            except Lost as error:
                raise RunFailed(
                    f"JOB {id} MAY STILL RUN, AND COST MONEY until its limit: it could not be ended ({error})",
                    f"end it: hf jobs cancel {id}, or on https://huggingface.co/settings/jobs",
                ) from None
        raise KeyboardInterrupt

    # ---- money

    def settle(self) -> float | None:
        """Write down what the job has cost, where it has ended."""
        token, id = self.state.get("token"), self.state.get("job_id")
        entry = self.ledger.open()
        if entry is None or id is None or entry != token:
            return None
        with contextlib.suppress(Lost, FtkitError):
            info = self.account.call(lambda: self.account.api.inspect_job(job_id=id, namespace=self.account.namespace))
            if stage_of(info) in ENDED:
                seconds = ran_seconds(info)
                self.ledger.end(entry, None, seconds)
                usd = self.ledger.machines()[entry].get("usd")
                self._note(f"job {id} has ended; it has cost {dollars(usd)} ({SOURCE})")
                return float(usd or 0.0)
        return None


def ran_seconds(job: JobInfo) -> float | None:
    """Return the seconds that a job has run, as Hugging Face counts them."""
    if job.durations is not None:
        return float(job.durations.running_secs or 0)
    if job.started_at is None:
        return 0.0 if stage_of(job) in ENDED else None
    end = job.finished_at.timestamp() if job.finished_at else time.time()
    return max(0.0, end - job.started_at.timestamp())


# ---------------------------------------------------------------- `ftkit cloud`


def machines() -> list[Machine]:
    """Return the jobs of ftkit that have not ended. Raises Lost, InputError, NotAsked."""
    found = Account()
    jobs = [job for job in found.jobs({}, active=True) if LABEL in (job.labels or {})]
    prices = {f.name: _hourly(f) for f in found.call(found.api.list_jobs_hardware)} if jobs else {}
    return [_machine(job, prices) for job in jobs]


def _machine(job: JobInfo, prices: Mapping[str, float]) -> Machine:
    flavor = str(getattr(job.flavor, "value", job.flavor))
    hourly, seconds = prices.get(flavor), ran_seconds(job)
    usd = None if hourly is None or seconds is None else hourly * seconds / 3600
    started = job.started_at.timestamp() if job.started_at else None
    run = (job.labels or {}).get(LABEL, "")
    return Machine(NAME, job.id, run, stage_of(job).lower(), hourly, started, usd, flavor, job.url)


def stop(machine: Machine) -> tuple[str, float | None]:
    """End a job; return its stage and what it has cost. Raises Lost where it does not end."""
    info = Account().end(machine.id, poll=float(os.environ.get("FTKIT_CLOUD_POLL") or 2.0))
    if info is None:
        return "not known", None
    seconds = ran_seconds(info)
    hourly = machine.usd_per_hour
    return stage_of(info).lower(), None if hourly is None or seconds is None else hourly * seconds / 3600
