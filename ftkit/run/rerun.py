"""Run again what a run directory describes, from that directory alone, and say whether the result is the same."""

from __future__ import annotations

import dataclasses
import datetime
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..console import Console
from ..data.task import StoredRows
from ..directory import FILES, RunDirectory
from ..errors import FtkitError, InputError, Interrupted
from ..files import file_digest, read_json, write_atomic, write_json
from ..hub import locked_commits
from ..locked import Change, changes
from ..recipe import yaml as yaml_source
from ..recipe.load import Recipe, load_recipe
from ..records import Record
from ..report.compare import SIGNIFICANCE, UNSCORED_LIMIT
from ..report.diff import RunsDiff, changed_answers, diff_runs, recipe_changes
from ..text import metric_value
from .export_target import PREFIX
from .lock import is_done, read_lock
from .manifest import faults, read_manifest, resealing
from .prepare import prepare
from .prices import confirm_price
from .stages import execute

IDENTICAL = "identical"
EQUAL = "equal within the interval"
DIFFERENT = "different"
NOT_COMPARABLE = "cannot be compared"
FILE = "rerun.json"
_ROWS = ("dataset", "prompt")  # sections of a recipe that only the making of rows reads


@dataclasses.dataclass(frozen=True)
class Rerun(Record):
    """What came of a rerun. `differences` are those between lock and machine, named before anything ran.

    `verdict` is identical, equal within the interval, different, or cannot be compared; empty after a dry run. `run` is
    the new run directory's name; None where nothing ran.
    """

    of: str
    differences: tuple[str, ...] = ()
    verdict: str = ""
    detail: str = ""
    run: str | None = None


def rerun(
    original: RunDirectory,
    out: Path,
    console: Console,
    overrides: Sequence[str] = (),
    yes: bool = False,
    dry_run: bool = False,
) -> Rerun:
    """Run `original` again in a new directory under `out`, reusing nothing, and compare the two.

    `overrides` change the recipe (a model's folder on this machine, say); `yes` spends the estimated price without
    asking; `dry_run` ends before anything runs. Raises InputError where the run is not done, its recipe cannot be
    read, or the price was not confirmed; Interrupted after Ctrl-C.
    """
    _check(original, overrides)
    recipe, plain = _recipe(original, overrides)
    withdrawn = _withdrawn(original)
    if withdrawn:
        return Rerun(original.id, verdict=NOT_COMPARABLE, detail=withdrawn)
    with locked_commits(_commits(original)):
        try:
            (new,) = prepare([recipe], out, console, reuse=False, yes=True)  # the price is asked for below
        except Interrupted:
            raise
        except FtkitError as error:
            return Rerun(original.id, verdict=NOT_COMPARABLE, detail=f"it cannot be prepared here: {error}")
        try:
            differences = _differences(original, new, plain)
            for text in differences or ["nothing that lock.json records differs here"]:
                console.say(f"  differs: {text}" if differences else f"  {text}")
            if dry_run:
                shutil.rmtree(new.dir)
                return Rerun(original.id, tuple(differences))
            audit = read_json(new.path("audit.json"))
            confirm_price([audit["estimate"], *audit["control_estimates"]], console, yes)
        except BaseException:
            shutil.rmtree(new.dir, ignore_errors=True)
            raise
        found = Rerun(original.id, tuple(differences), run=new.id)
        write_json(new.path(FILE), found.to_dict())
        try:
            execute(new, console)
        except Interrupted:
            raise
        except FtkitError as error:
            return dataclasses.replace(found, verdict=NOT_COMPARABLE, detail=f"it could not be run to its end: {error}")
    verdict, detail = verdict_of(original, new)
    found = dataclasses.replace(found, verdict=verdict, detail=detail)
    with resealing(new.dir, [FILE]):
        write_json(new.path(FILE), found.to_dict())
    return found


# ---------------------------------------------------------------- before anything runs


def _check(original: RunDirectory, overrides: Sequence[str]) -> None:
    record = original.record()
    if record.kind != "run":
        raise InputError(f"{original.dir} holds scored predictions: no recipe made them", "score the file again")
    if not is_done(record):
        raise InputError(
            f"{original.dir} is not done ({original.status()}): there is nothing to compare a rerun with",
            f"finish it first: ftkit run --resume {original.dir}",
        )
    extended = next((c for c in record.changes if c.get("extends")), None)
    if extended is not None:
        raise InputError(
            f"{original.dir} was trained further after it was done ({extended['key']}: {extended['from']} -> "
            f"{extended['to']}): a rerun trains once, which is not the same training",
            f"to train that long at once, run the recipe: ftkit run {original.dir / 'recipe.yaml'}",
        )
    for text in overrides:
        if text.partition("=")[0].split(".")[0].strip() in _ROWS:
            raise InputError(
                f"--set {text}: a rerun uses the rows and prompts in {original.dir / 'data'}",
                "to measure other rows, run the recipe: ftkit run RECIPE --set ...",
            )


def _recipe(original: RunDirectory, overrides: Sequence[str]) -> tuple[Recipe, Any]:
    """Return the recipe that was run, with the rows of data/ in place of their source; and the recipe as plain data."""
    plain = _plain(original)
    recipe = load_recipe(_kept_files(plain, original), overrides)
    audit = read_json(original.path("audit.json"))
    left_out = ("estimate", "control_estimates", "tokens")
    stored = StoredRows(original.task, {"notes": [], **{k: v for k, v in audit.items() if k not in left_out}})
    return dataclasses.replace(recipe, dataset=recipe.dataset.model_copy(update={"given": stored})), plain


