"""manifest.json: SHA-256 and size of every file of a finished run. It shows which file changed since; it is not signed."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..directory import RunDirectory, utc_now
from ..errors import InputError
from ..files import file_digest, read_json, write_json

MANIFEST = "manifest.json"
REPORT_FILES = ("report.json", "report.md", "report.html", "brief.html")  # those that `ftkit report RUN` may write


class Fault(NamedTuple):
    """A file that is not as the manifest says: `what` is changed, missing, not listed, or a link."""

    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def files_of(folder: Path) -> Iterator[str]:
    """Yield the path of each file of a run, sorted, links included; not manifest.json, nor what is hidden (locks, `.work/`)."""
    for parent, folders, names in os.walk(folder):
        linked = [name for name in folders if Path(parent, name).is_symlink()]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in linked)
        for name in sorted([*names, *linked]):
            path = Path(parent, name).relative_to(folder).as_posix()
            if not name.startswith(".") and path != MANIFEST:
                yield path


def seal(run: RunDirectory) -> None:
    """Write manifest.json over all files of a run."""
    _write(run.dir, {path: _entry(run.dir / path) for path in sorted(files_of(run.dir))})


def read_manifest(folder: Path) -> dict[str, dict[str, Any]] | None:
    """Return {path: {"sha256", "size"}}, or None where there is no manifest. Raises InputError for one that is not whole."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    data = read_json(path)
    files = data.get("files") if isinstance(data, dict) else None
    if not isinstance(files, dict) or not all(
        isinstance(e, dict) and isinstance(e.get("sha256"), str) and isinstance(e.get("size"), int)
        for e in files.values()
    ):
        raise InputError(f"{path} is not a manifest: it lacks `files` with `sha256` and `size`")
    return files


def faults(folder: Path, but: Iterable[str] = ()) -> list[Fault]:
    """Compare a run's files with its manifest, all `but` these. Raises InputError where there is no whole manifest."""
    listed = read_manifest(folder)
    if listed is None:
        raise InputError(f"{folder} has no {MANIFEST}")
    skipped = set(but)
    found = []
    for path in sorted({*listed, *files_of(folder)} - skipped):
        file = folder / path
        if path not in listed:
            found.append(Fault(path, "is not in the manifest"))
        elif file.is_symlink():
            found.append(Fault(path, "is a link"))
        elif not file.is_file():
            found.append(Fault(path, "is missing"))
        elif file.stat().st_size != listed[path]["size"] or file_digest(file) != listed[path]["sha256"]:
            found.append(Fault(path, "was changed after the run was sealed"))
    return found


@contextlib.contextmanager
def resealing(folder: Path, names: Iterable[str]) -> Iterator[list[Fault]]:
    """Let the block write the files `names` of a sealed run again, and seal them; yield what else is not as it was sealed.

    Where anything else changed, the manifest stays as it is: sealing must not hide it. A folder without a manifest is
    left without one.
    """
    names = tuple(names)
    sealed = read_manifest(folder)
    wrong = faults(folder, names) if sealed is not None else []
    yield wrong
    if sealed is not None and not wrong:
        kept = {path: entry for path, entry in sealed.items() if path not in names}
        added = {path: _entry(folder / path) for path in names if (folder / path).is_file()}
        _write(folder, dict(sorted({**kept, **added}.items())))


def _entry(path: Path) -> dict[str, Any]:
    return {"sha256": file_digest(path), "size": path.stat().st_size}


def _write(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    about = {"version": 1, "ftkit": importlib.metadata.version("ftkit"), "sealed": utc_now()}
    write_json(folder / MANIFEST, {**about, "files": files})
