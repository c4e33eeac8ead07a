"""Train at a provider: upload the rows, create the job once, follow it, save its results."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ftkit.api import Run
from ftkit.errors import RunFailed
from ftkit.records import ModelRef, Task

from ._client import Provider
from ._connect import connect
from ._deploy import deploy
from ._errors import TRAINING_NOT_ALLOWED
from ._estimate import price_of
from ._follow import Reports
from ._models import fetch_shutdown_date
from ._once import Once, detached
from ._results import number_of, tokens_of
from ._rows import lines, write_file
from ._tags import (
    JOB,
    JOB_FINAL,
    attempt_of,
    failed_or_cancelled,
    find_jobs,
    job_status,
    job_suffix,
    job_tag,
    job_to_adopt,
)
from ._throttle import jittered
from ._upload import upload_file

if TYPE_CHECKING:
    from .options import ManagedOptions

_SHORTEST_WAIT = 0.5  # seconds between two requests for the status of a job that makes progress


def train(options: ManagedOptions, task: Task, run: Run) -> ModelRef:
    """Return the tuned model. Raises Interrupted where the user detaches: the job keeps running, and the run can resume."""
    with connect(options, run) as provider:
        try:
            return _Training(options, provider, task, run).execute()
        except (KeyboardInterrupt, Exception) as error:
            if isinstance(error, KeyboardInterrupt) or run.interrupted:
                raise detached(options, run, Job.noun, [JOB]) from None
            raise


class Job(Once):
    """The fine-tuning job of a run."""

    noun = "job"
    what = "a job"

    def __init__(self, options: ManagedOptions, provider: Provider, task: Task, run: Run) -> None:
        super().__init__(provider, run, JOB)
        self.options, self.task = options, task
        self.jobs = provider.client.fine_tuning.jobs

    def find(self) -> Any:
        return job_to_adopt(self.provider, self.run)

    def retrieve(self, id: str) -> Any:
        return self.jobs.retrieve(id)

    def status(self, found: Any) -> str:
        return job_status(self.provider, found)

    def can_replace(self, found: Any) -> bool:
        return failed_or_cancelled(self.provider, found)

    def prepare(self) -> Callable[[], Any]:
        return partial(self.jobs.create, **self.request_body())

    def request_body(self) -> dict[str, Any]:
        """Return the request that creates the job, after uploading the files that it names."""
        o, dialect = self.options, self.provider.dialect
        folder = self.run.path("train", "files")
        train_file = write_file(folder / "train.jsonl", lines(self.task.train), "train", dialect.bom)
        training_file = upload_file(self.provider, self.run, train_file, "fine-tune")
        body: dict[str, Any] = {"model": o.base_model, "training_file": training_file}
        if self.task.validation and o.validation_file:
            file = write_file(folder / "validation.jsonl", lines(self.task.validation), "validation", dialect.bom)
            body["validation_file"] = upload_file(self.provider, self.run, file, "fine-tune")
        wanted = {name: getattr(o, name) for name in dialect.hyperparameters}
        hyperparameters: dict[str, Any] = {
            dialect.hyperparameters[name]: value for name, value in wanted.items() if value not in (None, "auto")
        }
        if o.lora_r is not None:
            hyperparameters |= dialect.rank_extras
        if dialect.method:
            body["method"] = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
        else:
            body["extra_body"] = {"hyperparameters": hyperparameters}
        body["seed"] = self.run.seed if o.seed is None else o.seed
        suffix = job_suffix(self.provider, self.run)
        if suffix:
            body["suffix"] = suffix
        if o.wandb is not None:
            settings = {k: v for k, v in o.wandb.model_dump().items() if v not in (None, [])}
            body["integrations"] = [{"type": "wandb", "wandb": settings}]
        if dialect.extra_body:
            body["extra_body"] = {**body.get("extra_body", {}), **dialect.extra_body}
        if dialect.metadata:
            content = hashlib.sha256(json.dumps([train_file.sha256, body], sort_keys=True).encode()).hexdigest()
            body["metadata"] = {**job_tag(self.run), "ftkit_content": content}
        return body


class _Training:
    """One job from its creation to the tuned model."""

    def __init__(self, options: ManagedOptions, provider: Provider, task: Task, run: Run) -> None:
        self.options, self.provider, self.run = options, provider, run
        self.job = Job(options, provider, task, run)
        self.jobs = provider.client.fine_tuning.jobs
        self.reports = Reports(provider, run)
        self.status: str | None = None
        self.finish: float | None = None  # when the provider expects the job to finish, in seconds since 1970

    def execute(self) -> ModelRef:
        job = self.job.known()
        if job is None:
            job = self.job.adopt_or_create()
        if attempt_of(self.run, JOB) > 1:
            self.warn_of_other_jobs(job)
        job = self.follow(job)
        self.warn_of_other_jobs(job)
        self.reports.save_results(job)
        if job_status(self.provider, job) != "succeeded":
            raise self.failure_of(job)
        return self.tuned_model(job)

    def warn_of_other_jobs(self, job: Any) -> None:
        """Warn where other jobs carry the run's tag: one of unknown outcome may appear after another was created."""
        with contextlib.suppress(RunFailed):  # a warning must not fail a paid job
            found = self.provider.read("looking for other jobs", lambda: find_jobs(self.provider, self.run), 5.0)
            ids = [j.id for j in found if j.id != job.id and not failed_or_cancelled(self.provider, j)] + [job.id]
            if len(ids) > 1:
                which = "the others" if job_status(self.provider, job) in JOB_FINAL else "all that have not ended"
                text = f"{len(ids)} jobs carry this run's metadata tag: {', '.join(ids)}; `ftkit cancel {self.run.dir}` cancels {which}"
                self.run.log("warning", message=text)

    # ---- following the job

    def follow(self, job: Any) -> Any:
        """Return the job when it has ended. Log its events, each once, and what the user waits for."""
        shortest = delay = min(_SHORTEST_WAIT, self.options.poll_seconds / 4)
        while True:
            changes = self.report_progress(job)
            changes += self.reports.log_events(job)
            if job_status(self.provider, job) in JOB_FINAL:
                return job
            delay = shortest if changes else min(delay * 1.5, self.options.poll_seconds)
            time.sleep(jittered(delay))
            job = self.provider.read(
                f"looking at job {job.id} (it keeps running at the provider)", partial(self.jobs.retrieve, job.id)
            )

    def report_progress(self, job: Any) -> int:
        """Log a change of the status or of the expected finish. Return the number of changes."""
        changes = 0
        status = job_status(self.provider, job)
        if status != self.status:
            self.status, changes = status, 1
            known = status in (*JOB_FINAL, "validating_files", "queued", "running")
            more = "" if known else ": the job waits at the provider, and the run looks at it until it ends"
            self.run.log("note", message=f"job {job.id}: {status}{more}")
        with self.reports.optional("reading when the job is expected to finish"):
            changes += self.report_finish(job)
        return changes

    def report_finish(self, job: Any) -> int:
        finish = number_of(getattr(job, "estimated_finish", None))
        if not finish or self.status != "running" or (self.finish is not None and abs(finish - self.finish) <= 60):
            return 0
        self.finish = finish
        left = max(0, round((finish - time.time()) / 60))
        at = time.strftime("%Y-%m-%d %H:%M", time.localtime(finish))
        self.run.log("note", message=f"the provider expects job {job.id} to finish at {at}, in {left} min")
        return 1

    # ---- the results of the job

    def failure_of(self, job: Any) -> RunFailed:
        """Return the error that says why a job failed or was cancelled."""
        status, error = job_status(self.provider, job), getattr(job, "error", None)
        reason = self.provider.clean(getattr(error, "message", None) or "the provider gives no reason")
        code = str(getattr(error, "code", None) or "")
        if status == "cancelled":
            return RunFailed(f"job {job.id} was cancelled", self.job.another_hint())
        if any(
            word in f"{code} {reason}".lower()
            for word in ("moderation", "unsafe", "safety", "content_policy", "usage polic")
        ):
            return RunFailed(
                f"job {job.id} was blocked by moderation: {reason}",
                "remove the rows that are not allowed, and run again",
            )
        if "training_not_available" in code:
            return RunFailed(f"job {job.id}: {reason}", TRAINING_NOT_ALLOWED)
        if (
            "file" in code
            or getattr(error, "param", None) in ("training_file", "validation_file")
            or "n_examples" in code
        ):
            return RunFailed(f"job {job.id}: the file did not pass validation: {reason}",
                             f"the line numbers are those of {self.run.path('train', 'files', 'train.jsonl')}; fix the data, and run again")  # fmt: skip
        return RunFailed(f"job {job.id} failed{f' ({code})' if code else ''}: {reason}", self.job.another_hint())

    def tuned_model(self, job: Any) -> ModelRef:
        """Return the tuned model, and log what its training cost."""
        price = price_of(self.options)
        tokens = tokens_of(getattr(job, "trained_tokens", None))
        usd = None if price is None or tokens is None else round(tokens * price.training / 1e6, 6)
        facts = {"job": job.id, "trained_tokens": tokens, "usd": usd, "steps": self.reports.last_step}
        uri = deploy(self.provider, self.run, job)
        authoritative = self.provider.dialect.authoritative
        shutdown_date = None if authoritative else fetch_shutdown_date(self.provider, uri)
        meta = {"hosted_by": self.provider.hosted_by, "shutdown_date": shutdown_date, "job": job.id}
        self.run.log("end", **{k: v for k, v in facts.items() if v is not None})
        return ModelRef("remote", uri, self.options.base_model, {k: v for k, v in meta.items() if v is not None})
