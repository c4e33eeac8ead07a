"""The drawings of a report: every position is in percent of the plot, so that they fit any width."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ...lang import joined, tr, word
from ...records import Curve, Report
from ...text import Scale, finite, scale_for
from .seeds import seed_values

CHART_POINTS = 600  # per line: more than a screen shows
MARKED_POINTS = 40  # lines up to this long get a mark with its value at each point
COLOURS = 6
LOG_FROM = 30  # an axis is logarithmic where the largest value is so many times the smallest one
LABEL_GAP = 9.0  # percent of the plot's height between two labels at the ends of lines
LABELLED = 11  # lines that have room for such a label
LABEL = 20  # characters of it

View = dict[str, Any]


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that cover `low`..`high`, about `wanted` of them."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(low) / 2 or 0.5
        low, high = low - margin, high + margin
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((power * m for m in (1, 2, 5) if power * m >= raw), power * 10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def tick_labels(at: Sequence[float]) -> list[str]:
    step = at[1] - at[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [Scale(1, digits, "", "").value(t) for t in at]


def axis_of(low: float, high: float, wanted: int = 5) -> tuple[float, float, list[View]]:
    """Return both ends of an axis and its marks, {"at": percent, "text"}."""
    at = ticks(low, high, wanted)
    labels = [{"at": percent_of(t, at[0], at[-1]), "text": text} for t, text in zip(at, tick_labels(at), strict=True)]
    return at[0], at[-1], labels


def percent_of(x: float, low: float, high: float) -> float:
    return round(100 * (x - low) / (high - low), 3)


def forest(report: Report, scales: dict[str, Scale]) -> View | None:
    """A dot and an interval for each system's primary metric, on one axis; a small dot for each of several seeds."""
    scale = scales[report.primary]
    found = [(s, m) for s in report.systems if (m := s.metrics.get(report.primary)) and finite(m.value) is not None]
    found = [(s, m) for s, m in found if s.role != "extra"] or found
    if not found:
        return None
    seeds = {s.name: seed_values(s, report.primary) for s in report.systems}
    drawn = [v for s, m in found for v in (m.value, m.low, m.high, *seeds[s.name].values())]
    ends = [x * scale.factor for v in drawn if (x := finite(v)) is not None]
    low, high, axis = axis_of(min(ends), max(ends))
    return {
        "unit": scale.unit,
        "axis": axis,
        "rows": [
            {
                "name": s.name,
                "role": s.role,
                "value": scale.value(m.value),
                "interval": scale.interval(m.low, m.high),
                "at": percent_of(m.value * scale.factor, low, high),
                "seeds": [
                    {
                        "at": percent_of(v * scale.factor, low, high),
                        "text": tr("seed {seed}: {value}", seed=seed, value=scale.value(v)),
                    }
                    for seed, v in seeds[s.name].items()
                ],
                "low": percent_of((m.value if finite(m.low) is None else m.low or 0) * scale.factor, low, high),
                "high": percent_of((m.value if finite(m.high) is None else m.high or 0) * scale.factor, low, high),
            }
            for s, m in found
        ],
    }


# ---------------------------------------------------------------- curves


def panels(
    curves: Sequence[Curve], scales: dict[str, Scale], primary: str, groups_of: Mapping[str, str] | None = None
) -> View:
    """One panel for each metric with one line for each run: the primary metric first, then the losses.

    A run has the same colour in each panel, and so have the seeds of one system, which `groups_of` names by run.
    `legend` names the colours where there are several.
    """
    runs = list(dict.fromkeys(curve.run for curve in curves))
    system = {run: (groups_of or {}).get(run, run) for run in runs}
    systems = list(dict.fromkeys(system.values()))
    colours = {run: (system[run], colour(systems.index(system[run]))) for run in runs}
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(curve.name, []).append(curve)
    order = sorted(groups, key=lambda name: (name != primary, groups[name][0].axis != "loss"))
    drawn = [_chart(n, groups[n], curve_scale(n, groups[n], scales), len(runs) > 1, colours) for n in order]
    legend = [{"name": name, "colour": colour(i)} for i, name in enumerate(systems)] if len(systems) > 1 else []
    return {"legend": legend, "first": drawn[:6], "more": drawn[6:]} if drawn else {}


def colour(i: int) -> str:
    """Return the class of the i-th line: a colour and a dash of its own, wider where the colours begin again."""
    return f"c{i % COLOURS}" + (" again" if i >= COLOURS else "")


def charts(curves: Iterable[Curve], scales: dict[str, Scale], labels: Mapping[str, str]) -> list[View]:
    """One chart for each axis that a plugin names, with all its lines."""
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(curve.axis, []).append(curve)
    views = []
    for axis, group in groups.items():
        several = len({c.run for c in group}) > 1
        named = [Curve(labels.get(c.run, c.run), c.name, c.axis, c.points, c.chosen) for c in group]
        views.append(_chart(axis, named, curve_scale(axis, group, scales), several))
    return views


def curve_scale(axis: str, curves: Sequence[Curve], scales: dict[str, Scale]) -> Scale | None:
    """The scale of the metric that is drawn, if it is one: the axis names it, or each line does."""
    named = {scales.get(axis) or scales.get(curve.name) for curve in curves}
    return named.pop() if len(named) == 1 else None


