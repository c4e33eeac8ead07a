"""The Python interface: what the command line does, as functions that return objects.

run = ftkit.run("recipes/quickstart.yaml", overrides=["backend.max_steps=50"])
run.metrics["tuned"]["rouge1"].value
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .api import Evaluator
from .console import Console
from .errors import FtkitError, InputError
from .records import Metric, Report
from .store import RunContext, read_json

Source = str | Path | Mapping[str, Any]


class Run:
    """A finished or unfinished run: a run directory with what people ask of it. Draws itself in a notebook."""

    def __init__(self, context: RunContext) -> None:
        self.context = context

    @property
    def dir(self) -> Path:
        return self.context.dir

    @property
    def metrics(self) -> dict[str, dict[str, Metric]]:
        """Metrics by measurement ("baseline", "tuned", ...) and name; fractions are 0..1."""
        return {name: self.context.metrics(name) for name in self.context.measured()}

    @property
    def report(self) -> Report:
        """The report of this run alone. Raises InputError while there is none."""
        path = self.dir / "report.json"
        if not path.exists():
            raise InputError(f"{self.dir} has no report yet", f"go on with: ftkit run --resume {self.dir}")
        return Report.from_dict(read_json(path))

    @property
    def verdict(self) -> str:
        return self.report.verdict

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints: the directory, and metrics by measurement."""
        record = self.context.record()
        data: dict[str, Any] = {
            "run": str(self.dir),
            "status": record.status,
            "metrics": {s: {n: m.to_dict() for n, m in metrics.items()} for s, metrics in self.metrics.items()},
        }
        for name in ("report.html", "report.json"):
            if (self.dir / name).exists():
                data[name.replace(".", "_")] = str(self.dir / name)
        if (self.dir / "report.json").exists():
            data["verdict"] = self.report.verdict
        return data

    def __repr__(self) -> str:
        status = self.context.status()
        return f"<ftkit run {self.context.id}: {self.verdict if status == 'done' and self._reported() else status}>"

    def _reported(self) -> bool:
        return (self.dir / "report.json").exists()

    def _repr_html_(self) -> str:
        """Show the report inside a frame: its styles and scripts stay its own."""
        import html

        if not self._reported():
            return html.escape(repr(self))
        page = html.escape((self.dir / "report.html").read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" sandbox="allow-scripts" style="width:100%;height:640px;border:0"></iframe>'


def find_recipe(source: Source) -> Source:
    """Return `source`, or the path of the shipped recipe of that bare name ("quickstart")."""
    if isinstance(source, Mapping) or Path(source).exists():
        return source
    name = str(source).removesuffix(".yaml")
    shipped = shipped_recipes()
    if name in shipped or "/" in name:
        return shipped.get(name, source)
    local = {path.stem: str(path) for path in Path().glob("*.yaml")}
    near = difflib.get_close_matches(name, [*local, *shipped], 1)
    raise InputError(
        f"there is no file {source}, and no recipe of that name ships with ftkit",
        f"did you mean {local.get(near[0], near[0])!r}?" if near else f"shipped: {', '.join(shipped)}",
    )


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with ftkit, by name. (In a checkout the folder is a link to recipes/.)"""
    folder = Path(__file__).parent / "recipes"
    return {path.stem: path for path in sorted(folder.resolve().glob("*.yaml"), key=lambda path: path.stem)}


def load(source: Source, overrides: Sequence[str] = ()) -> Any:
    """Return the Recipe of a path, a shipped name or a mapping. Raises RecipeError with all its mistakes."""
    from .recipe import load_recipe

    return load_recipe(find_recipe(source), overrides, check_data=True)


def run(
    *recipes: Source,
    overrides: Sequence[str] = (),
    out: str | Path = "runs",
    reuse: bool = True,
    console: Console | None = None,
    yes: bool = False,
) -> Run:
    """Run one recipe or several and return the (last) Run. Several end in one joint report as well.

    All recipes are read and checked before the first begins; `yes` spends the estimated price without
    asking. Raises FtkitError.
    """
    runs, _ = run_all(recipes, overrides, Path(out), reuse, console or Console(), yes)
    return runs[-1]


def run_all(
    recipes: Sequence[Source],
    overrides: Sequence[str],
    out: Path,
    reuse: bool,
    console: Console,
    yes: bool = False,
) -> tuple[list[Run], Path | None]:
    """Run recipes one after the other; return the runs, and the folder of the joint report of several."""
    from .errors import RecipeError
    from .preflight import preflight
    from .runner import confirm_price, start

    loaded, problems = [], []
    for source in recipes:
        try:
            loaded.append(load(source, overrides))
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    if len(loaded) > 1:  # the second must not fail for what could be known before the first began
        estimates = []
        for recipe in loaded:
            found = preflight(recipe)
            found.raise_errors(recipe)
            estimates += found.estimates
        confirm_price(estimates, console, yes)
        yes = True
    runs: list[Run] = []
    for recipe in loaded:
        try:
            runs.append(Run(start(recipe, out, console, reuse, yes)))
        except FtkitError as error:
            if len(loaded) > 1:
                error.hint = "\n  ".join([*filter(None, [error.hint]), *_left_over(loaded, runs)])
            raise
    if len(runs) < 2:
        return runs, None
    folder = out / f"report-{time.strftime('%Y%m%d-%H%M%S')}"
    from .report import write_report

    write_report([r.context for r in runs], folder)
    return runs, folder


def _left_over(loaded: Sequence[Any], done: Sequence[Run]) -> list[str]:
    """Say what of several recipes is still to do when one of them ended before its time."""
    names = [str(recipe.source or recipe.name) for recipe in loaded[len(done) + 1 :]]
    lines = [f"not begun: {', '.join(names)}"] if names else []
    dirs = [str(run.dir) for run in done]
    return [*lines, f"one report over all, when they are done: ftkit report {' '.join([*dirs, 'RUN...'])}"]


def resume(directory: str | Path, console: Console | None = None, yes: bool = False, create_again: bool = False) -> Run:
    """Go on with an unfinished run (see `ftkit.runner.resume`)."""
    from .runner import resume as go_on

    return Run(go_on(directory, console or Console(), yes, create_again))


def open_run(directory: str | Path) -> Run:
    """Open a run directory to look at it."""
    return Run(RunContext.open(directory))


def score(
    predictions: str | Path,
    evaluator: str | Evaluator,
    out: str | Path = "runs",
    name: str | None = None,
    options: Sequence[str] = (),
    **columns: str | None,
) -> Run:
    """Score a file of predictions (see `ftkit.scoring.score_file`); `columns`: prediction, target, input, id.

    `options` are those of an evaluator that is given by name, such as ["ignore_case=true"].
    """
    from .recipe import make_plugin
    from .scoring import score_file

    if options and not isinstance(evaluator, str):
        raise InputError("`options` are for an evaluator given by its name: this one was made with its own")
    chosen = make_plugin("evaluator", evaluator, options) if isinstance(evaluator, str) else evaluator
    return Run(score_file(Path(predictions), [chosen], Path(out), name, columns))


def make_report(*runs: str | Path | Run, out: str | Path, anyway: bool = False, prices: Sequence[str] = ()) -> Report:
    """Write one report over several runs into the folder `out` and return it.

    `prices` are those to reckon with, such as "tuned.usd_per_hour=0.8"; see `ftkit report --help`.
    """
    from .report import write_report

    contexts = [r.context if isinstance(r, Run) else RunContext.open(r) for r in runs]
    return write_report(contexts, Path(out), anyway, prices)
