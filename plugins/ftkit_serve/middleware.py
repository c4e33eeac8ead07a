"""The checks that every request passes first: key, origin and size. Also adds the request id to the response."""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
from typing import Any

from .errors import ApiError
from .store import new_id

_SMALL = 32 << 20  # bytes of a JSON body
_PART = 64 << 20  # bytes of one part of an upload, as at OpenAI
_FORM = 1 << 16  # bytes that a form adds around its file


class AuthMiddleware:
    """ASGI middleware. Rejects a wrong key (401), requests from web pages (403) and a body that is too large (413).

    `key` None: clients need no key. `max_upload`: bytes of one uploaded file.
    """

    def __init__(self, app: Any, key: str | None, max_upload: int) -> None:
        self.app, self.key, self.max_upload = app, key, max_upload

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = (b"x-request-id", new_id("req_").encode())
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        limit = self._limit(scope["path"])
        rejection: ApiError | None = None
        received = 0

        async def receive_counted() -> Any:
            nonlocal received, rejection
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                rejection = _too_large(limit)
                raise rejection
            return message

        async def send_with_id(message: Any) -> None:
            if rejection is not None:
                return  # the application's response to a body that it did not get in full
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), request_id]
            await send(message)

        try:
            self._check(headers, limit)
            await self.app(scope, receive_counted, send_with_id)
        except ApiError as error:
            rejection = error
        if rejection is not None:
            await _discard(receive, received, 4 * limit)
            await _respond(send, rejection, request_id)

    def _limit(self, path: str) -> int:
        """Return the largest size of a request body for `path`, in bytes."""
        if path == "/v1/files":
            return self.max_upload + _FORM
        return min(_PART, self.max_upload) + _FORM if re.fullmatch(r"/v1/uploads/[^/]+/parts", path) else _SMALL

    def _check(self, headers: dict[str, str], limit: int) -> None:
        """Raise an ApiError for a request that is not allowed. `limit`: bytes of its body."""
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin is not None and origin.split("://")[-1] != host:
            raise ApiError(403, "Requests from web pages of other sites are rejected.", "origin_refused")
        if self.key is None and not _is_local_name(host):  # DNS rebinding: a site's name that resolves to this machine
            message = f"Without --api-key-env the Host header must be an IP address or localhost, not {host!r}."
            raise ApiError(403, message, "host_refused")
        if self.key is not None:
            given = headers.get("authorization", "").removeprefix("Bearer ").strip()
            if not given:
                raise ApiError(
                    401, "You didn't provide an API key: send it as `Authorization: Bearer KEY`.", "missing_api_key"
                )
            if not hmac.compare_digest(given.encode(), self.key.encode()):
                raise ApiError(401, "Incorrect API key provided.", "invalid_api_key")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > limit:
            raise _too_large(limit)


def _is_local_name(host: str) -> bool:
    """Return whether a Host header is an IP address or `localhost`, with or without a port."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name == "localhost"
    return True


def _too_large(limit: int) -> ApiError:
    message = f"The request is larger than {limit >> 20 or 1} MB, the limit of this endpoint."
    return ApiError(413, message, "request_too_large")


async def _discard(receive: Any, received: int, limit: int) -> None:
    """Read the rest of a rejected body, up to `limit` bytes: a client that still sends would get a connection reset."""
    while received < limit:
        message = await receive()
        received += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return


async def _respond(send: Any, error: ApiError, request_id: tuple[bytes, bytes]) -> None:
    body = json.dumps(error.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), request_id]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
