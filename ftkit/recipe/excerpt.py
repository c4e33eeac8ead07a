"""The line of a recipe that a mistake stands in, with a mark below the place."""

from __future__ import annotations

from ..errors import Problem
from ..terminal import cells
from ..text import visible
from .yaml import read_lines


def excerpt(problem: Problem, width: int) -> list[str]:
    """Return the line of the file that a problem speaks of and a caret below it; nothing where there is no such line.

    Both lines take at most `width` cells.
    """
    if problem.file is None or problem.line is None:
        return []
    lines = read_lines(problem.file)
    if not 0 < problem.line <= len(lines) or not lines[problem.line - 1].strip():
        return []
    lead = f"{problem.line:>5} | "
    text = lines[problem.line - 1].replace("\t", " ")
    at = min((problem.column or 1) - 1, len(text))
    indent = len(text) - len(text.lstrip()) if problem.column is None else 0
    at = max(at, indent)
    start = 0
    if cells(lead + visible(text)) > width:  # half of the room is for what stands before the place
        while cells(visible(text[start:at])) > (width - len(lead)) // 2:
            start += 1
    shown, place = visible(text[start:]), visible(text[start:at])
    while cells(lead + shown) > width:
        shown = shown[:-1]
    return [lead + shown, f"{'':>5} | {' ' * cells(place)}^"]
