"""What differs between two runs: recipe, lock, data, metrics with paired tests, and which answers changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..directory import RunDirectory, row_digest
from ..files import read_json, read_jsonl
from ..lang import joined, msg, plural, tr, word
from ..locked import Change, changes
from ..recipe import yaml as yaml_source
from ..records import Example, Metric, Prediction, Record, Section
from ..stats import clusters_of, example_means, holm, paired_deltas
from ..text import metric_value, p_value, scale_for

_NAMED = 20  # changes, and examples, that the report's section shows
_Key = tuple[str, int]  # example id, sample


@dataclasses.dataclass(frozen=True)
class SplitDiff(Record):
    """How the rows of one split differ: ids of those that are only in the second run, only in the first, or changed."""

    split: str
    n_before: int
    n_now: int
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    reordered: bool = False

    @property
    def same(self) -> bool:
        return not (self.added or self.removed or self.changed or self.reordered)


@dataclasses.dataclass(frozen=True)
class MetricDiff(Record):
    """One metric of one measurement in both runs, and the paired difference now - before over the `n` rows both have.

    `within` says whether the value of the second run lies in the first one's 95 % interval; None where it has none.
    `p_adjusted` is after Holm's correction over all metrics of the comparison.
    """

    measurement: str
    metric: str
    before: float
    now: float
    delta: float | None
    low: float | None
    high: float | None
    p_value: float | None
    p_adjusted: float | None
    n: int
    unit: str
    within: bool | None
    identical: bool  # value, interval and counts


@dataclasses.dataclass(frozen=True)
class AnswerDiff(Record):
    """One answer that is not the same: its text (or error) in each run, and its value of the primary metric."""

    measurement: str
    example_id: str
    sample: int
    before: str
    now: str
    score_before: float | None
    score_now: float | None


@dataclasses.dataclass(frozen=True)
class RunsDiff(Record):
    """What differs between two runs. Measurements that only one of them has are in `unmatched`."""

    before: str
    now: str
    recipe: tuple[dict[str, str], ...]
    lock: tuple[dict[str, str], ...]
    data: tuple[SplitDiff, ...]
    metrics: tuple[MetricDiff, ...]
    answers: tuple[AnswerDiff, ...]
    compared: dict[str, int]  # measurement: answers that both runs have to the same row
    unmatched: tuple[str, ...] = ()

    @property
    def identical(self) -> bool:
        """Whether both runs gave the same answers and the same metrics to the same rows."""
        same_rows = all(split.same for split in self.data if split.split == "test")
        same = not self.answers and not self.unmatched and all(m.identical for m in self.metrics)
        return same and same_rows and bool(self.compared)


def diff_runs(before: RunDirectory, now: RunDirectory) -> RunsDiff:
    """Compare two runs from their directories alone. Raises InputError where a file cannot be read."""
    names = [name for name in before.measured() if name in now.measured()]
    metrics: list[MetricDiff] = []
    answers: list[AnswerDiff] = []
    compared = {}
    for name in names:
        rows = _common_rows(before, now, name)
        found, n = _answers(before, now, name, rows)
        answers += found
        compared[name] = n
        metrics += _metrics(before, now, name, rows)
    tested = [i for i, m in enumerate(metrics) if m.p_value is not None]
    for i, p in zip(tested, holm([metrics[i].p_value or 0.0 for i in tested]), strict=True):
        metrics[i] = dataclasses.replace(metrics[i], p_adjusted=p)
    return RunsDiff(
        before.id,
        now.id,
        tuple(c._asdict() for c in recipe_changes(_recipe(before), _recipe(now))),
        tuple(c._asdict() for c in changes(_lock(before), _lock(now))),
        tuple(_splits(before, now)),
        tuple(metrics),
        tuple(answers),
        compared,
        tuple(sorted(set(before.measured()) ^ set(now.measured()))),
    )


# ---------------------------------------------------------------- recipe, lock, data


def recipe_changes(before: Any, now: Any, path: str = "") -> list[Change]:
    """Return the keys in which two recipes differ, given as plain data."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = list(dict.fromkeys([*before, *now]))
        inner = [recipe_changes(before.get(k), now.get(k), f"{path}.{k}" if path else str(k)) for k in keys]
        return [change for part in inner for change in part]
    return [] if before == now else [Change(path, _text(before), _text(now))]


def _text(value: Any) -> str:
    return "none" if value is None else str(value)


