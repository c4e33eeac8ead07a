"""Who is compared with whom, paired differences, and the verdict in words."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..intervals import percent
from ..records import Delta, Metric, System
from ..stats import clusters_of, holm, holm_levels, paired_deltas, paired_interval
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
    for role in ("baseline", "control"):
        for m in finals:
            for other in measured:
                alike = bool(m.used_by & other.used_by) or m.system.role == "external"
                if other.system.role == role and alike:
                    pairs.append((other, m))
    for m in measured:
        if m.system.role == "further":
            pairs += [(base, m) for base in bases if m.used_by & base.used_by]
    return [*pairs, *itertools.combinations(finals, 2), *itertools.combinations(bases, 2)]


def deltas_of(measured: Sequence[Measured], primary: str | None, warnings: list[str]) -> list[Delta]:
    """Return the paired differences in every metric that two compared systems share; a verdict on the primary one.

    The primary metric's differences are corrected for their number: each p-value by Holm, and each interval by the level
    at which Holm tests its p-value.
    """
    compared = [
        (a, b, name) for a, b in _comparisons(measured) for name in b.system.metrics if name in a.system.metrics
    ]
    clusters = _clusters(measured)
    pairs = [(a.means(name), b.means(name)) for a, b, name in compared]
    units = [b.system.metrics[name].unit for _, b, name in compared]
    deltas: list[Delta] = []
    sides = []
    for (a, b, name), pair, unit, over_rows in zip(
        compared, pairs, units, paired_deltas(pairs, units, clusters), strict=True
    ):
        f = widen(a, b, name, over_rows)
        if f.delta is not None:
            d = Delta(a.system.name, b.system.name, name, f.delta, f.low, f.high, f.p_value, f.n, unit=unit)
            deltas.append(replace(d, n_inputs=f.n_inputs, method=f.method, caution=f.caution, about=about(a, b)))
            sides.append((a, b, pair, f))
    tested = [i for i, d in enumerate(deltas) if d.metric == primary and d.p_value is not None]
    p_values = [deltas[i].p_value or 0.0 for i in tested]
    if len(tested) > 1:
        for i, p, level in zip(tested, holm(p_values), holm_levels(p_values, SIGNIFICANCE), strict=True):
            a, b, pair, f = sides[i]
            rows = paired_interval(*pair, deltas[i].unit, clusters, 1 - level)
            found = widen(
                a, b, deltas[i].metric, f._replace(low=rows.low, high=rows.high, method=rows.method), 1 - level
            )
            d = replace(deltas[i], p_adjusted=p, confidence=1 - level)
            deltas[i] = replace(d, low=found.low, high=found.high, method=found.method)
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


def _clusters(measured: Sequence[Measured]) -> dict[str, str]:
    """Return which examples repeat an input, by the ids of the first system (`match_examples` gave all others those)."""
    if not measured:
        return {}
    ids = {e.id for e in measured[0].examples}
    known = (m.examples for m in measured if any(e.input.strip() for e in m.examples))
    return clusters_of(next((found for found in known if ids >= {e.id for e in found}), measured[0].examples))


def _decided(delta: Delta) -> tuple[bool, bool] | None:
    """Return whether the p-value and the interval each show a difference; None where nothing can be said.

    Equal differences in a unit without bounds have no interval: then the p-value decides alone.
    """
    p = delta.p_decided
    if p is None or delta.n < 2:
        return None
    by_p = p < SIGNIFICANCE
    return by_p, by_p if delta.low is None or delta.high is None else not delta.low <= 0 <= delta.high


def _word(delta: Delta, higher_is_better: bool | None) -> str:
    decided = _decided(delta)
    if higher_is_better is None or decided is None:
        return ""
    if not all(decided):
        return "no difference shown"
    return "better" if (delta.delta > 0) == higher_is_better else "worse"


def verdict_of(
    measured: Sequence[Measured], deltas: list[Delta], primary: str | None, warnings: list[str]
) -> tuple[str, str]:
    """Return the headline and the lines under it; says what is missing where no verdict can be given.

    The difference that the headline speaks of becomes the first of `deltas`.
    """
    by_name = {m.system.name: m for m in measured}
    lines = [d for d in deltas if d.metric == primary and by_name[d.from_].system.role == "baseline"]
    lines = [d for d in lines if by_name[d.to].system.role in _FINAL]
    finals = [m.system.name for m in measured if m.system.role in _FINAL]
    between = [d for d in deltas if d.metric == primary and d.from_ in finals and d.to in finals]
    if len(finals) > 2:  # of many pairs, those are shown that differ, and those of recipes with several training seeds
        differ = [
            d for d in between if d.verdict in ("better", "worse") or _two_recipes(by_name[d.from_], by_name[d.to])
        ]
        shown = differ or ([] if lines else between)
    else:
        shown = between
    if not lines and not shown:
        stages = {m.system.role for m in measured}
        if stages == {"external"} and len(finals) == 1:
            return "No verdict", f"{finals[0]} is alone: nothing was measured that it could be compared with."
        missing = [role for role in ("baseline", "tuned") if role not in stages]
        if missing and len(finals) < 2:
            return "No verdict", f"There is no {' and no '.join(missing)} measurement."
        return "No verdict", f"No example has a score for {primary!r} in both systems."
    lines += shown
    deltas.remove(lines[0])
    deltas.insert(0, lines[0])
    head, *rest = [_sentence(d, by_name[d.from_], by_name[d.to]) for d in lines]
    if len(finals) > 2 and all(d in between and d.verdict == "no difference shown" for d in lines):
        names = f"{', '.join(finals[:-1])} and {finals[-1]}"
        return f"No difference shown between any two of {names}", "\n".join(
            f"{title}: {text}" for title, text in (head, *rest)
        )
    return head[0], "\n".join([head[1], *(f"{title}: {text}" for title, text in rest)])


def _two_recipes(a: Measured, b: Measured) -> bool:
    return len(parts(a)) > 1 and len(parts(b)) > 1


def _sentence(delta: Delta, a: Measured, b: Measured) -> tuple[str, str]:
    """Return what a difference means, and the numbers that say so."""
    why = ""
    unscored = _too_many_unscored(systems_of(a, b), delta.metric)
    if unscored:
        return f"No verdict on {b.system.name}", f"{unscored}."
    if b.system.metrics[delta.metric].higher_is_better is None:
        subject = f"No verdict on {b.system.name} against {a.system.name}"
        why = f" Neither a higher nor a lower {delta.metric} is known to be better."
    elif a.system.role == "baseline" and b.system.role == "tuned" and all(_same_answers(a, part) for part in parts(b)):
        subject = f"Training changed nothing that can be seen: {b.system.name} gave the same answers as {a.system.name}"
    elif delta.verdict in ("better", "worse"):
        subject = f"{b.system.name} is {delta.verdict} than {a.system.name}"
    elif delta.verdict in ("scored higher", "scored lower"):
        subject = scored(delta, a, b)
    elif delta.verdict == "":
        subject = f"No verdict on {b.system.name} against {a.system.name}"
    else:
        subject = f"No difference shown between {b.system.name} and {a.system.name}"
    unit = "points" if delta.unit == "fraction" else delta.unit
    means = _common_means(a, b, delta.metric)
    scale = scale_for(delta.unit, [*means, delta.delta])
    change = f"{_signed(delta.delta, scale)} {unit}"
    interval = f"{percent(delta.confidence)} interval [{_signed(delta.low, scale)}, {_signed(delta.high, scale)}]"
    if delta.low is None:
        interval = delta.method or "no interval"
    before, after = (scale.value(mean) for mean in means)
    corrected = f" after Holm's correction ({p_equals(delta.p_value)} before)" if delta.p_adjusted is not None else ""
    n = f"n={delta.n}" + (f" ({delta.n_inputs} different inputs)" if delta.n_inputs is not None else "")
    seed = seeds_in_words(b, scale.value(b.system.spread.get(delta.metric, {}).get("sd")))
    text = f"{delta.metric} {before} → {after}: {change}, {interval}, {p_equals(delta.p_decided)}{corrected}, {n}{seed}.{why}"
    decided = _decided(delta)
    if decided and decided[0] != decided[1]:
        text += f" Only the {'p-value' if decided[0] else 'interval'} shows a difference: a verdict needs both."
    return subject, f"{text}{no_claim(a, b)}"


def cautions_of(systems: Sequence[System], deltas: Sequence[Delta], primary: str | None) -> list[str]:
    """Return a note for each reason why intervals of the primary metric must not be relied on, and on repeated inputs."""
    found: dict[str, list[str]] = {}
    named: list[tuple[str, Metric | Delta]] = [(s.name, s.metrics[primary]) for s in systems if primary in s.metrics]
    named += [(f"{d.from_} → {d.to}", d) for d in deltas if d.metric == primary]
    for name, m in named:
        if m.caution:
            found.setdefault(f"{m.caution} ({primary}, n={m.n}", []).append(name)
        if m.n_inputs is not None:
            same = f"{m.n} rows hold {m.n_inputs} different inputs: rows with the same input count as one ({primary}"
            found.setdefault(same, []).append(name)
    return [f"{text[0].upper()}{text[1:]}: {', '.join(names)})" for text, names in found.items()]


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
