"""The examples and the slices of a report as the page shows them: texts ready to print, numbers to sort by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...lang import tr
from ...records import Pair, Report, System
from ...text import NONE, Scale, count, finite, scale_for, visible
from .text import TEXT_CAPS, clip

TEXT_BUDGET = 40_000_000  # characters of all examples together
HIGH = 0.8  # a share of the primary metric above it is a high score
_OPEN_GROUPS = 6  # a slice with more groups is folded
_PLAIN_ROWS = (3, 4, 3)  # best, middle and worst rows of a page whose script did not run
_PLAIN_CAP = 2_000  # characters of a text there

View = dict[str, Any]


def answer_order(report: Report) -> list[str]:
    """Return the names of everything that has answers: systems in the report's order, then single seeds of one."""
    answered = dict.fromkeys(name for pair in report.pairs for name in pair.answers)
    known = [s.name for s in report.systems if s.name in answered]
    return [*known, *(name for name in answered if name not in known)]


def examples_view(report: Report, scales: Mapping[str, Scale]) -> View:
    """Return what the template prints around the examples, and under `island` what the page's script reads.

    An answer of the island is {"text", "values", "error", "answer", "reason", "cut"}; `values` are in the order of
    `metrics`, of which the first is the primary one.
    """
    names, cap = answer_order(report), _text_cap(report.pairs)
    metrics = _metrics(report, scales)
    shown = [str(m["name"]) for m in metrics]

    def text(value: object) -> str:
        return visible(clip(str(value), cap))

    def answer(found: Mapping[str, Any] | None) -> View | None:
        if found is None:
            return None
        values = found.get("values") or {}
        numbers = [finite(found.get("score")), *(_short(values.get(name)) for name in shown[1:])]
        view: View = {"text": text(found.get("text") or ""), "values": numbers}
        view |= {key: text(found[key]) for key in ("error", "answer", "reason") if found.get(key) is not None}
        return view | ({"cut": True} if found.get("finish_reason") == "length" else {})

    rows = [
        {
            "id": text(pair.example_id),
            "input": text(pair.input),
            "targets": [text(t) for t in pair.targets],
            "answers": [answer(pair.answers.get(name)) for name in names],
        }
        for pair in report.pairs
    ]
    for m in metrics:
        m["name"] = visible(str(m["name"]))
    a, b = _first_pair(report, names)
    primary = metrics[0]
    high = HIGH if primary["better"] > 0 else 1 - HIGH
    island = {
        "systems": [visible(name) for name in names],
        "metrics": metrics,
        "pair": [a, b],
        "high": round(high, 6) if primary["factor"] == 100 and primary["better"] else None,
        "rows": rows,
    }
    return {
        "island": island,
        "systems": island["systems"],
        "sorts": _sorts(a >= 0, primary["better"]),
        "cap": cap,
        "n": len(rows),
        "plain": _plain(report.pairs, rows),
        "primary": primary,
    }


def _text_cap(pairs: Sequence[Pair]) -> int:
    lengths = [
        len(text)
        for p in pairs
        for text in (p.input, *p.targets, *(str(a.get("text") or "") for a in p.answers.values()))
    ]
    fitting = (cap for cap in TEXT_CAPS if sum(min(n, cap) for n in lengths) <= TEXT_BUDGET)
    return next(fitting, TEXT_CAPS[-1])


def _short(value: object) -> float | int | None:
    """Return a number with six digits that count, and a whole one without a point: the page is read over and over."""
    number = finite(value)
    if number is None:
        return None
    short = float(f"{number:.6g}")
    return int(short) if short.is_integer() else short


def _metrics(report: Report, scales: Mapping[str, Scale]) -> list[View]:
    """Return the metrics of rows, the primary one first, without those in which all systems agree in every row."""
    values: dict[str, set[float]] = {}
    differ: set[str] = set()
    for pair in report.pairs:
        found = [a.get("values") or {} for a in pair.answers.values() if a.get("error") is None]
        for name in dict.fromkeys(name for row in found for name in row):
            here = {row.get(name) for row in found}
            if len(here) > 1 or len(pair.answers) < 2:
                differ.add(name)
            seen = values.setdefault(name, set())
            if len(seen) < 3:  # more do not matter
                seen |= {value for value in here if value is not None}
    names = [report.primary, *(name for name in values if name != report.primary and name in differ)]
    known = {name: m for s in report.systems for name, m in s.metrics.items()}
    made = []
    for name in names:
        unit = known[name].unit if name in known else "fraction"
        better = known[name].higher_is_better if name in known else True
        scale = scales.get(name) or scale_for(unit, values.get(name, ()))
        direction = 0 if better is None else 1 if better else -1
        made.append(
            {
                "name": name,
                "factor": scale.factor,
                "digits": scale.digits,
                "unit": scale.unit,
                "delta_unit": scale.delta_unit,
                "better": direction,
                "binary": bool(direction) and unit == "fraction" and values.get(name) == {0.0, 1.0},
            }
        )
    return made


