"""Draw a `Report` as one HTML page and as Markdown. Computes no statistics: it formats and escapes.

Two rules keep hostile data harmless. Whatever a template prints goes through the environment's
`finalize` (invisible characters made visible) and then through escaping. The examples travel as a
JSON data island that the page's script shows with `textContent` only.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup

from ftkit.records import Curve, Delta, Metric, Pair, Report, Section, System

TEXT_CAPS = (20_000, 5_000, 1_000, 300)  # characters per text of an example: the largest that fits the budget
TEXT_BUDGET = 40_000_000  # characters of all examples together
PAGE_CAP = 200_000  # characters of any other text: a recipe, a lock, a message
ROW_CAP = 500  # rows of a plugin's table
CHART_POINTS = 600  # per line: more than a screen shows
MARKED_POINTS = 40  # lines up to this long get a mark with its value at each point
COLOURS = 6
NONE = "–"

View = dict[str, Any]


# ---------------------------------------------------------------- text

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but for tab and newline
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # bidi controls and the Unicode line separators
    "\ud800-\udfff]"  # surrogates that lost their other half
)


def visible(text: str) -> str:
    """Make control, bidi and surrogate characters visible: ESC becomes ␛, U+202E becomes ⟨U+202E⟩."""
    if not _HIDDEN.search(text):
        return text
    return _HIDDEN.sub(_symbol, text.replace("\r\n", "\n"))


def _symbol(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def clip(text: str, cap: int) -> str:
    if len(text) <= cap:
        return text
    return f"{text[:cap]}… [cut here: {len(text):,} characters in all]"


def one_line(text: str, cap: int) -> str:
    line = " ".join(text[: cap * 4].split())
    return line if len(line) <= cap else line[:cap].rstrip() + "…"


def shown(value: object) -> str:
    """What a template prints of any value: text with nothing hidden in it; None is a dash."""
    if isinstance(value, Markup):
        return value
    return NONE if value is None else visible(clip(str(value), PAGE_CAP))


def pretty(value: object) -> str:
    """Nested data for people: text as it is, the rest as indented JSON."""
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False, default=str)


def json_island(data: object) -> Markup:
    """JSON that cannot leave its `<script>` element, whatever strings are in it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


# ---------------------------------------------------------------- numbers


