"""The border between prompt and target: the target's tokens are those that a model writes behind the prompt.

A SentencePiece-style tokenizer puts a space in front of each text that it encodes. A target that is encoded alone gets
this space in its first token, and a model that continues the prompt does not write it. With such a tokenizer, prompt
and target are encoded in one piece, and the target's tokens are those behind the prompt's. With other tokenizers a
text has the same tokens alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ftkit.records import Finding

Encode = Callable[[list[str]], list[list[int]]]

_PROBE = "pear"
_ANCHORS = ("\n", ".", ")", "⁂")  # texts that a target is encoded behind, where it cannot be behind its own prompt
_NEAR = 64  # characters on each side of a border that decide whether a token spans it


class Continued(NamedTuple):
    """The tokens of a text behind another one; `spanned`: in one piece, a token would belong to both texts."""

    ids: list[int]
    spanned: bool


class Border:
    """Encodes texts that continue others; `encode` returns the token ids of whole texts, one list per text."""

    def __init__(self, encode: Encode) -> None:
        self.encode = encode
        (alone,) = encode([_PROBE])
        behind = _behind_an_anchor(_PROBE, encode)
        self.alike = behind is None or behind == alone  # a text has the same tokens wherever it stands

    def behind(self, text: str, encode: Encode) -> list[int]:
        """Return the tokens that `encode` gives a text which continues some other text."""
        found = None if self.alike else _behind_an_anchor(text, encode)
        return encode([text])[0] if found is None else found

    def after(self, prompts: Sequence[str], prompt_ids: Sequence[list[int]], texts: Sequence[str]) -> list[Continued]:
        """Return the tokens of each text behind its own prompt, whose tokens are `prompt_ids`.

        The prompt keeps its tokens, which generation continues. Where a token would span the border, the text is
        encoded as it would be behind another prompt.
        """
        if self.alike:
            spans = self._spans(prompts, texts)
            return [Continued(*pair) for pair in zip(self.encode(list(texts)), spans, strict=True)]
        wholes = self.encode([p + t for p, t in zip(prompts, texts, strict=True)])
        return [
            Continued(whole[len(ids) :], False)
            if whole[: len(ids)] == ids
            else Continued(self.behind(text, self.encode), True)
            for whole, ids, text in zip(wholes, prompt_ids, texts, strict=True)
        ]  # fmt: skip

    def _spans(self, prompts: Sequence[str], texts: Sequence[str]) -> list[bool]:
        """Return for each pair whether a token spans the border, from the characters near it."""
        ends, starts = [p[-_NEAR:] for p in prompts], [t[:_NEAR] for t in texts]
        wholes = self.encode([e + s for e, s in zip(ends, starts, strict=True)])
        parts = zip(self.encode(ends), self.encode(starts), strict=True)
        return [end + start != whole for (end, start), whole in zip(parts, wholes, strict=True)]


def _behind_an_anchor(text: str, encode: Encode) -> list[int] | None:
    """Return the tokens of a text behind the first anchor that keeps its own tokens in front of it."""
    for anchor in _ANCHORS:
        before, whole = encode([anchor, anchor + text])
        if before and whole[: len(before)] == before:
            return whole[len(before) :]
    return None


def spanned_finding(prompt: str, target: str) -> Finding:
    """Return a warning that prompt and target do not meet between two tokens."""
    return Finding(
        "warning",
        "the border between prompt and target lies inside a token of the whole text: both are encoded apart, as a model "
        "that is given the prompt continues it",
        f"the prompt ends with {prompt[-12:]!r} and the target starts with {target[:12]!r}: white space belongs to the "
        "start of the target, not to the end of prompt.template or backend.chat_template",
        "prompt.template",
    )
