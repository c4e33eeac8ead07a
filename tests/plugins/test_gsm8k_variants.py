"""Changed numbers: which questions allow them, and whether each gold answer is right, checked in independent ways."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from ftkit_gsm8k import WordProblems
from ftkit_gsm8k._prose import from_prose
from ftkit_gsm8k._sources import Refused, plan
from ftkit_gsm8k._variants import changed

from ftkit.records import Example, Message

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
needs_gsm8k = pytest.mark.skipif(
    not GSM8K.is_dir(), reason="needs GSM8K's files beside the repository: shared/data/gsm8k"
)


def example(question: str, answer: str, name: str = "q") -> Example:
    return Example(name, (Message("user", f"Question: {question}\nAnswer:"),), (answer,), question)


def gsm8k(split: str) -> list[Example]:
    rows = [json.loads(line) for line in (GSM8K / f"{split}.jsonl").open(encoding="utf-8")]
    return [example(r["question"], r["answer"], str(i)) for i, r in enumerate(rows)]


# ---------------------------------------------------------------- which questions

PENS = "He has {} pens in each of {} boxes and gives away {}. How many are left?"


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("He has 5 cups and 3 pots. How many?", "#### 8", "no step is annotated"),
        ("He has 5 cups and 3 pots. How many?", "5+3=<<5+3=9>>9\n#### 9", "not exact"),
        ("He has 5 cups and 3 pots. How many?", "5+3=<<5+3=8>>8\n#### 9", "not the result of the last step"),
        # An intermediate result without an annotation: 12 - 4 = 8 is computed in the head.
        ("She has 12 figs and eats 4. She buys 9 more. Now?", "She has 8, so 8+9=<<8+9=17>>17.\n#### 17", "8 is no number"),
        # The same, where the result equals a number of the question.
        ("Of 12 figs she eats 4. Ed has 8. Both?", "She has 8, and Ed 8: 8+8=<<8+8=16>>16.\n#### 16", "no step uses"),
        ("She works 12-4 hours a day, 7 days. Pay at $9?", "7*8=<<7*8=56>>56\n56*9=<<56*9=504>>504\n#### 504", "8 is no"),
        # <<40=40>> hides where the 40 comes from.
        ("He has 4 sets of 10, and 9 more. How many?", "<<40=40>>40 and 40+9=<<40+9=49>>49\n#### 49", "40 is no number"),
        # A constant that equals a number of the question.
        ("He runs 7 miles a day. How far in a week?", "7*7=<<7*7=49>>49\n#### 49", "7 has more than one"),
        ("A box has 12 pens. How many are 30 dozen pens less a box?", "30*12=<<30*12=360>>360\n360-12=<<360-12=348>>348\n#### 348", "12 has more"),
        ("He films 60 clips of 25 minutes. Hours?", "60*25=<<60*25=1500>>1500\n1500/60=<<1500/60=25>>25\n#### 25", "60 has more"),
        ("It is 100 apples, 20% are bad, 30 lost. Good?", "100*20/100=<<100*20/100=20>>20\n100-20-30=<<100-20-30=50>>50\n#### 50", "more than one"),
        ("He eats half of 8 figs, then 2. How many?", "8/2=<<8/2=4>>4, 4-2=<<4-2=2>>2\n#### 2", "2 has more than one"),
        ("Three boys have 3 figs and 8 nuts each. All?", "3+8=<<3+8=11>>11\n11*3=<<11*3=33>>33\n#### 33", "3 has more than one"),
        # A result that equals a number of the question, or a constant.
        ("He has 4 rows of 2, and 8 more. How many?", "4*2=<<4*2=8>>8, 8+8=<<8+8=16>>16\n#### 16", "8 has more than one"),
        ("He walks 5 miles and 7 back each month. A year?", "5+7=<<5+7=12>>12\n12*12=<<12*12=144>>144\n#### 144", "12 has more"),
        # Two equal numbers of the question; a number that no step uses; a step that needs an unstated 1.
        ("He has 9 red, 9 blue and 5 green pens. All?", "9+9+5=<<9+9+5=23>>23\n#### 23", "more than once"),
        ("Of 30 pupils, 14 are boys and 16 girls; 5 boys left. All?", "14+16=<<14+16=30>>30\n30-5=<<30-5=25>>25\n#### 25", "more than one|no step uses"),
        ("Ann and 4 friends share 40 figs. Each?", "4+1=<<4+1=5>>5\n40/5=<<40/5=8>>8\n#### 8", "1 is no number"),
        ("He eats five figs, then six. How many?", "5+6=<<5+6=11>>11\n#### 11", "no number can be changed"),
    ],
)  # fmt: skip
def test_a_question_is_refused_unless_each_operand_has_one_source(question: str, answer: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        plan(question, answer)
    assert changed(example(question, answer)) is None


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("He picks 14 figs a day for 3 weeks, and eats 25. How many are left?",
         "3*7=<<3*7=21>>21\n21*14=<<21*14=294>>294\n294-25=<<294-25=269>>269\n#### 269"),
        ("He buys 9 dozen eggs and drops 17. Left?", "9*12=<<9*12=108>>108\n108-17=<<108-17=91>>91\n#### 91"),
        ("He earns $300 a month. How much in 5 years, after spending $800?",
         "5*12=<<5*12=60>>60\n60*300=<<60*300=18000>>18000\n18000-800=<<18000-800=17200>>17200\n#### 17200"),
        ("25% of 80 pens are red, and 13 are blue. How many?", "80*25/100=<<80*25/100=20>>20\n20+13=<<20+13=33>>33\n#### 33"),
        ("He has 14 pens and 23 cups, twice that of Bo. Bo?", "14+23=<<14+23=37>>37\n37/2=<<37/2=18.5>>18.5\n#### 18.5"),
    ],
)  # fmt: skip
def test_unit_constants_and_words_stay_and_the_rest_is_changed(question: str, answer: str) -> None:
    found = changed(example(question, answer))
    assert found is not None and found.input != question
    assert golds(question, answer, found.input) == {gold(found)}


def test_the_number_that_is_told_with_a_thousands_separator_keeps_it() -> None:
    found = changed(
        example("A house costs $250,000 and a car $31,000. Both?", "<<250000+31000=281000>>281000\n#### 281000")
    )
    assert found is None  # the text has no equation to check the annotation with
    solution = "250000+31000=<<250000+31000=281000>>281000\n#### 281000"
    found = changed(example("A house costs $250,000 and a car $31,000. Both?", solution))
    assert found is not None and re.search(r"\$\d{3},\d{3} .*\$\d{2},\d{3}\.", found.input)


def test_the_larger_number_remains_the_larger_one() -> None:
    """Who earns more, what is the cheapest: an answer that compares must not change sides."""
    question = "A costs $18, B costs $15 and C costs $11. All of them without the cheapest cost?"
    found = changed(example(question, "18+15+11=<<18+15+11=44>>44\n44-11=<<44-11=33>>33\n#### 33"))
    assert found is not None
    a, b, c = (int(n) for n in re.findall(r"\d+", found.input))
    assert a > b > c and gold(found) == a + b


# ---------------------------------------------------------------- the second way: the text alone


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("He has 3 * 16 = <<3*16=48>>48 figs.\n48 – 8 = <<48-8=40>>40 are left.\n#### 40", "52"),
        ("He has 3 boxes x 16 figs/box = <<1+1=2>>48 figs, so 48 - 8 = 40.\n#### 40", "52"),  # annotations are not read
        ("3*16 = 48. He eats half, 24, so 48 - 8 = 40.\n#### 40", None),  # 24 is from nowhere
        ("3*16 = 48 and 48 - 8 = 40. He eats 5 of 40, 40 - 5 = 35.\n#### 40", None),  # the answer is not the last result
        ("3*16 = 47, 47 - 8 = 39.\n#### 39", None),
        ("#### 40", None),
        ("", None),
    ],
)  # fmt: skip
def test_the_text_gives_the_answer_without_its_annotations(solution: str, answer: str | None) -> None:
    new = {Fraction(3): Fraction(4), Fraction(16): Fraction(15), Fraction(8): Fraction(8)}
    assert from_prose(solution, new, ()) == (None if answer is None else Fraction(answer))


# ---------------------------------------------------------------- brute force

# Written without the plugin's code: units, in the question or the solution, and the numbers that they may stand for; words
# of the question that are numbers.
UNITS = {
    "week": "7 5", "month": "12 30 4", "year": "12 52 365", "day": "24 7", "hour": "60 24", "minute": "60", "second": "60",
    "dozen": "12", "feet": "12 3", "foot": "12", "inch": "12", "yard": "3", "half": "2 50", "twice": "2", "double": "2",
    "both": "2", "pair": "2", "couple": "2", "triple": "3", "thrice": "3", "third": "3 2", "quarter": "4 25 3", "percent": "100",
    "%": "100", "cent": "100", "penn": "100", "dime": "10", "nickel": "5", "kilo": "1000", "kg": "1000", "km": "1000",
    "meter": "100 1000", "liter": "1000", "pound": "16 2000", "ounce": "16", "decade": "10", "noon": "12",
}  # fmt: skip
WORDS = dict(zip(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"], range(1, 13), strict=True)) | {
    "fifteen": 15, "sixteen": 16, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "hundred": 100, "thousand": 1000,
}  # fmt: skip
TOKEN = re.compile(r"\d[\d,]*\.?\d+|\.\d+|\d")


def gold(found: Example) -> Fraction:
    return Fraction(found.targets[0].removeprefix("#### "))


def value(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def golds(question: str, solution: str, other: str) -> set[Fraction]:
    """Return the answer under every possible choice of a source for each operand."""
    before, after = (list(map(value, TOKEN.findall(q))) for q in (question, other))
    assert len(before) == len(after)
    text = f"{question} {solution.split('####')[0]}".lower()
    constants = {
        Fraction(v)
        for word, values in UNITS.items()
        if re.search(rf"(?<![a-z]){word}(?:s|es|ly|y|ies|gram|grams|meters?|liters?)?(?![a-z])", text)
        for v in values.split()
    }
    constants |= {Fraction(WORDS[w]) for w in re.findall(r"[a-z]+", question.lower()) if w in WORDS}
    steps = re.findall(r"<<([^=<>]+)=([^=<>]+)>>", solution)

    def answers(at: int, results: tuple[tuple[Fraction, Fraction], ...]) -> Iterator[Fraction]:
        if at == len(steps):
            yield results[-1][1]
            return
        expression, claimed = steps[at][0].replace("$", "").replace("%", "/100"), value(steps[at][1].strip("$% "))
        for written in written_with(expression, [*zip(before, after, strict=True), *results]):
            yield from answers(at + 1, (*results, (claimed, written)))

    def written_with(expression: str, sources: list[tuple[Fraction, Fraction]]) -> set[Fraction]:
        forms = [""]
        at = 0
        for m in TOKEN.finditer(expression):
            old = value(m[0])
            new = {b for a, b in sources if a == old} | ({old} if old in constants else set())
            new = new or {old}  # from decimals, percentages and fractions: 0.2 of "20%"
            forms = [f"{f}{expression[at : m.start()]}F({n.numerator},{n.denominator})" for f in forms for n in new]
            at = m.end()
        assert not re.search(r"[^-+*/() ]", re.sub(TOKEN, "", expression)), expression
        return {eval(f + expression[at:], {"F": Fraction}) for f in forms}

    return set(answers(0, ()))


def test_brute_force_finds_what_has_two_sources() -> None:
    question, solution = "He runs 7 miles a day. How far in a week?", "7*7=<<7*7=49>>49\n#### 49"
    assert golds(question, solution, question.replace("7", "8")) == {49, 56, 64}
    question, solution = "He has 4 rows of 2, and 8 more.", "4*2=<<4*2=8>>8, 8+8=<<8+8=16>>16\n#### 16"
    assert golds(question, solution, "He has 5 rows of 2, and 8 more.") == {16, 18, 20}


@needs_gsm8k
def test_no_gold_answer_of_gsm8k_depends_on_the_source_of_an_operand() -> None:
    found = [(e, other) for e in gsm8k("test") if (other := changed(e)) is not None]
    assert len(found) > 300
    for e, other in found:
        assert golds(e.input, e.targets[0], other.input) == {gold(other)}, e.input


def put(known: dict[Fraction, Fraction], expression: str) -> Fraction:
    """Return the value of an expression in which the numbers in `known` are replaced."""
    return eval(TOKEN.sub(lambda m: f"F('{known.get(value(m[0]), value(m[0]))}')", expression), {"F": Fraction})


# Right on the question by coincidence: their own steps are wrong, or the steps that matter are not annotated (read by hand).
COINCIDENCES = {
    ("51", "175b_verification"),
    ("110", "175b_finetuning"),
    ("124", "6b_verification"),
    ("194", "175b_verification"),
}


@needs_gsm8k
def test_solutions_that_models_wrote_give_the_same_gold_answers() -> None:
    """Right solutions of four models, other numbers put into their steps: a second derivation of each gold answer."""
    rows = [json.loads(line) for line in (GSM8K / "labelled_solutions.jsonl").open(encoding="utf-8")]
    solutions = {r["question"]: r for r in rows}
    agreed, differ = set(), set()
    for e in gsm8k("test"):
        if e.input not in solutions or (other := changed(e)) is None:
            continue
        told = dict(zip(map(value, TOKEN.findall(e.input)), map(value, TOKEN.findall(other.input)), strict=True))
        for model, row in solutions[e.input].items():
            steps = re.findall(r"<<([^=<>]+)=([^=<>]+)>>", row["solution"]) if isinstance(row, dict) else []
            if not steps or not row["is_correct"] or any(put({}, x) != value(claimed) for x, claimed in steps):
                continue
            known = dict(told)
            for expression, claimed in steps:
                known[value(claimed)] = result = put(known, expression)
            (agreed if result == gold(other) else differ).add((e.id, model))
    assert differ <= COINCIDENCES
    assert len({question for question, _ in agreed}) >= 45 and len(agreed) > 100


def test_brute_force_agrees_on_the_generated_problems() -> None:
    rows = WordProblems(WordProblems.Options(test_rows=200)).load()["test"]
    examples = [example(r["question"], r["answer"], str(i)) for i, r in enumerate(rows)]
    found = [(e, other) for e in examples if (other := changed(e)) is not None]
    assert len(found) > 40
    for e, other in found:
        assert golds(e.input, e.targets[0], other.input) == {gold(other)}
