"""Intervals and tests against scipy, brute force, published tables and simulation."""

from __future__ import annotations

import itertools
import json
import math
import tracemalloc

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit.records import Score
from ftkit.stats import example_means, holm, mean_metrics, paired_delta, paired_deltas, wilson

values = st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=2, max_size=30)


def scores_of(column, name="m"):
    return [Score(f"e{i}", {name: float(v)}) for i, v in enumerate(column)]


def by_id(column):
    return {f"e{i}": float(v) for i, v in enumerate(column)}


# ---------------------------------------------------------------- mean_metrics


def test_interval_agrees_with_scipy():
    column = np.random.default_rng(1).beta(2, 5, 120)
    [metric] = mean_metrics(scores_of(column))
    peer = scipy.stats.bootstrap((column,), np.mean, method="percentile", n_resamples=9_999, rng=7)
    assert metric.value == pytest.approx(column.mean(), abs=1e-12)
    assert metric.low == pytest.approx(peer.confidence_interval.low, abs=0.002)
    assert metric.high == pytest.approx(peer.confidence_interval.high, abs=0.002)
    assert metric.n == 120 and "bootstrap" in metric.method and "9999 resamples" in metric.method


@settings(max_examples=30, deadline=None)
@given(values)
def test_interval_contains_mean_and_is_json(column):
    [metric] = mean_metrics(scores_of(column), resamples=200)
    assert metric.low <= metric.value <= metric.high
    json.dumps(metric.to_dict(), allow_nan=False)


def test_interval_covers_the_true_mean():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        [metric] = mean_metrics(scores_of(rng.beta(2, 5, 60)), resamples=999)
        hits += metric.low <= 2 / 7 <= metric.high
    assert 0.91 <= hits / 300 <= 0.98  # 0.95, three standard errors of the simulation


def test_few_and_equal_values():
    assert mean_metrics([]) == []
    [one] = mean_metrics(scores_of([0.3]))
    assert (one.value, one.low, one.high, one.n) == (0.3, None, None, 1)
    [constant] = mean_metrics(scores_of([0.1] * 7))
    assert (constant.value, constant.low, constant.high) == (0.1, 0.1, 0.1)


def test_unscored_is_not_zero_and_absent_is_not_unscored():
    scores = [
        Score("a", {"x": 1.0, "slot": 1.0}),
        Score("b", {"x": 0.0}),  # the slot was not asked of it
        Score("c", None),
        Score("d", {"x": math.nan}),
    ]
    x, slot = mean_metrics(scores)
    assert (x.value, x.n, x.n_unscored) == (0.5, 2, 2)
    assert (slot.value, slot.n, slot.n_unscored) == (1.0, 1, 1)


def test_samples_are_averaged_within_their_example():
    scores = [Score("a", {"x": 1.0}, 0), Score("a", {"x": 0.0}, 1), Score("a", None, 2), Score("b", {"x": 1.0}, 0)]
    assert example_means(scores, "x") == {"a": 0.5, "b": 1.0}
    [metric] = mean_metrics(scores, proportions={"x"})
    assert (metric.value, metric.n, metric.n_unscored) == (0.75, 2, 0)
    assert "bootstrap" in metric.method  # 0.5 is no longer a success or a failure


def test_metrics_do_not_depend_on_order_or_company():
    rng = np.random.default_rng(2)
    scores = [Score(f"e{i}", {"x": float(rng.random()), "y": float(rng.random())}) for i in range(50)]
    x, y = mean_metrics(scores, {"y": "words"}, {"y": None})
    assert (y.unit, y.higher_is_better, x.unit, x.higher_is_better) == ("words", None, "fraction", True)
    alone = mean_metrics([Score(s.example_id, {"x": s.values["x"]}) for s in reversed(scores)])
    assert alone == [x]


# ---------------------------------------------------------------- wilson


def test_wilson_agrees_with_scipy():
    for k, n in [(0, 10), (3, 10), (81, 263), (10, 10), (199, 200)]:
        peer = scipy.stats.binomtest(k, n).proportion_ci(0.95, "wilson")
        assert wilson(k, n) == pytest.approx((peer.low, peer.high), abs=1e-12)
    # Newcombe 1998, Statistics in Medicine 17:857-872, table I
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError):
        wilson(3, 2)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_within_0_and_1_around_the_share(k_n):
    k, n = k_n
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1 and low < high


def test_proportions_get_wilson():
    [metric] = mean_metrics(scores_of([1] * 20), proportions={"m"})
    assert (metric.low, metric.high) == wilson(20, 20) and metric.low < 0.9
    assert "Wilson" in metric.method


# ---------------------------------------------------------------- paired_delta


def brute_force(differences):
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in signs_of(len(differences))]
    return sum(s >= abs(sum(differences)) for s in sums) / len(sums)


def signs_of(n):
    return itertools.product((1, -1), repeat=n)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=8))
