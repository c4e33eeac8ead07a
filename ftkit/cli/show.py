"""What the command line prints: results on stdout, messages for people on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import terminal
from ..errors import FtkitError, Interrupted, Problem, RecipeError
from ..lang import joined, tr
from ..recipe.excerpt import excerpt
from ..text import count, duration, scale_for, visible

if TYPE_CHECKING:
    from ..records import Report

TROUBLESHOOTING = "docs/troubleshooting.md"
MARKS = {"error": "red", "warning": "yellow", "note": "dim"}


# ---------------------------------------------------------------- lines


def echo(text: str = "", err: bool = False) -> None:
    """Print a line; what would steer a terminal becomes visible."""
    print(visible(text), file=sys.stderr if err else sys.stdout, flush=True)


def echo_next(text: str) -> None:
    """Say what is usually done next: the last line of a command."""
    print(terminal.paint(tr("next:"), "bold", stream=sys.stderr), visible(text), file=sys.stderr, flush=True)


def echo_table(
    rows: Sequence[Sequence[str]], left: Sequence[int] = (0,), elastic: Sequence[int] = (), wrapped: int | None = None
) -> None:
    """Print rows, the first of which is the header, as wide as the terminal."""
    rows = [[visible(cell) for cell in row] for row in rows]
    text = terminal.table(rows, terminal.columns(sys.stdout), left, elastic, wrapped)
    for n, line in enumerate(text.split("\n")):
        print(line if n else terminal.paint(line, "bold", stream=sys.stdout), flush=True)


def print_json(data: Any) -> None:
    """Print the one JSON document of a command; characters that stdout cannot hold become \\u escapes."""
    from ..files import dump_json

    text = dump_json(data, indent=2)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(json.loads(text), indent=2)
    print(text, flush=True)


# ---------------------------------------------------------------- mistakes


def show_error(error: FtkitError, as_json: bool) -> None:
    """Say what ended the command; with `as_json` on stdout too."""
    try:
        if as_json:
            print_json({"ok": False, "errors": [p.to_dict() for p in problems_in(error)]})
        if isinstance(error, RecipeError):
            show_problems(error.problems)
        else:
            lead = "" if isinstance(error, Interrupted) else terminal.paint("error:", "red", stream=sys.stderr) + " "
            print(f"{lead}{visible(str(error))}", file=sys.stderr, flush=True)
    except OSError:  # the terminal was closed: what counts is the exit status
        for fd in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


def problems_in(error: FtkitError) -> list[Problem]:
    return error.problems if isinstance(error, RecipeError) else [Problem(error.message, hint=error.hint)]


def show_problems(problems: Sequence[Problem]) -> None:
    """Print mistakes and findings, each with the line of the recipe that it speaks of."""
    for problem in problems:
        message, _, hint = str(problem).partition("\n")
        lead = "" if problem.level == "error" and problem.file else f"{problem.level}: "
        print(terminal.paint(lead, MARKS[problem.level], stream=sys.stderr) + visible(message), file=sys.stderr)
        if hint:
            echo(hint, err=True)
        for line in excerpt(problem, terminal.columns(sys.stderr)):
            print(line, file=sys.stderr)
    if any(_is_of_yaml(problem) for problem in problems):
        echo(f'see: {TROUBLESHOOTING}, "YAML mistake"', err=True)


def _is_of_yaml(problem: Problem) -> bool:
    """Return whether YAML itself was misunderstood: its syntax, or what it takes a value for."""
    return problem.message.startswith(("not valid YAML", "a tab cannot")) or "YAML 1.2" in (problem.hint or "")


# ---------------------------------------------------------------- reports


def print_report(folder: Path, verbose: bool = False) -> None:
    """Print the report in `folder` as a table and its verdict; `verbose` shows every metric."""
    from ..files import read_json
    from ..records import Report
    from ..report.spoken import in_language

    report = in_language(Report.from_dict(read_json(folder / "report.json")))
    echo()
    more = _print_systems(report, verbose)
    echo(f"\n{report.verdict}\n{report.verdict_detail}")
    for note in report.notes:
        echo(tr("note: {text}", text=note))
    if more:
        echo(tr("not shown: {names} (-v shows them)", names=joined(more)))
    echo("\n" + tr("report: {path}", path=folder / "report.html"))


def _print_systems(report: Report, verbose: bool) -> list[str]:
    """Print one system a row, the primary metric first. Return the names of the metrics that are not shown."""
    found = dict.fromkeys(n for s in report.systems for n in s.metrics)
    names = [report.primary, *(n for n in found if n != report.primary)] if report.primary in found else list(found)
    shown = names if verbose else names[:1]
    scales = {n: scale_for(s.metrics[n].unit, [s.metrics[n].value]) for s in report.systems for n in s.metrics}
    heads = [f"{n} %" if scales[n].unit == "%" else n for n in shown]
    rows = [[tr("system"), *heads[:1], "n", tr("time"), *heads[1:]]]
    for s in report.systems:
        cells = [scales[n].value(s.metrics[n].value if n in s.metrics else None) for n in shown]
        primary = s.metrics.get(shown[0]) if shown else None
        rows.append([s.name, *cells[:1], count(primary.n if primary else None), duration(s.seconds), *cells[1:]])
    echo_table(rows, elastic=(0,))
    return names[len(shown) :]
