"""What a terminal can show: its width, colours, and the characters of its encoding; text is measured in its cells.

A cell is the width of one Latin letter; Chinese, Japanese and Korean characters take two.
"""

from __future__ import annotations

import codecs
import os
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any

WIDTH = 80  # columns where the number is unknown
_NARROWEST = 40
_SHORTEST = 12  # cells that a shortened column keeps
_GAP = "  "
_COLOURS = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33}
_PLAINER = {"–": "-", "—": "-", "−": "-", "→": "->", "…": "...", "×": "x", "·": ".", "«": "<<", "»": ">>", "⏎": "\\n",
            "±": "+/-", "≥": ">=", "≤": "<=", "“": '"', "”": '"', "’": "'", "¹": "^1", "²": "^2", "³": "^3"}  # fmt: skip


# ---------------------------------------------------------------- characters


def cells(text: str) -> int:
    """Return how many cells of a terminal `text` takes: 2 for a wide character, 0 for a combining one."""
    return len(text) if text.isascii() else sum(map(_cells_of, text))


def _cells_of(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf") or "\u1160" <= char <= "\u11ff":
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def fit(text: str, width: int) -> str:
    """Return `text` on one line, cut to `width` cells; an ellipsis stands for what was cut."""
    text = text.replace("\n", " ").replace("\t", " ")
    if cells(text) <= width:
        return text
    kept = used = 0
    for char in text:
        used += _cells_of(char)
        if used > width - 1:
            break
        kept += 1
    return text[:kept] + "…"


def _padded(text: str, width: int, left: bool) -> str:
    space = " " * max(0, width - cells(text))
    return text + space if left else space + text


def use_readable_escapes(*streams: Any) -> None:
    """Let streams write what their encoding lacks as ASCII ("->" for an arrow, \\uXXXX for others), and never fail."""
    codecs.register_error("ftkit", _plainer)
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="ftkit")


def _plainer(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_PLAINER.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking), error.end


# ---------------------------------------------------------------- terminals


def columns(stream: Any, least: int = _NARROWEST) -> int:
    """Return the width of the terminal behind `stream` in cells; 80 where it is none, or does not say."""
    try:
        terminal = stream.isatty()
        found = os.get_terminal_size(stream.fileno()).columns if terminal else 0
    except (OSError, ValueError, AttributeError):
        found = 0
    asked = os.environ.get("COLUMNS", "")
    return max(least, int(asked) if asked.isdecimal() and int(asked) else found or WIDTH)


def steerable(stream: Any) -> bool:
    """Return whether control characters move the cursor of `stream`: it is a terminal, and not a dumb one."""
    return _is_terminal(stream) and os.environ.get("TERM") != "dumb"


def colourful(stream: Any) -> bool:
    """Return whether `stream` gets colours; NO_COLOR and FORCE_COLOR decide, in this order, where they are set."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") not in ("", "0"):
        return True
    return steerable(stream)


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (ValueError, AttributeError):  # it is closed, or no stream at all
        return False


def paint(text: str, *styles: str, stream: Any) -> str:
    """Return `text` in the given styles (bold, dim, red, green, yellow) where `stream` gets colours."""
    if not styles or not colourful(stream):
        return text
    return f"\x1b[{';'.join(str(_COLOURS[style]) for style in styles)}m{text}\x1b[0m"


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook: there a carriage return starts the line again."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return any(cls.__name__ == "ZMQInteractiveShell" for cls in type(shell).__mro__)


def has_graphical_screen() -> bool:
    """Return whether a window could be shown here; a browser in the terminal itself is no window."""
    if sys.platform in ("darwin", "win32") or os.environ.get("BROWSER"):
        return True
    return any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))) or bool(shutil.which("wslview"))


# ---------------------------------------------------------------- tables


def table(
    rows: Sequence[Sequence[str]],
    width: int,
    left: Sequence[int] = (0,),
    elastic: Sequence[int] = (),
    wrapped: int | None = None,
) -> str:
    """Return rows as lines of at most `width` cells; the first row is the header.

    Columns in `left` are aligned to the left, the others to the right. Where the table is too wide, the columns in
    `elastic` are shortened, in this order, and the text of the column `wrapped` goes over several lines. Where it is
    still too wide, the columns go into several tables, each of which begins with the first column.
    """
    widths = [max(cells(row[i]) for row in rows) for i in range(len(rows[0]))]
    for column in [*elastic, *([] if wrapped is None else [wrapped])]:
        over = _total(widths) - width
        if over > 0:
            widths[column] = max(min(widths[column], _SHORTEST), widths[column] - over)
    return "\n\n".join(
        "\n".join(line for row in rows for line in _lines(row, widths, part, left, wrapped))
        for part in _parts(widths, width)
    )


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _parts(widths: Sequence[int], width: int) -> list[list[int]]:
    """Return the columns of each table: one table, where all fit."""
    parts = [[0]]
    for column in range(1, len(widths)):
        if len(parts[-1]) > 1 and _total([widths[i] for i in (*parts[-1], column)]) > width:
            parts.append([0])
        parts[-1].append(column)
    return parts


def _lines(
    row: Sequence[str], widths: Sequence[int], part: Sequence[int], left: Sequence[int], wrapped: int | None
) -> list[str]:
    texts = [wrap(row[i], widths[i]) if i == wrapped else [fit(row[i], widths[i])] for i in part]
    high = max(map(len, texts))
    columns = [
        [_padded(text, widths[i], i in left) for text in (*lines, *[""] * (high - len(lines)))]
        for i, lines in zip(part, texts, strict=True)
    ]
    return [_GAP.join(line).rstrip() for line in zip(*columns, strict=True)]


def wrap(text: str, width: int) -> list[str]:
    """Return `text` as lines of at most `width` cells, broken between words; a longer word is broken within."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if cells(joined) <= width:
            lines[-1] = joined
            continue
        lines += [""] if lines[-1] else []
        for char in word:
            if cells(lines[-1] + char) > width:
                lines.append("")
            lines[-1] += char
    return lines
