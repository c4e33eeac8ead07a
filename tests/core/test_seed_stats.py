"""The interval over training seeds and rows: does it hold its level, and is it what textbooks say where it must be."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from ftkit.report.seed_stats import seed_interval


def noise(k: int, n: int, rng: np.random.Generator, seed_sd: float = 0.1) -> np.ndarray:
    return np.asarray(rng.normal(0, seed_sd, (k, 1)) + rng.normal(0, 0.3, (1, n)) + rng.normal(0, 0.3, (k, n)))


@pytest.mark.parametrize(("k", "seed_sd"), [(2, 0.0), (2, 0.1), (3, 0.1), (5, 0.02), (10, 0.1)])
def test_the_interval_holds_its_level(k: int, seed_sd: float) -> None:
    rng = np.random.default_rng(k)
    rows = rng.normal(0.5, 0.3, 120)
    outside = 0
    for _ in range(600):
        a, b = (rows + noise(k, 120, rng, seed_sd) for _ in range(2))
        found = seed_interval(a, b)
        outside += not found.low <= 0 <= found.high
    assert outside / 600 <= 0.06


@pytest.mark.parametrize("k", [2, 5])
def test_p_and_interval_agree(k: int) -> None:
    rng = np.random.default_rng(0)
    for shift in np.linspace(0, 1.2, 40):
        a, b = noise(k, 50, rng), noise(3, 50, rng) + shift
        found = seed_interval(a, b)
        assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)
        exact = seed_interval(a, b, confidence=1 - found.p_value)
        assert min(abs(exact.low), abs(exact.high)) < 1e-6 * max(1, abs(found.delta))


def test_without_seed_noise_it_is_students_interval_and_without_row_noise_welchs() -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(0, 1, 40)
    found = seed_interval(np.zeros((1, 40)), rows[None])
    known = scipy_stats.ttest_1samp(rows, 0)
    assert found.p_value == pytest.approx(known.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval()))
    a, b = (np.repeat(rng.normal(m, 1, (k, 1)), 7, axis=1) for m, k in ((0.0, 4), (2.0, 3)))
    found = seed_interval(a, b)
    welch = scipy_stats.ttest_ind(b[:, 0], a[:, 0], equal_var=False)
    assert found.p_value == pytest.approx(welch.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(welch.confidence_interval()))


def test_nothing_varies() -> None:
    found = seed_interval(None, np.full((3, 5), 0.5))
    assert found[:3] == (0.5, 0.5, 0.5) and seed_interval(np.ones((2, 4)), np.ones((2, 4))).p_value == 1
