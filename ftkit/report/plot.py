"""Training curves as one picture for a notebook: a panel for each kind of value, as SVG that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..records import Curve
from ..text import finite

_WIDTH, _HEIGHT = 640, 220  # of one panel
_LEFT, _TOP, _RIGHT, _BOTTOM = 64, 32, 16, 36  # its margins
_COLOURS = ("#2563a8", "#b5511c", "#2f7d4f", "#8a4a9e", "#9c7a12", "#4d6470")
_DASHES = ("", "6 3", "2 2")
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Drawing:
    """A picture: `svg` is its source."""

    svg: str

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> None:
        """Write the picture to a .svg file."""
        Path(path).write_text(self.svg, encoding="utf-8")


def draw(curves: Iterable[Curve]) -> Drawing:
    """Return curves as a picture: one panel for each axis, one line for each curve. Fractions are drawn as they are."""
    panels: dict[str, list[tuple[str, Points]]] = {}
    for curve in curves:
        points = [(float(x), float(y)) for x, y in curve.points if finite(x) is not None and finite(y) is not None]
        if points:
            panels.setdefault(curve.axis, []).append((f"{curve.run} {curve.name}", points))
    drawn = [_panel(axis, lines, number * _HEIGHT) for number, (axis, lines) in enumerate(panels.items())]
    if not drawn:
        drawn = [f'<text x="{_LEFT}" y="{_TOP}">This run has no training curves yet.</text>']
    height = max(1, len(panels)) * _HEIGHT
    return Drawing(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="Training curves">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(drawn)}</svg>'
    )


def _panel(axis: str, lines: Sequence[tuple[str, Points]], top: float) -> str:
    xs = [x for _, points in lines for x, _ in points]
    ys = [y for _, points in lines for _, y in points]
    (x0, x1), (y0, y1) = _span(xs), _span(ys)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def at(x: float, y: float) -> str:
        across = _LEFT + (x - x0) / (x1 - x0) * (right - _LEFT)
        return f"{across:.1f},{bottom - (y - y0) / (y1 - y0) * (bottom - _TOP):.1f}"

    parts = [
        f'<rect x="{_LEFT}" y="{_TOP}" width="{right - _LEFT}" height="{bottom - _TOP}" fill="none" stroke="#bbb"/>',
        f'<text x="{_LEFT - 6}" y="{_TOP + 10}" text-anchor="end">{y1:.4g}</text>',
        f'<text x="{_LEFT - 6}" y="{bottom}" text-anchor="end">{y0:.4g}</text>',
        f'<text x="{_LEFT}" y="{bottom + 16}">step {x0:g}</text>',
        f'<text x="{right}" y="{bottom + 16}" text-anchor="end">{x1:g}</text>',
        f'<text x="{_LEFT}" y="18" font-weight="bold">{html.escape(axis)}</text>',
    ]
    for number, (name, points) in enumerate(lines):
        colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number // len(_COLOURS) % len(_DASHES)]
        drawn = " ".join(at(x, y) for x, y in points)
        title = f"<title>{html.escape(name)}</title>"
        if len(points) == 1:
            x, y = drawn.split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}">{title}</circle>')
        else:
            line = f'stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dash}"'
            parts.append(f'<polyline points="{drawn}" fill="none" {line}>{title}</polyline>')
        if number < 6:
            where = f'x="{right - 4}" y="{_TOP + 14 + 14 * number}" text-anchor="end"'
            parts.append(f'<text {where} fill="{colour}">{html.escape(name)}</text>')
    return f'<g transform="translate(0 {top})">{"".join(parts)}</g>'


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
