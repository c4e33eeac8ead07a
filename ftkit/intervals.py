"""Confidence intervals of means, shares, ratios and paired differences, from arrays of numbers alone.

`docs/statistics.md` says in plain words what they cover, with the coverage that `benchmarks/coverage.py` measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
DEPENDABLE = 20  # with fewer independent values, an interval may cover less than it says
VARIED = 5  # so many values must differ from the commonest one; twice as many of differences
_DAMPING = 20  # the skewness of n values counts n / (n + 20): that of a few values is mostly noise
_EQUAL = 1e-12  # values within this share of their size are equal: what differs is the rounding


class Interval(NamedTuple):
    """`low` and `high` are None where no interval can be given; `method` then says why. `caution`: do not rely on it."""

    low: float | None
    high: float | None
    method: str | None
    caution: str | None = None


def percent(confidence: float) -> str:
    """Return a confidence as text: "95 %", "98.33 %"."""
    return f"{100 * confidence:.4g} %"


def z_of(confidence: float) -> float:
    """Return the normal quantile of a two-sided interval: 1.96 for 0.95."""
    from scipy.special import ndtri  # here, because `ftkit --help` must not wait for scipy

    return float(ndtri((1 + confidence) / 2))


def t_of(confidence: float, df: int) -> float:
    """Return Student's quantile of a two-sided interval with `df` degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(df, (1 + confidence) / 2))


# ---------------------------------------------------------------- shares


