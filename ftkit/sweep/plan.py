"""Make the directory of a sweep: check every setting, confirm the price of all of it once, prepare the trials."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..console import Console
from ..data.check import check_data
from ..data.task import StoredRows
from ..directory import RunDirectory, utc_now
from ..errors import InputError, Problem, RecipeError
from ..files import digest, read_json
from ..lang import tr
from ..recipe.load import Recipe, load_recipe
from ..recipe.yaml import SET
from ..run.prepare import preflights, prepare, problems_of
from ..run.prices import confirm_price
from ..run.seeds import with_seeds
from ..run.signals import interrupted
from ..run.trial import primary_metric
from ..text import counted, dollars
from . import space
from .directory import Plan, SweepDirectory
from .rows import for_trial, keep_rows, without_test
from .search import check_installed
from .space import Parameter, Values

GRID, ONE_AT_A_TIME, TPE = "grid", "one-at-a-time", "tpe"
SEARCHES = (GRID, ONE_AT_A_TIME, TPE)
_MOST = 1000  # settings of a grid: more is a mistake
_NAME = 70  # characters of a recipe's name that the name of a trial keeps

Source = str | os.PathLike[str] | Mapping[str, Any]


def make_sweep(
    source: Source,
    vary: Sequence[str] | Mapping[str, Any],
    *,
    search: str = GRID,
    trials: int | None = None,
    seeds: int = 1,
    prune: bool = False,
    parallel: int = 1,
    overrides: Sequence[str] = (),
    out: Path,
    yes: bool = False,
    console: Console,
) -> SweepDirectory:
    """Return a new sweep whose every setting was checked, or leave nothing behind.

    Raises RecipeError with the mistakes of all settings, InputError for what cannot be searched or was not confirmed.
    """
    varied = space.parameters(vary)
    _check(varied, search, trials, seeds, parallel)
    settings = _settings(varied, search)
    recipes = _load_all(source, overrides, settings)
    base = recipes[0] if search == ONE_AT_A_TIME else load(source, overrides)
    if search == ONE_AT_A_TIME:
        settings, recipes = _without_own(settings, recipes)
    elif search == GRID:
        _refuse_equal(settings, recipes)
    sweep = SweepDirectory.create(out, base.name)
    try:
        with console.quiet(sweep.dir / "debug.log"), console.working(tr("reading the data")):
            rows = [keep_rows(sweep, recipe) for recipe in recipes]
            found = [for_trial(recipe, kept) for recipe, kept in zip(recipes, rows, strict=True)]
            metric = _check_rows(base, rows)
            after = _winner_estimates(recipes, rows, seeds)
        n = len(settings) if search != TPE else trials or 20
        console.say(_announced(n, seeds, rows[0]))
        if search == TPE:
            with console.quiet(sweep.dir / "debug.log"):
                usd = _check_ends(found, n, seeds, after, console, yes)
        else:
            usd = _prepare_all(sweep, settings, found, seeds, after, console, yes)
        sweep.save(
            Plan(
                name=base.name,
                created=utc_now(),
                varied=tuple(varied),
                search=search,
                trials=n,
                seeds=seeds,
                metric=metric,
                prune=prune,
                parallel=parallel,
                overrides=tuple(overrides),
                recipe=None if isinstance(source, Mapping) else str(Path(source).absolute()),
                usd=usd,
                seed=base.seed,
                own=_own(base, varied),
            )
        )
    except BaseException as error:
        shutil.rmtree(sweep.dir, ignore_errors=True)
        if isinstance(error, KeyboardInterrupt):
            raise interrupted(None) from None
        raise
    return sweep


def load(source: Source, overrides: Sequence[str]) -> Recipe:
    return load_recipe(source, overrides, checks=[check_data])


def _check(varied: Sequence[Parameter], search: str, trials: int | None, seeds: int, parallel: int) -> None:
    if search == TPE:
        check_installed()
        if trials is not None and trials < 2:
            raise InputError(f"--trials {trials}: a search needs two trials or more", "such as --trials 20")
    else:
        space.refuse_ranges(varied)
        if trials is not None:
            raise InputError("--trials goes with --search tpe: a grid has as many trials as there are settings")
    for name, number in (("seeds", seeds), ("parallel", parallel)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise InputError(f"--{name} {number}: not a number from 1 on")
    if seeds > 1 and any(p.key == "seed" for p in varied):
        raise InputError("--vary seed and --seeds exclude each other", "--seeds ranks a setting by its mean over seeds")


def _settings(varied: Sequence[Parameter], search: str) -> list[Values]:
    """Return the settings of the trials; of a search, those that are checked: every value once, beside first ones."""
    if search == ONE_AT_A_TIME:
        return space.one_at_a_time(varied)
    if search == TPE:
        first = {p.key: p.ends[0] for p in varied}
        found = [first, *({**first, p.key: end} for p in varied for end in p.ends[1:])]
        return [*found, {p.key: p.ends[-1] for p in varied}]
    n = 1
    for p in varied:
        n *= len(p.values)
    if n > _MOST:
        raise InputError(
            f"this grid has {n:,} settings", "try fewer values, --one-at-a-time, or --search tpe --trials 20"
        )
    return space.grid(varied)


def _load_all(source: Source, overrides: Sequence[str], settings: Sequence[Values]) -> list[Recipe]:
    """Return the recipe of each setting. Raises RecipeError with the mistakes of all of them, each once."""
    recipes, problems = [], []
    for values in settings:
        try:
            recipes.append(load(source, [*overrides, *space.overrides_of(values)]))
        except RecipeError as error:
            problems += [_of_vary(p, values) for p in error.problems]
    if problems:
        raise RecipeError(list({(p.message, p.key, p.line): p for p in reversed(problems)}.values())[::-1])
    return recipes


def _of_vary(problem: Problem, values: Values) -> Problem:
    """Return a problem of a value that stands in `--vary`, and not in `--set`."""
    if problem.file != SET or not any(problem.key == k or (problem.key or "").startswith(f"{k}.") for k in values):
        return problem
    key = next(k for k in values if problem.key == k or (problem.key or "").startswith(f"{k}."))
    return replace(problem, file=f"--vary {key}={values[key]}")


def _without_own(settings: list[Values], recipes: list[Recipe]) -> tuple[list[Values], list[Recipe]]:
    """Leave out the settings that are the recipe's own."""
    own = digest(recipes[0].to_dict())
    kept = [i for i, recipe in enumerate(recipes) if i == 0 or digest(recipe.to_dict()) != own]
    return [settings[i] for i in kept], [recipes[i] for i in kept]


