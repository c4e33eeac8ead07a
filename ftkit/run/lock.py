"""lock.json: what a run was made with (packages, plugins, hardware, git, environment; nothing secret), and what has changed since."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import InvalidVersion, Version

from .. import versions
from ..api import Backend
from ..directory import FILES, RunDirectory
from ..errors import FtkitError, InputError
from ..files import digest, dump_json, file_digest, read_json, write_json
from ..locked import changes
from ..plugins import installed_plugins
from ..records import RunRecord
from ..score import settings_of
from .used import code_of, plugin_refs, used_files

if TYPE_CHECKING:
    from ..recipe.load import Recipe

# Variables that can change a result, or that say how a machine was used; their values are recorded.
_ENVIRONMENT = re.compile(
    r"^((ACCELERATE|ATEN|BLIS|BNB|CUBLAS|CUDA|CUDNN|DNNL|GOMP|HIP|HSA|KMP|MKL|NCCL|NUMEXPR|NVIDIA|OMP|ONEDNN|OPENBLAS|"
    r"PYTORCH|RAYON|ROCR|TORCHDYNAMO|TORCHINDUCTOR|TRITON|VECLIB|XLA)_\w+|"
    r"[A-Z]+_(HUB_|DATASETS_)?OFFLINE|GLIBC_TUNABLES|LD_LIBRARY_PATH|LD_PRELOAD|PYTHONHASHSEED|PYTHONPATH|"
    r"TOKENIZERS_PARALLELISM|WORLD_SIZE)$"
)
_SECRET = re.compile(r"KEY|TOKEN(?!IZERS)|SECRET|PASSW|CREDENTIAL")
_IS_SET = "set"  # in place of a value that holds a path: it may name a user


def lock(recipe: Recipe, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the part of lock.json that speaks of this machine, environment and code.

    `environment` is that of the start: libraries set variables of their own when they are imported.
    """
    found = versions.packages()
    evaluators = [ref.make() for ref in recipe.evaluators]
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: package.version for name, package in found.items()},
        "origins": {name: package.origin for name, package in found.items() if package.origin != "installed"},
        "plugins": _plugins(),
        "code": code(recipe),
        "hardware": hardware(),
        "git": git(recipe.source.parent if recipe.source else Path.cwd(), used_files(recipe)),
        "environment": dict(environment),
        "seed": recipe.seed,
        "generation": recipe.generation.to_dict(),
        "evaluators": settings_of(evaluators),
    }


