"""The rows of a sweep: read once, kept with the test rows for the winner, and given to the trials without them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.task import StoredRows, load_task
from ..directory import RunDirectory
from ..files import digest, publish, read_json, write_json
from ..recipe.load import Recipe
from ..records import Task
from .directory import SweepDirectory

_DECIDE = ("dataset", "prompt", "generation")  # the sections of a recipe that the making of rows reads


def keep_rows(sweep: SweepDirectory, recipe: Recipe) -> StoredRows:
    """Return a recipe's rows, test rows included; they are in the sweep's directory from then on.

    Raises RecipeError with all that the recipe asks for and the data lack.
    """
    folder = _folder(sweep, recipe)
    if not folder.exists():
        task, audit = load_task(replace(recipe, measure="test"))
        staging = RunDirectory(folder.with_name(f".{folder.name}"))
        staging.dir.mkdir(parents=True, exist_ok=True)
        staging.save_task(task)
        write_json(staging.path("audit.json"), audit)
        publish(staging.dir, folder)
    return StoredRows(RunDirectory(folder).task, read_json(folder / "audit.json"))


def _folder(sweep: SweepDirectory, recipe: Recipe) -> Path:
    data: dict[str, Any] = recipe.to_dict()
    return sweep.dir / "rows" / digest({key: data[key] for key in _DECIDE})[:12]


def for_trial(recipe: Recipe, rows: StoredRows) -> Recipe:
    """Return the recipe as a trial has it: measured on the validation rows, and without test rows."""
    return _given(replace(recipe, measure="validation"), StoredRows(without_test(rows.task), rows.audit))


def for_winner(recipe: Recipe, rows: StoredRows) -> Recipe:
    """Return the recipe of a trial as the winner has it: measured on the test rows."""
    return _given(replace(recipe, measure="test"), rows)


def _given(recipe: Recipe, rows: StoredRows) -> Recipe:
    return replace(recipe, dataset=recipe.dataset.model_copy(update={"given": rows}))


def without_test(task: Task) -> Task:
    """Return a task whose validation rows are measured, without its test rows."""
    kept = {split: print_ for split, print_ in task.fingerprints.items() if split != "test"}
    return replace(task.for_training(), fingerprints=kept, measured_split="validation")