def _chart(
    title: str,
    curves: Sequence[Curve],
    scale: Scale | None,
    several: bool,
    colours: Mapping[str, tuple[str, str]] | None = None,
) -> View:
    factor = scale.factor if scale else 1
    lines = [(c, _finite(c.points, factor)) for c in curves]
    view: View = {"title": word(title), "unit": scale.unit if scale else "", "lines": [], "ends": [], "log": False}
    view["own_legend"] = colours is None
    everything = [point for _, points in lines for point in points]
    if not everything:
        return view
    x_low, x_high, view["x_axis"] = axis_of(min(x for x, _ in everything), max(x for x, _ in everything))
    place, view["y_axis"], view["log"] = _heights([y for _, y in everything], bounded=factor == 100)
    for i, (curve, points) in enumerate(lines):
        if not points:
            continue
        own_name = word(curve.name)
        name = f"{curve.run}: {own_name}" if several and colours is None else curve.run if several else own_name
        written = scale or scale_for("", [y for _, y in points])
        at = [(percent_of(x, x_low, x_high), place(y)) for x, y in _thin(points)]
        labelled = [
            tr("{value} at step {step:g}", value=written.value(y / factor), step=x)
            for x, y in points[:MARKED_POINTS] + points[-1:]
        ]
        dropped = len(curve.points) - len(points)
        own = colours[curve.run] if colours else (name, colour(i))
        marks = [{"x": x, "y": y, "text": f"{name}: {text}"} for (x, y), text in zip(at, labelled, strict=False)]
        view["lines"].append(
            {
                "name": name,
                "colour": own[1],
                "path": " ".join(f"{x:g},{y:g}" for x, y in at),
                "marks": marks if len(points) <= MARKED_POINTS else [],
                "summary": joined([labelled[0], labelled[-1]]) if len(points) > 1 else labelled[0],
                "dropped": tr("{n:,} points were not finite numbers", n=dropped) if dropped else None,
                "kept": _kept(points, curve, x_low, x_high, place),
                "group": own[0],
                "end": {"y": at[-1][1], "text": own[0], "value": written.value(points[-1][1] / factor)},
            }
        )
    view["ends"] = _ends(view["lines"])
    return view


def _kept(
    points: Sequence[tuple[float, float]], curve: Curve, low: float, high: float, place: Callable[[float], float]
) -> View | None:
    """Return the mark of the step whose weights were kept, where the run says which."""
    if curve.chosen is None:
        return None
    x, y = min(points, key=lambda p: abs(p[0] - (curve.chosen or 0)))
    return {
        "x": percent_of(x, low, high),
        "y": place(y),
        "text": tr("{run}: the weights of step {step:g} were kept", run=curve.run, step=curve.chosen),
    }


def _heights(values: Sequence[float], bounded: bool) -> tuple[Callable[[float], float], list[View], bool]:
    """Return a function from a value to percent from the top, the axis's marks, and whether it is logarithmic."""
    if not bounded and min(values) > 0 and max(values) / min(values) >= LOG_FROM:
        first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        marks = [
            {"at": round(100 - percent_of(p, first, last), 3), "text": f"{10.0**p:g}"} for p in range(first, last + 1)
        ]
        return (lambda y: round(100 - percent_of(math.log10(y), first, last), 3)), marks, True
    low, high, found = axis_of(min(values), max(values), 4)
    marks = [{**mark, "at": round(100 - mark["at"], 3)} for mark in found]
    return (lambda y: round(100 - percent_of(y, low, high), 3)), marks, False


def _ends(lines: Sequence[View]) -> list[View]:
    """Return the labels at the ends of the lines, one for each system, moved apart so that none covers another."""
    groups: dict[str, list[View]] = {}
    for line in lines:
        groups.setdefault(line["group"], []).append(line)
    if len(groups) > LABELLED:
        return []
    ends = []
    for name, members in groups.items():
        middle = sorted(line["end"]["y"] for line in members)[len(members) // 2]
        text = _end_label(name) if len(groups) > 1 else members[0]["end"]["value"] if len(members) == 1 else ""
        ends.append({"y": middle, "text": text, "colour": members[0]["colour"]})
    ends.sort(key=lambda end: end["y"])
    for i, end in enumerate(ends):
        after = ends[i - 1]["y"] + LABEL_GAP if i else 0.0
        lowest = 100 - LABEL_GAP * (len(ends) - 1 - i)
        end["y"] = round(min(max(end["y"], after), lowest), 2)
    return [end for end in ends if end["text"]]


def _end_label(text: str) -> str:
    return text if len(text) <= LABEL else text[: LABEL - 1].rstrip() + "…"


def _finite(points: Iterable[Sequence[float]], factor: float) -> list[tuple[float, float]]:
    pairs = ((finite(p[0]), finite(p[1])) for p in points if len(p) == 2)
    return [(x, y * factor) for x, y in pairs if x is not None and y is not None]


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about `CHART_POINTS` points; the lowest and highest of each stretch stay, so peaks do too."""
    if len(points) <= CHART_POINTS:
        return points
    width = math.ceil(2 * len(points) / CHART_POINTS)
    kept = [points[0]]
    for start in range(0, len(points), width):
        stretch = points[start : start + width]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return [*kept, points[-1]]