def _refuse_equal(settings: Sequence[Values], recipes: Sequence[Recipe]) -> None:
    seen: dict[str, Values] = {}
    for values, recipe in zip(settings, recipes, strict=True):
        other = seen.setdefault(digest(recipe.to_dict()), values)
        if other is not values:
            keys = list(values)
            raise InputError(
                f"two settings are the same recipe: {space.setting_text(other, keys)} and {space.setting_text(values, keys)}"
            )


def _check_rows(base: Recipe, rows: Sequence[StoredRows]) -> str:
    """Return the name of the metric that trials are ranked by. Raises InputError where they could not be ranked."""
    task = rows[0].task
    if not task.validation:
        raise InputError(
            "a sweep chooses by the validation rows, and this recipe has none",
            "give it some: --set dataset.splits.validation=200",
        )
    if len({kept.task.fingerprints.get(split) for kept in rows for split in ("validation",)}) > 1:
        raise InputError("the settings have different validation rows: their numbers could not be compared")
    if len({kept.task.fingerprints.get("test") for kept in rows}) > 1:
        raise InputError("the settings have different test rows: vary what does not change them")
    try:
        metric = primary_metric(base, without_test(task))
    except Exception:  # of an evaluator: preparing says what is wrong with it
        metric = None
    if metric is not None and metric.higher_is_better is None:
        raise InputError(
            f"a sweep cannot choose by {metric.name!r}: neither a higher nor a lower value is known to be better",
            "set the evaluator's option for it, if there is one (such as `higher_is_better`)",
        )
    return str(base.evaluators[0].make().primary)


