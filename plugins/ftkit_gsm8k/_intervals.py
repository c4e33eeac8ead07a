"""Intervals of the probe's rules: changes of right and wrong answers, between few questions and near 0 and 1.

All are 95 % normal intervals after adding a few imaginary answers, so that they keep a width where all answers are
equal. The tests measure their coverage. Values are per question, between 0 and 1; results are fractions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

Z = 1.959964  # two-sided 95 %
Values = Mapping[str, float]


class Change(NamedTuple):
    """A difference of two accuracies over `n` questions, and its 95 % interval."""

    delta: float
    low: float
    high: float
    n: int


def paired(before: Values, after: Values) -> Change | None:
    """Return the mean change over the questions that both have, or None without any.

    Half an answer of each kind of pair is added: one gain and one loss more in n + 2 pairs, half each.
    Source: Agresti & Min 2005, Statistics in Medicine 24:729-740.
    """
    changes = [after[q] - before[q] for q in before.keys() & after.keys()]
    if not changes:
        return None
    center, variance = _moments(changes)
    return _change(math.fsum(changes) / len(changes), center, variance, len(changes), 1)


def difference_of_changes(a: tuple[Values, Values], b: tuple[Values, Values]) -> Change | None:
    """Return how much more `a` changed than `b`; each is (before, after), and they hold different questions.

    The questions of `a` are paired with themselves, and so are those of `b`: this is a difference of differences.
    None where one of the two has no question with both values. `n` counts the questions of both.
    """
    sides = [[after[q] - before[q] for q in before.keys() & after.keys()] for before, after in (a, b)]
    if not all(sides):
        return None
    (m, v), (k, w) = map(_moments, sides)
    delta = math.fsum(sides[0]) / len(sides[0]) - math.fsum(sides[1]) / len(sides[1])
    return _change(delta, m - k, v + w, len(sides[0]) + len(sides[1]), 2)


def difference_of_rates(hits_a: int, n_a: int, hits_b: int, n_b: int) -> Change | None:
    """Return the difference of two rates of different answers, a - b, or None where one has no answers.

    One hit and one miss are added to each. Source: Agresti & Caffo 2000, The American Statistician 54:280-288.
    """
    if not n_a or not n_b:
        return None
    p, q = (hits_a + 1) / (n_a + 2), (hits_b + 1) / (n_b + 2)
    variance = p * (1 - p) / (n_a + 2) + q * (1 - q) / (n_b + 2)
    return _change(hits_a / n_a - hits_b / n_b, p - q, variance, n_a + n_b, 1)


def _moments(changes: Collection[float]) -> tuple[float, float]:
    """Return the mean of the changes and of the added pairs, and the variance of that mean."""
    n = len(changes) + 2
    total, squares = math.fsum(changes), math.fsum(c * c for c in changes) + 1
    return total / n, (squares - total * total / n) / n**2


def _change(delta: float, center: float, variance: float, n: int, limit: int) -> Change:
    half = Z * math.sqrt(variance)
    low, high = max(-limit, center - half), min(limit, center + half)
    return Change(delta, min(low, delta), max(high, delta), n)
