"""The source of each operand of a worked solution: the question, an earlier result, or a unit constant.

Numbers in a question can be changed only where each operand has one source and no other is possible. A number has
another possible source more often than it seems: in a question with the word "week", 7 may be a number of the
question or the days of a week. All such questions are refused, with the reason.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

from ._numbers import Equation, annotated, marked

# Whole numbers that stand alone: not a part of a decimal, a percentage, a time, a fraction, an ordinal or a name.
FREE = re.compile(
    r"""(?<![\w.,:/\#°'"-])\d{1,6}(?:,\d{3})*
    (?! [\w:/%°'"-] | [.,]\d | \s*(?:percent|%|/|[½¼¾⅓⅔]) | \s?[ap]\.?m\b | \s?o.clock
      | \s(?:and\s(?:an?\s|one\s|1/)|1/|hundred|thousand|million|billion))""",
    re.IGNORECASE | re.VERBOSE,
)
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?|\.\d+")
_PERCENT = re.compile(r"(\d[\d,]*(?:\.\d+)?|\.\d+)\s*(?:%|percent)", re.IGNORECASE)
_FRACTION = re.compile(r"(?:(\d+)\s+)?(\d+)\s?/\s?(\d+)")
_YEARS = range(1900, 2101)

_UNITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_WORDS = {
    **{w: i for i, w in enumerate(_UNITS)},
    **{w: 10 * (i + 2) for i, w in enumerate(_TENS)},
}
_ORDINALS = {"third": 3, "fourth": 4, "quarter": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
             "tenth": 10, "twelfth": 12, "twentieth": 20, "hundredth": 100}  # fmt: skip
# The unit constants and number words that a step may use: (words, values that they stand for, values that they only
# suggest). A suggested value is no source of an operand, but a number of the question that equals it is not changed.
_CUES: tuple[tuple[str, str, str], ...] = (
    (r"hal(?:f|ve[sd]?)|halfway", "1 2 1/2 50", "3/2 150"),
    (r"twice|double[sd]?|doubling|both|pairs?|couples?", "2", ""),
    (r"twins?|round[ -]?trip|either|another|each other|together|parents?|siblings?", "", "2 3 4"),
    (r"once|single", "1", ""),
    (r"triple[sd]?|thrice|tripling", "3", ""),
    (r"triplets?", "", "3"),
    (r"quadruple[sd]?", "4", ""),
    (r"quarters?", "4 1/4 25", "3 3/4 75 15"),
    (r"dozens?", "12", ""),
    (r"(?:bi)?week(?:s|ly|day|days|end|ends)?", "7", "2 4 5 52"),
    (r"(?:mon|tues|wednes|thurs|fri|satur|sun)days?", "", "2 3 4 5 6 7"),
    (r"fortnight(?:s|ly)?", "14", ""),
    (r"(?:bi)?month(?:s|ly)?", "12 30 4", "2 28 29 31"),
    (r"january|february|march|april|june|july|august|september|october|november|december|seasons?", "", "3 4 12 28 29 30 31"),
    (r"(?:half-)?year(?:s|ly)?|annual(?:ly)?", "12 52 365", "366"),
    (r"decades?", "10", ""),
    (r"centur(?:y|ies)", "100", ""),
    (r"hour(?:s|ly)?", "60 24", "3600"),
    (r"minutes?|mins?|seconds?", "60", "3600"),
    (r"days?|daily|everyday|mornings?|evenings?|night(?:s|ly)?", "24", "2 3 7"),
    (r"noon|midnight|[ap]\.?m\.?|o.clock", "12", "24"),
    (r"percent(?:age)?|%", "100 1/100", ""),
    (r"¢|cents?", "100 1/100", ""),
    (r"dimes?", "10 1/10", ""),
    (r"nickels?", "5 1/20", ""),
    (r"penn(?:y|ies)", "100 1/100", ""),
    (r"f(?:ee|oo)t|ft|inch(?:es)?", "12", "3 36"),
    (r"yards?", "3", "36"),
    (r"miles?", "", "5280 1760"),
    (r"pounds?|lbs?|ounces?|oz", "16", "2000"),
    (r"tons?", "2000", ""),
    (r"cups?|pints?|quarts?|gallons?|tablespoons?|teaspoons?", "", "2 3 4 8 16 32 128"),
    (r"kilo\w*|km|kgs?|grams?|milli\w*|ml|lit(?:er|re)s?", "1000", ""),
    (r"[kmgt]i?b|(?:kilo|mega|giga|tera)?bytes?", "", "8 1000 1024"),
    (r"met(?:er|re)s?|centi\w+|cm|mm", "100", "10 1000"),
    (r"triang\w+", "", "2 3 180"),
    (r"squares?|rectang\w+|perimeter|sides?|sided|walls?|area|corners?", "", "2 4 6"),
    (r"pentagon\w*", "", "5"),
    (r"hexagon\w*|cubes?|dice|faces?", "", "3 6 8 12"),
    (r"octopus\w*|spiders?|octagon\w*", "", "8"),
    (r"insects?|ants?|bees?", "", "6"),
    (r"degrees?|angles?", "", "32 90 180 360"),
    (r"legs?|paws?|eyes?|ears?|arms?|hands?|shoes?|socks?|wings?|wheels?|tires?|bi(?:cycles?|kes?)|tricycles?|cars?", "", "2 3 4"),
    (r"fingers?|toes?", "", "5 10 20"),
    (r"average|mean|median", "", "2 3 4 5 6 7"),
    (r"cards?|decks?|suits?", "", "4 13 52"),
    (r"innings?|soccer|football|basketball", "", "2 4 9 11"),
)  # fmt: skip
_CUE_PATTERNS = [
    (
        re.compile(rf"(?<![a-z])(?:{words})(?![a-z])", re.IGNORECASE),
        *({Fraction(v) for v in part.split()} for part in values),
    )
    for words, *values in _CUES
]


class Refused(Exception):
    """The question's numbers cannot be changed; the message says why."""


@dataclass(frozen=True)
class Question:
    """The numbers of a question: those that can be changed, in order, and the values that always stay."""

    free: tuple[Fraction, ...]
    fixed: frozenset[Fraction]  # of percentages, decimals, fractions, words, and unit constants: sources of operands
    suggested: frozenset[Fraction]  # of words that may stand for a number: no sources, but no numbers to change


def number(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def read_question(question: str, solution: str) -> Question:
    """Return the numbers of a question. `solution` is searched for words that stand for a number, too."""
    found = list(FREE.finditer(question))
    free = [m for m in found if number(m[0]) > 1 and not _is_year(question, m)]
    rest = question
    for m in reversed(free):
        rest = f"{rest[: m.start()]} {rest[m.end() :]}"
    fixed: set[Fraction] = set()
    for m in NUMBER.finditer(rest):
        fixed |= {number(m[0]), number(m[0]) * 100}
    for m in _PERCENT.finditer(rest):
        p = number(m[1])
        fixed |= {p, p / 100, 100 - p, 100 + p, 1 - p / 100, 1 + p / 100, Fraction(100), Fraction(1)}
    for m in _FRACTION.finditer(rest):
        up, down = int(m[2]), int(m[3])
        if down:
            part = Fraction(up, down)
            fixed |= {Fraction(down - up), part, 1 - part, 1 + part, int(m[1] or 0) + part, Fraction(1)}
    fixed |= _of_words(question)
    suggested: set[Fraction] = set()
    for pattern, sources, suggestions in _CUE_PATTERNS:
        if pattern.search(question) or pattern.search(solution):
            fixed |= sources
            suggested |= suggestions
    return Question(tuple(number(m[0]) for m in free), frozenset(fixed), frozenset(suggested - fixed))


def _is_year(question: str, match: re.Match[str]) -> bool:
    return (
        len(match[0]) == 4
        and int(match[0]) in _YEARS
        and re.search(r"\b(?:in|since|year|of|from|to|until|by)\s$", question[: match.start()]) is not None
    )


def _of_words(text: str) -> set[Fraction]:
    """Return the values of the number words of a text: "three", "twenty-five", "two hundred", "two thirds"."""
    found: set[Fraction] = set()
    value: int | None = None
    for word in re.findall(r"[a-z]+", text.lower()):
        singular = word.removesuffix("s")
        if word in _WORDS:
            new = _WORDS[word]
            found.add(Fraction(new))
            value = value + new if value is not None and value % 10 == 0 and value >= 20 and new < 10 else new
            found.add(Fraction(value))
        elif singular in _SCALES:
            value = (value or 1) * _SCALES[singular]
            found |= {Fraction(value), Fraction(_SCALES[singular])}
        elif singular in _ORDINALS:
            down = _ORDINALS[singular]
            found |= {
                Fraction(down),
                Fraction(1, down),
                1 - Fraction(1, down),
                Fraction(down - 1),
                Fraction(down + 1),
                Fraction(1),
            }
            if value is not None:
                found |= {Fraction(value, down), Fraction(abs(down - value))}
            value = None
        elif word != "and":
            value = None
    return found


@dataclass(frozen=True)
class Plan:
    """A worked solution in which each operand has one source."""

    steps: tuple[Equation, ...]
    change: frozenset[Fraction]  # the numbers of the question that can be changed
    keep: frozenset[Fraction]  # the question's other whole numbers, and the constants that the steps use
    fixed: frozenset[Fraction]


def plan(question: str, solution: str) -> Plan:
    """Return the source of each operand. Raises Refused where an operand has none, or more than one."""
    steps, answer = annotated(solution), marked(solution)
    if not steps:
        raise Refused("no step is annotated")
    if any(s.true != s.claimed for s in steps):
        raise Refused("the result of a step is not exact")
    if steps[-1].claimed != answer:
        raise Refused("the answer is not the result of the last step")
    told = read_question(question, solution.partition("####")[0])
    occurs, used = Counter(told.free), Counter[Fraction]()
    results: list[Fraction] = []
    constants: set[Fraction] = set()
    for s in steps:
        for operand in map(number, NUMBER.findall(s.expression)):
            sources = [operand in occurs, operand in told.fixed, *(operand == r for r in results)]
            if not any(sources):
                raise Refused(f"{operand} is no number of the question, no result and no unit constant")
            if sum(sources) > 1 or (operand in results and operand in told.suggested):
                raise Refused(f"{operand} has more than one possible source")
            if operand in told.fixed:
                constants.add(operand)
            used[operand] += 1
        results.append(s.claimed)
    for value, times in occurs.items():
        if times > 1:
            raise Refused(f"the question has the number {value} more than once")
        if not used[value]:
            raise Refused(f"no step uses the question's number {value}")
    # A number that is used more often than it is told may be two numbers: a price, and a count of names.
    change = {v for v in occurs if used[v] == 1 and v not in told.suggested}
    if not change:
        raise Refused("no number can be changed")
    return Plan(tuple(steps), frozenset(change), frozenset((occurs.keys() - change) | constants), told.fixed)
