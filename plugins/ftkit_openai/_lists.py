"""Lists of a provider, as far as they can be trusted: entries without an id are left out, and repeated pages end a list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import openai

from ._errors import Malformed


def id_of(entry: Any) -> str | None:
    """Return the id of an object of the provider; None where it has none."""
    id = getattr(entry, "id", None)
    return id if isinstance(id, str) and id else None


def items(listed: Any, key: Callable[[Any], str | None] = id_of, most: int | None = None) -> Iterator[Any]:
    """Yield the objects of a list, page after page, at most `most` of them.

    An entry without a key is left out, and one that was there before. The list ends where all of it was there before: a
    provider that ignores which page is requested returns the same one without end. Raises Malformed where a page holds no
    list, which does not mean that there is nothing. May raise what the client raises.
    """
    seen: set[str] = set()
    repeated = 0  # entries in a row that were there before
    for entry in _entries(listed):
        id = key(entry) if isinstance(entry, openai.BaseModel) else None
        if id is None:
            continue
        if id in seen:
            repeated += 1
            if repeated >= len(seen):
                return
            continue
        if len(seen) == most:
            return
        repeated = 0
        seen.add(id)
        yield entry


def _entries(listed: Any) -> Iterator[Any]:
    for page in listed.iter_pages():
        data = page.data if "data" in page.model_fields_set else ""
        if not isinstance(data, list | None):
            raise Malformed("a list without entries in `data`")
        yield from data or ()


def mapping_of(value: Any) -> dict[str, Any]:
    """Return an object's metadata or usage as a dict; an empty one for anything else."""
    return value if isinstance(value, dict) else {}
