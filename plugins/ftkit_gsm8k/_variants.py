"""The same question with other numbers, and the answer that follows from its annotations."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

from ftkit.records import Example

from ._numbers import compute, show
from ._prose import from_prose
from ._sources import FREE, NUMBER, Plan, Refused, number, plan

ATTEMPTS = 2000


def changed(example: Example) -> Example | None:
    """Return `example` with other numbers and the answer recomputed, or None where its solution does not allow it.

    It allows it if each operand of a step has exactly one possible source (`_sources.plan`); if other numbers keep
    each result positive, whole where it was whole, and no longer in digits, and keep the order of all quantities, so
    that what was the larger one remains it; and if the text of the solution, without its annotations, gives the same
    answer. The same example always gives the same variant.
    """
    try:
        found = plan(example.input, example.targets[0])
    except Refused:
        return None
    results = [s.claimed for s in found.steps]
    rng = random.Random(hashlib.sha256(example.input.encode("utf-8", "surrogatepass")).digest())
    for _ in range(ATTEMPTS):
        new = {value: Fraction(_near(rng, int(value))) for value in sorted(found.change)}
        if all(new[v] == v for v in new):
            continue
        after = _recompute(found, new)
        if after is None or not all(map(_like, after, results)) or after[-1] == results[-1]:
            continue
        if _same_order([*new.items(), *((v, v) for v in found.keep), *zip(results, after, strict=True)]):
            if from_prose(example.targets[0], {**{v: v for v in found.keep}, **new}, found.fixed) != after[-1]:
                return None
            return _written(example, new, after[-1])
    return None


def variants(examples: Iterable[Example]) -> list[Example]:
    """Return what `changed` gives for the examples that allow it."""
    return [made for e in examples if (made := changed(e)) is not None]


def _near(rng: random.Random, value: int) -> int:
    """Return a whole number of the same size: from half to one and a half times, at least 2, of as many digits."""
    low, high = max(2, value // 2), max(3, value * 3 // 2)
    return min(rng.randint(low, high), 10 ** len(str(value)) - 1)


def _recompute(found: Plan, new: Mapping[Fraction, Fraction]) -> list[Fraction] | None:
    """Return the results of the steps with the new numbers."""
    known, after = dict(new), []
    for s in found.steps:
        value = compute(NUMBER.sub(lambda m: _as_operand(known, m[0]), s.expression))
        if value is None:
            return None
        known[s.claimed] = value
        after.append(value)
    return after


def _as_operand(known: Mapping[Fraction, Fraction], text: str) -> str:
    value = known.get(number(text))
    if value is None:
        return text
    return str(value.numerator) if value.denominator == 1 else f"({value.numerator}/{value.denominator})"


def _like(after: Fraction, before: Fraction) -> bool:
    whole = before.denominator != 1 or after.denominator == 1
    return after > 0 and whole and len(str(int(after))) <= len(str(int(before)))


def _same_order(pairs: Iterable[tuple[Fraction, Fraction]]) -> bool:
    """Return whether the new values are in the order of the old ones; pairs are (old, new)."""
    return all(x == y or a < b for (x, a), (y, b) in pairwise(sorted(pairs)))


def _written(example: Example, new: Mapping[Fraction, Fraction], answer: Fraction) -> Example | None:
    """Return the example with the new numbers in its question and its prompt."""
    text = FREE.sub(lambda m: _in_form_of(m[0], new.get(number(m[0]))), example.input)
    messages = tuple(
        replace(m, content=m.content.replace(example.input, text)) if m.role == "user" else m for m in example.messages
    )
    if text == example.input or messages == example.messages:
        return None
    return Example(
        f"{example.id}~changed", messages, (f"#### {show(answer)}",), text, {**example.meta, "original": example.id}
    )


def _in_form_of(old: str, value: Fraction | None) -> str:
    return old if value is None else f"{int(value):,}" if "," in old else str(value)
