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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import InvalidVersion, Version

from .. import versions
from ..api import Backend, Plugin
from ..directory import RunDirectory
from ..errors import FtkitError, InputError
from ..files import dump_json, read_json
from ..plugins import installed_plugins
from ..records import RunRecord

if TYPE_CHECKING:
    from ..recipe.load import PluginRef, Recipe

# Variables that can change a result, or that say how a machine was used; their values are recorded.
_ENVIRONMENT = re.compile(
    r"^((ACCELERATE|ATEN|BLIS|BNB|CUBLAS|CUDA|CUDNN|DNNL|GOMP|HIP|HSA|KMP|MKL|NCCL|NUMEXPR|NVIDIA|OMP|ONEDNN|OPENBLAS|"
    r"PYTORCH|RAYON|ROCR|TORCHDYNAMO|TORCHINDUCTOR|TRITON|VECLIB|XLA)_\w+|"
    r"[A-Z]+_(HUB_|DATASETS_)?OFFLINE|GLIBC_TUNABLES|LD_LIBRARY_PATH|LD_PRELOAD|PYTHONHASHSEED|PYTHONPATH|"
    r"TOKENIZERS_PARALLELISM|WORLD_SIZE)$"
)
_SECRET = re.compile(r"KEY|TOKEN(?!IZERS)|SECRET|PASSW|CREDENTIAL")
_IS_SET = "set"  # in place of a value that holds a path: it may name a user
# Variables that change where files come from, and no result.
_HARMLESS = re.compile(r"_(OFFLINE|CACHE|HOME|PATH|VERBOSITY)$")


