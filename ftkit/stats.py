"""Intervals and paired tests: how sure a number is, and whether a difference is more than chance.

The unit of every computation is the example: several samples of one example are averaged first.
Everything is seeded and independent of the order of its input, so the same scores give the same
numbers. Resampling goes in blocks: memory stays under about 50 MB whatever the number of examples.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .records import Metric, Score

Floats = NDArray[np.float64]

RESAMPLES = 9_999  # with the observed one, p-values come in steps of 1/10,000
SEED = 20_240_229
CONFIDENCE = 0.95
BLOCK = 1_000_000  # numbers drawn at once
EXACT_UP_TO = 13  # differences: 2**13 sign patterns are fewer than RESAMPLES, so all are tried


_INTERVALS = ContextVar("intervals", default=True)


@contextlib.contextmanager
def without_intervals() -> Iterator[None]:
    """Let `mean_metrics` give means alone: for a metric that is computed many times, as in training."""
    token = _INTERVALS.set(False)
    try:
        yield
    finally:
        _INTERVALS.reset(token)


class PairedDelta(NamedTuple):
    """`delta` is the mean of b - a over `n` common examples, in the metric's unit; `low`..`high` holds 95 %.

    None where there is nothing to say: `delta` and `p_value` with no pair, the interval with fewer than two.
    """

    delta: float | None
    low: float | None
    high: float | None
    p_value: float | None
    n: int


def example_means(scores: Sequence[Score], name: str) -> dict[str, float]:
    """Return each example's value of one metric, averaged over its samples: the input of `paired_delta`.

    Unscored samples, samples without that value and values that are not finite are left out.
    """
    values: dict[str, list[float]] = {}
    for score in scores:
        value = None if score.values is None else score.values.get(name)
        if value is not None and math.isfinite(value):
            values.setdefault(score.example_id, []).append(float(value))
    return {example_id: math.fsum(v) / len(v) for example_id, v in values.items()}


def mean_metrics(
    scores: Sequence[Score],
    units: Mapping[str, str] | None = None,
    higher_is_better: Mapping[str, bool | None] | None = None,
    proportions: Collection[str] = (),
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> list[Metric]:
    """Return one Metric per value name: the mean over examples with its 95 % interval.

    `units` and `higher_is_better` are by metric name (default "fraction" and True). The interval is a
    percentile bootstrap over examples (Efron & Tibshirani 1993, ch. 13), or Wilson's for the names in
    `proportions` as long as each example's value is 0 or 1; None with fewer than two examples. An example
    is unscored for a metric if no sample has `values`, or if a value is not finite; one whose `values`
    merely lack the name has no such metric and is not counted. A name without any value gives no Metric.
    """
    units, higher_is_better = units or {}, higher_is_better or {}
    names = list(dict.fromkeys(name for score in scores for name in score.values or ()))
    scored = {score.example_id for score in scores if score.values is not None}
    failed = {score.example_id for score in scores} - scored
    metrics = []
    blocks: dict[tuple[str, ...], list[tuple[str, Floats]]] = {}  # the same examples share their resamples
    unscored: dict[str, int] = {}
    for name in names:
        means = example_means(scores, name)
        with_name = {score.example_id for score in scores if score.values is not None and name in score.values}
        unscored[name] = len(failed) + len(with_name - means.keys())
        if means:
            ids = tuple(sorted(means))
            blocks.setdefault(ids, []).append((name, np.array([means[i] for i in ids])))
    intervals: dict[str, tuple[float, float | None, float | None, int, str | None]] = {}
    for ids, columns in blocks.items():
        n = len(ids)
        boot = []
        for name, values in columns:
            mean = float(math.fsum(values) / n)
            if not _INTERVALS.get():
                intervals[name] = (mean, None, None, n, None)
            elif n < 2:
                intervals[name] = (mean, None, None, n, "no interval from one example")
            elif name in proportions and bool(np.isin(values, (0.0, 1.0)).all()):
                intervals[name] = (mean, *wilson(int(values.sum()), n), n, "95 % Wilson score interval")
            elif values.min() == values.max():  # exactly, where resampled sums would round
                intervals[name] = (mean, mean, mean, n, "all values are equal")
            else:
                boot.append((name, values, mean))
        if boot:
            lows, highs = _bootstrap(np.column_stack([values for _, values, _ in boot]), resamples, seed)
            how = f"95 % percentile bootstrap over examples, {resamples} resamples, seed {seed}"
            for (name, _, mean), low, high in zip(boot, lows, highs, strict=True):
                intervals[name] = (mean, min(float(low), mean), max(float(high), mean), n, how)
    for name in names:
        if name in intervals:
            mean, lower, upper, n, method = intervals[name]
            metrics.append(
                Metric(
                    name=name,
                    value=mean,
                    low=lower,
                    high=upper,
                    n=n,
                    n_unscored=unscored[name],
                    unit=units.get(name, "fraction"),
                    higher_is_better=higher_is_better.get(name, True),
                    method=method,
                )
            )
    return metrics


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the score interval (fractions, in 0..1) of a proportion; (0, 1) where n is 0.

    Unlike a bootstrap it does not collapse to a point at 0 of n or n of n. Raises ValueError unless
    0 <= successes <= n. Source: Wilson 1927, JASA 22:209-212.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be within 0..n, not {successes} of {n}")
    if n == 0:
        return 0.0, 1.0
    from scipy.special import ndtri  # here, because `ftkit --help` must not wait for scipy

    z = float(ndtri((1 + confidence) / 2))
    p = successes / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the bound is p itself; rounding would put it a hair beside.
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == n else min(1.0, center + half)
    return low, high


def paired_delta(
    a: Mapping[str, float], b: Mapping[str, float], resamples: int = RESAMPLES, seed: int = SEED
) -> PairedDelta:
    """Compare two systems on the examples both have: mean of b - a, its 95 % interval, and a p-value.

    `a` and `b` map example ids to values (from `example_means`). The interval is a paired percentile
    bootstrap (Koehn 2004, EMNLP). The p-value is two-sided, from a paired permutation test: under the
    null hypothesis each difference may have either sign (Fisher 1935; `scipy.stats.permutation_test`
    with `permutation_type="samples"`, which tests hold this against). Up to 13 differences other than 0
    all sign patterns are counted; beyond, `resamples` random ones and the observed one (Phipson & Smyth
    2010), so p is never 0. Values must be finite.
    """
    return paired_deltas([(a, b)], resamples, seed)[0]


def paired_deltas(
    pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]], resamples: int = RESAMPLES, seed: int = SEED
) -> list[PairedDelta]:
    """Return what `paired_delta` says of each pair; pairs with equally many examples share the drawing."""
    found: dict[int, PairedDelta] = {}
    groups: dict[int, list[tuple[int, Floats]]] = {}
    for index, (a, b) in enumerate(pairs):
        ids = sorted(a.keys() & b.keys())
        differences = np.array([b[i] - a[i] for i in ids], dtype=np.float64)
        if ids:
            groups.setdefault(len(ids), []).append((index, differences))
        else:
            found[index] = PairedDelta(None, None, None, None, 0)
    for n, columns in groups.items():
        values = np.column_stack([differences for _, differences in columns])  # (n, pairs)
        p_values = _sign_flip_p(values, resamples, seed)
        lows, highs = _bootstrap(values, resamples, seed) if n > 1 else (values[0], values[0])
        for (index, differences), p, low, high in zip(columns, p_values, lows, highs, strict=True):
            delta = math.fsum(differences) / n
            if n == 1:
                found[index] = PairedDelta(delta, None, None, p, n)
            elif differences.min() == differences.max():  # exactly, where resampled sums would round
                found[index] = PairedDelta(delta, delta, delta, p, n)
            else:
                found[index] = PairedDelta(delta, min(float(low), delta), max(float(high), delta), p, n)
    return [found[index] for index in range(len(pairs))]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for having tested all of them, in the given order, each at most 1.

    Holds the chance of any false "better" at the level, without assuming independence.
    Source: Holm 1979, Scandinavian Journal of Statistics 6:65-70.
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, highest)
    return adjusted


def _block_sizes(total: int, width: int) -> Iterator[int]:
    """Yield how many rows of `width` numbers to draw at a time, `total` rows in all."""
    step = max(1, BLOCK // width)
    for start in range(0, total, step):
        yield min(step, total - start)


def _exactly(values: Floats) -> tuple[Floats, NDArray[np.int_]]:
    """Return `values`, shape (n, k), as whole multiples of 2**-exponent per column, and the exponents, shape (k,).

    They are so small that every sum of n of them stays below 2**52. Such sums are exact, so their last bit does
    not depend on the order of adding, on the number of threads or on the other columns: BLAS may compute them.
    """
    largest = np.abs(values).max(axis=0) * len(values)
    exponents = np.where(largest > 0, 52 - np.frexp(largest)[1], 0)
    return np.rint(np.ldexp(values, exponents)), exponents


def _bootstrap(values: Floats, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """Return the percentile bounds, shape (k,) each, of the column means of `values`, shape (n, k)."""
    n, columns = values.shape
    whole, exponents = _exactly(values)
    rng = np.random.default_rng(seed)
    sums = np.empty((resamples, columns))
    done = 0
    for rows in _block_sizes(resamples, n):
        # How often each example was drawn, (rows, n): one pass counts the draws of all rows at once.
        draws = rng.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
        counts = np.bincount(draws.ravel(), minlength=rows * n).reshape(rows, n)
        sums[done : done + rows] = counts.astype(np.float64) @ whole
        done += rows
    means = np.ldexp(sums, -exponents) / n
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high


def _sign_flip_p(differences: Floats, resamples: int, seed: int) -> list[float]:
    """Return the two-sided p-value of the paired permutation test for each column of `differences`, shape (n, k)."""
    n, columns = differences.shape
    p_values: dict[int, float] = {}
    for column in range(columns):
        nonzero = differences[differences[:, column] != 0, column]  # flipping a 0 changes nothing
        if len(nonzero) <= EXACT_UP_TO:
            p_values[column] = _exact_p(nonzero)
    tested = [column for column in range(columns) if column not in p_values]
    if tested:
        whole, _ = _exactly(differences[:, tested])  # (n, tested)
        totals = whole.sum(axis=0)
        extreme = np.abs(totals) - n  # what was equal before it was rounded to whole numbers counts as equal
        rng = np.random.default_rng(seed)
        as_extreme = np.ones(len(tested))  # the observed signs
        for rows in _block_sizes(resamples, n):
            bits = rng.integers(0, 256, (rows, (n + 7) // 8), dtype=np.uint8)
            flips = np.unpackbits(bits, axis=1, count=n).astype(np.float64)
            as_extreme += np.count_nonzero(np.abs(totals - 2 * (flips @ whole)) >= extreme, axis=0)
        p_values |= dict(zip(tested, (float(p) for p in as_extreme / (resamples + 1)), strict=True))
    return [p_values[column] for column in range(columns)]


def _exact_p(nonzero: Floats) -> float:
    """Return the share of all sign patterns that give a sum as far from 0 as the observed one."""
    n = len(nonzero)
    total = math.fsum(nonzero)
    # Sums that are equal in exact arithmetic count as equal, whatever the order of their rounding.
    extreme = abs(total) - 1e-12 * float(np.abs(nonzero).sum())
    flips = (np.arange(2**n)[:, None] >> np.arange(n)) & 1  # (2**n, n)
    sums = total - 2 * np.einsum("rn,n->r", flips.astype(np.float64), nonzero)
    return float(np.mean(np.abs(sums) >= extreme))
