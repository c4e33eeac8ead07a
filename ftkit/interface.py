"""The Python interface: what the command line does, as functions that return objects.

result = ftkit.run("recipes/quickstart.yaml", overrides=["backend.max_steps=50"])
result.metrics["tuned"]["rouge1"].value
"""

from __future__ import annotations

import html
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from .api import Evaluator
from .console import Console
from .directory import RunDirectory
from .errors import FtkitError, InputError
from .files import read_json
from .records import Cancelled, Metric, Report
from .text import nearest

if TYPE_CHECKING:
    from .recipe.load import Recipe

Source = str | Path | Mapping[str, Any]


# ---------------------------------------------------------------- what the functions return


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

    @property
    def metrics(self) -> dict[str, dict[str, Metric]]:
        """Metrics by measurement ("baseline", "tuned", ...) and name; fractions are 0..1."""
        return {name: self.directory.metrics(name) for name in self.directory.measured()}

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


# ---------------------------------------------------------------- recipes


def find_recipe(source: Source) -> Source:
    """Return `source`, or the path of the shipped recipe of that bare name ("quickstart")."""
    if isinstance(source, Mapping) or Path(source).exists():
        return source
    name = str(source).removesuffix(".yaml")
    shipped = shipped_recipes()
    if name in shipped or "/" in name:
        return shipped.get(name, source)
    local = {path.stem: str(path) for path in Path().glob("*.yaml")}
    near = nearest(name, [*local, *shipped])
    raise InputError(
        f"there is no file {source}, and no recipe of that name ships with ftkit",
        f"did you mean {local.get(near, near)!r}?" if near else f"shipped: {', '.join(shipped)}",
    )


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with ftkit, by name. (In a checkout the folder is a link to recipes/.)"""
    folder = Path(__file__).parent / "recipes"
    return {path.stem: path for path in sorted(folder.resolve().glob("*.yaml"), key=lambda path: path.stem)}


def load(source: Source, overrides: Sequence[str] = ()) -> Recipe:
    """Return the Recipe of a path, a shipped name or a mapping. Raises RecipeError with all its mistakes."""
    from .data.check import check_data
    from .recipe.load import load_recipe

    return load_recipe(find_recipe(source), overrides, checks=[check_data])


# ---------------------------------------------------------------- runs


@overload
def run(
    recipe: Source,
    /,
    *,
    overrides: Sequence[str] = ...,
    out: str | Path = ...,
    reuse: bool = ...,
    console: Console | None = ...,
    yes: bool = ...,
    where: str | None = ...,
    seeds: None = ...,
) -> RunResult: ...
@overload
def run(
    recipe: Source,
    /,
    *more: Source,
    overrides: Sequence[str] = ...,
    out: str | Path = ...,
    reuse: bool = ...,
    console: Console | None = ...,
    yes: bool = ...,
    where: str | None = ...,
    seeds: int,
) -> JointResult: ...
@overload
def run(
    recipe: Source,
    second: Source,
    /,
    *more: Source,
    overrides: Sequence[str] = ...,
    out: str | Path = ...,
    reuse: bool = ...,
    console: Console | None = ...,
    yes: bool = ...,
    where: str | None = ...,
    seeds: int | None = ...,
) -> JointResult: ...
def run(
    *recipes: Source,
    overrides: Sequence[str] = (),
    out: str | Path = "runs",
    reuse: bool = True,
    console: Console | None = None,
    yes: bool = False,
    where: str | None = None,
    seeds: int | None = None,
) -> RunResult | JointResult:
    """Run one recipe and return its RunResult; run several and return a JointResult with the report over all.

    `seeds` trains each recipe so many times, with its own seed and the next ones (docs/seeds.md): a JointResult, too.

    All recipes are read, checked and prepared before the first is executed. `yes` spends the estimated price without
    asking, `where` names a launcher ("NAME" or "NAME:WHERE"). Raises FtkitError.
    """
    from .errors import RecipeError
    from .plugins import installed_plugins
    from .report import write_report
    from .run.prepare import prepare
    from .run.seeds import with_seeds
    from .run.signals import interrupted
    from .run.stages import HERE, execute

    if where is not None and where != HERE:
        installed_plugins().resolve("launcher", where.partition(":")[0])
    console, out = console or Console(), Path(out)
    loaded, problems = [], []
    for source in recipes:
        try:
            loaded.append(load(source, overrides))
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    if seeds is not None:
        loaded = [of_seed for recipe in loaded for of_seed in with_seeds(recipe, seeds)]
    prepared = prepare(loaded, out, console, reuse, yes, None if where == HERE else where)
    done: list[RunResult] = []
    for directory in prepared:
        try:
            done.append(RunResult(execute(directory, console, where)))
        except KeyboardInterrupt:  # between two runs
            raise interrupted(directory) from None
        except FtkitError as error:
            if len(prepared) > 1:
                error.hint = "\n  ".join([*filter(None, [error.hint]), *_left_over(prepared, len(done))])
            raise
    if len(done) == 1 and seeds is None:
        return done[0]
    folder = out / f"report-{time.strftime('%Y%m%d-%H%M%S')}"
    write_report(prepared, folder)
    return JointResult(done, folder)


def _left_over(prepared: Sequence[RunDirectory], done: int) -> list[str]:
    """Say what of several runs is left to do when one of them ended early."""
    waiting = [str(run.dir) for run in prepared[done + 1 :]]
    lines = [f"prepared and not started; start each with ftkit run --resume: {', '.join(waiting)}"] if waiting else []
    return [*lines, f"then write one report over all: ftkit report {' '.join(str(run.dir) for run in prepared)}"]


def resume(
    directory: str | Path,
    console: Console | None = None,
    answers: Mapping[str, str] | None = None,
    where: str | None = None,
) -> RunResult:
    """Resume an unfinished run from its directory alone; finished stages are not repeated. Raises FtkitError.

    `answers` are the user's to the questions of the run's backend (`Backend.questions`). Without `where` the run
    stays where it was started; "here" is this machine.
    """
    from .run.stages import execute

    return RunResult(execute(RunDirectory.open(directory), console or Console(), where, answers))


def open_run(directory: str | Path) -> RunResult:
    """Open a run directory to look at it."""
    return RunResult(RunDirectory.open(directory))


def cancel(directory: str | Path) -> Cancelled:
    """End what a run has started elsewhere, and keep it from starting more. Raises InputError where there is nothing."""
    opened = RunDirectory.open(directory)
    ref = opened.recipe.backend
    try:
        done: Cancelled = ref.make().cancel(opened, opened.is_held())
        return done
    except NotImplementedError:
        raise InputError(
            f"{opened.dir} has no job elsewhere: backend {ref.name!r} trains in the process of ftkit itself",
            "stop it with Ctrl-C where it runs",
        ) from None


def score(
    predictions: str | Path,
    evaluator: str | Evaluator,
    out: str | Path = "runs",
    name: str | None = None,
    options: Sequence[str] = (),
    delimiter: str | None = None,
    encoding: str | None = None,
    **columns: str | None,
) -> RunResult:
    """Score a file of predictions (see `ftkit.run.score_file`); `columns`: prediction, target, input, id.

    `options` are those of an evaluator that is given by name, such as ["ignore_case=true"].
    """
    from .recipe.load import make_plugin
    from .run.score_file import score_file

    if options and not isinstance(evaluator, str):
        raise InputError("`options` are for an evaluator given by its name: this one was made with its own")
    chosen = make_plugin("evaluator", evaluator, options) if isinstance(evaluator, str) else evaluator
    return RunResult(score_file(Path(predictions), [chosen], Path(out), name, columns, delimiter, encoding))


def report(*runs: str | Path | RunResult, out: str | Path, anyway: bool = False, prices: Sequence[str] = ()) -> Report:
    """Write one report over several runs into the folder `out` and return it.

    `prices` are those to compute with, such as "tuned.usd_per_hour=0.8"; see `ftkit report --help`.
    """
    from .report import write_report

    opened = [r.directory if isinstance(r, RunResult) else RunDirectory.open(r) for r in runs]
    return write_report(opened, Path(out), anyway, prices)