def _recipe(run: RunDirectory) -> Any:
    """Return recipe.yaml as plain data: its plugins need not be installed here."""
    path = run.path("recipe.yaml")
    return yaml_source.read_file(str(path), []).plain() if path.exists() else {}


def _lock(run: RunDirectory) -> dict[str, Any]:
    path = run.path("lock.json")
    found = read_json(path) if path.exists() else {}
    return found if isinstance(found, dict) else {}


def _splits(before: RunDirectory, now: RunDirectory) -> Iterator[SplitDiff]:
    sides = [{p.stem: _rows(p) for p in sorted(run.path("data").glob("*.jsonl"))} for run in (before, now)]
    for split in dict.fromkeys([*sides[0], *sides[1]]):
        ours, theirs = (side.get(split, {}) for side in sides)
        common = [name for name in ours if name in theirs]
        yield SplitDiff(
            split,
            len(ours),
            len(theirs),
            added=tuple(name for name in theirs if name not in ours),
            removed=tuple(name for name in ours if name not in theirs),
            changed=tuple(name for name in common if ours[name] != theirs[name]),
            reordered=common != [name for name in theirs if name in ours],
        )


def _rows(path: Path) -> dict[str, str]:
    return {str(row.get("id")): row_digest(row) for row in read_jsonl(path)}


# ---------------------------------------------------------------- measurements


def _common_rows(before: RunDirectory, now: RunDirectory, name: str) -> set[str]:
    """Return the ids that stand for the same row in both runs: the same input and targets."""
    ours, theirs = ({e["id"]: _row(e) for e in _examples(run, name)} for run in (before, now))
    return {i for i in ours.keys() & theirs.keys() if ours[i] == theirs[i]}


def _examples(run: RunDirectory, name: str) -> Iterator[dict[str, Any]]:
    own = run.path(name, "examples.jsonl")
    split = run.measurement(name)["settings"].get("split", "test")
    return iter(read_jsonl(own if own.exists() else run.path("data", f"{split}.jsonl")))


def _row(example: Mapping[str, Any]) -> tuple[Any, Any]:
    return example.get("input") or str(example.get("messages")), example.get("targets")


def _answers(before: RunDirectory, now: RunDirectory, name: str, rows: set[str]) -> tuple[list[AnswerDiff], int]:
    """Return the answers that differ, and how many were compared."""
    primary = now.measurement(name)["settings"].get("primary", "")
    sides = [
        {(p.example_id, p.sample): p for p in run.predictions(name) if p.example_id in rows} for run in (before, now)
    ]
    scores = [
        {(s.example_id, s.sample): (s.values or {}).get(primary) for s in run.scores(name)} for run in (before, now)
    ]
    keys: list[_Key] = [key for key in sides[0] if key in sides[1]]
    found = [
        AnswerDiff(name, *key, _said(sides[0][key]), _said(sides[1][key]), scores[0].get(key), scores[1].get(key))
        for key in keys
        if _answer(sides[0][key]) != _answer(sides[1][key])
    ]
    return found, len(keys)


def _answer(p: Prediction) -> tuple[str, str, str | None]:
    return p.text, p.finish_reason, p.error


def _said(p: Prediction) -> str:
    return p.text if p.error is None else f"failed: {p.error}"


def _metrics(before: RunDirectory, now: RunDirectory, name: str, rows: set[str]) -> Iterator[MetricDiff]:
    ours, theirs = before.metrics(name), now.metrics(name)
    common = [metric for metric in ours if metric in theirs]
    scores = [[s for s in run.scores(name) if s.example_id in rows] for run in (before, now)]
    pairs = [(example_means(scores[0], metric), example_means(scores[1], metric)) for metric in common]
    clusters = clusters_of(Example.from_dict(e) for e in _examples(before, name))
    deltas = paired_deltas(pairs, [ours[m].unit for m in common], clusters)
    for metric, d in zip(common, deltas, strict=True):
        a, b = ours[metric], theirs[metric]
        yield MetricDiff(
            name, metric, a.value, b.value, d.delta, d.low, d.high, d.p_value, None, d.n, b.unit, _within(a, b), a == b
        )


def _within(a: Metric, b: Metric) -> bool | None:
    """Say whether b's value lies in a's interval; equal values do, also where there is no interval."""
    if a.value == b.value:
        return True
    return None if a.low is None or a.high is None else a.low <= b.value <= a.high


