"""Uploaded files and files that the server makes: the content on disk, all else in the database."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import not_found
from .store import Database, Doc, new_id, now

Source = BinaryIO | bytes | Path


class Files:
    """The folder `files/` of the data directory. A client's file name is data and is never used as a path."""

    def __init__(self, data: Path, database: Database) -> None:
        self.folder, self.database = data / "files", database
        self.folder.mkdir(exist_ok=True)
        kept = {doc["id"] for doc in database.all("file") if doc.get("expires_at", now() + 1) > now()}
        for upload in database.with_status("upload", "pending"):
            kept |= {part["id"] for part in database.all("part", upload["id"])}
        for path in self.folder.iterdir():
            if path.name not in kept:  # it expired, or the server was killed during a write
                path.unlink()

    def path(self, id: str) -> Path:
        """Return the path of a file's content. The caller must have found the id in the database."""
        return self.folder / id

    def write(self, id: str, *sources: Source) -> int:
        """Write the sources one after the other and return the number of bytes. The file appears when complete."""
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
        """Add a written file to the database: clients can see it. `expires_after` is in seconds."""
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
        return self.database.add("file", doc)

    def add(self, filename: str, purpose: str, *sources: Source, expires_after: int | None = None) -> Doc:
        """Write a new file, register it, and return its object."""
        id = new_id("file-")
        self.write(id, *sources)
        with self.removed_on_error([id]):
            return self.register(id, filename, purpose, expires_after)

    def get(self, id: str, param: str = "id") -> Doc:
        """Return the file object. Raises a 404 ApiError that names `param` if there is none or it expired."""
        doc = self.database.get("file", id)
        if doc is None or doc.get("expires_at", now() + 1) <= now():
            raise not_found("File object", id, param)
        return doc

    def delete(self, id: str) -> None:
        """Delete a file, first its content: the database can store nothing on a full disk. Raises a 404 ApiError."""
        self.get(id)
        self.path(id).unlink(missing_ok=True)
        self.database.delete("file", id)

    @contextlib.contextmanager
    def removed_on_error(self, ids: Iterable[str]) -> Iterator[None]:
        """Remove written content if the block raises: a full disk would otherwise get fuller with each attempt."""
        try:
            yield
        except BaseException:
            self.discard(ids)
            raise

    def discard(self, ids: Iterable[str]) -> None:
        """Remove written content that was not registered, such as the parts of an upload."""
        for id in ids:
            with contextlib.suppress(OSError):
                self.path(id).unlink()
