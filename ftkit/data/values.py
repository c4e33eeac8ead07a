"""One value of a row as text."""

from __future__ import annotations

import json
from typing import Any

from ..errors import InputError
from ..text import quoted


def text_of(value: Any, where: object) -> str:
    """Return a value as text; parts {"type": "text", "text": ...} are joined, other objects and lists become JSON.

    `where` says in a message where the value stands. Raises InputError for what is not text: an image, a boolean.
    """
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list) and value and all(isinstance(p, dict) and "type" in p for p in value):
        if all(p["type"] == "text" and isinstance(p.get("text"), str) for p in value):
            return "".join(p["text"] for p in value)
        kind = next(p["type"] for p in value if p["type"] != "text")
        raise InputError(f"{where}: a part of its content is {kind!r}, which is not text")
    if isinstance(value, bool | bytes):
        raise InputError(f"{where}: {quoted(value)} is not text")
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
