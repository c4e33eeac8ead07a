"""The measurements of a report's runs, read from their directories: what may be compared, and matched by example."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..directory import RunDirectory
from ..errors import InputError
from ..files import digest, read_json, read_jsonl
from ..lang import joined, msg, plural, tr
from ..records import Example, GenerationConfig, ModelRef, Prediction, RunRecord, Score, System
from ..stats import example_means
from ..text import normalise

_SETTINGS = {
    "rows": msg("test rows"),
    "prompt": msg("prompt"),
    "generation": msg("generation settings"),
    "evaluators": msg("evaluator settings"),
}


@dataclasses.dataclass
class Measured:
    """A System and the answers behind it, keyed by the example ids of the report's first system."""

    system: System
    run: RunDirectory
    predictions: dict[str, Prediction]
    scores: list[Score]
    used_by: set[str]  # ids of the runs that share this measurement
    _means: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def examples(self) -> list[Example]:
        """The rows that were measured; read on demand, as most measurements share theirs."""
        own = self.run.path(self.system.stage, "examples.jsonl")
        path = own if own.exists() else self.run.path("data", f"{self.system.settings['split']}.jsonl")
        return [Example.from_dict(row) for row in read_jsonl(path)]

    def means(self, metric: str) -> dict[str, float]:
        """Return each example's value of one metric; what has no score is left out."""
        if metric not in self._means:
            self._means[metric] = example_means(self.scores, metric)
        return self._means[metric]


def read_all(runs: Sequence[RunDirectory], labels: Mapping[str, str]) -> list[Measured]:
    """Read all measurements; `labels` are the runs' names by id."""
    alone = len(runs) == 1
    return [
        _read(run, run.record(), stage, _label(run, labels, stage, alone)) for run in runs for stage in run.measured()
    ]


def _label(run: RunDirectory, labels: Mapping[str, str], stage: str, alone: bool) -> str:
    """Name a system: its stage alone where there is one run, else with the run's name."""
    if run.record().kind == "score":
        return labels[run.id]
    return stage if alone else f"{labels[run.id]} {stage}"


def _read(run: RunDirectory, record: RunRecord, stage: str, label: str) -> Measured:
    data = run.measurement(stage)
    cost = data.get("cost", {})
    model = ModelRef.from_dict(data["model"]) if data.get("model") else None
    train = next((s for s in record.stages if s.name == "train"), None)
    # Of a model whose training was continued, what it took to get there stands beside its metrics.
    training = data.get("training") or ({"seconds": train.seconds, "usd": train.usd, **train.meta} if train else {})
    if stage != "tuned" and "training" not in data:
        training = {}
    answers = run.predictions(stage)
    system = System(
        name=label,
        run=run.id,
        stage=stage,
        role=data.get("role", "extra"),
        metrics=run.metrics(stage),
        model=_model_name(model) if model else "",
        method=data.get("backend", ""),
        seconds=cost.get("seconds"),
        train_seconds=training.get("seconds"),
        usd=_add(cost.get("usd"), training.get("usd")),
        measure_usd=cost.get("usd"),
        train_usd=training.get("usd"),
        tokens_in=cost.get("tokens_in"),
        tokens_out=cost.get("tokens_out"),
        peak_memory=max(
            filter(None, [cost.get("peak_memory"), training.get("peak_memory")]),
            default=None,
        ),
        n_predictions=cost.get("n_predictions") or len(answers),
        n_priced=0 if cost.get("usd") is None else _priced(answers) or cost.get("n_predictions") or len(answers),
        n_failed=cost.get("n_failed", 0),
        n_length_limit=sum(p.finish_reason == "length" for p in answers),
        settings=_with_defaults(data.get("settings", {})),
        info={**_info(model, cost), **_rented(record)},
    )
    predictions: dict[str, Prediction] = {}
    for p in answers:
        predictions.setdefault(p.example_id, p)  # of several samples, the first is shown
    return Measured(system, run, predictions, run.scores(stage), {run.id})


def _priced(answers: Sequence[Prediction]) -> int:
    """Return how many answers had a price of their own, or share that of their request; 0 where none has.

    The price of a request with several samples stands at one of them.
    """
    priced = {p.example_id for p in answers if p.usd is not None}
    return sum(p.example_id in priced and (p.error is None or p.usd is not None) for p in answers)


