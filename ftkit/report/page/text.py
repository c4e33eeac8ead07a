"""How texts and numbers are written in a report: nothing hidden, nothing too long, units where they belong."""

from __future__ import annotations

import json
import re

from markupsafe import Markup, escape

from ...lang import language, tr
from ...text import NONE, visible

TEXT_CAPS = (20_000, 5_000, 1_000, 300)  # characters per text of an example: the largest that fits the budget
PAGE_CAP = 200_000  # characters of any other text: a recipe, a lock, a message


# ---------------------------------------------------------------- text


def clip(text: str, cap: int) -> str:
    if len(text) <= cap:
        return text
    return text[:cap] + tr("… [cut here: {n:,} characters in all]", n=len(text))


def shown(value: object) -> str:
    """What a template prints of any value: text with nothing hidden in it; None is a dash."""
    if isinstance(value, Markup):
        return value
    return NONE if value is None else visible(clip(str(value), PAGE_CAP))


_KANA, _HANGUL, _HAN = (re.compile(f"[{chars}]") for chars in ("ぁ-ゖァ-ヺｦ-ﾝ", "가-힣", "々一-鿿"))


def in_own_language(text: object) -> Markup:
    """Return the attribute `lang` of a text of the user's data: Japanese by its kana, Korean by its hangul.

    Chinese characters alone say nothing: such a text has the language of the page. Any other text has an unknown one
    in a page that is not English.
    """
    found = str(text)
    if _KANA.search(found):
        return Markup(' lang="ja"')
    if _HANGUL.search(found):
        return Markup(' lang="ko"')
    return Markup("") if language() == "en" or _HAN.search(found) else Markup(' lang=""')


def breakable(name: object) -> Markup:
    """A name of a metric or a system as HTML that a narrow column may break after each - and _."""
    return Markup(re.sub("([-_])(?=.)", r"\1<wbr>", str(escape(shown(name)))))


_COMMAND = re.compile(r"\bftkit (?:run|score|report|cancel|check) [^;\n]+$")


def commands(text: object) -> Markup:
    """A sentence as HTML in which the command that ends it is marked as such, to be copied."""
    whole = shown(text)
    found = _COMMAND.search(whole)
    if not found:
        return escape(whole)
    return escape(whole[: found.start()]) + Markup('<code class="command">{}</code>').format(found[0])


def pretty(value: object) -> str:
    """Nested data for people: text as it is, the rest as indented JSON."""
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False, default=str)


def json_island(data: object) -> Markup:
    """JSON that cannot leave its `<script>` element, whatever strings are in it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


def moment(text: object) -> object:
    """A time as people write it, 2026-11-24 06:11 UTC; what is no ISO 8601 time in UTC stays as it is."""
    found = re.match(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)[\d:.]*(Z|\+00:00)$", str(text))
    return f"{found[1]} {found[2]} UTC" if found else text


# ---------------------------------------------------------------- markdown

ZERO_WIDTH = "\u200b"  # parts an @ or # from its name, so that no person is notified and no issue linked
# What could mean something in Markdown. An underscore within a word and a price ("$0.42") mean nothing: they stay.
_MD_SPECIAL = re.compile(
    r"[\\`*\[\]|~]|<(?=[a-z/!?])|(?<![^\W_])_|_(?!_*[^\W_])|&(?=#?\w+;)|(?<=:)/(?=/)|(?<=www)\.|(?<=[#@])(?=\w)"
    r"|(?<=[^\s(])\$|\$(?!\d)",
    re.IGNORECASE,
)
_MD_NAMED = {"<": "&lt;", "&": "&amp;", "$": "&#36;", "": ZERO_WIDTH}
_MD_BLOCK = re.compile(r"^(?:([#+=-])(?=[\s#=+-]|$)|(>)|(\d+)([.)])(?=\s|$))")


def md_text(value: object) -> str:
    """Data as one line of Markdown that means only its letters: no table cell, markup, link or mention.

    A reader in a terminal sees the letters too: only what would mean something gets a backslash.
    """
    if isinstance(value, Markup):
        return value
    line = " ".join(shown(value).split())
    line = _MD_SPECIAL.sub(lambda m: _MD_NAMED.get(m[0], f"\\{m[0]}"), line)
    return _MD_BLOCK.sub(lambda m: "&gt;" if m[2] else f"\\{m[1]}" if m[1] else f"{m[3]}\\{m[4]}", line)


def md_fence(text: str) -> Markup:
    """A code block whose fence is longer than any run of backticks in it."""
    text = visible(clip(text, TEXT_CAPS[0]))
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return Markup(f"{fence}\n{text.rstrip()}\n{fence}")
