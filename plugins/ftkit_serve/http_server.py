"""The HTTP server: uvicorn, with limits for clients that connect and do not send, or do not read.

A connection waits for its client while a request is incomplete, between two requests, and while the client does not
read its response. Such connections are closed after a time. They are closed at once, the longest silent one first, if
a new connection would be one too many. A request that is being answered is not interrupted.
"""

from __future__ import annotations

import http
import json
import resource
import socket
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .engine import Engine
from .errors import ApiError, stopping
from .shortage import log

HEADER_TIMEOUT = 10.0  # seconds for the header of a request
BODY_TIMEOUT = 30.0  # seconds for each `_BODY_STEP` bytes of a body
READ_TIMEOUT = 60.0  # seconds in which a client must read a part of its response
_STALLED = 5.0  # seconds after which a client counts as one that does not read
_BODY_STEP = 16 << 10
_ACCEPTED_AT_ONCE = 16  # connections in one turn of the event loop: each takes a file descriptor before it is counted
_BACKLOG = 1024  # connections that the kernel holds until they are accepted
_OWN_FILES = 96  # file descriptors for the database, files, training processes and connections that close


def max_connections() -> int:
    """Return how many connections may be open. Each may take two descriptors: its socket and the file of an upload."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    available = 65_536 if soft == resource.RLIM_INFINITY else soft
    return max(8, min(4096, (available - _OWN_FILES) // 2))


def make_http_server(app: Any, engine: Engine) -> uvicorn.Server:
    """Return uvicorn's server. When it stops, chat requests that still wait get a 503, and no connection is cut."""

    class HttpServer(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            for listener in sockets or []:
                listener.listen(_BACKLOG)

        async def on_tick(self, counter: int) -> bool:
            if counter % 10 == 0:  # once a second
                for connection in list(self.server_state.connections):
                    connection.close_if_late()  # type: ignore[union-attr]
            return await super().on_tick(counter)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            engine.reject_chats()
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_level="warning",
        backlog=_ACCEPTED_AT_ONCE,
        timeout_graceful_shutdown=3,
    )
    return HttpServer(config)


class Connection(H11Protocol):
    """One connection. It knows how long it has waited for its client."""

    limit = max_connections()

    # ---- what asyncio and uvicorn call

    def connection_made(self, transport: Any) -> None:
        self._since = self._heard = self._unread_since = self.loop.time()  # start of this wait, last data
        self._received = 0  # bytes since `_since`
        self._unread = 0  # bytes of a response that the client has not read
        super().connection_made(transport)
        all_of_them = cast("set[Connection]", self.connections)
        open_ones = [c for c in all_of_them if not c.transport.is_closing()]
        if len(open_ones) > self.limit:
            self._make_room([c for c in open_ones if c is not self and c._silence() is not None])

    def data_received(self, data: bytes) -> None:
        now = self.loop.time()
        if self._received == 0 and not self._in_body():
            self._since = now  # the first bytes of a request
        self._heard, self._received = now, self._received + len(data)
        if self._in_body() and self._received >= _BODY_STEP:
            self._since, self._received = now, 0
        cycle = self.cycle
        super().data_received(data)
        if self.cycle is not cycle:  # the header is complete
            self._since, self._received = now, 0

    def eof_received(self) -> None:
        if self._in_body() or (self._in_header() and self._received):
            self._refuse(ApiError(400, "The request ended before it was complete: check its Content-Length header."))

    def on_response_complete(self) -> None:
        self._since, self._received = self.loop.time(), 0
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, f"{msg} It must be HTTP/1.1 with correct headers."))

    def shutdown(self) -> None:
        """Close the connection when the server stops; a request that is being answered is finished first."""
        if self._in_body():
            self._refuse(stopping())
        elif self._unread and self._silence():
            self.transport.abort()
        else:
            super().shutdown()

    # ---- limits

    def close_if_late(self) -> None:
        """Close the connection if its client has not sent or read enough in time."""
        now = self.loop.time()
        unread = self.transport.get_write_buffer_size()
        if unread != self._unread:
            self._unread, self._unread_since = unread, now
        if unread:
            if now - self._unread_since > READ_TIMEOUT:
                self.transport.abort()
        elif self._in_body() and self.flow.read_paused:  # the server is slow, not the client
            self._since = now
        elif self._in_body() and now - self._since > BODY_TIMEOUT:
            self._refuse(_late("body", BODY_TIMEOUT))
        elif self._in_header() and now - self._since > HEADER_TIMEOUT:
            self._refuse(_late("header", HEADER_TIMEOUT)) if self._received else self.transport.close()

    def _make_room(self, waiting: list[Connection]) -> None:
        """Close the connection whose client is silent for longest; this one if no other waits for its client."""
        full = ApiError(
            503, "The server has too many connections. Retry later.", "too_many_connections", type="server_error"
        )
        log.warning("more than %d connections: one that waits for its client is closed", self.limit)
        victim = max(waiting, key=lambda c: c._silence() or 0.0, default=self)
        if victim._unread:
            victim.transport.abort()
        elif victim is self or victim._received or victim._in_body():
            victim._refuse(full)
        else:
            victim.transport.close()

    def _silence(self) -> float | None:
        """Return the seconds since the client sent or read something; None if the connection does not wait for it."""
        now = self.loop.time()
        if self._unread:
            stalled = now - self._unread_since
            return stalled if stalled > _STALLED else None
        return now - self._heard if self._in_header() or (self._in_body() and not self.flow.read_paused) else None

    def _in_header(self) -> bool:
        """Return whether the next request has not begun, or its header is incomplete."""
        return self.cycle is None or self.cycle.response_complete

    def _in_body(self) -> bool:
        """Return whether the body of the request that is being answered is incomplete."""
        return self.cycle is not None and not self.cycle.response_complete and self.cycle.more_body

    def _refuse(self, error: ApiError) -> None:
        """Send an error, if no response has begun, and close the connection."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = json.dumps(error.body).encode()
            head = [
                f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}",
                "content-type: application/json",
                f"content-length: {len(body)}",
                "connection: close",
            ]
            self.transport.write("\r\n".join([*head, "", ""]).encode() + body)
        if self.cycle is not None:
            self.cycle.disconnected = True
        self.transport.close()


def _late(part: str, seconds: float) -> ApiError:
    return ApiError(408, f"The {part} of the request did not arrive within {seconds:g} seconds.", "request_timeout")
