"""What the report of a sweep says of its trials: the headline, the leaderboard, the effect of each key, the price."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ..intervals import percent
from ..lang import joined, msg, tr, word
from ..records import Curve, Delta, Section, System
from ..report.build import MoreSections, curves_of
from ..report.headline import primary_scale
from ..text import NONE, Scale, dollars, duration, scale_for
from . import space
from .choose import Effect, Line, effects, leaderboard, simultaneous
from .directory import DONE, PRUNED, Plan, SweepDirectory
from .plan import ONE_AT_A_TIME, TPE

_CURVES = 12  # trials whose training curves are drawn


def sections_of(sweep: SweepDirectory) -> MoreSections:
    """Return what adds the sweep's section to the report over its winner."""

    def sections(systems: Sequence[System], deltas: Sequence[Delta]) -> Iterable[Section]:
        lines, plan = leaderboard(sweep), sweep.plan
        chosen = next(line for line in lines if line.chosen)
        yield Section(
            tr("The search"),
            tuple(_blocks(sweep, lines)),
            headline=_headline(plan, lines, chosen, systems, deltas),
            lead=_lead(sweep, lines),
        )

    return sections


# ---------------------------------------------------------------- the headline


_FOUND = {
    "better": msg("Best of {n} settings, {setting}: better than the base model, {metric} {a} → {b}"),
    "worse": msg("Best of {n} settings, {setting}: worse than the base model, {metric} {a} → {b}"),
    "no difference shown": msg(
        "Best of {n} settings, {setting}: no difference from the base model shown, {metric} {a} → {b}"
    ),
}


def _headline(
    plan: Plan, lines: Sequence[Line], chosen: Line, systems: Sequence[System], deltas: Sequence[Delta]
) -> str:
    roles = {s.name: s for s in systems}
    head = next(
        (
            d
            for d in deltas
            if d.metric == plan.metric and roles[d.from_].role == "baseline" and roles[d.to].role == "tuned"
        ),
        None,
    )
    measured, setting = sum(line.value is not None for line in lines), space.setting_text(chosen.values, plan.keys)
    if head is None:
        return tr("Best of {n} settings: {setting}", n=measured, setting=setting)
    scale = primary_scale([s for s in systems if s.role != "extra"], deltas, head.metric)
    a, b = (scale.value(roles[name].metrics[head.metric].value) for name in (head.from_, head.to))
    text = _FOUND.get(head.verdict, msg("Best of {n} settings, {setting}: {metric} {a} → {b}"))
    return tr(text, n=measured, setting=setting, metric=head.metric, a=a, b=b)


def _lead(sweep: SweepDirectory, lines: Sequence[Line]) -> str:
    task = sweep.winner[0].task
    facts = {"validation": len(task.validation), "test": len(task.test)}
    return tr(
        "The setting was chosen by {validation:,} validation rows. The {test:,} test rows were measured once, with the "
        "chosen setting alone: its interval needs no correction for the choice.",
        **facts,
    )


# ---------------------------------------------------------------- the blocks


def _blocks(sweep: SweepDirectory, lines: Sequence[Line]) -> Iterable[dict[str, object]]:
    plan = sweep.plan
    scale = scale_of_lines(lines)
    yield {"kind": "text", "text": _about(plan, lines)}
    yield {"kind": "table", "header": header(plan, scale), "rows": [row(plan, line, scale) for line in lines]}
    yield {"kind": "text", "text": _caution(plan)}
    found = effects(sweep)
    if found:
        yield {"kind": "text", "text": _about_effects(plan)}
        yield {
            "kind": "table",
            "header": [tr("key"), tr("value"), tr("trials"), _head(plan, scale), tr("difference"), tr("interval")],
            "rows": [_effect_row(e, scale) for e in found],
        }
    yield {"kind": "text", "text": _price(sweep, lines)}
    curves = [curve for line in lines[:_CURVES] for curve in _curves(sweep, line)]
    if curves:
        yield {"kind": "curves", "curves": curves}


