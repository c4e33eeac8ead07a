"""Bring the files of a remote run here: into a staging folder, compared by SHA-256, then each in its place."""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ftkit.api import Run
from ftkit.errors import RunFailed
from ftkit.files import digest_of, file_digest, read_json, sync_folder, sync_tree

from ._follow import LOG, MARK, remote_lines
from ._transport import Lost

if TYPE_CHECKING:
    from ._engine import Engine

_RECORD, _MANIFEST = "run.json", "manifest.json"
# What this side writes itself, from what was brought back.
_OURS = {"report.html", "report.md", "report.json", "brief.html", _MANIFEST}
_ROUNDS = 3  # for which files that arrive wrong are asked for again
_LONG = 3600.0  # seconds in which all files there are hashed
_ODD = re.compile(r"[\x00-\x1f\x7f]")


def scratch(run: Run) -> Path:
    """Return the folder of this side's own unfinished work: it neither travels nor is brought back."""
    return run.scratch("launcher")


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def finished(engine: Engine, run: Run) -> None:
    """Bring what a finished stage has left, while the run continues. Raises Lost."""
    files = {p: e for p, e in _listing(engine).items() if not p.startswith(".") and not p.endswith(".journal")}
    own = {_RECORD, LOG, "debug.log", f"state/{engine.name}.json", *_OURS}
    _fetch(engine, run, {path: entry for path, entry in files.items() if path not in own}, strict=False)


def everything(engine: Engine, run: Run, complete: bool) -> None:
    """Make this directory what the one there is, but for run.json, which `finish` puts in its place.

    `complete` says that the run is done: then there is a manifest, and every file must be as it says. Raises Lost, or
    RunFailed where files are not what they should be.
    """
    files = _listing(engine)
    if _RECORD not in files:
        raise RunFailed(f"{engine.place} has no {_RECORD} of this run", f"look there: {engine._job()}")
    wanted = {p: e for p, e in files.items() if p not in _OURS and p != f"state/{engine.name}.json"}
    if complete:
        _check_sealed(engine, run, files)
    _fetch(engine, run, wanted, strict=True)
    kept = {*wanted, *_OURS, LOG, f"state/{engine.name}.json"}
    for path in list(_here(run)):
        if path not in kept:
            run.path(path).unlink(missing_ok=True)


def finish(run: Run) -> None:
    """Put run.json in its place, and remove the staging folder. Nothing to do where that was done."""
    staged = _staging(run) / _RECORD
    if staged.exists():
        os.replace(staged, run.path(_RECORD))
        sync_folder(run.dir)
    remove(scratch(run))


# ---------------------------------------------------------------- parts


def _staging(run: Run) -> Path:
    folder = scratch(run) / "pulled"
    folder.mkdir(exist_ok=True)
    return folder


def _listing(engine: Engine) -> dict[str, dict[str, Any]]:
    """Return {path: {"size", "sha256"}} of the run directory there. Raises RunFailed for a path that leads elsewhere."""
    files = cast("dict[str, dict[str, Any]]", engine._verb("list", seconds=_LONG)["files"])
    for path in files:
        parts = path.split("/")
        hidden = parts[1:] if parts[0] == ".work" else parts
        if any(p in ("", ".", "..") or p.startswith(".") for p in hidden) or _ODD.search(path) or len(path) > 1000:
            raise RunFailed(f"{engine.place} has a file with a name that is not one of a run's files: {path[:200]!r}")
    return files


def _here(run: Run) -> Iterable[str]:
    """Yield the files of this directory that travel: no hidden ones, but unfinished work."""
    for parent, folders, names in os.walk(run.dir):
        top = Path(parent) == run.dir
        folders[:] = [f for f in folders if not f.startswith(".") or (top and f == ".work")]
        if Path(parent).name == ".work" and "launcher" in folders:
            folders.remove("launcher")
        for name in names:
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file() and not path.is_symlink():
                yield path.relative_to(run.dir).as_posix()


def _is_here(run: Run, path: str, entry: Mapping[str, Any], folder: Path) -> bool:
    file = folder / path
    if path == LOG and folder == run.dir:
        return digest_of(remote_lines(file)) == entry["sha256"]
    return file.is_file() and file.stat().st_size == entry["size"] and file_digest(file) == entry["sha256"]


def _fetch(engine: Engine, run: Run, files: Mapping[str, Mapping[str, Any]], strict: bool) -> None:
    """Bring the files that are not here as they are there. Where `strict`, each must arrive as it was listed."""
    staging = _staging(run)
    missing = [path for path, entry in files.items() if not _is_here(run, path, entry, run.dir)]
    for _ in range(_ROUNDS):
        wrong = [path for path in missing if not _is_here(run, path, files[path], staging)]
        if not wrong:
            break
        for path in wrong:
            (staging / path).parent.mkdir(parents=True, exist_ok=True)
        _get(engine, wrong, staging)
    arrived = [path for path in missing if _is_here(run, path, files[path], staging)]
    if strict and len(arrived) < len(missing):
        lost = next(path for path in missing if path not in arrived)
        raise RunFailed(
            f"{lost} did not arrive from {engine.place} as it is there", "its checksum differs; resume to try again"
        )
    sync_tree(staging)
    for path in arrived:
        if path != _RECORD:
            target = run.path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / path, target)


def _check_sealed(engine: Engine, run: Run, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise RunFailed where a file there is not as its manifest says."""
    staging = _staging(run)
    if _MANIFEST not in files:
        raise RunFailed(f"the run on {engine.place} has no {_MANIFEST}", "resume to try again")
    if not _is_here(run, _MANIFEST, files[_MANIFEST], staging):
        _get(engine, [_MANIFEST], staging)
    sealed = read_json(staging / _MANIFEST)["files"]
    for path, entry in sealed.items():
        if files.get(path, {}).get("sha256") != entry["sha256"]:
            raise RunFailed(f"{path} on {engine.place} is not as it was when the run was sealed there")


def _get(engine: Engine, paths: list[str], into: Path) -> None:
    root = "/".join((engine._job(), "work", engine.run.id))
    if not engine.transport.get(root, paths, into):
        _get_archive(engine, paths, into)


def _get_archive(engine: Engine, paths: list[str], into: Path) -> None:
    """Read an archive of the files from a command's output; only what was asked for is written."""
    process = engine.transport.open(engine._line("tar"))
    assert process.stdin and process.stdout and process.stderr
    wanted = set(paths)
    try:
        process.stdin.write(json.dumps(paths).encode())
        process.stdin.close()
        for line in process.stdout:
            if line.startswith(MARK):
                break
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                source = archive.extractfile(member) if member.isreg() and member.name in wanted else None
                if source is not None:
                    with open(into / member.name, "wb") as file:
                        shutil.copyfileobj(source, file)
    except (tarfile.TarError, EOFError, BrokenPipeError):
        pass  # the checksums say what is missing
    finally:
        process.stdout.close()
        err = process.stderr.read().decode("utf-8", "replace")
        process.wait()
        process.stderr.close()
    if error := engine.transport.lost(process.returncode, err):
        raise error
    if process.returncode:
        raise Lost(err.strip()[-300:] or "the archive ended early")
