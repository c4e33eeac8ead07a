"""The run directory: atomic files, append-only journals, one writer at a time, and what can be read back.

A `RunContext` is a run directory opened. It can be opened from the directory alone, by a worker
process or on another machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import functools
import hashlib
import json
import math
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .records import Example, Metric, ModelRef, Prediction, RunRecord, Score, Task

if TYPE_CHECKING:
    from .recipe import Recipe


def utc_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def dump_json(data: Any, indent: int | None = None) -> str:
    """Return JSON text that is always encodable: readable Unicode, \\u escapes where it holds lone surrogates.

    Numbers that JSON lacks (NaN, infinity) become null.
    """
    data = _finite(data)
    text = json.dumps(data, ensure_ascii=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(data, indent=indent)
    return text


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {k: _finite(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(v) for v in data]
    return data


def digest(data: Any) -> str:
    """Return the SHA-256 hex digest of `data`'s canonical JSON."""
    return hashlib.sha256(json.dumps(_finite(data), sort_keys=True).encode()).hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Write a whole file or nothing: beside it, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    write_atomic(path, dump_json(data, indent=2) + "\n")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    write_atomic(path, "".join(dump_json(row) + "\n" for row in rows))


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yield the rows of a finished JSON Lines file."""
    with open(path, encoding="utf-8") as file:  # universal newlines only split at \n, \r\n: JSON escapes the rest
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise InputError(f"{path}:{number}: not JSON: {error}") from None


class Journal:
    """An append-only JSON Lines file that survives a kill: a torn last line is cut when it is opened again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def read(self) -> list[Any]:
        """Return the whole lines, after cutting a torn last one off the file."""
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) != len(data):
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))
        return [json.loads(line) for line in whole.splitlines() if line.strip()]

    def append(self, row: Any) -> None:
        """Add one line; it is on disk when this returns."""
        with open(self.path, "ab") as file:
            file.write((dump_json(row) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "run"


class RunContext:
    """A run directory opened: paths, seed, log, persisted state, and the records of what happened."""

    def __init__(self, directory: Path) -> None:
        self.dir = directory

    @classmethod
    def create(cls, out: Path, name: str) -> RunContext:
        """Make a new directory `out/NAME-TIME-RANDOM`."""
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        directory = out / f"{_slug(name)}-{stamp}-{secrets.token_hex(3)}"
        try:
            directory.mkdir(parents=True)
        except OSError as error:
            raise InputError(
                f"cannot make a run directory in {out}: {error.strerror}", "choose another with --out"
            ) from None
        run = cls(directory)
        run.save_record(RunRecord(directory.name, name, "running", utc_now()))
        return run

    @classmethod
    def open(cls, directory: str | Path) -> RunContext:
        """Open an existing run directory. Raises InputError where there is none."""
        path = Path(directory)
        if not (path / "run.json").is_file():
            raise InputError(f"{path} is not a run directory: it has no run.json", "`ftkit runs` lists what was run")
        return cls(path.resolve())

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the directory for writing; a second process gets an InputError. The lock dies with its process."""
        with open(self.dir / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(f"another process is writing {self.dir}", "wait for it to end, or stop it") from None
            yield

    # ---- places

    @property
    def id(self) -> str:
        return self.dir.name

    def path(self, *parts: str) -> Path:
        """Return a path inside the run directory. Raises ValueError for one that would leave it."""
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
        return RunRecord.from_dict(read_json(self.path("run.json")))

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
        Journal(self.path("train", "log.jsonl")).append({"event": event, "time": round(time.time(), 3), **values})

    def log_rows(self) -> list[dict[str, Any]]:
        """Return the training events; where a resumed run repeated a step, only the last of each kind."""
        rows = Journal(self.path("train", "log.jsonl")).read()
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
    runs = []
    for path in sorted(out.glob("*/run.json")):
        run = RunContext(path.parent)
        with contextlib.suppress(InputError, OSError, TypeError, KeyError, AttributeError):
            run.record()
            runs.append(run)
    return sorted(runs, key=lambda run: run.record().started)
