"""The training seeds of a report as texts that are ready to print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...lang import tr
from ...records import Report, System
from ...text import Scale, finite, scale_for

View = dict[str, Any]


def seed_values(s: System, metric: str) -> dict[Any, float]:
    """Return the metric's value of each training seed; nothing where there are not several."""
    if len(s.seeds) < 2:
        return {}
    values = {entry.get("seed"): finite((entry.get("metrics") or {}).get(metric)) for entry in s.seeds}
    return {seed: value for seed, value in values.items() if value is not None}


def seeds_listed(s: System) -> str:
    """Return "3 training seeds: 42, 43, 44"."""
    seeds = ", ".join(str(entry.get("seed")) for entry in s.seeds)
    return tr("{n} training seeds: {seeds}", n=len(s.seeds), seeds=seeds)


def seeds_view(report: Report, scales: Mapping[str, Scale]) -> list[View]:
    """Return one row per system with several seeds and metric, the primary metric first."""
    rows = []
    for s in report.systems:
        for metric in sorted(s.spread, key=lambda name: name != report.primary):
            scale, facts = scales.get(metric) or scale_for("", [s.spread[metric].get("max")]), s.spread[metric]
            each = seed_values(s, metric)
            rows.append(
                {
                    "name": s.name,
                    "metric": metric,
                    "unit": "" if scale.unit == metric else scale.unit,
                    "n": len(each),
                    "mean": scale.value(sum(each.values()) / len(each) if each else None),
                    "sd": scale.value(facts.get("sd")),
                    "range": scale.interval(facts.get("min"), facts.get("max")),
                    "each": ", ".join(f"{seed}: {scale.value(value)}" for seed, value in each.items()),
                }
            )
    return rows
