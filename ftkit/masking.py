"""Hide secrets in text that is kept or shown: values of variables that look secret, and what looks like a token."""

from __future__ import annotations

import json
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping

_SECRET_NAME = re.compile(
    r"KEY|TOKEN(?!IZERS)|SECRET|PASSW|PASSPHRASE|CREDENTIAL|COOKIE|DSN$|AUTH(?!_SOCK|OR)|CONNECTION_STRING", re.I
)
_SHORTEST = 6  # characters of a value that is looked for: a shorter one (`KEY=1`) is in every text
_SHORTEST_LINE = 16  # characters of one line of a value of several lines, such as a private key
_TOKENS = (
    (re.compile(r"\b(?:hf|gh[a-z]|github_pat|glpat|xox[a-z]|sk|pk|rk|AKIA|AIza)[-_]?[A-Za-z0-9][\w-]{14,}"), "[token hidden]"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), r"\1 [token hidden]"),
    (re.compile(r"(\w://)[^/\s:@]*:[^/\s@]+@"), r"\1[password hidden]@"),
)  # fmt: skip


def masked(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Return `text` without secrets: `[HF_TOKEN hidden]` in place of the value of HF_TOKEN.

    `environment` is that of this process by default. A value is also found as JSON, Python and URLs write it.
    """
    environment = os.environ if environment is None else environment
    secret = {
        form: name
        for name, value in environment.items()
        if _SECRET_NAME.search(name) and not os.path.exists(value)
        for form in _forms(value)
    }
    for form in sorted(secret, key=len, reverse=True):  # a value may be part of another
        text = text.replace(form, f"[{secret[form]} hidden]")
    for pattern, instead in _TOKENS:
        text = pattern.sub(instead, text)
    return text


def _forms(value: str) -> Iterator[str]:
    """Yield a value as a message may hold it."""
    value = value.strip()
    if len(value) < _SHORTEST:
        return
    yield value
    yield json.dumps(value)[1:-1]
    yield repr(value)[1:-1]
    yield urllib.parse.quote(value, safe="")
    for line in value.splitlines()[1:-1]:
        if len(line) >= _SHORTEST_LINE:
            yield line
