"""The costs of a report as texts that are ready to print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...records import Report
from ...text import NONE, about, dollars, duration
from ..costs import ALWAYS_ON, ON_DEMAND, PER_PREDICTION, VOLUMES, BreakEven, Costs, Way

View = dict[str, Any]
NO_VALUE: View = {"value": NONE, "interval": None, "note": None}


def costs_view(report: Report, quality: Mapping[str, View]) -> View | None:
    """Return quality beside price and time, where a machine and an API cost the same, and what a month costs.

    `quality` holds each system's cell of the primary metric.
    """
    if not report.costs:
        return None
    costs = Costs.from_dict(report.costs)
    models = {s.name: s.model for s in report.systems}
    compared = {meet.machine for meet in costs.break_evens} | {meet.api for meet in costs.break_evens}
    return {
        "rows": [
            {
                "name": c.system,
                "model": models.get(c.system),
                "quality": quality.get(c.system, NO_VALUE),
                "train_seconds": duration(c.train_seconds),
                "train_usd": dollars(c.train_usd),
                "train_source": c.sources.get("train_usd"),
                "seconds_per_1k": duration(c.seconds_per_1k),
                "usd_per_1k": dollars(c.usd_per_1k),
                "per_1k_source": c.sources.get("usd_per_1k"),
                "usd_per_hour": dollars(c.usd_per_hour) if c.usd_per_hour is not None else None,
                "hour_source": c.sources.get("usd_per_hour"),
                "failed": f"{c.n_failed:,} of {c.n_predictions:,}",
                "hosted_by": c.hosted_by,
                "shutdown_date": c.shutdown_date,
            }
            for c in costs.systems
        ],
        "meets": [_meet(meet, costs) for meet in costs.break_evens],
        "volumes": [f"{v:,}" for v in VOLUMES],
        "months": [
            {"name": way.system, "way": way.way, "cells": [_month(way, v) for v in VOLUMES]}
            for way in costs.ways
            if way.system in compared
        ],
        "spent": [
            {
                "run": spent["run"],
                "estimated": dollars(spent["estimated"]),
                "actual": dollars(spent["actual"]),
                "as_of": spent.get("prices_as_of"),
            }
            for spent in costs.runs
        ],
    }


def _month(way: Way, volume: int) -> View:
    n = way.machines(volume)
    return {"usd": dollars(way.monthly(volume)), "machines": f"{n:,} machines" if n > 1 else None}


def _meet(meet: BreakEven, costs: Costs) -> View:
    """Say in words where a machine and an API meet, and apart from it what the training makes of it."""
    per_1k = {(way.system, way.way): dollars(1000 * way.usd_per_prediction) for way in costs.ways}
    month = next((w.usd_per_month for w in costs.ways if (w.system, w.way) == (meet.machine, meet.way)), None)
    demand, api = per_1k.get((meet.machine, ON_DEMAND), NONE), per_1k.get((meet.api, PER_PREDICTION), NONE)
    against = f"{demand} per 1,000 predictions against {api}"
    if meet.way == ALWAYS_ON and meet.volume is not None:
        text = (
            f"{meet.machine} on a machine that is always on ({dollars(month)} a month) is cheaper than {meet.api} ({api} "
            f"per 1,000) from {about(meet.volume)} predictions a month on; it can make {about(meet.capacity)} a month."
        )
    elif meet.way == ALWAYS_ON and meet.cheaper == meet.api:
        text = (
            f"{meet.api} is cheaper than {meet.machine} on a machine that is always on, at every volume: even used to "
            f"the full the machine costs {against}."
        )
    elif meet.cheaper is None:
        text = f"{meet.machine} on a machine rented on demand costs as much as {meet.api}: {against}."
    elif meet.way == ALWAYS_ON:
        text = f"{meet.machine} is cheaper at every volume: its machine costs nothing."
    else:
        other = meet.api if meet.cheaper == meet.machine else meet.machine
        text = f"On demand, {meet.cheaper} is cheaper than {other} at every volume: the machine costs {against}."
    return {"text": text, "training": _training(meet)}


def _training(meet: BreakEven) -> str | None:
    if meet.train_usd is None or meet.way != ON_DEMAND:
        return None
    if meet.train_usd == 0:
        return "Their training cost the same."
    dear, cheap = (meet.machine, meet.api) if meet.train_usd > 0 else (meet.api, meet.machine)
    repaid = f", which is repaid after {about(meet.repaid_after)} predictions in all" if meet.repaid_after else ""
    return f"Training {dear} cost {dollars(abs(meet.train_usd))} more than {cheap}{repaid}."
