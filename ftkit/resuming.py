"""May a run directory be resumed here, and what changed since the run began?"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from . import provenance
from .api import Backend
from .errors import FtkitError, InputError
from .records import RunRecord
from .store import RunContext, dump_json, read_json

_NAMED = 8  # changes that the warning names one by one


def is_done(record: RunRecord) -> bool:
    """Return whether all of a run is done. (Its report is written last, and speaks of the run as done.)"""
    return record.status == "done" and all(stage.status == "done" for stage in record.stages)


def check_resumable(run: RunContext) -> None:
    """Raise InputError where a run cannot, or must not, be resumed."""
    record = run.record()
    if record.kind != "run" or not run.path("recipe.yaml").exists():
        raise InputError(f"{run.dir} cannot be resumed: it holds no recipe", "run the recipe again")
    _refuse_links(run.dir)
    theirs, ours = _lock(run).get("packages", {}).get("ftkit"), provenance.packages().get("ftkit", "0")
    with contextlib.suppress(InvalidVersion, TypeError):
        if theirs and Version(theirs) > Version(ours):
            raise InputError(
                f"{run.dir} was made by ftkit {theirs}, and this is ftkit {ours}", f"pip install 'ftkit>={theirs}'"
            )


def _refuse_links(folder: Path) -> None:
    """Refuse a link that leads out of the run directory: what is read, and what is written, is the run's own."""
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
                raise InputError(
                    f"{path} is a link to {path.resolve()}, and a run is only resumed from files of its own directory",
                    "put the files in its place, or run the recipe again",
                )


def what_changed(run: RunContext, backend: Backend) -> str | None:
    """Return one sentence on what is no longer as lock.json says, or None: packages, Python, recipe, device, weights."""
    lock = _lock(run)
    if not lock:
        return None
    before, now = _facts(lock), _facts({"packages": provenance.packages(), "python": sys.version.split()[0]})
    recipe = run.path("recipe.yaml").read_bytes()
    with contextlib.suppress(FtkitError):  # what it cannot tell will be said when the model is loaded
        now |= _flat(backend.identity(backend.base_model(), run))
        before |= _flat(lock.get("model", {}))
    changes = [
        f"{name} {before.get(name, 'none')} -> {now.get(name, 'none')}"
        for name in sorted(before.keys() | now.keys(), key=str.lower)
        if before.get(name) != now.get(name)
    ]
    if lock.get("recipe") and lock["recipe"] != hashlib.sha256(recipe).hexdigest():
        changes.insert(0, "recipe.yaml was edited")
    if not changes:
        return None
    more = f" and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
    named = ", ".join(changes[:_NAMED])
    return f"changed since this run began, so that its stages may not be comparable: {named}{more}"


def _facts(lock: dict[str, Any]) -> dict[str, str]:
    return {**{str(k): str(v) for k, v in lock.get("packages", {}).items()}, "python": str(lock.get("python"))}


def _flat(identity: dict[str, Any]) -> dict[str, str]:
    """Return a backend's identity one level deep; versions of packages are already compared by their names."""
    plain = json.loads(dump_json(identity))  # as it is read back from lock.json
    return {f"model {k}": str(v)[:60] for k, v in plain.items() if k not in ("versions", "version")}


def _lock(run: RunContext) -> dict[str, Any]:
    path = run.path("lock.json")
    lock: dict[str, Any] = read_json(path) if path.exists() else {}
    return lock
