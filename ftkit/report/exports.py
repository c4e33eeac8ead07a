"""Exports in a report: what each lost against the trained model that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..intervals import percent
from ..lang import msg, tr
from ..records import Delta
from ..stats import clusters_of, paired_deltas
from ..text import scale_for
from .compare import known_examples, same_answers, word_of
from .measured import Measured
from .seeds import widen


def export_deltas(
    measured: Sequence[Measured], primary: str | None, warnings: list[str], notes: list[str]
) -> list[Delta]:
    """Return the paired differences from each trained model to its exports; a loss in the primary metric is a warning.

    They are no part of the question that the report answers: their p-values are not corrected, and correct no others.
    """
    found = []
    for made in measured:
        if made.system.role != "export":
            continue
        trained = next((m for m in measured if m.system.role == "tuned" and m.used_by & made.used_by), None)
        if trained is None:
            continue
        deltas = _between(trained, made, measured, primary)
        found += deltas
        shown = next((d for d in deltas if d.metric == primary), None)
        if same_answers(trained, made):
            text = msg("{b} gives the same answers as {a} to all {n} test rows")
            notes.append(tr(text, b=made.system.name, a=trained.system.name, n=len(made.predictions)))
        elif shown is not None:
            (warnings if shown.verdict == "worse" else notes).append(_sentence(shown, trained, made))
    return found


def _between(a: Measured, b: Measured, measured: Sequence[Measured], primary: str | None) -> list[Delta]:
    names = [name for name in b.system.metrics if name in a.system.metrics]
    units = [b.system.metrics[name].unit for name in names]
    pairs = [(a.means(name), b.means(name)) for name in names]
    clusters = clusters_of(known_examples(measured))
    deltas = []
    for name, unit, over_rows in zip(names, units, paired_deltas(pairs, units, clusters), strict=True):
        f = widen(a, b, name, over_rows)
        if f.delta is not None:
            d = Delta(a.system.name, b.system.name, name, f.delta, f.low, f.high, f.p_value, f.n, unit=unit)
            d = replace(d, n_inputs=f.n_inputs, method=f.method, caution=f.caution)
            direction = b.system.metrics[name].higher_is_better
            deltas.append(replace(d, verdict=word_of(d, direction)) if name == primary else d)
    return deltas


def _sentence(d: Delta, a: Measured, b: Measured) -> str:
    scale = scale_for(d.unit, [m.system.metrics[d.metric].value for m in (a, b)], [(d.high or 0) - (d.low or 0)])
    interval = scale.signed_interval(d.low, d.high)
    unit = tr("points") if d.unit == "fraction" else d.unit
    same = sum(p.text == q.text for i, p in a.predictions.items() if (q := b.predictions.get(i)) is not None)
    text = msg("{b} answers {same} of {n} test rows as {a} does: {metric} {change} {unit}, {interval}")
    if d.verdict == "worse":
        text = msg("{b} is worse than {a}, from which it was made: {metric} {change} {unit}, {interval}; {same} of {n} answers are the same")  # fmt: skip
    return tr(
        text, a=a.system.name, b=b.system.name, metric=d.metric, change=scale.signed(d.delta), unit=unit, same=same,
        n=len(b.predictions),
        interval=tr("{level} interval {interval}", level=percent(d.confidence), interval=interval) if interval else tr("no interval"),
    )  # fmt: skip
