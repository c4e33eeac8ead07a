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

from ftkit.intervals import Clustered, newcombe, student
from ftkit.records import Example, Message, Score
from ftkit.stats import (
    clusters_of,
    example_means,
    holm,
    holm_levels,
    mean_metrics,
    paired_delta,
    paired_deltas,
    paired_interval,
    ratio_metric,
    repeated_inputs,
    wilson,
)

values = st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=2, max_size=30)


def scores_of(column, name="m"):
    return [Score(f"e{i}", {name: float(v)}) for i, v in enumerate(column)]


def by_id(column):
    return {f"e{i}": float(v) for i, v in enumerate(column)}


# ---------------------------------------------------------------- mean_metrics


def test_interval_agrees_with_scipy():
    column = np.random.default_rng(1).beta(2, 5, 120)
    [metric] = mean_metrics(scores_of(column))
    peer = scipy.stats.bootstrap((column,), np.mean, method="BCa", n_resamples=9_999, rng=7)  # corrects skewness too
    assert metric.value == pytest.approx(column.mean(), abs=1e-12)
    assert metric.low == pytest.approx(peer.confidence_interval.low, abs=0.002)
    assert metric.high == pytest.approx(peer.confidence_interval.high, abs=0.002)
    assert metric.n == 120 and metric.method.startswith("95 % Student's t") and metric.caution is None


def test_without_skewness_the_interval_is_students():
    column = [0.1, 0.2, 0.3, 0.4, 0.5]
    peer = scipy.stats.ttest_1samp(column, 0).confidence_interval(0.95)
    for skewed in (True, False):
        assert student(np.array(column), 0.95, skewed) == pytest.approx((peer.low, peer.high), abs=1e-12)
    peer = scipy.stats.ttest_1samp([*column, 0.9], 0).confidence_interval(0.99)
    assert student(np.array([*column, 0.9]), 0.99) == pytest.approx((peer.low, peer.high), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(values)
def test_interval_contains_mean_and_is_json(column):
    [metric] = mean_metrics(scores_of(column), {"m": "words"})
    if metric.low is None:
        assert metric.method == "no interval: all values are equal" and len(set(column)) == 1
    else:
        assert metric.low <= metric.value <= metric.high and metric.low < metric.high
    json.dumps(metric.to_dict(), allow_nan=False)


def rouge_like(rng, n):
    return rng.beta(2, 5, n)


def with_zeros(rng, n):
    return np.where(rng.random(n) < 0.6, 0.0, rng.beta(2, 4, n))


@pytest.mark.parametrize("n", [20, 60])
@pytest.mark.parametrize(("draw", "truth"), [(rouge_like, 2 / 7), (with_zeros, 0.4 / 3)])
def test_intervals_of_means_cover(draw, truth, n):
    """benchmarks/coverage.py has the whole table."""
    rng = np.random.default_rng(n)
    hits = 0
    for _ in range(1000):
        [metric] = mean_metrics(scores_of(draw(rng, n)))
        hits += metric.low <= truth <= metric.high
    assert 0.93 <= hits / 1000 <= 0.97


@pytest.mark.parametrize(("n", "least"), [(50, 0.94), (200, 0.93)])
def test_the_interval_of_a_small_paired_binary_change_covers(n, least):
    """The percentile bootstrap covered 38 % here: most samples hold no change at all."""
    rng = np.random.default_rng(n)
    hits = 0
    for _ in range(1000):
        kind = rng.random(n)
        a = np.where(kind < 0.5, 1.0, 0.0)
        b = np.where(kind > 0.99, 1.0, a)
        found = paired_interval(by_id(a), by_id(b), "fraction")
        hits += found.low <= 0.01 <= found.high
    assert hits / 1000 >= least


def test_intervals_of_paired_differences_cover():
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(1000):
        a, b = with_zeros(rng, 30), rouge_like(rng, 30)
        found = paired_interval(by_id(a), by_id(b), "fraction")
        hits += found.low <= 2 / 7 - 0.4 / 3 <= found.high
    assert 0.93 <= hits / 1000 <= 0.97


def test_few_and_equal_values():
    assert mean_metrics([]) == []
    [one] = mean_metrics(scores_of([0.3]))
    assert (one.value, one.low, one.high, one.n) == (0.3, None, None, 1)
    unseen = wilson(0, 7)[1]  # so frequent may values be that were not drawn, and they are 0 or 1 at worst
    [constant] = mean_metrics(scores_of([0.1] * 7))
    assert constant.value == pytest.approx(0.1) and "all values are equal" in constant.method
    assert (constant.low, constant.high) == pytest.approx((0.1 - unseen * 0.1, 0.1 + unseen * 0.9))
    [words] = mean_metrics(scores_of([9.0] * 7), {"m": "words"})  # without bounds, nothing can be said
    assert (words.value, words.low, words.high) == (9.0, None, None) and "all values are equal" in words.method


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3, 1 / 3])
@pytest.mark.parametrize("n", [2, 5, 200])
def test_no_interval_is_without_width(value, n):
    """All answers right is not certainty: "+100 [+100, +100]" and "0 [0, 0]" were shown."""
    [metric] = mean_metrics(scores_of([value] * n))
    assert metric.low < metric.value < metric.high or (value in (0, 1) and metric.low < metric.high)
    for a, b in ((0.0, value), (value, 0.0), (value, value)):
        found = paired_delta(by_id([a] * n), by_id([b] * n), "fraction")
        assert found.low <= found.delta <= found.high and found.low < found.high - 1e-3
        assert found.low >= -1 and found.high <= 1
    shifted = paired_delta(by_id([0.2, 0.5] * n), by_id([0.5, 0.8] * n))  # differ by their rounding alone
    assert (shifted.low, shifted.high) == (None, None)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_intervals_of_fractions_stay_within_their_bounds(column):
    [metric] = mean_metrics(scores_of(column))
    assert 0 <= metric.low <= metric.value <= metric.high <= 1 and metric.low < metric.high
    found = paired_delta(by_id(column), by_id(column[::-1]), "fraction", resamples=50)
    assert -1 <= found.low <= found.delta <= found.high <= 1 and found.low < found.high


