"""The report: `build.py` computes its numbers, `render.py` draws it as HTML and as Markdown."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ..directory import RunDirectory
from ..files import write_atomic, write_json
from ..records import Report
from .build import MoreSections, build_report
from .page.live import render_live
from .page.render import render_brief, render_html, render_markdown
from .unfinished import is_unfinished, look_at

__all__ = ["build_report", "render_brief", "render_html", "render_markdown", "write_report"]


def write_report(
    runs: Sequence[RunDirectory],
    folder: Path,
    anyway: bool = False,
    prices: Sequence[str] = (),
    brief: bool = False,
    more: MoreSections | None = None,
) -> Report:
    """Build one report over `runs` and write report.json, report.md and report.html into `folder`.

    The report.html of one run that is not done says how far it is, or what ended it and how to continue. `brief` writes
    brief.html too: the result on one A4 page. `more` adds sections, the first of all.
    """
    report = build_report(runs, anyway, prices, more)
    write_json(folder / "report.json", report.to_dict())
    write_atomic(folder / "report.md", render_markdown(report))
    page = render_live(look_at(runs[0], time.time())) if _is_alone_and_unfinished(runs) else render_html(report)
    write_atomic(folder / "report.html", page)
    if brief:
        write_atomic(folder / "brief.html", render_brief(report))
    return report


def _is_alone_and_unfinished(runs: Sequence[RunDirectory]) -> bool:
    return len(runs) == 1 and is_unfinished(runs[0])
