"""The evaluator `gsm8k-answer`: which number is the answer, is it right, and what do several samples say."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import combinations
from math import comb
from pathlib import Path

import pytest
from ftkit_gsm8k import Gsm8kAnswer, Gsm8kSftProbe
from ftkit_gsm8k._clean import clean
from ftkit_gsm8k._estimators import ks, majority, pass_at_k
from ftkit_gsm8k._numbers import annotated, compute, equations, final, in_form_of, last, marked, numbers, show
from hypothesis import given
from hypothesis import strategies as st

from ftkit.errors import InputError
from ftkit.records import Example, Message, Prediction, Task
from ftkit.score import score_all
from ftkit.stats import wilson

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
needs_gsm8k = pytest.mark.skipif(
    not GSM8K.is_dir(), reason="needs GSM8K's files beside the repository: shared/data/gsm8k"
)


def example(target: str = "#### 18", name: str = "q") -> Example:
    question = f"How many {name}?"
    return Example(name, (Message("user", question),), (target,), question)


def values(text: str, target: str = "#### 18") -> dict[str, float]:
    score = Gsm8kAnswer().score(example(target), Prediction("q", text))
    assert score.values is not None
    return score.values


# ---------------------------------------------------------------- against published labels


@needs_gsm8k
@pytest.mark.parametrize("read", [marked, last, final])
def test_agrees_with_the_published_labels_of_four_models(read) -> None:
    rows = [json.loads(line) for line in (GSM8K / "labelled_solutions.jsonl").open(encoding="utf-8")]
    agreed = [
        (read(row[model]["solution"]) == marked(row["ground_truth"])) == row[model]["is_correct"]
        for row in rows
        for model in row
        if isinstance(row[model], dict)
    ]
    assert len(agreed) == 800 and {row[m]["is_correct"] for row in rows for m in row if isinstance(row[m], dict)} == {
        True,
        False,
    }
    assert sum(agreed) / len(agreed) >= 0.995


@needs_gsm8k
def test_reads_every_reference_and_finds_its_arithmetic_right() -> None:
    answers = [json.loads(line)["answer"] for line in (GSM8K / "test.jsonl").open(encoding="utf-8")]
    assert all(marked(a) is not None and marked(a) == last(a) and in_form_of(a, a) for a in answers)
    steps = [s for a in answers for s in annotated(a)]
    assert len(steps) == sum(a.count("<<") for a in answers)
    assert sum(s.right for s in steps) / len(steps) > 0.995


# ---------------------------------------------------------------- which number


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("#### 1,234.50", "1234.5", "1234.5"),
        ("She has 3.\nA: 18", "18", "18"),
        ("The answer is $18.", "18", "18"),
        ("so \\boxed{18}", "18", "18"),
        ("$\\boxed{\\frac{3}{4}}$", "0.75", "0.75"),
        ("\\boxed{1\\dfrac{1}{2}}", "1.5", "1.5"),
        ("\\boxed{-\\frac{1}{3}}", "-1/3", "-1/3"),
        ("The answer is 18\\%.", "18", "18"),
        ("It grows by 50%", None, "50"),
        ("#### 1{,}234", "1234", "1234"),
        ("#### 12\u202f345", "12345", "12345"),
        ("#### -18", "-18", "-18"),
        ("#### \u221218", "-18", "-18"),
        ("#### -$18", "-18", "-18"),
        ("#### $-18", "-18", "-18"),
        ("#### 18.", "18", "18"),
        ("#### .5", "0.5", "0.5"),
        ("#### 18 dollars", "18", "18"),
        ("#### 18kg", "18", "18"),
        ("\\boxed{18\\text{ cm}}", "18", "18"),
        ("**Answer:** 18 apples", "18", "18"),
        ("Final answer: **18**", "18", "18"),
        ("A: 16 - 3 = $13", "13", "13"),
        ("16-3", None, "3"),
        ("So 3 + 4 = 7 and 7 - 2 = 5", None, "5"),
        ("#### 18 (which is 3 less than 21)", "18", "21"),
        ("The answer is not 17. The answer is 18.", "18", "18"),
        ("#### 18\n\nQuestion: And 5 more?\nAnswer: 23\n#### 23", "18", "18"),
        ("#### 3/0", None, None),
        ("I do not know.", None, None),
        ("", None, None),
        ("####", None, None),
        ("2e3 bees", None, "2000"),
        ("one 1 1/2 cups", None, "1.5"),
        ("1,2 and 3,456", None, "3456"),
        ("\\boxed{18", "18", "18"),
    ],
)
def test_finds_the_answer_as_people_write_it(text: str, strict: str | None, flexible: str | None) -> None:
    assert (show(marked(text)), show(last(text))) == (strict, flexible)


def test_an_answer_without_a_number_is_wrong_and_counted() -> None:
    assert values("I do not know.") == {
        "accuracy_flexible": 0.0, "accuracy_strict": 0.0, "answer_format": 0.0, "no_answer": 1.0
    }  # fmt: skip


def test_no_float_is_between_two_numbers() -> None:
    assert values("#### 0.1", "#### 0.10")["accuracy_strict"] == 1
    assert values("#### 9007199254740993", "#### 9007199254740992")["accuracy_strict"] == 0
    assert values("#### 0.3333333333333333", "#### 1/3")["accuracy_strict"] == 0


def test_a_number_of_any_length_is_read_and_shown() -> None:
    long = "7" * 6000
    assert values(f"#### {long}", f"#### {long}")["accuracy_strict"] == 1
    assert values(f"#### {long}8", f"#### {long}")["accuracy_strict"] == 0
    assert show(last(long)) == "a number of more than 60 digits"


def test_the_form_asked_for_is_the_references() -> None:
    assert in_form_of("3\n#### 18", "She has 5.\n#### 5") and not in_form_of("#### 18", "The answer is 5.")
    assert in_form_of("A: 18", "A: 5") and not in_form_of("A: 18", "#### 5")
    assert not in_form_of("#### 18", "#### many") and not in_form_of("#### 18", "#### 5 and more words")
    assert in_form_of("18", "The answer is 5.") and not in_form_of("18", "5")


plain = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=3)


@given(plain, st.sampled_from(["#### {}", "A: {}", "The answer is {}.", "\\boxed{{{}}}", "Well, 3.\nAnswer: {}\n"]))
def test_a_marked_number_is_found_exactly(number, form) -> None:
    text = form.format(f"{number:f}")
    assert marked(text) == last(text) == Fraction(number)


@given(st.integers(0, 10**12), st.sampled_from(["", "$"]), st.sampled_from(["", ".", " dollars", "%", "\n"]))
def test_separators_currency_and_units_change_nothing(number, before, after) -> None:
    assert marked(f"#### {before}{number:,}{after}") == marked(f"#### {number}") == number


@given(st.fractions(min_value=-1000, max_value=1000, max_denominator=1000))
def test_what_is_shown_is_read_back(number) -> None:
    assert last(str(show(number))) == number


@given(st.text(max_size=300))
def test_any_text_is_read(text) -> None:
    found = values(text)
    assert set(found) >= {"accuracy_flexible", "accuracy_strict", "answer_format", "no_answer"}
    assert found["no_answer"] == (not numbers(text) or last(text) is None)
    assert (marked(text) is None) or found["no_answer"] in (0.0, 1.0)
    equations(text)


@given(st.text(alphabet="0123456789.,-+*/=<>$%#\\{} \nA:answeri", max_size=200))
def test_any_text_of_numbers_and_marks_is_read(text) -> None:
    values(text)
    show(marked(text)), show(last(text)), equations(text)


@given(plain, plain)
def test_right_exactly_where_the_numbers_are_equal(a, b) -> None:
    assert values(f"#### {a:f}", f"#### {b:f}")["accuracy_strict"] == (a == b)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        # marks
        ("So a = 5 and b = 7. The answer is 12.", "12"),
        ("The answer is 12, where\na = 5", "12"),
        ("a: 5\nThe answer is 12", "12"),
        ("答え: 18", "18"),
        ("答えは１８円です。", "18"),
        ("答え：－３", "-3"),
        ("答案是18。", "18"),
        ("\\boxed 18", "18"),
        # what explains the answer is not the answer
        ("The answer is 5 (x=3)", "5"),
        ("The answer is 5, x = 3", "5"),
        ("#### 18 = 9*2", "18"),
        ("#### 9*2 = 18", "18"),
        ("The answer is 18. Let me check: 18*2=36.", "18"),
        ("The answer is 18 because 20 - 2 = 18", "18"),
        ("The answer is 18, since 9*4=36 is twice that.", "18"),
        ("\\boxed{x = 18}", "18"),
        ("The answer is (16 - 3) * 2 = 26 eggs.", "26"),
        # fractions
        ("\\boxed{\\frac12}", "1/2"),
        ("\\boxed{\\frac{1}{2}}", "1/2"),
        ("\\boxed{\\dfrac{1}{2}}", "1/2"),
        ("\\boxed{\\tfrac1{20}}", "1/20"),
        ("\\boxed{\\frac{3}4}", "3/4"),
        ("\\boxed{2\\frac12}", "5/2"),
        ("\\boxed{-\\frac 34}", "-3/4"),
        ("#### 2½", "5/2"),
        ("#### 2 ½ cups", "5/2"),
        ("#### ¾", "3/4"),
        ("#### -½", "-1/2"),
        ("#### 3/4", "3/4"),
        # units
        ("\\boxed{18 \\text{ ft}^2}", "18"),
        ("\\boxed{18\\ \\mathrm{m}^{2}}", "18"),
        ("#### 18 m^2", "18"),
        ("#### 18 m²", "18"),
        ("#### 18 cm3", "18"),
        ("#### 18 km/h", "18"),
        ("#### 18 %", "18"),
        ("\\boxed{18\\%}", "18"),
        ("#### €18", "18"),
        ("#### -£18", "-18"),
        ("#### 18 ₹", "18"),
        ("#### US$18", "18"),
        # groups and decimal commas
        ("#### 1\u2009000", "1000"),
        ("#### 1\u00a0000 dollars", "1000"),
        ("#### 1\u202f234\u202f567", "1234567"),
        ("#### 1 000", "1000"),
        ("#### 1 234 567", "1234567"),
        ("#### 12 345 pens", "12345"),
        ("#### 1'000", "1000"),
        ("#### 1\u2019234", "1234"),
        ("#### 1.000,50", "1000.50"),
        ("#### 1.234.567", "1234567"),
        ("#### 12,50 €", "12.50"),
        ("The answer is 5 100 gram bags.", "5"),
        # signs, digits, exponents, markdown
        ("#### –18", "-18"),
        ("#### \u2212 18", "-18"),
        ("Answer:\n- 18 pens", "18"),
        ("The answer is 22 – 4 = 18", "18"),
        ("#### １８", "18"),
        ("#### １，２３４．５", "1234.5"),
        ("#### 1.5e3", "1500"),
        ("The answer is 2e3.", "2000"),
        ("\\boxed{1.5 \\times 10^{3}}", "1500"),
        ("#### 1.5×10³", "1500"),
        ("#### 2*10^-2", "1/50"),
        ("#### 10^3", "1000"),
        ("#### **18**", "18"),
        ("**The answer is: 18**", "18"),
        ("## Answer: `18`", "18"),
        ("Answer: _-18_", "-18"),
    ],
)
def test_an_answer_is_read_however_it_is_written(text: str, answer: str) -> None:
    assert marked(text) == final(text) == Fraction(answer)


def test_an_answer_that_is_no_plain_number_is_not_read_as_one() -> None:
    assert marked("\\boxed{3\\sqrt{2}}") is None and final("\\boxed{3\\sqrt{2}}") is None
    assert marked("The answer is 2π.") is None


def test_the_line_that_starts_with_a_holds_a_whole_solution_of_an_untrained_model() -> None:
    text = "A: She has 16 eggs and eats 3. 16 - 3 = 13. 13 * 2 = 26"
    assert (marked(text), final(text)) == (16, 26)


@given(st.text(max_size=200))
def test_plain_text_stays_plain(text) -> None:
    assert numbers(clean(text)) == numbers(text)


# ---------------------------------------------------------------- steps


@pytest.mark.parametrize(
    ("expression", "value"),
    [("48/2", "24"), ("3+4*5", "23"), ("(3+4)*5", "35"), ("10/3", "10/3"), ("200*40*.01", "80"), ("50%*80", "40"),
     ("-3+5", "2"), ("1,200-200", "1000"), ("2*(3+4", None), ("5/0", None), ("x+1", None), ("", None), ("3 4", None)],
)  # fmt: skip
def test_expressions_are_computed_exactly(expression: str, value: str | None) -> None:
    assert show(compute(expression)) == value


@given(st.lists(st.tuples(st.sampled_from("+-*"), st.integers(0, 999)), min_size=1, max_size=6), st.integers(0, 999))
def test_sums_are_computed_as_python_does(rest, first) -> None:
    expression = f"{first}" + "".join(f"{op}{n}" for op, n in rest)
    assert compute(expression) == eval(expression)


def test_step_arithmetic_is_the_share_of_right_annotations() -> None:
    text = "He has 3*4=<<3*4=12>>12. Then 12-5=<<12-5=8>>8.\nThird: <<10/3=3.33>>3.33\n#### 8"
    assert values(text)["step_arithmetic"] == pytest.approx(2 / 3)
    assert "step_arithmetic" not in values("3*4=12\n#### 12")
    assert [s.right for s in equations("3 * 4 = 12, 12 - 5 = 8")] == [True, False]


def test_metrics_carry_wilson_intervals_and_steps_are_pooled() -> None:
    texts = ["<<1+1=2>>2\n#### 18", "<<1+1=3>><<2+2=4>><<3+3=6>>\n#### 5", "no idea", "The answer is 18."]
    examples = [example(name=str(i)) for i in range(4)]
    _, metrics = score_all([Gsm8kAnswer()], examples, [Prediction(str(i), t) for i, t in enumerate(texts)])
    found = {m.name: m for m in metrics}
    for name, right in (("accuracy_flexible", 2), ("accuracy_strict", 2), ("answer_format", 2), ("no_answer", 1)):
        assert (found[name].value, found[name].low, found[name].high) == pytest.approx((right / 4, *wilson(right, 4)))
    assert found["no_answer"].higher_is_better is False
    steps = found["step_arithmetic"]
    assert (steps.value, steps.n, steps.n_unscored) == (0.75, 2, 0)  # three of four steps are right, of two answers
    assert not [n for n in found if "@" in n]


def test_steps_of_one_answer_are_not_independent() -> None:
    """Ten answers, each with twenty steps that are all right or all wrong, are worth ten values, not 200."""
    texts = [" ".join(["<<1+1=2>>" if i < 6 else "<<1+1=3>>"] * 20) for i in range(10)]
    _, metrics = score_all(
        [Gsm8kAnswer()], [example(name=str(i)) for i in range(10)], [Prediction(str(i), t) for i, t in enumerate(texts)]
    )
    (steps,) = (m for m in metrics if m.name == "step_arithmetic")
    assert (steps.value, steps.n) == (0.6, 10) and steps.low is not None and steps.high is not None
    low, high = wilson(6, 10)
    assert steps.high - steps.low > 0.95 * (high - low) and "independent" in (steps.method or "")


def test_references_without_numbers_are_one_message() -> None:
    with pytest.raises(InputError, match="no reference contains a number"):
        score_all([Gsm8kAnswer()], [example("a summary")], [Prediction("q", "18")])


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("none", "contains no number"),
        ("", "contains no number"),
        ("3 + 4 = 7\n####", "contains no number after its mark"),
        ("#### 3/0", "contains no number"),
        ("#### 5 or 6", "does not say which is the answer: 5 or 6"),
        ("#### 12,50", "does not say which is the answer: 12 or 50"),
        ("#### 5 feet 3 inches", "does not say which is the answer: 5 or 3"),
        ("#### 16 - 3", "does not say which is the answer"),
        ("#### 5\n#### 6", "does not say which is the answer: 5 or 6"),
        ("\\boxed{5} or \\boxed{6}", "does not say which is the answer: 5 or 6"),
        ("\\boxed{3\\sqrt{2}}", "contains no number after its mark"),
        ("She has 3 pens and 5 cups", "does not say which is the answer: 3 or 5"),
    ],
)
def test_a_reference_that_cannot_be_read_is_an_error_that_names_its_row(target: str, said: str) -> None:
    rows = [example(name="good"), example(target, "row-7"), example("none too", "row-8")]
    with pytest.raises(InputError, match=rf"row 'row-7': the reference {said}") as caught:
        score_all([Gsm8kAnswer()], rows, [Prediction(e.id, "#### 18") for e in rows])
    assert "(and 1 more rows)" in caught.value.message and "#### 18" in (caught.value.hint or "")
    score = Gsm8kAnswer().score(rows[1], Prediction("row-7", "#### 18"))
    assert score.values is None and said in (score.reason or "")


@pytest.mark.parametrize(
    ("target", "answer"),
    [("She has 3 pens and 5 cups.\n3+5=8", "8"), ("a = 5\nb = 7\nThe answer is 12.", "12"), ("The answer is 12, where\na = 5", "12"),
     ("18", "18"), ("18 apples", "18"), ("#### 16 - 3 = 13", "13"), ("#### 18 (3 less than 21)", "18"), ("#### 5\n#### 5.0", "5"),
     ("5 m^2", "5"), ("１８円", "18")],
)  # fmt: skip
def test_a_reference_that_can_be_read_in_one_way_is_read(target: str, answer: str) -> None:
    assert (
        values(f"#### {answer}", target)["accuracy_strict"]
        == values(f"#### {answer}", target)["accuracy_flexible"]
        == 1
    )
    assert values("#### 77", target)["accuracy_strict"] == 0


# ---------------------------------------------------------------- several samples


def test_golden_pass_at_k() -> None:
    """Values by hand, and the last from the published form 1 - prod(1 - k/i) over i = n-c+1..n, computed once."""
    assert pass_at_k(8, 1, 1) == pytest.approx(1 / 8)
    assert pass_at_k(8, 1, 4) == pytest.approx(0.5)
    assert pass_at_k(8, 2, 4) == pytest.approx(1 - 15 / 70)
    assert pass_at_k(10, 3, 5) == pytest.approx(0.9166666666666666)
    assert pass_at_k(200, 13, 100) == pytest.approx(0.9999194971988055)


def test_edges_of_pass_at_k() -> None:
    assert pass_at_k(5, 0, 5) == 0 and pass_at_k(5, 5, 1) == 1 and pass_at_k(5, 1, 5) == 1 and pass_at_k(5, 3, 3) == 1
    with pytest.raises(ValueError, match=r"pass@6 cannot be estimated from 5 samples"):
        pass_at_k(5, 2, 6)
    with pytest.raises(ValueError):
        pass_at_k(5, 2, 0)
    with pytest.raises(ValueError):
        pass_at_k(5, 6, 1)
    assert (ks(1), ks(2), ks(6), ks(8)) == ([1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8])


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_counts_the_draws_that_hold_a_right_one(case) -> None:
    n, c, k = case
    hits = sum(any(i < c for i in draw) for draw in combinations(range(n), k))
    assert pass_at_k(n, c, k) == pytest.approx(hits / comb(n, k))


def test_majority_shares_ties_and_silence_does_not_vote() -> None:
    assert majority([18, 18, 17], 18) == 1 and majority([17, 17, 18], 18) == 0
    assert majority([17, 18], 18) == 0.5 and majority([17, 16, 15], 18) == 0
    assert majority([None, None, 18], 18) == 1 and majority([None], 18) == 0


def test_samples_give_pass_and_majority_and_a_failed_one_is_unscored() -> None:
    texts = {"a": ["18", "18", "5", "6"], "b": ["1", "1", "1", "18"], "c": ["2", "3", "4", "5"]}
    predictions = [Prediction(i, f"#### {t}", n) for i, of in texts.items() for n, t in enumerate(of)]
    predictions += [Prediction("d", "#### 18", n, error="timed out" if n == 2 else None) for n in range(4)]
    _, metrics = score_all([Gsm8kAnswer()], [example(name=i) for i in "abcd"], predictions)
    found = {m.name: m for m in metrics}
    assert found["pass@1"].value == pytest.approx((2 / 4 + 1 / 4 + 0) / 3)
    assert found["pass@2"].value == pytest.approx((5 / 6 + 1 / 2 + 0) / 3)
    assert found["pass@4"].value == pytest.approx(2 / 3) and found["maj@4"].value == pytest.approx(1 / 3)
    assert (found["pass@4"].n, found["pass@4"].n_unscored) == (3, 1)


def test_the_probe_says_which_references_are_wrong_before_anything_is_spent() -> None:
    train = (example("3+4=<<3+4=7>>7\n#### 7", "train-1"), example("#### 1 or 2", "train-2"))
    splits = {"train": train, "test": (example("3+4=<<3+4=7>>7\n#### 7", "test-1"), example("seven", "test-2"))}
    probe = Gsm8kSftProbe(Gsm8kSftProbe.Options(base_model="package:ftkit_gsm8k/model", chat_template="plain"))
    found = [f for f in probe.check(Task("t", splits, {}, "")) if f.level == "error"]
    assert [f.message for f in found] == ["row 'test-2': the reference contains no number (and 1 more rows)"]
    assert found[0].key == "dataset.columns.target" and "#### 18" in (found[0].hint or "")
