"""The numbers of a report, from run directories alone: systems, paired deltas, verdict, examples."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .. import yaml_source
from ..console import number
from ..data import normalise
from ..errors import InputError
from ..plugins import installed_plugins
from ..records import (
    Curve,
    Delta,
    Example,
    Metric,
    ModelRef,
    Pair,
    Prediction,
    Report,
    RunRecord,
    Score,
    Section,
    System,
)
from ..stats import example_means, holm, paired_delta
from ..store import RunContext, digest, read_json, read_jsonl, utc_now

UNSCORED_LIMIT = 0.02  # with a larger share of failed answers no verdict is given
SIGNIFICANCE = 0.05
_ROLES = {"baseline": "baseline", "tuned": "tuned", "predictions": "external"}
_SETTINGS = {
    "rows": "test rows",
    "prompt": "prompt",
    "generation": "generation settings",
    "evaluators": "evaluator settings",
}


@dataclasses.dataclass
class _Measured:
    """A System and the answers behind it, keyed by the example ids of the report's first system."""

    system: System
    run: RunContext
    examples: list[Example]
    predictions: dict[str, Prediction]
    scores: list[Score]
    used_by: set[str] = dataclasses.field(default_factory=set)  # ids of the runs that share this measurement


def build_report(runs: Sequence[RunContext], anyway: bool = False) -> Report:
    """Return one Report over `runs`. Raises InputError where they must not be compared, unless `anyway`."""
    if not runs:
        raise InputError("no runs to report on", "`ftkit runs` lists what was run")
    notes: list[str] = []
    warnings: list[str] = []
    measured = _unique(_read_all(runs), notes)
    _check_comparable([m for m in measured if m.system.role != "extra"], anyway, warnings, notes)
    _match_examples(measured, notes)
    primary = _primary(measured)
    deltas = _deltas([m for m in measured if m.system.role != "extra"], primary, warnings)
    for run in runs:
        record = run.record()
        prefix = f"{record.name}: " if len(runs) > 1 else ""
        warnings += [prefix + w for w in record.warnings]
        if record.kind == "run" and record.status != "done":
            missing = [s for s in ("baseline", "tuned") if s not in run.measured()]
            text = f"{prefix}this run is {record.status}" + (f" ({record.error})" if record.error else "")
            warnings.append(text + (f"; without a {' and a '.join(missing)} measurement" if missing else ""))
    for m in measured:
        cut = m.run.measurement(m.system.stage).get("cost", {}).get("prompts_cut")
        if cut:
            warnings.append(f"{m.system.name}: {cut} prompts did not fit into the model's context and were cut")
    verdict, detail = _verdict(measured, deltas, primary, warnings)
    sections = _sections(runs, warnings)
    return Report(
        title=" vs ".join(dict.fromkeys(run.record().name for run in runs)),
        verdict=verdict,
        verdict_detail=detail,
        primary=primary or "",
        systems=tuple(m.system for m in measured),
        deltas=tuple(deltas),
        pairs=tuple(_pairs(measured, primary)),
        curves=tuple(curve for run in runs for curve in _curves(run)),
        runs=tuple(_provenance(run) for run in runs),
        warnings=tuple(dict.fromkeys(warnings)),
        notes=tuple(dict.fromkeys([*_recipe_notes(runs), *notes])),
        sections=tuple(sections),
        created=utc_now(),
        version=importlib.metadata.version("ftkit"),
    )


# ---------------------------------------------------------------- reading


def _read_all(runs: Sequence[RunContext]) -> list[_Measured]:
    names = [run.record().name for run in runs]
    return [_read(run, run.record(), stage, _label(run, names, stage)) for run in runs for stage in run.measured()]


def _label(run: RunContext, names: Sequence[str], stage: str) -> str:
    """Name a system: its stage alone where there is one run, else with the run's name (and id, if that repeats)."""
    name = run.record().name
    if run.record().kind == "score":
        return name if names.count(name) == 1 else run.id
    if len(names) == 1:
        return stage
    return f"{name if names.count(name) == 1 else run.id} {stage}"


