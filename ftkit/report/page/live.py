"""Draw the page of a run that is not done: how far it is, or what ended it and how to continue."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ...lang import joined, language, msg, tr, word
from ...records import Metric, StageRecord
from ...text import Scale, count, duration, finite, metric_value, scale_for
from ..failure import command_for, resume_command
from ..spoken import translator
from ..unfinished import Unfinished, rows_of, seconds_since
from .charts import tick_labels, ticks
from .render import _asset, _environment, script_texts
from .text import clip

View = dict[str, Any]

_WORK = {
    "prepare": msg("Prepare"),
    "baseline": msg("Measure the base model"),
    "train": msg("Train"),
    "evaluate": msg("Measure the tuned model"),
    "report": msg("Write the report"),
}
_DOING = {
    "baseline": msg("Measuring the base model"),
    "train": msg("Training"),
    "evaluate": msg("Measuring the tuned model"),
    "report": msg("Writing the report"),
}
_ENDED = {
    "failed": msg("Failed{where}{at}"),
    "interrupted": msg("Interrupted{where}{at}"),
    "killed": msg("Killed{where}{at}"),
}
_TEXT = 2000  # characters of one text of an example
_POINTS = 300  # of a curve: more than its few hundred pixels show
_PATIENCE = 30.0  # seconds without a sign of life after which the page says so, at least


def render_live(found: Unfinished) -> str:
    """Return the page of an unfinished run: one file that asks nothing of the network.

    While the run works, the page's script loads the file again every `found.every` seconds, and stops when there is
    no new sign of life.
    """
    css, css_hash = _asset("live.css")
    js, js_hash = _asset("texts.js", "live.js")
    return (
        _environment()
        .get_template("live.html.j2")
        .render(
            _view(found),
            css=css,
            js=js,
            texts=script_texts(js),
            policy=f"default-src 'none'; style-src {css_hash}; script-src {js_hash}; img-src data:; "
            "base-uri 'none'; form-action 'none'",
        )
    )


def _view(found: Unfinished) -> View:
    record, running, translate = found.record, found.status == "running", translator({})
    return {
        "lang": language(),
        "name": record.name,
        "id": record.id,
        "status": found.status,
        "state": word(found.status),
        "running": running,
        "headline": _headline(found),
        "summary": _summary(found),
        "bar": _bar(found) if running else None,
        "share": f"{_percent(found):.0f} %" if running and found.progress else None,
        "every": found.every if running else None,
        "limit": max(_PATIENCE, 3 * (found.every or 0)),
        "written": found.written,
        "written_at": moment(found.written),
        "life": moment(found.life) if found.life and found.status == "killed" else None,
        "hints": tuple(map(translate, found.hints)),
        "remedies": [
            {"text": _sentence(translate(r.text)), "command": command_for(r, found.dir)} for r in found.remedies
        ],
        "resume": resume_command(found.dir) if not running else None,
        "report": f"ftkit report {shlex.quote(str(found.dir))}",
        "dir": str(found.dir),
        "stages": [_stage(found, stage) for stage in found.stages],
        "scores": _scores(found),
        "charts": _charts(found),
        "answers": [{name: clip(text, _TEXT) for name, text in row.items()} for row in found.answers],
        "facts": _facts(found),
        "warnings": tuple(map(translate, record.warnings)),
        "changes": [_change(change) for change in record.changes],
        "traceback": found.traceback,
        "recipe": found.recipe,
    }


def moment(seconds: float | None) -> str:
    """Return a time as people write it, to the second: 2026-11-24 06:11:09 UTC."""
    if seconds is None:
        return ""
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


# ---------------------------------------------------------------- what is said first


def _headline(found: Unfinished) -> str:
    progress = found.progress
    if found.status == "prepared":
        return tr("Prepared, not started")
    if found.status == "running":
        doing = tr(_DOING.get(found.stage or "", msg("Between two stages")))
        if progress is None:
            return tr("{doing} …", doing=doing)
        text = msg("{doing}: row {n:,} of {all:,}")
        if progress.what == "step":
            text = msg("{doing}: step {n:,} of {all:,}")
        return tr(text, doing=doing, n=progress.done, all=progress.total)
    where = tr(" in {stage}", stage=word(found.stage)) if found.stage else ""
    at = tr(" at step {n:,} of {all:,}", n=progress.done, all=progress.total) if progress else ""
    return tr(_ENDED[found.status], where=where, at=at)


def _summary(found: Unfinished) -> str:
    """Return the sentence below the headline."""
    if found.status != "running":
        return _sentence(translator({})(found.why))
    left = found.progress.left if found.progress else None
    parts = [tr("About {time} left in this stage", time=duration(left))] if left is not None else []
    again = found.stage_seconds("baseline")
    if parts and found.stage == "train" and again:
        parts.append(tr("then about {time} to measure the tuned model", time=duration(again)))
    return tr("{text}.", text=joined(parts)) if parts else ""


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" if text else ""


def _percent(found: Unfinished) -> float:
    progress = found.progress
    return 100 * min(1.0, progress.done / progress.total) if progress and progress.total else 0.0


def _bar(found: Unfinished) -> View | None:
    if found.progress is None:
        return None
    return {"value": found.progress.done, "max": found.progress.total, "text": _headline(found)}


# ---------------------------------------------------------------- what is known


def _stage(found: Unfinished, stage: StageRecord) -> View:
    seconds, words = stage.seconds, word(stage.status)
    if stage.status == "running":
        now = seconds_since(stage.started, found.written)
        seconds = (seconds or 0.0) + now if now is not None else seconds
        words = tr("running, {share:.0f} %", share=_percent(found)) if found.progress else tr("running")
    elif stage.status == "killed" and found.life is not None:
        now = seconds_since(stage.started, found.life)
        seconds = (seconds or 0.0) + now if now is not None else seconds
    return {
        "name": stage.name,
        "work": tr(_WORK[stage.name]) if stage.name in _WORK else stage.name,
        "status": words or tr("not begun"),
        "tone": stage.status or "waiting",
        "seconds": duration(seconds) if seconds is not None else "",
    }


def _scores(found: Unfinished) -> View | None:
    """Return a table of what is measured: one row a system, the primary metric first."""
    if not found.metrics:
        return None
    names = sorted({n: None for m in found.metrics.values() for n in m}, key=lambda name: name != found.primary)
    scales = {name: _scale(found, name) for name in names}
    return {
        "columns": [_column(name, scales[name].unit, found) for name in names],
        "rows": [
            {"name": system, "n": _rows(metrics), "cells": [_cell(metrics.get(n), scales[n]) for n in names]}
            for system, metrics in found.metrics.items()
        ],
    }


def _column(name: str, unit: str, found: Unfinished) -> View:
    return {"name": name, "unit": "" if unit == name else unit, "primary": name == found.primary}


def _scale(found: Unfinished, name: str) -> Scale:
    metrics = [m[name] for m in found.metrics.values() if name in m]
    return scale_for(metrics[0].unit, [m.value for m in metrics])


def _rows(metrics: Mapping[str, Metric]) -> str:
    return count(max((m.n for m in metrics.values()), default=None))


def _cell(metric: Metric | None, scale: Scale) -> View:
    if metric is None:
        return {"value": scale.value(None), "interval": None}
    return {"value": scale.value(metric.value), "interval": scale.interval(metric.low, metric.high)}


def _charts(found: Unfinished) -> list[View]:
    """Return the loss, and the primary metric on the validation rows, as small curves."""
    wanted = [name for name in ("loss", "validation loss", found.primary) if name in found.points]
    charts = (_chart(found, name, sorted(found.points[name].items())) for name in wanted if name is not None)
    return [chart for chart in charts if chart]


def _chart(found: Unfinished, name: str, points: Sequence[tuple[float, float]]) -> View | None:
    unit = next((m[name].unit for m in found.metrics.values() if name in m), "")
    factor = 100 if unit == "fraction" else 1
    finite_points = [(x, y * factor) for x, y in points if finite(y) is not None]
    if not finite_points:
        return None
    values = [y for _, y in finite_points]
    at_y = ticks(min(values), max(values), 3)
    labels = tick_labels(at_y)
    low, high = at_y[0], at_y[-1]
    first, last = finite_points[0][0], max(finite_points[-1][0], finite_points[0][0] + 1)

    def at(x: float, y: float) -> tuple[float, float]:
        return 100 * (x - first) / (last - first), 100 - 100 * (y - low) / (high - low)

    def written(y: float) -> str:
        return metric_value(y / factor, unit)

    thin = finite_points[:: max(1, len(finite_points) // _POINTS)]
    thin += finite_points[-1:] if thin[-1] != finite_points[-1] else []
    places = [at(x, y) for x, y in thin]
    return {
        "title": word(name) if name in ("loss", "validation loss") else tr("{metric}, validation rows", metric=name),
        "unit": scale_for(unit, values).unit,
        "now": written(finite_points[-1][1]),
        "path": " ".join(f"{x:.2f},{y:.2f}" for x, y in places),
        "end": {"x": round(places[-1][0], 2), "y": round(places[-1][1], 2)},
        "low": labels[0],
        "high": labels[-1],
        "first": f"{first:g}",
        "last": f"{finite_points[-1][0]:g}",
        "text": tr(
            "{metric} from {a} at step {first:g} to {b} at step {last:g}",
            metric=word(name),
            a=written(finite_points[0][1]),
            b=written(finite_points[-1][1]),
            first=first,
            last=finite_points[-1][0],
        ),
    }


def _facts(found: Unfinished) -> list[tuple[str, str]]:
    """Return what kind of run it is, as pairs of a name and a value."""
    record = found.record
    rows = joined([tr("{n:,} {split}", n=n, split=word(split)) for split, n in rows_of(record).items()])
    facts = [(tr("Started"), moment(found.written - since) if (since := _since(found)) is not None else record.started)]
    if since is not None and found.status == "running":
        facts.append((tr("Running for"), duration(since)))
    facts += [(tr("Rows"), rows)] if rows else []
    facts += [(tr("Last training event"), moment(found.logged))] if found.logged else []
    facts += [(tr("Executed by"), record.where)] if record.where else []
    return [*facts, (tr("Directory"), str(found.dir))]


def _since(found: Unfinished) -> float | None:
    return seconds_since(found.record.started, found.written)


def _change(change: Mapping[str, Any]) -> str:
    text = msg("{key}: {a} → {b} (resumed before {stage})")
    return tr(text, key=change.get("key"), a=change.get("from"), b=change.get("to"), stage=change.get("stage"))