def number(value: object) -> float | None:
    """The value as a finite float, or None: what a page can show, sort by and draw."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e100 else None


@dataclass(frozen=True)
class Scale:
    """How the numbers of one metric are written: times `factor`, with `digits` decimals."""

    factor: float
    digits: int
    unit: str
    delta_unit: str

    def value(self, x: float | None) -> str:
        x = number(x)
        if x is None:
            return NONE
        text = f"{x * self.factor:,.{self.digits}f}"
        return text.replace("-", "−") if re.search("[1-9]", text) else text.lstrip("-")

    def signed(self, x: float | None) -> str:
        text = self.value(x)
        return text if text[0] in "–−" or not re.search("[1-9]", text) else f"+{text}"

    def interval(self, low: float | None, high: float | None) -> str | None:
        if number(low) is None or number(high) is None:
            return None
        return f"{self.value(low)} to {self.value(high)}"

    def signed_interval(self, low: float | None, high: float | None) -> str | None:
        if number(low) is None or number(high) is None:
            return None
        return f"{self.signed(low)} to {self.signed(high)}"


def scale_for(unit: str, values: Iterable[float | None]) -> Scale:
    if unit == "fraction":
        return Scale(100, 2, "%", "points")
    largest = max((abs(x) for v in values if (x := number(v)) is not None), default=0.0)
    if largest >= 1000:
        digits = 0
    elif largest >= 1 or largest == 0:
        digits = 1 if largest >= 100 else 2
    else:
        digits = min(8, 2 - math.floor(math.log10(largest)))
    return Scale(1, digits, unit, unit)


def count(n: int | None) -> str:
    return NONE if n is None else f"{n:,}"


def seconds(s: float | None) -> str:
    s = number(s)
    if s is None:
        return NONE
    if s < 10:
        return f"{s:.1f} s"
    whole = round(s)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(n: int | None) -> str:
    if n is None:
        return NONE
    return f"{n / 1e9:,.2f} GB" if n >= 1e8 else f"{n / 1e6:,.1f} MB"


def dollars(usd: float | None) -> str:
    usd = number(usd)
    if usd is None:
        return NONE
    return "< $0.01" if 0 < usd < 0.01 else f"${usd:,.2f}"


def p_value(p: float | None) -> str:
    p = number(p)
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


# ---------------------------------------------------------------- what the templates are given


def _view(report: Report) -> View:
    metrics = _metric_order(report)
    scales = _scales(report)
    runs = [_run(run) for run in report.runs]
    labels = _run_labels(report.runs)
    deltas = [_delta(d, scales) for d in report.deltas]
    return {
        "title": report.title,
        "created": report.created,
        "version": report.version,
        "primary": report.primary,
        "verdict": report.verdict or "No verdict",
        "detail": report.verdict_detail,
        "headline": _headline(report, scales),
        "missing": _missing(report),
        "warnings": report.warnings,
        "notes": report.notes,
        "columns": [_column(m, scales[m], report.primary) for m in metrics],
        "systems": [_system(s, metrics, scales, report.primary) | _under(s, report, labels) for s in report.systems],
        "several_runs": len({s.run for s in report.systems}) > 1,
        "any_failed": any(s.n_failed for s in report.systems),
        "forest": _forest(report, scales),
        "deltas": [d for d in deltas if d["metric"] == report.primary],
        "other_deltas": [d for d in deltas if d["metric"] != report.primary],
        "adjusted": any(d.p_adjusted is not None for d in report.deltas),
        "charts": _charts(report.curves, scales, labels),
        "sections": [_section(s, scales, labels) for s in report.sections],
        "runs": runs,
    }


def _metric_order(report: Report) -> list[str]:
    names = dict.fromkeys(name for s in report.systems for name in s.metrics)
    return sorted(names, key=lambda name: name != report.primary)


def _scales(report: Report) -> dict[str, Scale]:
    units: dict[str, str] = {}
    values: dict[str, list[float | None]] = {report.primary: []}
    for s in report.systems:
        for name, m in s.metrics.items():
            units[name] = m.unit
            values.setdefault(name, []).append(m.value)
    for d in report.deltas:
        units.setdefault(d.metric, d.unit)
        values.setdefault(d.metric, []).append(d.delta)
    return {name: scale_for(units.get(name, "fraction"), values[name]) for name in values}


def _run_labels(runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Run id -> its recipe's name, where that name is its own; else the id."""
    names = [run.get("name") for run in runs]
    return {
        str(run.get("id", "")): str(name) if name and names.count(name) == 1 else str(run.get("id", ""))
        for run, name in zip(runs, names, strict=True)
    }


def _headline(report: Report, scales: dict[str, Scale]) -> View | None:
    delta = next((d for d in report.deltas if d.metric == report.primary), None)
    if delta is None:
        return None
    view = _delta(delta, scales)
    values = {s.name: s.metrics[report.primary].value for s in report.systems if report.primary in s.metrics}
    scale = scales[report.primary]
    view["from_value"] = scale.value(values[delta.from_]) if delta.from_ in values else None
    view["to_value"] = scale.value(values[delta.to]) if delta.to in values else None
    return view


def _delta(d: Delta, scales: dict[str, Scale]) -> View:
    scale = scales[d.metric]
    return {
        "from": d.from_,
        "to": d.to,
        "metric": d.metric,
        "delta": scale.signed(d.delta),
        "interval": scale.signed_interval(d.low, d.high),
        "unit": scale.delta_unit,
        "value_unit": scale.unit,
        "p": p_value(d.p_value),
        "p_adjusted": p_value(d.p_adjusted),
        "n": count(d.n),
        "verdict": d.verdict or None,
        "tone": d.verdict if d.verdict in ("better", "worse") else "open",
    }


def _under(s: System, report: Report, labels: Mapping[str, str]) -> View:
    """The small line under a system's name: its role and run, where the name does not say them."""
    several_runs = len({other.run for other in report.systems}) > 1
    run = labels.get(s.run, s.run)
    parts = [s.role if s.role != s.name else "", run if several_runs and run not in s.name else ""]
    return {"run": run, "under": " · ".join(part for part in parts if part)}


