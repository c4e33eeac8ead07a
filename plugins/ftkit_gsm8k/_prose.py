"""The answer of a worked solution with other numbers, from its text alone: the annotations are not read.

It is the second way to the gold answer of a changed question. `_variants` computes it from the annotations and drops
the question unless both agree.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fractions import Fraction

from ._numbers import clean, compute, marked

_ANNOTATION = re.compile(r"<<[^<>\n]*>>")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?|\.\d+")
_RESULT = re.compile(r"=\s*\$?\s*(-?\d[\d,]*(?:\.\d+)?|-?\.\d+)")
_BOUNDARY = re.compile(r"\n|[;:!?]|[.,](?=\s|$)")


def from_prose(solution: str, new: Mapping[Fraction, Fraction], fixed: Collection[Fraction]) -> Fraction | None:
    """Return the answer where the numbers in `new` are replaced, or None where the text does not give it.

    Every number of the text must be in `new` or in `fixed`, or be the result of an equation before it.
    """
    answer = marked(solution)
    text = clean(_ANNOTATION.sub("", solution.partition("####")[0])).replace("\u2013", "-")
    if answer is None or not text.strip():
        return None
    known: dict[Fraction, Fraction] = {**{v: v for v in fixed}, **new}
    last = None
    at = 0
    while (found := _RESULT.search(text, at)) is not None:
        before = text[at : found.start()]
        cut = max((m.end() for m in _BOUNDARY.finditer(before)), default=0)
        result = _value(found[1])
        after = _left_side(before[cut:], result, known)
        if after is None or not _all_known(before, {**known, result: after}):  # "she needs 12 because 16 * .75 = 12"
            return None
        if known.setdefault(result, after) != after:
            del known[result]  # two numbers that were equal: a later use would not tell which is meant
        last, at = (result, after), found.end()
    rest = text[at:]
    if "=" in rest or not _all_known(rest, known):
        return None
    return last[1] if last is not None and last[0] == answer else None


def _left_side(text: str, result: Fraction, known: Mapping[Fraction, Fraction]) -> Fraction | None:
    """Return the new value of the expression at the end of `text`, whose value was `result`."""
    text = re.sub(r"(?<![^\W\d_])[xX×](?![^\W\d_])", "*", text)
    text = re.sub(r"/\s*(?!\d)[A-Za-z]+|[^\W\d_]+|[\"'’$]", " ", text)
    for start in (m.start() for m in re.finditer(r"[\d.(-]", text)):
        if start and (text[start - 1].isdigit() or text[start - 1] in ".,"):
            continue
        if compute(text[start:]) == result:
            return compute(_NUMBER.sub(lambda m: _shown(known.get(_value(m[0]))), text[start:]))
    return None


def _all_known(text: str, known: Mapping[Fraction, Fraction]) -> bool:
    return all(_value(m[0]) in known for m in _NUMBER.finditer(text))


def _shown(value: Fraction | None) -> str:
    return "?" if value is None else f"({value.numerator}/{value.denominator})"


def _value(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))
