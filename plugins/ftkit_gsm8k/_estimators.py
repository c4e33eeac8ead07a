"""Estimators over several sampled solutions of one question: pass@k and the majority vote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from math import comb


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the probability that k of n samples, drawn without replacement, include a correct one; c of n are correct.

    Its expectation over the samples is the true pass@k for every k up to n: 1 - C(n-c, k) / C(n, k).
    Raises ValueError unless 1 <= k <= n and 0 <= c <= n: more draws than samples cannot be estimated.
    Source: Chen et al. 2021, arXiv 2107.03374, section 2.1.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} cannot be estimated from {n} samples: k must be within 1..{n}")
    if not 0 <= c <= n:
        raise ValueError(f"{c} correct of {n} samples: c must be within 0..{n}")
    return 1 - comb(n - c, k) / comb(n, k)


def majority(answers: Sequence[Hashable | None], right: Hashable) -> float:
    """Return 1 where the most frequent answer is the right one, 0 where not; t tied answers count 1/t each.

    None (no answer) does not vote; without any vote the result is 0.
    """
    votes = Counter(a for a in answers if a is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    first = [a for a, count in votes.items() if count == most]
    return (right in first) / len(first)


def ks(n: int) -> list[int]:
    """Return the values of k that are reported for n samples: 1, 2, 4, ... and n."""
    return sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | {n})
