"""Runs as rows of tables: answers, metrics, curves, lists of runs; pandas is imported when a frame is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from .directory import RunDirectory
from .errors import InputError
from .files import read_jsonl
from .listing import Summary, short_id
from .records import Curve, Example

if TYPE_CHECKING:
    import pandas

Row = dict[str, Any]


def frame(rows: Iterable[Row]) -> pandas.DataFrame:
    """Return rows as a pandas frame. Raises InputError where pandas is not installed."""
    try:
        import pandas
    except ImportError:
        raise InputError("this returns a pandas frame, and pandas is not installed", "pip install pandas") from None
    return pandas.DataFrame(list(rows))


def prediction_rows(run: RunDirectory) -> Iterator[Row]:
    for system in run.measured():
        examples = {e.id: e for e in _examples(run, system)}
        scores = {(s.example_id, s.sample): s for s in run.scores(system)}
        names = dict.fromkeys(name for s in scores.values() for name in s.values or ())
        for p in run.predictions(system):
            example, score = examples.get(p.example_id), scores.get((p.example_id, p.sample))
            yield {
                "run": run.id,
                "system": system,
                "example_id": p.example_id,
                "sample": p.sample,
                "input": example.input if example else None,
                "target": example.targets[0] if example and example.targets else None,
                "text": p.text,
                "answer": score.answer if score else None,
                "reason": score.reason if score else None,
                "finish_reason": p.finish_reason,
                "error": p.error,
                **{name: (score.values or {}).get(name) if score else None for name in names},
            }


def _examples(run: RunDirectory, system: str) -> list[Example]:
    """Return the rows that a system was measured on."""
    own = run.path(system, "examples.jsonl")
    path = own if own.exists() else run.path("data", f"{run.measurement(system)['settings']['split']}.jsonl")
    return [Example.from_dict(row) for row in read_jsonl(path)]


def metric_rows(run: RunDirectory) -> Iterator[Row]:
    for system in run.measured():
        primary = run.measurement(system)["settings"].get("primary")
        for m in run.metrics(system).values():
            yield {
                "run": run.id,
                "system": system,
                "metric": m.name,
                "value": m.value,
                "low": m.low,
                "high": m.high,
                "n": m.n,
                "n_unscored": m.n_unscored,
                "unit": m.unit,
                "higher_is_better": m.higher_is_better,
                "primary": m.name == primary,
            }


def curves_of(run: RunDirectory) -> list[Curve]:
    """Return the training curves of a run; of one in progress, as far as they are."""
    from .report.build import curves_of as curves

    return list(curves(run))


def curve_rows(run: RunDirectory) -> Iterator[Row]:
    for curve in curves_of(run):
        for step, value in curve.points:
            yield {"run": run.id, "axis": curve.axis, "name": curve.name, "step": step, "value": value}


def run_row(s: Summary) -> Row:
    """Return one run of a list."""
    metric = s.tuned or s.base
    return {
        "run": str(s.run.dir),
        "id": short_id(s.run.id),
        "name": s.record.name,
        "status": s.status,
        "started": s.record.started,
        "seconds": s.seconds,
        "metric": metric.name if metric else None,
        "unit": metric.unit if metric else None,
        "base": s.base.value if s.base else None,
        "tuned": s.tuned.value if s.tuned else None,
        "change": s.change,
        "why": s.why,
    }