def _with_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a measurement's settings with the generation settings that its version of ftkit did not have yet."""
    found = dict(settings)
    if found.get("generation") is not None:
        found["generation"] = {**GenerationConfig.model_validate({}).to_dict(), **found["generation"]}
    return found


def length_limit_notes(measured: Sequence[Measured]) -> list[str]:
    """Return a sentence on each system with answers that end at the length limit: they lack their end."""
    return [
        tr(
            "{name}: {n:,} of {all:,} answers end at the length limit (generation.max_new_tokens{limit})",
            name=s.name,
            n=s.n_length_limit,
            all=s.n_predictions,
            limit=_limit_of(s),
        )
        for s in (m.system for m in measured)
        if s.n_length_limit
    ]


def _limit_of(system: System) -> str:
    limit = (system.settings.get("generation") or {}).get("max_new_tokens")
    return "" if limit is None else f" {limit}"


_PLACES = {
    "adapter": msg("the run directory"),
    "path": msg("the run directory"),
    "hub": msg("the model hub"),
    "rule": msg("the plugin"),
}


def _info(model: ModelRef | None, cost: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a model beside its name: who hosts it, its shutdown date, its machine's price per hour."""
    if model is None:
        return {}
    own_folder = (model.kind == "path" and model.base is None) or Path(model.uri).is_absolute()
    place = msg("a local folder") if own_folder else _PLACES.get(model.kind)
    hosted_by = tr(place) if place else None
    hourly = cost.get("usd_per_hour")
    found = {"hosted_by": hosted_by, **model.meta, **({} if hourly is None else {"usd_per_hour": hourly})}
    return {key: value for key, value in found.items() if value is not None}


def _rented(record: RunRecord) -> dict[str, Any]:
    hourly = record.rental.get("usd_per_hour")
    return {} if hourly is None else {"rented_usd_per_hour": hourly}


def _model_name(model: ModelRef) -> str:
    if model.kind == "remote":
        return model.uri
    chain = model.meta.get("chain")  # the runs that led to it, from the first base model on
    if isinstance(chain, list | tuple) and chain:
        return " -> ".join(map(str, chain)) + (" + adapter" if model.kind == "adapter" else "")
    return f"{model.base} + adapter" if model.base and model.kind == "adapter" else model.base or model.uri


def _add(a: float | None, b: float | None) -> float | None:
    return None if a is None and b is None else (a or 0.0) + (b or 0.0)


def settle_roles(measured: Sequence[Measured], notes: list[str]) -> None:
    """Show a run's further measurements beside the rest, where they were not measured like its baseline."""
    for m in measured:
        if m.system.role != "further":
            continue
        base = next((b for b in measured if b.run.id == m.run.id and b.system.role == "baseline"), None)
        differing = [words for key, words in _SETTINGS.items() if base and not _same(base, m, key)]
        if base is None or differing:
            m.system = replace(m.system, role="extra")
            text = msg("{name} has no baseline: no difference is computed with it")
            if differing:
                text = msg("{name} differs from the baseline in {what}: no difference is computed with it")
            notes.append(tr(text, name=m.system.name, what=joined([tr(words) for words in differing], " and ")))


def _same(a: Measured, b: Measured, key: str) -> bool:
    return bool(a.system.settings.get(key) == b.system.settings.get(key))


def unique(
    measured: list[Measured], notes: list[str], alike: Callable[[Measured, Measured], bool] = lambda a, b: False
) -> list[Measured]:
    """Show a baseline or control that several runs share once; without a note where two runs are `alike`."""
    kept: list[Measured] = []
    seen: dict[str, Measured] = {}
    again: dict[str, list[str]] = {}
    for m in measured:
        path = m.run.path(m.system.stage, "key.json")
        if not path.exists() or m.system.role not in ("baseline", "control"):
            kept.append(m)
            continue
        first = seen.setdefault(
            digest([read_json(path), m.system.settings]), m
        )  # the same requests, scored the same way
        if first is m:
            kept.append(m)
        else:
            first.used_by.add(m.run.id)
            if not alike(first, m):
                again.setdefault(first.system.name, []).append(m.system.name)
    for name, others in again.items():
        one = msg("{names} is the same measurement as {name}, shown once")
        many = msg("{names} are the same measurement as {name}, shown once")
        notes.append(plural(len(others), one, many, names=joined(others), name=name))
    return kept


def check_comparable(measured: Sequence[Measured], anyway: bool, warnings: list[str], notes: list[str]) -> None:
    """Refuse systems that were not measured alike; a setting that is not known is noted, not compared."""
    if not measured:
        return
    differing: dict[str, list[str]] = {}
    for key, words in _SETTINGS.items():
        known = [m for m in measured if m.system.settings.get(key) is not None and not (key == "rows" and _external(m))]
        unknown = [m.system.name for m in measured if m.system.settings.get(key) is None]
        if unknown and known:
            notes.append(tr("{what} of {names}: not known", what=tr(words), names=joined(unknown)))
        first = known[0] if known else None
        for m in known[1:]:
            assert first is not None
            ours, theirs = first.system.settings[key], m.system.settings[key]
            if key == "evaluators":
                ours, theirs = _common(ours, theirs), _common(theirs, ours)
            if ours != theirs:
                what = tr("{what}{keys}", what=tr(words), keys=_which(ours, theirs))
                differing.setdefault(what, []).append(f"{first.system.name} and {m.system.name}")
    if not differing:
        return
    lines = [f"{what}: {'; '.join(dict.fromkeys(who))}" for what, who in differing.items()]
    if not anyway:
        raise InputError(
            "these runs may not be compared, they differ in " + "; in ".join(lines),
            "measure them alike, or say --anyway: the report is then marked",
        )
    text = msg("Not a fair comparison (shown with --anyway): the runs differ in {what}")
    said = [
        tr("{title}: {text}", title=what, text=joined(list(dict.fromkeys(who)), "; "))
        for what, who in differing.items()
    ]
    warnings.append(tr(text, what=joined(said, "; in ")))


def _common(evaluators: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the evaluators that both have, without those that only explain (`..._reason`)."""
    shared = [name for name in evaluators if name in others] or list(evaluators)
    return {name: {k: v for k, v in evaluators[name].items() if not k.endswith("_reason")} for name in shared}


def _external(m: Measured) -> bool:
    return m.system.role == "external"


def _which(a: Any, b: Any) -> str:
    """Name the keys in which two settings differ."""
    if not (isinstance(a, Mapping) and isinstance(b, Mapping)):
        return ""
    keys = [str(k) for k in {**a, **b} if a.get(k) != b.get(k)]
    return f" ({', '.join(keys)})"


def match_examples(measured: Sequence[Measured], notes: list[str]) -> None:
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
        made_up = any(_made_up_ids(side.run) for side in (first, m))
        if not made_up and all(e.id in ids and _same_input(ids[e.id], e) for e in m.examples):
            names = {e.id: e.id for e in m.examples}
        else:
            left = {text: list(found) for text, found in by_input.items()}
            names = {e.id: left[t].pop(0) for e in m.examples if left.get(t := normalise(e.input))}
        if not names:
            raise InputError(f"{m.system.name} has no example in common with {first.system.name}",
                             "they are matched by example id or input text: name its column with --id or --input")  # fmt: skip
        text = msg("{name}: {n} of {all} examples matched")
        notes.append(tr(text, name=m.system.name, n=len(names), all=len(first.examples)))
        m.predictions = {names[i]: p for i, p in m.predictions.items() if i in names}
        m.scores = [replace(s, example_id=names[s.example_id]) for s in m.scores if s.example_id in names]


def _made_up_ids(run: RunDirectory) -> bool:
    """Say whether the rows came without ids, so that theirs are mere row numbers."""
    return bool(read_json(run.path("data", "task.json")).get("source", {}).get("ids") == "made up")


def _same_input(a: Example, b: Example) -> bool:
    """Say whether two examples of one id may be one: an input that is not known cannot contradict."""
    return not a.input or not b.input or normalise(a.input) == normalise(b.input)
