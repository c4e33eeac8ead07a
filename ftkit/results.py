"""What the functions of the Python interface return: runs with their metrics, frames, curves and reports."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from . import frames
from .directory import RunDirectory
from .errors import InputError
from .files import read_json
from .records import Metric, Report
from .text import NONE, age, duration, metric_value

if TYPE_CHECKING:
    import pandas

    from .listing import Summary
    from .report.plot import Drawing
    from .use.models import RunModels


class _Reported:
    """A folder with a report: shows it in a notebook."""

    dir: Path

    @property
    def report(self) -> Report:
        """The report. Raises InputError while there is none."""
        path = self.dir / "report.json"
        if not path.exists():
            raise InputError(f"{self.dir} has no report yet", f"resume with: ftkit run --resume {self.dir}")
        return Report.from_dict(read_json(path))

    @property
    def verdict(self) -> str:
        return self.report.verdict

    @property
    def _runs(self) -> Sequence[RunDirectory]:
        raise NotImplementedError

    def predictions(self) -> pandas.DataFrame:
        """Return a pandas frame with one row for each answer.

        Columns: run, system ("baseline", "tuned", ...), example_id, sample, input, target (the first one), text,
        answer (what was compared), reason, finish_reason, error, and one column for each metric that an example has:
        fractions are 0..1, NaN where there is no score. Raises InputError where pandas is not installed.
        """
        return frames.frame(row for run in self._runs for row in frames.prediction_rows(run))

    def metrics_frame(self) -> pandas.DataFrame:
        """Return a pandas frame with one row for each metric of each system.

        Columns: run, system, metric, value, low, high (the 95 % interval), n, n_unscored, unit, higher_is_better,
        primary. Fractions are 0..1. Raises InputError where pandas is not installed.
        """
        return frames.frame(row for run in self._runs for row in frames.metric_rows(run))

    def curves(self) -> pandas.DataFrame:
        """Return a pandas frame of the training curves, one row for each point: run, axis, name, step, value.

        It can be had while the run is in progress. Raises InputError where pandas is not installed.
        """
        return frames.frame(row for run in self._runs for row in frames.curve_rows(run))

    def plot(self) -> Drawing:
        """Return the training curves as a picture: a notebook shows it, `.save(PATH)` writes it as SVG."""
        from .report.plot import draw

        return draw(curve for run in self._runs for curve in frames.curves_of(run))

    def _has_report(self) -> bool:
        return (self.dir / "report.json").exists()

    def _repr_html_(self) -> str:
        """Show the report inside a frame: its styles and scripts stay its own."""
        if not self._has_report():
            return html.escape(repr(self))
        page = html.escape((self.dir / "report.html").read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" sandbox="allow-scripts" style="width:100%;height:640px;border:0"></iframe>'


class RunResult(_Reported):
    """A finished or unfinished run: its directory, with what people want to know of it."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.dir = directory.dir
        self._models: tuple[tuple[str, ...], RunModels] | None = None  # those that `generate` has loaded

    @property
    def _runs(self) -> Sequence[RunDirectory]:
        return (self.directory,)

    @property
    def status(self) -> str:
        """prepared, running, done, failed, interrupted or killed."""
        return self.directory.status()

    @property
    def metrics(self) -> dict[str, dict[str, Metric]]:
        """Metrics by measurement ("baseline", "tuned", ...) and name; fractions are 0..1."""
        return {name: self.directory.metrics(name) for name in self.directory.measured()}

    def generate(
        self,
        asked: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
        base: bool = False,
        overrides: Sequence[str] = (),
        yes: bool = False,
    ) -> Any:
        """Return the tuned model's answer to a text, or to a row with the recipe's columns; of a list, a list of answers.

        A text is the input of the recipe's prompt, or a turn of a chat. `base` asks the untouched model. `overrides` change
        the recipe for this use, such as ["generation.temperature=0.7"]. The model stays loaded until `close`. `yes` spends
        the estimated price without asking. Raises FtkitError.
        """
        from .console import Console
        from .use.ask import ask
        from .use.models import BASE, TUNED, RunModels

        changes = tuple(overrides)
        if self._models is None or self._models[0] != changes:
            self.close()
            self._models = (changes, RunModels(self.directory, Console(), changes))
        return ask(self._models[1], BASE if base else TUNED, asked, yes)

    def close(self) -> None:
        """Free the models that `generate` has loaded."""
        if self._models is not None:
            self._models[1].close()
        self._models = None

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints: the directory, and metrics by measurement."""
        data: dict[str, Any] = {
            "run": str(self.dir),
            "status": self.directory.record().status,
            "metrics": {s: {n: m.to_dict() for n, m in metrics.items()} for s, metrics in self.metrics.items()},
        }
        for name in ("report.html", "report.json"):
            if (self.dir / name).exists():
                data[name.replace(".", "_")] = str(self.dir / name)
        if self._has_report():
            data["verdict"] = self.verdict
        return data

    def __repr__(self) -> str:
        status = self.directory.status()
        return f"<ftkit run {self.directory.id}: {self.verdict if status == 'done' and self._has_report() else status}>"


class JointResult(_Reported, Sequence[RunResult]):
    """Several runs of one call, in the order of their recipes, and the report over all of them."""

    def __init__(self, runs: Sequence[RunResult], folder: Path) -> None:
        self.runs = tuple(runs)
        self.dir = folder

    @property
    def _runs(self) -> Sequence[RunDirectory]:
        return [run.directory for run in self.runs]

    @overload
    def __getitem__(self, index: int) -> RunResult: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[RunResult]: ...
    def __getitem__(self, index: int | slice) -> RunResult | Sequence[RunResult]:
        return self.runs[index]

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[RunResult]:
        return iter(self.runs)

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints: each run, and the folder of the joint report."""
        return {"runs": [run.to_dict() for run in self.runs], "report": str(self.dir)}

    def __repr__(self) -> str:
        return f"<ftkit runs {', '.join(run.directory.id for run in self.runs)}: {self.verdict}>"


