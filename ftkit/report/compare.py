"""Who is compared with whom, paired differences, and the verdict in words."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..intervals import percent
from ..lang import joined, msg, tr
from ..records import Delta, Example, Metric, System
from ..stats import clusters_of, holm, holm_levels, paired_deltas, paired_interval
from ..text import Scale, p_equals
from .headline import FINAL, best_title, primary_scale, ranked, sentence_on
from .measured import Measured
from .seeds import about, claim, no_claim, parts, scored, seeds_in_words, systems_of, widen

UNSCORED_LIMIT = 0.02  # with a larger share of failed answers no verdict is given
SIGNIFICANCE = 0.05
FEW = 3  # comparisons of recipes that are described one by one


def primary_of(measured: Sequence[Measured]) -> str | None:
    """Return the primary metric of the first measurement's first evaluator."""
    return next((m.system.settings["primary"] for m in measured if m.system.role != "extra"), None)


def _comparisons(measured: Sequence[Measured]) -> list[tuple[Measured, Measured]]:
    """Say which systems are compared: base and controls to tuned within a run, then tuned to tuned, base to base.

    A further measurement that a backend defines (a checkpoint, say) is compared with its run's base.
    """
    pairs = []
    finals = [m for m in measured if m.system.role in FINAL]
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
    of_data = data_metrics(measured)
    compared = [
        (a, b, name)
        for a, b in _comparisons(measured)
        for name in b.system.metrics
        if name in a.system.metrics and (name == primary or name not in of_data)
    ]
    clusters = clusters_of(known_examples(measured))
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
            subject = sentence_on("", d.to, d.from_)
            warnings.append(tr("{title}: {text}", title=subject, text=unscored))
        else:
            deltas[i] = claim(replace(d, verdict=word_of(d, b.system.metrics[d.metric].higher_is_better)), a, b)
    return deltas


def data_metrics(measured: Sequence[Measured]) -> list[str]:
    """Return the metrics that are a property of the data, such as the length of the reference: no model changes them.

    Neither way of such a metric is better, and each row has one value whatever was answered.
    """
    compared = [m for m in measured if m.system.role != "extra"]
    if len(compared) < 2 or all(same_answers(compared[0], part) for m in compared[1:] for part in parts(m)):
        return []
    first = compared[0]
    undirected = [name for name, metric in first.system.metrics.items() if metric.higher_is_better is None]
    return [name for name in undirected if all(_same_values(first, m, name) for m in compared[1:])]


def _same_values(a: Measured, b: Measured, metric: str) -> bool:
    ours, theirs = a.means(metric), b.means(metric)
    common = ours.keys() & theirs.keys()
    return bool(common) and all(abs(ours[i] - theirs[i]) < 1e-9 for i in common)


def known_examples(measured: Sequence[Measured]) -> list[Example]:
    """Return the rows with their inputs, by the ids of the first system (`match_examples` gave all others those)."""
    if not measured:
        return []
    ids = {e.id for e in measured[0].examples}
    known = (m.examples for m in measured if any(e.input.strip() for e in m.examples))
    return next((found for found in known if ids >= {e.id for e in found}), measured[0].examples)


def _decided(delta: Delta) -> tuple[bool, bool] | None:
    """Return whether the p-value and the interval each show a difference; None where nothing can be said.

    Equal differences in a unit without bounds have no interval: then the p-value decides alone.
    """
    p = delta.p_decided
    if p is None or delta.n < 2:
        return None
    by_p = p < SIGNIFICANCE
    return by_p, by_p if delta.low is None or delta.high is None else not delta.low <= 0 <= delta.high


def word_of(delta: Delta, higher_is_better: bool | None) -> str:
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
    lines = [d for d in lines if by_name[d.to].system.role in FINAL]
    finals = [m.system.name for m in measured if m.system.role in FINAL]
    between = [d for d in deltas if d.metric == primary and d.from_ in finals and d.to in finals]
    if not lines and not between:
        return tr("No verdict"), _what_is_missing(measured, finals, primary)
    scale = primary_scale([m.system for m in measured if m.system.role != "extra"], deltas, primary or "")
    order = ranked([m for m in measured if m.system.role in FINAL], primary or "")
    best = order[0].system.name if order else ""
    title = extra = ""
    if len(finals) == 2:  # two things are compared: which is better?
        lines = between + lines
    elif len(finals) > 2 and any(d.to == best for d in lines):
        lines.sort(key=lambda d: d.to != best)
        title, extra = _best_of(lines, by_name, scale)
        recipes = [d for d in between if _two_recipes(by_name[d.from_], by_name[d.to])]
        lines += recipes if len(recipes) <= FEW else []  # the page has a matrix of all
    elif not lines:
        lines = [d for d in between if d.verdict in ("better", "worse")] or between
        lines.sort(key=lambda d: best not in (d.from_, d.to))
    deltas.remove(lines[0])
    deltas.insert(0, lines[0])
    head, *rest = [_sentence(d, by_name[d.from_], by_name[d.to], scale) for d in lines]
    if len(finals) > 2 and all(d in between and d.verdict == "no difference shown" for d in lines):
        title = tr("No difference shown between any two of {names}", names=joined(finals, last=" and "))
    rest_said = [tr("{title}: {text}", title=name, text=text) for name, text in rest]
    if title:
        return title, "\n".join(
            [*([extra] if extra else []), tr("{title}: {text}", title=head[0], text=head[1]), *rest_said]
        )
    return head[0], "\n".join([head[1], *rest_said])