def _system(s: System, metrics: Sequence[str], scales: dict[str, Scale], primary: str) -> View:
    main = s.metrics.get(primary) or next(iter(s.metrics.values()), None)
    return {
        "name": s.name,
        "role": s.role,
        "model": s.model,
        "method": s.method,
        "cells": [_cell(s.metrics.get(name), scales[name], main) for name in metrics],
        "n": count(main.n) if main else NONE,
        "n_unscored": count(main.n_unscored) if main else NONE,
        "n_failed": count(s.n_failed),
        "seconds": seconds(s.seconds),
        "train_seconds": seconds(s.train_seconds),
        "tokens_in": count(s.tokens_in),
        "tokens_out": count(s.tokens_out),
        "peak_memory": size(s.peak_memory),
        "usd": dollars(s.usd),
    }


def _column(name: str, scale: Scale, primary: str) -> View:
    return {"name": name, "unit": "" if scale.unit == name else scale.unit, "primary": name == primary}


def _cell(m: Metric | None, scale: Scale, main: Metric | None) -> View:
    if m is None:
        return {"value": NONE, "interval": None, "note": None}
    same_rows = main is None or (m.n, m.n_unscored) == (main.n, main.n_unscored)
    return {
        "value": scale.value(m.value),
        "interval": scale.interval(m.low, m.high),
        "note": None if same_rows else f"n {m.n:,}, unscored {m.n_unscored:,}",
    }


def _missing(report: Report) -> list[str]:
    """What a reader would look for and not find, and why."""
    messages = [message for run in report.runs for message in _unfinished(run)]
    roles = {s.role for s in report.systems}
    if not report.systems:
        messages.append("Nothing has been measured yet, so there are no scores.")
    elif "baseline" not in roles and "tuned" in roles:
        messages.append("The baseline has not been measured, so nothing says what the training changed.")
    elif "tuned" not in roles and "baseline" in roles:
        messages.append("Only the baseline has been measured: there is no fine-tuned model to compare it with.")
    elif len(report.systems) > 1 and not report.deltas:
        messages.append("No paired comparison was made between these systems.")
    return messages


def _unfinished(run: Mapping[str, Any]) -> list[str]:
    name = run.get("name") or run.get("id") or "unnamed"
    stages = _stages(run)
    messages = []
    for stage in stages:
        status, why = stage.get("status"), f": {stage['error']}" if stage.get("error") else "."
        if status in ("failed", "interrupted"):
            verb = "failed" if status == "failed" else "was interrupted"
            messages.append(f"Run {name}: stage {stage.get('name')} {verb}{why}")
        elif status == "running" and stage.get("name") != "report":
            messages.append(f"Run {name}: stage {stage.get('name')} had not finished when this was written.")
    if not messages and run.get("status") in ("failed", "interrupted"):
        messages.append(f"Run {name} {run['status']}" + (f": {run['error']}" if run.get("error") else "."))
    return messages


