"""Intervals and paired tests: how sure a number is, and whether a difference is more than chance.

The unit of every computation is the input: several samples of one example are averaged, and rows that repeat an input
form a cluster, of which only the whole counts as drawn independently. Everything is seeded and independent of the order
of its input, so the same scores give the same numbers. `docs/statistics.md` explains the methods.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .intervals import (
    CONFIDENCE,
    Clustered,
    Floats,
    Interval,
    difference_interval,
    expanded_tail,
    few_units,
    mean_interval,
    ratio_interval,
    wilson,
)
from .records import Example, Metric, Score
from .text import normalise

__all__ = [
    "CONFIDENCE",
    "SEED",
    "PairedDelta",
    "clusters_of",
    "example_means",
    "expanded_tail",
    "few_units",
    "holm",
    "holm_levels",
    "mean_metrics",
    "paired_delta",
    "paired_deltas",
    "paired_interval",
    "ratio_metric",
    "repeated_inputs",
    "wilson",
    "without_intervals",
]

RESAMPLES = 9_999  # with the observed one, p-values come in steps of 1/10,000
SEED = 20_240_229
BLOCK = 1_000_000  # numbers drawn at once
EXACT_UP_TO = 13  # differences: 2**13 sign patterns are fewer than RESAMPLES, so all are tried


_INTERVALS = ContextVar("intervals", default=True)
_CLUSTERS: ContextVar[Mapping[str, str]] = ContextVar("clusters")


@contextlib.contextmanager
def without_intervals() -> Iterator[None]:
    """Let `mean_metrics` give means alone: for a metric that is computed many times, as in training."""
    token = _INTERVALS.set(False)
    try:
        yield
    finally:
        _INTERVALS.reset(token)


# ---------------------------------------------------------------- repeated inputs


def clusters_of(examples: Iterable[Example]) -> dict[str, str]:
    """Return the id of the first example with the same input, for each example whose input occurs more than once.

    The input is the prompt's messages, or `input` where there are none; white space does not count. An example without
    either is alike to no other.
    """
    first: dict[tuple[tuple[str, str], ...], str] = {}
    found: dict[str, str] = {}
    for example in examples:
        key = tuple((m.role, normalise(m.content)) for m in example.messages)
        if not any(text for _, text in key):
            key = (("", normalise(example.input)),)
        if any(text for _, text in key):
            name = first.setdefault(key, example.id)
            if name != example.id:
                found[name] = found[example.id] = name
    return found


@contextlib.contextmanager
def repeated_inputs(examples: Iterable[Example]) -> Iterator[None]:
    """Let the functions of this module treat examples with the same input as one unit: see `clusters_of`.

    `score_all` does so around `Evaluator.aggregate`, so that an evaluator need not.
    """
    token = _CLUSTERS.set(clusters_of(examples) if _INTERVALS.get() else {})
    try:
        yield
    finally:
        _CLUSTERS.reset(token)


def _names(ids: Sequence[str], clusters: Mapping[str, str] | None) -> list[str]:
    clusters = _CLUSTERS.get({}) if clusters is None else clusters
    return [clusters.get(i, i) for i in ids]


# ---------------------------------------------------------------- metrics


def example_means(scores: Sequence[Score], name: str) -> dict[str, float]:
    """Return each example's value of one metric, averaged over its samples: the input of `paired_delta`.

    Unscored samples, samples without that value and values that are not finite are left out.
    """
    means: dict[str, float] = {}
    several: dict[str, list[float]] = {}  # kept apart: a list for each of many examples takes longer than all the rest
    for score in scores:
        value = None if score.values is None else score.values.get(name)
        if value is not None and math.isfinite(value):
            if score.example_id not in means:
                means[score.example_id] = float(value)
            else:
                several.setdefault(score.example_id, [means[score.example_id]]).append(float(value))
    for example_id, values in several.items():
        means[example_id] = math.fsum(values) / len(values)
    return means


def mean_metrics(
    scores: Sequence[Score],
    units: Mapping[str, str] | None = None,
    higher_is_better: Mapping[str, bool | None] | None = None,
) -> list[Metric]:
    """Return one Metric per value name: the mean over examples with its 95 % interval.

    `units` and `higher_is_better` are by metric name (default "fraction" and True). `Metric.method` says which interval
    it is: Wilson's where every value is 0 or 1, else Student's t corrected for skewness; none with fewer than two inputs.
    An example is unscored for a metric if no sample has `values`, or if a value is not finite; one whose `values`
    merely lack the name has no such metric and is not counted. A name without any value gives no Metric.
    """
    units, higher_is_better = units or {}, higher_is_better or {}
    names = list(dict.fromkeys(name for score in scores for name in score.values or ()))
    scored = {score.example_id for score in scores if score.values is not None}
    failed = {score.example_id for score in scores} - scored
    metrics = []
    for name in names:
        means = example_means(scores, name)
        with_name = {score.example_id for score in scores if score.values is not None and name in score.values}
        if means:
            metrics.append(
                _metric(
                    name,
                    means,
                    None,
                    len(failed) + len(with_name - means.keys()),
                    units.get(name, "fraction"),
                    higher_is_better.get(name, True),
                )
            )
    return metrics


def ratio_metric(
    name: str, parts: Mapping[str, tuple[float, float]], n_unscored: int = 0, higher_is_better: bool | None = True
) -> Metric | None:
    """Return the share of parts that count, such as right steps of all steps, with its 95 % interval; None without parts.

    `parts` maps an example id to (how many count, how many there are). Parts of one example are not independent: the
    unit is the example. `n` counts the examples that have parts.
    """
    found = {i: (count, total) for i, (count, total) in parts.items() if total}
    if not found:
        return None
    counts, totals = ({i: float(pair[part]) for i, pair in found.items()} for part in (0, 1))
    return _metric(name, counts, totals, n_unscored, "fraction", higher_is_better)


def _metric(
    name: str,
    by_id: Mapping[str, float],
    totals: Mapping[str, float] | None,
    n_unscored: int,
    unit: str,
    higher_is_better: bool | None,
) -> Metric:
    """Return the mean of values by example id; with `totals`, the sum of the values over the sum of the totals."""
    ids = sorted(by_id)
    values, weights = [by_id[i] for i in ids], [1.0 if totals is None else totals[i] for i in ids]
    found, n_inputs = Interval(None, None, None), None
    if _INTERVALS.get():
        data = Clustered(values, weights, _names(ids, None))
        found = mean_interval(data, unit == "fraction") if totals is None else ratio_interval(data)
        n_inputs = data.n if data.n < len(ids) else None
    return Metric(
        name,
        math.fsum(values) / math.fsum(weights),
        found.low,
        found.high,
        len(ids),
        n_unscored,
        unit,
        higher_is_better,
        found.method,
        n_inputs,
        found.caution,
    )


# ---------------------------------------------------------------- paired differences


class PairedDelta(NamedTuple):
    """`delta` is the mean of b - a over `n` common examples, in the metric's unit, with its interval `low`..`high`.

    None where there is nothing to say: `delta` and `p_value` with no pair, the interval with fewer than two inputs.
    `n_inputs` counts the different inputs where some repeat. `method` and `caution` speak of the interval.
    """

    delta: float | None
    low: float | None
    high: float | None
    p_value: float | None
    n: int
    n_inputs: int | None = None
    method: str | None = None
    caution: str | None = None


def paired_delta(
    a: Mapping[str, float],
    b: Mapping[str, float],
    unit: str = "",
    clusters: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> PairedDelta:
    """Compare two systems on the examples both have: mean of b - a, its 95 % interval, and a p-value.

    `a` and `b` map example ids to values (from `example_means`). `unit` "fraction" says that values are within 0..1.
    `clusters` are from `clusters_of`. The interval is Newcombe's where every value is 0 or 1, else Student's t of the
    differences. The p-value is two-sided, from a paired permutation test: under the null hypothesis each input's
    difference may have either sign (Fisher 1935; `scipy.stats.permutation_test` with `permutation_type="samples"`, which
    tests hold this against). Up to 13 differences other than 0 all sign patterns are counted; beyond, `resamples`
    random ones and the observed one (Phipson & Smyth 2010), so p is never 0. Values must be finite.
    """
    return paired_deltas([(a, b)], [unit], clusters, resamples, seed)[0]


def paired_deltas(
    pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]],
    units: Sequence[str] | None = None,
    clusters: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> list[PairedDelta]:
    """Return what `paired_delta` says of each pair; pairs with equally many inputs share the drawing."""
    units = units or [""] * len(pairs)
    sums: list[Floats] = []
    groups: dict[int, list[int]] = {}
    for index, (a, b) in enumerate(pairs):
        ids = sorted(a.keys() & b.keys())
        differences = [b[i] - a[i] for i in ids]
        sums.append(Clustered(differences, [1.0] * len(ids), _names(ids, clusters)).sums if ids else np.zeros(0))
        groups.setdefault(len(sums[-1]), []).append(index)
    p_values: dict[int, float] = {}
    for n, indices in groups.items():
        if n:
            columns = np.column_stack([sums[i] for i in indices])  # (n, pairs)
            p_values |= dict(zip(indices, _sign_flip_p(columns, resamples, seed), strict=True))
    found = []
    for index, ((a, b), unit) in enumerate(zip(pairs, units, strict=True)):
        ids = sorted(a.keys() & b.keys())
        if not ids:
            found.append(PairedDelta(None, None, None, None, 0))
            continue
        interval = paired_interval(a, b, unit, clusters)
        delta = math.fsum(b[i] - a[i] for i in ids) / len(ids)
        n_inputs = len(sums[index]) if len(sums[index]) < len(ids) else None
        found.append(
            PairedDelta(
                delta,
                interval.low,
                interval.high,
                p_values[index],
                len(ids),
                n_inputs,
                interval.method,
                interval.caution,
            )
        )
    return found


def paired_interval(
    a: Mapping[str, float],
    b: Mapping[str, float],
    unit: str = "",
    clusters: Mapping[str, str] | None = None,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return the interval that `paired_delta` gives, at another confidence."""
    ids = sorted(a.keys() & b.keys())
    return difference_interval(
        [a[i] for i in ids], [b[i] for i in ids], _names(ids, clusters), unit == "fraction", confidence
    )


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


def holm_levels(p_values: Sequence[float], level: float = 1 - CONFIDENCE) -> list[float]:
    """Return the level at which Holm's procedure tests each p-value: `holm` is below `level` where p is below it.

    The smallest of m p-values is tested at level / m, the next at level / (m - 1), and so on. The procedure stops at the
    first that is not below: all that follow are held against the level of that one.
    """
    levels = [level] * len(p_values)
    stopped: float | None = None
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        levels[index] = stopped if stopped is not None else level / (len(p_values) - rank)
        if stopped is None and p_values[index] >= levels[index]:
            stopped = levels[index]
    return levels


# ---------------------------------------------------------------- the permutation test


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
