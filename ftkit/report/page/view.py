"""What the templates are given: a `Report` as texts that are ready to print. Computes no statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...intervals import percent
from ...records import Curve, Delta, Metric, Report, Section, System
from ...text import NONE, Scale, count, dollars, duration, p_value, scale_for, size
from .charts import charts, forest
from .costs import costs_view
from .seeds import seeds_listed, seeds_view
from .text import TEXT_CAPS, clip, moment, pretty, shown

ROW_CAP = 500  # rows of a plugin's table

View = dict[str, Any]


def view_of(report: Report) -> View:
    metrics = _metric_order(report)
    scales = scales_of(report)
    runs = [_run(run) for run in report.runs]
    labels = _run_labels(report.runs)
    deltas = [_delta(d, scales) for d in report.deltas]
    return {
        "title": report.title,
        "created": moment(report.created),
        "version": report.version,
        "primary": report.primary,
        "verdict": report.verdict or "No verdict",
        "details": report.verdict_detail.split("\n") if report.verdict_detail else [],
        "headline": _headline(report, scales),
        "warnings": report.warnings,
        "notes": report.notes,
        "columns": [_column(m, scales[m], report.primary) for m in metrics],
        "systems": [_system(s, metrics, scales, report.primary) | _under(s, report, labels) for s in report.systems],
        "several_runs": len({s.run for s in report.systems}) > 1,
        "forest": forest(report, scales),
        "seeds": seeds_view(report, scales),
        "deltas": [d for d in deltas if d["metric"] == report.primary],
        "other_deltas": [d for d in deltas if d["metric"] != report.primary],
        "adjusted": any(d.p_adjusted is not None for d in report.deltas),
        "costs": costs_view(
            report, {s.name: _cell(s.metrics.get(report.primary), scales[report.primary], None) for s in report.systems}
        ),
        "charts": charts(report.curves, scales, labels),
        "sections": [_section(s, scales, labels) for s in report.sections],
        "runs": runs,
    }


def _metric_order(report: Report) -> list[str]:
    names = dict.fromkeys(name for s in report.systems for name in s.metrics)
    return sorted(names, key=lambda name: name != report.primary)


def scales_of(report: Report) -> dict[str, Scale]:
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
        "level": percent(d.confidence),
        "method": d.method,
        "p": p_value(d.p_value),
        "p_adjusted": p_value(d.p_adjusted),
        "p_decided": p_value(d.p_decided),
        "corrected": d.p_adjusted is not None,
        "n": _n(d),
        "verdict": d.verdict or None,
        "tone": d.verdict if d.verdict in ("better", "worse") else "open",
    }


def _n(found: Metric | Delta) -> str:
    """Return the number of rows, and of different inputs where some repeat."""
    return count(found.n) + ("" if found.n_inputs is None else f" ({found.n_inputs:,} different inputs)")


def _under(s: System, report: Report, labels: Mapping[str, str]) -> View:
    """The small line under a system's name: its role and run, where the name does not say them."""
    several_runs = len({other.run for other in report.systems}) > 1
    run = labels.get(s.run, s.run) if len(s.seeds) < 2 else seeds_listed(s)
    parts = [
        s.role if s.role != s.name else "",
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
        "started": moment(run.get("started")),
        "error": run.get("error"),
        "stages": [
            {
                "name": stage.get("name"),
                "status": stage.get("status"),
                "seconds": duration(stage.get("seconds")),
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
