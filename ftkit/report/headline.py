"""What a reader who reads nothing else must know: a title, two or three sentences, and what is still wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..intervals import percent
from ..lang import joined, msg, plural, tr
from ..records import Delta, Distribution, Headline, Metric, Section, System
from ..text import Scale, scale_for
from .measured import Measured
from .seeds import parts, single_runs

FINAL = ("tuned", "external")  # roles of what somebody would use in the end


# ---------------------------------------------------------------- the best of several


def ranked(finals: Sequence[Measured], primary: str) -> list[Measured]:
    """Return the systems that have the primary metric, the best first; none where neither way is better."""
    found = [m for m in finals if primary in m.system.metrics]
    direction = found[0].system.metrics[primary].higher_is_better if found else None
    if direction is None:
        return []
    return sorted(found, key=lambda m: m.system.metrics[primary].value, reverse=direction)


def scale_of(metrics: Sequence[Metric], deltas: Sequence[Delta] = ()) -> Scale:
    """Return how a metric is written in a whole report: with the digits that its intervals leave certain."""
    ends = [*((m.low, m.high) for m in metrics), *((d.low, d.high) for d in deltas)]
    widths = [high - low for low, high in ends if low is not None and high is not None]
    values = [*(m.value for m in metrics), *(d.delta for d in deltas)]
    return scale_for(next((m.unit for m in metrics), "fraction"), values, widths)


def primary_scale(systems: Sequence[System], deltas: Sequence[Delta], primary: str) -> Scale:
    """Return the scale of the primary metric over all systems and differences of a report."""
    metrics = [s.metrics[primary] for s in systems if primary in s.metrics]
    return scale_of(metrics, [d for d in deltas if d.metric == primary])


def best_title(best: System, base: System, delta: Delta, n: int, beat: int, scale: Scale) -> tuple[str, str]:
    """Return the title that names the best of `n` systems and how many beat their base model, and a sentence or ""."""
    before, after = (scale.value(s.metrics[delta.metric].value) for s in (base, best))
    numbers = tr(
        "{metric} {a} → {b} ({change})", metric=delta.metric, a=before, b=after, change=scale.signed(delta.delta)
    )
    name = best.name.removesuffix(" tuned")
    if not beat:
        title = tr("None of {n} beats the base model", n=n)
        return title, tr("The highest is {name}, {numbers}.", name=name, numbers=numbers)
    if beat == n:
        return tr("Best of {n}: {name}, {numbers}; all beat the base model", n=n, name=name, numbers=numbers), ""
    text = msg("Best of {n}: {name}, {numbers}; {beat} of {n} beat the base model")
    return tr(text, n=n, name=name, numbers=numbers, beat=beat), ""


# ---------------------------------------------------------------- the sentences


def headline_of(
    measured: Sequence[Measured],
    deltas: Sequence[Delta],
    head: Delta | None,
    verdict: str,
    spread: Distribution | None,
    strip: Sequence[dict[str, str]],
) -> Headline:
    """Return the headline of a report; `head` is the difference that it speaks of."""
    if head is None:
        return Headline(verdict, strip=tuple(strip))
    measured, deltas, head = _shortly(measured, deltas, head)
    by_name = {m.system.name: m for m in measured}
    a, b = by_name[head.from_], by_name[head.to]
    scale = primary_scale([m.system for m in measured if m.system.role != "extra"], deltas, head.metric)
    finals = [m for m in measured if m.system.role in FINAL]
    text = [_gain(head, a, b, scale, len(finals) > 1)]
    text += _against_controls(deltas, by_name, head, scale)
    if len(finals) > 2:
        text += _against_rivals(deltas, head, finals)
    elif len(finals) == 2:
        text += [*_over_bases(deltas, by_name, head, scale), *_one_run_each(a, b)]
    text += _rows(spread, a.system.role == "baseline")
    return Headline(_title(verdict, head, a, b, scale), tuple(text), _wrong(spread, b, scale, head), tuple(strip))


def _shortly(
    measured: Sequence[Measured], deltas: Sequence[Delta], head: Delta
) -> tuple[list[Measured], list[Delta], Delta]:
    """Call "NAME tuned" just NAME where all that is compared is tuned."""
    finals = [m.system.name for m in measured if m.system.role in FINAL]
    short = {name: name.removesuffix(" tuned") for name in finals}
    if len(finals) < 2 or len(set(short.values())) < len(finals):
        return list(measured), list(deltas), head

    def called(d: Delta) -> Delta:
        return replace(d, from_=short.get(d.from_, d.from_), to=short.get(d.to, d.to))

    named = [replace(m, system=replace(m.system, name=short.get(m.system.name, m.system.name))) for m in measured]
    return named, [called(d) for d in deltas], called(head)


def spoken_of(measured: Sequence[Measured], deltas: Sequence[Delta], primary: str | None) -> Delta | None:
    """Return the difference that the headline speaks of: the first one, of two tuned systems from the worse to the better."""
    head = next((d for d in deltas if d.metric == primary), None)
    if head is None:
        return None
    sides = [next(m for m in measured if m.system.name == name) for name in (head.from_, head.to)]
    direction = sides[1].system.metrics[head.metric].higher_is_better
    if direction is None or sides[0].system.role not in FINAL or (head.delta >= 0) == direction:
        return head
    swapped = {"better": "worse", "worse": "better", "scored higher": "scored lower", "scored lower": "scored higher"}
    low, high = (None if end is None else -end for end in (head.high, head.low))
    turned = replace(head, from_=head.to, to=head.from_, delta=-head.delta, low=low, high=high)
    return replace(turned, verdict=swapped.get(head.verdict, head.verdict))


def _title(verdict: str, head: Delta, a: Measured, b: Measured, scale: Scale) -> str:
    if head.metric in verdict:  # it has the numbers
        return verdict
    values = [scale.value(m.system.metrics[head.metric].value) for m in (a, b)]
    if head.verdict in ("scored higher", "scored lower"):
        verdict = sentence_on(head.verdict, b.system.name, a.system.name)
    numbers = tr("{metric} {a} → {b}", metric=head.metric, a=values[0], b=values[1])
    if a.system.role == "baseline" and b.system.role == "tuned" and head.verdict == "better":
        return tr("Fine-tuning helped: {numbers}", numbers=numbers)
    if a.system.role == "baseline" and b.system.role == "tuned" and head.verdict == "worse":
        return tr("Fine-tuning made it worse: {numbers}", numbers=numbers)
    if a.system.role == "baseline":
        return tr("{title}: {text}", title=verdict, text=numbers)
    if head.verdict in ("no difference shown", "better", "worse"):
        verdict = sentence_on(head.verdict, b.system.name, a.system.name)
    against = tr("{metric} {b} against {a}", metric=head.metric, a=values[0], b=values[1])
    return tr("{title}: {text}", title=verdict, text=against)


_SENTENCES = {
    "better": msg("{b} is better than {a}"),
    "worse": msg("{b} is worse than {a}"),
    "scored higher": msg("{b} scored higher than {a}"),
    "scored lower": msg("{b} scored lower than {a}"),
    "no difference shown": msg("No difference shown between {b} and {a}"),
}


def sentence_on(verdict: str, b: str, a: str) -> str:
    """Return what a verdict on the system `b` against `a` says."""
    return tr(_SENTENCES.get(verdict, msg("No verdict on {b} against {a}")), b=b, a=a)


def _gain(head: Delta, a: Measured, b: Measured, scale: Scale, named: bool) -> str:
    change = _with_unit(scale.value(abs(head.delta)), scale)
    interval = scale.signed_interval(head.low, head.high)
    sure = tr(" ({level} interval {interval})", level=percent(head.confidence), interval=interval) if interval else ""
    other = a.system.name
    if a.system.role == "baseline":
        other = tr("its base model") if named else tr("the base model")
    facts = {
        "n": head.n,
        "rows": tr("validation rows") if b.system.settings.get("split") == "validation" else tr("test rows"),
        "b": b.system.name if named or b.system.role != "tuned" else tr("the tuned model"),
        "a": other,
        "change": change,
        "metric": head.metric,
        "sure": sure,
    }
    if not any(digit in change for digit in "123456789"):
        return tr("On {n:,} {rows} {b} and {a} score alike in {metric}: {change} apart{sure}.", **facts)
    if head.verdict in ("no difference shown", ""):
        facts["change"] = _with_unit(scale.signed(head.delta), scale)
        if head.verdict:
            return tr(
                "On {n:,} {rows} {b} differs from {a} by {change} of {metric}{sure}: that may be chance.", **facts
            )
        return tr("On {n:,} {rows} {b} differs from {a} by {change} of {metric}{sure}.", **facts)
    if head.delta > 0:
        return tr("On {n:,} {rows} {b} scores {change} higher in {metric} than {a}{sure}.", **facts)
    return tr("On {n:,} {rows} {b} scores {change} lower in {metric} than {a}{sure}.", **facts)


def _with_unit(number: str, scale: Scale) -> str:
    return tr("{number} {unit}", number=number, unit=scale.delta_unit) if scale.delta_unit else number


def _against_controls(deltas: Sequence[Delta], by_name: dict[str, Measured], head: Delta, scale: Scale) -> list[str]:
    """Say how the system fares against each rule that needs no training."""
    found = []
    for d in deltas:
        if d.metric != head.metric or d.to != head.to or by_name[d.from_].system.role != "control":
            continue
        control = by_name[d.from_].system.method or d.from_
        if d.verdict == "better":
            change = _with_unit(scale.value(abs(d.delta)), scale)
            found.append(tr("It also beats the control {control}, by {change}.", control=control, change=change))
        elif d.verdict == "worse":
            text = msg("But the control {control}, which needs no training, is better by {change}.")
            found.append(tr(text, control=control, change=scale.value(abs(d.delta))))
        else:
            text = msg("Against the control {control} no difference is shown ({change}).")
            found.append(tr(text, control=control, change=scale.signed(d.delta)))
    return found


def _against_rivals(deltas: Sequence[Delta], head: Delta, finals: Sequence[Measured]) -> list[str]:
    """Say which of the others the best one does not differ from significantly."""
    names = {m.system.name for m in finals}
    pairs = [d for d in deltas if d.metric == head.metric and head.to in (d.from_, d.to) and {d.from_, d.to} <= names]
    alike = [d.from_ if d.to == head.to else d.to for d in pairs if d.verdict == "no difference shown"]
    if not pairs:
        return []
    if not alike:
        if all((d.delta > 0) == (d.to == head.to) for d in pairs):
            return [tr("It scores higher than each of the other {n}.", n=len(pairs))]
        return [tr("It differs from each of the other {n}.", n=len(pairs))]
    if len(alike) > 3:
        return [tr("No difference is shown between it and {k} of the other {n}.", k=len(alike), n=len(pairs))]
    return [tr("No difference is shown between it and {names}.", names=joined(alike, last=" and "))]


def _over_bases(deltas: Sequence[Delta], by_name: dict[str, Measured], head: Delta, scale: Scale) -> list[str]:
    """Of two systems, say what each gained over its base model."""
    gains = [
        f"{d.to} {scale.signed(d.delta)}"
        for d in deltas
        if d.metric == head.metric and by_name[d.from_].system.role == "baseline" and d.to in (head.from_, head.to)
        if by_name[d.to].system.role == "tuned"
    ]
    return (
        [tr("Over the base model: {gains}.", gains=joined(gains))]
        if gains and by_name[head.from_].system.role in FINAL
        else []
    )


def _one_run_each(a: Measured, b: Measured) -> list[str]:
    """Say what a comparison of single training runs does not say."""
    single = [m.system.name for m in single_runs(a, b)]
    if not single:
        return []
    if len(single) == 2:
        return [tr("Each is one training run, so nothing is claimed of the recipes.")]
    return [tr("{name} is one training run, so nothing is claimed of the recipes.", name=single[0])]


def _rows(spread: Distribution | None, over_base: bool) -> list[str]:
    if spread is None:
        return []
    n = spread.n_better + spread.n_same + spread.n_worse
    if spread.n_better == n:
        return [tr("All {n:,} rows got better.", n=n) if over_base else tr("All {n:,} rows score higher.", n=n)]
    if spread.n_same == n:
        return [tr("All {n:,} rows score the same.", n=n)]
    text = msg("Of the {n:,} rows {better:,} are better, {same:,} the same and {worse:,} worse.")
    return [tr(text, n=n, better=spread.n_better, same=spread.n_same, worse=spread.n_worse)]


def _wrong(spread: Distribution | None, b: Measured, scale: Scale, head: Delta) -> str:
    """Say what is still wrong with the answers: which miss a requirement, which are cut, which failed."""
    said = []
    if spread and spread.second and spread.n_right < spread.n_second:
        n = spread.n_second - spread.n_right
        facts = {"n": n, "all": spread.n_second, "metric": spread.second}
        if spread.n_high_wrong:
            text = msg("{n:,} of {all:,} answers still fail {metric}, and {high:,} of these score {from_:g} or more")
            said.append(tr(text, **facts, high=spread.n_high_wrong, from_=(spread.high or 0) * scale.factor))
        else:
            said.append(tr("{n:,} of {all:,} answers still fail {metric}", **facts))
    s = b.system
    each = tr(" (over {n} trainings)", n=len(parts(b))) if len(parts(b)) > 1 else ""
    if s.n_length_limit:
        one = msg("{n:,} of {all:,} answers is cut at the length limit{each}")
        many = msg("{n:,} of {all:,} answers are cut at the length limit{each}")
        said.append(plural(s.n_length_limit, one, many, all=s.n_predictions, each=each))
    if s.n_failed:
        said.append(tr("{n:,} of {all:,} requests failed{each}", n=s.n_failed, all=s.n_predictions, each=each))
    if not said:
        return ""
    if head.verdict in ("better", "scored higher"):
        return tr("But {text}.", text=joined(said, "; "))
    return tr("{text}.", text=joined(said, "; "))


# ---------------------------------------------------------------- a plugin's own


def with_plugins(headline: Headline, sections: Sequence[Section]) -> Headline:
    """Let a plugin's finding lead the report; of several, each becomes a sentence under the report's own title."""
    found = [s for s in sections if s.headline]
    if not found:
        return headline
    if len(found) > 1:
        said = tuple(tr("{title}: {text}", title=s.title, text=s.headline) for s in found)
        return replace(headline, text=(*said, *headline.text))
    (own,) = found
    lead = (own.lead,) if own.lead else ()
    return replace(headline, title=own.headline, text=(*lead, *headline.text), source=own.title)
