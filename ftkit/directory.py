"""The run directory, opened: implements `api.Run`. One writer at a time, and what can be read back.

It can be opened from the directory alone, by a worker process or on another machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import functools
import os
import re
import secrets
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .api import MeasuredRun, State
from .errors import FtkitError, InputError, RunFailed
from .files import Journal, digest, file_digest, read_json, read_jsonl, write_json, write_jsonl
from .records import Example, GenerationConfig, Metric, ModelRef, Prediction, RunRecord, Score, Task

if TYPE_CHECKING:
    from .api import Evaluator
    from .recipe.load import Recipe


EARLIER = "train/earlier"  # the folder with the models of a training that was continued
FILES = "files"  # the folder with a run's own copies of files that its recipe names
_ROW_DIGEST = 12  # hexadecimal digits that tell one row from another


def utc_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def row_digest(row: Any) -> str:
    """Return the digest of one row of data/SPLIT.jsonl, as data/digests.json holds it."""
    return digest(row)[:_ROW_DIGEST]


def _slug(name: str, most: int = 120) -> str:
    """Return `name` as the name of a file: letters, digits, `.`, `_` and `-` of any script, in at most `most` bytes."""
    text = unicodedata.normalize("NFC", name)
    # A mark (M) belongs to the letter before it: without it, Hindi and Thai could not be read.
    plain = "".join(c if c in "._-" or unicodedata.category(c)[0] in "LMN" else "-" for c in text)
    plain = re.sub("-+", "-", plain).strip("-.")
    try:
        plain = os.fsencode(plain)[:most].decode("utf-8", "ignore")
    except UnicodeError:  # names of files are ASCII here
        plain = re.sub("[^A-Za-z0-9._-]+", "-", plain)[:most]
    return plain[:60].strip("-.") or "run"


def _named(name: str, out: Path) -> Path | None:
    """Return the run in `out` with this name, or whose name ends with it; None for none."""
    if not name or os.sep in name:
        return None
    runs = [path.parent for path in out.glob("*/run.json")]
    found = [p for p in runs if p.name == name] or [p for p in runs if p.name.endswith(f"-{name}")]
    if len(found) > 1:
        some = ", ".join(str(p) for p in sorted(found)[:5])
        raise InputError(f"{len(found)} runs in {out} have a name that ends with {name!r}", f"name one: {some}")
    return found[0] if found else None


def new_name(name: str) -> str:
    """Return NAME-TIME-RANDOM, a name that nothing else has."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return f"{_slug(name)}-{stamp}-{secrets.token_hex(3)}"


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