def _read(run: RunContext, record: RunRecord, stage: str, label: str) -> _Measured:
    data = run.measurement(stage)
    cost = data.get("cost", {})
    model = ModelRef.from_dict(data["model"]) if data.get("model") else None
    train = next((s for s in record.stages if s.name == "train"), None)
    is_tuned = stage == "tuned"
    role = "control" if stage.startswith("control-") else "extra" if data.get("control") else _ROLES.get(stage, "extra")
    system = System(
        name=label,
        run=run.id,
        stage=stage,
        role=role,
        metrics=run.metrics(stage),
        model=(f"{model.base} + adapter" if model.base and model.kind == "adapter" else model.base or model.uri)
        if model
        else "",
        method=data.get("backend", ""),
        seconds=cost.get("seconds"),
        train_seconds=train.seconds if train and is_tuned else None,
        usd=_add(cost.get("usd"), train.usd if train and is_tuned else None),
        train_usd=train.usd if train and is_tuned else None,
        tokens_in=cost.get("tokens_in"),
        tokens_out=cost.get("tokens_out"),
        peak_memory=max(
            filter(None, [cost.get("peak_memory"), train.meta.get("peak_memory") if train and is_tuned else None]),
            default=None,
        ),
        n_predictions=cost.get("n_predictions", 0),
        n_failed=cost.get("n_failed", 0),
        settings=data.get("settings", {}),
        info=model.meta if model else {},
    )
    own = run.path(stage, "examples.jsonl")
    examples = (
        [Example.from_dict(row) for row in read_jsonl(own)]
        if own.exists()
        else list(run.task.splits[data["settings"]["split"]])
    )
    predictions: dict[str, Prediction] = {}
    for p in run.predictions(stage):
        predictions.setdefault(p.example_id, p)  # of several samples, the first is shown
    return _Measured(system, run, examples, predictions, run.scores(stage), {run.id})


def _add(a: float | None, b: float | None) -> float | None:
    return None if a is None and b is None else (a or 0.0) + (b or 0.0)


def _unique(measured: list[_Measured], notes: list[str]) -> list[_Measured]:
    """Show a baseline or control that several runs share once."""
    seen: dict[str, _Measured] = {}
    kept = []
    for m in measured:
        path = m.run.path(m.system.stage, "key.json")
        key = None
        if path.exists() and m.system.role in ("baseline", "control"):
            key = digest([read_json(path), m.system.settings])  # asked alike, and scored alike
        if key and key in seen:
            notes.append(f"{m.system.name} is the same measurement as {seen[key].system.name}, and is shown once")
            seen[key].used_by.add(m.run.id)
            continue
        if key:
            seen[key] = m
        kept.append(m)
    return kept


def _check_comparable(measured: Sequence[_Measured], anyway: bool, warnings: list[str], notes: list[str]) -> None:
    """Refuse systems that were not asked the same; a setting that nobody knows is noted, not compared."""
    if not measured:
        return
    differing: dict[str, list[str]] = {}
    for key, words in _SETTINGS.items():
        known = [m for m in measured if m.system.settings.get(key) is not None and not (key == "rows" and _external(m))]
        unknown = [m.system.name for m in measured if m.system.settings.get(key) is None]
        if unknown and known:
            notes.append(f"{words} of {', '.join(unknown)}: not known")
        first = known[0] if known else None
        for m in known[1:]:
            assert first is not None
            ours, theirs = first.system.settings[key], m.system.settings[key]
            if key == "evaluators":
                ours, theirs = _common(ours, theirs), _common(theirs, ours)
            if ours != theirs:
                what = words + _which(ours, theirs)
                differing.setdefault(what, []).append(f"{first.system.name} and {m.system.name}")
    if not differing:
        return
    lines = [f"{what}: {'; '.join(dict.fromkeys(who))}" for what, who in differing.items()]
    if not anyway:
        raise InputError(
            "these runs may not be compared, they differ in " + "; in ".join(lines),
            "measure them alike, or say --anyway: the report is then marked",
        )
    warnings.append("Not a fair comparison (shown with --anyway): the runs differ in " + "; in ".join(lines))


