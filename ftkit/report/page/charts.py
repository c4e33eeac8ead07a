"""The drawings of a report: every position is in percent of the plot, so that they fit any width."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...records import Curve, Report
from ...text import Scale, finite, scale_for
from .seeds import seed_values

CHART_POINTS = 600  # per line: more than a screen shows
MARKED_POINTS = 40  # lines up to this long get a mark with its value at each point
COLOURS = 6

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


def _axis(low: float, high: float, wanted: int = 5) -> tuple[float, float, list[View]]:
    at = ticks(low, high, wanted)
    labels = [{"at": _percent(t, at[0], at[-1]), "text": text} for t, text in zip(at, tick_labels(at), strict=True)]
    return at[0], at[-1], labels


def _percent(x: float, low: float, high: float) -> float:
    return round(100 * (x - low) / (high - low), 3)


def forest(report: Report, scales: dict[str, Scale]) -> View | None:
    """A dot and an interval for each system's primary metric, on one axis; a small dot for each of several seeds."""
    scale = scales[report.primary]
    found = [(s, m) for s in report.systems if (m := s.metrics.get(report.primary)) and finite(m.value) is not None]
    if not found:
        return None
    seeds = {s.name: seed_values(s, report.primary) for s in report.systems}
    drawn = [v for s, m in found for v in (m.value, m.low, m.high, *seeds[s.name].values())]
    ends = [x * scale.factor for v in drawn if (x := finite(v)) is not None]
    low, high, axis = _axis(min(ends), max(ends))
    return {
        "unit": scale.unit,
        "axis": axis,
        "rows": [
            {
                "name": s.name,
                "role": s.role,
                "value": scale.value(m.value),
                "interval": scale.interval(m.low, m.high),
                "at": _percent(m.value * scale.factor, low, high),
                "seeds": [
                    {"at": _percent(v * scale.factor, low, high), "text": f"seed {seed}: {scale.value(v)}"}
                    for seed, v in seeds[s.name].items()
                ],
                "low": _percent((m.value if finite(m.low) is None else m.low or 0) * scale.factor, low, high),
                "high": _percent((m.value if finite(m.high) is None else m.high or 0) * scale.factor, low, high),
            }
            for s, m in found
        ],
    }


def charts(curves: Iterable[Curve], scales: dict[str, Scale], labels: Mapping[str, str]) -> list[View]:
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(curve.axis, []).append(curve)
    return [_chart(axis, group, _curve_scale(axis, group, scales), labels) for axis, group in groups.items()]


def _curve_scale(axis: str, curves: Sequence[Curve], scales: dict[str, Scale]) -> Scale | None:
    """The scale of the metric that is drawn, if it is one: the axis names it, or each line does."""
    named = {scales.get(axis) or scales.get(curve.name) for curve in curves}
    return named.pop() if len(named) == 1 else None


def _chart(axis: str, curves: Sequence[Curve], scale: Scale | None, labels: Mapping[str, str]) -> View:
    factor = scale.factor if scale else 1
    lines = [(c, _finite(c.points, factor)) for c in curves]
    several = len({c.run for c in curves}) > 1
    view: View = {"title": axis, "unit": scale.unit if scale else "", "lines": []}
    everything = [point for _, points in lines for point in points]
    if not everything:
        return view
    x_low, x_high, view["x_axis"] = _axis(min(x for x, _ in everything), max(x for x, _ in everything))
    y_low, y_high, view["y_axis"] = _axis(min(y for _, y in everything), max(y for _, y in everything), 4)
    for tick in view["y_axis"]:
        tick["at"] = round(100 - tick["at"], 3)
    for i, (curve, points) in enumerate(lines):
        if not points:
            continue
        written = scale or scale_for("", [y for _, y in points])
        at = [(_percent(x, x_low, x_high), round(100 - _percent(y, y_low, y_high), 3)) for x, y in _thin(points)]
        labelled = [f"{written.value(y / factor)} at step {x:g}" for x, y in points[:MARKED_POINTS] + points[-1:]]
        name = f"{labels.get(curve.run, curve.run)}: {curve.name}" if several else curve.name
        dropped = len(curve.points) - len(points)
        view["lines"].append(
            {
                "name": name,
                "colour": f"c{i % COLOURS}" + (" again" if i >= COLOURS else ""),
                "path": " ".join(f"{x:g},{y:g}" for x, y in at),
                "marks": [
                    {"x": x, "y": y, "text": f"{name}: {text}"} for (x, y), text in zip(at, labelled, strict=False)
                ]
                if len(points) <= MARKED_POINTS
                else [],
                "summary": f"{labelled[0]}, {labelled[-1]}" if len(points) > 1 else labelled[0],
                "dropped": f"{dropped:,} points were not finite numbers" if dropped else None,
            }
        )
    return view


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
