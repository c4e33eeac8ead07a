"""One value of a row as text: what a prompt, an answer or an id may be made of, and what is refused."""

from __future__ import annotations

import datetime
import decimal
import json
import reprlib
from typing import Any, NamedTuple

from ..errors import InputError
from ..text import one_line, printable

_TEXT_PARTS = ("text", "input_text", "output_text")
_OTHER_PARTS = (
    *("image", "image_url", "input_image", "audio", "audio_url", "input_audio", "video", "video_url", "input_video"),
    *("file", "input_file", "refusal"),
)
_UNMISTAKABLE = ("image_url", "input_image", "input_audio", "audio_url", "video_url", "input_video", "input_file")
_CALLED = {
    **{bool: "a boolean", bytes: "bytes", bytearray: "bytes", list: "a list", dict: "an object"},
    **{datetime.datetime: "a time", datetime.date: "a date", datetime.time: "a time of day"},
    **{datetime.timedelta: "a duration", set: "a set", frozenset: "a set"},
}
_SHORT = reprlib.Repr()
_SHORT.maxother = 50


class Cell(NamedTuple):
    """Where a value stands: `str(cell)` is the start of a message about it. `row` counts from 1."""

    key: str  # the recipe's key that names the column, or ""
    split: str  # "all" for a single table
    row: int
    column: str
    id: str = ""

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        split = "" if self.split == "all" else f"{self.split} "
        named = f" (id {printable(self.id)!r:.60})" if self.id else ""
        return f"{key}{split}row {self.row}{named}, column {printable(self.column)!r}"


def text_of(value: Any, where: object) -> str:
    """Return a value as text. `where` says in a message where it stands: a `Cell`, or text.

    Text stays as it is and null is empty text. A number becomes its shortest JSON text. Content parts of the form
    {"type": "text", "text": ...}, one or a list of them, are joined without a separator. Other objects and lists
    become compact JSON. Everything else raises InputError: a boolean, bytes, a date, NaN, a part that holds an image.
    """
    if type(value) is str:
        return value
    if value is None:
        return ""
    value = plain(value)
    if isinstance(value, str):
        return str.__str__(value)  # of a subclass: an enum's own str() is its name
    if isinstance(value, dict | list):
        joined = _joined(value if isinstance(value, list) else [value], where)
        return _json(value, where) if joined is None else joined
    if isinstance(value, decimal.Decimal) and value.is_finite():
        return format(value, "f")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _json(value, where)
    raise _refused(value, where)


def texts_of(value: Any, where: object) -> tuple[str, ...]:
    """Return the right answers of a row: a list of them, or one text; an empty list and null are one empty answer.

    Raises InputError for what is neither, and for an item that is null or cannot be text.
    """
    value = plain(value)
    if value is None or isinstance(value, str):
        return (text_of(value, where),)
    if not isinstance(value, list):
        raise InputError(
            f"{where} must hold a list of texts, not {_shown(value)}",
            "a column that holds one answer is named by `dataset.columns.target`",
        )
    if None in (items := list(value)):
        raise InputError(f"{where}, answer {items.index(None) + 1} of {len(items)}: empty (null) is not text",
                         "remove it from the list")  # fmt: skip
    answers = tuple(text_of(item, f"{where}, answer {n} of {len(items)}") for n, item in enumerate(items, 1))
    return answers or ("",)


def kept(value: Any, where: object) -> Any:
    """Return a value of a column that is kept beside the text, as JSON holds it; a date becomes its ISO 8601 text.

    Raises InputError for what JSON cannot hold: bytes, NaN, objects of Python.
    """
    return json.loads(_json(plain(value), where, _dated))


def plain(value: Any) -> Any:
    """Return what NumPy and tuples hold as numbers and lists of Python, at the top of `value`."""
    if isinstance(value, tuple):
        return list(value)
    if type(value).__module__ == "numpy":
        narrow = getattr(value, "shape", None) == () and str(getattr(value, "dtype", "")) in ("float16", "float32")
        return float(str(value)) if narrow else value.tolist()  # the digits that a narrow number has, and no more
    return value


def _joined(parts: list[Any], where: object) -> str | None:
    """Return the text of content parts; None for a list that is something else."""
    if not parts or not all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in parts):
        return None
    kinds = [part["type"] for part in parts]
    if not all(kind in _TEXT_PARTS or kind in _OTHER_PARTS for kind in kinds):
        return None
    texts = [part.get("text") for part in parts if part["type"] in _TEXT_PARTS]
    if len(texts) == len(parts):
        return "".join(texts) if all(isinstance(text, str) for text in texts) else None
    # Text beside an image is a content list; `[{"type": "file", ...}]` alone may be any data.
    if texts or any(kind in _UNMISTAKABLE for kind in kinds):
        number, kind = next((n, kind) for n, kind in enumerate(kinds, 1) if kind not in _TEXT_PARTS)
        raise InputError(f"{where}: part {number} of its content is {kind!r}, which is not text",
                         "only parts of type 'text' can be read")  # fmt: skip
    return None


def _json(value: Any, where: object, more: Any = None) -> str:
    def other(part: Any) -> Any:
        if type(part).__module__ == "numpy":
            return plain(part)
        if isinstance(part, decimal.Decimal) and part.is_finite():
            return float(part) if float(part) == part else str(part)
        found = more(part) if more else None
        if found is None:
            raise _Unfit(part)
        return found

    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=other)
    except _Unfit as error:
        raise _refused(error.args[0], where, inside=error.args[0] is not value) from None
    except (ValueError, TypeError, RecursionError) as error:  # NaN, a loop, keys that are no text
        if isinstance(value, float):
            raise _refused(value, where) from None
        raise InputError(f"{where}: {_shown(value)} cannot be written as JSON: {one_line(error, 100)}",
                         "correct the value, or name another column") from None  # fmt: skip


class _Unfit(Exception):
    """A part of a value that JSON cannot hold."""


def _dated(value: Any) -> str | None:
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else None


def _refused(value: Any, where: object, inside: bool = False) -> InputError:
    held = "holds a value that is" if inside else "is"
    return InputError(f"{where}: {_shown(value)} {held} not text",
                      "write it as text, the way the model is to read or write it, or name another column")  # fmt: skip


def _shown(value: Any) -> str:
    """Return a value with its kind, short: "a boolean (true)"."""
    if isinstance(value, float):
        return f"the number {value}"
    called = next(
        (name for kind, name in _CALLED.items() if type(value) is kind), f"a value of type {type(value).__name__}"
    )
    text = str(value).lower() if isinstance(value, bool) else _SHORT.repr(value)
    return f"{called} ({printable(one_line(text, 50))})"
