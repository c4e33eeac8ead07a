"""How texts and numbers are written in a report: nothing hidden, nothing too long, units where they belong."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape

TEXT_CAPS = (20_000, 5_000, 1_000, 300)  # characters per text of an example: the largest that fits the budget
PAGE_CAP = 200_000  # characters of any other text: a recipe, a lock, a message
NONE = "–"


# ---------------------------------------------------------------- text

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but for tab and newline
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # bidi controls and the Unicode line separators
    "\ud800-\udfff]"  # surrogates that lost their other half
)


def visible(text: str) -> str:
    """Make control, bidi and surrogate characters visible: ESC becomes ␛, U+202E becomes ⟨U+202E⟩."""
    if not _HIDDEN.search(text):
        return text
    return _HIDDEN.sub(_symbol, text.replace("\r\n", "\n"))


def _symbol(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def clip(text: str, cap: int) -> str:
    if len(text) <= cap:
        return text
    return f"{text[:cap]}… [cut here: {len(text):,} characters in all]"


def one_line(text: str, cap: int) -> str:
    line = " ".join(text[: cap * 4].split())
    return line if len(line) <= cap else line[:cap].rstrip() + "…"


def shown(value: object) -> str:
    """What a template prints of any value: text with nothing hidden in it; None is a dash."""
    if isinstance(value, Markup):
        return value
    return NONE if value is None else visible(clip(str(value), PAGE_CAP))


def breakable(name: object) -> Markup:
    """A name of a metric or a system as HTML that a narrow column may break after each - and _."""
    return Markup(re.sub("([-_])(?=.)", r"\1<wbr>", str(escape(shown(name)))))


def pretty(value: object) -> str:
    """Nested data for people: text as it is, the rest as indented JSON."""
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False, default=str)


def json_island(data: object) -> Markup:
    """JSON that cannot leave its `<script>` element, whatever strings are in it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


# ---------------------------------------------------------------- numbers


def number(value: object) -> float | None:
    """The value as a finite float, or None: what a page can show, sort by and draw."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e100 else None


@dataclass(frozen=True)
class Scale:
    """How the numbers of one metric are written: times `factor`, with `digits` decimals."""

    factor: float
    digits: int
    unit: str
    delta_unit: str

    def value(self, x: float | None) -> str:
        x = number(x)
        if x is None:
            return NONE
        text = f"{x * self.factor:,.{self.digits}f}"
        return text.replace("-", "−") if re.search("[1-9]", text) else text.lstrip("-")

    def signed(self, x: float | None) -> str:
        text = self.value(x)
        return text if text[0] in "–−" or not re.search("[1-9]", text) else f"+{text}"

    def interval(self, low: float | None, high: float | None) -> str | None:
        if number(low) is None or number(high) is None:
            return None
        return f"{self.value(low)} to {self.value(high)}"

    def signed_interval(self, low: float | None, high: float | None) -> str | None:
        if number(low) is None or number(high) is None:
            return None
        return f"{self.signed(low)} to {self.signed(high)}"


def scale_for(unit: str, values: Iterable[float | None]) -> Scale:
    if unit == "fraction":
        return Scale(100, 2, "%", "points")
    largest = max((abs(x) for v in values if (x := number(v)) is not None), default=0.0)
    if largest >= 1000:
        digits = 0
    elif largest >= 1 or largest == 0:
        digits = 1 if largest >= 100 else 2
    else:
        digits = min(8, 2 - math.floor(math.log10(largest)))
    return Scale(1, digits, unit, unit)


def count(n: int | None) -> str:
    return NONE if n is None else f"{n:,}"


def seconds(s: float | None) -> str:
    s = number(s)
    if s is None:
        return NONE
    if s < 10:
        return f"{s:.1f} s"
    whole = round(s)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment(text: object) -> object:
    """A time as people write it, 2026-11-24 06:11 UTC; what is no ISO 8601 time in UTC stays as it is."""
    found = re.match(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)[\d:.]*(Z|\+00:00)$", str(text))
    return f"{found[1]} {found[2]} UTC" if found else text


def size(n: int | None) -> str:
    if n is None:
        return NONE
    return f"{n / 1e9:,.2f} GB" if n >= 1e8 else f"{n / 1e6:,.1f} MB"


def dollars(usd: float | None) -> str:
    usd = number(usd)
    if usd is None:
        return NONE
    return "< $0.01" if 0 < usd < 0.01 else f"${usd:,.2f}"


def price(usd: float | None) -> str:
    """Dollars with cents, and below a dollar with three digits that count: $1,234.50, $0.80, $0.0123, $0."""
    usd = number(usd)
    if usd is None:
        return NONE
    if usd == 0 or abs(usd) >= 1:
        return f"${usd:,.2f}" if usd else "$0"
    if abs(usd) < 1e-9:
        return "< $0.000000001"
    whole, _, decimals = f"{usd:.{2 - math.floor(math.log10(abs(usd)))}f}".partition(".")
    return f"${whole}.{decimals.rstrip('0').ljust(2, '0')}"


def about(n: float | None) -> str:
    """A large count with the three digits that matter: 1,668,571 is 1,670,000."""
    n = number(n)
    if n is None:
        return NONE
    digits = 0 if n < 1000 else 2 - math.floor(math.log10(n))
    return f"{round(n, digits):,.0f}"


def p_value(p: float | None) -> str:
    p = number(p)
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


# ---------------------------------------------------------------- markdown

_MD_SPECIAL = re.compile(r"[\\`*_\[\]<>&|~$]|(?<=:)/(?=/)|(?<=www)\.|(?<=[#@])(?=\w)", re.IGNORECASE)
_MD_BLOCK = re.compile(r"^([#+=-](?=[\s#=+-]|$)|\d+(?=[.)](\s|$)))")


_MD_NAMED = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
ZERO_WIDTH = "\u200b"  # parts an @ or # from its name, so that nobody is called and no issue linked


def md_text(value: object) -> str:
    """Data as one line of Markdown that means only its letters: no table cell, markup, link or mention."""
    if isinstance(value, Markup):
        return value
    line = " ".join(shown(value).split())
    line = _MD_SPECIAL.sub(lambda m: _MD_NAMED.get(m[0], f"&#{ord(m[0] or ZERO_WIDTH)};"), line)
    return _MD_BLOCK.sub(lambda m: f"&#{ord(m[0][0])};{m[0][1:]}", line)


def md_fence(text: str) -> Markup:
    """A code block whose fence is longer than any run of backticks in it."""
    text = visible(clip(text, TEXT_CAPS[0]))
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return Markup(f"{fence}\n{text.rstrip()}\n{fence}")
