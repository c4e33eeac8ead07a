"""What the server knows, in one SQLite file: objects by kind and id, as JSON, in the order they were made.

Keys that begin with `_` are the server's own and never leave it.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from .errors import ApiError

Doc = dict[str, Any]


def new_id(prefix: str) -> str:
    """Return an id of letters and digits that nobody can guess: ids are ours, never a client's text."""
    return prefix + secrets.token_hex(12)


def now() -> int:
    return int(time.time())


def public(doc: Doc) -> Doc:
    """Return what a client sees of an object."""
    return {key: value for key, value in doc.items() if not key.startswith("_")}


class Store:
    """Objects that survive a restart. Every change is on disk when its call returns; any thread may call."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS objects (seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, "
            "id TEXT NOT NULL, parent TEXT NOT NULL, doc TEXT NOT NULL, UNIQUE (kind, id))"
        )
        self._db.execute("CREATE INDEX IF NOT EXISTS family ON objects (kind, parent, seq)")
        self._db.execute("CREATE INDEX IF NOT EXISTS state ON objects (kind, doc ->> '$.status', seq)")

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Make all changes inside take effect at once, or none of them."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def add(self, kind: str, doc: Doc, parent: str = "") -> Doc:
        with self._lock:
            self._db.execute(
                "INSERT INTO objects (kind, id, parent, doc) VALUES (?, ?, ?, ?)",
                (kind, doc["id"], parent, json.dumps(doc)),
            )
        return doc

    def get(self, kind: str, id: str) -> Doc | None:
        with self._lock:
            row = self._db.execute("SELECT doc FROM objects WHERE kind = ? AND id = ?", (kind, id)).fetchone()
        return json.loads(row[0]) if row else None

    def update(self, kind: str, id: str, when: Collection[str] | None = None, **changes: Any) -> Doc | None:
        """Merge `changes` into an object; None where it is gone, or its status is none of `when`."""
        with self._lock:
            doc = self.get(kind, id)
            if doc is None or (when is not None and doc["status"] not in when):
                return None
            doc |= changes
            self._db.execute("UPDATE objects SET doc = ? WHERE kind = ? AND id = ?", (json.dumps(doc), kind, id))
        return doc

    def delete(self, kind: str, id: str) -> bool:
        with self._lock:
            return self._db.execute("DELETE FROM objects WHERE kind = ? AND id = ?", (kind, id)).rowcount > 0

    def every(self, kind: str, parent: str = "") -> list[Doc]:
        """Return all objects of a kind, oldest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT doc FROM objects WHERE kind = ? AND parent = ? ORDER BY seq", (kind, parent)
            ).fetchall()
        return [json.loads(row[0]) for row in rows]

    def waiting(self, kind: str, *statuses: str) -> list[Doc]:
        """Return the objects of a kind in one of these states: those of the first state first, each oldest first."""
        query = "SELECT doc FROM objects WHERE kind = ? AND doc ->> '$.status' = ? ORDER BY seq"
        with self._lock:
            rows = [row for status in statuses for row in self._db.execute(query, (kind, status)).fetchall()]
        return [json.loads(row[0]) for row in rows]

    def page(
        self,
        kind: str,
        limit: int,
        after: str | None = None,
        parent: str = "",
        oldest_first: bool = False,
        where: Callable[[Doc], bool] = lambda doc: True,
    ) -> Doc:
        """Return one page of a list as OpenAI gives it: newest first, going on behind the object `after`."""
        order, beyond = ("ASC", ">") if oldest_first else ("DESC", "<")
        query, values = "SELECT doc FROM objects WHERE kind = ? AND parent = ?", [kind, parent]
        with self._lock:
            if after is not None:
                row = self._db.execute("SELECT seq FROM objects WHERE kind = ? AND id = ?", (kind, after)).fetchone()
                if row is None:
                    raise ApiError(400, f"There is nothing named {after!r} to go on behind", "invalid_after", "after")
                query, values = f"{query} AND seq {beyond} ?", [*values, row[0]]
            rows = self._db.execute(f"{query} ORDER BY seq {order}", values)
            found: list[Doc] = []
            for row in rows:
                doc = json.loads(row[0])
                if where(doc):
                    found.append(doc)
                if len(found) > limit:
                    break
        data = [public(doc) for doc in found[:limit]]
        first, last = (data[0]["id"], data[-1]["id"]) if data else ("", "")
        return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": len(found) > limit}
