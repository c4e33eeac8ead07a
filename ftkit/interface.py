"""The Python interface: what the command line does, as functions that return objects.

result = ftkit.run("recipes/quickstart.yaml", overrides=["backend.max_steps=50"])
result.metrics["tuned"]["rouge1"].value
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from .api import Evaluator
from .console import Console
from .directory import RunDirectory
from .errors import FtkitError, InputError
from .records import Cancelled, Report
from .results import JointResult, RunList, RunResult
from .text import nearest

if TYPE_CHECKING:
    from .doctor import Examination
    from .looking import Checked, Preview
    from .recipe.load import Recipe
    from .run.export import ExportDone
    from .run.push import Push
    from .sweep.result import SweepResult
    from .use.predict import Predicted

Source = str | Path | Mapping[str, Any]


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


def check(
    recipe: Source, overrides: Sequence[str] = (), console: Console | None = None, gpu: str | None = None
) -> Checked:
    """Return all that can be known of a recipe before it is run: mistakes, the audit of its data, estimates.

    It spends nothing, and a mistake is no exception: see `.ok` and `.errors`. `gpu` names a machine to answer for that
    is not here: "a10g", "24GB", "4xa100". Raises InputError where there is no such recipe, or no such GPU.
    """
    from .looking import check as check_recipe
    from .machines import machine

    asked = None if gpu is None else machine(gpu)
    return check_recipe(lambda: load(recipe, overrides), console or Console(silent=True), asked)


def doctor(recipe: Source | None = None, overrides: Sequence[str] = (), out: str | Path = "runs") -> Examination:
    """Return what works on this machine and what does not, with one fix each: of all, or of what a recipe needs.

    It spends nothing. `.ok`, and `.verdicts`, one for each plugin. Raises RecipeError for a recipe with mistakes.
    """
    from .doctor import examine
    from .recipe.load import load_recipe

    if recipe is None:
        return examine(None, Path(out))
    # A missing module is what the verdict is about.
    return examine(load_recipe(find_recipe(recipe), overrides, check_modules=False), Path(out))


def preview(
    recipe: Source,
    split: str = "train",
    index: int = 0,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> Preview:
    """Return one example of a split as the model sees it: its tokens, and which of them are trained on.

    Raises InputError where there is no such row, or the backend shows no tokens; RecipeError for a recipe with mistakes.
    """
    from .looking import preview as preview_recipe

    return preview_recipe(load(recipe, overrides), split, index, console or Console(silent=True))


# ---------------------------------------------------------------- runs


def runs(folder: str | Path = "runs", where: Sequence[str] = (), sort: str | None = None) -> RunList:
    """Return the runs in a folder, the oldest first: a sequence of RunResult that a notebook shows as a table.

    `where` are conditions such as "backend.lora_r=8"; `sort` is age, name, time, base, tuned, change or status.
    Raises InputError for a condition that fits no recipe.
    """
    from .listing import chosen, in_order, summaries

    found = chosen(summaries(Path(folder)), where)
    return RunList(in_order(found, sort) if sort else found)


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
    asking, `where` names a launcher ("NAME", "NAME:WHERE" or "NAME:WHERE,OPTION=VALUE"). Raises FtkitError.
    """
    from .errors import RecipeError
    from .report import write_report
    from .run.elsewhere import HERE, launcher_at
    from .run.prepare import prepare
    from .run.seeds import with_seeds
    from .run.signals import interrupted
    from .run.stages import execute

    if where is not None and where != HERE:
        launcher_at(where)
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
    overrides: Sequence[str] = (),
    yes: bool = False,
) -> RunResult:
    """Resume an unfinished run from its directory alone; finished stages are not repeated. Raises FtkitError.

    `answers` are the user's to the questions of the run's backend (`Backend.questions`). Without `where` the run
    stays where it was started; "here" is this machine. `overrides` change options that change no measured number
    (`Options.resumable`), such as ["backend.timeout=60"]; others are refused. In a finished run they continue its training
    (`Options.extends`): ["backend.max_steps=600"]. `yes` spends what another place may cost without asking.
    """
    from .run.stages import execute

    return RunResult(execute(RunDirectory.open(directory), console or Console(), where, answers, overrides, yes))


def sweep(
    recipe: Source | None,
    vary: Sequence[str] | Mapping[str, Any] = (),
    *,
    search: str = "grid",
    trials: int | None = None,
    seeds: int = 1,
    prune: bool = False,
    parallel: int | None = None,
    overrides: Sequence[str] = (),
    out: str | Path = "runs",
    yes: bool = False,
    resume: str | Path | None = None,
    console: Console | None = None,
) -> SweepResult:
    """Try settings on the validation rows, measure the best one on the test rows, and return a SweepResult.

    `vary` maps keys to lists of values, or to a range such as "1e-5..1e-3:log"; or texts as `--vary` takes them. `search`
    is "grid", "one-at-a-time" or "tpe", of which the last tries `trials` settings (20). `seeds` trains each setting so
    many times, `prune` ends trainings that are worse than most, `parallel` trials run at the same time. `resume` is the
    directory of a sweep to resume: its plan stays, and a recipe is needed only where the sweep's was a mapping.
    Raises FtkitError. docs/sweep.md describes it.
    """
    from .sweep.directory import SweepDirectory
    from .sweep.execute import execute_sweep
    from .sweep.plan import make_sweep
    from .sweep.result import SweepResult

    console = console or Console()
    source = find_recipe(recipe) if recipe is not None else None
    if resume is not None:
        return SweepResult(execute_sweep(SweepDirectory.open(resume), console, parallel, source))
    if source is None:
        raise InputError("a sweep needs a recipe, or the directory of a sweep to resume")
    made = make_sweep(
        source,
        vary,
        search=search,
        trials=trials,
        seeds=seeds,
        prune=prune,
        parallel=parallel or 1,
        overrides=overrides,
        out=Path(out),
        yes=yes,
        console=console,
    )
    return SweepResult(execute_sweep(made, console, source=source))