def _plain(original: RunDirectory) -> Any:
    """Return the recipe that was locked: of recipe.yaml, or of its copy in report.json where recipe.yaml was edited."""
    path, locked = original.path("recipe.yaml"), read_lock(original).get("recipe")
    if path.exists() and locked in (None, file_digest(path)):
        return yaml_source.read_file(str(path), []).plain()
    report = original.path("report.json")
    copies = read_json(report).get("runs", []) if report.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        for run in copies:
            copy = Path(folder, "recipe.yaml")
            if isinstance(run, dict) and isinstance(run.get("recipe"), str):
                write_atomic(copy, run["recipe"])
                if file_digest(copy) == locked:
                    return yaml_source.read_file(str(copy), []).plain()
    raise InputError(
        f"{path} is not the recipe that was run: {'it was edited' if path.exists() else 'it is missing'}",
        "take the file from a copy of the run directory",
    )


def _kept_files(value: Any, original: RunDirectory) -> Any:
    """Return a recipe whose options name the run's own copies of files by their place on this machine."""
    if isinstance(value, dict):
        return {key: _kept_files(inner, original) for key, inner in value.items()}
    if isinstance(value, list):
        return [_kept_files(inner, original) for inner in value]
    return str(original.dir / value) if isinstance(value, str) and value.startswith(f"./{FILES}/") else value


def _commits(original: RunDirectory) -> Mapping[str, str]:
    return {key: value for key, value in original.state("hub").items() if isinstance(value, str)}


def _withdrawn(original: RunDirectory) -> str | None:
    """Return why the base model is not there any more, where its provider has named a last day that is over."""
    model = read_lock(original).get("model", {})
    last = (model.get("about") or {}).get("shutdown_date")
    try:
        over = last is not None and datetime.date.fromisoformat(str(last)[:10]) < datetime.date.today()
    except ValueError:
        return None
    return f"the provider has withdrawn the model {model.get('model')}: its last day was {last}" if over else None


def _differences(original: RunDirectory, new: RunDirectory, plain: Any) -> list[str]:
    """Name what differs between the locked run and what would run here, what decides most first."""
    return [*_tampered(original), *map(str, _changes(original, new, plain))]


def _tampered(original: RunDirectory) -> Iterator[str]:
    if read_manifest(original.dir) is not None:
        yield from (f"{fault} (in the run that is repeated)" for fault in faults(original.dir))


def _changes(original: RunDirectory, new: RunDirectory, plain: Any) -> list[Change]:
    now = yaml_source.read_file(str(new.path("recipe.yaml")), []).plain()
    keys = recipe_changes(plain, now)
    return [*(c._replace(name=f"recipe {c.name}") for c in keys), *changes(read_lock(original), read_lock(new))]


# ---------------------------------------------------------------- the verdict


def verdict_of(original: RunDirectory, new: RunDirectory) -> tuple[str, str]:
    """Return one of four verdicts on a finished rerun, and the reason in words."""
    diff = diff_runs(original, new)
    # What the original handed on later is no part of its recipe: a rerun does not repeat it.
    diff = dataclasses.replace(diff, unmatched=tuple(n for n in diff.unmatched if not n.startswith(PREFIX)))
    obstacle = _obstacle(original, new, diff)
    if obstacle:
        return NOT_COMPARABLE, obstacle
    if diff.identical:
        n = sum(diff.compared.values())
        return IDENTICAL, f"all {n} answers and {len(diff.metrics)} metrics are those of {original.id}"
    changed = ", ".join(f"{n} of {total} answers of {name}" for name, n, total in changed_answers(diff))
    beside = f" ({changed} differ)" if changed else ""
    outside = [m for m in diff.metrics if not m.within]
    primary = {name: new.measurement(name)["settings"].get("primary") for name in diff.compared}
    shifted = [m for m in diff.metrics if m.metric == primary[m.measurement] and m.p_value and m.p_value < SIGNIFICANCE]
    if not outside and not shifted:
        return EQUAL, f"each metric lies in the 95 % interval of {original.id}{beside}"
    m = (outside or shifted)[0]
    what = f"{m.measurement} {m.metric} {metric_value(m.before, m.unit)} -> {metric_value(m.now, m.unit)}{beside}"
    facts = _changes(original, new, _plain(original))
    first = f"the first locked thing that changed: {facts[0]}" if facts else "nothing that lock.json records changed"
    return DIFFERENT, f"{what}; {first}"


def _obstacle(original: RunDirectory, new: RunDirectory, diff: RunsDiff) -> str | None:
    """Return why the results cannot be compared, or None."""
    measured = ("data", *diff.compared)
    for fault in faults(original.dir) if read_manifest(original.dir) is not None else ():
        if fault.path.split("/")[0] in measured:
            return f"{fault} ({original.id})"
    rows = next((c for c in changes(read_lock(original), read_lock(new)) if c.name.startswith("data ")), None)
    if rows:
        return f"the rows in data/ are not those that were run: {rows}"
    if diff.unmatched:
        return f"only one of the two runs has: {', '.join(diff.unmatched)}"
    if not any(diff.compared.values()):
        return "the two runs have no measured row in common"
    for run in (original, new):
        for name in diff.compared:
            answers = run.predictions(name)
            failed = sum(p.error is not None for p in answers)
            if failed > UNSCORED_LIMIT * len(answers):
                return f"{failed} of {len(answers)} answers of {name} in {run.id} failed"
    return None
