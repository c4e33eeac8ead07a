"""The kind of error in a solution, by rules."""

from __future__ import annotations

import re
from fractions import Fraction

from ftkit.records import Example, Prediction

from ._evaluator import gold
from ._numbers import Equation, compute, equations, final, numbers, own_part

# In the order of the rules; the first that applies names the error.
KINDS = {
    "right": "the final number is the reference's",
    "degenerate loop": "the same 4 to 80 characters are repeated four times or more in a row",
    "no answer": "the solution contains no number",
    "truncated": "the solution ends at the length limit",
    "arithmetic slip": "the operations are right: with each wrong result corrected, the steps end at the reference's answer",
    "copied number": "the final number is a number of the question",
    "wrong operation": "the steps do not use the reference's operations",
    "wrong numbers": "the reference's operations, on other numbers",
    "no steps": "a solution without any equation",
}
_LOOP = re.compile(r"(.{4,80}?)\1{3,}", re.DOTALL)
_OPERAND = re.compile(r"\d[\d,]*(?:\.\d+)?|\.\d+")


def kind_of(example: Example, prediction: Prediction) -> str:
    """Return which of `KINDS` a prediction is."""
    text, right = own_part(prediction.text), gold(example)
    answer = final(text)
    if answer in right:
        return "right"
    if _LOOP.search(text[-2000:]):
        return "degenerate loop"
    if answer is None:
        return "no answer"
    if prediction.finish_reason == "length" and text == prediction.text:
        return "truncated"
    steps = equations(text)
    if any(not s.right for s in steps) and _corrected(steps) in right:
        return "arithmetic slip"
    if answer in numbers(example.input):
        return "copied number"
    if not steps:
        return "no steps"
    reference = equations(example.targets[0])
    if reference and _operations(steps) == _operations(reference):
        return "wrong numbers"
    return "wrong operation"


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


def _operations(steps: list[Equation]) -> list[str]:
    return sorted(
        re.sub(r"[^-+*/x×÷]", "", "".join(s.expression for s in steps)).translate(str.maketrans("x×÷", "**/"))
    )
