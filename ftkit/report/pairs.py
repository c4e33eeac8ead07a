"""The examples of a report: what each system answered to a row, every metric of that answer, and why it has it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..records import Pair, Prediction, Score
from .measured import Measured
from .seeds import answers_of


def pairs_of(measured: Sequence[Measured], primary: str | None) -> Iterable[Pair]:
    """Yield one Pair per row of the first system; of several samples of a row, the first is shown.

    `values` of an answer are means over its samples, as `score` is.
    """
    shown = [m for m in measured if m.system.role != "extra"]
    if not shown or primary is None:
        return
    values = {m.system.name: m.means(primary) for m in shown}
    answered = [(name, part, _first_scores(part), _names(part)) for m in shown for name, part in answers_of(m)]
    tuned = next((m for m in shown if m.system.role == "tuned"), None)
    base = next((m for m in shown if m.system.role == "baseline"), None)
    for example in shown[0].examples:
        answers = {}
        for name, m, scores, names in answered:
            p = m.predictions.get(example.id)
            if p is not None:
                found = {metric: value for metric in names if (value := m.means(metric).get(example.id)) is not None}
                answers[name] = _answer(p, scores.get(example.id), found, primary)
        delta = None
        if tuned and base:
            a, b = (values[m.system.name].get(example.id) for m in (base, tuned))
            delta = b - a if a is not None and b is not None else None
        yield Pair(example.id, example.input, example.targets, answers, delta)


def _names(m: Measured) -> list[str]:
    """Return the metrics that single rows have, in the order in which the evaluators gave them."""
    return list(dict.fromkeys(name for score in m.scores for name in score.values or ()))


def _first_scores(m: Measured) -> dict[str, Score]:
    """Return the scores of the answers that are shown."""
    return {
        s.example_id: s
        for s in m.scores
        if (p := m.predictions.get(s.example_id)) is not None and p.sample == s.sample
    }  # fmt: skip


def _answer(p: Prediction, score: Score | None, values: dict[str, float], primary: str) -> dict[str, Any]:
    """Return one answer as `Pair` describes it: only what there is, beside the text, the score and the error."""
    more: dict[str, Any] = {"values": values} if values else {}
    if score is not None and p.error is None:
        more |= {key: text for key in ("answer", "reason") if (text := getattr(score, key)) is not None}
    if p.finish_reason == "length":
        more["finish_reason"] = p.finish_reason
    return {"text": p.text, "score": values.get(primary), "error": p.error, **more}