def test_p_value_against_brute_force(differences):
    result = paired_delta(by_id([0] * len(differences)), by_id(differences), resamples=100)
    assert result.p_value == pytest.approx(brute_force(differences), abs=1e-12)


@pytest.mark.parametrize("n", [9, 60])
def test_p_value_against_scipy(n):
    rng = np.random.default_rng(n)
    a, b = rng.random(n), rng.random(n) + 0.08
    peer = scipy.stats.permutation_test(
        (a, b), lambda x, y, axis: (y - x).mean(axis=axis), permutation_type="samples", vectorized=True, rng=1
    )
    result = paired_delta(by_id(a), by_id(b))
    assert result.delta == pytest.approx((b - a).mean(), abs=1e-12)
    assert result.p_value == pytest.approx(peer.pvalue, abs=0.015 if n > 13 else 1e-12)


def test_p_value_is_uniform_without_an_effect():
    rng = np.random.default_rng(3)
    ps = [paired_delta(by_id(rng.random(30)), by_id(rng.random(30)), resamples=499).p_value for _ in range(300)]
    assert scipy.stats.kstest(ps, "uniform").pvalue > 0.01
    assert min(ps) >= 1 / 500


def test_only_common_examples_and_the_direction():
    result = paired_delta({"a": 0.0, "b": 0.0, "c": 9.0}, {"b": 0.5, "a": 0.3, "d": -9.0})
    assert result.delta == pytest.approx(0.4) and result.n == 2
    assert result.low == pytest.approx(0.3) and result.high == pytest.approx(0.5)
    assert result.p_value == 0.5


def test_delta_of_nothing_one_and_equal():
    assert paired_delta({"a": 1.0}, {"b": 1.0}) == (None, None, None, None, 0)
    assert paired_delta({"a": 1.0}, {"a": 2.0}) == (1.0, None, None, 1.0, 1)
    same = by_id(np.linspace(0, 1, 20))
    assert paired_delta(same, same) == (0.0, 0.0, 0.0, 1.0, 20)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=25), st.randoms())
def test_delta_properties(pairs, random):
    a, b = by_id([x for x, _ in pairs]), by_id([y for _, y in pairs])
    result = paired_delta(a, b, resamples=200)
    assert result.low <= result.delta <= result.high and 0 < result.p_value <= 1
    ids = list(a)
    random.shuffle(ids)
    assert paired_delta({i: a[i] for i in ids}, b, resamples=200) == result


@pytest.mark.parametrize("n", [5, 40])
def test_pairs_compared_together_say_what_each_says_alone(n):
    """The drawing is shared, and a column's sums do not depend on its company: equal to the last bit."""
    rng = np.random.default_rng(n)
    pairs = [(by_id(rng.random(n)), by_id(rng.random(n) * scale)) for scale in (1, 1e-9, 1e6)]
    pairs += [(by_id([0.5] * n), by_id([0.75] * n)), (by_id(rng.random(n)), by_id(rng.random(n + 9))), ({}, {"a": 1.0})]
    assert paired_deltas(pairs) == [paired_delta(a, b) for a, b in pairs]


def test_sums_that_tie_in_exact_arithmetic_tie():
    """0.1 + 0.2 - 0.3 is not 0 in floating point, and neither is it after rounding to whole multiples."""
    column = [0.1, 0.2, -0.3] * 6 + [0.0] * 30
    assert paired_delta(by_id([0] * len(column)), by_id(column)).p_value == 1.0


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-200, 1e200), st.integers(2, 40))
def test_scale_does_not_matter(scale, n):
    column = np.random.default_rng(n).normal(0.2, 1, n)
    one, other = (paired_delta(by_id([0] * n), by_id(column * s), resamples=300) for s in (1.0, scale))
    assert other.p_value == one.p_value
    assert (other.low, other.high) == pytest.approx((one.low * scale, one.high * scale), rel=1e-9)


def test_15000_pairs_take_little_memory():
    rng = np.random.default_rng(5)
    a, b = by_id(rng.random(15_000)), by_id(rng.random(15_000))
    scores = [Score(i, {"w": a[i], "x": b[i], "y": a[i] * b[i], "z": a[i] - b[i]}) for i in a]
    tracemalloc.start()
    mean_metrics(scores, resamples=300)
    paired_deltas([(a, b)] * 20, resamples=300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


# ---------------------------------------------------------------- holm


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # R: p.adjust(p, "holm")
    assert holm([]) == []
    assert holm([0.2]) == [0.2]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), max_size=10))
def test_holm_never_lowers_and_keeps_the_order(ps):
    adjusted = holm(ps)
    assert all(p <= q <= 1 for p, q in zip(ps, adjusted, strict=True))
    by_p = sorted(range(len(ps)), key=lambda i: ps[i])
    assert [adjusted[i] for i in by_p] == sorted(adjusted)