class PluginState(State):
    """One plugin's state in a file of its own; changes are made under a lock, between threads and processes.

    Only the owner can read the file: it names what the run has elsewhere.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def _read(self) -> dict[str, Any]:
        state: dict[str, Any] = read_json(self.path) if self.path.exists() else {}
        return state

    def __getitem__(self, name: str) -> Any:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def update(self, **values: Any) -> None:
        self.path.parent.mkdir(exist_ok=True)  # not its parents: a run directory that was deleted stays so
        with open(self.path.with_name(f".{self.path.stem}.lock"), "a") as lock:
            with contextlib.suppress(OSError):  # a file system without locks: there one process alone must write
                fcntl.flock(lock, fcntl.LOCK_EX)
            write_json(self.path, {**self._read(), **values}, private=True)


class RunDirectory(MeasuredRun):
    """A run directory opened: paths, seed, log, states of plugins, and the records of what happened."""

    def __init__(self, directory: Path) -> None:
        self.dir = directory
        self.is_interrupted: Callable[[], bool] = lambda: False  # set by the process that executes the run
        self.answers: dict[str, str] = {}  # what the user answered for this execution
        self.is_logged = True  # False in a process whose events another process of the run logs as well

    @classmethod
    def create(cls, out: Path, name: str) -> RunDirectory:
        """Make a new directory `out/NAME-TIME-RANDOM`. It is a run once its run.json is written, which comes last."""
        directory = out / new_name(name)
        try:
            directory.mkdir(parents=True)
        except OSError as error:
            raise InputError(
                f"cannot make a run directory in {out}: {error.strerror}", "choose another with --out"
            ) from None
        return cls(directory)

    @classmethod
    def open(cls, directory: str | Path, out: Path = Path("runs")) -> RunDirectory:
        """Open an existing run directory: by its path, or by its name in `out` or the end of it.

        Raises InputError where there is none, or several.
        """
        path = Path(directory)
        path = path if path.exists() else _named(str(directory), out) or path
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
        """Return whether a process, this one included, holds the directory for writing; True where that cannot be known."""
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
        status = self.record().status  # again: it may have ended since
        return "killed" if status == "running" else status

    # ---- places

    @property
    def id(self) -> str:
        return self.dir.name

    @functools.cached_property
    def mark(self) -> str:  # cached: it never changes
        record = self.record()
        return record.mark or record.id

    def path(self, *parts: str) -> Path:
        if not self.dir.is_dir():
            raise RunFailed(f"the run directory was deleted or moved while it was in use: {self.dir}")
        path = self.dir.joinpath(*parts)
        if not path.resolve().is_relative_to(self.dir.resolve()):
            raise ValueError(f"{path} is outside the run directory")
        return path

    def resolve_uri(self, uri: str) -> Path:
        path = Path(uri)
        return path if path.is_absolute() else self.dir / path

    def portable(self, data: Any) -> Any:
        """Return plain data in which the run's own copies of files are named by content, not by their path here."""
        if isinstance(data, dict):
            return {key: self.portable(value) for key, value in data.items()}
        if isinstance(data, list | tuple):
            return [self.portable(value) for value in data]
        if isinstance(data, str) and data.startswith(f"{self.dir / FILES}/") and Path(data).is_file():
            return f"{FILES}/{Path(data).name} sha256:{file_digest(Path(data))}"
        return data

    def scratch(self, name: str) -> Path:
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
        from .recipe.load import load_recipe

        return load_recipe(self.path("recipe.yaml"), check_modules=False)

    def resolved_recipe(self) -> dict[str, Any]:
        return self.recipe.to_dict()

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def generation(self) -> GenerationConfig:
        return self.recipe.generation

    @property
    def primary(self) -> str:
        return self.evaluators[0].primary

    @functools.cached_property
    def evaluators(self) -> list[Evaluator]:
        """The recipe's evaluators, made once."""
        return [ref.make() for ref in self.recipe.evaluators]

    @property
    def interrupted(self) -> bool:
        return self.is_interrupted()

    def answer(self, key: str) -> str | None:
        return self.answers.pop(key, None)

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
        digests = {}
        for split, examples in task.splits.items():
            write_jsonl(self.path("data", f"{split}.jsonl"), (e.to_dict() for e in examples))
            digests[split] = [row_digest(e.to_dict()) for e in examples]
        write_json(self.path("data", "digests.json"), digests)
        about = task.to_dict()
        del about["splits"]
        write_json(self.path("data", "task.json"), about)

    def state(self, name: str) -> PluginState:
        return PluginState(self.path("state", f"{_slug(name)}.json"))

    def log(self, event: str, **values: Any) -> None:
        if self.is_logged:
            self.journal.append({"event": event, "time": round(time.time(), 3), **values})

    @property
    def journal(self) -> Journal:
        """train/log.jsonl, the training events as they were written."""
        return Journal(self.path("train", "log.jsonl"))

    def log_rows(self) -> list[dict[str, Any]]:
        rows = [row for row in self.journal if isinstance(row, dict) and "event" in row]
        last = {(row["event"], row.get("step"), row.get("name")): i for i, row in enumerate(rows) if "step" in row}
        return [r for i, r in enumerate(rows) if "step" not in r or last[(r["event"], r["step"], r.get("name"))] == i]

    # ---- measurements

    def predictions(self, name: str) -> list[Prediction]:
        return [Prediction.from_dict(row) for row in read_jsonl(self.path(name, "predictions.jsonl"))]

    def scores(self, name: str) -> list[Score]:
        return [Score.from_dict(row) for row in read_jsonl(self.path(name, "scores.jsonl"))]

    def metrics(self, name: str) -> dict[str, Metric]:
        try:
            data = self.measurement(name)["metrics"]
            return {key: Metric.from_dict({"name": key, **value}) for key, value in data.items()}
        except (TypeError, AttributeError, KeyError):
            raise InputError(f"{self.path(name, 'metrics.json')} does not hold the metrics of a measurement") from None

    def measurement(self, name: str) -> dict[str, Any]:
        path = self.path(name, "metrics.json")
        data: dict[str, Any] = read_json(path)
        if not isinstance(data, dict) or not all(isinstance(data.get(key), dict) for key in ("metrics", "settings")):
            raise InputError(f"{path} does not hold a measurement: it lacks `metrics` or `settings`")
        return data

    def write_metrics(self, name: str, metrics: Sequence[Metric], **rest: Any) -> None:
        """Write NAME/metrics.json, the shape that scripts rely on: metrics by name, then settings and the rest."""
        by_name = {m.name: {k: v for k, v in m.to_dict().items() if k != "name"} for m in metrics}
        write_json(self.path(name, "metrics.json"), {"metrics": by_name, **rest})

    def measured(self) -> list[str]:
        return [name for name in self.record().systems if self.path(name, "metrics.json").exists()]

    def evaluate(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Metric]:
        from .score import score_all
        from .stats import without_intervals

        with without_intervals():  # a curve has none, and resampling takes longer than scoring
            return score_all(self.evaluators, examples, predictions)[1]

    def continued(self) -> ModelRef | None:
        path = self.path("train", "earlier.json")
        return ModelRef.from_dict(read_json(path)) if path.exists() else None

    def model(self) -> ModelRef | None:
        path = self.path("train", "model.json")
        return ModelRef.from_dict(read_json(path)) if path.exists() else None


def list_runs(out: Path) -> list[RunDirectory]:
    """Return the run directories in `out`, oldest first; a folder without a readable run.json is passed over."""
    started: dict[RunDirectory, str] = {}
    for path in sorted(out.glob("*/run.json")):
        run = RunDirectory(path.parent)
        with contextlib.suppress(FtkitError, OSError):
            started[run] = run.record().started
    return sorted(started, key=lambda run: started[run])