def open_run(directory: str | Path) -> RunResult:
    """Open a run directory to look at it."""
    return RunResult(RunDirectory.open(directory))


def cancel(directory: str | Path) -> Cancelled:
    """End what a run has started elsewhere, and keep it from starting more. Raises InputError where there is nothing.

    What a launcher (`--on`) executes is ended first, so that it starts nothing more at a provider.
    """
    opened = RunDirectory.open(directory)
    ref = opened.recipe.backend
    ended = _cancel_launched(opened)
    try:
        done: Cancelled = ref.make().cancel(opened, opened.is_held())
    except NotImplementedError:
        if ended is not None:
            return ended
        raise InputError(
            f"{opened.dir} has no job elsewhere: backend {ref.name!r} trains in the process of ftkit itself",
            "stop it with Ctrl-C where it runs",
        ) from None
    if ended is not None:
        done = replace(done, ended=(*ended.ended, *done.ended), notes=(*ended.notes, *done.notes))
    return done


def _cancel_launched(run: RunDirectory) -> Cancelled | None:
    """End the run where its launcher executes it; None where no launcher does, or it cannot end anything."""
    from .run.elsewhere import launcher_at

    where = run.record().where
    if where is None:
        return None
    launcher, place = launcher_at(where)
    running = run.is_held()
    with contextlib.nullcontext() if running else run.exclusive(), contextlib.suppress(NotImplementedError):
        done: Cancelled = launcher.cancel(run, place, running)
        return done
    return None


def predict(
    directory: str | Path,
    path: str | Path,
    out: str | Path,
    base: bool = False,
    column: str = "prediction",
    overrides: Sequence[str] = (),
    yes: bool = False,
    console: Console | None = None,
) -> Predicted:
    """Write the rows of a file with a further column: the answers of a run's model, in the recipe's prompt.

    Killed or interrupted, the same call continues. `base` asks the untouched model; `overrides` change the recipe for this
    use alone; `yes` spends the estimated price without asking. Raises FtkitError.
    """
    from .use.predict import predict as predict_file

    opened = RunDirectory.open(directory)
    return predict_file(opened, Path(path), Path(out), console or Console(), base, column, overrides, yes)


def export(
    run: str | Path,
    to: str | Path,
    merge: bool = False,
    base: str | None = None,
    gguf: str | None = None,
    console: Console | None = None,
) -> ExportDone:
    """Write a finished run's model to the folder `to`, measured on the test rows; `.systems` has its metrics.

    `merge` adds an adapter to the weights of its `base`: "trained" (those that training used) or "original". `gguf` is
    "q8_0" or "q4_k_m". Without any, the recipe's `export` section says what is written, else the model as it is. Raises
    InputError where the run, the folder or the backend does not allow it, RunFailed where it did not work.
    """
    from .run.export import export as write
    from .run.export import request_of

    opened = RunDirectory.open(run)
    return write(opened, str(to), request_of(opened, merge, base, gguf), console or Console())


def export_and_push(
    run: str | Path,
    to: str,
    merge: bool,
    base: str | None,
    gguf: str | None,
    push: bool,
    yes: bool,
    private: bool,
    console: Console,
) -> tuple[ExportDone, Push | None]:
    """Export as `export` does; for hf:ORG/NAME, also return what would be sent, or was: only with `push` and `yes`."""
    from .run.export_target import target_of
    from .run.push import planned
    from .run.push import push as send

    repository = target_of(to).repository
    if push and repository is None:
        raise InputError("--push needs a repository on the hub", "name it: --to hf:ORG/NAME")
    if yes and not push:
        raise InputError("--yes confirms a push, and --push is missing", "write --push --yes")
    if base and not (merge or gguf):
        raise InputError(f"--base {base} says what an adapter is merged into", "write --merge or --gguf beside it")
    done = export(run, to, merge, base, gguf, console)
    if repository is None:
        return done, None
    folder = Path(done.folder)
    if not (push and yes):
        return done, planned(folder, repository, private)
    console.say(f"pushing to {repository} ...")
    return done, send(folder, repository, private, f"Export of {RunDirectory.open(run).id}")


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


def report(
    *runs: str | Path | RunResult,
    out: str | Path,
    anyway: bool = False,
    prices: Sequence[str] = (),
    brief: bool = False,
) -> Report:
    """Write one report over several runs into the folder `out` and return it.

    `brief` writes brief.html too: the result on one A4 page.
    `prices` are those to compute with, such as "tuned.usd_per_hour=0.8"; see `ftkit report --help`.
    """
    from .report import write_report
    from .run.manifest import REPORT_FILES, resealing

    opened = [r.directory if isinstance(r, RunResult) else RunDirectory.open(r) for r in runs]
    with resealing(Path(out), REPORT_FILES):
        return write_report(opened, Path(out), anyway, prices, brief)
