"""Files by their state: what was read from one is read again only where its size, modification time or inode changed."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

_MODEL_FILES = (".safetensors", ".json", ".model")  # weights, config, tokenizer


class FileState(NamedTuple):
    """What changes when a file is rewritten: the key under which its hash is kept."""

    path: str
    size: int
    mtime_ns: int
    inode: int


def state_of(path: Path) -> FileState:
    """Return the state of a file. Raises OSError where there is none."""
    found = path.stat()
    return FileState(str(path.absolute()), found.st_size, found.st_mtime_ns, found.st_ino)


def files_hash(folder: Path, *suffixes: str) -> str:
    """Return one SHA-256 over files by name and content: by default a model's (weights, config, tokenizer)."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (suffixes or _MODEL_FILES):
            total.update(f"{path.name} ".encode())
            total.update(_digest(state_of(path)))
    return total.hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    return _digest(state_of(path)).hex()


@lru_cache(maxsize=4096)
def _digest(state: FileState) -> bytes:
    with open(state.path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
