"""The language of the texts that ftkit shows: the English text is the key, and texts/LANGUAGE.json has its translation.

The language is the one of `speaking`, else FTKIT_LANG, else that of the locale (LC_ALL, LC_MESSAGES, LANG).
Errors, logs, and what programs read (JSON, CSV) stay English.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "ja")
VARIABLE = "FTKIT_LANG"
_LOCALE = ("LC_ALL", "LC_MESSAGES", "LANG")  # the first that is set decides

Texts = dict[str, Any]  # an English text -> how it is made: {"text", "values"}, or {"parts", "between"}
_spoken: contextvars.ContextVar[str | None] = contextvars.ContextVar("spoken", default=None)
_kept: contextvars.ContextVar[Texts | None] = contextvars.ContextVar("kept", default=None)


# ---------------------------------------------------------------- which language


def language() -> str:
    """Return the language of the texts: one of LANGUAGES. A language without a catalogue is English."""
    spoken = _spoken.get()
    if spoken is not None:
        return spoken
    chosen = os.environ.get(VARIABLE) or next(filter(None, map(os.environ.get, _LOCALE)), "en")
    code = re.split(r"[_.@-]", chosen)[0].lower()
    return code if code in LANGUAGES else "en"


@contextlib.contextmanager
def speaking(chosen: str) -> Iterator[None]:
    """Use one language within the block."""
    token = _spoken.set(chosen)
    try:
        yield
    finally:
        _spoken.reset(token)


# ---------------------------------------------------------------- texts


@functools.cache
def catalogue(code: str) -> Mapping[str, str]:
    """Return the translations of one language by English text; there are none for English."""
    path = Path(__file__).parent / "texts" / f"{code}.json"
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if code != "en" else {}
    return found


def msg(text: str) -> str:
    """Return `text` as it is: it marks an English text that `tr` translates elsewhere."""
    return text


def tr(text: str, /, **values: object) -> str:
    """Return a text in the language of this moment, with `values` in its placeholders ({name}, {name:,})."""
    made = catalogue(language()).get(text, text)
    made = made.format(**values) if values else made
    kept = _kept.get()
    if kept is not None and made != text:
        kept[made] = {"text": text, "values": {name: _storable(value) for name, value in values.items()}}
    elif kept is not None:
        kept.setdefault(made, {"text": text, "values": {}})
    return made


def _storable(value: object) -> object:
    """Return a value as report.json can hold it: numbers stay numbers, anything else is its text."""
    return value if value is None or isinstance(value, str | int | float) else str(value)


def plural(n: int, one: str, many: str, /, **values: object) -> str:
    """Return `one` for 1, else `many`, in the language of this moment; both have the placeholder {n}."""
    return tr(one if n == 1 else many, n=n, **values)


def joined(parts: Sequence[str], between: str = ", ", last: str | None = None) -> str:
    """Return texts as one: "a, b"; with `last`, that stands before the last one: "a, b and c"."""
    between = tr(between)
    last = between if last is None else tr(last)
    made = between.join(parts) if len(parts) < 2 else f"{between.join(parts[:-1])}{last}{parts[-1]}"
    kept = _kept.get()
    if kept is not None and len(parts) > 1:
        kept[made] = {"parts": list(parts), "between": between, "last": last}
    return made


# What the records call a role, a verdict, a state or a split, in words that are translated when they are printed.
WORDS = dict.fromkeys(
    (
        *(msg("baseline"), msg("tuned"), msg("control"), msg("further"), msg("extra"), msg("external")),
        msg("export"),
        *(msg("better"), msg("worse"), msg("scored higher"), msg("scored lower"), msg("no difference shown")),
        *(msg("no verdict"), msg("not compared")),
        *(
            msg("done"),
            msg("failed"),
            msg("interrupted"),
            msg("killed"),
            msg("running"),
            msg("prepared"),
            msg("reused"),
            msg("pruned"),
            msg("waiting"),
        ),
        *(msg("train"), msg("validation"), msg("test"), msg("prepare"), msg("evaluate"), msg("report")),
        *(msg("loss"), msg("validation loss"), msg("validation metrics"), msg("step")),
    )
)


def word(text: str) -> str:
    """Return one of WORDS in the language of this moment; any other text stays as it is."""
    return tr(text) if text in WORDS else text


# ---------------------------------------------------------------- texts that are stored in English


@contextlib.contextmanager
def keeping() -> Iterator[Texts]:
    """Make texts in English within the block, and keep how each was made, so that `translated` can translate it later."""
    texts: Texts = {}
    token = _kept.set(texts)
    try:
        with speaking("en"):
            yield texts
    finally:
        _kept.reset(token)


def translated(text: str, texts: Mapping[str, Any]) -> str:
    """Return a stored English text in the language of this moment; one that is not among `texts` stays as it is."""
    made = texts.get(text) if language() != "en" else None
    if not made:
        return text
    if "parts" in made:
        return joined([translated(part, texts) for part in made["parts"]], made["between"], made["last"])
    values = {
        name: translated(value, texts) if isinstance(value, str) and value != text else value
        for name, value in made["values"].items()
    }
    return tr(made["text"], **values)
