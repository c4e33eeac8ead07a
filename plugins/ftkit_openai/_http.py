"""The HTTP client below the openai client: what is paid for follows no redirect, and no answer contains the key."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai

from ._errors import Malformed
from ._logs import mask_logs
from ._mask import Mask

_REPEATABLE = ("GET", "HEAD")


class HttpClient(openai.DefaultHttpxClient):
    """Sends requests for the openai client, and checks what comes back before anything else reads it.

    Raises Malformed for a success that is no JSON object of the API: the openai client would return an empty object for it.
    """

    def __init__(self, mask: Mask, **settings: Any) -> None:
        super().__init__(**settings)
        self.mask = mask
        mask_logs(mask)

    def send(self, request: httpx2.Request, **how: Any) -> httpx2.Response:
        if request.method not in _REPEATABLE:  # a redirect sends it again, to an address that nobody named
            how["follow_redirects"] = False
        response = super().send(request, **how)
        response.read()
        response = masked(response, self.mask)
        if response.is_success and not request.url.path.endswith("/content"):
            data = json.loads(response.content or b"null")
            if not isinstance(data, dict) or data.keys().isdisjoint(("id", "object", "data", "choices")):
                raise Malformed(response.text[:200] or "an empty answer")
        return response


def masked(response: httpx2.Response, mask: Mask) -> httpx2.Response:
    """Return a response without the key, also where the provider repeats it encoded or cut."""
    text = response.content.decode("latin-1")  # keeps every byte; the key is ASCII
    clean = mask(text, short=False)
    headers = [(name, mask(value, short=False)) for name, value in response.headers.multi_items()]
    if clean == text and headers == response.headers.multi_items():
        return response
    kept = [(k, v) for k, v in headers if k.lower() not in ("content-length", "content-encoding", "transfer-encoding")]
    changed = httpx2.Response(
        response.status_code, headers=kept, content=clean.encode("latin-1"), request=response.request,
        extensions={k: v for k, v in response.extensions.items() if k != "network_stream"}, history=response.history,
    )  # fmt: skip
    changed.elapsed = response.elapsed
    return changed