class RunList(Sequence[RunResult]):
    """Runs as `ftkit runs` lists them; `frame()` gives the list as a table, and a notebook shows it."""

    def __init__(self, found: Sequence[Summary]) -> None:
        self._found = tuple(found)

    @overload
    def __getitem__(self, index: int) -> RunResult: ...
    @overload
    def __getitem__(self, index: slice) -> RunList: ...
    def __getitem__(self, index: int | slice) -> RunResult | RunList:
        if isinstance(index, slice):
            return RunList(self._found[index])
        return RunResult(self._found[index].run)

    def __len__(self) -> int:
        return len(self._found)

    def frame(self) -> pandas.DataFrame:
        """Return a pandas frame with one row for each run.

        Columns: run (the folder), id, name, status, started (UTC), seconds, metric, unit, base, tuned, change, why.
        Scores are in the metric's unit, fractions 0..1. Raises InputError where pandas is not installed.
        """
        return frames.frame(map(frames.run_row, self._found))

    def __repr__(self) -> str:
        return f"<{len(self)} ftkit runs: {', '.join(f'{s.record.name} {s.status}' for s in self._found)}>"

    def _repr_html_(self) -> str:
        head = ("id", "name", "age", "time", "metric", "base", "tuned", "status", "why")
        rows = [head, *map(_cells, self._found)]
        cells = [
            "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
            for row, tag in zip(rows, ["th", *["td"] * len(self)], strict=True)
        ]
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _cells(s: Summary) -> tuple[str, ...]:
    row = frames.run_row(s)
    scores = [metric_value(m.value, m.unit) if m else NONE for m in (s.base, s.tuned)]
    return (
        row["id"],
        s.record.name,
        age(s.age),
        duration(s.seconds),
        row["metric"] or NONE,
        *scores,
        s.status,
        s.why or "",
    )
