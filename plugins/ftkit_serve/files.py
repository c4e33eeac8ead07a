"""Uploaded files and those the server makes: bytes on disk under ids of ours, the rest in the database."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from .errors import not_found
from .store import Doc, Store, new_id, now

Source = BinaryIO | bytes | Path


class Files:
    """The folder `files/` of the data directory. A client's file name is data: it never becomes a path."""

    def __init__(self, data: Path, store: Store) -> None:
        self.folder, self.store = data / "files", store
        self.folder.mkdir(exist_ok=True)
        kept = {doc["id"] for doc in store.every("file") if doc.get("expires_at", now() + 1) > now()}
        kept |= {
            part["id"] for upload in store.waiting("upload", "pending") for part in store.every("part", upload["id"])
        }
        for left in self.folder.iterdir():  # expired, or of a server that was killed while it wrote
            if left.name not in kept:
                left.unlink()

    def path(self, id: str) -> Path:
        """Return where a file's bytes are. The id must be one of ours: callers look it up first."""
        return self.folder / id

    def write(self, id: str, *sources: Source) -> int:
        """Write the sources, one after the other, and return the number of bytes; a file there is whole."""
        temporary = self.folder / f"{id}.tmp"
        try:
            with open(temporary, "wb") as file:
                for source in sources:
                    if isinstance(source, bytes):
                        file.write(source)
                    elif isinstance(source, Path):
                        with open(source, "rb") as part:
                            shutil.copyfileobj(part, file, 1 << 20)
                    else:
                        shutil.copyfileobj(source, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path(id))
        finally:
            temporary.unlink(missing_ok=True)
        return self.path(id).stat().st_size

    def register(self, id: str, filename: str, purpose: str, expires_after: int | None = None) -> Doc:
        """Make written bytes a file that clients see."""
        doc: Doc = {
            "id": id,
            "object": "file",
            "bytes": self.path(id).stat().st_size,
            "created_at": now(),
            "filename": filename,
            "purpose": purpose,
            "status": "processed",
        }
        if expires_after:
            doc["expires_at"] = doc["created_at"] + expires_after
        return self.store.add("file", doc)

    def add(self, filename: str, purpose: str, *sources: Source, expires_after: int | None = None) -> Doc:
        id = new_id("file-")
        self.write(id, *sources)
        return self.register(id, filename, purpose, expires_after)

    def get(self, id: str, param: str = "id") -> Doc:
        """Return the file object. Raises a 404 ApiError where there is none, or its time is over."""
        doc = self.store.get("file", id)
        if doc is None or doc.get("expires_at", now() + 1) <= now():
            raise not_found("File object", id, param)
        return doc

    def delete(self, id: str) -> None:
        self.get(id)
        self.store.delete("file", id)
        self.path(id).unlink(missing_ok=True)

    def discard(self, ids: Iterable[str]) -> None:
        """Remove bytes that never became a file: the parts of an upload."""
        for id in ids:
            with contextlib.suppress(OSError):
                self.path(id).unlink()
