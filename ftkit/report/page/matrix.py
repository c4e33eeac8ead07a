"""Several systems beside each other: what differs between their recipes, and a matrix of their differences."""

from __future__ import annotations

from typing import Any

from ...lang import tr, word
from ...records import Delta, Report
from ...text import NONE, Scale, finite

SIGNS = {"better": "▲", "scored higher": "▲", "worse": "▼", "scored lower": "▼", "no difference shown": "="}
FEWEST = 3  # systems that make a matrix clearer than lines
SCORES = 12  # metrics below the keys that differ

View = dict[str, Any]


def final_names(report: Report) -> list[str]:
    """Return the systems that somebody would use in the end, in the order of the report."""
    return [s.name for s in report.systems if s.role in ("tuned", "external")]


def matrix_view(report: Report, scales: dict[str, Scale]) -> View | None:
    """Return one row and one column for each final system, each cell what the row has above the column."""
    names = final_names(report)
    found = {(d.from_, d.to): d for d in report.deltas if d.metric == report.primary}
    if len(names) < FEWEST or not any(a in names and b in names for a, b in found):
        return None
    scale = scales[report.primary]
    rows = [{"name": row, "cells": [_cell(found, row, column, scale) for column in names]} for row in names]
    return {"names": names, "rows": rows, "unit": scale.delta_unit}


def is_in_matrix(d: Delta, report: Report) -> bool:
    names = final_names(report)
    return len(names) >= FEWEST and d.from_ in names and d.to in names


def _cell(found: dict[tuple[str, str], Delta], row: str, column: str, scale: Scale) -> View:
    if row == column:
        return {"self": True}
    d = found.get((column, row))
    sign = 1
    if d is None:
        d, sign = found.get((row, column)), -1
    if d is None:
        return {
            "self": False,
            "value": NONE,
            "interval": None,
            "sign": "",
            "tone": "open",
            "verdict": tr("not compared"),
        }
    verdict = d.verdict if sign == 1 else _turned(d.verdict)
    low, high = (
        (d.low, d.high) if sign == 1 else (None if d.high is None else -d.high, None if d.low is None else -d.low)
    )
    tone = "better" if SIGNS.get(verdict) == "▲" else "worse" if SIGNS.get(verdict) == "▼" else "open"
    return {
        "self": False,
        "value": scale.signed(sign * d.delta),
        "interval": scale.signed_interval(low, high),
        "sign": SIGNS.get(verdict, ""),
        "tone": tone,
        "verdict": word(verdict or "no verdict"),
    }


def _turned(verdict: str) -> str:
    pairs = {"better": "worse", "scored higher": "scored lower"}
    return {**pairs, **{b: a for a, b in pairs.items()}}.get(verdict, verdict)


def differing_view(report: Report, scales: dict[str, Scale]) -> View | None:
    """Return the keys that differ with one column for each system, and their scores below with the best marked."""
    if report.differing is None:
        return None
    systems = {s.name: s for s in report.systems}
    shown = [systems[name] for name in report.differing.systems if name in systems]
    metrics = sorted(dict.fromkeys(n for s in shown for n in s.metrics), key=lambda n: n != report.primary)
    scores = []
    for name in metrics:
        found = [s.metrics.get(name) for s in shown]
        values = [finite(m.value) if m else None for m in found]
        known = [v for v in values if v is not None]
        direction = next((m.higher_is_better for m in found if m), None)
        if direction is None or not known:
            continue
        best = max(known) if direction else min(known)
        scale = scales[name]
        cells = [{"text": scale.value(v), "sort": v, "best": v == best and len(set(known)) > 1} for v in values]
        scores.append({"name": name, "unit": "" if scale.unit == name else scale.unit, "cells": cells})
    keys = [
        {"key": row["key"], "short": row["short"], "cells": [{"text": v, "sort": _number(v)} for v in row["values"]]}
        for row in report.differing.rows
    ]
    return {"systems": [s.name for s in shown], "keys": keys, "scores": scores[:SCORES]}


def _number(text: str | None) -> float | str | None:
    """Return what a column is sorted by: the number that a text is, else the text."""
    try:
        return float(text) if text is not None else None
    except ValueError:
        return text