def lock(recipe: Recipe, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the part of lock.json that speaks of this machine, environment and code.

    `environment` is that of the start: libraries set variables of their own when they are imported.
    """
    found = versions.packages()
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: package.version for name, package in found.items()},
        "origins": {name: package.origin for name, package in found.items() if package.origin != "installed"},
        "plugins": _plugins(),
        "code": code(recipe),
        "hardware": hardware(),
        "git": git(recipe.source.parent if recipe.source else Path.cwd()),
        "environment": dict(environment),
    }


def packages() -> dict[str, str]:
    """Return every package and its version, as Python imports it."""
    return {name: package.version for name, package in versions.packages().items()}


def recorded_environment(recipe: Recipe) -> dict[str, str]:
    """Return the variables that can change a result, also those of the libraries that the recipe's plugins require.

    A value that holds a path is "set" instead. No variable is recorded that may be a secret.
    """
    libraries = {m.upper() for ref in _plugin_refs(recipe) for m in _class_of(ref).requires.modules}
    return {
        name: _IS_SET if "/" in value or "\\" in value or name.endswith("PATH") else value
        for name, value in sorted(os.environ.items())
        if (_ENVIRONMENT.match(name) or name.partition("_")[0] in libraries) and not _SECRET.search(name)
    }


def _plugin_refs(recipe: Recipe) -> Iterable[PluginRef]:
    return (recipe.backend, *recipe.evaluators, *recipe.controls)


def _class_of(ref: PluginRef) -> type[Plugin]:
    return installed_plugins().find(ref.kind, ref.name).cls


def code(recipe: Recipe) -> dict[str, str]:
    """Return the SHA-256 of the Python files of the core, and of each plugin of the recipe.

    In an editable install they change without a new version.
    """
    found = {"ftkit": _files_hash(Path(__file__).parents[1])}
    for ref in _plugin_refs(recipe):
        module = sys.modules.get(_class_of(ref).__module__)
        path = Path(getattr(module, "__file__", None) or "")
        if path.is_file():
            found[f"{ref.kind} {ref.name}"] = _files_hash(path.parent if path.stem == "__init__" else path)
    return found


def _files_hash(path: Path) -> str:
    """Return the SHA-256 of a Python file, or of all in a folder, by name and content."""
    total = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
        content = file.read_bytes()
        total.update(f"{file.relative_to(path.parent).as_posix()} {len(content)} ".encode() + content)
    return total.hexdigest()


def _plugins() -> list[dict[str, str]]:
    return [
        {"entry": s.entry, "module": s.module, "distribution": s.distribution, "version": s.version}
        for s in installed_plugins().sources
        if not s.error
    ]


def hardware() -> dict[str, Any]:
    """Return cpu model, cores, memory (bytes) and GPUs (name, memory, driver), as far as they can be read."""
    cpu = platform.processor() or platform.machine()
    memory = None
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        cpu = match.group(1) if match else cpu
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        pass
    return {"cpu": cpu, "cores": os.cpu_count(), "memory": memory, "gpus": gpus()}


@functools.cache
def gpus() -> tuple[str, ...]:
    """Return one line per NVIDIA GPU: name, memory, driver version."""
    out = _run(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    return tuple(line.strip() for line in out.splitlines() if line.strip()) if out else ()


def git(folder: Path) -> dict[str, Any] | None:
    """Return the commit and a hash of uncommitted changes of the repository around `folder`, or None."""
    commit = _run(["git", "-C", str(folder), "rev-parse", "HEAD"])
    if not commit:
        return None
    diff = _run(["git", "-C", str(folder), "diff", "HEAD"]) or ""
    return {"commit": commit.strip(), "dirty": hashlib.sha256(diff.encode()).hexdigest() if diff else None}


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


def what_changed(run: RunDirectory, backend: Backend) -> str | None:
    """Return one sentence on what is no longer as lock.json says, or None.

    Compared are packages, Python, variables, code, the recipe, and
    what the backend's identity holds: the hub commit, weights, device, ...
    """
    lock = read_lock(run)
    if not lock:
        return None
    before, now = _facts(lock), _facts(_now(run, lock))
    recipe = run.path("recipe.yaml").read_bytes()
    with contextlib.suppress(FtkitError):  # what it does not know is reported when the model is loaded
        now |= _flat({"plugin": backend.name, **backend.identity(backend.base_model(), run)})
        before |= _flat(lock.get("model", {}))
    changes = [
        f"{name} {before.get(name, 'none')} -> {now.get(name, 'none')}"
        for name in sorted(before.keys() | now.keys(), key=str.lower)
        if before.get(name) != now.get(name) and versions.UNKNOWN not in (before.get(name), now.get(name))
    ]
    if lock.get("recipe") and lock["recipe"] != hashlib.sha256(recipe).hexdigest():
        changes.insert(0, "recipe.yaml was edited")
    if not changes:
        return None
    more = f" and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
    named = ", ".join(changes[:_NAMED])
    return f"changed since this run began, so that its stages may not be comparable: {named}{more}"


def _now(run: RunDirectory, lock: dict[str, Any]) -> dict[str, Any]:
    """Return what `_facts` compares as it is now; what an older ftkit did not record is left out."""
    now: dict[str, Any] = {"packages": packages(), "python": sys.version.split()[0]}
    if "code" in lock:
        now |= {"code": code(run.recipe), "environment": recorded_environment(run.recipe)}
    return now


def _facts(lock: dict[str, Any]) -> dict[str, str]:
    environment = lock.get("environment", {}) if "code" in lock else {}
    return {
        **{str(k): str(v) for k, v in lock.get("packages", {}).items()},
        "python": str(lock.get("python")),
        **{f"variable {k}": str(v) for k, v in environment.items() if not _HARMLESS.search(k)},
        **{f"code of {k}": str(v)[:12] for k, v in lock.get("code", {}).items()},
    }


def _flat(identity: dict[str, Any]) -> dict[str, str]:
    """Return a backend's identity one level deep; versions of packages are already compared by their names."""
    plain = json.loads(dump_json(identity))  # as it is read back from lock.json
    return {f"model {k}": str(v)[:60] for k, v in plain.items() if k not in ("versions", "version")}


def read_lock(run: RunDirectory) -> dict[str, Any]:
    path = run.path("lock.json")
    lock: dict[str, Any] = read_json(path) if path.exists() else {}
    return lock
