"""Who is compared with whom, paired differences, and the verdict in words."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..records import Delta, System
from ..stats import holm, paired_deltas
from ..text import Scale, p_equals, scale_for
from .measured import Measured
from .seeds import about, claim, no_claim, parts, scored, seeds_in_words, systems_of, widen

UNSCORED_LIMIT = 0.02  # with a larger share of failed answers no verdict is given
SIGNIFICANCE = 0.05
_FINAL = ("tuned", "external")  # roles of what somebody would use in the end


def primary_of(measured: Sequence[Measured]) -> str | None:
    """Return the primary metric of the first measurement's first evaluator."""
    return next((m.system.settings["primary"] for m in measured if m.system.role != "extra"), None)


def _comparisons(measured: Sequence[Measured]) -> list[tuple[Measured, Measured]]:
    """Say which systems are compared: base and controls to tuned within a run, then tuned to tuned, base to base.

    A further measurement that a backend defines (a checkpoint, say) is compared with its run's base.
    """
    pairs = []
    finals = [m for m in measured if m.system.role in _FINAL]
    bases = [m for m in measured if m.system.role == "baseline"]
    for m in finals:
        for other in measured:
            alike = bool(m.used_by & other.used_by) or m.system.role == "external"
            if other.system.role in ("baseline", "control") and alike:
                pairs.append((other, m))
    for m in measured:
        if m.system.role == "further":
            pairs += [(base, m) for base in bases if m.used_by & base.used_by]
    return [*pairs, *itertools.combinations(finals, 2), *itertools.combinations(bases, 2)]


def deltas_of(measured: Sequence[Measured], primary: str | None, warnings: list[str]) -> list[Delta]:
    """Return the paired differences in every metric that two compared systems share; a verdict on the primary one."""
    compared = [
        (a, b, name) for a, b in _comparisons(measured) for name in b.system.metrics if name in a.system.metrics
    ]
    found = paired_deltas([(a.means(name), b.means(name)) for a, b, name in compared])
    found = [widen(a, b, name, f) for (a, b, name), f in zip(compared, found, strict=True)]
    deltas = [
        Delta(
            *(a.system.name, b.system.name, name, f.delta, f.low, f.high, f.p_value, f.n),
            unit=b.system.metrics[name].unit,
            about=about(a, b),
        )
        for (a, b, name), f in zip(compared, found, strict=True)
        if f.delta is not None
    ]
    tested = [d for d in deltas if d.metric == primary and d.p_value is not None]
    if len(tested) > 1:
        for d, p in zip(tested, holm([d.p_value or 0.0 for d in tested]), strict=True):
            deltas[deltas.index(d)] = replace(d, p_adjusted=p)
    by_name = {m.system.name: m for m in measured}
    for i, d in enumerate(deltas):
        if d.metric != primary:
            continue
        a, b = by_name[d.from_], by_name[d.to]
        unscored = _too_many_unscored(systems_of(a, b), d.metric)
        if unscored:
            warnings.append(f"No verdict on {d.to} against {d.from_}: {unscored}")
        else:
            deltas[i] = claim(replace(d, verdict=_word(d, b.system.metrics[d.metric].higher_is_better)), a, b)
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
    """Return the headline and the lines under it; says what is missing where no verdict can be given."""
    by_name = {m.system.name: m for m in measured}
    finals = [m for m in measured if m.system.role in _FINAL]
    lines = []
    for delta in deltas:
        a, b = by_name[delta.from_], by_name[delta.to]
        from_base = a.system.role == "baseline" and b.system.role in _FINAL
        only_two = len(finals) == 2 and a.system.role in _FINAL and b.system.role in _FINAL
        two_recipes = len(parts(a)) > 1 and len(parts(b)) > 1  # each with several training seeds
        if delta.metric == primary and (from_base or only_two or two_recipes):
            lines.append(_sentence(delta, a, b))
    if not lines:
        stages = {m.system.role for m in measured}
        missing = [role for role in ("baseline", "tuned") if role not in stages]
        if missing:
            return "No verdict", f"There is no {' and no '.join(missing)} measurement."
        return "No verdict", f"No example has a score for {primary!r} in both systems."
    head, *rest = lines
    return head[0], "\n".join([head[1], *(f"{title}: {text}" for title, text in rest)])


def _sentence(delta: Delta, a: Measured, b: Measured) -> tuple[str, str]:
    """Return what a difference means, and the numbers that say so."""
    unscored = _too_many_unscored(systems_of(a, b), delta.metric)
    if unscored:
        return f"No verdict on {b.system.name}", f"{unscored}."
    if b.system.metrics[delta.metric].higher_is_better is None:
        subject = f"{b.system.name} against {a.system.name}: neither way is better by {delta.metric}"
    elif a.system.role == "baseline" and b.system.role == "tuned" and all(_same_answers(a, part) for part in parts(b)):
        subject = f"Training changed nothing that can be seen: {b.system.name} gave the same answers as {a.system.name}"
    elif delta.verdict in ("better", "worse"):
        subject = f"{b.system.name} is {delta.verdict} than {a.system.name}"
    elif delta.verdict in ("scored higher", "scored lower"):
        subject = scored(delta, a, b)
    else:
        subject = f"No difference shown between {b.system.name} and {a.system.name}"
    unit = "points" if delta.unit == "fraction" else delta.unit
    means = _common_means(a, b, delta.metric)
    scale = scale_for(delta.unit, [*means, delta.delta])
    change = f"{_signed(delta.delta, scale)} {unit}"
    ends = f" [{_signed(delta.low, scale)}, {_signed(delta.high, scale)}]" if delta.low is not None else ""
    before, after = (scale.value(mean) for mean in means)
    p = delta.p_adjusted if delta.p_adjusted is not None else delta.p_value
    corrected = " after Holm's correction" if delta.p_adjusted is not None else ""
    seed = seeds_in_words(b, scale.value(b.system.spread.get(delta.metric, {}).get("sd")))
    return subject, (
        f"{delta.metric} {before} → {after}: {change}, 95 % interval{ends}, {p_equals(p)}{corrected}, n={delta.n}{seed}.{no_claim(a, b)}"
    )


def _same_answers(a: Measured, b: Measured) -> bool:
    """Say whether two systems answered every example alike; a failed answer is like none."""
    pairs = [(p, b.predictions.get(name)) for name, p in a.predictions.items()]
    return bool(pairs) and all(q and p.error is None and q.error is None and p.text == q.text for p, q in pairs)


def _common_means(a: Measured, b: Measured, metric: str) -> tuple[float, float]:
    """Return both systems' means over the examples that both have scored: what the delta speaks of."""
    values_a, values_b = a.means(metric), b.means(metric)
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


def _signed(value: float | None, scale: Scale) -> str:
    """Return a difference with its sign, also where it rounds to 0."""
    text = scale.signed(value)
    return text if text[0] in "+−–" else f"+{text}"
