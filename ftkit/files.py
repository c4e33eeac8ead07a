"""Files that are whole or not there, and journals that grow line by line: what a run directory is made of."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from .errors import InputError


def dump_json(data: Any, indent: int | None = None) -> str:
    """Return JSON text that is always encodable: readable Unicode, \\u escapes where it holds lone surrogates.

    Numbers that JSON lacks (NaN, infinity) become null.
    """
    try:
        text = json.dumps(data, ensure_ascii=False, indent=indent, allow_nan=False)
    except ValueError:  # it holds such a number: rare, so that what has none is not copied
        data = _finite(data)
        text = json.dumps(data, ensure_ascii=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(data, indent=indent)
    return text


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {k: _finite(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(v) for v in data]
    return data


def digest(data: Any) -> str:
    """Return the SHA-256 hex digest of `data`'s canonical JSON."""
    return hashlib.sha256(json.dumps(_finite(data), sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(parts: Iterable[bytes]) -> str:
    """Return the SHA-256 hex digest of a file that would hold these parts one after the other."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()


# ---------------------------------------------------------------- whole files


@contextlib.contextmanager
def atomic(path: Path, private: bool = False) -> Iterator[TextIO]:
    """Give a text file to write: whole in its place when the block ends, and not there if it ends in an error.

    Where it is `private`, only its owner can read it (mode 0600).

    Written beside, fsync, rename, fsync of the folder: after a power cut, what was written earlier is there if
    what was written later is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n", opener=_private if private else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _private(path: str, flags: int) -> int:
    """Open a file as `open` does, for its owner alone."""
    descriptor = os.open(path, flags, 0o600)
    with contextlib.suppress(OSError):  # a file system without modes
        os.fchmod(descriptor, 0o600)  # it may be left over from a process that was killed
    return descriptor


def sync_folder(folder: Path) -> None:
    """Put on disk which names a folder holds. (Some network file systems cannot; then it stays as it is.)"""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Put a folder on disk with all that is in it (`os.sync` would wait for everything else on this machine too)."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def publish(staging: Path, target: Path) -> None:
    """Give a finished folder its name, in place of an older one: what bears that name is whole and on disk."""
    sync_tree(staging)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(staging, target)
    sync_folder(target.parent)


def write_atomic(path: Path, text: str, private: bool = False) -> None:
    """Write a whole file or nothing; a `private` one for its owner alone (mode 0600)."""
    with atomic(path, private) as file:
        file.write(text)


def write_json(path: Path, data: Any, private: bool = False) -> None:
    write_atomic(path, dump_json(data, indent=2) + "\n", private)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write a JSON Lines file, whole or not at all; rows are taken one by one."""
    with atomic(path) as file:
        for row in rows:
            file.write(dump_json(row) + "\n")


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yield the rows of a finished JSON Lines file."""
    with open(path, encoding="utf-8") as file:  # universal newlines only split at \n, \r\n: JSON escapes the rest
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise InputError(f"{path}:{number}: not JSON: {error}") from None


# ---------------------------------------------------------------- files that grow


class Journal:
    """An append-only JSON Lines file that survives a kill: a torn last line is passed over, and cut by who writes next."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Any]:
        """Yield the whole lines. A reader changes nothing: another process may be writing."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            for line in file:
                if line.endswith(b"\n") and line.strip():
                    yield json.loads(line)

    def read(self) -> list[Any]:
        """Return the whole lines."""
        return list(self)

    def append(self, row: Any) -> None:
        """Add one line, from any process; it is on disk when this returns, and not there at all if this raises."""
        data = (dump_json(row) + "\n").encode()
        new = not self.path.exists()
        if new:
            self.path.parent.mkdir(exist_ok=True)  # not its parents: a run directory that was deleted stays so
        with self._opened(os.O_CREAT) as descriptor:
            end = _cut_torn_line(descriptor)
            try:
                while data:
                    data = data[os.write(descriptor, data) :]
                os.fsync(descriptor)
            except OSError:  # a full disk
                os.ftruncate(descriptor, end)
                raise
        if new:
            sync_folder(self.path.parent)

    def repair(self) -> None:
        """Cut a torn last line, that of a process that was killed while it wrote."""
        if self.path.exists():
            with self._opened() as descriptor:
                _cut_torn_line(descriptor)

    @contextlib.contextmanager
    def _opened(self, flags: int = 0) -> Iterator[int]:
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | flags, 0o666)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: there one process alone must write
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


def _cut_torn_line(descriptor: int) -> int:
    """Cut what follows the last line's end; return the size in bytes."""
    size = end = os.lseek(descriptor, 0, os.SEEK_END)
    while end and os.pread(descriptor, 1, end - 1) != b"\n":
        start = max(0, end - (1 << 16))
        end = start + os.pread(descriptor, end - start, start).rfind(b"\n") + 1  # `start` where there is none
    if end != size:
        os.ftruncate(descriptor, end)
    return end