def _best_of(lines: Sequence[Delta], by_name: dict[str, Measured], scale: Scale) -> tuple[str, str]:
    """Return the title on several systems with base models; the first of `lines` is the best one's."""
    judged = {d.to: d.verdict for d in reversed(lines)}
    best, base = by_name[lines[0].to].system, by_name[lines[0].from_].system
    return best_title(best, base, lines[0], len(judged), sum(v == "better" for v in judged.values()), scale)


def _two_recipes(a: Measured, b: Measured) -> bool:
    return len(parts(a)) > 1 and len(parts(b)) > 1


def _what_is_missing(measured: Sequence[Measured], finals: Sequence[str], primary: str | None) -> str:
    stages = {m.system.role for m in measured}
    if stages == {"external"} and len(finals) == 1:
        return tr("{name} is alone: nothing was measured that it could be compared with.", name=finals[0])
    missing = [role for role in ("baseline", "tuned") if role not in stages]
    if len(missing) == 2 and len(finals) < 2:
        return tr("There is no baseline and no tuned measurement.")
    if missing and len(finals) < 2:
        return (
            tr("There is no baseline measurement.") if missing == ["baseline"] else tr("There is no tuned measurement.")
        )
    return tr("No example has a score for {metric!r} in both systems.", metric=primary)


def _sentence(delta: Delta, a: Measured, b: Measured, scale: Scale) -> tuple[str, str]:
    """Return what a difference means, and the numbers that say so."""
    why = ""
    unscored = _too_many_unscored(systems_of(a, b), delta.metric)
    if unscored:
        return tr("No verdict on {name}", name=b.system.name), tr("{text}.", text=unscored)
    if b.system.metrics[delta.metric].higher_is_better is None:
        subject = sentence_on("", b.system.name, a.system.name)
        why = tr(" Neither a higher nor a lower {metric} is known to be better.", metric=delta.metric)
    elif a.system.role == "baseline" and b.system.role == "tuned" and all(same_answers(a, part) for part in parts(b)):
        text = msg("Training changed nothing that can be seen: {b} gave the same answers as {a}")
        subject = tr(text, b=b.system.name, a=a.system.name)
    elif delta.verdict in ("scored higher", "scored lower"):
        subject = scored(delta, a, b)
    else:
        subject = sentence_on(delta.verdict, b.system.name, a.system.name)
    unit = tr("points") if delta.unit == "fraction" else delta.unit
    change = tr("{number} {unit}", number=_signed(delta.delta, scale), unit=unit)
    low, high = _signed(delta.low, scale), _signed(delta.high, scale)
    interval = tr("{level} interval [{low}, {high}]", level=percent(delta.confidence), low=low, high=high)
    if delta.low is None:
        interval = delta.method or tr("no interval")
    before, after = (scale.value(mean) for mean in _common_means(a, b, delta.metric))
    p = p_equals(delta.p_decided)
    if delta.p_adjusted is not None:
        p = tr("{p} after Holm's correction ({before} before)", p=p, before=p_equals(delta.p_value))
    n = f"n={delta.n}"
    if delta.n_inputs is not None:
        n = tr("n={n} ({inputs} different inputs)", n=delta.n, inputs=delta.n_inputs)
    seed = seeds_in_words(b, scale.value(b.system.spread.get(delta.metric, {}).get("sd")))
    decided, only = _decided(delta), ""
    if decided and decided[0] != decided[1]:
        only = tr(" Only the interval shows a difference: a verdict needs both.")
        if decided[0]:
            only = tr(" Only the p-value shows a difference: a verdict needs both.")
    text = tr(
        "{metric} {before} → {after}: {change}, {interval}, {p}, {n}{seed}.{why}{only}{claim}",
        metric=delta.metric, before=before, after=after, change=change, interval=interval, p=p, n=n, seed=seed, why=why,
        only=only, claim=no_claim(a, b),
    )  # fmt: skip
    return subject, text


def cautions_of(systems: Sequence[System], deltas: Sequence[Delta], primary: str | None) -> list[str]:
    """Return a note for each reason why intervals of the primary metric must not be relied on, and on repeated inputs."""
    found: dict[tuple[str, int, int | None], list[str]] = {}
    named: list[tuple[str, Metric | Delta]] = [(s.name, s.metrics[primary]) for s in systems if primary in s.metrics]
    named += [(f"{d.from_} → {d.to}", d) for d in deltas if d.metric == primary]
    for name, m in named:
        if m.caution:
            found.setdefault((m.caution, m.n, None), []).append(name)
        if m.n_inputs is not None:
            found.setdefault(("", m.n, m.n_inputs), []).append(name)
    return [_caution(*about, primary or "", joined(names)) for about, names in found.items()]


def _caution(text: str, n: int, n_inputs: int | None, metric: str, names: str) -> str:
    if n_inputs is None:
        capital = f"{text[:1].upper()}{text[1:]}"
        return tr("{text} ({metric}, n={n}: {names})", text=capital, metric=metric, n=n, names=names)
    return tr(
        "{n} rows hold {inputs} different inputs: rows with the same input count as one ({metric}: {names})",
        n=n, inputs=n_inputs, metric=metric, names=names,
    )  # fmt: skip


def same_answers(a: Measured, b: Measured) -> bool:
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
            return tr("no answer of {name} could be scored", name=s.name)
        total = m.n + m.n_unscored
        if total and m.n_unscored / total > UNSCORED_LIMIT:
            return tr(
                "{n} of {total} answers of {name} are unscored ({share:.1f} %, the limit is {limit:.0f} %)",
                n=m.n_unscored, total=total, name=s.name, share=100 * m.n_unscored / total, limit=100 * UNSCORED_LIMIT,
            )  # fmt: skip
    return None


def _signed(value: float | None, scale: Scale) -> str:
    """Return a difference with its sign, also where it rounds to 0."""
    text = scale.signed(value)
    return text if text[0] in "+−–" else f"+{text}"
