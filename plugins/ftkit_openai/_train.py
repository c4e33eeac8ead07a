"""Train at a provider: upload, create the job once, follow it, take its results."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from typing import TYPE_CHECKING, Any

import openai

from ftkit.api import Run
from ftkit.errors import Interrupted, RunFailed
from ftkit.files import write_json
from ftkit.records import ModelRef, Task

from ._client import BARRED, Provider, jittered
from ._connect import connected
from ._create import create_again, create_once, in_doubt, taken_again
from ._deploy import deployed
from ._dialects import is_own_server
from ._marks import ENDS, ended_badly, find_jobs, job_mark, job_status, job_suffix, job_to_take
from ._preflight import last_day, price_of
from ._results import rows_of_results, step_of
from ._rows import lines, write_file
from ._upload import uploaded

if TYPE_CHECKING:
    from . import ManagedOptions

_FASTEST = 0.5  # seconds between two looks at a job that moves


def train(options: ManagedOptions, task: Task, run: Run) -> ModelRef:
    """Return the tuned model. Raises Interrupted where the user detaches: the job goes on, and can be come back to."""
    with connected(options, run) as provider:
        try:
            return _Training(options, provider, task, run).go()
        except (KeyboardInterrupt, Exception) as error:
            if isinstance(error, KeyboardInterrupt) or run.interrupted:
                raise _detached(options, run) from None
            raise


def _detached(options: ManagedOptions, run: Run) -> Interrupted:
    state = run.state.get("job") or {}
    back = f"come back with: ftkit run --resume {run.dir}"
    if state.get("id") and is_own_server(options):
        return Interrupted(f"detached: job {state['id']} waits with its server", back)
    if state.get("id"):
        return Interrupted(f"detached: job {state['id']} goes on at the provider, and is paid for",
                           f"{back}\n  end it for good with: ftkit cancel {run.dir}")  # fmt: skip
    if in_doubt(run, "job"):
        return Interrupted("interrupted while it is unknown whether a job exists", f"{back} (it looks for the job first)\n"
                           f"  end it for good with: ftkit cancel {run.dir}")  # fmt: skip
    return Interrupted("interrupted before a job was created", back)


class _Training:
    def __init__(self, options: ManagedOptions, provider: Provider, task: Task, run: Run) -> None:
        self.options, self.provider, self.task, self.run = options, provider, task, run
        self.jobs = provider.client.fine_tuning.jobs
        rows = run.log_rows()
        self.seen = {row["id"] for row in rows if row["event"] == "provider"}
        self.steps = {row["step"] for row in rows if row["event"] == "step"}
        self.evals = {row["step"] for row in rows if row["event"] == "eval"}
        self.status: str | None = None
        self.finish: int | None = None

    def go(self) -> ModelRef:
        job = self.job()
        if self.run.state.get("attempt", 1) > 1:
            self.others(job)
        job = self.follow(job)
        self.others(job)
        self.results(job)
        if job_status(self.provider, job) != "succeeded":
            raise self.failed(job)
        return self.model(job)

    # ---- one job, and only one

    def job(self) -> Any:
        """Return this run's job: the one of an earlier attempt, or a new one."""
        provider, run = self.provider, self.run
        known = (run.state.get("job") or {}).get("id")
        job = self.known(known) if known else None
        if job is not None:
            return job

        def find() -> Any:
            return job_to_take(provider, run)

        job = taken_again(provider, run, "job", find, "a job")
        if job is not None:
            return job
        if in_doubt(run, "job") and create_again(run):
            self.next_attempt()  # told apart from the one in doubt, should that show yet
        body = self.body()
        return create_once(provider, run, "job", lambda: self.jobs.create(**body), find, "a job")

    def known(self, id: str) -> Any:
        """Return the job that an earlier attempt took; None where the user wants another, and may have it."""
        again = create_again(self.run)
        job = self.provider.read("looking at the job", lambda: self.retrieved(id))
        if job is None:
            lost = f"{self.provider.dialect.where} knows no job {id} (404)"
            job = self.provider.read("looking for the job", lambda: job_to_take(self.provider, self.run))
            if job is not None:
                self.run.log("warning", message=f"{lost}: job {job.id}, which carries this run's mark, is taken")
                self.run.save_state(job={"phase": "created", "id": job.id})
            elif again:
                self.run.log("warning", message=f"{lost}: another is made, as asked")
            else:
                raise RunFailed(
                    lost,
                    f"do backend.base_url and the key belong to it? look again: ftkit run --resume {self.run.dir}\n"
                    f"  another job, paid anew: ftkit run --resume {self.run.dir} --create-again",
                )
        if again and (job is None or ended_badly(self.provider, job)):
            self.next_attempt()
            self.run.save_state(job=None)
            return None
        if again:
            said = f"job {job.id} is {job_status(self.provider, job)}: --create-again makes no second one"
            self.run.log("warning", message=said)
            self.run.save_state(create_again=False)
        return job

    def retrieved(self, id: str) -> Any:
        try:
            return self.jobs.retrieve(id)
        except openai.NotFoundError:
            return None

    def next_attempt(self) -> None:
        self.run.save_state(attempt=self.run.state.get("attempt", 1) + 1)

    def others(self, job: Any) -> None:
        """Warn where further jobs carry the run's mark: one that was in doubt may show after another was made."""
        with contextlib.suppress(RunFailed):  # a warning is not worth failing a paid job
            found = self.provider.read("looking for further jobs", lambda: find_jobs(self.provider, self.run), 5.0)
            ids = [j.id for j in found if j.id != job.id and not ended_badly(self.provider, j)] + [job.id]
            if len(ids) > 1:
                ends = "the others" if job_status(self.provider, job) in ENDS else "all that have not ended"
                said = f"{len(ids)} jobs carry this run's mark: {', '.join(ids)}; `ftkit cancel {self.run.dir}` ends {ends}"
                self.run.log("warning", message=said)

    def body(self) -> dict[str, Any]:
        """Return the create request, after uploading what it names."""
        o, dialect = self.options, self.provider.dialect
        folder = self.run.path("train", "files")
        train_file = write_file(folder / "train.jsonl", lines(self.task.train), "train", dialect.bom)
        training_file = uploaded(self.provider, self.run, train_file, "fine-tune")
        body: dict[str, Any] = {"model": o.base_model, "training_file": training_file}
        if self.task.validation and o.validation_file:
            file = write_file(folder / "validation.jsonl", lines(self.task.validation), "validation", dialect.bom)
            body["validation_file"] = uploaded(self.provider, self.run, file, "fine-tune")
        wanted = {name: getattr(o, name) for name in dialect.hyperparameters}
        hyperparameters: dict[str, Any] = {
            dialect.hyperparameters[name]: value for name, value in wanted.items() if value not in (None, "auto")
        }
        if o.lora_r is not None:
            hyperparameters |= dialect.with_rank
        if dialect.method:
            body["method"] = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
        else:
            body["extra_body"] = {"hyperparameters": hyperparameters}
        body["seed"] = self.run.seed if o.seed is None else o.seed
        suffix = job_suffix(o, self.provider, self.run)
        if suffix:
            body["suffix"] = suffix
        if o.wandb is not None:
            settings = {k: v for k, v in o.wandb.model_dump().items() if v not in (None, [])}
            body["integrations"] = [{"type": "wandb", "wandb": settings}]
        if dialect.extra_body:
            body["extra_body"] = {**body.get("extra_body", {}), **dialect.extra_body}
        if dialect.metadata:
            content = hashlib.sha256(json.dumps([train_file.sha256, body], sort_keys=True).encode()).hexdigest()
            body["metadata"] = {**job_mark(self.run), "ftkit_content": content}
        return body

    # ---- following it

    def follow(self, job: Any) -> Any:
        """Return the job when it has ended; log its events, each once, and show what people wait for."""
        fastest = delay = min(_FASTEST, self.options.poll_seconds / 4)
        while True:
            moved = self.show(job)
            moved += self.events(job)
            if job_status(self.provider, job) in ENDS:
                return job
            delay = fastest if moved else min(delay * 1.5, self.options.poll_seconds)
            time.sleep(jittered(delay))
            job = self.provider.read(
                f"looking at job {job.id} (it goes on at the provider)",
                lambda id=job.id: self.jobs.retrieve(id),  # type: ignore[misc]
            )

    def show(self, job: Any) -> int:
        """Tell of a change of status, and of when the provider expects to be done. Return how many changes there were."""
        changes = 0
        status = job_status(self.provider, job)
        if status != self.status:
            self.status, changes = status, 1
            known = status in (*ENDS, "validating_files", "queued", "running")
            more = "" if known else ": it waits at the provider, and is looked at until it ends"
            self.run.log("note", message=f"job {job.id}: {status}{more}")
        finish = getattr(job, "estimated_finish", None)
        if finish and status == "running" and (self.finish is None or abs(finish - self.finish) > 60):
            self.finish, changes = finish, changes + 1
            left = max(0, round((finish - time.time()) / 60))
            at = time.strftime("%Y-%m-%d %H:%M", time.localtime(finish))
            self.run.log("note", message=f"the provider expects job {job.id} to finish at {at}, in {left} min")
        return changes

    def events(self, job: Any) -> int:
        """Log the events that were not seen yet, oldest first; return how many."""

        def new() -> list[Any]:
            found = []
            for event in self.jobs.list_events(job.id, limit=100):  # newest first, page after page
                if event.id in self.seen:
                    break
                found.append(event)
            return found

        listed = self.provider.read("reading the job's events", new)
        listed.reverse()  # of one second, the earlier comes first: sorting keeps it so
        fresh = sorted(listed, key=lambda event: event.created_at)
        for event in fresh:
            self.seen.add(event.id)
            step = step_of(event)
            if step is not None:
                self.step(step)
            self.run.log("provider", id=event.id, level=event.level, message=self.provider.clean(event.message))
            if event.level in ("warn", "error"):
                self.run.log("warning", message=f"job {job.id}: {self.provider.clean(event.message)}")
        return len(fresh)

    def step(self, values: dict[str, Any]) -> None:
        """Log a step's training loss and its validation loss, each once."""
        step = values["step"]
        if values.get("loss") is not None and step not in self.steps:
            self.steps.add(step)
            self.run.log("step", **values)
        valid = values.get("full_valid_loss", values.get("valid_loss"))
        if valid is not None and step not in self.evals:
            self.evals.add(step)
            self.run.log("eval", step=step, loss=valid)

    # ---- what it leaves

    def results(self, job: Any) -> None:
        """Keep the result files, the checkpoints, and the losses that no event told of."""
        for number, id in enumerate(job.result_files or ()):
            with contextlib.suppress(RunFailed):  # a curve is not worth failing a paid job
                data = self.provider.read(
                    "reading the result file", lambda id=id: self.provider.client.files.content(id).read(), 30.0
                )  # type: ignore[misc]
                text, rows = rows_of_results(data)
                path = self.run.path("train", f"results{number or ''}.csv")
                path.write_text(text, encoding="utf-8")
                for row in rows:
                    self.step({**row, "max_steps": rows[-1]["step"]})
        with contextlib.suppress(RunFailed):
            found = self.provider.read(
                "listing the checkpoints", lambda: list(self.jobs.checkpoints.list(job.id)), 30.0
            )
            if found:
                listed = sorted((c.to_dict() for c in found), key=lambda c: c["step_number"])
                write_json(self.run.path("train", "checkpoints.json"), listed)
                names = ", ".join(f"{c['fine_tuned_model_checkpoint']} (step {c['step_number']})" for c in listed)
                self.run.log("note", message=f"checkpoints, each a model of its own: {names}")

    def failed(self, job: Any) -> RunFailed:
        status, error = job_status(self.provider, job), getattr(job, "error", None)
        said = self.provider.clean(getattr(error, "message", None) or "the provider gives no reason")
        code = str(getattr(error, "code", None) or "")
        another = f"another job, paid anew: ftkit run --resume {self.run.dir} --create-again"
        if status == "cancelled":
            return RunFailed(f"job {job.id} was cancelled", another)
        if any(
            word in f"{code} {said}".lower()
            for word in ("moderation", "unsafe", "safety", "content_policy", "usage polic")
        ):
            return RunFailed(
                f"job {job.id} was blocked by moderation: {said}", "remove the rows that it may not see, and run again"
            )
        if "training_not_available" in code:
            return RunFailed(f"job {job.id}: {said}", BARRED)
        if (
            "file" in code
            or getattr(error, "param", None) in ("training_file", "validation_file")
            or "n_examples" in code
        ):
            return RunFailed(f"job {job.id}: the file did not pass validation: {said}",
                             f"the line numbers are those of {self.run.path('train', 'files', 'train.jsonl')}; mend the data, and run again")  # fmt: skip
        return RunFailed(f"job {job.id} failed{f' ({code})' if code else ''}: {said}", another)

    def model(self, job: Any) -> ModelRef:
        """Return the handle of the tuned model, and log what its training cost."""
        price = price_of(self.options)
        tokens = getattr(job, "trained_tokens", None)
        usd = None if price is None or tokens is None else round(tokens * price.training / 1e6, 6)
        facts = {"job": job.id, "trained_tokens": tokens, "usd": usd, "steps": max(self.steps, default=None)}
        uri = deployed(self.provider, self.run, job)
        until = last_day(self.provider, uri) if not self.provider.dialect.authoritative else None
        meta = {"lives": self.provider.lives, "until": until, "job": job.id}
        self.run.log("end", **{k: v for k, v in facts.items() if v is not None})
        return ModelRef("remote", uri, self.options.base_model, {k: v for k, v in meta.items() if v is not None})
