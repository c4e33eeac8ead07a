"""The directory of a sweep: what was planned, which trials there are, and which setting was chosen.

sweep.json      the plan; a directory is a sweep once it is there
journal.jsonl   what happened: `trial`, `pruned`, `chosen`, `winner`
rows/           the rows of the recipe with its test rows, for the winner
trials/RUN/     the trials: ordinary runs that are measured on the validation rows and hold no test rows
winner/RUN/     the chosen setting: ordinary runs with the training of their trials, measured on the test rows
report.html     one report over all, as of a run
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..directory import RunDirectory, new_name
from ..errors import InputError
from ..files import Journal, read_json, write_json
from ..records import Metric, Record
from .space import Parameter, Values

PLAN = "sweep.json"
DONE, PRUNED, FAILED, WAITING = "done", "pruned", "failed", "waiting"


@dataclasses.dataclass(frozen=True)
class Plan(Record):
    """sweep.json. `search` is grid, one-at-a-time or tpe; `trials` counts the settings, `seeds` the trainings of each.

    `overrides` are those of `--set`; `metric` is what the trials are ranked by, and `usd` what all of it was estimated
    to cost. `recipe` is the path of the recipe, None for one that was given as a mapping. `own` holds the recipe's own
    values of the keys that are varied.
    """

    name: str
    created: str
    varied: tuple[Parameter, ...]
    search: str
    trials: int
    seeds: int
    metric: str
    prune: bool = False
    parallel: int = 1
    overrides: tuple[str, ...] = ()
    recipe: str | None = None
    usd: float | None = None
    seed: int = 0  # of the recipe, and of a search
    own: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        return [p.key for p in self.varied]


@dataclasses.dataclass
class Trial:
    """One setting, and its runs, one for each training seed; `pruned` says at which step and why, if it was."""

    number: int
    values: Values
    runs: list[RunDirectory]
    pruned: dict[str, Any] | None = None

    @property
    def status(self) -> str:
        """done (all its runs are), pruned, failed (one of them is), or waiting."""
        if self.pruned is not None:
            return PRUNED
        found = [run.status() for run in self.runs]
        if all(status == "done" for status in found):
            return DONE
        return FAILED if any(status in ("failed", "killed") for status in found) else WAITING

    @property
    def error(self) -> str | None:
        """Why it failed, in one line."""
        for run in self.runs:
            record, status = run.record(), run.status()
            if status == "failed":
                return (record.error or status).partition("\n")[0]
            if status == "killed":
                return "its process was killed, or ended without a word"
        return None

    def primary(self, measurement: str) -> list[Metric]:
        """Return the primary metric of a measurement, of each run that has it. It needs none of the run's plugins."""
        found = []
        for run in self.runs:
            if measurement in run.measured():
                name = run.measurement(measurement)["settings"]["primary"]
                found += [metric for key, metric in run.metrics(measurement).items() if key == name]
        return found


class SweepDirectory:
    """A sweep opened. Its plan never changes; the journal grows; the rest is in the runs' own records."""

    def __init__(self, directory: Path) -> None:
        self.dir = directory
        self._opened: dict[str, RunDirectory] = {}

    @classmethod
    def create(cls, out: Path, name: str) -> SweepDirectory:
        """Make a new directory `out/sweep-NAME-TIME-RANDOM`; it is a sweep once `save` has written its plan."""
        directory = out / new_name(f"sweep-{name}")
        try:
            directory.mkdir(parents=True)
        except OSError as error:
            raise InputError(
                f"cannot make a directory in {out}: {error.strerror}", "choose another with --out"
            ) from None
        return cls(directory.resolve())

    @classmethod
    def open(cls, directory: str | Path) -> SweepDirectory:
        path = Path(directory)
        if not (path / PLAN).is_file():
            hint = "a sweep's directory is named in its first line, such as runs/sweep-..."
            if (path / "run.json").is_file():
                hint = f"it holds a run: ftkit run --resume {path}"
            if (path / "rows").is_dir():
                raise InputError(
                    f"{path}: this sweep was stopped before all its settings were checked: nothing was spent",
                    "delete the folder, and start the sweep again",
                )
            raise InputError(f"{path} is not the directory of a sweep: it has no {PLAN}", hint)
        return cls(path.resolve())

    @property
    def plan(self) -> Plan:
        try:
            return Plan.from_dict(read_json(self.dir / PLAN))
        except (TypeError, AttributeError, KeyError):
            raise InputError(f"{self.dir / PLAN} is not the plan of a sweep") from None

    def save(self, plan: Plan) -> None:
        write_json(self.dir / PLAN, plan.to_dict())

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the sweep for this process; a second one gets an InputError. The lock dies with its process."""
        with RunDirectory(self.dir).exclusive():
            self.journal.repair()
            yield

    # ---- what happened

    @property
    def journal(self) -> Journal:
        return Journal(self.dir / "journal.jsonl")

    def add_trial(self, number: int, values: Values, runs: Sequence[RunDirectory]) -> None:
        self.journal.append(
            {"event": "trial", "trial": number, "values": values, "runs": [self._name(r) for r in runs]}
        )

    def add_pruned(self, number: int, why: Mapping[str, Any]) -> None:
        self.journal.append({"event": "pruned", "trial": number, **why})

    def trials(self) -> list[Trial]:
        """Return the trials in their order."""
        found: dict[int, Trial] = {}
        for row in self.journal:
            if row["event"] == "trial":
                found[row["trial"]] = Trial(row["trial"], dict(row["values"]), [self.run(name) for name in row["runs"]])
            elif row["event"] == "pruned":
                found[row["trial"]].pruned = {key: row[key] for key in ("step", "metric", "value", "median")}
        return [found[number] for number in sorted(found)]

    @property
    def chosen(self) -> int | None:
        """The number of the trial that was chosen; None while the search continues."""
        return next((row["trial"] for row in self.journal if row["event"] == "chosen"), None)

    @property
    def winner(self) -> list[RunDirectory]:
        """The runs that measure the chosen setting on the test rows; none before they are prepared."""
        rows = [row for row in self.journal if row["event"] == "winner"]
        return [self.run(name) for name in rows[-1]["runs"]] if rows else []

    def run(self, name: str) -> RunDirectory:
        """Return the run directory of a name such as "trials/RUN"; the same object each time."""
        if name not in self._opened:
            self._opened[name] = RunDirectory.open(self.dir / name)
        return self._opened[name]

    def _name(self, run: RunDirectory) -> str:
        return run.dir.resolve().relative_to(self.dir).as_posix()

    def add_winner(self, runs: Sequence[RunDirectory]) -> None:
        self.journal.append({"event": "winner", "runs": [self._name(run) for run in runs]})
