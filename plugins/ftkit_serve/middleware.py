"""What every request passes first: its id, its key, where it comes from, and how large it may be."""

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


class Gate:
    """ASGI middleware. Refuses a wrong key (401), pages of web sites (403) and a body that is too large (413)."""

    def __init__(self, app: Any, key: str | None, max_upload: int) -> None:
        self.app, self.key, self.max_upload = app, key, max_upload

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = (b"x-request-id", new_id("req_").encode())
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        limit = self._limit(scope["path"])
        refused: ApiError | None = None
        received = 0

        async def counted() -> Any:
            nonlocal received, refused
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                refused = _too_large(limit)
                raise refused
            return message

        async def marked(message: Any) -> None:
            if refused is not None:
                return  # what the application makes of a body that was cut off
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), request_id]
            await send(message)

        try:
            self._check(headers, limit)
            await self.app(scope, counted, marked)
        except ApiError as error:
            refused = error
        if refused is not None:
            await _discard(receive, received, 4 * limit)
            await _answer(send, refused, request_id)

    def _limit(self, path: str) -> int:
        """Return how many bytes the body of a request to `path` may have."""
        if path == "/v1/files":
            return self.max_upload + _FORM
        return min(_PART, self.max_upload) + _FORM if re.fullmatch(r"/v1/uploads/[^/]+/parts", path) else _SMALL

    def _check(self, headers: dict[str, str], limit: int) -> None:
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin is not None and origin.split("://")[-1] != host:
            raise ApiError(403, "Requests from web pages of other sites are refused.", "origin_refused")
        if self.key is None and not _names_an_address(host):  # a site whose name was made to mean this machine
            raise ApiError(
                403, f"Without --api-key-env this server answers to an address, not to {host!r}.", "host_refused"
            )
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


def _names_an_address(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name == "localhost"
    return True


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413, f"The request is larger than {limit >> 20 or 1} MB, the most this endpoint takes.", "request_too_large"
    )


async def _discard(receive: Any, received: int, most: int) -> None:
    """Read the rest of a refused body, within reason: a client that is still sending sees no answer, but a reset."""
    while received < most:
        message = await receive()
        received += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return


async def _answer(send: Any, error: ApiError, request_id: tuple[bytes, bytes]) -> None:
    body = json.dumps(error.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), request_id]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