def test_too_few_examples_get_a_caution():
    [metric] = mean_metrics(scores_of(np.linspace(0, 1, 19)))
    assert metric.caution == "from 19 examples no interval is dependable: it needs 20"
    assert mean_metrics(scores_of(np.linspace(0, 1, 20)))[0].caution is None
    [metric] = mean_metrics(scores_of([0.5] * 3 + [0.0] * 97))
    assert metric.caution == "only 3 of 100 values differ from the rest: no interval is dependable"
    found = paired_delta(by_id([0.1] * 30), by_id([0.2] * 7 + [0.1] * 23), "fraction")
    assert found.caution == "only 7 of 30 values differ from the rest: no interval is dependable"


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
    [metric] = mean_metrics(scores)
    assert (metric.value, metric.n, metric.n_unscored) == (0.75, 2, 0)
    assert "Student" in metric.method  # 0.5 is no longer a success or a failure


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
    [metric] = mean_metrics(scores_of([1] * 20))
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
    peer = scipy.stats.ttest_1samp([0.5, 0.3], 0).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((peer.low, peer.high))
    assert result.p_value == 0.5


def test_delta_of_nothing_one_and_equal():
    assert paired_delta({"a": 1.0}, {"b": 1.0})[:5] == (None, None, None, None, 0)
    assert paired_delta({"a": 1.0}, {"a": 2.0})[:5] == (1.0, None, None, 1.0, 1)
    same = by_id(np.linspace(0, 1, 20))
    assert paired_delta(same, same)[:5] == (0.0, None, None, 1.0, 20)
    unseen = wilson(0, 20)[1]
    assert paired_delta(same, same, "fraction")[:5] == (0.0, -unseen, unseen, 1.0, 20)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=25), st.randoms())
def test_delta_properties(pairs, random):
    a, b = by_id([x for x, _ in pairs]), by_id([y for _, y in pairs])
    result = paired_delta(a, b, "fraction", resamples=200)
    assert result.low <= result.delta <= result.high and 0 < result.p_value <= 1
    ids = list(a)
    random.shuffle(ids)
    assert paired_delta({i: a[i] for i in ids}, b, "fraction", resamples=200) == result


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
    mean_metrics(scores)
    paired_deltas([(a, b)] * 20, resamples=300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


# ---------------------------------------------------------------- paired shares


@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [((36, 12, 2, 0), 0.0569, 0.3404), ((20, 12, 2, 16), 0.0562, 0.3292)],
)
def test_newcombe_agrees_with_the_published_examples(cells, low, high):
    """Newcombe 1998, Statistics in Medicine 17:2635-2650, table II, method 10; his difference is first - second."""
    found = newcombe(*cells, 0.95)
    assert (-found[1], -found[0]) == pytest.approx((low, high), abs=5e-5)


def test_paired_shares_get_newcombe():
    pairs = [(1, 1)] * 20 + [(1, 0)] * 12 + [(0, 1)] * 2 + [(0, 0)] * 16
    found = paired_delta(by_id([a for a, _ in pairs]), by_id([b for _, b in pairs]))
    assert (found.low, found.high) == newcombe(20, 12, 2, 16, 0.95) and "Newcombe" in found.method
    assert found.p_value == pytest.approx(scipy.stats.binomtest(2, 14).pvalue, abs=0.005)  # McNemar's exact test


def test_p_value_and_interval_rarely_disagree():
    rng = np.random.default_rng(8)
    pairs = [(by_id(rng.beta(2, 5, 40)), by_id(rng.beta(2, 4, 40))) for _ in range(400)]
    found = paired_deltas(pairs, ["fraction"] * 400, resamples=1999)
    decided = [(f.p_value < 0.05, not f.low <= 0 <= f.high) for f in found]
    assert 20 < sum(p for p, _ in decided) < 200
    assert sum(p != interval for p, interval in decided) <= 8


