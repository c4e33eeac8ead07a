"""What every run needs of the machine: room on the disks, and memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..records import Diagnosis
from ..report.alive import machine
from ..text import size

_LEAST_DISK = 1_000_000_000  # bytes: below it, even a small run ends with a full disk
_LEAST_MEMORY = 500_000_000  # bytes


def hub_home() -> Path:
    """Return the folder that holds what is downloaded from the hub."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser()


def disk_diagnoses(out: Path, downloads: bool) -> Iterator[Diagnosis]:
    """Yield the room for run directories, and with `downloads`, for what comes from the hub."""
    yield _room("disk of run directories", out, _LEAST_DISK, "--out")
    if downloads:
        yield _room("disk of downloads", hub_home(), _LEAST_DISK, "HF_HOME")


def free_at(folder: Path) -> int:
    """Return the free bytes of the disk that `folder` is on, or would be."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _room(what: str, folder: Path, least: int, setting: str) -> Diagnosis:
    there = _existing(folder)
    free = free_at(folder)
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Diagnosis(what, False, f"{there} cannot be written", f"set {setting} to a folder that can be")
    if free < least:
        text = f"{size(free)} free at {there}; at least {size(least)} are needed"
        fix = f"free some room, or set {setting} to a folder on another disk"
        return Diagnosis(what, False, text, fix, "the disk is full")
    return Diagnosis(what, True, f"{size(free)} free")


def memory_diagnosis() -> Diagnosis:
    """Say how much memory is available to this process, under the limit of its container."""
    available = machine()["available"]
    if available is None:
        return Diagnosis("memory", None, "not known on this system")
    if available < _LEAST_MEMORY:
        text = f"{size(available)} available"
        return Diagnosis("memory", False, text, "end other programs", "this machine has not enough memory")
    return Diagnosis("memory", True, f"{size(available)} available")
