"""How numbers, durations, dollars, p-values and quoted text are written: once, for the terminal, messages and reports."""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from .lang import tr

NONE = "–"  # what stands for a value that is not known
MAX_KEY = 200  # characters of a word that are compared with known ones


# ---------------------------------------------------------------- text

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but for tab and newline
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # bidi controls and the Unicode line separators
    "\ud800-\udfff]"  # surrogates that lost their other half
)


def visible(text: str) -> str:
    """Return text with control, bidi and surrogate characters as symbols: ESC becomes ␛, U+202E becomes ⟨U+202E⟩.

    The result is safe on a terminal and in a page: no character of it steers anything.
    """
    if not _HIDDEN.search(text):
        return text
    return _HIDDEN.sub(_symbol, text.replace("\r\n", "\n"))


def printable(text: str) -> str:
    """Return text for a message about a key or a file: like `visible`, and no other character is invisible either.

    In running text a joiner such as U+200D has its use; in a key it would only hide a mistake.
    """
    return "".join(c if c.isprintable() or c == "\n" else _symbol(c) for c in visible(text))


def _symbol(found: re.Match[str] | str) -> str:
    code = ord(found if isinstance(found, str) else found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def quoted(value: object) -> str:
    """Return a value as a message shows it: short, on one line, in YAML's words."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if value is None or isinstance(value, bool):
        return "empty (null)" if value is None else str(value).lower()
    text = repr(value)
    return text if len(text) <= 50 else text[:47] + "..."


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that `word` most likely means; case and `-` do not count."""
    plain = {k.lower().replace("-", "_"): k for k in known}
    near = difflib.get_close_matches(word[:MAX_KEY].lower().replace("-", "_"), plain, 1)
    return plain[near[0]] if near else None


def one_line(value: object, cap: int | None = None) -> str:
    """Return the text of a value (an error, say) with each run of white space as one space, cut to `cap` characters."""
    line = " ".join(str(value)[: None if cap is None else cap * 4].split())
    return line if cap is None or len(line) <= cap else line[:cap].rstrip() + "…"


def normalise(text: str) -> str:
    """Return `text` in Unicode NFC with white space collapsed: what counts as the same input."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def counted(n: int, one: str, many: str) -> str:
    """Return "1 row has" or "2 rows have"."""
    return f"{n:,} {one if n == 1 else many}"


# ---------------------------------------------------------------- numbers


def finite(value: object) -> float | None:
    """Return the value as a finite float, or None: what can be shown, sorted by and drawn."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e100 else None


@dataclass(frozen=True)
class Scale:
    """How the values of one metric are written: times `factor`, with `digits` decimals."""

    factor: float
    digits: int
    unit: str
    delta_unit: str

    def value(self, x: float | None) -> str:
        """Return a value in this scale's unit: 0.5312 is "53.12" where the metric is a fraction."""
        x = finite(x)
        if x is None:
            return NONE
        text = f"{x * self.factor:,.{self.digits}f}"
        return text.replace("-", "−") if re.search("[1-9]", text) else text.lstrip("-")

    def signed(self, x: float | None) -> str:
        """Return a difference with its sign."""
        text = self.value(x)
        return text if text[0] in "–−" or not re.search("[1-9]", text) else f"+{text}"

    def interval(self, low: float | None, high: float | None) -> str | None:
        if finite(low) is None or finite(high) is None:
            return None
        return tr("{low} to {high}", low=self.value(low), high=self.value(high))

    def signed_interval(self, low: float | None, high: float | None) -> str | None:
        if finite(low) is None or finite(high) is None:
            return None
        return tr("{low} to {high}", low=self.signed(low), high=self.signed(high))


def scale_for(unit: str, values: Iterable[float | None], widths: Iterable[float | None] = ()) -> Scale:
    """Return how values of `unit` are written: fractions as percent, others with three digits that count.

    Where `widths` of intervals are known (high - low), the digits follow them: half of a usual interval has two digits, so
    that no decimal is shown which the interval leaves open.
    """
    factor = 100 if unit == "fraction" else 1
    found = [x * factor for v in widths if (x := finite(v)) is not None and x > 0]
    digits = _digits_of(found, factor) if found else None
    if unit == "fraction":
        return Scale(100, 2 if digits is None else digits, "%", tr("points"))
    return Scale(1, _digits_that_count(values) if digits is None else digits, unit, unit)


def _digits_of(widths: Iterable[float], factor: int) -> int:
    """Return the decimals of numbers whose intervals are so wide: two digits of half the middle width; of percent 1 or 2."""
    digits = 1 - math.floor(math.log10(median(widths) / 2) + 1e-9)
    return min(max(digits, 1), 2) if factor == 100 else min(max(digits, 0), 8)


def _digits_that_count(values: Iterable[float | None]) -> int:
    largest = max((abs(x) for v in values if (x := finite(v)) is not None), default=0.0)
    if largest >= 1000:
        return 0
    if largest >= 1 or largest == 0:
        return 1 if largest >= 100 else 2
    return min(8, 2 - math.floor(math.log10(largest)))


def metric_value(value: float | None, unit: str = "fraction") -> str:
    """Return one metric's value by itself, as `scale_for` writes it."""
    return scale_for(unit, [value]).value(value)


def count(n: int | None) -> str:
    return NONE if n is None else f"{n:,}"


def about(n: float | None) -> str:
    """Return a large count with the three digits that matter: 1,668,571 is 1,670,000."""
    n = finite(n)
    if n is None:
        return NONE
    digits = 0 if n < 1000 else 2 - math.floor(math.log10(n))
    return f"{round(n, digits):,.0f}"


def p_value(p: float | None) -> str:
    """Return a p-value with three decimals, "< 0.001" below that."""
    p = finite(p)
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def p_equals(p: float | None) -> str:
    """Return a p-value as a sentence writes it: "p = 0.035", "p < 0.001"."""
    text = p_value(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def duration(seconds: float | None) -> str:
    """Return a duration in words that cannot be mistaken: 4.2 s, 42 s, 3 min 07 s, 1 h 02 min."""
    seconds = finite(seconds)
    if seconds is None:
        return NONE
    if seconds < 9.95:
        return tr("{n:.1f} s", n=seconds)
    whole = round(seconds)
    if whole < 60:
        return tr("{n} s", n=whole)
    if whole < 3600:
        return tr("{n} min {s:02d} s", n=whole // 60, s=whole % 60)
    return tr("{n} h {m:02d} min", n=whole // 3600, m=whole % 3600 // 60)


def age(seconds: float | None) -> str:
    """Return in one unit how long ago something was: 40 s, 12 min, 3 h, 5 d."""
    seconds = finite(seconds)
    if seconds is None:
        return NONE
    seconds = max(0.0, seconds)
    if seconds < 60:
        return tr("{n} s", n=int(seconds))
    if seconds < 3600:
        return tr("{n} min", n=int(seconds // 60))
    return tr("{n} h", n=int(seconds // 3600)) if seconds < 2 * 86400 else tr("{n:,} d", n=int(seconds // 86400))


def dollars(usd: float | None) -> str:
    """Return dollars with cents, and below a dollar with three digits that count: $1,234.50, $0.80, $0.0123, $0."""
    usd = finite(usd)
    if usd is None:
        return NONE
    if usd == 0 or abs(usd) >= 1:
        return f"${usd:,.2f}" if usd else "$0"
    if abs(usd) < 1e-9:
        return "< $0.000000001"
    whole, _, decimals = f"{usd:.{2 - math.floor(math.log10(abs(usd)))}f}".partition(".")
    return f"${whole}.{decimals.rstrip('0').ljust(2, '0')}"


def size(n: int | None) -> str:
    """Return bytes as kB, as MB from 0.1 MB on, as GB from 0.1 GB on (powers of 1000)."""
    if n is None:
        return NONE
    if n < 1e5:
        return f"{n / 1e3:,.1f} kB"
    return f"{n / 1e9:,.2f} GB" if n >= 1e8 else f"{n / 1e6:,.1f} MB"
