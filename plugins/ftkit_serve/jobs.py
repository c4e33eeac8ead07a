"""The queue of fine-tuning jobs: one job trains at a time, in a child process. All jobs survive a restart.

The database holds what clients want (a job's status), the job's run directory holds what was done. The thread brings
the two together. A job with status `running` and without a child process was interrupted: it resumes.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from ftkit.directory import RunDirectory, utc_now
from ftkit.errors import FtkitError, InputError
from ftkit.files import digest, read_json, write_atomic, write_json
from ftkit.recipe.load import load_recipe
from ftkit.records import Example, RunRecord, Task

from .chats import MIN_EXAMPLES, InvalidFile, read_examples
from .events import record_event, record_log
from .files import Files
from .finish import finish, remove_scratch
from .models import ServedModel, resolve_hyperparameters, training_backend
from .shortage import EXIT_STATUS, RETRY, Shortage, explained, log, shortage_of
from .store import Database, Doc, now

ACTIVE = ("validating_files", "queued", "running", "paused")
_REPORT_AGAIN = 600  # seconds until the events of a job report the same shortage again


class Jobs:
    """A thread that validates, trains and finishes jobs. Set `wake` after a change in the database."""

    def __init__(self, data: Path, database: Database, files: Files, models: dict[str, ServedModel]) -> None:
        self.folder, self.database, self.files, self.models = data / "jobs", database, files, models
        self.folder.mkdir(exist_ok=True)
        self.wake = threading.Event()
        self._stop = threading.Event()
        self._child: tuple[str, subprocess.Popen[bytes]] | None = None  # job id, process
        self._waits: dict[str, tuple[str, int | None]] = {}  # job id -> shortage, time when its events reported it
        self._thread = threading.Thread(target=self._loop, name="jobs", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread and the child process. A running job resumes when the server is started again."""
        self._stop.set()
        self.wake.set()
        self._thread.join()

    # ---- the thread

    def _loop(self) -> None:
        while not self._stop.is_set():
            self.wake.clear()
            pause = 5.0
            try:
                if not self._round():
                    pause = RETRY
            except Exception as error:  # of the database, or an error that could not be stored: the thread continues
                log.warning("jobs wait: %s", explained(error))
                pause = RETRY
            self.wake.wait(0.1 if self._child and pause != RETRY else pause)
        self._end_child()

    def _round(self) -> bool:
        """Take a step of each job that has one. Return whether all of them had what they need of the machine."""
        steps = [(self._watch, self._child[0])] if self._child else []
        steps += [(self._validate, job["id"]) for job in self.database.with_status("job", "validating_files")]
        done = [self._step(step, id) for step, id in steps]
        if self._child is None and all(done) and (waiting := self.database.with_status("job", "running", "queued")):
            done.append(self._step(self._train, waiting[0]["id"]))
        return all(done)

    def _step(self, step: Callable[[Doc], None], id: str) -> bool:
        """Take one step of a job. An error fails this job, but for a shortage: then return False, the job waits."""
        job = self.database.get("job", id)
        assert job is not None
        self._tell_wait(id)
        try:
            step(job)
        except InvalidFile as error:
            self._fail(id, error.code, str(error), error.param)
        except Exception as error:
            if reason := shortage_of(error):
                log.warning("job %s waits: %s", id, explained(error))
                known, reported = self._waits.get(id, ("", None))
                if known != reason or (reported is not None and now() - reported > _REPORT_AGAIN):
                    self._waits[id] = (reason, None)
                    self._tell_wait(id)
                return False
            if self._child is not None and self._child[0] == id:
                self._end_child()
            if not isinstance(error, FtkitError):
                log.warning("job %s failed", id, exc_info=error)
            message = error.message if isinstance(error, FtkitError) else f"{type(error).__name__}: {error}"
            self._fail(id, "server_error", message)
        return True

    def _tell_wait(self, id: str) -> None:
        """Tell in the events of a job why it waits: at once if that can be stored, otherwise before it continues."""
        if id in self._waits and self._waits[id][1] is None:
            reason = self._waits[id][0]
            with contextlib.suppress(sqlite3.Error, MemoryError):
                record_event(self.database, id, f"The job waits because {reason}. It continues by itself.", "warn")
                self._waits[id] = (reason, now())

    def _validate(self, job: Doc) -> None:
        warnings: list[str] = []
        rows = len(self._examples(job, warnings)["train"])
        found = resolve_hyperparameters(self._model(job), job["_requested"], rows)
        method = {"type": "supervised", "supervised": {"hyperparameters": found}}
        with self.database.transaction():  # the events are recorded once, even if an earlier attempt was interrupted
            changes: Doc = {"status": "queued", "hyperparameters": found, "method": method}
            if self.database.update("job", job["id"], ("validating_files",), **changes) is None:
                return
            for param in ("training_file", "validation_file"):
                if job[param]:
                    record_event(self.database, job["id"], f"Validating {param.replace('_', ' ')}: {job[param]}")
            for warning in warnings:
                record_event(self.database, job["id"], warning, "warn")
            record_event(self.database, job["id"], "Files validated, moving job to queued state")

    def _model(self, job: Doc) -> ServedModel:
        if job["model"] not in self.models:
            raise InputError(f"The model {job['model']} is no longer served here.")
        return self.models[job["model"]]

    def _examples(self, job: Doc, warnings: list[str] | None = None) -> dict[str, list[Example]]:
        """Return the examples of the job's files. Adds to `warnings` what of the files is not read."""

        def read(param: str, minimum: int) -> list[Example]:
            return read_examples(self.files.path(job[param]), param, minimum, warnings)

        found = {"train": read("training_file", MIN_EXAMPLES)}
        if job["validation_file"]:
            found["validation"] = read("validation_file", 1)
        return found

    def _train(self, job: Doc) -> None:
        """Start the training process, or finish the job if an earlier process left the trained model."""
        run = self._open_run(job)
        with self.database.transaction():
            if not self.database.update("job", job["id"], ("queued", "running"), status="running", _started=True):
                return
            if not job["_started"]:
                record_event(self.database, job["id"], "Fine-tuning job started")
        if run.model() is not None:
            record_log(self.database, job, run)
            finish(self.database, self.files, job, run)
            return
        with open(run.path("debug.log"), "ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "ftkit_serve.worker", str(run.dir), "--end-with-stdin"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the server alone, which then ends the child
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
            )
        self._child = (job["id"], child)

    def _open_run(self, job: Doc) -> RunDirectory:
        """Return the job's run directory; create it if there is none."""
        directory = self.folder / job["id"]
        if (directory / "run.json").exists():
            return RunDirectory.open(directory)
        splits = {name: tuple(rows) for name, rows in self._examples(job).items()}
        directory.mkdir(exist_ok=True)
        run = RunDirectory(directory)
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
        # Last: a directory with run.json is complete.
        write_json(run.path("run.json"), RunRecord(job["id"], job["id"], "running", utc_now(), kind="job").to_dict())
        return RunDirectory.open(directory)

    def _watch(self, job: Doc) -> None:
        """Record new training steps. End the child if the job was paused or cancelled, the job if the child ended."""
        assert self._child is not None
        child = self._child[1]
        if job["status"] == "queued":  # paused and resumed within one interval: the child still runs
            self.database.update("job", job["id"], ("queued",), status="running")
        elif job["status"] != "running":
            self._end_child()
            if job["status"] == "cancelled":
                remove_scratch(self.folder / job["id"])
            return
        ended = child.poll() is not None  # before the log is read: the last lines are in it
        run = RunDirectory.open(self.folder / job["id"])
        record_log(self.database, job, run)
        if not ended:
            return
        self._child = None
        if run.path("train", "model.json").exists():
            finish(self.database, self.files, job, run)
        elif child.returncode == EXIT_STATUS:
            raise Shortage(_shortage_in(run))
        elif run.path("train", "error.json").exists():
            error = read_json(run.path("train", "error.json"))
            self._fail(job["id"], "training_failed", "\n  ".join(filter(None, [error["message"], error["hint"]])))
        else:
            self._fail(job["id"], "server_error", f"The training process ended with status {child.returncode}.")

    def _fail(self, id: str, code: str, message: str, param: str | None = None) -> None:
        error = {"code": code, "message": message, "param": param}
        changes: Doc = {"status": "failed", "error": error, "finished_at": now(), "estimated_finish": None}
        with self.database.transaction():
            if self.database.update("job", id, ACTIVE, **changes):
                record_event(self.database, id, f"Fine-tuning job failed: {message}", "error")
        remove_scratch(self.folder / id)

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


def _shortage_in(run: RunDirectory) -> str:
    """Return what the training process lacked."""
    path = run.path("train", "error.json")
    said = read_json(path)["message"] if path.exists() else "no disk space, memory or file descriptors"
    return f"its training process stopped: {said}"
