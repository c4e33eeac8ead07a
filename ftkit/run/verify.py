"""Is a run directory what it says? Files against the manifest, and numbers against what they were computed from.

The manifest names a file that changed since the run was sealed. It is not signed: who changes a file can write it again.
So what is computed from other files is computed again, and what is recorded twice is compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

from ..api import Backend
from ..data.chats import holds_chats
from ..data.task import fingerprint, load_task
from ..directory import FILES, RunDirectory, row_digest
from ..errors import FtkitError
from ..files import digest, file_digest, read_json, read_jsonl
from ..locked import changes
from ..recipe import yaml as yaml_source
from ..recipe.load import load_recipe
from ..records import Record, Task
from .lock import code, packages, read_lock
from .manifest import faults, read_manifest
from .verify_results import NotChecked, check_measurement, check_report, differing

_NAMED = 20  # problems of one check that are named one by one


@dataclasses.dataclass(frozen=True)
class Check(Record):
    """One thing that was looked at. `ok` is None where it could not be checked, and `note` says why."""

    name: str
    ok: bool | None
    problems: tuple[str, ...] = ()
    note: str | None = None


@dataclasses.dataclass(frozen=True)
class Verification(Record):
    """What `ftkit verify` found; `ok` is False where any check failed."""

    run: str
    ok: bool
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()


def verify(run: RunDirectory, against: str | None = None) -> Verification:
    """Check a run directory. `against` is the source of the rows (a path, or a hub id): they are read again and compared.

    Whatever is wrong with its files is a problem in a check, not an error. Raises InputError where this machine lacks a
    plugin of the run.
    """
    if run.path("recipe.yaml").exists() and _readable_lock(run).get("recipe") == file_digest(run.path("recipe.yaml")):
        run.recipe  # noqa: B018  it is the recipe that was run: what it lacks, such as a plugin, is lacking here
    kind = "run" if run.path("recipe.yaml").exists() or run.path("lock.json").exists() else "score"
    checks = [_checked("manifest", lambda: _manifest(run)), _checked("record", lambda: _record(run))]
    if kind == "run":
        checks += [_checked("recipe and lock", lambda: _locked(run))]
    checks += [_checked("data", lambda: _data(run, kind))]
    for name in _measurements(run):
        checks.append(_checked(f"measurement {name}", lambda name=name: check_measurement(run, name)))  # type: ignore[misc]
    if kind == "run":
        checks += [_checked("model", lambda: _model(run))]
    checks += [_checked("report", lambda: check_report(run, _same_code(run)))]
    if against is not None:
        checks += [_checked(f"data against {against}", lambda: _against(run, against))]
    return Verification(run.id, not any(c.ok is False for c in checks), tuple(checks), tuple(_other_versions(run)))


def _checked(name: str, find: Callable[[], Iterator[str]]) -> Check:
    problems: list[str] = []
    try:
        problems.extend(find())
    except NotChecked as reason:
        return Check(name, False if problems else None, tuple(problems), str(reason))
    except FtkitError as error:
        problems.append(error.message)
    except Exception as error:  # what a damaged or hostile file makes of a reader
        problems.append(f"cannot be read: {type(error).__name__}: {str(error)[:200]}")
    more = [f"and {len(problems) - _NAMED} more"] if len(problems) > _NAMED else []
    return Check(name, not problems, (*problems[:_NAMED], *more))


def _manifest(run: RunDirectory) -> Iterator[str]:
    if read_manifest(run.dir) is None:
        raise NotChecked("no manifest: the run is not finished, or was made by an older ftkit")
    yield from map(str, faults(run.dir))


# ---------------------------------------------------------------- record, recipe, lock


def _measurements(run: RunDirectory) -> list[str]:
    try:
        return list(run.record().systems)
    except Exception:  # `_record` says what is wrong
        return sorted(path.parent.name for path in run.dir.glob("*/metrics.json"))


def _record(run: RunDirectory) -> Iterator[str]:
    record = run.record()
    if record.status != "done":
        yield f"run.json: the run is not done ({record.status})"
    for folder in sorted(path.parent.name for path in run.dir.glob("*/metrics.json")):
        if folder not in record.systems:
            yield f"{folder}/ holds a measurement that run.json does not list"
    if len(set(record.systems)) != len(record.systems):
        yield "run.json lists a measurement twice"


def _locked(run: RunDirectory) -> Iterator[str]:
    lock, recipe = read_lock(run), run.recipe
    path = run.path("recipe.yaml")
    if lock.get("recipe") and lock["recipe"] != file_digest(path):
        yield "recipe.yaml is not the recipe that lock.json names"
    if recipe.name != run.record().name:
        yield f"recipe.yaml is of {recipe.name}, run.json of {run.record().name}"
    for key, now in (("seed", recipe.seed), ("generation", recipe.generation.to_dict())):
        if key in lock:
            yield from (f"lock.json {text} in recipe.yaml" for text in differing(lock[key], now, key))
    known = lock.get("files", {})
    here = {p.name: file_digest(p) for p in sorted(run.path(FILES).glob("*"))} if run.path(FILES).is_dir() else {}
    for name in sorted(known.keys() | here.keys()) if "files" in lock else ():
        if known.get(name) != here.get(name):
            yield f"{FILES}/{name} is not the file that lock.json names"
    facts: dict[str, Any] = {}
    for row in run.log_rows():
        if row["event"] == "lock":
            facts |= {key: value for key, value in row.items() if key not in ("event", "time")}
    if facts or "training" in lock:
        yield from (
            f"lock.json {text} in train/log.jsonl" for text in differing(lock.get("training", {}), facts, "training")
        )


# ---------------------------------------------------------------- data


def _data(run: RunDirectory, kind: str) -> Iterator[str]:
    about = read_json(run.path("data", "task.json"))
    locked = read_lock(run).get("data", {})
    written = read_json(run.path("data", "digests.json")) if run.path("data", "digests.json").exists() else None
    for split in about["fingerprints"]:
        rows = list(read_jsonl(run.path("data", f"{split}.jsonl")))
        ids = [row.get("id") for row in rows]
        for name in sorted({str(i) for i in ids if ids.count(i) > 1}) if len(set(ids)) != len(ids) else ():
            yield f"data/{split}.jsonl: example {name!r} occurs twice"
        if written is None:
            continue
        yield from _rows(split, rows, written.get(split, []))
        if "rows" in locked and digest(written.get(split, [])) != locked["rows"].get(split):
            yield f"data/digests.json: the rows of {split} are not those that lock.json names"
    if set(about["fingerprints"]) != {p.stem for p in run.path("data").glob("*.jsonl")}:
        yield "data/ holds other splits than data/task.json names"
    if locked:
        for key, name in (("fingerprints", "fingerprints"), ("prompt", "prompt_hash")):
            yield from (f"lock.json {text} in data/task.json" for text in differing(locked[key], about[name], name))
    yield from _fingerprints(run, run.task, kind)


def _rows(split: str, rows: list[Any], digests: list[str]) -> Iterator[str]:
    """Name each row that is not the one whose digest was kept."""
    found = [row_digest(row) for row in rows]
    if found == digests:
        return
    if len(rows) == len(digests):
        for number, (row, ours, kept) in enumerate(zip(rows, found, digests, strict=True), 1):
            if ours != kept:
                yield f"data/{split}.jsonl: row {number} ({row.get('id')}) was changed"
        return
    added = [row for row, ours in zip(rows, found, strict=True) if ours not in set(digests)]
    yield f"data/{split}.jsonl holds {len(rows)} rows, and {len(digests)} were used"
    yield from (f"data/{split}.jsonl: {row.get('id')} was added or changed" for row in added)
    for number, kept in enumerate(digests, 1):
        if kept not in set(found):
            yield f"data/{split}.jsonl: row {number} of those that were used is missing"


def _fingerprints(run: RunDirectory, task: Task, kind: str) -> Iterator[str]:
    named = False
    if kind == "run":
        prompt = run.recipe.prompt
        if digest(prompt.model_dump(mode="json")) != task.prompt_hash:
            yield "data/task.json: the prompt is not that of recipe.yaml"
        # A template that names columns: the fingerprint is of columns that are not kept; digests.json covers the rows.
        named = bool(prompt.columns_of({"instruction": ""})) and not holds_chats(run.recipe.dataset)
    for split, rows in task.splits.items() if not named else ():
        if fingerprint(rows) != task.fingerprints[split]:
            yield f"data/{split}.jsonl: its fingerprint is not the one in data/task.json"


def _against(run: RunDirectory, source: str) -> Iterator[str]:
    """Read the rows again from their source, and name those that are not in data/ as they are there."""
    plain = yaml_source.read_file(str(run.path("recipe.yaml")), []).plain()
    path = os.path.abspath(source) if os.path.exists(os.path.expanduser(source)) else source
    revision = read_lock(run).get("data", {}).get("revision")
    plain["dataset"] = {**plain["dataset"], "path": path}
    if not os.path.isabs(path) and revision and not path.startswith("loader:"):
        plain["dataset"]["revision"] = revision
    task, _ = load_task(load_recipe(plain, check_modules=False))
    for split in dict.fromkeys([*run.task.splits, *task.splits]):
        ours = {e.id: e for e in run.task.splits.get(split, ())}
        theirs = {e.id: e for e in task.splits.get(split, ())}
        yield from (f"{split}: {name} is not in the source" for name in ours if name not in theirs)
        yield from (f"{split}: {name} is in the source alone" for name in theirs if name not in ours)
        changed = [name for name in ours if name in theirs and ours[name] != theirs[name]]
        yield from (f"{split}: {name} is another row in the source" for name in changed)
        if not changed and ours.keys() == theirs.keys() and list(ours) != list(theirs):
            yield f"{split}: the rows are in another order in the source"


# ---------------------------------------------------------------- the model


def _model(run: RunDirectory) -> Iterator[str]:
    model = run.model()
    if model is None:
        yield "train/model.json is missing"
        return
    trained = read_lock(run).get("trained", {})
    folder = run.resolve_uri(model.uri)
    own = model.kind in ("adapter", "path") and folder.is_relative_to(run.dir)
    here = {p.relative_to(run.dir).as_posix() for p in folder.rglob("*") if p.is_file()} if own else set()
    for path in sorted({*trained, *here}) if trained or not own else ():
        if path not in here:
            yield f"{path} is missing"
        elif path not in trained:
            yield f"{path} was not there when training ended"
        elif file_digest(run.path(path)) != trained[path]:
            yield f"{path} is not the file that training wrote"
    if own and not here:
        yield f"{model.uri} holds no file"
    if model.kind == "adapter" and not model.base:
        yield "train/model.json names no base model for its adapter"
    if run.path("tuned", "metrics.json").exists():
        measured = run.measurement("tuned").get("model")
        yield from (
            f"train/model.json {text} in tuned/metrics.json" for text in differing(model.to_dict(), measured, "model")
        )
    backend: Backend = run.recipe.backend.make()
    yield from backend.verify_model(model, run)


# ---------------------------------------------------------------- this machine


def _readable_lock(run: RunDirectory) -> dict[str, Any]:
    """Return lock.json, or nothing of one that cannot be read: that is a problem of the check `recipe and lock`."""
    with contextlib.suppress(FtkitError):
        return read_lock(run)
    return {}


def _same_code(run: RunDirectory) -> bool:
    """Return whether this is the ftkit that wrote the report, so that it would write the same bytes."""
    lock = _readable_lock(run)
    if "code" not in lock:
        return False
    ours = packages()
    same = all(lock.get("packages", {}).get(name) == ours.get(name) for name in ("Jinja2", "MarkupSafe", "numpy"))
    return same and lock["code"].get("ftkit") == code(run.recipe)["ftkit"]


def _other_versions(run: RunDirectory) -> Iterator[str]:
    """Yield a note where other code computes here than computed there."""
    lock = _readable_lock(run)
    try:
        now = {"packages": packages(), "code": code(run.recipe)} if "code" in lock else {}
    except FtkitError:
        return
    found = [str(c) for c in changes({k: lock[k] for k in now if k in lock}, now)]
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        yield f"versions here differ from those of the run, which can change numbers: {', '.join(found[:5])}{more}"
