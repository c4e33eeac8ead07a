"""The rows of a report as drawings: a histogram of each system, and the sorted gain of each row."""

from __future__ import annotations

import itertools
from typing import Any
from urllib.parse import quote

from ...lang import msg, plural, tr
from ...records import Distribution, Report
from ...text import Scale, visible
from .charts import axis_of, percent_of

BARS = 400  # more rows than this share bars
SYSTEMS = 8  # histograms that are drawn

View = dict[str, Any]


def distribution_view(report: Report, scales: dict[str, Scale]) -> View | None:
    """Return the histograms and the gains as positions in percent; None where no difference was computed."""
    d = report.distribution
    if d is None or not d.gains:
        return None
    scale = scales[d.metric]
    return {"metric": d.metric, "unit": scale.unit, "from": d.from_, "to": d.to, **_histograms(d, report, scale), **_gains(d, scale)}  # fmt: skip


def _histograms(d: Distribution, report: Report, scale: Scale) -> View:
    edges = [edge * scale.factor for edge in d.edges]
    low, high, axis = axis_of(edges[0], edges[-1])
    roles = {s.name: s.role for s in report.systems}
    means = {s.name: s.metrics[d.metric].value for s in report.systems if d.metric in s.metrics}
    order = [d.from_, *(n for n in d.counts if n not in (d.from_, d.to)), d.to]
    names = [name for name in order if name in d.counts]
    if len(names) > SYSTEMS:
        names = [*names[: SYSTEMS - 1], names[-1]]
    tallest = max(max(d.counts[name]) for name in names) or 1
    spans = list(itertools.pairwise(edges))
    rows = [
        {
            "name": name,
            "role": roles.get(name, ""),
            "mean": percent_of(means[name] * scale.factor, low, high) if name in means else None,
            "summary": _in_words(d.counts[name], spans, scale),
            "bars": [
                {
                    "x": percent_of(left, low, high),
                    "width": round(percent_of(right, low, high) - percent_of(left, low, high) - 0.4, 3),
                    "y": round(100 - 100 * n / tallest, 2),
                    "height": round(100 * n / tallest, 2),
                    "text": plural(
                        n, "{low:g} to {high:g}: {n:,} row", "{low:g} to {high:g}: {n:,} rows", low=left, high=right
                    ),
                }
                for (left, right), n in zip(spans, d.counts[name], strict=True)
                if n
            ],
        }
        for name in names
    ]
    return {"histogram_axis": axis, "histograms": rows, "left_out": len(d.counts) - len(names)}


def _in_words(counts: tuple[int, ...], spans: list[tuple[float, float]], scale: Scale) -> str:
    n, most = sum(counts), max(counts)
    left, right = spans[counts.index(most)]
    text = msg("{n:,} rows, most of them ({most:,}) from {low:g} to {high:g} {unit}")
    return tr(text, n=n, most=most, low=left, high=right, unit=scale.unit).strip()


def _gains(d: Distribution, scale: Scale) -> View:
    per_bar = -(-len(d.gains) // BARS)
    groups = [d.gains[i : i + per_bar] for i in range(0, len(d.gains), per_bar)]
    heights = [scale.factor * sum(row["gain"] for row in group) / len(group) for group in groups]
    low, high, axis = axis_of(min(0.0, *heights), max(0.0, *heights), 4)
    zero = 100 - percent_of(0, low, high)
    for mark in axis:
        mark["at"] = round(100 - mark["at"], 3)
    width = 100 / len(groups)
    bars = []
    for i, (group, height) in enumerate(zip(groups, heights, strict=True)):
        top = 100 - percent_of(height, low, high)
        known = [row["right"] for row in group if row["right"] is not None]
        tone = (
            ("right" if all(known) else "wrong") if known else "up" if height > 0 else "down" if height < 0 else "open"
        )
        first = visible(str(group[0]["id"]))
        wrong = sum(1 for ok in known if not ok)
        if per_bar == 1:
            what = f"{first}: {scale.signed(group[0]['gain'])}"
            said = tr(", {metric} wrong", metric=d.second) if wrong else tr(", {metric} right", metric=d.second)
        else:
            text = msg("{n} rows from {id} on: {change} on average")
            what = tr(text, n=len(group), id=first, change=scale.signed(height / scale.factor))
            said = tr(", {n} wrong in {metric}", n=wrong, metric=d.second)
        bars.append(
            {
                "x": round(i * width, 3),
                "width": round(width * (0.8 if len(groups) <= 250 else 1), 3),
                "y": round(min(top, zero), 3),
                "height": round(max(abs(zero - top), 0.6), 3),
                "tone": tone,
                "href": f"#example={quote(str(group[0]['id']), safe='', errors='replace')}",
                "text": what + (said if d.second else ""),
            }
        )
    n = d.n_better + d.n_same + d.n_worse
    text = msg("{better:,} of {n:,} rows are better, {same:,} the same, {worse:,} worse")
    summary = tr(text, n=n, better=d.n_better, same=d.n_same, worse=d.n_worse)
    text = msg("{n:,} of {all:,} rows are wrong in {metric}")
    second = tr(text, n=d.n_second - d.n_right, all=d.n_second, metric=d.second) if d.second else ""
    return {"bars": bars, "gain_axis": axis, "zero": round(zero, 3), "summary": summary, "second": d.second, "wrong": second,
            "per_bar": per_bar, "delta_unit": scale.delta_unit}  # fmt: skip
