"""Open a session that asks a model: one request per example, or the Batch API."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ftkit.api import Run, Session
from ftkit.records import ModelRef

from ._batch import BatchSession
from ._connect import connect
from ._infer import ChatSession

if TYPE_CHECKING:
    from .options import ManagedOptions


@contextlib.contextmanager
def open_session(options: ManagedOptions, model: ModelRef, run: Run) -> Iterator[Session]:
    """Yield a session that asks `model`, through the Batch API where the recipe says so."""
    with connect(options, run) as provider:
        # A batch is paid for as a whole, and a run that is only used keeps no state by which it would be found again.
        if options.use_batch_api and not run.sealed:
            yield BatchSession(provider, model, run)
        else:
            session = ChatSession(provider, model, run)
            try:
                yield session
            finally:
                session.drain()