def wilson(successes: float, n: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the score interval (fractions, in 0..1) of a proportion; (0, 1) where n is 0.

    It does not collapse to a point at 0 of n or n of n. Both numbers may be effective ones, so not whole. Raises
    ValueError unless 0 <= successes <= n. Source: Wilson 1927, JASA 22:209-212.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be within 0..n, not {successes} of {n}")
    if n == 0:
        return 0.0, 1.0
    z = z_of(confidence)
    p = successes / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the bound is p itself; rounding would put it a hair beside.
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == n else min(1.0, center + half)
    return low, high


def newcombe(both: float, first: float, second: float, neither: float, confidence: float) -> tuple[float, float]:
    """Return the interval of the paired difference of two proportions, second - first, within -1..1.

    The counts of pairs: 1 in both, in the first only, in the second only, in neither. They may be effective ones, so
    not whole. Source: Newcombe 1998, Statistics in Medicine 17:2635-2650, method 10.
    """
    n = both + first + second + neither
    shares = ((both + second) / n, (both + first) / n)
    (low_b, high_b), (low_a, high_a) = (wilson(min(share * n, n), n, confidence) for share in shares)
    delta = (second - first) / n
    product = (both + first) * (second + neither) * (both + second) * (first + neither)
    phi = 0.0
    if product > 0:
        numerator = both * neither - first * second
        phi = (max(numerator - n / 2, 0.0) if numerator > 0 else numerator) / math.sqrt(product)
    down_b, up_b, down_a, up_a = shares[0] - low_b, high_b - shares[0], shares[1] - low_a, high_a - shares[1]
    below = math.sqrt(max(0.0, down_b**2 - 2 * phi * down_b * up_a + up_a**2))
    above = math.sqrt(max(0.0, up_b**2 - 2 * phi * up_b * down_a + down_a**2))
    return max(-1.0, delta - below), min(1.0, delta + above)


def bonett_price(first: float, second: float, n: float, confidence: float) -> tuple[float, float]:
    """Return the interval of `newcombe` by another method, which needs no correlation between the two proportions.

    Source: Bonett & Price 2012, Journal of Educational and Behavioral Statistics 37:479-488.
    """
    down, up = (first + 1) / (n + 2), (second + 1) / (n + 2)
    half = z_of(confidence) * math.sqrt((down + up - (up - down) ** 2) / (n + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)


# ---------------------------------------------------------------- means


def student(values: Floats, confidence: float = CONFIDENCE, skewed: bool = False) -> tuple[float, float]:
    """Return Student's t interval of the mean of `values`, shape (n,); with `skewed`, corrected for their skewness.

    The correction is Hall's transformation (1992, JRSS B 54:221-228) with Student's quantiles. It uses n / (n + 20)
    of the sample skewness, a damping chosen by `benchmarks/coverage.py`. Differences go without it: their interval then
    agrees with the permutation test. Needs two values that differ. All sums are exact, so the order of the values does
    not matter.
    """
    n = len(values)
    mean = math.fsum(values) / n
    apart = values - mean
    scale = float(np.abs(apart).max())
    apart = apart / scale  # so that neither squares nor cubes leave the range of floats
    square = math.fsum(apart**2)
    sd = math.sqrt(square / (n - 1))
    skewness = math.fsum(apart**3) / n / (square / n) ** 1.5 * n / (n + _DAMPING) if skewed else 0.0
    quantile = t_of(confidence, n - 1) / math.sqrt(n)

    def inverse(x: float) -> float:
        if abs(skewness) < 1e-6:
            return x
        root: float = np.cbrt(1 + skewness * (x - skewness / (6 * n)))
        return 3 / skewness * (root - 1)

    low, high = (mean - scale * sd * inverse(x) for x in (quantile, -quantile))
    return min(low, mean), max(high, mean)


class Clustered:
    """Values per example, and which of them belong together: `sizes` and `sums` per cluster, shape (clusters,).

    A cluster is what was drawn independently: all rows with one input. `weights` are what the values are divided by:
    1 per example for a mean, the number of steps for a share of steps. `values` has shape (n,).
    """

    def __init__(self, values: Sequence[float], weights: Sequence[float], clusters: Sequence[str]) -> None:
        self.values = np.array(values, dtype=np.float64)
        if len(set(clusters)) == len(clusters):  # the usual case, without a container per example
            order = sorted(range(len(clusters)), key=clusters.__getitem__)
            self.sums, self.sizes = self.values[order], np.array(weights, dtype=np.float64)[order]
        else:
            members: dict[str, list[int]] = {}
            for i, name in enumerate(clusters):
                members.setdefault(name, []).append(i)
            groups = [members[name] for name in sorted(members)]
            self.sums = np.array([math.fsum(values[i] for i in group) for group in groups])
            self.sizes = np.array([math.fsum(weights[i] for i in group) for group in groups])
        self.total: float = math.fsum(weights)
        self.value: float = math.fsum(values) / self.total

    @property
    def n(self) -> int:
        return len(self.sums)

    @property
    def influence(self) -> Floats:
        """One value per cluster: their mean is `value`, and its error is that of a mean (Cochran 1977, ch. 6)."""
        found: Floats = self.value + self.n / self.total * (self.sums - self.value * self.sizes)
        return found

    @property
    def kish(self) -> float:
        """As many independent values as clusters of these sizes are worth, where each holds one value repeated."""
        return float(self.total**2 / math.fsum(self.sizes**2))

    def effective(self, variance: float, confidence: float) -> float:
        """Return as how many independent values of this variance these count; at most `total`."""
        if bool((self.sizes == 1).all()):
            return self.total
        influence = self.influence
        between = math.fsum((influence - self.value) ** 2) / self.n**2
        if self.n < 2 or variance <= 0 or between <= 1e-18 * variance:
            return self.kish  # nothing varies, or it cannot be seen: assume that copies say nothing new
        few = (z_of(confidence) / t_of(confidence, self.n - 1)) ** 2
        return float(min(self.total, variance / between * few))


def mean_interval(data: Clustered, fraction: bool, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval of a mean. `fraction`: every value is within 0..1 by its meaning."""
    if data.n < 2:
        return Interval(None, None, _one(data))
    equal = _all_equal(data.values)
    binary = bool(np.isin(data.values, (0.0, 1.0)).all()) and (fraction or not equal)
    if binary:
        p = data.value
        n = data.effective(p * (1 - p), confidence)
        low, high = wilson(min(p * n, n), n, confidence)
        return _finish(low, high, "Wilson score interval", data, confidence, few=0)
    if equal:
        return _constant(data, (0.0, 1.0) if fraction else None, confidence)
    if _all_equal(data.influence):
        return Interval(None, None, "no interval: every input has the same mean")
    low, high = student(data.influence, confidence, skewed=True)
    if fraction:
        low, high = max(0.0, low), min(1.0, high)
    return _finish(low, high, "Student's t interval, corrected for skewness", data, confidence)


def difference_interval(
    a: Sequence[float], b: Sequence[float], clusters: Sequence[str], fraction: bool, confidence: float = CONFIDENCE
) -> Interval:
    """Return the interval of the mean of b - a over pairs. `fraction`: both are within 0..1 by their meaning."""
    first, second = np.array(a, dtype=np.float64), np.array(b, dtype=np.float64)
    data = Clustered([y - x for x, y in zip(a, b, strict=True)], [1.0] * len(a), clusters)
    if data.n < 2:
        return Interval(None, None, _one(data))
    size = float(max(np.abs(first).max(), np.abs(second).max()))
    equal = _all_equal(data.values, size)
    binary = bool(np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all()) and (fraction or not equal)
    if binary:
        share = data.effective(float(np.var(data.values)), confidence) / data.total
        cells = [float(np.sum((first == x) & (second == y))) for x, y in ((1, 1), (1, 0), (0, 1), (0, 0))]
        both, only_first, only_second, neither = (count * share for count in cells)
        low, high = newcombe(both, only_first, only_second, neither, confidence)
        if min(only_first, only_second) == 0:  # changes in one direction only: Newcombe's alone covers down to 87 %
            other = bonett_price(only_first, only_second, both + only_first + only_second + neither, confidence)
            low, high = min(low, other[0]), max(high, other[1])
        return _finish(low, high, "Newcombe's interval for paired proportions (method 10)", data, confidence, few=0)
    if equal:
        return _constant(data, (-1.0, 1.0) if fraction else None, confidence)
    if _all_equal(data.influence, size):
        return Interval(None, None, "no interval: every input has the same mean")
    low, high = student(data.influence, confidence)
    if fraction:
        low, high = max(-1.0, low), min(1.0, high)
    return _finish(low, high, "paired Student's t interval", data, confidence, few=2 * VARIED)


def ratio_interval(data: Clustered, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval of a share of parts, such as right steps of all steps, where parts come in clusters."""
    if data.n < 2:
        return Interval(None, None, _one(data))
    p = data.value
    n = data.effective(p * (1 - p), confidence)
    low, high = wilson(min(p * n, n), n, confidence)
    name = "Wilson score interval, at the effective number of independent parts"
    return _finish(low, high, name, data, confidence, few=0)


def _constant(data: Clustered, bounds: tuple[float, float] | None, confidence: float) -> Interval:
    """Return how far the mean may be from the one value that all of n drawn have, where values have bounds.

    The unseen values are at most as frequent as the Wilson interval of 0 of n allows, and lie at a bound at worst.
    """
    if bounds is None:
        return Interval(None, None, "no interval: all values are equal")
    unseen = wilson(0, data.kish, confidence)[1]
    low, high = (data.value + unseen * (bound - data.value) for bound in bounds)
    return _finish(
        low, high, "all values are equal: the bound if others exist that were not drawn", data, confidence, 0
    )


def _finish(low: float, high: float, name: str, data: Clustered, confidence: float, few: int = VARIED) -> Interval:
    copies = f"; the unit is the input: {data.n:,} different ones" if data.n < len(data.values) else ""
    method = f"{percent(confidence)} {name}{copies}"
    return Interval(low, high, method, caution(data, few))


def caution(data: Clustered, few: int = VARIED) -> str | None:
    """Return why an interval must not be relied on: too few independent values, or fewer than `few` that vary."""
    too_few = few_units(data.n, "different inputs" if data.n < len(data.values) else "examples")
    if too_few:
        return too_few
    commonest = int(np.unique(data.values, return_counts=True)[1].max())
    varied = len(data.values) - commonest
    if varied < few:
        return f"only {varied} of {len(data.values):,} values differ from the rest: no interval is dependable"
    return None


def few_units(n: int, what: str) -> str | None:
    """Return why an interval from `n` independent values must not be relied on; `what` names them."""
    return f"from {n} {what} no interval is dependable: it needs {DEPENDABLE}" if n < DEPENDABLE else None


def expanded_tail(n: int, confidence: float) -> float:
    """Return the percentile for the lower end of a bootstrap interval of `n` values, instead of (1 - confidence) / 2.

    Plain percentiles are too narrow for few values. These make the interval of a mean as wide as Student's.
    Source: Hesterberg 2015, The American Statistician 69:371-386, "expanded percentile interval".
    """
    from scipy.special import ndtr

    return float(ndtr(-math.sqrt(n / (n - 1)) * t_of(confidence, n - 1)))


def _one(data: Clustered) -> str:
    return "no interval from one example" if len(data.values) < 2 else "no interval: all rows have the same input"


def _all_equal(values: Floats, size: float | None = None) -> bool:
    """Say whether values are equal but for the rounding; `size` is that of the numbers that they were computed from."""
    largest = float(np.abs(values).max()) if size is None else size
    return float(values.max() - values.min()) <= _EQUAL * largest
