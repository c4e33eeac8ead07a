"""What the command line prints: results on stdout, messages for people on stderr."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import FtkitError, Interrupted, Problem, RecipeError
from ..text import duration, scale_for, visible

if TYPE_CHECKING:
    from ..records import Report


def print_json(data: Any) -> None:
    """Print the one JSON document of a command."""
    from ..files import dump_json

    click.echo(dump_json(data, indent=2))


def show_error(error: FtkitError, as_json: bool) -> None:
    """Say what ended the command; with `as_json` on stdout too."""

    lead = "" if isinstance(error, Interrupted | RecipeError) else "error: "
    try:
        if as_json:
            print_json({"ok": False, "errors": [p.to_dict() for p in problems_in(error)]})
        click.echo(visible(f"{lead}{error}"), err=True)
    except OSError:  # the terminal was closed: what counts is the exit status
        for fd in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


def problems_in(error: FtkitError) -> list[Problem]:
    return error.problems if isinstance(error, RecipeError) else [Problem(error.message, hint=error.hint)]


def print_report(folder: Path) -> None:
    """Print the report in `folder` as a table and its verdict."""
    from ..files import read_json
    from ..records import Report

    report = Report.from_dict(read_json(folder / "report.json"))
    click.echo()
    click.echo(visible(_table(report)))
    click.echo(visible(f"\n{report.verdict}\n{report.verdict_detail}"))
    for note in report.notes:
        click.echo(visible(f"note: {note}"))
    click.echo(visible(f"\nreport: {folder / 'report.html'}"))


def _table(report: Report) -> str:
    """Return the systems as plain text: one row each."""
    names = list(dict.fromkeys(n for s in report.systems for n in s.metrics))
    scales = {n: scale_for(s.metrics[n].unit, [s.metrics[n].value]) for s in report.systems for n in s.metrics}
    rows = [["system", *names, "n", "time"]]
    for s in report.systems:
        cells = [scales[n].value(s.metrics[n].value if n in s.metrics else None) for n in names]
        n = max((m.n for m in s.metrics.values()), default=0)
        rows.append([s.name, *cells, str(n), duration(s.seconds)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )
