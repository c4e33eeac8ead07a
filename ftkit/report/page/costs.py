"""The costs of a report as texts that are ready to print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...lang import msg, tr
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
    has = {
        key: any(getattr(c, key) is not None for c in costs.systems)
        for key in (
            "train_usd",
            "train_seconds",
            "usd_per_1k",
            "usd_per_hour",
            "seconds_per_1k",
            "hosted_by",
            "shutdown_date",
        )
    }
    has |= {"failed": any(c.n_failed for c in costs.systems)}
    compared = {meet.machine for meet in costs.break_evens} | {meet.api for meet in costs.break_evens}
    return {
        "has": has,
        "has_price": has["train_usd"] or has["usd_per_1k"] or has["usd_per_hour"],
        "rows": [
            {
                "name": c.system,
                "model": models.get(c.system),
                "quality": quality.get(c.system, NO_VALUE),
                "train_seconds": duration(c.train_seconds),
                "train_usd": dollars(c.train_usd),
                "train_source": _source(c.sources.get("train_usd")),
                "seconds_per_1k": duration(c.seconds_per_1k),
                "usd_per_1k": dollars(c.usd_per_1k),
                "per_1k_source": _source(c.sources.get("usd_per_1k")),
                "usd_per_hour": dollars(c.usd_per_hour) if c.usd_per_hour is not None else None,
                "hour_source": _source(c.sources.get("usd_per_hour")),
                "failed": tr("{n:,} of {all:,}", n=c.n_failed, all=c.n_predictions),
                "hosted_by": c.hosted_by,
                "shutdown_date": c.shutdown_date,
            }
            for c in costs.systems
        ],
        "meets": [_meet(meet, costs) for meet in costs.break_evens],
        "volumes": [f"{v:,}" for v in VOLUMES],
        "months": [
            {"name": way.system, "way": tr(way.way), "cells": [_month(way, v) for v in VOLUMES]}
            for way in costs.ways
            if way.system in compared
        ],
        "spent": [
            {
                "run": spent["run"],
                "estimated": dollars(spent["estimated"]),
                "actual": dollars(spent["actual"]),
                "as_of": spent.get("prices_as_of"),
                "source": spent.get("source"),
            }
            for spent in costs.runs
        ],
    }


def _source(found: str | None) -> str | None:
    return tr(found) if found else None


def _month(way: Way, volume: int) -> View:
    n = way.machines(volume)
    return {"usd": dollars(way.monthly(volume)), "machines": tr("{n:,} machines", n=n) if n > 1 else None}


def _meet(meet: BreakEven, costs: Costs) -> View:
    """Say in words where a machine and an API meet, and apart from it what the training makes of it."""
    per_1k = {(way.system, way.way): dollars(1000 * way.usd_per_prediction) for way in costs.ways}
    month = next((w.usd_per_month for w in costs.ways if (w.system, w.way) == (meet.machine, meet.way)), None)
    demand, api = per_1k.get((meet.machine, ON_DEMAND), NONE), per_1k.get((meet.api, PER_PREDICTION), NONE)
    facts = {
        "machine": meet.machine,
        "api": meet.api,
        "against": tr("{machine} per 1,000 predictions against {api}", machine=demand, api=api),
    }
    if meet.way == ALWAYS_ON and meet.volume is not None:
        text = msg(
            "{machine} on a machine that is always on ({month} a month) is cheaper than {api} ({price} per 1,000) "
            "from {volume} predictions a month on; it can make {capacity} a month."
        )
        facts |= {"month": dollars(month), "price": api, "volume": about(meet.volume), "capacity": about(meet.capacity)}
    elif meet.way == ALWAYS_ON and meet.cheaper == meet.api:
        text = msg(
            "{api} is cheaper than {machine} on a machine that is always on, at every volume: even used to the full "
            "the machine costs {against}."
        )
    elif meet.cheaper is None:
        text = msg("{machine} on a machine rented on demand costs as much as {api}: {against}.")
    elif meet.way == ALWAYS_ON:
        text = msg("{machine} is cheaper at every volume: its machine costs nothing.")
    else:
        text = msg("On demand, {cheaper} is cheaper than {other} at every volume: the machine costs {against}.")
        facts |= {"cheaper": meet.cheaper, "other": meet.api if meet.cheaper == meet.machine else meet.machine}
    return {"text": tr(text, **facts), "training": _training(meet)}


def _training(meet: BreakEven) -> str | None:
    if meet.train_usd is None or meet.way != ON_DEMAND:
        return None
    if meet.train_usd == 0:
        return tr("Their training cost the same.")
    dear, cheap = (meet.machine, meet.api) if meet.train_usd > 0 else (meet.api, meet.machine)
    facts = {"dear": dear, "cheap": cheap, "usd": dollars(abs(meet.train_usd))}
    if not meet.repaid_after:
        return tr("Training {dear} cost {usd} more than {cheap}.", **facts)
    text = msg("Training {dear} cost {usd} more than {cheap}, which is repaid after {n} predictions in all.")
    return tr(text, **facts, n=about(meet.repaid_after))
