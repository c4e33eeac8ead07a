"""The kind of error in a solution, by rules.

A rule looks at the solution and not at whether its answer is right, so it can be applied to right answers too. A rule
that holds as often for right answers says nothing of an error: the report shows both rates, and gives advice only where
they differ. Two rules were dropped for this reason. Measured on the 800 published solutions (295 are right): "the
operations are not the reference's" held for 27 % of the right answers, and "the answer is a number of the question"
holds for 6 % of GSM8K's own answers, as often as for wrong ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from ftkit.records import Example, Prediction

from ._evaluator import gold
from ._numbers import Equation, compute, equations, final, own_part

_REPEATED = re.compile(r"(.{1,80}?)\1{3,}", re.DOTALL)
LOOP = 60  # characters of repetition that make a loop; 0.3333333333333333 is none
_OPERAND = re.compile(r"\d[\d,]*(?:\.\d+)?|\.\d+")


def _loops(example: Example, prediction: Prediction) -> bool:
    text = own_part(prediction.text)[-2000:]
    return any(
        m.end() - m.start() >= LOOP and len(text) - m.end() <= len(m[1]) and not m[1].isspace()
        for m in _REPEATED.finditer(text)
    )


def _has_no_answer(example: Example, prediction: Prediction) -> bool:
    return final(prediction.text) is None


def _is_truncated(example: Example, prediction: Prediction) -> bool:
    return prediction.finish_reason == "length" and own_part(prediction.text) == prediction.text


def _slips(example: Example, prediction: Prediction) -> bool:
    steps = equations(own_part(prediction.text))
    return any(not s.right for s in steps) and _corrected(steps) in gold(example)


def _has_a_wrong_result(example: Example, prediction: Prediction) -> bool:
    return any(not s.right for s in equations(own_part(prediction.text)))


def _has_no_steps(example: Example, prediction: Prediction) -> bool:
    return not equations(own_part(prediction.text))


# In the order of the rules; the first that holds names the error.
RULES: dict[str, tuple[str, Callable[[Example, Prediction], bool]]] = {
    "degenerate loop": (f"ends in a repetition: four times or more, {LOOP} characters or more", _loops),
    "no answer": ("contains no number", _has_no_answer),
    "truncated": ("ends at the length limit", _is_truncated),
    "arithmetic slip": ("with each wrong result corrected, the steps end at the reference's answer", _slips),
    "wrong result": ("the result of a step is wrong", _has_a_wrong_result),
    "no steps": ("contains no equation", _has_no_steps),
}
KINDS = {
    "right": "the final number is the reference's",
    **{name: text for name, (text, _) in RULES.items()},
    "other": "no rule holds: the results of the steps are right, the answer is not",
}


def holding(example: Example, prediction: Prediction) -> list[str]:
    """Return the rules that hold for a solution, whether its answer is right or wrong, in their order."""
    return [name for name, (_, holds) in RULES.items() if holds(example, prediction)]


def kind_of(example: Example, prediction: Prediction) -> str:
    """Return which of `KINDS` a prediction is."""
    if final(prediction.text) in gold(example):
        return "right"
    return next(iter(holding(example, prediction)), "other")


def _corrected(steps: list[Equation]) -> Fraction | None:
    """Return the last result where each wrong result is corrected, also in the later steps that use it."""
    true: dict[Fraction, Fraction] = {}
    value = None
    for s in steps:
        value = compute(_OPERAND.sub(lambda m: _substituted(true, m[0]), s.expression))
        if value is None:
            return None
        true[s.claimed] = value
    return value


def _substituted(true: dict[Fraction, Fraction], text: str) -> str:
    value = true.get(Fraction(text.replace(",", "")))
    return text if value is None else f"({value.numerator}/{value.denominator})"
