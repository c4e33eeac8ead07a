"""The HTTP server, which lets go of those who wait for an answer before it stops."""

from __future__ import annotations

import socket
from typing import Any

import uvicorn

from .engine import Engine


class Runner(uvicorn.Server):
    """uvicorn's server; chats that wait for the model when it stops get a 503 at once, not a connection that is cut."""

    def __init__(self, app: Any, engine: Engine) -> None:
        super().__init__(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3))
        self.engine = engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.engine.refuse_chats()
        await super().shutdown(sockets)
