"""The queue of fine-tuning jobs: one is trained at a time, in a child process, and all survive a restart.

The database holds what is wanted (a job's status), the job's run directory what was done; the worker
brings the two together. A job that is `running` without a child was cut off: it goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ftkit.errors import FtkitError, InputError
from ftkit.recipe import load_recipe
from ftkit.records import Example, RunRecord, Task
from ftkit.store import RunContext, digest, read_json, utc_now, write_atomic, write_json

from . import results
from .files import Files
from .models import ServedModel, settled, training_backend
from .rows import MIN_EXAMPLES, BadFile, read_examples
from .store import Doc, Store, new_id, now

ACTIVE = ("validating_files", "queued", "running", "paused")
ORGANISATION = "org-ftkit"


class Jobs:
    """A thread that validates, trains and finishes jobs; `wake` tells it that something changed."""

    def __init__(self, data: Path, store: Store, files: Files, models: dict[str, ServedModel]) -> None:
        self.folder, self.store, self.files, self.models = data / "jobs", store, files, models
        self.folder.mkdir(exist_ok=True)
        self.wake = threading.Event()
        self._stop = threading.Event()
        self._child: tuple[str, subprocess.Popen[bytes]] | None = None  # job id, process
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread and the child; a running job goes on when the server is started again."""
        self._stop.set()
        self.wake.set()
        self._thread.join()

    def event(self, job: str, message: str, level: str = "info", **data: Any) -> None:
        self.store.add(
            "event",
            {
                "object": "fine_tuning.job.event",
                "id": new_id("ftevent-"),
                "created_at": now(),
                "level": level,
                "message": message,
                "type": "metrics" if data else "message",
                "data": data,
            },
            parent=job,
        )

    # ---- the thread

    def _work(self) -> None:
        while not self._stop.is_set():
            self.wake.clear()
            if self._child is not None:
                self._step(self._watch, self._child[0])
            for job in self.store.waiting("job", "validating_files"):
                self._step(self._validate, job["id"])
            if self._child is None and (due := self.store.waiting("job", "running", "queued")):
                self._step(self._train, due[0]["id"])
            self.wake.wait(0.1 if self._child else 5.0)
        self._end_child()

    def _step(self, step: Callable[[Doc], None], id: str) -> None:
        """Take one step; whatever goes wrong ends this job and never the thread."""
        job = self.store.get("job", id)
        assert job is not None
        try:
            step(job)
        except BadFile as error:
            self._fail(id, error.code, str(error), error.param)
        except Exception as error:
            if self._child is not None and self._child[0] == id:
                self._end_child()
            message = error.message if isinstance(error, FtkitError) else f"{type(error).__name__}: {error}"
            self._fail(id, "server_error", message)

    def _validate(self, job: Doc) -> None:
        rows = len(self._examples(job)["train"])
        found = settled(self._model(job), job["_wanted"], rows)
        method = {"type": "supervised", "supervised": {"hyperparameters": found}}
        with self.store.together():  # told once, also where a first look was cut off
            changes: Doc = {"status": "queued", "hyperparameters": found, "method": method}
            if self.store.update("job", job["id"], ("validating_files",), **changes) is None:
                return
            for param in ("training_file", "validation_file"):
                if job[param]:
                    self.event(job["id"], f"Validating {param.replace('_', ' ')}: {job[param]}")
            self.event(job["id"], "Files validated, moving job to queued state")

    def _model(self, job: Doc) -> ServedModel:
        if job["model"] not in self.models:
            raise InputError(f"The model {job['model']} is no longer served here.")
        return self.models[job["model"]]

    def _examples(self, job: Doc) -> dict[str, list[Example]]:
        found = {"train": read_examples(self.files.path(job["training_file"]), "training_file", MIN_EXAMPLES)}
        if job["validation_file"]:
            found["validation"] = read_examples(self.files.path(job["validation_file"]), "validation_file", 1)
        return found

    def _train(self, job: Doc) -> None:
        """Start the child, or finish at once where an earlier child had handed over the model."""
        run = self._run_of(job)
        with self.store.together():
            if not self.store.update("job", job["id"], ("queued", "running"), status="running", _started=True):
                return
            if not job["_started"]:
                self.event(job["id"], "Fine-tuning job started")
        if run.model() is not None:
            self._tell(job, run)
            results.finish(self, job, run)
            return
        run.path("train", "error.json").unlink(missing_ok=True)
        with open(run.path("debug.log"), "ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "ftkit_openai.server.train", str(run.dir)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the server, which then ends the child
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
            )
        self._child = (job["id"], child)

    def _run_of(self, job: Doc) -> RunContext:
        """Return the job's run directory, made if need be."""
        directory = self.folder / job["id"]
        if (directory / "run.json").exists():
            return RunContext.open(directory)
        splits = {name: tuple(rows) for name, rows in self._examples(job).items()}
        directory.mkdir(exist_ok=True)
        run = RunContext(directory)
        recipe = load_recipe(
            {
                "name": job["id"],
                "seed": job["seed"],
                "dataset": {"path": str(self.files.path(job["training_file"])), "columns": {"messages": "messages"}},
                "backend": training_backend(self._model(job), job["hyperparameters"], len(splits["train"])),
                "evaluator": "exact-match",
            }
        )
        hashes = {name: digest([example.to_dict() for example in rows]) for name, rows in splits.items()}
        run.save_task(Task(job["id"], splits, hashes, digest("")))
        write_atomic(run.path("recipe.yaml"), recipe.to_yaml())
        # Last: a directory with this file is whole.
        write_json(run.path("run.json"), RunRecord(job["id"], job["id"], "running", utc_now(), kind="job").to_dict())
        return RunContext.open(directory)

    def _watch(self, job: Doc) -> None:
        """Tell of new steps; end the child where the job is no longer wanted, and the job where the child ended."""
        assert self._child is not None
        child = self._child[1]
        if job["status"] == "queued":  # paused and resumed at once: the child never stopped
            self.store.update("job", job["id"], ("queued",), status="running")
        elif job["status"] != "running":
            self._end_child()
            if job["status"] == "cancelled":
                self.clear(job["id"])
            return
        ended = child.poll() is not None  # asked first: what it logged before it ended is read below
        run = RunContext.open(self.folder / job["id"])
        self._tell(job, run)
        if not ended:
            return
        self._child = None
        if run.path("train", "model.json").exists():
            results.finish(self, job, run)
        elif run.path("train", "error.json").exists():
            self._fail(job["id"], "training_failed", read_json(run.path("train", "error.json"))["message"])
        else:
            self._fail(job["id"], "server_error", f"The training process ended with status {child.returncode}.")

    def _tell(self, job: Doc, run: RunContext) -> None:
        """Make an event of each step that is not yet told, also of those that a killed child logged."""
        path = run.path("train", "log.jsonl")
        if not path.exists():
            return
        with open(path, "rb") as file:
            file.seek(job["_log_read"])
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        if not whole:
            return
        step, finish, clock = job["_step"], job["estimated_finish"], job["_clock"]
        with self.store.together():
            for row in map(json.loads, whole.splitlines()):
                if row["event"] == "step":
                    seconds = row.get("seconds") or 0.0
                    if clock is None or seconds < clock["seconds"]:  # a new child counts from 0
                        clock = {"first": row["step"] - 1, "seconds": 0.0}
                    clock = {**clock, "seconds": seconds}
                    pace = seconds / max(1, row["step"] - clock["first"])  # seconds per step
                    finish = int(row["time"] + pace * (row["max_steps"] - row["step"])) + 1
                    if row["step"] > step:  # a resumed training repeats steps since its checkpoint
                        step = row["step"]
                        self._tell_step(job["id"], row)
                elif row["event"] in ("note", "warning"):
                    self.event(job["id"], row["message"], "warn" if row["event"] == "warning" else "info")
            read = job["_log_read"] + len(whole)
            self.store.update("job", job["id"], _log_read=read, _step=step, _clock=clock, estimated_finish=finish)

    def _tell_step(self, id: str, row: Doc) -> None:
        data = results.metrics(row)
        if "train_loss" in data:
            text = f"Step {row['step']}/{row['max_steps']}: training loss={data['train_loss']:.4f}"
            self.event(id, text, total_steps=row["max_steps"], **data)

    def _fail(self, id: str, code: str, message: str, param: str | None = None) -> None:
        error = {"code": code, "message": message, "param": param}
        changes: Doc = {"status": "failed", "error": error, "finished_at": now(), "estimated_finish": None}
        with self.store.together():
            if self.store.update("job", id, ACTIVE, **changes):
                self.event(id, f"Fine-tuning job failed: {message}", "error")
        self.clear(id)

    def clear(self, id: str) -> None:
        """Remove the checkpoints of a job that will not go on."""
        shutil.rmtree(self.folder / id / ".work", ignore_errors=True)

    def _end_child(self) -> None:
        if self._child is None:
            return
        child = self._child[1]
        self._child = None
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(5)
        child.kill()
        child.wait()
        assert child.stdin is not None
        child.stdin.close()
