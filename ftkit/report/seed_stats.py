"""An interval that covers two sources of chance: which training seeds were run, and which test rows were measured.

A score is a mean over k trainings of one recipe and n rows. Other seeds would give other means, and so would other
rows (Bouthillier et al. 2021, "Accounting for variance in machine learning benchmarks", arXiv 2103.03098).
`benchmarks/false_claims.py` shows that the interval covers; docs/seeds.md explains it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
_STEPS = 60  # of the bisection for p: more than a float can tell apart


class SeedInterval(NamedTuple):
    """`delta` in the metric's unit with the interval `low`..`high`; `p_value` is below 1 - confidence where 0 is outside."""

    delta: float
    low: float
    high: float
    p_value: float


def seed_interval(a: Floats | None, b: Floats, confidence: float = CONFIDENCE) -> SeedInterval:
    """Return the mean of `b` minus the mean of `a`, with an interval over seeds and rows.

    `a` has shape (seeds of a, rows) and `b` (seeds of b, rows): row by row the same examples, at least two. A side with
    one seed counts as fixed: its training is not a source of chance here. Without `a`, the mean of `b` itself.

    The half-width is sqrt((t_rows · SE_rows)² + (t_seeds · SE_seeds)²): each source of chance has its own standard
    error and its own t quantile. Such a sum holds its level for any ratio of the two (Banerjee 1960, Sankhya 22:357),
    also with two seeds, where the Satterthwaite approximation does not. SE_rows is from the differences per row, with
    n - 1 degrees of freedom; SE_seeds from the seeds' means, with Welch's (1947). Chance that belongs to a row *and* a
    seed counts in both, which makes the interval a little wide. p is the level at which the interval ends at 0.
    """
    rows = b.mean(axis=0) if a is None else b.mean(axis=0) - a.mean(axis=0)
    n = rows.size
    delta = float(rows.mean())
    parts = [(float(rows.var(ddof=1)) / n, float(n - 1))]
    sides = [side for side in (a, b) if side is not None and len(side) > 1]
    variances = [float(side.mean(axis=1).var(ddof=1)) / len(side) for side in sides]
    total = math.fsum(variances)
    if total > 0:
        freedom = total**2 / math.fsum(v**2 / (len(side) - 1) for v, side in zip(variances, sides, strict=True))
        parts.append((total, freedom))
    half = _half(1 - confidence, parts)
    return SeedInterval(delta, delta - half, delta + half, _p_value(abs(delta), parts))


def _half(alpha: float, parts: list[tuple[float, float]]) -> float:
    """Return the half-width at level `alpha`, from (squared standard error, degrees of freedom) of each part."""
    from scipy.special import stdtrit  # here, because `ftkit --help` must not wait for scipy

    return math.sqrt(math.fsum(variance * float(stdtrit(freedom, alpha / 2)) ** 2 for variance, freedom in parts))


def _p_value(distance: float, parts: list[tuple[float, float]]) -> float:
    """Return the level at which the interval ends at 0, `distance` away; 1 where the difference is 0."""
    if distance == 0:
        return 1.0
    low, high = -100.0, 0.0  # of log10(p), which is no smaller; the half-width falls while p rises
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if _half(10.0**middle, parts) < distance else (middle, high)
    return float(10.0 ** ((low + high) / 2))
