"""The same question with other numbers, and the answer that follows from its annotations."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from ftkit.records import Example

from ._numbers import annotated, compute, marked, show

ATTEMPTS = 300
# Whole numbers that stand alone: not a part of a decimal, a percentage, a time, a fraction, an ordinal or a name.
_FREE = re.compile(r"(?<![\w.,:/#-])\d{1,6}(?:,\d{3})*(?![\w:/%-]|[.,]\d)")
_OPERAND = re.compile(r"\d[\d,]*(?:\.\d+)?|\.\d+")
# Values that a word may stand for: where a question has the same value in digits, it is not clear which one a step uses.
_WORDS = {
    "one": (1,), "half": (2, 50), "halves": (2,), "twice": (2,), "double": (2,), "doubles": (2,), "two": (2,), "both": (2,),
    "pair": (2,), "pairs": (2,), "couple": (2,), "triple": (3,), "thrice": (3,), "three": (3,), "third": (3,), "thirds": (3,),
    "quarter": (4, 25), "quarters": (4, 25), "four": (4,), "five": (5,), "fifth": (5,), "six": (6,), "seven": (7,), "eight": (8,),
    "nine": (9,), "ten": (10,), "tenth": (10,), "dozen": (12,), "dozens": (12,), "twelve": (12,), "twenty": (20,), "week": (7, 5),
    "weeks": (7, 5), "weekly": (7, 5), "month": (30, 4, 12), "months": (30, 4, 12), "year": (12, 52, 365), "years": (12, 52, 365),
    "hour": (60, 24), "hours": (60, 24), "minute": (60,), "minutes": (60,), "day": (24, 7), "days": (24, 7), "percent": (100,),
}  # fmt: skip


def changed(example: Example) -> Example | None:
    """Return `example` with other numbers and the answer recomputed, or None where its annotations do not allow it.

    They allow it if each operand of a step is a number of the question, a result of an earlier step or a constant, and
    only one of these; and if with other numbers each result stays positive, stays whole where it was whole, and gets
    no more digits. The same example always gives the same variant.
    """
    steps = annotated(example.targets[0])
    answer = marked(example.targets[0])
    if not steps or steps[-1].claimed != answer or not all(s.true == s.claimed for s in steps):
        return None
    found = {_number(m) for m in _FREE.findall(example.input)}
    used: set[Fraction] = set()
    results: list[Fraction] = []
    for s in steps:
        for operand in map(_number, _OPERAND.findall(s.expression)):
            if operand in found and operand in results:
                return None
            if operand in found:
                used.add(operand)
        results.append(s.claimed)
    other = {Fraction(value) for word in re.findall(r"[a-z]+", example.input.lower()) for value in _WORDS.get(word, ())}
    fixed = {_number(m) for m in _OPERAND.findall(_FREE.sub(" ", example.input))}  # percentages, decimals, times
    if not used or used & (other | fixed):
        return None
    expressions = [s.expression for s in steps]
    rng = random.Random(hashlib.sha256(example.input.encode("utf-8", "surrogatepass")).digest())
    for _ in range(ATTEMPTS):
        new = {value: Fraction(_near(rng, int(value))) for value in sorted(used)}
        if all(new[v] == v for v in used) or len(set(new.values())) < len(new):
            continue
        after = _recompute(expressions, results, new)
        if after is not None and all(map(_like, after, results)) and after[-1] != answer:
            return _written(example, new, after[-1])
    return None


def variants(examples: Sequence[Example]) -> list[Example]:
    """Return what `changed` gives for the examples that allow it."""
    return [made for e in examples if (made := changed(e)) is not None]


def _number(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def _near(rng: random.Random, value: int) -> int:
    """Return a whole number of the same size: from half to one and a half times, at least 2, of as many digits."""
    low, high = max(2, value // 2), max(3, value * 3 // 2)
    return min(rng.randint(low, high), 10 ** len(str(value)) - 1)


def _recompute(expressions: list[str], results: list[Fraction], new: dict[Fraction, Fraction]) -> list[Fraction] | None:
    after: list[Fraction] = []
    for expression in expressions:
        known = {**new, **dict(zip(results, after, strict=False))}  # of equal results, the later one counts
        value = compute(_OPERAND.sub(lambda m, known=known: _as_operand(known, m[0]), expression))
        if value is None:
            return None
        after.append(value)
    return after


def _as_operand(known: dict[Fraction, Fraction], text: str) -> str:
    value = known.get(_number(text))
    if value is None:
        return text
    return str(value.numerator) if value.denominator == 1 else f"({value.numerator}/{value.denominator})"


def _like(after: Fraction, before: Fraction) -> bool:
    whole = before.denominator != 1 or after.denominator == 1
    return after > 0 and whole and len(str(int(after))) <= len(str(int(before)))


def _written(example: Example, new: dict[Fraction, Fraction], answer: Fraction) -> Example | None:
    """Return the example with the new numbers in its question and its prompt."""
    text = _FREE.sub(lambda m: str(new.get(_number(m[0]), m[0])), example.input)
    messages = tuple(
        replace(m, content=m.content.replace(example.input, text)) if m.role == "user" else m for m in example.messages
    )
    if text == example.input or messages == example.messages:
        return None
    return Example(
        f"{example.id}~changed", messages, (f"#### {show(answer)}",), text, {**example.meta, "original": example.id}
    )
