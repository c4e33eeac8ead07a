"""The server's database, one SQLite file: objects as JSON, by kind and id, in the order of their creation.

The server sends an object to clients without the keys that begin with `_`.
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
    """Return an id of letters and digits that nobody can guess. All ids are made here: none is a client's text."""
    return prefix + secrets.token_hex(12)


def now() -> int:
    """Return the Unix time in whole seconds."""
    return int(time.time())


def public(doc: Doc) -> Doc:
    """Return the object as clients see it."""
    return {key: value for key, value in doc.items() if not key.startswith("_")}


class Database:
    """Objects that survive a restart. A change is on disk when the call returns. Any thread may call."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS objects (seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, "
            "id TEXT NOT NULL, parent TEXT NOT NULL, doc TEXT NOT NULL, UNIQUE (kind, id))"
        )
        self._db.execute("CREATE INDEX IF NOT EXISTS by_parent ON objects (kind, parent, seq)")
        self._db.execute("CREATE INDEX IF NOT EXISTS by_status ON objects (kind, doc ->> '$.status', seq)")

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Apply all changes of the block at once, or none of them if the block raises."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # on a full disk SQLite may have rolled back already
                    self._db.execute("ROLLBACK")
                raise

    def add(self, kind: str, doc: Doc, parent: str = "") -> Doc:
        """Insert an object, for instance an event whose parent is a job, and return it."""
        with self._lock:
            self._db.execute(
                "INSERT INTO objects (kind, id, parent, doc) VALUES (?, ?, ?, ?)",
                (kind, doc["id"], parent, json.dumps(doc)),
            )
        return doc

    def get(self, kind: str, id: str) -> Doc | None:
        """Return an object, or None if there is none."""
        with self._lock:
            row = self._db.execute("SELECT doc FROM objects WHERE kind = ? AND id = ?", (kind, id)).fetchone()
        return json.loads(row[0]) if row else None

    def update(self, kind: str, id: str, if_status: Collection[str] | None = None, **changes: Any) -> Doc | None:
        """Merge `changes` into an object and return it.

        Returns None, and changes nothing, if there is no such object or its status is not in `if_status`.
        """
        with self._lock:
            doc = self.get(kind, id)
            if doc is None or (if_status is not None and doc["status"] not in if_status):
                return None
            doc |= changes
            self._db.execute("UPDATE objects SET doc = ? WHERE kind = ? AND id = ?", (json.dumps(doc), kind, id))
        return doc

    def delete(self, kind: str, id: str) -> bool:
        """Delete an object and return whether it existed."""
        with self._lock:
            return self._db.execute("DELETE FROM objects WHERE kind = ? AND id = ?", (kind, id)).rowcount > 0

    def all(self, kind: str, parent: str = "") -> list[Doc]:
        """Return all objects of a kind and parent, oldest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT doc FROM objects WHERE kind = ? AND parent = ? ORDER BY seq", (kind, parent)
            ).fetchall()
        return [json.loads(row[0]) for row in rows]

    def with_status(self, kind: str, *statuses: str) -> list[Doc]:
        """Return the objects of a kind that have one of `statuses`, in the order of `statuses`, then oldest first."""
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
        """Return one page of a list in OpenAI's format: newest first, the page that follows the object `after`.

        Raises a 400 ApiError if there is no object `after`.
        """
        order, comparison = ("ASC", ">") if oldest_first else ("DESC", "<")
        query, values = "SELECT doc FROM objects WHERE kind = ? AND parent = ?", [kind, parent]
        with self._lock:
            if after is not None:
                row = self._db.execute("SELECT seq FROM objects WHERE kind = ? AND id = ?", (kind, after)).fetchone()
                if row is None:
                    raise ApiError(400, f"There is no object {after!r} to list after.", "invalid_after", "after")
                query, values = f"{query} AND seq {comparison} ?", [*values, row[0]]
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
