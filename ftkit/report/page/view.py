"""What the templates are given: a `Report` as texts that are ready to print. Computes no statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...intervals import percent
from ...lang import language, tr, word
from ...records import Curve, Delta, Headline, Metric, Report, Section, System
from ...text import NONE, Scale, count, dollars, duration, finite, p_value, scale_for, size
from .charts import charts, forest, panels
from .costs import costs_view
from .distribution import distribution_view
from .matrix import differing_view, is_in_matrix, matrix_view
from .runs import run_view
from .seeds import seeds_listed, seeds_view
from .text import TEXT_CAPS, clip, moment, pretty, shown

ROW_CAP = 500  # rows of a plugin's table

View = dict[str, Any]


def view_of(report: Report) -> View:
    scales = scales_of(report)
    of_data = _data_metrics(report)
    metrics = [name for name in _metric_order(report) if name not in of_data]
    own, further = (_with_values(metrics, report, is_extra) for is_extra in (False, True))
    labels = _run_labels(report.runs)
    shown = [d for d in report.deltas if d.metric not in of_data]
    deltas = [_delta(d, scales) for d in shown if d.metric == report.primary and not is_in_matrix(d, report)]
    systems = [
        _system(s, further if s.role == "extra" else own, scales, report.primary) | _under(s, report, labels)
        for s in report.systems
    ]
    return {
        "lang": language(),
        "title": report.title,
        "created": moment(report.created),
        "version": report.version,
        "primary": report.primary,
        **_headline(report),
        "details": report.verdict_detail.split("\n") if report.verdict_detail else [],
        "warnings": report.warnings,
        "notes": report.notes,
        "columns": [_column(m, scales[m], report.primary) for m in own],
        "further_columns": [_column(m, scales[m], report.primary) for m in further],
        "of_data": [_of_data(report, name, scales[name]) for name in of_data],
        "systems": systems,
        "compared": [s for s in systems if s["role"] != "extra"],
        "same_n": _same([s["n"] for s in systems if s["role"] != "extra"]),
        "has": _columns_in_use(report),
        "forest": forest(report, scales),
        "seeds": [row for row in seeds_view(report, scales) if row["metric"] not in of_data],
        "differing": differing_view(report, scales),
        "matrix": matrix_view(report, scales),
        "distribution": distribution_view(report, scales),
        "deltas": deltas,
        "other_deltas": [
            _delta(d, scales) for d in shown if d.metric != report.primary and not is_in_matrix(d, report)
        ],
        "adjusted": any(d.p_adjusted is not None for d in report.deltas),
        "costs": costs_view(
            report, {s.name: _cell(s.metrics.get(report.primary), scales[report.primary], None) for s in report.systems}
        ),
        "curves": panels(
            [replace(c, run=labels.get(c.run, c.run)) for c in report.curves],
            scales,
            report.primary,
            _groups(report, labels),
        ),
        "sections": [_section(s, scales, labels) for s in report.sections],
        "runs": [run_view(run) for run in report.runs],
    }


def _with_values(metrics: Sequence[str], report: Report, is_extra: bool) -> list[str]:
    """The metrics that any of the compared systems has, or any of the further measurements."""
    shown = [s for s in report.systems if (s.role == "extra") == is_extra]
    return [name for name in metrics if any(name in s.metrics for s in shown)]


def _headline(report: Report) -> View:
    """The title and sentences of the report; of one that has none, its verdict."""
    head = report.headline or Headline(report.verdict or tr("No verdict"))
    return {
        "headline": head.title,
        "lead": head.text,
        "wrong": head.wrong,
        "strip": head.strip,
        "verdict": report.verdict or tr("No verdict"),
    }


def _data_metrics(report: Report) -> list[str]:
    """The metrics that are a property of the data: no difference in them was computed, and all systems have one value."""
    compared = [s for s in report.systems if s.role != "extra"]
    tested = {d.metric for d in report.deltas}
    if len(compared) < 2 or not tested:
        return []
    found = []
    for name, m in compared[0].metrics.items():
        values = {round(s.metrics[name].value, 9) for s in compared if name in s.metrics}
        if m.higher_is_better is None and name not in tested and len(values) == 1:
            found.append(name)
    return found


def _of_data(report: Report, name: str, scale: Scale) -> str:
    value = next(s.metrics[name].value for s in report.systems if name in s.metrics)
    return f"{name} {scale.value(value)} {'' if name.endswith(scale.unit) else scale.unit}".strip()


def _same(values: Sequence[str]) -> str | None:
    """Return the value that all rows of a table share, where they do."""
    return values[0] if len(set(values)) == 1 else None


def _columns_in_use(report: Report) -> View:
    """Say of each column of numbers whether any system has one: a column of dashes says nothing."""
    metrics = [m for s in report.systems for m in s.metrics.values()]
    in_use: View = {key: any(getattr(s, key) is not None for s in report.systems) for key in _OPTIONAL}
    return in_use | {"unscored": any(m.n_unscored for m in metrics if m.name == report.primary)}


_OPTIONAL = ("seconds", "tokens_in", "tokens_out", "peak_memory", "usd")


def _metric_order(report: Report) -> list[str]:
    names = dict.fromkeys(name for s in report.systems for name in s.metrics)
    return sorted(names, key=lambda name: name != report.primary)


def scales_of(report: Report) -> dict[str, Scale]:
    """Return how each metric is written: with the digits that its intervals leave certain."""
    units: dict[str, str] = {}
    values: dict[str, list[float | None]] = {report.primary: []}
    widths: dict[str, list[float | None]] = {report.primary: []}
    for s in report.systems:
        for name, m in s.metrics.items():
            units[name] = m.unit
            values.setdefault(name, []).append(m.value)
            widths.setdefault(name, []).append(_width(m))
    for d in report.deltas:
        units.setdefault(d.metric, d.unit)
        values.setdefault(d.metric, []).append(d.delta)
        widths.setdefault(d.metric, []).append(_width(d))
    return {name: scale_for(units.get(name, "fraction"), values[name], widths[name]) for name in values}


def _width(found: Metric | Delta) -> float | None:
    low, high = finite(found.low), finite(found.high)
    return None if low is None or high is None else high - low


def _run_labels(runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Run id -> what the report calls it; else its recipe's name, where that name is its own; else the id."""
    names = [run.get("name") for run in runs]
    return {
        str(run.get("id", "")): str(
            run.get("label") or (name if name and names.count(name) == 1 else run.get("id", ""))
        )
        for run, name in zip(runs, names, strict=True)
    }


