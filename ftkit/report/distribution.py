"""The primary metric row by row: a histogram of each system, and the gain of each row."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence

from ..records import Delta, Distribution
from .measured import Measured
from .seeds import parts

BINS = 20
HIGH = 0.8  # a fraction from here on looks like a right answer


def distribution_of(measured: Sequence[Measured], head: Delta | None) -> Distribution | None:
    """Return how the rows are spread, and what each gained in the difference that the headline speaks of."""
    if head is None:
        return None
    by_name = {m.system.name: m for m in measured}
    a, b = by_name[head.from_], by_name[head.to]
    before, after = a.means(head.metric), b.means(head.metric)
    ids = [i for i in before if i in after]
    if not ids:
        return None
    values = {m.system.name: list(m.means(head.metric).values()) for m in measured if m.system.role != "extra"}
    edges = bins([v for found in values.values() for v in found], head.unit)
    sign = -1 if b.system.metrics[head.metric].higher_is_better is False else 1
    second = _strictest(a, b, head.metric)
    right = b.means(second) if second else {}
    gains = {i: after[i] - before[i] for i in ids}
    fulfilled = {i: right[i] >= 1 for i in ids if i in right}
    order = sorted(ids, key=lambda i: -sign * gains[i])
    looks_right = head.unit == "fraction" and not _is_yes_or_no(b, head.metric)
    high = HIGH if looks_right and second else None
    return Distribution(
        metric=head.metric,
        from_=head.from_,
        to=head.to,
        edges=tuple(edges),
        counts={name: tuple(counts(found, edges)) for name, found in values.items() if found},
        gains=tuple({"id": i, "gain": gains[i], "right": fulfilled.get(i)} for i in order),
        n_better=sum(sign * g > 0 for g in gains.values()),
        n_same=sum(g == 0 for g in gains.values()),
        n_worse=sum(sign * g < 0 for g in gains.values()),
        second=second,
        n_right=sum(fulfilled.values()),
        n_second=len(fulfilled),
        high=high,
        n_high_wrong=sum(not ok and high is not None and after[i] >= high for i, ok in fulfilled.items()),
    )


def bins(values: Sequence[float], unit: str) -> list[float]:
    """Return the borders of about 20 bins; of fractions within 0..1 always the same, so that reports compare."""
    low, high = min(values), max(values)
    if unit == "fraction" and low >= 0 and high <= 1:
        return [i / BINS for i in range(BINS + 1)]
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / BINS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((power * m for m in (1, 2, 5) if power * m >= raw), power * 10)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def counts(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    """Return how many values lie in each bin; the last one holds its upper border."""
    found = [0] * (len(edges) - 1)
    for value in values:
        found[min(max(bisect_right(edges, value + 1e-12) - 1, 0), len(found) - 1)] += 1
    return found


def _strictest(a: Measured, b: Measured, primary: str) -> str:
    """Return the yes-or-no metric beside the primary one that the fewest rows fulfil; "" where there is none.

    Rows that every requirement must hold for ("all facts are right") say what is still wrong with a high score.
    """
    found = {
        name: values
        for name, metric in b.system.metrics.items()
        if name != primary and metric.unit == "fraction" and metric.higher_is_better and (values := b.means(name))
        if _is_yes_or_no(a, name) and _is_yes_or_no(b, name)
    }
    return min(found, key=lambda name: sum(found[name].values()) / len(found[name]), default="")


def _is_yes_or_no(m: Measured, name: str) -> bool:
    each: list[Mapping[str, float]] = [part.means(name) for part in parts(m)]
    return all(v in (0.0, 1.0) for values in each for v in values.values())