def _own(base: Recipe, varied: Sequence[Parameter]) -> dict[str, str]:
    """Return the recipe's own values of what is varied, as text."""
    found = {}
    for p in varied:
        value: Any = base.to_dict()
        for part in p.key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        found[p.key] = f"{value:g}" if isinstance(value, float) else str(value)
    return found


def _announced(n: int, seeds: int, rows: StoredRows) -> str:
    each = f", each with {seeds} seeds" if seeds > 1 else ""
    return (
        f"{counted(n, 'setting', 'settings')}{each}: chosen by the {len(rows.task.validation)} validation rows; "
        f"the {len(rows.task.test)} test rows are measured once, with the setting that is chosen"
    )


# ---------------------------------------------------------------- checked, confirmed, prepared


def _winner_estimates(recipes: Sequence[Recipe], rows: Sequence[StoredRows], seeds: int) -> list[dict[str, Any]]:
    """Return what measuring the winner costs at most, once for each seed: the dearest setting's whole run."""
    found = []
    for recipe, kept in zip(recipes, rows, strict=True):
        try:
            found.append(dict(recipe.backend.make().estimate(kept.task, trains=True)))
        except Exception as error:  # an estimate that fails must not stop a sweep
            found.append({"not_estimated": f"{type(error).__name__}: {error}"})
    dearest = max(found, key=lambda e: e.get("usd") or 0)
    return [{**dearest, "usd_detail": "to measure the chosen setting, at most"}] * seeds


def _prepare_all(
    sweep: SweepDirectory, settings: Sequence[Values], recipes: Sequence[Recipe], seeds: int,
    after: Sequence[dict[str, Any]], console: Console, yes: bool,
) -> float | None:  # fmt: skip
    """Prepare all trials, and return what all of it is estimated to cost, in dollars."""
    wanted = [seeded(recipe, number, seeds) for number, recipe in enumerate(recipes, 1)]
    runs = prepare([r for each in wanted for r in each], sweep.dir / "trials", console, yes=yes, later=after)
    for number, values in enumerate(settings, 1):
        sweep.add_trial(number, values, runs[(number - 1) * seeds : number * seeds])
    return _sum([_estimate(run) for run in runs], after)


def _check_ends(
    recipes: Sequence[Recipe], trials: int, seeds: int, after: Sequence[dict[str, Any]], console: Console, yes: bool
) -> float | None:
    """Check the ends of what a search may choose, and confirm the price of as many trials as the dearest of them."""
    checked = preflights(recipes, console)
    problems = [
        p for recipe, (found, _) in zip(recipes, checked, strict=True) for p in problems_of(recipe, found.errors)
    ]
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    dearest = max(checked, key=lambda c: sum(e.get("usd") or 0 for e in c[0].estimates))[0].estimates
    one = sum(e.get("usd") or 0 for e in dearest)
    total = [{**e, "usd": e["usd"] * trials * seeds if e.get("usd") else e.get("usd")} for e in dearest]
    if one:
        detail = f"{counted(trials * seeds, 'training', 'trainings')} of at most {dollars(one)}"
        total = [{**e, "usd_detail": detail} for e in total]
    confirm_price([*total, *after], console, yes)
    return _sum(total, after)


def _sum(estimates: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> float | None:
    known = [e["usd"] for e in (*estimates, *after) if e.get("usd")]
    return sum(known) if known else None


def _estimate(run: RunDirectory) -> dict[str, Any]:
    found: dict[str, Any] = read_json(run.path("audit.json")).get("estimate") or {}
    return found


def prepare_trial(sweep: SweepDirectory, number: int, values: Values, source: Source, console: Console) -> None:
    """Prepare one trial of a search; its price was confirmed with the sweep's."""
    plan = sweep.plan
    recipe = load(source, [*plan.overrides, *space.overrides_of(values)])
    trial = for_trial(recipe, keep_rows(sweep, recipe))
    runs = prepare(seeded(trial, number, plan.seeds), sweep.dir / "trials", console, yes=True)
    sweep.add_trial(number, values, runs)


def seeded(recipe: Recipe, number: int, seeds: int) -> list[Recipe]:
    """Return the recipes of one trial, named after it."""
    named = replace(recipe, name=f"{recipe.name[:_NAME]}-t{number:02}")
    return with_seeds(named, seeds) if seeds > 1 else [named]