def _groups(report: Report, labels: Mapping[str, str]) -> dict[str, str]:
    """Run's label -> the system that is this recipe with all its training seeds."""
    trained = [s for s in report.systems if s.role == "tuned"]
    return {labels.get(run, run): s.name for s in trained for entry in s.seeds for run in entry.get("runs") or ()}


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
        "level": percent(d.confidence),
        "method": d.method,
        "p": p_value(d.p_value),
        "p_adjusted": p_value(d.p_adjusted),
        "p_decided": p_value(d.p_decided),
        "corrected": d.p_adjusted is not None,
        "n": _n(d),
        "verdict": word(d.verdict) or None,
        "tone": d.verdict if d.verdict in ("better", "worse") else "open",
    }


def _n(found: Metric | Delta) -> str:
    """Return the number of rows, and of different inputs where some repeat."""
    if found.n_inputs is None:
        return count(found.n)
    return tr("{n} ({inputs:,} different inputs)", n=count(found.n), inputs=found.n_inputs)


def _under(s: System, report: Report, labels: Mapping[str, str]) -> View:
    """The small line under a system's name: its role and run, where the name does not say them."""
    several_runs = len({other.run for other in report.systems}) > 1
    is_shared = s.role in ("baseline", "control") and [o.role for o in report.systems].count(s.role) == 1
    run = seeds_listed(s) if len(s.seeds) > 1 else "" if is_shared else labels.get(s.run, s.run)
    parts = [
        s.differs if s.role == "tuned" and s.differs not in s.name and " and " not in s.differs else "",
        word(s.role) if word(s.role) != s.name else "",
        run if (several_runs or len(s.seeds) > 1) and run not in s.name else "",
    ]
    return {"run": run, "seeds": len(s.seeds) > 1, "under": " · ".join(part for part in parts if part)}


def _system(s: System, metrics: Sequence[str], scales: dict[str, Scale], primary: str) -> View:
    main = s.metrics.get(primary) or next(iter(s.metrics.values()), None)
    return {
        "name": s.name,
        "role": s.role,
        "model": s.model,
        "method": s.method,
        "cells": [_cell(s.metrics.get(name), scales[name], main) for name in metrics],
        "n": _n(main) if main else NONE,
        "n_unscored": count(main.n_unscored) if main else NONE,
        "n_failed": count(s.n_failed),
        "seconds": duration(s.seconds),
        "train_seconds": duration(s.train_seconds),
        "tokens_in": count(s.tokens_in),
        "tokens_out": count(s.tokens_out),
        "peak_memory": size(s.peak_memory),
        "usd": dollars(s.usd),
    }


def _column(name: str, scale: Scale, primary: str) -> View:
    return {"name": name, "unit": "" if name.endswith(scale.unit) else scale.unit, "primary": name == primary}


def _cell(m: Metric | None, scale: Scale, main: Metric | None) -> View:
    if m is None:
        return {"value": NONE, "interval": None, "note": None}
    same_rows = main is None or (m.n, m.n_unscored) == (main.n, main.n_unscored)
    return {
        "value": scale.value(m.value),
        "interval": scale.interval(m.low, m.high),
        "note": None if same_rows else tr("n {n:,}, unscored {unscored:,}", n=m.n, unscored=m.n_unscored),
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
            return {"kind": "curves", "charts": charts(curves, scales, labels)}
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
