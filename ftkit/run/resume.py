"""Resume a run with other options: `--resume RUN --set KEY=VALUE`, for those that change no measured number."""

from __future__ import annotations

import hashlib
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..directory import RunDirectory, utc_now
from ..errors import Problem, RecipeError
from ..files import write_atomic, write_json
from ..recipe.load import Recipe, load_recipe
from ..recipe.resumable import changed_keys, why_not_resumable
from ..records import RunRecord
from .lock import read_lock
from .used import keep_files

_MEASURING = ("baseline", "evaluate")  # the stages that measure


def recipe_with(run: RunDirectory, overrides: Sequence[str]) -> Recipe:
    """Return the run's recipe with these overrides. Raises RecipeError with each that a begun run cannot take."""
    before, after = run.recipe, load_recipe(run.path("recipe.yaml"), overrides, check_modules=False)
    problems = [
        Problem(f"cannot change in a run that has begun: {why}", "--set", key=key, hint=_anew(run, overrides))
        for key in changed_keys(before, after)
        if (why := why_not_resumable(before.backend, key))
    ]
    if not problems:
        found = after.backend.make().check_resumed(before.backend.options, run)
        problems = [Problem(f.message, "--set", key=f.key, hint=f.hint) for f in found if f.level == "error"]
    if problems:
        raise RecipeError(problems)
    return after


def _anew(run: RunDirectory, overrides: Sequence[str]) -> str:
    options = " ".join(f"--set {shlex.quote(text)}" for text in overrides)
    return f"start a new run with it: ftkit run {shlex.quote(str(run.path('recipe.yaml')))} {options}"


def change(run: RunDirectory, after: Recipe, adapted: bool = False) -> Iterator[str]:
    """Make `after` the run's recipe; yield a line on each change. The run directory must be held (`exclusive`).

    `adapted`: no user asked for it; the run continues by itself after a failure (`Backend.adapt`).

    Answers are part of the batches that they were made in. Where batches change, what was measured is removed first,
    to be measured again: base and tuned model are measured alike.
    """
    before, record = run.recipe, run.record()
    changes = changed_keys(before, after)
    if not changes:
        return
    stage = next((s.name for s in record.stages if s.status != "done"), "baseline")
    old, new = (recipe.backend.make().eval_batch_size for recipe in (before, after))
    again = _remove_measurements(run, record) if old != new else []
    record = run.record()
    text = keep_files(run, after)
    write_atomic(run.path("recipe.yaml"), text)
    write_json(run.path("lock.json"), {**read_lock(run), "recipe": hashlib.sha256(text.encode()).hexdigest()})
    by = {"adapted": True} if adapted else {}
    entries = [
        {"time": utc_now(), "stage": stage, "key": key, "from": was, "to": now, **by}
        for key, (was, now) in changes.items()
    ]
    run.save_record(replace(record, changes=(*record.changes, *entries)))
    run.recipe = after
    run.__dict__.pop("evaluators", None)
    yield from (change_line(entry) for entry in entries)
    if again:
        yield f"measured again in batches of {new}: {', '.join(again)}"


def change_line(entry: Mapping[str, Any]) -> str:
    """Return one change of `RunRecord.changes` in words."""
    return f"{entry['key']}: {entry['from']} -> {entry['to']}"


def _remove_measurements(run: RunDirectory, record: RunRecord) -> list[str]:
    """Remove what the run's own backend has measured, and forget the stages that measured it; return the names."""
    own = [name for name in record.systems if not name.startswith("control-") and run.path(name).exists()]
    if own:  # the record first: a kill in between leaves files that are whole, and used
        run.save_record(replace(record, stages=tuple(s for s in record.stages if s.name not in _MEASURING)))
    for name in own:
        shutil.rmtree(run.path(name))
    return own
