"""Train a finished run further: `--resume RUN --set` with options that a backend names in `Options.extends`.

What was measured is kept under another name, as a system of its own ("tuned-300"). The change is written down before
anything is moved, and each of its steps may be repeated: a run that is killed in between continues with --resume.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..directory import EARLIER, RunDirectory, utc_now
from ..errors import InputError, Problem, RecipeError
from ..files import read_json, sync_folder, write_atomic, write_json
from ..recipe.load import Recipe, load_recipe
from ..recipe.resumable import changed_keys, extending_options, why_not_resumable
from ..records import ModelRef, RunRecord
from .lock import read_lock
from .manifest import MANIFEST, faults, read_manifest
from .used import keep_files

INTENT = "extension.json"  # what is to be done; it is there from the first change to the last
_AGAIN = ("train", "evaluate", "report")  # the stages that are done again


def extend(run: RunDirectory, overrides: Sequence[str]) -> list[str]:
    """Make a finished run one whose training continues; return a line on each change. The directory must be held.

    Raises RecipeError for each override that does not continue a training, InputError where files of the run changed.
    """
    before, after = run.recipe, load_recipe(run.path("recipe.yaml"), overrides, check_modules=False)
    changes = changed_keys(before, after)
    extends = {f"backend.{name}" for name in extending_options(before.backend)}
    problems = [p for key, (was, now) in changes.items() if (p := _problem(before, key, was, now, extends))]
    if not problems and not extends & changes.keys():
        raise InputError(
            f"{run.dir} is done: --set would change nothing",
            f"start a new run: ftkit run {run.dir / 'recipe.yaml'} {_options(overrides)}",
        )
    if not problems:
        found = after.backend.make().check_resumed(before.backend.options, run)
        problems = [Problem(f.message, "--set", key=f.key, hint=f.hint) for f in found if f.level == "error"]
    if problems:
        raise RecipeError(problems)
    changed = faults(run.dir) if read_manifest(run.dir) is not None else []
    if changed:
        raise InputError(
            f"{run.dir} is not as it was sealed: {changed[0]}", f"see all: ftkit verify {shlex.quote(str(run.dir))}"
        )
    key = next(key for key in changes if key in extends)
    entries = [
        {"time": utc_now(), "stage": "train", "key": name, "from": was, "to": now, "extends": name in extends}
        for name, (was, now) in changes.items()
    ]
    was = changes[key][0]
    intent = {
        "suffix": f"{was:g}" if isinstance(was, float) else str(was),
        "recipe": keep_files(run, after),
        "changes": entries,
    }
    write_json(run.path(INTENT), intent)
    complete(run)
    return [f"{entry['key']}: {entry['from']} -> {entry['to']}" for entry in entries]


def _problem(before: Recipe, key: str, was: Any, now: Any, extends: set[str]) -> Problem | None:
    if key not in extends:
        why = why_not_resumable(before.backend, key)
        can = f"; a finished training continues with more of: {', '.join(sorted(extends))}" if extends else ""
        return Problem(f"cannot change in a run that is done: {why}{can}", "--set", key=key) if why else None
    if was is None:
        return Problem("has no value in this run: what decides how long it trained is another option", "--set", key=key)
    if now is None or now <= was:
        return Problem(f"is {was} in this run: what was trained is not taken back", "--set", key=key,
                       hint=f"name more than {was}")  # fmt: skip
    return None


def _options(overrides: Sequence[str]) -> str:
    return " ".join(f"--set {shlex.quote(text)}" for text in overrides)


def complete(run: RunDirectory) -> None:
    """Do what is left of an extension that was begun; nothing where none was. The directory must be held."""
    path = run.path(INTENT)
    if not path.exists():
        return
    intent = read_json(path)
    run.path(MANIFEST).unlink(missing_ok=True)
    old = _old_model(run)
    kept = replace(old, uri=f"{EARLIER}/{intent['suffix']}") if old is not None and _is_own(run, old) else old
    if old is not None and kept is not None:
        _keep_measurements(run, old, kept, intent["suffix"])
        _keep_model(run, old, kept)
    write_atomic(run.path("recipe.yaml"), intent["recipe"])
    digest = hashlib.sha256(intent["recipe"].encode()).hexdigest()
    write_json(run.path("lock.json"), {**read_lock(run), "recipe": digest})
    for name in ("recipe", "evaluators"):
        run.__dict__.pop(name, None)
    run.save_record(_record(run, run.record(), intent["changes"]))
    run.path("report.json").unlink(missing_ok=True)
    path.unlink()
    sync_folder(run.dir)


def _old_model(run: RunDirectory) -> ModelRef | None:
    """Return the model of the finished training: from its file, or from where an earlier attempt has put it."""
    known = run.path("train", "old.json")
    if not known.exists():
        model = run.model()
        if model is None:
            return None
        write_json(known, model.to_dict())
    return ModelRef.from_dict(read_json(known))


def _is_own(run: RunDirectory, model: ModelRef) -> bool:
    return model.kind in ("adapter", "path") and run.resolve_uri(model.uri).is_relative_to(run.dir)


def _keep_measurements(run: RunDirectory, old: ModelRef, kept: ModelRef, suffix: str) -> None:
    """Give each measurement of the old model another name; in the report it is a further system."""
    record = run.record()
    names = {name: f"{name}-{suffix}" for name in record.systems}
    train = next((s for s in record.stages if s.name == "train"), None)
    for name, other in names.items():
        source, target = run.path(name), run.path(other)
        metrics = source / "metrics.json"
        if metrics.exists() and not target.exists() and read_json(metrics).get("model") == old.to_dict():
            os.replace(source, target)
            sync_folder(run.dir)
        data = read_json(target / "metrics.json") if (target / "metrics.json").exists() else {}
        if data.get("model") == old.to_dict():
            training = {"seconds": train.seconds, "usd": train.usd, **train.meta} if train is not None else {}
            role = "further" if data["role"] == "tuned" else data["role"]
            write_json(target / "metrics.json", {**data, "model": kept.to_dict(), "role": role, "training": training})
    systems = []
    for name in record.systems:
        other = names[name]
        systems += [other] if run.path(other, "metrics.json").exists() and other not in record.systems else []
        systems.append(name)
    run.save_record(replace(record, systems=tuple(dict.fromkeys(systems))))


def _keep_model(run: RunDirectory, old: ModelRef, kept: ModelRef) -> None:
    source, target = run.resolve_uri(old.uri), run.resolve_uri(kept.uri)
    if source != target and source.is_dir() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
        sync_folder(target.parent)
    write_json(run.path("train", "earlier.json"), kept.to_dict())
    run.path("train", "model.json").unlink(missing_ok=True)
    run.path("train", "old.json").unlink(missing_ok=True)


def _record(run: RunDirectory, record: RunRecord, entries: Sequence[Mapping[str, Any]]) -> RunRecord:
    """Return the record of a run whose training continues: its time so far counts; measuring starts again."""
    stages = tuple(
        replace(s, status="interrupted", usd=None, meta={}) if s.name == "train" else s
        for s in record.stages
        if s.name not in _AGAIN or s.name == "train"
    )
    known = [e for e in entries if e not in record.changes]  # an attempt that was killed may have written them
    systems = tuple(s for s in record.systems if run.path(s).exists())
    changes = (*record.changes, *map(dict, known))
    return replace(record, status="interrupted", stages=stages, changes=changes, systems=systems, error=None)