def lock_of(run: RunDirectory, recipe: Recipe, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return all of lock.json but for what training adds; `run` holds recipe and data."""
    task, backend = run.task, recipe.backend.make()
    controls = {ref.name: ref.make() for ref in recipe.controls}
    data = {
        **task.source,
        "fingerprints": task.fingerprints,
        "prompt": task.prompt_hash,
        "rows": {split: digest(rows) for split, rows in read_json(run.path("data", "digests.json")).items()},
    }
    found = {
        **lock(recipe, environment),
        "data": data,
        "model": _identity(backend, run),
        "controls": {name: _identity(control, run) for name, control in controls.items()},
        "recipe": file_digest(run.path("recipe.yaml")),
        "files": {path.name: file_digest(path) for path in sorted(run.path(FILES).glob("*"))},
    }
    return {key: run.portable(value) for key, value in found.items()}


def _identity(backend: Backend, run: RunDirectory) -> dict[str, Any]:
    base = backend.base_model()
    about = {"about": base.meta} if base.meta else {}  # such as who hosts it, and its shutdown date
    return {"plugin": backend.name, **about, **backend.identity(base, run)}


def add_facts(run: RunDirectory) -> None:
    """Add to lock.json what training and measuring have logged for a repetition (the event `lock`)."""
    facts: dict[str, Any] = {}
    for row in run.log_rows():
        if row["event"] == "lock":
            facts |= {key: value for key, value in row.items() if key not in ("event", "time")}
    locked = read_lock(run)
    if facts and locked.get("training") != facts:
        write_json(run.path("lock.json"), {**locked, "training": facts})


def add_model(run: RunDirectory) -> None:
    """Add to lock.json the SHA-256 of each file of the trained model, where it lies in the run directory."""
    model = run.model()
    folder = run.resolve_uri(model.uri) if model is not None and model.kind in ("adapter", "path") else None
    if folder is None or not folder.is_relative_to(run.dir) or not folder.is_dir():
        return
    files = {p.relative_to(run.dir).as_posix(): file_digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    locked = read_lock(run)
    if locked.get("trained") != files:
        write_json(run.path("lock.json"), {**locked, "trained": files})


def packages() -> dict[str, str]:
    """Return every package and its version, as Python imports it."""
    return {name: package.version for name, package in versions.packages().items()}


def recorded_environment(recipe: Recipe) -> dict[str, str]:
    """Return the variables that can change a result, also those of the libraries that the recipe's plugins require.

    A value that holds a path is "set" instead. No variable is recorded that may be a secret.
    """
    libraries = {m.upper() for ref in plugin_refs(recipe) for m in ref.cls.requires.modules}
    return {
        name: _IS_SET if "/" in value or "\\" in value or name.endswith("PATH") else value
        for name, value in sorted(os.environ.items())
        if (_ENVIRONMENT.match(name) or name.partition("_")[0] in libraries) and not _SECRET.search(name)
    }


def code(recipe: Recipe) -> dict[str, str]:
    """Return the SHA-256 of the Python files of the core, and of each plugin of the recipe.

    In an editable install they change without a new version.
    """
    core = Path(__file__).parents[1]
    found = {"ftkit": _files_hash(sorted(core.rglob("*.py")), core)}
    for ref in plugin_refs(recipe):
        files = code_of(ref)
        if files:
            found[f"{ref.kind} {ref.name}"] = _files_hash(files, Path(os.path.commonpath([p.parent for p in files])))
    return found


def _files_hash(files: Sequence[Path], folder: Path) -> str:
    """Return the SHA-256 of Python files, by their name in the folder and by content."""
    total = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        total.update(f"{file.relative_to(folder).as_posix()} {len(content)} ".encode() + content)
    return total.hexdigest()


def _plugins() -> list[dict[str, str]]:
    return [
        {"entry": s.entry, "module": s.module, "distribution": s.distribution, "version": s.version}
        for s in installed_plugins().sources
        if not s.error
    ]


def hardware() -> dict[str, Any]:
    """Return cpu model, cores (and those this process may use), memory (bytes), GPUs (name, memory, driver)."""
    cpu = platform.processor() or platform.machine()
    memory = None
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        cpu = match.group(1) if match else cpu
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        pass
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": cpu, "cores": os.cpu_count(), "usable_cores": usable, "memory": memory, "gpus": gpus()}


@functools.cache
def gpus() -> tuple[str, ...]:
    """Return one line per NVIDIA GPU: name, memory, driver version."""
    out = _run(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    return tuple(line.strip() for line in out.splitlines() if line.strip()) if out else ()


def git(folder: Path, used: Sequence[Path] = ()) -> dict[str, Any] | None:
    """Return the commit of the repository around `folder`, and what it lacks; None where there is no commit.

    `dirty` is the SHA-256 of `git diff HEAD`, None without changes. `untracked` holds the SHA-256 of those of the
    `used` files that lie in the repository and are not in it, by their path there.
    """
    commit, top = (_run(["git", "-C", str(folder), "rev-parse", what]) for what in ("HEAD", "--show-toplevel"))
    if not commit or not top:
        return None
    # The user's own settings must not change the hash.
    plain = ["--no-ext-diff", "--no-textconv", "--no-color", "--binary", "--no-relative", "--full-index"]
    diff = _run(["git", "-C", str(folder), "diff", *plain, "HEAD"])
    dirty = versions.UNKNOWN if diff is None else hashlib.sha256(diff.encode()).hexdigest() if diff else None
    return {"commit": commit.strip(), "dirty": dirty, "untracked": _untracked(Path(top.rstrip("\n")), used)}


_AT_ONCE = 200  # paths on one command line


def _untracked(top: Path, used: Sequence[Path]) -> dict[str, str]:
    inside = [path.relative_to(top).as_posix() for path in used if path.is_relative_to(top)]
    found: dict[str, str] = {}
    for start in range(0, len(inside), _AT_ONCE):
        paths = inside[start : start + _AT_ONCE]
        command = ["git", "--literal-pathspecs", "-C", str(top), "ls-files", "--others", "-z", "--", *paths]
        found |= {name: file_digest(top / name) for name in (_run(command) or "").split("\0") if name}
    return found


def _run(command: list[str]) -> str | None:
    if not shutil.which(command[0]):
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, errors="replace")
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


# ---------------------------------------------------------------- may it be resumed here, and what changed

_NAMED = 8  # changes that the warning names one by one


def is_done(record: RunRecord) -> bool:
    """Return whether all of a run is done. (Its report is written last, and speaks of the run as done.)"""
    return record.status == "done" and all(stage.status == "done" for stage in record.stages)


def check_resumable(run: RunDirectory) -> None:
    """Raise InputError where a run cannot, or must not, be resumed."""
    record = run.record()
    if record.kind != "run" or not run.path("recipe.yaml").exists():
        raise InputError(f"{run.dir} cannot be resumed: it holds no recipe", "run the recipe again")
    _refuse_links(run.dir)
    theirs, ours = read_lock(run).get("packages", {}).get("ftkit"), packages().get("ftkit", "0")
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


def what_changed(run: RunDirectory, backend: Backend, so: str = "its stages may not be comparable") -> str | None:
    """Return one sentence on what is no longer as lock.json says, or None; `so` says what follows of it.

    Compared are packages, Python, variables, code, the recipe, and
    what the backend's identity holds: the hub commit, weights, device, ...
    """
    lock = read_lock(run)
    if not lock:
        return None
    now = _now(run, lock)
    with contextlib.suppress(FtkitError):  # what it does not know is reported when the model is loaded
        model = {**_identity(backend, run), "about": lock.get("model", {}).get("about")}
        now["model"] = json.loads(dump_json(run.portable(model)))  # as it is read back from lock.json
    found = [str(change) for change in changes(lock, now)]
    if lock.get("recipe") and lock["recipe"] != file_digest(run.path("recipe.yaml")):
        found.insert(0, "recipe.yaml was edited")
    if not found:
        return None
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    named = ", ".join(found[:_NAMED])
    return f"changed since this run began, so that {so}: {named}{more}"


def _now(run: RunDirectory, lock: dict[str, Any]) -> dict[str, Any]:
    """Return what is compared as it is now; what an older ftkit did not record is left out."""
    now: dict[str, Any] = {"packages": packages(), "python": sys.version.split()[0]}
    if "code" in lock:
        now |= {"code": code(run.recipe), "environment": recorded_environment(run.recipe)}
    return now


def read_lock(run: RunDirectory) -> dict[str, Any]:
    path = run.path("lock.json")
    lock: dict[str, Any] = read_json(path) if path.exists() else {}
    if not isinstance(lock, dict):
        raise InputError(f"{path} is not the lock of a run")
    return lock
