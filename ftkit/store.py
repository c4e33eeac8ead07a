"""The run directory: one writer at a time, and what can be read back.

A `RunContext` is a run directory opened. It can be opened from the directory alone, by a worker
process or on another machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import functools
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .errors import FtkitError, InputError, RunFailed
from .files import Journal as Journal
from .files import digest as digest
from .files import dump_json as dump_json
from .files import publish as publish
from .files import read_json as read_json
from .files import read_jsonl as read_jsonl
from .files import sync_tree as sync_tree
from .files import write_atomic as write_atomic
from .files import write_json as write_json
from .files import write_jsonl as write_jsonl
from .records import Example, Metric, ModelRef, Prediction, RunRecord, Score, Task

if TYPE_CHECKING:
    from .recipe import Recipe


def utc_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "run"


def _lock(file: TextIO) -> None:
    """Lock a file for this process. Raises BlockingIOError where another holds it for more than a moment."""
    deadline = time.monotonic() + 0.3  # `is_held` holds it for a moment, to look
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)


class RunContext:
    """A run directory opened: paths, seed, log, persisted state, and the records of what happened."""

    def __init__(self, directory: Path) -> None:
        self.dir = directory
        #: Whether Ctrl-C was pressed: a library may have turned the KeyboardInterrupt into an error of its own.
        self.stop_asked: Callable[[], bool] = lambda: False

    @classmethod
    def create(cls, out: Path, name: str, recipe: str | None = None, reuse: bool = True) -> RunContext:
        """Make a new directory `out/NAME-TIME-RANDOM` with run.json and, before it, recipe.yaml.

        A directory with a run.json is a run, and can be resumed.
        """
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        directory = out / f"{_slug(name)}-{stamp}-{secrets.token_hex(3)}"
        try:
            directory.mkdir(parents=True)
            run = cls(directory)
            if recipe is not None:
                write_atomic(run.path("recipe.yaml"), recipe)
            run.save_record(RunRecord(directory.name, name, "running", utc_now(), reuse=reuse))
        except BaseException as error:  # Ctrl-C as well: what is left of nothing is nothing
            shutil.rmtree(directory, ignore_errors=True)
            if not isinstance(error, OSError):
                raise
            raise InputError(
                f"cannot make a run directory in {out}: {error.strerror}", "choose another with --out"
            ) from None
        return run

    @classmethod
    def open(cls, directory: str | Path) -> RunContext:
        """Open an existing run directory. Raises InputError where there is none."""
        path = Path(directory)
        if not path.exists():
            raise InputError(
                f"{path} is not a run directory: there is no such folder", "`ftkit runs` lists what was run"
            )
        if not (path / "run.json").is_file():
            recipe = path / "recipe.yaml"
            hint = f"it holds a recipe: ftkit run {recipe}" if recipe.is_file() else "`ftkit runs` lists what was run"
            raise InputError(f"{path} is not a run directory: it has no run.json", hint)
        return cls(path.resolve())

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the directory for writing; a second process gets an InputError. The lock dies with its process."""
        try:
            file = open(self.dir / ".lock", "a")  # noqa: SIM115  closed below
        except OSError as error:
            raise InputError(f"cannot write in {self.dir}: {error.strerror}") from None
        with file:
            try:
                _lock(file)
            except BlockingIOError:
                raise InputError(f"another process is writing {self.dir}", "wait for it to end, or stop it") from None
            except OSError as error:
                hint = "choose a folder on another file system with --out"
                raise InputError(f"{self.dir} cannot be locked: {error.strerror}", hint) from None
            yield

    def is_held(self) -> bool:
        """Return whether a process, this one included, holds the directory for writing; True where nobody can tell."""
        try:
            with open(self.dir / ".lock") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def status(self) -> str:
        """Return the record's status, or `killed` for a run that its process did not live to end."""
        record = self.record()
        if record.kind != "run" or record.status != "running" or self.is_held():
            return record.status
        status = self.record().status  # again: it may have ended before it was asked who holds it
        return "killed" if status == "running" else status

    # ---- places

    @property
    def id(self) -> str:
        return self.dir.name

    def path(self, *parts: str) -> Path:
        """Return a path inside the run directory. Raises ValueError for one that would leave it.

        Raises RunFailed where the directory is gone: what is written later must not make it again.
        """
        if not self.dir.is_dir():
            raise RunFailed(f"the run directory was deleted or moved while it was in use: {self.dir}")
        path = self.dir.joinpath(*parts)
        if not path.resolve().is_relative_to(self.dir.resolve()):
            raise ValueError(f"{path} is outside the run directory")
        return path

    def resolve_uri(self, uri: str) -> Path:
        """Return the path of a ModelRef's uri: relative ones are relative to the run directory."""
        path = Path(uri)
        return path if path.is_absolute() else self.dir / path

    def scratch(self, name: str) -> Path:
        """Return a folder for unfinished work; it is not part of what a run hands over."""
        path = self.path(".work", name)
        path.mkdir(parents=True, exist_ok=True)
        return path

    # ---- records

    def record(self) -> RunRecord:
        path = self.path("run.json")
        data = read_json(path)
        try:
            return RunRecord.from_dict(data)
        except (TypeError, AttributeError, KeyError):
            raise InputError(f"{path} is not the record of a run") from None

    def save_record(self, record: RunRecord) -> None:
        write_json(self.path("run.json"), record.to_dict())

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The resolved recipe, read back from recipe.yaml."""
        from .recipe import load_recipe

        return load_recipe(self.path("recipe.yaml"), check_modules=False)

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @functools.cached_property
    def task(self) -> Task:
        """The data of this run, read back from data/."""
        about = read_json(self.path("data", "task.json"))
        splits = {
            split: tuple(Example.from_dict(row) for row in read_jsonl(self.path("data", f"{split}.jsonl")))
            for split in about["fingerprints"]
        }
        return dataclasses.replace(Task.from_dict({**about, "splits": {}}), splits=splits)

    def save_task(self, task: Task) -> None:
        for split, examples in task.splits.items():
            write_jsonl(self.path("data", f"{split}.jsonl"), (e.to_dict() for e in examples))
        about = task.to_dict()
        del about["splits"]
        write_json(self.path("data", "task.json"), about)

    @property
    def state(self) -> dict[str, Any]:
        """What the backend remembers between processes (a job's id, say); change it with `save_state`."""
        path = self.path("train", "state.json")
        state: dict[str, Any] = read_json(path) if path.exists() else {}
        return state

    def save_state(self, **values: Any) -> None:
        """Merge `values` into the state; on disk when this returns."""
        write_json(self.path("train", "state.json"), {**self.state, **values})

    def log(self, event: str, **values: Any) -> None:
        """Append one event to train/log.jsonl, from any process of the run."""
        self.journal.append({"event": event, "time": round(time.time(), 3), **values})

    @property
    def journal(self) -> Journal:
        """train/log.jsonl, the training events as they were written."""
        return Journal(self.path("train", "log.jsonl"))

    def log_rows(self) -> list[dict[str, Any]]:
        """Return the training events; where a resumed run repeated a step, only the last of each kind."""
        rows = self.journal.read()
        last = {(row["event"], row.get("step"), row.get("name")): i for i, row in enumerate(rows) if "step" in row}
        return [r for i, r in enumerate(rows) if "step" not in r or last[(r["event"], r["step"], r.get("name"))] == i]

    # ---- measurements

    def predictions(self, name: str) -> list[Prediction]:
        """Return the answers in example order; how long each took is in NAME/timings.jsonl."""
        return [Prediction.from_dict(row) for row in read_jsonl(self.path(name, "predictions.jsonl"))]

    def scores(self, name: str) -> list[Score]:
        return [Score.from_dict(row) for row in read_jsonl(self.path(name, "scores.jsonl"))]

    def metrics(self, name: str) -> dict[str, Metric]:
        data = read_json(self.path(name, "metrics.json"))["metrics"]
        return {key: Metric.from_dict({"name": key, **value}) for key, value in data.items()}

    def measurement(self, name: str) -> dict[str, Any]:
        """Return the whole of NAME/metrics.json."""
        data: dict[str, Any] = read_json(self.path(name, "metrics.json"))
        return data

    def measured(self) -> list[str]:
        """Return the measurements that are finished, in the order the report shows them."""
        return [name for name in self.record().systems if self.path(name, "metrics.json").exists()]

    def evaluate(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Metric]:
        """Score predictions with the recipe's evaluators, as the final measurement does (for use in training)."""
        from .measure import score_all

        return score_all([ref.make() for ref in self.recipe.evaluators], examples, predictions)[1]

    def model(self) -> ModelRef | None:
        """Return what training handed over, or None while it has not."""
        path = self.path("train", "model.json")
        return ModelRef.from_dict(read_json(path)) if path.exists() else None


def list_runs(out: Path) -> list[RunContext]:
    """Return the run directories in `out`, oldest first; a folder without a readable run.json is passed over."""
    started: dict[RunContext, str] = {}
    for path in sorted(out.glob("*/run.json")):
        run = RunContext(path.parent)
        with contextlib.suppress(FtkitError, OSError):
            started[run] = run.record().started
    return sorted(started, key=lambda run: started[run])
