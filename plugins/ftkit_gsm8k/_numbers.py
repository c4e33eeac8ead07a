"""The final number of a solution, and the arithmetic of its steps. All numbers are exact: none is a float.

These forms of a number are read, after `_clean.clean`: ``1,234.50``, ``$18``, ``-3``, ``.5``, ``3/4``, ``\\frac{3}{4}``,
``1 1/2``, ``50%`` (the percent sign is a unit: 50), ``2e3``. What is marked as the answer is, in this
order: the first ``####``, as GSM8K's publishers read it; else the last of ``\\boxed{18}``, a line that
starts with ``A:`` or ``Answer:``, ``the answer is 18`` and ``答えは18``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from ._clean import clean

_DIGITS = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)"
_PLAIN = rf"(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{{1,3}}(?![0-9A-Za-z_]|\.\d))?"
_NUMBER = re.compile(
    rf"""(?P<sign>(?<![0-9A-Za-z)\]}}%])-)?(?:[$€£¥₹₩]\s?)?(?P<minus>(?<=[$€£¥₹₩])-)?
    (?: (?:(?P<whole>\d+)\s*)?\\[dt]?frac\{{(?P<up>-?{_PLAIN})\}}\{{(?P<down>{_PLAIN})\}}
      | (?P<mixed>\d+)\s+(?P<n>\d+)/(?P<d>\d+)(?![\d./])
      | (?<![\d.])(?P<over>{_PLAIN})\s?/\s?(?P<under>{_PLAIN})
      | (?P<plain>{_PLAIN})
    )""",
    re.VERBOSE,
)
_HASHES = re.compile(r"####")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?=[-$\d]))")
# The mark "A:" is a capital letter: "a = 5" and "a: 5" are variables.
_LINE = re.compile(
    r"^[\s*_#>]*(?:(?:the\s+)?(?:final\s+)?(?:answer|ans)[\s*_]*[:=]|(?-i:A)[\s*_]*:)", re.IGNORECASE | re.MULTILINE
)
_SAYS = re.compile(
    r"\banswer\b[^.\n:=\d]{0,60}?(?:\bis\b|:|=)|(?:答え|答案|解答|正解|答|정답|답)\s*(?:は|が|是|为|為|은|는|:|=|\s)",
    re.IGNORECASE,
)
_NO_NUMBER = re.compile(r"\\sqrt|√|\\pi\b|π")  # what holds one of these is not the number that is written in it
_CLAUSE = re.compile(r"[.!?](?=[\s)*]|$)|[;。！？、]|,\s+(?=[A-Za-z])|\b(?:because|since|where|which|given|check)\b")  # fmt: skip
_BRACKETS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")
_EQUALS = re.compile(r"=|≈|\\approx\b|→|⇒")
_NEXT_QUESTION = re.compile(r"\n\s*(?:Question|Q|Problem)\s*\d*\s*:")
_ANNOTATION = re.compile(r"<<([^<>=\n]*)=([^<>=\n]*)>>")
_EQUATION = re.compile(r"(?<![\w.)])((?:[\d.,$%()]+\s*[-+*/x×÷]\s*)+[\d.,$%()]+)\s*=\s*(\$?-?[\d.,]*\d)")


def own_part(text: str) -> str:
    """Return the text up to the place where a model continues with another question of its own."""
    found = _NEXT_QUESTION.search(text)
    return text[: found.start()] if found and text[: found.start()].strip() else text


def numbers(text: str) -> list[Fraction]:
    """Return all numbers of a text, in order, without fractions whose denominator is zero."""
    return [value for match in _NUMBER.finditer(clean(text)) if (value := _value(match)) is not None]


def _value(match: re.Match[str]) -> Fraction | None:
    g = match.groupdict()
    if g["up"] is not None:
        down = _exact(g["down"])
        value = None if down == 0 else int_of(g["whole"]) + _exact(g["up"]) / down
    elif g["mixed"] is not None:
        value = None if int_of(g["d"]) == 0 else int_of(g["mixed"]) + Fraction(int_of(g["n"]), int_of(g["d"]))
    elif g["over"] is not None:
        under = _exact(g["under"])
        value = None if under == 0 else _exact(g["over"]) / under
    else:
        value = _exact(g["plain"])
    if value is None:
        return None
    return -value if g["sign"] or g["minus"] else value


def int_of(text: str | None) -> int:
    return int(Decimal(text or 0))  # Decimal: int() refuses more than 4300 digits


def _exact(text: str) -> Fraction:
    return Fraction(Decimal(text.replace(",", "")))


def marked(text: str) -> Fraction | None:
    """Return the number that the text marks as its answer, or None."""
    return next((found[0] for part in _marked_parts(clean(own_part(text))) if (found := _candidates(part))), None)


def final(text: str) -> Fraction | None:
    """Return the number that a solution ends at: after `####`, in a box or after "the answer is", else the last one.

    A line `A:` does not count as such a mark: models that were not trained on it put their whole solution there.
    """
    part = next(iter(_marked_parts(clean(own_part(text)), lines=False)), None)
    if part is None:
        return last(text)
    found = _candidates(part)
    return found[0] if found else None if _NO_NUMBER.search(part) else last(text)


def _marked_parts(text: str, lines: bool = True) -> list[str]:
    """Return what is marked as the answer in a clean text, the part that counts first."""
    found = _HASHES.search(text)
    if found:
        return [_signed(_line_after(text, found.end()))]
    parts: list[tuple[int, str]] = [(m.start(), _signed(_braces(text, m))) for m in _BOXED.finditer(text)]
    for pattern in (_LINE, _SAYS) if lines else (_SAYS,):
        parts += [(m.start(), _line_after(text, m.end())) for m in pattern.finditer(text)]
    return [part for _, part in sorted(parts, reverse=True)]


class WrongTarget(ValueError):
    """A reference whose answer cannot be read, or can be read in two ways; the message says which."""


def target(text: str) -> Fraction:
    """Return the answer of a reference. Raises WrongTarget where it has none, or where it is not clear which it is."""
    text = clean(text)
    parts = _marked_parts(text)
    if parts:
        hashes = [_signed(_line_after(text, m.end())) for m in _HASHES.finditer(text)]
        boxes = [_signed(_braces(text, m)) for m in _BOXED.finditer(text)]
        chosen = hashes or boxes or parts[:1]
    else:
        lines = [line for part in text.split("\n") for line in re.split(r"[.!?。](?=\s|$)", part) if numbers(line)]
        chosen = lines[-1:]
    found = [value for part in chosen for value in dict.fromkeys(_candidates(part))]
    if not found:
        raise WrongTarget("the reference contains no number" + (" after its mark" if numbers(text) else ""))
    if len(set(found)) > 1:
        raise WrongTarget(
            f"the reference does not say which is the answer: {' or '.join(str(show(v)) for v in found[:3])}"
        )
    return found[0]


def last(text: str) -> Fraction | None:
    """Return the last number of the text, marked or not, or None."""
    found = numbers(own_part(text))
    return found[-1] if found else None


def _line_after(text: str, start: int) -> str:
    """Return the rest of a line, or the next one that is not empty."""
    return text[start:].lstrip().split("\n", 1)[0]


def _braces(text: str, opening: re.Match[str]) -> str:
    """Return the text between the brace at the end of `opening` and the matching closing brace."""
    start = opening.end()
    if not opening[0].endswith("{"):  # \\boxed 18
        return text[start:].split(None, 1)[0]
    depth = 1
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start:i]
    return text[start:]


def _signed(part: str) -> str:
    """Return the part with its sign at the number: `- 18` is -18 behind `####` and in a box, elsewhere a list."""
    return re.sub(r"^(\s*)-\s+(?=[\d.$€£¥])", r"\1-", part)


def _candidates(part: str) -> list[Fraction]:
    """Return the numbers that a marked part may mean, the most likely first.

    Explanations are left out: what follows the sentence, a bracket, "because". Of `16 - 3 = 13 dollars` and of
    `18 = 9*2` it is the side that is one number.
    """
    for clause in _CLAUSE.split(part):
        if _NO_NUMBER.search(clause):
            return []
        outside = _BRACKETS.sub(" ", clause)
        told = outside if numbers(outside) else clause
        sides = [found for side in _EQUALS.split(told) if (found := numbers(side))]
        if sides:
            return next((side for side in reversed(sides) if len(side) == 1), sides[-1])
    return []


def in_form_of(target: str, text: str) -> bool:
    """Return whether the text's last line marks a number as the target's last line does (`#### 18`, `A: 18`).

    A target that is a bare number has no form: then any marked number counts.
    """
    form = re.match(r"\s*(####|\\boxed|[A-Za-z ]+:)", target.strip().split("\n")[-1])
    if form is None:
        return marked(text) is not None
    line = clean(own_part(text)).strip().split("\n")[-1].strip()
    return re.fullmatch(rf"{re.escape(form[1])}\s*\{{?\s*{_NUMBER.pattern}\S{{0,2}}", line, re.VERBOSE) is not None


def show(value: Fraction | None) -> str | None:
    """Return a number as text: 18, 0.5, -3, 1/3."""
    if value is None:
        return None
    if max(abs(value.numerator), value.denominator).bit_length() > 200:
        return "a number of more than 60 digits"
    exact = Decimal(value.numerator) / Decimal(value.denominator)
    return format(exact, "f") if Fraction(exact) == value else f"{value.numerator}/{value.denominator}"


# ---------------------------------------------------------------- steps


@dataclass(frozen=True)
class Equation:
    """One step: the expression, its result in the solution, and its true result (None: it cannot be computed)."""

    expression: str
    claimed: Fraction
    true: Fraction | None

    @property
    def right(self) -> bool:
        """Whether the claimed result is right, at its own precision: 10/3=3.33 is right."""
        return self.true is not None and (self.claimed == self.true or _rounds_to(self.true, self.claimed))


def _rounds_to(true: Fraction, claimed: Fraction) -> bool:
    """Return whether `claimed` has decimal places and is `true`, rounded or truncated to them."""
    places = 0
    while places < 12 and claimed * 10**places % 1:
        places += 1
    return 0 < places < 12 and abs(true - claimed) < Fraction(1, 10**places)


def annotated(text: str) -> list[Equation]:
    """Return the steps that carry a calculator annotation, `<<48/2=24>>`."""
    return _equations(_ANNOTATION, own_part(text))


def equations(text: str) -> list[Equation]:
    """Return the annotated steps or, without annotations, the equations in the text: `48 / 2 = 24`."""
    return annotated(text) or _equations(_EQUATION, own_part(text))


def _equations(pattern: re.Pattern[str], text: str) -> list[Equation]:
    found = []
    for expression, claimed in pattern.findall(clean(text)):
        values = numbers(claimed)
        if values:
            found.append(Equation(expression.strip(), values[0], compute(expression)))
    return found


def compute(expression: str) -> Fraction | None:
    """Return the exact value of an expression of numbers, + - * / and brackets; None where it has no value.

    A percent sign behind a number divides it by 100, as in the annotations.
    """
    text = clean(expression).replace("$", "").replace("×", "*").replace("x", "*").replace("÷", "/").replace("//", "/")
    tokens = re.findall(rf"{_PLAIN}|\S", text)
    if not tokens or len(tokens) > 100:
        return None
    try:
        value, rest = _sum(tokens, 0)
    except (ValueError, ZeroDivisionError, IndexError, ArithmeticError):
        return None
    return value if rest == len(tokens) else None


def _sum(tokens: list[str], at: int) -> tuple[Fraction, int]:
    value, at = _product(tokens, at)
    while at < len(tokens) and tokens[at] in "+-":
        other, after = _product(tokens, at + 1)
        value, at = (value + other if tokens[at] == "+" else value - other), after
    return value, at


def _product(tokens: list[str], at: int) -> tuple[Fraction, int]:
    value, at = _factor(tokens, at)
    while at < len(tokens) and tokens[at] in "*/":
        other, after = _factor(tokens, at + 1)
        value, at = (value * other if tokens[at] == "*" else value / other), after
    return value, at


def _factor(tokens: list[str], at: int) -> tuple[Fraction, int]:
    if tokens[at] in "+-":
        value, after = _factor(tokens, at + 1)
        return (value if tokens[at] == "+" else -value), after
    if tokens[at] == "(":
        value, at = _sum(tokens, at + 1)
        if tokens[at] != ")":
            raise ValueError("a bracket is not closed")
        at += 1
    else:
        value, at = _exact(tokens[at]), at + 1
    if at < len(tokens) and tokens[at] == "%":
        value, at = value / 100, at + 1
    return value, at
