"""Characters that look like YAML's own and are not: what an input method for Japanese writes for a colon or a space."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from ..errors import Problem
from .yaml import read_lines

_SPACES = "\u3000\xa0\u1680\u2000-\u200b\u202f\u205f\ufeff"
_KINDS = (  # characters -> what they are taken for, and YAML's own
    (f"[{_SPACES}]", "space", " "),
    ("[：﹕]", "colon", ":"),
    ("[，、]", "comma", ","),
    ("[“”„‟＂]", "quote", '"'),
    ("[‘’‚＇]", "quote", "'"),
    ("[－–—ー―‐−]", "hyphen", "-"),
    ("[［］【】]", "bracket", "[ ]"),
    ("[｛｝]", "brace", "{ }"),
    ("＃", "number sign", "#"),
    ("＝", "equals sign", "="),
    ("[０-９．＋]", "digit", "0-9"),
    ("[Ａ-Ｚａ-ｚ＿]", "letter", "a-z"),
)
_FULL = {"\u3000": "full-width space", "\xa0": "no-break space", "、": "Japanese comma", "．": "full-width point",
         "＋": "full-width plus sign"}  # fmt: skip
# Where such a character stands in the place of YAML's own; elsewhere it is text.
_PLACES = tuple(
    re.compile(pattern)
    for pattern in (
        f"([{_SPACES}])",
        r"^(?:(?!:(?:\s|$)).)*?([：﹕])",
        r"^\s*([－–—ー―‐−])",
        r"(?:[:,\[{]|^\s*-)\s*([“”„‟＂‘’‚＇])",
        r"(?:[:,\[{]|^\s*-)\s*([［【｛])",
        r"[\[{][^\]}]*?([，、])",
        r"(?:[:,\[]|^\s*-)\s*[-+0-9.eE]*([０-９．＋])[-+0-9.eE０-９．]*\s*(?:[,\]}]|$)",
        r"\s(＃)",
        r"^\s*[a-z_]*([Ａ-Ｚａ-ｚ＿０-９])",
    )
)
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'|(?:^|(?<=\s))#.*')


def name_of(char: str) -> str:
    """Return what a look-alike is, and YAML's own character: "a full-width colon `：` (U+FF1A)"."""
    kind, own = next((kind, own) for pattern, kind, own in _KINDS if re.fullmatch(pattern, char))
    width = "full-width" if "\uff00" <= char <= "\uffef" else "Unicode"
    name = _FULL.get(char, f"{width} {kind}")
    shown = f" `{char}`" if char.isprintable() else ""
    needed = "an ASCII digit" if kind == "digit" else f"the ASCII {kind}" if own == " " else f"the ASCII `{own}`"
    return f"a {name}{shown} (U+{ord(char):04X}): write {needed}"


def find(line: str) -> int | None:
    """Return where in a line of YAML a character stands that only looks like one of YAML's own; None for nowhere.

    Text in quotes and comments is left alone.
    """
    bare = _QUOTED.sub(lambda found: "\0" * len(found.group()), line)
    places = [found.start(1) for place in _PLACES if (found := place.search(bare))]
    return min(places, default=None)


def with_lookalikes(problems: Iterable[Problem]) -> list[Problem]:
    """Return problems; where a look-alike stands in the line of one, this is named as its likely cause."""
    lines: dict[str, list[str]] = {}
    return [_named(problem, lines) for problem in problems]


def _named(problem: Problem, lines: dict[str, list[str]]) -> Problem:
    if problem.file is None or problem.line is None or problem.level != "error":
        return problem
    if problem.file not in lines:
        lines[problem.file] = read_lines(problem.file)
    source = lines[problem.file]
    for number in (problem.line, problem.line - 1):  # the parser notices some of them a line late
        at = find(source[number - 1]) if 0 < number <= len(source) else None
        if at is not None:
            hint = f"line {number}, column {at + 1} holds {name_of(source[number - 1][at])}"
            return replace(problem, line=number, column=at + 1, hint=hint)
        if not problem.message.startswith("not valid YAML"):
            break
    return problem
