"""Slices: the primary metric over groups of rows, by the length of the input and by the columns of `columns.meta`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..intervals import Clustered, Interval, few_units, mean_interval
from ..lang import msg, tr
from ..records import Example
from ..stats import clusters_of
from ..text import finite, one_line
from .compare import known_examples
from .measured import Measured
from .seed_stats import seed_interval
from .seeds import SeedGroup

LENGTH = msg("input length")
RANGE, REST, NO_VALUE = msg("{low} to {high}"), msg("{n} other values together"), msg("(no value)")  # names of groups
_MOST_GROUPS = 12  # a column with more values keeps the largest groups; the rest become one
_FEWEST_ROWS = 2  # on average, of a value of a column: a column of names or ids makes no groups
_NAME_CAP = 60  # characters of a group's name

Groups = list[tuple[str, list[str]]]  # each group's name and the ids of its rows


def slices_of(measured: Sequence[Measured], primary: str | None) -> list[dict[str, Any]]:
    """Return one table per way to group the rows: {"by", "unit", "groups", "left_out"}.

    `left_out` says why a column makes no groups (None where it makes some). A group is {"name", "n", "few", "systems"}: its number of rows, why they are too few to rely on (None where they
    are not), and by system {"value", "low", "high", "n", "method", "caution"}, computed as for all rows together. A
    system whose metric is not a mean over rows has no values here.
    """
    shown = [m for m in measured if m.system.role != "extra" and primary and _is_mean_of_rows(m, primary)]
    if primary is None or not shown:
        return []
    examples = known_examples([m for m in measured if m.system.role != "extra"])
    clusters = clusters_of(examples)
    tables = []
    for by, unit, groups in _groupings(examples):
        left_out = None
        if len(groups) < 2:
            left_out = tr("all rows have one value") if groups else tr("hardly two rows share a value")
        made = [] if left_out else [_group(name, ids, shown, primary, clusters) for name, ids in groups]
        tables.append({"by": by, "unit": unit, "groups": made, "left_out": left_out})
    return tables


# ---------------------------------------------------------------- the groups


def _groupings(examples: Sequence[Example]) -> Iterable[tuple[str, str, Groups]]:
    lengths = {e.id: len(e.input or "\n".join(m.content for m in e.messages)) for e in examples}
    if any(lengths.values()):
        yield LENGTH, msg("characters"), _terciles(lengths)
    for column in dict.fromkeys(name for e in examples for name in e.meta):
        values = {e.id: e.meta.get(column) for e in examples}
        numbers = {i: x for i, value in values.items() if (x := finite(value)) is not None}
        if len(numbers) == len(values) and len(set(numbers.values())) > _MOST_GROUPS // 2:
            yield column, "", _terciles(numbers)
        else:
            yield column, "", _by_value(values)


def _terciles(values: Mapping[str, float]) -> Groups:
    """Cut the rows into thirds by their values; equal values stay together, so thirds may be unequal or fewer."""
    ordered = sorted(values.values())
    cuts = [ordered[math.ceil(len(ordered) * third / 3) - 1] for third in (1, 2)]
    parts: list[list[str]] = [[], [], []]
    for i, value in values.items():
        parts[sum(value > cut for cut in cuts)].append(i)
    return [(_range([values[i] for i in ids]), ids) for ids in parts if ids]


def _range(values: Sequence[float]) -> str:
    low, high = (f"{x:,.0f}" if x == int(x) else f"{x:,.4g}" for x in (min(values), max(values)))
    return low if low == high else tr(RANGE, low=low, high=high)


def _by_value(values: Mapping[str, Any]) -> Groups:
    """Group rows by equal values, the largest group first; none where hardly two rows share a value."""
    found: dict[str, list[str]] = {}
    for i, value in values.items():
        found.setdefault(_shown(value), []).append(i)
    if len(values) < _FEWEST_ROWS * len(found):
        return []
    ranked = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    if len(ranked) > _MOST_GROUPS:
        rest = ranked[_MOST_GROUPS - 1 :]
        ids = [i for _, ids in rest for i in ids]
        ranked = [*ranked[: _MOST_GROUPS - 1], (tr(REST, n=len(rest)), ids)]
    return [(one_line(name, _NAME_CAP), ids) for name, ids in ranked]


def _shown(value: Any) -> str:
    if value is None or value == "":
        return tr(NO_VALUE)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


# ---------------------------------------------------------------- their numbers


def _is_mean_of_rows(m: Measured, metric: str) -> bool:
    """Say whether a system's metric is the mean of its rows' values: else groups of rows would have other numbers."""
    values, found = m.means(metric).values(), m.system.metrics.get(metric)
    return (
        bool(values) and found is not None and math.isclose(found.value, math.fsum(values) / len(values), abs_tol=1e-9)
    )


def _group(
    name: str, ids: Sequence[str], measured: Sequence[Measured], metric: str, clusters: Mapping[str, str]
) -> dict[str, Any]:
    different = len({clusters.get(i, i) for i in ids})
    return {
        "name": name,
        "n": len(ids),
        "few": few_units(different, "examples" if different == len(ids) else "different inputs"),
        "systems": {m.system.name: cell for m in measured if (cell := _cell(m, metric, ids, clusters))},
    }


def _cell(m: Measured, metric: str, ids: Sequence[str], clusters: Mapping[str, str]) -> dict[str, Any] | None:
    """Return a system's mean over those of the rows that it has scored; None where it has scored none."""
    means = m.means(metric)
    scored = sorted(i for i in ids if i in means)
    if not scored:
        return None
    value = math.fsum(means[i] for i in scored) / len(scored)
    found = _interval(m, metric, scored, clusters)
    low, high = (None if bound is None else float(bound) for bound in found[:2])
    return {
        "value": value,
        "low": low,
        "high": high,
        "n": len(scored),
        "method": found.method,
        "caution": found.caution,
    }


def _interval(m: Measured, metric: str, ids: Sequence[str], clusters: Mapping[str, str]) -> Interval:
    means, fraction = m.means(metric), m.system.metrics[metric].unit == "fraction"
    if isinstance(m, SeedGroup) and not m.same_answers and len(ids) > 1:
        rows = np.array([[values[i] for i in ids] for values in m.values(metric)])  # (seeds, rows)
        found = seed_interval(None, rows)
        bounds = (max(0.0, found.low), min(1.0, found.high)) if fraction else (found.low, found.high)
        return Interval(*bounds, f"95 % interval over {len(rows)} training seeds and {len(ids)} examples")
    return mean_interval(
        Clustered([means[i] for i in ids], [1.0] * len(ids), [clusters.get(i, i) for i in ids]), fraction
    )
