"""Where an export goes: a folder that is complete or not there, or a repository of the hub, by way of such a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, RunFailed
from ..files import file_digest, read_json, sync_folder, sync_tree
from ..text import size

MANIFEST = "ftkit.json"  # of an export: what it is of, and SHA-256 and size of every other file
PREFIX = "export-"  # of an export's measurement: of its folder in the run, and of the system's name in the report
_HUB = "hf:"
_HUB_FOLDERS = Path("exports")  # where the folder of an export to the hub is made
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_ENDING = ".exporting"


@dataclass(frozen=True)
class Target:
    """`folder` holds the export in the end; `repository` is its name on the hub, or None."""

    folder: Path
    repository: str | None = None

    def __str__(self) -> str:
        return f"{_HUB}{self.repository}" if self.repository else str(self.folder)


def target_of(to: str) -> Target:
    """Read `--to`: a folder, or hf:ORG/NAME. Raises InputError."""
    if to.startswith(_HUB):
        name = to.removeprefix(_HUB).strip("/")
        if not _REPOSITORY.fullmatch(name) or ".." in name or "--" in name:
            raise InputError(f"--to {to}: not the name of a repository", "write hf:ORG/NAME, such as hf:acme/summaries")
        return Target(_HUB_FOLDERS / name.replace("/", "--"), name)
    if not to or Path(to).name in ("", ".", ".."):
        raise InputError(f"--to {to}: not the name of a new folder", "name one, such as --to exports/summaries")
    return Target(Path(to))


def refuse_taken(target: Target) -> None:
    """Raise InputError where the folder holds something, or is a file."""
    folder = target.folder
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder} is a {'link' if folder.is_symlink() else 'file'}", "name a new folder with --to")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: an export does not mix with other files",
                         "name a new folder with --to, or delete this one")  # fmt: skip


def refuse_small_disk(target: Target, needed: int | None) -> None:
    """Raise InputError where the disk has less room than the export takes at its largest."""
    if needed is None:
        return
    place = next(parent for parent in (target.folder.absolute(), *target.folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed * 1.02:
        raise InputError(f"the export needs about {size(needed)} of disk, and {place} has {size(free)} free",
                         "free some, or name a folder on another disk with --to")  # fmt: skip


@contextlib.contextmanager
def staged(target: Target) -> Iterator[Path]:
    """Give a hidden folder beside the target, which becomes the target when the block ends without an error.

    What a killed export left there is removed first. Raises RunFailed where the disk is full.
    """
    parent = target.folder.absolute().parent
    staging = parent / f".{target.folder.name}.{os.getpid()}{_ENDING}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(f".{target.folder.name}.*{_ENDING}"):
            if not _alive(left.name.split(".")[-2]):
                shutil.rmtree(left, ignore_errors=True)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            yield staging
            sync_tree(staging)
            refuse_taken(target)  # again: something may have been put there since
            os.replace(staging, target.folder)  # in place of an empty folder, too
            sync_folder(parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunFailed(
                f"the disk is full: {parent}", "nothing was left there; free some, and export again"
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and str(error.filename or "").startswith(
            str(parent)
        ):
            raise InputError(
                f"cannot write {target.folder}: {error.strerror}", "name another folder with --to"
            ) from None
        raise


def _alive(process: str) -> bool:
    """Return whether a process of this number runs; one of another user counts."""
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except OSError:
        return True
    return int(process) != os.getpid()


# ---------------------------------------------------------------- what an export's folder holds


def listed_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return SHA-256 and size of each file of an export, by path, but for its manifest."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    found = {p.relative_to(folder).as_posix(): {"sha256": file_digest(p), "size": p.stat().st_size} for p in paths}
    found.pop(MANIFEST, None)
    return found


def made_before(target: Target, about: dict[str, Any]) -> bool:
    """Return whether the target holds this very export (`about`), complete and unchanged: it need not be made again."""
    path = target.folder / MANIFEST
    if not target.repository or not path.is_file():
        return False
    known = read_json(path)
    same = isinstance(known, dict) and all(known.get(key) == value for key, value in about.items())
    return same and known.get("files") == listed_files(target.folder)