def _about(plan: Plan, lines: Sequence[Line]) -> str:
    count = {status: sum(line.status == status for line in lines) for status in (DONE, PRUNED, "failed")}
    parts = [tr("{n} of {all} trials were measured", n=count[DONE], all=len(lines))]
    parts += [tr("{n} were pruned in training", n=count[PRUNED])] if count[PRUNED] else []
    parts += [tr("{n} failed", n=count["failed"])] if count["failed"] else []
    seeds = tr(" A setting counts by its mean over {n} training seeds.", n=plan.seeds) if plan.seeds > 1 else ""
    return tr("{parts}, on the validation rows; the best is first.{seeds}", parts=joined(parts), seeds=seeds)


def _caution(plan: Plan) -> str:
    level = percent(simultaneous(plan.trials))
    said = tr(
        "The gain is that over the base model. Its intervals hold for all {n} trials at once with 95 % certainty "
        "(Bonferroni: each at {level}), and so for the best one, which is best partly by chance.",
        n=plan.trials, level=level,
    )  # fmt: skip
    if plan.search == TPE:
        said += " " + tr(
            "The search chose later trials by earlier ones on the same rows, and training may choose its weights by them: "
            "read these intervals as a guide, and the test rows as the result."
        )
    else:
        said += " " + tr(
            "Where training chooses its weights by these rows, the gains are a little too high: the result is that of the test rows."
        )
    return said


def _about_effects(plan: Plan) -> str:
    if plan.search == ONE_AT_A_TIME:
        return tr("What each value does, against the recipe's own setting. Over the rows, not over trainings.")
    return tr(
        "What each value does: the mean of its trials, and the difference from the trials with another value. "
        "The intervals hold for all values at once, over the rows and not over trainings."
    )


def _price(sweep: SweepDirectory, lines: Sequence[Line]) -> str:
    after = [s for run in sweep.winner for s in run.record().stages if s.name != "train"]  # its training is a trial's
    seconds = math.fsum(line.seconds or 0.0 for line in lines)
    spent = [line.usd for line in lines if line.usd is not None] + [s.usd for s in after if s.usd is not None]
    facts = {"n": len(lines), "time": duration(seconds), "test": duration(math.fsum(s.seconds or 0.0 for s in after))}
    if spent:
        text = msg("The {n} trials took {time} together, the test rows {test}; all of it cost {price}.")
        return tr(text, **facts, price=dollars(math.fsum(spent)))
    return tr("The {n} trials took {time} together, the test rows {test}.", **facts)


def _curves(sweep: SweepDirectory, line: Line) -> Iterable[Curve]:
    trial = next(t for t in sweep.trials() if t.number == line.trial)
    return curves_of(trial.runs[0], f"#{line.trial}")


# ---------------------------------------------------------------- tables, also those of the terminal


def scale_of_lines(lines: Sequence[Line]) -> Scale:
    """Return how the metric is written: with the digits that the intervals leave certain."""
    unit = next((line.unit for line in lines if line.value is not None), "fraction")
    widths = [line.high - line.low for line in lines if line.low is not None and line.high is not None]
    return scale_for(unit, [line.value for line in lines], widths)


def _head(plan: Plan, scale: Scale) -> str:
    return f"{plan.metric} {scale.unit}".strip()


def header(plan: Plan, scale: Scale) -> list[str]:
    """Return the header of the leaderboard."""
    names = [space.short_names(plan.keys)[key] for key in plan.keys]
    return ["#", *names, _head(plan, scale), tr("gain"), tr("interval"), tr("time"), tr("state")]


def row(plan: Plan, line: Line, scale: Scale) -> list[str]:
    """Return one trial as a row of the leaderboard."""
    values = [line.values.get(key, plan.own.get(key, "")) for key in plan.keys]
    state = tr("chosen") if line.chosen else word(line.status)
    return [
        str(line.trial),
        *values,
        scale.value(line.value),
        scale.signed(line.delta) if line.delta is not None else NONE,
        scale.signed_interval(line.low, line.high) or NONE,
        duration(line.seconds),
        tr("{title}: {text}", title=state, text=line.why) if line.why else state,
    ]


def _effect_row(e: Effect, scale: Scale) -> list[str]:
    return [
        e.key.rpartition(".")[2],
        e.value,
        str(e.trials),
        scale.value(e.mean),
        scale.signed(e.delta) if e.delta is not None else NONE,
        scale.signed_interval(e.low, e.high) or NONE,
    ]
