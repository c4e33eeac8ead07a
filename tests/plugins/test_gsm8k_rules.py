"""The probe's rules on memory, prompting and kinds of errors, and the coverage of their intervals."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from ftkit_gsm8k._intervals import difference_of_changes, difference_of_rates, paired
from ftkit_gsm8k._rules import Facts, Rule, apply_rules, separates

Values = dict[str, float]


def answers(share: float, name: str = "q", n: int = 100) -> Values:
    """Answers to `n` questions; the first ones are right."""
    return {f"{name}{i}": float(i < round(share * n)) for i in range(n)}


def facts(**changes: object) -> Facts:
    same = (answers(0.5), answers(0.5))
    known = Facts(same, same, same, same, same, ({}, {}), ({}, {}), {}, (Counter(), Counter()))
    return replace(known, **changes)  # type: ignore[arg-type]


def rule(found: Facts, start: str) -> Rule:
    (rule,) = [r for r in apply_rules(found)[1] if r.text.startswith(start)]
    return rule


# ---------------------------------------------------------------- memory


def test_easier_training_questions_are_not_memorised_questions() -> None:
    """The base model, which never saw them, has the same gap: nothing was memorised."""
    easy = facts(train=(answers(0.7, "t"), answers(0.72, "t")), test=(answers(0.4), answers(0.42)))
    found = rule(easy, "Questions were memorised")
    assert found.holds is False
    assert found.numbers.startswith("training above test questions: base model +30.0, tuned +30.0; +0.0 [")


def test_what_training_adds_on_its_own_questions_alone_is_memorised() -> None:
    known = facts(train=(answers(0.4, "t"), answers(0.9, "t")), test=(answers(0.4), answers(0.45)))
    found = rule(known, "Questions were memorised")
    assert found.holds is True and "base model +0.0, tuned +45.0; +45.0 [" in found.numbers
    assert "a part of that is memorised" in apply_rules(known)[0]
    # Harder training questions: memory shows although accuracy on them is not above test questions.
    hard = facts(train=(answers(0.1, "t"), answers(0.5, "t")), test=(answers(0.5), answers(0.5)))
    assert rule(hard, "Questions were memorised").holds is True


def test_without_the_base_model_nothing_is_said_of_memory() -> None:
    assert rule(facts(train=({}, answers(0.9, "t"))), "Questions were memorised").holds is None


# ---------------------------------------------------------------- prompting


def test_training_is_compared_with_prompting_on_the_same_questions() -> None:
    """47 and 55 of 100: two intervals overlap, yet each question that prompting solves is solved, and 8 more."""
    found = rule(facts(few_shot=answers(0.47), test=(answers(0.4), answers(0.55))), "Training is better")
    assert found.holds is True and "47.0 %, tuned without 55.0 %, +8.0 [" in found.numbers and "n=100" in found.numbers
    mixed = {q: 1 - v for q, v in answers(0.45).items()}  # 55 right, but other questions
    assert rule(facts(few_shot=answers(0.47), test=(answers(0.4), mixed)), "Training is better").holds is False


def test_a_control_of_other_questions_is_not_compared() -> None:
    assert rule(facts(few_shot=answers(0.2, "other")), "Training is better").holds is None
    assert rule(facts(), "Training is better").holds is None


# ---------------------------------------------------------------- kinds of errors


def test_advice_needs_a_rule_that_tells_wrong_answers_from_right_ones() -> None:
    kinds = (Counter(), Counter({"right": 40, "truncated": 30, "other": 30}))
    wrong, right = Counter({"answers": 60, "truncated": 30}), Counter({"answers": 80, "truncated": 2})
    said = apply_rules(facts(kinds=kinds, on_wrong=wrong, on_right=right))[2]
    assert "A higher generation.max_new_tokens: solutions are truncated. (truncated: 30 of 60 errors)" in said
    as_often = Counter({"answers": 80, "truncated": 40})
    assert not [s for s in apply_rules(facts(kinds=kinds, on_wrong=wrong, on_right=as_often))[2] if "truncated" in s]
    assert not separates("truncated", facts(on_wrong=wrong))  # no right answers to compare with


# ---------------------------------------------------------------- intervals


def test_intervals_by_hand_and_at_the_ends() -> None:
    found = paired(answers(0.4), answers(0.6))
    assert found is not None and found.delta == pytest.approx(0.2) and found.n == 100
    # 20 gains, no loss: (20 +- 1.96 sqrt(21 - 400/102)) / 102
    assert (found.low, found.high) == pytest.approx((0.11664, 0.27551), abs=1e-4)
    assert paired({}, {"a": 1.0}) is None and difference_of_changes(({}, {}), (answers(1), answers(1))) is None
    equal = paired(answers(0.5, n=5), answers(0.5, n=5))
    assert equal is not None and equal.low < 0 < equal.high  # five equal answers say little
    certain = paired(answers(0, n=5), answers(1, n=5))
    assert certain is not None and certain.high == 1 and 0 < certain.low < 0.5
    rates = difference_of_rates(5, 10, 5, 10)
    assert rates is not None and rates.delta == 0 and rates.low == pytest.approx(-rates.high)
    assert difference_of_rates(0, 0, 1, 2) is None


@pytest.mark.parametrize("n", [20, 50, 200])
@pytest.mark.parametrize(("gain", "loss"), [(0.1, 0.1), (0.3, 0.05), (0.02, 0.02), (0.5, 0.2), (0.9, 0.0)])
def test_the_intervals_cover(n: int, gain: float, loss: float) -> None:
    """At least 93 % of 95 % intervals hold the true change, of few questions and near the ends, too."""
    rng = np.random.default_rng(n)
    covered = both = rates = 0
    rounds = 1500
    for _ in range(rounds):
        one, two = (rng.choice([1, -1, 0], p=[gain, loss, 1 - gain - loss], size=n) for _ in range(2))
        sides = [
            ({str(i): 0.0 for i in range(n)}, {str(i): float(c) for i, c in enumerate(side)}) for side in (one, two)
        ]
        found, gap = paired(*sides[0]), difference_of_changes(sides[0], sides[1])
        rate = difference_of_rates(int((one == 1).sum()), n, int((two == -1).sum()), n)
        assert found is not None and gap is not None and rate is not None
        covered += found.low <= gain - loss <= found.high
        both += gap.low <= 0 <= gap.high
        rates += rate.low <= gain - loss <= rate.high
    assert min(covered, both, rates) / rounds >= 0.93
