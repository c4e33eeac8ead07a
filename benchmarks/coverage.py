"""How often the intervals of ftkit hold the truth, by simulation: the table of docs/statistics.md.

    python benchmarks/coverage.py [--simulations 2000] [--seed 1]

Each cell draws that many samples of n examples from a distribution whose mean is known, and counts how often the 95 %
interval holds it. The last table counts how often the p-value and the interval of a paired difference disagree.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ftkit.intervals import Clustered, Interval, difference_interval, mean_interval, ratio_interval
from ftkit.stats import paired_deltas

SIZES = (5, 10, 20, 50, 200, 1000)
Floats = NDArray[np.float64]
Rng = np.random.Generator
Draw = Callable[[Rng, int], tuple[Interval, float]]  # an interval from n examples, and the true value


# ---------------------------------------------------------------- distributions


def rouge(rng: Rng, n: int) -> Floats:
    return rng.beta(2, 5, n)


def with_zeros(rng: Rng, n: int, zeros: float = 0.6) -> Floats:
    return np.where(rng.random(n) < zeros, 0.0, rng.beta(2, 4, n))


def mean(draw: Callable[[Rng, int], Floats], truth: float, fraction: bool = True) -> Draw:
    def one(rng: Rng, n: int) -> tuple[Interval, float]:
        return mean_interval(_alone(draw(rng, n)), fraction), truth

    return one


def share(rate: float) -> Draw:
    return mean(lambda rng, n: (rng.random(n) < rate).astype(float), rate)


def any_share(rng: Rng, n: int) -> tuple[Interval, float]:
    rate = rng.uniform(0.02, 0.98)
    return mean_interval(_alone((rng.random(n) < rate).astype(float)), True), rate


def repeated(rng: Rng, n: int) -> tuple[Interval, float]:
    """Rows of which each input occurs four times, with nearly the same value."""
    values = np.clip(np.repeat(rng.beta(2, 5, n), 4) + rng.normal(0, 0.01, 4 * n), 0, 1)
    names = [str(i // 4) for i in range(4 * n)]
    return mean_interval(Clustered(list(values), [1.0] * (4 * n), names), True), 2 / 7


def repeated_share(rng: Rng, n: int) -> tuple[Interval, float]:
    """The same of 0/1 values: all four copies agree."""
    values = np.repeat((rng.random(n) < 0.3).astype(float), 4)
    return mean_interval(Clustered(list(values), [1.0] * (4 * n), [str(i // 4) for i in range(4 * n)]), True), 0.3


def steps(rng: Rng, n: int) -> tuple[Interval, float]:
    """Right steps of all steps: two to eight per answer, and answers differ in how often a step is right."""
    totals = rng.integers(2, 9, n)
    right = rng.binomial(totals, rng.beta(9, 1, n))
    return ratio_interval(Clustered(list(right), list(totals), [str(i) for i in range(n)])), 0.9


def difference(first: Callable[[Rng, int], tuple[Floats, Floats]], truth: float, fraction: bool = True) -> Draw:
    def one(rng: Rng, n: int) -> tuple[Interval, float]:
        a, b = first(rng, n)
        return difference_interval(list(a), list(b), [str(i) for i in range(n)], fraction), truth

    return one


def rouge_pair(rng: Rng, n: int) -> tuple[Floats, Floats]:
    """Two systems whose scores are correlated by the example: means 0.25 and 0.32."""
    hard = rng.beta(2, 5, n)
    return hard * rng.beta(7, 1, n), hard + (1 - hard) * rng.beta(1, 20, n)


ROUGE_TRUTH = 2 / 7 + (5 / 7) / 21 - (2 / 7) * (7 / 8)


def zeros_pair(rng: Rng, n: int) -> tuple[Floats, Floats]:
    return with_zeros(rng, n, 0.7), with_zeros(rng, n, 0.5)


def some_change(rng: Rng, n: int) -> tuple[Floats, Floats]:
    """Seven of ten answers stay as they were."""
    a = rng.beta(2, 5, n)
    return a, np.where(rng.random(n) < 0.7, a, rng.beta(2, 5, n))


def binary_pair(up: float, down: float) -> Callable[[Rng, int], tuple[Floats, Floats]]:
    """`up` of the answers become right, `down` become wrong; of the rest, half are right."""

    def draw(rng: Rng, n: int) -> tuple[Floats, Floats]:
        kind = rng.random(n)
        a = (rng.random(n) < 0.5).astype(float)
        a = np.where(kind < up, 0.0, np.where(kind < up + down, 1.0, a))
        return a, np.where(kind < up, 1.0, np.where(kind < up + down, 0.0, a))

    return draw


MEANS: dict[str, Draw] = {
    "ROUGE-like, Beta(2, 5)": mean(rouge, 2 / 7),
    "skewed, 40 % zeros": mean(lambda rng, n: with_zeros(rng, n, 0.4), 0.6 / 3),
    "skewed, 60 % zeros": mean(with_zeros, 0.4 / 3),
    "skewed, 80 % zeros": mean(lambda rng, n: with_zeros(rng, n, 0.8), 0.2 / 3),
    "lognormal, sigma 1": mean(lambda rng, n: rng.lognormal(0, 1, n), math.exp(0.5), fraction=False),
    "0/1, rate 0.5": share(0.5),
    "0/1, rate 0.7": share(0.7),
    "0/1, rate 0.9": share(0.9),
    "0/1, rate 0.02": share(0.02),
    "0/1, any rate 0.02 to 0.98": any_share,
    "n inputs, four rows each, ROUGE-like": repeated,
    "n inputs, four rows each, 0/1": repeated_share,
    "share of steps, n answers": steps,
}
DIFFERENCES: dict[str, Draw] = {
    "ROUGE-like, +7 points": difference(rouge_pair, ROUGE_TRUTH),
    "skewed with zeros, +7 points": difference(zeros_pair, 0.2 / 3),
    "ROUGE-like, 70 % of the answers unchanged": difference(some_change, 0.0),
    "lognormal ratio": difference(lambda rng, n: (rng.lognormal(0, 0.5, n), rng.lognormal(0, 0.5, n)), 0.0, False),
    "0/1, +30 points": difference(binary_pair(0.4, 0.1), 0.3),
    "0/1, +10 points": difference(binary_pair(0.2, 0.1), 0.1),
    "0/1, +1 point, 3 % of the answers change": difference(binary_pair(0.02, 0.01), 0.01),
    "0/1, no difference, 20 % change": difference(binary_pair(0.1, 0.1), 0.0),
}


def _alone(values: Floats) -> Clustered:
    return Clustered(list(values), [1.0] * len(values), [str(i) for i in range(len(values))])


# ---------------------------------------------------------------- counting


def coverage(draw: Draw, n: int, simulations: int, seed: int) -> tuple[float, float]:
    """Return the share of intervals that hold the truth, and the share of samples that got a caution."""
    rng = np.random.default_rng([seed, n])
    hits = cautions = given = 0
    for _ in range(simulations):
        found, truth = draw(rng, n)
        cautions += found.caution is not None
        if found.low is not None and found.high is not None:
            given += 1
            assert found.low < found.high, "an interval without width"
            hits += found.low <= truth <= found.high
    return hits / given, cautions / simulations


def disagreement(draw: Callable[[Rng, int], tuple[Floats, Floats]], n: int, simulations: int, seed: int) -> list[float]:
    """Return how often p < 0.05, the interval is without 0, and just one of the two."""
    rng = np.random.default_rng([seed, n])
    pairs = []
    for _ in range(simulations):
        a, b = draw(rng, n)
        pairs.append(tuple({str(i): float(v) for i, v in enumerate(side)} for side in (a, b)))
    counts = [0, 0, 0, 0]
    for found in paired_deltas(pairs, ["fraction"] * len(pairs)):
        low, high, p = found.low, found.high, found.p_value
        by_p, by_interval = p is not None and p < 0.05, low is not None and high is not None and not low <= 0 <= high
        for i, yes in enumerate((by_p, by_interval, by_p and not by_interval, by_interval and not by_p)):
            counts[i] += yes
    return [count / simulations for count in counts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    error = 100 * math.sqrt(0.95 * 0.05 / options.simulations)
    print(
        f"{options.simulations:,} simulations per cell, seed {options.seed}: a cell is right to about ±{2 * error:.1f}\n"
    )
    for title, draws in (("Intervals of one value", MEANS), ("Intervals of a paired difference", DIFFERENCES)):
        print(f"| {title} |" + "".join(f" n={n} |" for n in SIZES))
        print("|---|" + "--:|" * len(SIZES))
        for name, draw in draws.items():
            cells = []
            for n in SIZES:
                held, cautions = coverage(draw, n, options.simulations, options.seed)
                cells.append(f" {100 * held:.1f}{'*' if cautions > 0.5 else ''} |")
            print(f"| {name} |" + "".join(cells), flush=True)
        print()
    print("| Paired test and interval | n | p < 0.05 | interval without 0 | only p | only the interval |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, pair in (
        ("ROUGE-like, no difference", lambda rng, n: (rouge(rng, n), rouge(rng, n))),
        ("ROUGE-like, 70 % unchanged", some_change),
        ("skewed with zeros, +7 points", zeros_pair),
        ("0/1, no difference, 20 % change", binary_pair(0.1, 0.1)),
        ("0/1, +10 points, 30 % change", binary_pair(0.2, 0.1)),
    ):
        for n in (20, 50, 200):
            cells = [f" {100 * x:.1f} |" for x in disagreement(pair, n, options.simulations // 2, options.seed)]
            print(f"| {name} | {n} |" + "".join(cells), flush=True)
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