# ---------------------------------------------------------------- in words


def headline(diff: RunsDiff) -> str:
    """Return one sentence on the answers and metrics."""
    if diff.identical:
        return tr("The two runs have the same answers and the same metrics.")
    changed = [
        plural(n, "{n} answer of {total} in {name}", "{n} answers of {total} in {name}", total=total, name=word(name))
        for name, n, total in changed_answers(diff)
    ]
    if changed:
        return tr("Changed: {changed}.", changed=joined(changed))
    if not diff.compared or not any(diff.compared.values()):
        return tr("The two runs have no measurement of the same rows in common.")
    return tr("The answers to the rows that both runs have are the same.")


def changed_answers(diff: RunsDiff) -> list[tuple[str, int, int]]:
    """Return (measurement, changed answers, compared answers) of each measurement with a changed answer."""
    counts = {name: sum(a.measurement == name for a in diff.answers) for name in diff.compared}
    return [(name, n, diff.compared[name]) for name, n in counts.items() if n]


def split_in_words(split: SplitDiff) -> str:
    """Return how the rows of a split differ, with the first ids."""
    kinds = ((msg("{n} added ({ids})"), split.added), (msg("{n} removed ({ids})"), split.removed),
             (msg("{n} changed ({ids})"), split.changed))  # fmt: skip
    parts = [
        tr(text, n=len(ids), ids=f"{', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''}") for text, ids in kinds if ids
    ]
    return tr(
        "{split}: {changes} (rows: {before} before, {now} now)",
        split=word(split.split),
        changes=joined(parts) if parts else tr("in another order"),
        before=split.n_before,
        now=split.n_now,
    )


def diff_sections(runs: Sequence[RunDirectory]) -> list[Section]:
    """Return a section for a report over two runs that names all in which they differ; none where that is their name.

    A file of predictions has no lock, and gets none either.
    """
    if len(runs) != 2 or any(run.record().kind != "run" for run in runs):
        return []
    diff = diff_runs(*runs)
    if diff.identical and not diff.lock and {c["name"] for c in diff.recipe} <= {"name", "note"}:
        return []
    names = [run.record().name for run in runs]
    before, now = names if names[0] != names[1] else [run.id for run in runs]
    blocks: list[dict[str, Any]] = [{"kind": "text", "text": headline(diff)}]
    facts = [[tr("recipe"), *c.values()] for c in diff.recipe] + [[tr("lock"), *c.values()] for c in diff.lock]
    if facts:
        rows = [[where, name, a[:200], b[:200]] for where, name, a, b in facts[:_NAMED]]
        blocks.append({"kind": "table", "header": [tr("In"), tr("Key"), before, now], "rows": rows})
        if len(facts) > _NAMED:
            text = tr("{n} more differ: ftkit diff RUN RUN names them.", n=len(facts) - _NAMED)
            blocks.append({"kind": "text", "text": text})
    splits = [split_in_words(split) for split in diff.data if not split.same]
    if splits:
        blocks.append({"kind": "text", "text": tr("Rows of {splits}", splits=joined(splits, "; "))})
    metrics = [m for m in diff.metrics if not m.identical]
    if metrics:
        header = [
            *(tr("Measurement"), tr("Metric"), before, now, tr("Difference"), tr("95 % interval"), tr("p, Holm"), "n")
        ]
        blocks.append({"kind": "table", "header": header, "rows": [_metric_row(m) for m in metrics]})
    if diff.answers:
        examples = [_example(a, before, now) for a in diff.answers[:_NAMED]]
        blocks.append({"kind": "examples", "examples": examples})
    title = tr("What differs between {before} and {now}", before=before, now=now)
    return [Section(title, tuple(blocks))]


def _metric_row(m: MetricDiff) -> list[str]:
    scale = scale_for(m.unit, [m.before, m.now])
    interval = scale.signed_interval(m.low, m.high) or "–"
    values = [metric_value(m.before, m.unit), metric_value(m.now, m.unit), scale.signed(m.delta), interval]
    return [word(m.measurement), m.metric, *values, p_value(m.p_adjusted), str(m.n)]


def _example(a: AnswerDiff, before: str, now: str) -> dict[str, str]:
    return {
        "title": f"{word(a.measurement)}: {a.example_id}" + (tr(" (answer {n})", n=a.sample + 1) if a.sample else ""),
        "text": f"{before}: {a.before}\n\n{now}: {a.now}",
    }
