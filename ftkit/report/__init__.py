"""The report: `build.py` computes its numbers, `render.py` draws it as HTML and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..directory import RunDirectory
from ..files import write_atomic, write_json
from ..records import Report
from .build import build_report
from .page.render import render_html, render_markdown

__all__ = ["build_report", "render_html", "render_markdown", "write_report"]


def write_report(
    runs: Sequence[RunDirectory], folder: Path, anyway: bool = False, prices: Sequence[str] = ()
) -> Report:
    """Build one report over `runs` and write report.json, report.md and report.html into `folder`."""
    report = build_report(runs, anyway, prices)
    write_json(folder / "report.json", report.to_dict())
    write_atomic(folder / "report.md", render_markdown(report))
    write_atomic(folder / "report.html", render_html(report))
    return report
