"""Shortages: the machine has no free disk space, memory or file descriptors. They pass: work waits and then continues."""

from __future__ import annotations

import errno
import logging
import sqlite3
import time
from collections.abc import Iterator

log = logging.getLogger("ftkit_serve")

RETRY = 3.0  # seconds between two attempts
EXIT_STATUS = 75  # of a training process that ended because of a shortage (EX_TEMPFAIL of sysexits.h)
_LOG_INTERVAL = 10.0  # seconds
_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is exceeded",
    errno.EFBIG: "a file is larger than this process may write",
}
_OTHER = {
    errno.EMFILE: "this process has too many open files",
    errno.ENFILE: "the machine has too many open files",
    errno.ENOMEM: "there is not enough memory",
    errno.ENOBUFS: "there is not enough memory for network buffers",
}
_SQLITE = {  # of sqlite3.OperationalError: a request is never the cause of these
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_CANTOPEN: "the database cannot open a file",
    sqlite3.SQLITE_IOERR: "the database cannot read or write its file",
    sqlite3.SQLITE_READONLY: "the database file is read-only",
    sqlite3.SQLITE_BUSY: "another process locks the database",
    sqlite3.SQLITE_LOCKED: "another process locks the database",
}


class Shortage(Exception):
    """What the machine lacks, found by another process. `str(error)` is the reason."""


def shortage_of(error: BaseException) -> str | None:
    """Return what the machine lacks if that caused `error`, directly or in its chain of causes; else None."""
    if isinstance(error, OSError) and error.errno == errno.EAGAIN:  # of fork; as a cause it is a lock that is held
        return "the machine has too many processes"
    return next((reason for cause in _chain(error) if (reason := _reason(cause))), None)


def explained(error: BaseException) -> str:
    """Return an error as one line for the log."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    reason = shortage_of(error)
    return f"{reason} ({text})" if reason else text


def concerns_disk(error: BaseException) -> bool:
    """Return whether a shortage is one of disk space: the answer to a request is then 507, otherwise 503."""
    return any(_reason(cause) in (*_DISK.values(), *_SQLITE.values()) for cause in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _reason(error: BaseException) -> str | None:
    if isinstance(error, Shortage):
        return str(error)
    if isinstance(error, sqlite3.Error):
        return _SQLITE.get((getattr(error, "sqlite_errorcode", None) or 0) & 0xFF)
    if isinstance(error, OSError):
        return (_DISK | _OTHER).get(error.errno or 0)
    if isinstance(error, MemoryError):
        return _OTHER[errno.ENOMEM]
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "the machine has too many threads"
    return None


class RateLimit(logging.Filter):
    """Passes one record of a kind every ten seconds. The next one that passes counts those that were left out."""

    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[tuple[str, str, str], tuple[float, int]] = {}  # kind -> time, records left out since

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
        kind = (record.name, str(record.msg)[:60], error)
        last, left_out = self._passed.get(kind, (float("-inf"), 0))
        now = time.monotonic()
        if now - last < _LOG_INTERVAL:
            self._passed[kind] = (last, left_out + 1)
            return False
        if len(self._passed) > 200:  # of messages that differ each time
            self._passed.clear()
        self._passed[kind] = (now, 0)
        if left_out:
            record.msg, record.args = f"{record.getMessage().rstrip()} ({left_out} more like this)", ()
        return True


def limit_logs() -> None:
    """Limit the rate of what this process logs: the server's own messages, and those of all libraries."""
    handlers = [*logging.getLogger().handlers, *logging.getLogger("uvicorn").handlers, logging.lastResort]
    for handler in handlers:
        if handler is not None:
            handler.addFilter(RateLimit())
