"""Remove secrets from what a provider sends back: whole or cut, as they are or encoded."""

from __future__ import annotations

import base64
import re
from urllib.parse import quote

MASK = "[key]"
_SHORTEST = 8  # characters of a secret that are masked where it was cut
# Escapes of ASCII characters: in URLs, in JSON (also twice, where JSON contains JSON), in other strings, in HTML.
_ESCAPE = re.compile(
    r"%(?P<url>[2-7][0-9a-f])|\\+u00(?P<json>[2-7][0-9a-f])|\\+x(?P<hex>[2-7][0-9a-f])"
    r"|&\#x0*(?P<html>[2-7][0-9a-f]);|&\#0*(?P<decimal>\d{2,3});|\\+(?P<slash>[/\"'])",
    re.I,
)
_ROUNDS = 4  # how often a text may be escaped, and one
_SCANNED = 1 << 16  # characters of the longest text that is searched for the middle of a secret too
_Spans = list[tuple[int, int]]  # start and end of each character of a decoded text in the text that it came from


class Mask:
    """Replaces secrets in text. `Mask()` without a secret changes nothing."""

    def __init__(self, *secrets: str | None) -> None:
        forms = {form for secret in secrets if secret for form in _forms(secret)}
        self.short = sorted((form for form in forms if len(form) < _SHORTEST), key=len, reverse=True)
        long = [form for form in forms if len(form) >= _SHORTEST]
        self.needles = sorted({form[:_SHORTEST] for form in long} | {form[-_SHORTEST:] for form in long})
        self.pieces = {form[i : i + _SHORTEST] for form in long for i in range(len(form) - _SHORTEST + 1)}

    def __call__(self, text: str, short: bool = True) -> str:
        """Return `text` with MASK in place of each secret, and of each part of one with at least 8 characters.

        `short` False leaves secrets of fewer than 8 characters: in a document of a provider they may be its own words.
        """
        short_forms = self.short if short else []
        if not self._has_secret(text, short_forms):
            return text
        return "".join(self._masked(line, short_forms) for line in text.splitlines(keepends=True))

    def _has_secret(self, text: str, short: list[str]) -> bool:
        for _ in range(_ROUNDS):
            if any(needle in text for needle in (*self.needles, *short)) or (
                self.pieces
                and len(text) < _SCANNED
                and any(text[i : i + _SHORTEST] in self.pieces for i in range(len(text)))
            ):
                return True
            decoded = _ESCAPE.sub(_character, text) if self.needles else text
            if decoded == text:
                return False
            text = decoded
        return False

    def _masked(self, text: str, short: list[str]) -> str:
        found: list[tuple[int, int]] = []
        level, spans = text, [(i, i + 1) for i in range(len(text))]
        for _ in range(_ROUNDS):
            places = [(m.start(), m.end()) for form in short for m in re.finditer(re.escape(form), level)]
            places += [(i, i + _SHORTEST) for i in range(len(level)) if level[i : i + _SHORTEST] in self.pieces]
            found += [(spans[start][0], spans[end - 1][1]) for start, end in places]
            if not _ESCAPE.search(level):
                break
            level, spans = _decode(level, spans)
        return _replaced(text, found)


def _forms(secret: str) -> set[str]:
    """Return a secret as it is, and in encodings whose characters are others."""
    data = secret.encode("utf-8", "replace")
    forms = {secret, quote(secret, safe=""), data.hex(), data.hex().upper()}
    for before in range(3):  # in base64, a character depends on how many bytes stand before it
        text = base64.b64encode(b"\0" * before + data)
        certain = text[-(-before * 8 // 6) : (before + len(data)) * 8 // 6].decode()
        forms |= {certain, certain.replace("+", "-").replace("/", "_")} if len(certain) >= _SHORTEST else set()
    return forms


def _character(match: re.Match[str]) -> str:
    """Return the character that an escape stands for."""
    code = match["url"] or match["json"] or match["hex"] or match["html"]
    return match["slash"] or chr(int(code, 16) if code else int(match["decimal"]))


def _decode(text: str, spans: _Spans) -> tuple[str, _Spans]:
    """Return a text with its escapes decoded once, and where each character of it stands in the original text."""
    parts: list[str] = []
    found: _Spans = []
    at = 0
    for match in _ESCAPE.finditer(text):
        start, end = match.span()
        parts += [text[at:start], _character(match)]
        found += [*spans[at:start], (spans[start][0], spans[end - 1][1])]
        at = end
    return "".join([*parts, text[at:]]), [*found, *spans[at:]]


def _replaced(text: str, places: list[tuple[int, int]]) -> str:
    """Return `text` with MASK in place of what the places cover; places that touch are one."""
    parts: list[str] = []
    at = 0
    for start, end in sorted(places):
        if start > at or not parts:
            parts += [text[at:start], MASK]
        at = max(at, end)
    return "".join([*parts, text[at:]]) if parts else text