def _common(evaluators: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the evaluators that both have, without those that only explain (`..._reason`)."""
    shared = [name for name in evaluators if name in others] or list(evaluators)
    return {name: {k: v for k, v in evaluators[name].items() if not k.endswith("_reason")} for name in shared}


def _external(m: _Measured) -> bool:
    return m.system.role == "external"


def _which(a: Any, b: Any) -> str:
    """Name the keys in which two settings differ."""
    if not (isinstance(a, Mapping) and isinstance(b, Mapping)):
        return ""
    keys = [str(k) for k in {**a, **b} if a.get(k) != b.get(k)]
    return f" ({', '.join(keys)})"


def _match_examples(measured: Sequence[_Measured], notes: list[str]) -> None:
    """Give all systems the first one's example ids: by id, else by the text of the input."""
    if not measured:
        return
    first = measured[0]
    ids = {e.id: e for e in first.examples}
    by_input: dict[str, list[str]] = {}
    for e in first.examples:
        if not e.input.strip():
            continue  # nothing to know it by
        by_input.setdefault(normalise(e.input), []).append(e.id)
    for m in measured[1:]:
        if m.system.role == "extra" or m.system.settings.get("rows") == first.system.settings.get("rows"):
            continue
        made_up = any(side.run.task.source.get("ids") == "made up" for side in (first, m))
        if not made_up and all(e.id in ids and _same_input(ids[e.id], e) for e in m.examples):
            names = {e.id: e.id for e in m.examples}
        else:
            left = {text: list(found) for text, found in by_input.items()}
            names = {e.id: left[t].pop(0) for e in m.examples if left.get(t := normalise(e.input))}
        if not names:
            raise InputError(f"{m.system.name} has no example in common with {first.system.name}",
                             "they are matched by example id or input text: name its column with --id or --input")  # fmt: skip
        notes.append(f"{m.system.name}: {len(names)} of {len(first.examples)} examples matched")
        m.predictions = {names[i]: p for i, p in m.predictions.items() if i in names}
        m.scores = [replace(s, example_id=names[s.example_id]) for s in m.scores if s.example_id in names]


def _same_input(a: Example, b: Example) -> bool:
    """Say whether two examples of one id may be one: an input that is not known cannot contradict."""
    return not a.input or not b.input or normalise(a.input) == normalise(b.input)


# ---------------------------------------------------------------- comparing


def _primary(measured: Sequence[_Measured]) -> str | None:
    """Return the primary metric of the first measurement's first evaluator."""
    return next((m.system.settings["primary"] for m in measured if m.system.role != "extra"), None)


def _comparisons(measured: Sequence[_Measured]) -> list[tuple[_Measured, _Measured]]:
    """Say which systems are compared: base to tuned of each run, controls to tuned, tuned to tuned."""
    pairs = []
    finals = [m for m in measured if m.system.role in ("tuned", "external")]
    for m in finals:
        for other in measured:
            alike = m.run.id in other.used_by or m.system.role == "external"
            if other.system.role in ("baseline", "control") and alike:
                pairs.append((other, m))
    return pairs + list(itertools.combinations(finals, 2))


def _deltas(measured: Sequence[_Measured], primary: str | None, warnings: list[str]) -> list[Delta]:
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


def _verdict(
    measured: Sequence[_Measured], deltas: Sequence[Delta], primary: str | None, warnings: list[str]
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


def _common_means(a: _Measured, b: _Measured, metric: str) -> tuple[float, float]:
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


# ---------------------------------------------------------------- the rest of the page


def _pairs(measured: Sequence[_Measured], primary: str | None) -> Iterable[Pair]:
    shown = [m for m in measured if m.system.role != "extra"]
    if not shown or primary is None:
        return
    values = {m.system.name: example_means(m.scores, primary) for m in shown}
    tuned = next((m for m in shown if m.system.role == "tuned"), None)
    base = next((m for m in shown if m.system.role == "baseline"), None)
    for example in shown[0].examples:
        answers = {}
        for m in shown:
            p = m.predictions.get(example.id)
            if p is not None:
                answers[m.system.name] = {
                    "text": p.text,
                    "score": values[m.system.name].get(example.id),
                    "error": p.error,
                }
        delta = None
        if tuned and base:
            a, b = (values[m.system.name].get(example.id) for m in (base, tuned))
            delta = b - a if a is not None and b is not None else None
        yield Pair(example.id, example.input, example.targets, answers, delta)


def _curves(run: RunContext) -> Iterable[Curve]:
    """Draw the loss, and the validation metrics of the primary evaluator, over the training steps."""
    lines: dict[tuple[str, str], list[list[float]]] = {}
    known: dict[str, Metric] = {}
    primaries: set[str | None] = set()
    for stage in run.measured():
        known.update(run.metrics(stage))
        primaries.add(run.measurement(stage)["settings"].get("primary"))
    for row in run.log_rows():
        if row["event"] == "step" and row.get("loss") is not None:
            lines.setdefault(("loss", "loss"), []).append([row["step"], row["loss"]])
        if row["event"] == "eval":
            for name, value in row.items():
                if name in known and isinstance(value, int | float):
                    if known[name].unit == "fraction":
                        lines.setdefault(("validation metrics", name), []).append([row["step"], value])
                    elif name in primaries:  # in its own unit, on its own axis
                        lines.setdefault((name, name), []).append([row["step"], value])
    return [Curve(run.record().name, name, axis, tuple(points)) for (axis, name), points in lines.items()]


def _provenance(run: RunContext) -> dict[str, Any]:
    record = run.record()
    recipe, lock, audit = run.path("recipe.yaml"), run.path("lock.json"), run.path("audit.json")
    return {
        **record.to_dict(),
        "recipe": recipe.read_text(encoding="utf-8") if recipe.exists() else None,
        "lock": read_json(lock) if lock.exists() else None,
        "audit": read_json(audit) if audit.exists() else None,
    }


def _recipe_notes(runs: Sequence[RunContext]) -> list[str]:
    """Return the recipes' notes; read as plain YAML, so that a report needs none of the run's plugins."""
    notes = []
    for run in runs:
        path = run.path("recipe.yaml")
        if path.exists():
            note = yaml_source.read_file(str(path), []).plain().get("note")
            notes += [str(note)] if note else []
    return notes


def _sections(runs: Sequence[RunContext], warnings: list[str]) -> list[Section]:
    sections: list[Section] = []
    for impl in installed_plugins().manager.hook.ftkit_report_sections.get_hookimpls():
        try:
            found: Any = impl.function(runs=list(runs))
            sections += found
        except Exception as error:  # a section that fails must not cost the reader the report
            warnings.append(f"the report section of plugin {impl.plugin_name} failed: {type(error).__name__}: {error}")
    return sections
