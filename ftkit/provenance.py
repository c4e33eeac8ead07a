"""What a run was made with: packages, plugins, hardware, git, environment. Nothing secret."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

# Variables that can change a result; their values are recorded.
_ENVIRONMENT = re.compile(
    r"^(CUDA_VISIBLE_DEVICES|CUBLAS_WORKSPACE_CONFIG|PYTHONHASHSEED|OMP_NUM_THREADS|MKL_NUM_THREADS|"
    r"TOKENIZERS_PARALLELISM|[A-Z]+_(HUB_|DATASETS_)?OFFLINE|WORLD_SIZE)$"
)


def lock(recipe_path: Path | None) -> dict[str, Any]:
    """Return the part of lock.json that speaks of this machine and environment."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": packages(),
        "plugins": _plugins(),
        "hardware": hardware(),
        "git": git(recipe_path.parent if recipe_path else Path.cwd()),
        "environment": {k: v for k, v in sorted(os.environ.items()) if _ENVIRONMENT.match(k)},
    }


@functools.cache
def packages() -> dict[str, str]:
    """Return every installed distribution and its version."""
    found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _plugins() -> list[dict[str, str]]:
    from .plugins import installed_plugins

    return [
        {"entry": o.entry, "module": o.module, "distribution": o.distribution, "version": o.version}
        for o in installed_plugins().owners
        if not o.error
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