# ---------------------------------------------------------------- repeated inputs


def repeated(column, copies):
    """Each value as many rows with one input."""
    examples = [
        Example(f"e{i}-{k}", (Message("user", f"question {i}" + " " * k),), ("t",))
        for i in range(len(column))
        for k in range(copies)
    ]
    scores = [Score(e.id, {"m": float(column[i // copies])}) for i, e in enumerate(examples)]
    return examples, scores


def test_rows_with_the_same_input_are_one_unit():
    column = np.random.default_rng(6).beta(2, 5, 25)
    [once] = mean_metrics(scores_of(column))
    examples, scores = repeated(column, 4)
    with repeated_inputs(examples):
        [metric] = mean_metrics(scores)
    assert metric.value == pytest.approx(once.value) and (metric.n, metric.n_inputs) == (100, 25)
    assert (metric.low, metric.high) == pytest.approx((once.low, once.high))
    assert "the unit is the input: 25 different ones" in metric.method and once.n_inputs is None
    [naive] = mean_metrics(scores)
    assert naive.high - naive.low < 0.6 * (metric.high - metric.low)


def test_repeated_shares_count_as_fewer():
    column = np.array([1.0] * 12 + [0.0] * 18)
    examples, scores = repeated(column, 5)
    with repeated_inputs(examples):
        [metric] = mean_metrics(scores)
    low, high = wilson(12, 30)
    assert metric.low == pytest.approx(low, abs=0.02) and metric.high == pytest.approx(high, abs=0.02)
    examples, scores = repeated(np.ones(30), 5)
    with repeated_inputs(examples):
        [metric] = mean_metrics(scores)
    assert (metric.low, metric.high) == pytest.approx(wilson(30, 30))


def test_repeated_inputs_are_one_difference():
    rng = np.random.default_rng(7)
    a, b = rng.beta(2, 5, 24), rng.beta(2, 4, 24)
    once = paired_delta(by_id(a), by_id(b), "fraction")
    examples, first = repeated(a, 3)
    second = repeated(b, 3)[1]
    sides = [example_means(side, "m") for side in (first, second)]
    found = paired_delta(*sides, "fraction", clusters_of(examples))
    assert found[:4] == pytest.approx(once[:4]) and (found.n, found.n_inputs) == (72, 24)
    assert paired_delta(*sides, "fraction").p_value < found.p_value


def test_one_input_alone_says_nothing_of_others():
    examples, scores = repeated([0.5], 30)
    with repeated_inputs(examples):
        [metric] = mean_metrics(scores)
    assert (metric.low, metric.high) == (None, None) and "the same input" in metric.method
    assert (metric.n, metric.n_inputs) == (30, 1)


def test_what_counts_as_the_same_input():
    def row(i, text, *messages):
        return Example(i, tuple(Message("user", m) for m in messages), ("t",), text)

    rows = [
        row("a", "x", "Sum up: x"), row("b", "x", "Sum up:  x\n"), row("c", "x", "Other prompt: x"),
        row("d", "y"), row("e", "y "), row("f", ""), row("g", ""),
    ]  # fmt: skip
    assert clusters_of(rows) == {"a": "a", "b": "a", "d": "d", "e": "d"}


def test_a_share_of_steps_counts_answers_not_steps():
    """Steps of one answer are right or wrong together: 200 steps of 20 answers are worth 20 values."""
    [metric] = [ratio_metric("steps", {f"e{i}": (10 if i < 15 else 0, 10) for i in range(20)})]
    assert metric.value == 0.75 and metric.n == 20
    low, high = wilson(15, 20)
    assert metric.low == pytest.approx(low, abs=0.03) and metric.high == pytest.approx(high, abs=0.03)
    assert ratio_metric("steps", {"a": (0, 0)}) is None
    all_right = ratio_metric("steps", {f"e{i}": (4, 4) for i in range(30)})
    assert (all_right.value, all_right.low, all_right.high) == (1.0, *wilson(30, 30))
    data = Clustered([3.0, 1.0], [4.0, 1.0], ["a", "b"])
    assert data.value == 0.8 and data.influence.mean() == pytest.approx(0.8)


# ---------------------------------------------------------------- holm


@given(st.lists(st.floats(0, 1), max_size=10))
def test_a_p_value_below_its_level_is_one_that_holm_keeps(ps):
    for p, level, adjusted in zip(ps, holm_levels(ps), holm(ps), strict=True):
        assert (p < level) == (adjusted < 0.05) or adjusted == pytest.approx(0.05)


def test_holm_levels():
    assert holm_levels([0.01, 0.04, 0.03]) == pytest.approx([0.05 / 3, 0.05 / 2, 0.05 / 2])
    assert holm_levels([0.001, 0.002, 0.003]) == pytest.approx([0.05 / 3, 0.05 / 2, 0.05])
    assert holm_levels([0.02, 0.024, 0.9]) == pytest.approx([0.05 / 3] * 3)  # it stops at the first
    assert holm_levels([0.2]) == pytest.approx([0.05]) and holm_levels([]) == []


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