def _stages(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [stage for stage in run.get("stages") or () if isinstance(stage, Mapping)]


def _run(run: Mapping[str, Any]) -> View:
    known = ("id", "name", "status", "started", "kind", "stages", "warnings", "systems", "error", "recipe")
    documents = [("Recipe", run["recipe"])] if run.get("recipe") else []
    documents += [(key.replace("_", " ").capitalize(), run[key]) for key in run if key not in known and run[key]]
    return {
        "id": run.get("id") or "unnamed",
        "name": run.get("name") or run.get("id") or "unnamed",
        "status": run.get("status") or "status not known",
        "started": run.get("started"),
        "error": run.get("error"),
        "stages": [
            {
                "name": stage.get("name"),
                "status": stage.get("status"),
                "seconds": seconds(stage.get("seconds")),
                "usd": dollars(stage.get("usd")),
                "error": stage.get("error"),
            }
            for stage in _stages(run)
        ],
        "recipe": pretty(run["recipe"]) if run.get("recipe") else None,
        "documents": [{"title": title, "text": pretty(value)} for title, value in documents],
    }


def _section(section: Section, scales: dict[str, Scale], labels: Mapping[str, str]) -> View:
    blocks = []
    for block in section.blocks:
        try:
            blocks.append(_block(block, scales, labels))
        except (AttributeError, KeyError, TypeError, ValueError):  # a plugin's block is not as announced
            blocks.append({"kind": "data", "text": pretty(block)})
    return {"title": section.title, "blocks": blocks}


def _block(block: Mapping[str, Any], scales: dict[str, Scale], labels: Mapping[str, str]) -> View:
    match block.get("kind"):
        case "text":
            return {"kind": "text", "text": str(block.get("text", ""))}
        case "table":
            rows = list(block.get("rows") or ())
            return {
                "kind": "table",
                "header": list(block.get("header") or ()),
                "rows": [[_plain_cell(cell) for cell in row] for row in rows[:ROW_CAP]],
                "left_out": len(rows) - ROW_CAP if len(rows) > ROW_CAP else 0,
            }
        case "curves":
            curves = [c if isinstance(c, Curve) else Curve.from_dict(c) for c in block.get("curves") or ()]
            return {"kind": "curves", "charts": _charts(curves, scales, labels)}
        case "examples":
            return {
                "kind": "examples",
                "examples": [
                    {"title": e.get("title", ""), "text": clip(str(e.get("text", "")), TEXT_CAPS[0])}
                    for e in block.get("examples") or ()
                ],
            }
    return {"kind": "data", "text": pretty(dict(block))}


def _plain_cell(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1e4 else shown(value)


# ---------------------------------------------------------------- drawings: positions in percent of the plot


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


def _forest(report: Report, scales: dict[str, Scale]) -> View | None:
    """A dot and an interval for each system's primary metric, on one axis."""
    scale = scales[report.primary]
    found = [(s, m) for s in report.systems if (m := s.metrics.get(report.primary)) and number(m.value) is not None]
    if not found:
        return None
    ends = [x * scale.factor for _, m in found for v in (m.value, m.low, m.high) if (x := number(v)) is not None]
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
                "low": _percent((m.value if number(m.low) is None else m.low or 0) * scale.factor, low, high),
                "high": _percent((m.value if number(m.high) is None else m.high or 0) * scale.factor, low, high),
            }
            for s, m in found
        ],
    }


def _charts(curves: Iterable[Curve], scales: dict[str, Scale], labels: Mapping[str, str]) -> list[View]:
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
                "colour": i % COLOURS,
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
    pairs = ((number(p[0]), number(p[1])) for p in points if len(p) == 2)
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


# ---------------------------------------------------------------- examples


def _answer_order(report: Report) -> list[str]:
    answered = dict.fromkeys(name for pair in report.pairs for name in pair.answers)
    known = [s.name for s in report.systems if s.name in answered]
    return [*known, *(name for name in answered if name not in known)]


def _text_cap(pairs: Sequence[Pair]) -> int:
    lengths = [
        len(text)
        for p in pairs
        for text in (p.input, *p.targets, *(str(a.get("text") or "") for a in p.answers.values()))
    ]
    fitting = (cap for cap in TEXT_CAPS if sum(min(n, cap) for n in lengths) <= TEXT_BUDGET)
    return next(fitting, TEXT_CAPS[-1])


def _examples(report: Report) -> View:
    """The examples as the page's script reads them: texts ready to show, numbers to sort by."""
    systems, cap = _answer_order(report), _text_cap(report.pairs)
    scale = _scales(report)[report.primary]

    def text(value: object) -> str:
        return visible(clip(str(value), cap))

    def answer(a: Mapping[str, Any] | None) -> View | None:
        if a is None:
            return None
        score = number(a.get("score"))
        view: View = {"text": text(a.get("text") or ""), "score": scale.value(score) if score is not None else None}
        view |= {key: text(a[key]) for key in ("error", "answer", "reason") if a.get(key) is not None}
        return view | {"value": score}

    def row(pair: Pair) -> View:
        delta = number(pair.delta)
        return {
            "id": text(pair.example_id),
            "input": text(pair.input),
            "targets": [text(t) for t in pair.targets],
            "answers": [answer(pair.answers.get(name)) for name in systems],
            "delta": delta,
            "shown": scale.signed(delta) if delta is not None else None,
        }

    rows = [row(pair) for pair in report.pairs]
    has_delta = any(r["delta"] is not None for r in rows)
    by_delta = [("delta-down", "Largest gain first"), ("delta-up", "Largest loss first")]
    by_score = [("score-up", f"Lowest score first ({visible(systems[-1])})")] if systems else []
    return {
        "systems": [visible(name) for name in systems],
        "rows": rows,
        "unit": scale.unit,
        "delta_unit": scale.delta_unit,
        "sorts": [*(by_delta if has_delta else []), *by_score, ("order", "Test order"), ("id", "Id")],
        "has_delta": has_delta,
        "cap": cap,
    }