def _first_pair(report: Report, names: Sequence[str]) -> tuple[int, int]:
    """Return the systems to compare at first: those that the headline speaks of; -1 for the first where there is one."""
    by_name = {s.name: s for s in report.systems}
    for delta in report.deltas:
        if delta.metric == report.primary:
            a, b = (_place(by_name.get(name), name, names) for name in (delta.from_, delta.to))
            if a is not None and b is not None and a != b:
                return a, b
    return (0, len(names) - 1) if len(names) > 1 else (-1, 0)


def _place(system: System | None, name: str, names: Sequence[str]) -> int | None:
    """Return where a system's answers stand; of one with several training seeds, those of the first seed."""
    if name in names:
        return names.index(name)
    first = f"{name}, seed {system.seeds[0]['seed']}" if system and system.seeds else None
    return next((i for i, other in enumerate(names) if first and other.startswith(first)), None)


def _sorts(two: bool, better: int) -> list[tuple[str, str]]:
    change = [("delta-down", tr("Largest increase first")), ("delta-up", tr("Largest decrease first"))]
    if better:
        change = [("delta-down", tr("Largest gain first")), ("delta-up", tr("Largest loss first"))]
    rest = [("length", tr("Shortest input first")), ("order", tr("Test order")), ("id", tr("Id"))]
    scores = [("score-up", tr("Lowest score first")), ("score-down", tr("Highest score first"))]
    return [("start", tr("Best, middle, worst")), *(change if two else []), *scores, *rest]


def _plain(pairs: Sequence[Pair], rows: Sequence[View]) -> list[View]:
    """Return the rows of a page whose script did not run: the best, some from the middle, the worst, in test order."""
    ranked = sorted(
        (i for i, p in enumerate(pairs) if finite(p.delta) is not None), key=lambda i: -(pairs[i].delta or 0)
    )
    ranked += [i for i, p in enumerate(pairs) if finite(p.delta) is None]
    best, middle, worst = _PLAIN_ROWS
    if len(ranked) > best + middle + worst:
        start = (len(ranked) - middle) // 2
        ranked = ranked[:best] + ranked[start : start + middle] + ranked[-worst:]

    def cut(text: str) -> str:
        return clip(text, _PLAIN_CAP)

    return [
        {
            **rows[i],
            "input": cut(rows[i]["input"]),
            "targets": [cut(t) for t in rows[i]["targets"]],
            "answers": [a and {**a, "text": cut(a["text"])} for a in rows[i]["answers"]],
        }
        for i in ranked
    ]


# ---------------------------------------------------------------- slices


def slices_view(report: Report, scales: Mapping[str, Scale]) -> View | None:
    """Return the tables of slices, a row per group and a column per system; None where there are none."""
    names = [s.name for s in report.systems if any(s.name in g["systems"] for t in report.slices for g in t["groups"])]
    if not names:
        return None
    scale = scales[report.primary]

    def cell(found: Mapping[str, Any] | None) -> View:
        if not found:
            return {"value": NONE, "interval": None}
        return {"value": scale.value(found["value"]), "interval": scale.interval(found["low"], found["high"])}

    tables = [
        {
            "open": len(t["groups"]) <= _OPEN_GROUPS,
            "title": _title(f"{t['by'][:1].upper()}{t['by'][1:]}", t["unit"]),
            "rows": [
                {"name": g["name"], "n": count(g["n"]), "few": g["few"], "cells": [cell(g["systems"].get(n)) for n in names]}
                for g in t["groups"]
            ],
        }
        for t in report.slices
        if t["groups"]
    ]  # fmt: skip
    left_out = [tr("{title} ({text})", title=t["by"], text=t["left_out"]) for t in report.slices if not t["groups"]]
    any_few = any(g["few"] for t in report.slices for g in t["groups"])
    return {"systems": names, "unit": scale.unit, "tables": tables, "left_out": left_out, "any_few": any_few}


def _title(by: str, unit: str) -> str:
    return tr("{title}, {unit}", title=by, unit=unit) if unit else by
