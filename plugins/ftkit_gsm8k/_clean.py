"""Text with numbers in one plain form: what people and models write as 1 234,50 or as a LaTeX fraction, made uniform.

``clean`` changes how a number is written, never its value: full-width digits, dashes, group separators, currencies,
vulgar and LaTeX fractions, powers, markdown. Exponents of units (``m^2``) are removed: they are no numbers.
"""

from __future__ import annotations

import re
import unicodedata

_DASHES = dict.fromkeys(map(ord, "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d"), "-")
_FULL_WIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_ONE_FOR_ONE = {**_FULL_WIDTH, **_DASHES, 0x3000: " ", 0x2014: " ", 0x2015: " ", 0xD7: "×", 0xFFE5: "¥"}
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"
_SUPERSCRIPTS = str.maketrans(_RAISED, "0123456789-")
_VULGAR = re.compile("(\\d?)\\s?([¼½¾⅐-⅞])")

# (characters without one of which a step has nothing to do, pattern, replacement)
_STEPS: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (needs, re.compile(pattern), new)
    for needs, pattern, new in (
        # LaTeX
        ("\\", r"\\([$%#&_])", r"\1"),
        ("\\{", r"\{,\}|(?<=\d)\\[,;!:](?=\d{3}(?!\d))", ","),
        ("\\", r"\\[,;!:]|\\q?quad\b", " "),
        ("\\", r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}", r" \1 "),
        ("\\", r"\\(?:left|right)\b\s*", ""),
        ("\\", r"\\(?:times|cdot)\b", "*"),
        ("\\", r"\\div\b", "/"),
        ("\\", r"\\[dtc]?frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        ("\\", r"\\[dtc]?frac\s*\{([^{}]*)\}\s*(\d)", r"\\frac{\1}{\2}"),
        ("\\", r"\\[dtc]?frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        ("\\", r"\\[dtc]frac", r"\\frac"),
        # powers: of units, of ten, of whole numbers
        ("*", r"(?<=\d)\*\*(?=\d)", "^"),
        (_RAISED, rf"(?<=\d)([{_RAISED}]+)", r"^\1"),
        (_RAISED + "^", rf"(?<=[A-Za-z])(?:[{_RAISED}]+|\s*\^\s*(?:\{{\s*-?\d+\s*\}}|-?\d+))", ""),
        ("23", r"(?<![A-Za-z])((?:[kcmd]?m|ft|in|yd|mi))[23](?![\w.,]*\d)\b", r"\1"),
        # markdown, also around a number: **18**, _18_
        ("*_`", r"\*\*|__|`", ""),
        ("_", r"(?<!\w)_(?=[-$\d])|(?<=\d)_(?!\w)", ""),
        # groups of three digits
        ("\u00a0\u2009\u202f'\u2019_", r"(?<=\d)[\u00a0\u2009\u202f'\u2019_](?=\d{3}(?!\d))", ","),
        ("\u00a0\u2009\u202f", r"[\u00a0\u2009\u202f]", " "),
    )
)
_SPACED = re.compile(r"(?<![\d.,/])\d{1,3}(?: \d{3})+(?![\d/]|[.,]\d{3})")
_SPACED_LINE = re.compile(
    r"^((?:(?:####|A:|.*\banswer\b[^\d\n]*?)\s*)?[$€£¥]?\s?-?\d{1,3})((?: \d{3})+)(?=\s?[.%$€£¥]?(?:\s?[A-Za-z]+\.?)?\s*$)",
    re.MULTILINE | re.IGNORECASE,
)
_EUROPEAN = re.compile(
    r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+),(\d+)(?![\d.,]*\d)|(?<![\d.,])(\d{1,3}(?:\.\d{3}){2,})(?![\d.,]*\d)"
)
_EURO_CENTS = re.compile(
    r"(€\s?\d+),(\d{1,2})(?!\d)|(?<![\d.,])(\d+),(\d{1,2})(?=\s?(?:€|EUR\b|euros?\b))", re.IGNORECASE
)
_SCIENTIFIC = re.compile(r"(\d)\s*[x×*]\s*10\s*\^\s*(?:\{\s*([+-]?\d{1,3})\s*\}|([+-]?\d{1,3}))")
_TENTH = re.compile(r"(?<![\d.,])10\s*\^\s*(?:\{\s*-(\d)\s*\}|-(\d)(?!\d))")
_POWER = re.compile(r"(?<![\d.,])(\d{1,6})\s*\^\s*(?:\{\s*(\d{1,2})\s*\}|(\d{1,2})(?!\d))")


def clean(text: str) -> str:
    """Return the text with its numbers in plain form, such as 1,234.5 and -3/4."""
    if not text.isascii():
        text = text.translate(_ONE_FOR_ONE)
    for needs, pattern, new in _STEPS:
        if any(c in text for c in needs):
            text = pattern.sub(new, text)
    if not text.isascii():
        text = _VULGAR.sub(_fraction, text.translate(_SUPERSCRIPTS))
    if "^" in text:
        text = _SCIENTIFIC.sub(lambda m: f"{m[1]}e{m[2] or m[3]}", text)
        text = _POWER.sub(_power, _TENTH.sub(lambda m: f"1e-{m[1] or m[2]}", text))
    if "." in text:
        text = _EUROPEAN.sub(_grouped, text)
    if "," in text and ("€" in text or "eur" in text.lower()):
        text = _EURO_CENTS.sub(lambda m: f"{m[1] or m[3]}.{m[2] or m[4]}", text)
    if not _SPACED.search(text):
        return text
    text = _SPACED_LINE.sub(lambda m: m[1] + m[2].replace(" ", ","), text)
    return _SPACED.sub(_joined, text)


def _grouped(match: re.Match[str]) -> str:
    """Return 1.234,5 as 1,234.5, and 1.234.567 as 1,234,567."""
    return f"{(match[1] or match[3]).replace('.', ',')}{'.' + match[2] if match[2] else ''}"


def _fraction(match: re.Match[str]) -> str:
    """Return "2½" as "2 1/2"."""
    up, _, down = unicodedata.normalize("NFKC", match[2]).partition("\u2044")
    return f"{match[1]} {up}/{down}" if match[1] else f"{match[0][: -len(match[2])]}{up}/{down}"


def _power(match: re.Match[str]) -> str:
    value = int(match[1]) ** int(match[2] or match[3])
    return str(value) if value < 10**60 else match[0]


def _joined(match: re.Match[str]) -> str:
    """Return 1 000 and 1 234 567 as one number; 5 100 may be two ("5 100 gram bags") and stays."""
    groups = match[0].split(" ")
    return ",".join(groups) if len(groups) > 2 or groups[-1] == "000" else match[0]
