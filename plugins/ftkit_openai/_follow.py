"""What a job reports beside its model: events, losses, result files, checkpoints. None of it may stop a paid job.

Every failure here, of a request or of what it returns, is a warning in the run's log.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from ftkit.api import Run
from ftkit.errors import FtkitError
from ftkit.files import write_json

from ._client import Provider
from ._lists import items
from ._results import number_of, parse_results, step_of, text_of

_PATIENCE = 5.0  # seconds that a request for events may be retried; they are requested again at the next look
_LAST_PATIENCE = 30.0  # seconds for what is requested once, after the job has ended


class Reports:
    """Logs what the provider reports of one run's job, each event and each step once."""

    def __init__(self, provider: Provider, run: Run) -> None:
        self.provider, self.run = provider, run
        self.jobs = provider.client.fine_tuning.jobs
        rows = run.log_rows()
        self.seen = {row["id"] for row in rows if row["event"] == "provider"}
        self.steps = {row["step"] for row in rows if row["event"] == "step"}
        self.evals = {row["step"] for row in rows if row["event"] == "eval"}
        self.warned: set[str] = set()
        self.last_patience = min(_LAST_PATIENCE, provider.patience)

    @property
    def last_step(self) -> int | None:
        return max(self.steps, default=None)

    @contextlib.contextmanager
    def optional(self, what: str) -> Iterator[None]:
        """Make an error of the block a warning, once for each `what`: the job is paid for, and its model is what counts."""
        try:
            yield
        except Exception as error:
            why = error.message if isinstance(error, FtkitError) else f"{type(error).__name__}: {error}"
            self.warn(what, f"{what} failed, and the run continues without: {self.provider.clean(why)}")

    def warn(self, what: str, text: str) -> None:
        if what not in self.warned:
            self.warned.add(what)
            self.run.log("warning", message=text)

    # ---- while the job runs

    def log_events(self, job: Any) -> int:
        """Log the events that were not seen yet, the oldest first. Return their number."""
        new: list[Any] = []
        with self.optional("reading the job's events"):
            patience = min(_PATIENCE, self.provider.patience)
            listed = self.provider.read("reading the job's events", partial(self._new_events, job.id), patience)
            listed.reverse()  # the sort below keeps this order among events of the same second
            new = sorted(listed, key=lambda event: number_of(getattr(event, "created_at", None)) or 0.0)
        for event in new:
            self.seen.add(_event_id(event))
            with self.optional("reading an event of the job"):
                self._log_event(job, event)
        return len(new)

    def _new_events(self, id: str) -> list[Any]:
        found = []
        for event in items(self.jobs.list_events(id, limit=100), _event_id):  # newest first, page after page
            if _event_id(event) in self.seen:
                break
            found.append(event)
        return found

    def _log_event(self, job: Any, event: Any) -> None:
        level = text_of(getattr(event, "level", None)) or "info"
        message = self.provider.clean(text_of(getattr(event, "message", None)))
        step = step_of(event)
        if step is not None:
            self.log_step(step)
        self.run.log("provider", id=_event_id(event), level=level, message=message)
        if level in ("warn", "warning", "error"):
            self.run.log("warning", message=f"job {job.id}: {message}")

    def log_step(self, values: dict[str, Any]) -> None:
        """Log a step's training loss and its validation loss, each once."""
        step = values["step"]
        if values.get("loss") is not None and step not in self.steps:
            self.steps.add(step)
            self.run.log("step", **values)
        valid = values.get("full_valid_loss", values.get("valid_loss"))
        if valid is not None and step not in self.evals:
            self.evals.add(step)
            self.run.log("eval", step=step, loss=valid)

    # ---- after it has ended

    def save_results(self, job: Any) -> None:
        """Save the result files, the checkpoints, and the losses that no event reported."""
        listed = getattr(job, "result_files", None)
        ids = [id for id in listed if isinstance(id, str) and id] if isinstance(listed, list) else []
        for number, id in enumerate(ids):
            with self.optional(f"reading the result file {id}"):
                self._save_result_file(id, f"results{number or ''}.csv")
        with self.optional("listing the checkpoints"):
            self._save_checkpoints(job)

    def _save_result_file(self, id: str, name: str) -> None:
        data = self.provider.read("reading the result file", partial(self._download, id), self.last_patience)
        text, rows = parse_results(data)
        path = self.run.path("train", name)
        path.write_text(self.provider.mask(text), encoding="utf-8", newline="")  # it may have been encoded
        if not rows:
            self.warn(
                id, f"the job's result file {path} holds no losses: the chart shows those of the job's events alone"
            )
        for row in rows:
            self.log_step({**row, "max_steps": rows[-1]["step"]})

    def _download(self, id: str) -> bytes:
        content: bytes = self.provider.client.files.content(id).read()
        return content

    def _save_checkpoints(self, job: Any) -> None:
        found = self.provider.read(
            "listing the checkpoints", lambda: list(items(self.jobs.checkpoints.list(job.id))), self.last_patience
        )
        if not found:
            return
        ordered = sorted(found, key=checkpoint_step)
        write_json(self.run.path("train", "checkpoints.json"), [c.to_dict(warnings=False) for c in ordered])
        models = {text_of(getattr(c, "fine_tuned_model_checkpoint", None)): checkpoint_step(c) for c in ordered}
        names = [f"{name} ({f'step {step}' if step >= 0 else 'its step is not known'})" for name, step in models.items() if name]  # fmt: skip
        if len(names) < len(ordered):
            self.warn(
                "checkpoints",
                f"{len(ordered) - len(names)} of {len(ordered)} checkpoints of job {job.id} name no model of their own",
            )
        if names:
            text = f"checkpoints, each a model of its own: {', '.join(names)}"
            self.run.log("note", message=self.provider.clean(text))


def checkpoint_step(checkpoint: Any) -> int:
    """Return a checkpoint's step; -1 where the provider does not say it."""
    step = number_of(getattr(checkpoint, "step_number", None))
    return -1 if step is None else int(step)


def _event_id(event: Any) -> str:
    """Return an event's id, or a hash of its content where it has none."""
    id = getattr(event, "id", None)
    if isinstance(id, str) and id:
        return id
    content = [text_of(getattr(event, name, None)) for name in ("created_at", "message", "data")]
    return f"sha256-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]}"
