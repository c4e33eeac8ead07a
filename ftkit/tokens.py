"""Tokens as a person reads them: whole characters, also where a tokenizer splits one character over several tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_MOST = 4  # bytes of one character of UTF-8


@dataclass(frozen=True)
class Piece:
    """One or several tokens that make whole characters together: `text`, and how many `tokens` it takes."""

    text: str
    trained: bool
    tokens: int = 1

    def __str__(self) -> str:
        return self.text if self.tokens == 1 else self.text + str(self.tokens).translate(_SUPERSCRIPT)


def pieces(tokens: Sequence[str], loss_mask: Sequence[bool]) -> Iterator[Piece]:
    """Yield the tokens as `Rendered.tokens` holds them, those that share a character as one piece.

    Bytes that are no character even together are written \\xNN.
    """
    at = 0
    while at < len(tokens):
        size = _together(tokens, loss_mask, at)
        yield Piece(readable("".join(tokens[at : at + size])), loss_mask[at], size)
        at += size


def _together(tokens: Sequence[str], loss_mask: Sequence[bool], at: int) -> int:
    """Return how many tokens from `at` on make whole characters together; 1 where they do not."""
    size, text = 1, tokens[at]
    while any("\udc80" <= char <= "\udcff" for char in text):
        try:
            text.encode("utf-8", "surrogateescape").decode()
            return size
        except UnicodeError:
            pass
        same = at + size < len(tokens) and loss_mask[at + size] == loss_mask[at]
        if not same or size >= 2 * _MOST:
            return 1
        text += tokens[at + size]
        size += 1
    return size


def readable(text: str) -> str:
    """Return text without surrogates: the bytes that they stand for as characters, or as \\xNN where they are none."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # surrogates that stand for no byte
        return text.encode("utf-8", "backslashreplace").decode()