# ---------------------------------------------------------------- the two documents


@functools.cache
def _environment(markdown: bool = False) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("ftkit.report"),
        autoescape=not markdown,
        finalize=md_text if markdown else shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


@functools.cache
def _asset(name: str) -> tuple[Markup, str]:
    """A file to put inline, and the hash by which the page's content policy allows it and nothing else."""
    environment = _environment()
    assert environment.loader
    text = environment.loader.get_source(environment, name)[0]
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup(text), f"'sha256-{digest}'"


def render_html(report: Report) -> str:
    """Return report.html: one file that needs nothing else and asks nothing of the network."""
    css, css_hash = _asset("report.css")
    js, js_hash = _asset("report.js")
    examples = _examples(report)
    data = {key: examples[key] for key in ("systems", "rows", "unit", "delta_unit")}
    page = _environment().get_template("report.html.j2")
    return page.render(
        _view(report),
        css=css,
        js=js,
        policy=f"default-src 'none'; style-src {css_hash}; script-src {js_hash}; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        examples=examples,
        n_examples=len(report.pairs),
        island=json_island(data),
    )


_MD_SPECIAL = re.compile(r"[\\`*_\[\]<>&|~$]|(?<=:)/(?=/)|(?<=www)\.|(?<=[#@])(?=\w)", re.IGNORECASE)
_MD_BLOCK = re.compile(r"^([#+=-](?=[\s#=+-]|$)|\d+(?=[.)](\s|$)))")


_MD_NAMED = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
ZERO_WIDTH = "\u200b"  # parts an @ or # from its name, so that nobody is called and no issue linked


def md_text(value: object) -> str:
    """Data as one line of Markdown that means only its letters: no table cell, markup, link or mention."""
    if isinstance(value, Markup):
        return value
    line = " ".join(shown(value).split())
    line = _MD_SPECIAL.sub(lambda m: _MD_NAMED.get(m[0], f"&#{ord(m[0] or ZERO_WIDTH)};"), line)
    return _MD_BLOCK.sub(lambda m: f"&#{ord(m[0][0])};{m[0][1:]}", line)


def _md_fence(text: str) -> Markup:
    """A code block whose fence is longer than any run of backticks in it."""
    text = visible(clip(text, TEXT_CAPS[0]))
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return Markup(f"{fence}\n{text.rstrip()}\n{fence}")


def _md_examples(report: Report) -> list[View]:
    """Up to five rows: the two largest gains, the middle one, the two largest losses."""
    ranked = sorted((p for p in report.pairs if number(p.delta) is not None), key=lambda p: -(p.delta or 0.0))
    last = len(ranked) - 1
    chosen = [ranked[i] for i in sorted({0, 1, last // 2, last - 1, last}) if 0 <= i <= last] or report.pairs[:5]
    scale, systems = _scales(report)[report.primary], _answer_order(report)

    def answer(a: Mapping[str, Any] | None) -> str:
        if a is None:
            return "no answer"
        if a.get("error") is not None:
            return f"failed: {one_line(str(a['error']), 160)}"
        score = number(a.get("score"))
        return one_line(str(a.get("text") or ""), 240) + (f" ({scale.value(score)})" if score is not None else "")

    return [
        {
            "id": one_line(p.example_id, 60),
            "input": one_line(p.input, 240),
            "reference": one_line(" / ".join(p.targets), 240),
            "answers": [answer(p.answers.get(name)) for name in systems],
            "delta": scale.signed(p.delta),
        }
        for p in chosen
    ]


def render_markdown(report: Report) -> str:
    """Return report.md: the same findings for a pull request."""
    view = _view(report)
    for run in view["runs"]:
        run["recipe"] = _md_fence(run["recipe"]) if run["recipe"] else None
    for section in view["sections"]:
        for block in section["blocks"]:
            if block["kind"] == "data":
                block["text"] = _md_fence(block["text"])
            for example in block.get("examples", ()):
                example["text"] = one_line(example["text"], 240)
    text = (
        _environment(markdown=True)
        .get_template("report.md.j2")
        .render(
            view,
            answer_names=_answer_order(report),
            examples=_md_examples(report),
            n_examples=len(report.pairs),
        )
    )
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"
