"""Who is compared with whom, paired differences, and the verdict in words."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..console import number
from ..records import Delta, System
from ..stats import example_means, holm, paired_delta
from .measured import Measured

UNSCORED_LIMIT = 0.02  # with a larger share of failed answers no verdict is given
SIGNIFICANCE = 0.05


def primary_of(measured: Sequence[Measured]) -> str | None:
    """Return the primary metric of the first measurement's first evaluator."""
    return next((m.system.settings["primary"] for m in measured if m.system.role != "extra"), None)


def _comparisons(measured: Sequence[Measured]) -> list[tuple[Measured, Measured]]:
    """Say which systems are compared: base to tuned of each run, controls to tuned, tuned to tuned."""
    pairs = []
    finals = [m for m in measured if m.system.role in ("tuned", "external")]
    for m in finals:
        for other in measured:
            alike = m.run.id in other.used_by or m.system.role == "external"
            if other.system.role in ("baseline", "control") and alike:
                pairs.append((other, m))
    return pairs + list(itertools.combinations(finals, 2))


def deltas_of(measured: Sequence[Measured], primary: str | None, warnings: list[str]) -> list[Delta]:
    deltas: list[Delta] = []
    for a, b in _comparisons(measured):
        for name, metric in b.system.metrics.items():
            values_a, values_b = example_means(a.scores, name), example_means(b.scores, name)
            found = paired_delta(values_a, values_b)
            if found.delta is None or name not in a.system.metrics:
                continue
            deltas.append(
                Delta(
                    a.system.name,
                    b.system.name,
                    name,
                    found.delta,
                    found.low,
                    found.high,
                    found.p_value,
                    found.n,
                    unit=metric.unit,
                )
            )
    tested = [d for d in deltas if d.metric == primary and d.p_value is not None]
    if len(tested) > 1:
        for d, p in zip(tested, holm([d.p_value or 0.0 for d in tested]), strict=True):
            deltas[deltas.index(d)] = replace(d, p_adjusted=p)
    systems = {m.system.name: m.system for m in measured}
    for i, d in enumerate(deltas):
        if d.metric != primary:
            continue
        unscored = _too_many_unscored([systems[d.from_], systems[d.to]], d.metric)
        if unscored:
            warnings.append(f"No verdict on {d.to} against {d.from_}: {unscored}")
        else:
            deltas[i] = replace(d, verdict=_word(d, systems[d.to].metrics[d.metric].higher_is_better))
    return deltas


def _word(delta: Delta, higher_is_better: bool | None) -> str:
    p = delta.p_adjusted if delta.p_adjusted is not None else delta.p_value
    if higher_is_better is None or p is None or delta.low is None or delta.high is None:
        return ""
    if p >= SIGNIFICANCE or delta.low <= 0 <= delta.high:
        return "no difference shown"
    return "better" if (delta.delta > 0) == higher_is_better else "worse"


def verdict_of(
    measured: Sequence[Measured], deltas: Sequence[Delta], primary: str | None, warnings: list[str]
) -> tuple[str, str]:
    """Return the headline and the sentence under it; says what is missing where no verdict can be given."""
    by_name = {m.system.name: m for m in measured}
    lines = []
    for delta in deltas:
        a, b = by_name[delta.from_].system, by_name[delta.to].system
        if delta.metric != primary or (a.role, b.role) not in (("baseline", "tuned"), ("baseline", "external")):
            continue
        unscored = _too_many_unscored([a, b], delta.metric)
        if unscored:
            lines.append((f"No verdict on {b.name}", unscored))
            continue
        sign = "+" if delta.delta >= 0 else "−"
        unit = "points" if delta.unit == "fraction" else delta.unit
        interval = (
            f" [{_signed(delta.low, delta.unit)}, {_signed(delta.high, delta.unit)}]" if delta.low is not None else ""
        )
        change = f"{sign}{number(abs(delta.delta), delta.unit)} {unit}"
        subject = f"{b.name} is {delta.verdict} than {a.name}"
        if delta.verdict not in ("better", "worse"):
            subject = f"No difference shown between {b.name} and {a.name}"
            if b.metrics[delta.metric].higher_is_better is None:
                subject = f"{b.name} against {a.name}: neither way is better by {delta.metric}"
        low, high = _common_means(by_name[delta.from_], by_name[delta.to], delta.metric)
        p = delta.p_adjusted if delta.p_adjusted is not None else delta.p_value
        corrected = " after Holm's correction" if delta.p_adjusted is not None else ""
        lines.append(
            (
                subject,
                f"{delta.metric} {number(low, delta.unit)} → {number(high, delta.unit)}: {change}, 95 % interval"
                f"{interval}, p {_p(p)}{corrected}, n={delta.n}{', one training seed' if b.role == 'tuned' else ''}.",
            )
        )
    if not lines:
        stages = {m.system.role for m in measured}
        missing = [role for role in ("baseline", "tuned") if role not in stages]
        if missing:
            return "No verdict", f"There is no {' and no '.join(missing)} measurement."
        return "No verdict", f"No example has a score for {primary!r} in both systems."
    head, *rest = lines
    return head[0], " ".join([head[1], *(f"{title}. {text}" for title, text in rest)])


def _common_means(a: Measured, b: Measured, metric: str) -> tuple[float, float]:
    """Return both systems' means over the examples that both have scored: what the delta speaks of."""
    values_a, values_b = example_means(a.scores, metric), example_means(b.scores, metric)
    ids = values_a.keys() & values_b.keys()
    return sum(values_a[i] for i in ids) / len(ids), sum(values_b[i] for i in ids) / len(ids)


def _too_many_unscored(systems: Iterable[System], metric: str) -> str | None:
    for s in systems:
        m = s.metrics.get(metric)
        if m is None:
            return f"no answer of {s.name} could be scored"
        total = m.n + m.n_unscored
        if total and m.n_unscored / total > UNSCORED_LIMIT:
            return (
                f"{m.n_unscored} of {total} answers of {s.name} are unscored ({100 * m.n_unscored / total:.1f} %, "
                f"the limit is {100 * UNSCORED_LIMIT:.0f} %)"
            )
    return None


def _signed(value: float | None, unit: str) -> str:
    return "-" if value is None else ("+" if value >= 0 else "−") + number(abs(value), unit)


def _p(p: float | None) -> str:
    return "unknown" if p is None else "< 0.001" if p < 0.001 else f"= {p:.3f}"
