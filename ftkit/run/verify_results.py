"""Compute scores, metrics and the report of a run again, and name what is not as its files say."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..batches import plan
from ..directory import RunDirectory
from ..errors import InputError
from ..files import digest, dump_json, file_digest, read_json, read_jsonl
from ..lang import LANGUAGES, speaking
from ..plugins import installed_plugins
from ..records import Example, Metric, Prediction, Report, Score
from ..report import build_report, render_html, render_markdown
from ..report.page.view import view_of
from ..score import score_all, settings_of
from .lock import read_lock
from .measure import prompt_of, with_losses

_CLOSE = 1e-9  # what adding in another order may change
_SHOWN = 60  # characters of a value in a message
_WORDS = ("method", "caution")  # of a metric: in words, which another version may write otherwise


class NotChecked(Exception):
    """A check that cannot be made, and why."""


def differing(a: Any, b: Any, path: str) -> Iterator[str]:
    """Yield "PATH is A, and B" for each value in which plain data differ."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in dict.fromkeys([*a, *b]):
            yield from differing(a.get(key), b.get(key), f"{path}.{key}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for number, (ours, theirs) in enumerate(zip(a, b, strict=True)):
            yield from differing(ours, theirs, f"{path}.{number}")
    elif not _same(a, b):
        yield f"{path} is {_short(a)}, and {_short(b)}"


def _same(a: Any, b: Any) -> bool:
    if (
        isinstance(a, float | int)
        and isinstance(b, float | int)
        and not isinstance(a, bool)
        and not isinstance(b, bool)
    ):
        return math.isclose(a, b, rel_tol=_CLOSE, abs_tol=_CLOSE)
    return bool(a == b) or (isinstance(a, list | tuple) and isinstance(b, list | tuple) and list(a) == list(b))


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


# ---------------------------------------------------------------- a measurement


def check_measurement(run: RunDirectory, name: str) -> Iterator[str]:
    """Yield what is wrong with one measurement: its files, its answers, and the numbers computed from them."""
    if not run.path(name, "metrics.json").exists():
        yield f"{name}/metrics.json is missing, and run.json lists this measurement"
        return
    data = run.measurement(name)
    for file, expected in data.get("sha256", {}).items():
        path = run.path(name, file)
        if not path.exists() or file_digest(path) != expected:
            yield f"{name}/{file} is not the file that {name}/metrics.json was computed from"
    examples, predictions = _examples(run, name), run.predictions(name)
    yield from _answers(name, examples, predictions, data)
    yield from _costs(run, name, predictions, data)
    known = {e.id for e in examples}
    # First, because an evaluator may choose a setting by the rows that it scores (a tokenizer).
    numbers = list(_numbers(run, name, examples, [p for p in predictions if p.example_id in known], data))
    yield from _settings(run, name, examples, data)
    yield from _key(run, name, examples, data)
    yield from numbers


def _examples(run: RunDirectory, name: str) -> list[Example]:
    own = run.path(name, "examples.jsonl")
    split = run.measurement(name)["settings"].get("split", "test")
    path = own if own.exists() else run.path("data", f"{split}.jsonl")
    return [Example.from_dict(row) for row in read_jsonl(path)]


def _answers(name: str, examples: Sequence[Example], predictions: Sequence[Prediction], data: Any) -> Iterator[str]:
    """Each row must have its answers, and no answer may be without a row: none may be left out, or be there twice."""
    samples = (data["settings"].get("generation") or {}).get("samples", 1)
    found = [(p.example_id, p.sample) for p in predictions]
    expected = [(e.id, sample) for e in examples for sample in range(samples)]
    if found == expected:
        return
    where = f"{name}/predictions.jsonl"
    if data["settings"].get("generation") is not None or set(found) - set(expected):
        for key in [key for key in expected if key not in set(found)]:
            yield f"{where} lacks the answer to {key[0]}"
        for key in dict.fromkeys(key for key in found if key not in set(expected)):
            yield f"{where} holds an answer to {key[0]}, which is no row of this measurement"
    if len(set(found)) != len(found):
        twice = next(key for key in found if found.count(key) > 1)
        yield f"{where} holds two answers to {twice[0]}"
    elif sorted(found) == sorted(expected) and data["settings"].get("generation") is not None:
        yield f"{where} is not in the order of the rows"


def _costs(run: RunDirectory, name: str, predictions: Sequence[Prediction], data: Any) -> Iterator[str]:
    cost = data.get("cost", {})
    failed = sum(p.error is not None for p in predictions)
    if cost.get("n_failed", failed) != failed:
        yield f"{name}/metrics.json says that {cost['n_failed']} answers failed, and {failed} did"
    sums = {
        "n_predictions": len(predictions),
        "n_length_limit": sum(p.finish_reason == "length" for p in predictions),
        "tokens_in": sum(p.tokens_in or 0 for p in predictions),
        "tokens_out": sum(p.tokens_out or 0 for p in predictions),
    }
    for key, value in sums.items():
        if cost.get(key) is not None and cost[key] != value:
            yield f"{name}/metrics.json: cost.{key} is {cost[key]}, and the answers give {value}"
    path = run.path(name, "cost.json")
    if path.exists():
        yield from (
            f"{name}/cost.json {text} in {name}/metrics.json" for text in differing(read_json(path), cost, "cost")
        )
    timings = run.path(name, "timings.jsonl")
    if timings.exists():
        ids = [(row["example_id"], row["sample"]) for row in read_jsonl(timings)]
        if ids != [(p.example_id, p.sample) for p in predictions]:
            yield f"{name}/timings.jsonl speaks of other answers than {name}/predictions.jsonl"


def _settings(run: RunDirectory, name: str, examples: Sequence[Example], data: Any) -> Iterator[str]:
    """What must agree before two systems are compared must be what was done."""
    settings, where = data["settings"], f"{name}/metrics.json: settings"
    own = run.path(name, "examples.jsonl").exists()
    split = settings.get("split", "test")
    rows = digest([e.id for e in examples]) if own else run.task.fingerprints.get(split)
    if settings.get("rows") != rows:
        yield f"{where}.rows are not those of {'examples.jsonl' if own else f'data/{split}.jsonl'}"
    if not run.path("recipe.yaml").exists():
        return
    prompt = digest([e.to_dict() for e in examples]) if own else run.task.prompt_hash
    if settings.get("prompt") != prompt:
        yield f"{where}.prompt is not that of the rows"
    if data.get("role") in ("baseline", "tuned", "control"):
        yield from differing(settings.get("generation"), run.recipe.generation.to_dict(), f"{where}.generation")
    if data.get("role") in ("baseline", "tuned") and data["role"] != name:
        yield f"{name}/metrics.json: role is {data['role']}"
    if name in ("baseline", "tuned") and data.get("role") != name:
        yield f"{name}/metrics.json: role is {data.get('role')}"
    if settings.get("primary") != run.primary:
        yield f"{where}.primary is {settings.get('primary')}, and the recipe's first evaluator names {run.primary}"
    recorded = run.portable(settings_of(run.evaluators))
    yield from (
        f"{text} of the recipe's" for text in differing(settings.get("evaluators"), recorded, f"{where}.evaluators")
    )


def _key(run: RunDirectory, name: str, examples: Sequence[Example], data: Any) -> Iterator[str]:
    path = run.path(name, "key.json")
    if not path.exists():
        if run.path("lock.json").exists():
            yield f"{name}/key.json is missing"
        return
    key, where = read_json(path), f"{name}/key.json"
    if key.get("prompts") != digest([prompt_of(e) for e in examples]):
        yield f"{where}: the prompts are not those of the rows"
    yield from (f"{where}: {text} in metrics.json" for text in differing(key.get("generation"), data["settings"].get("generation"), "generation"))  # fmt: skip
    batches = read_json(run.path(name, "plan.json"))
    if key.get("plan") != digest(batches):
        yield f"{name}/plan.json is not the plan that {where} names"
    if sorted(i for batch in batches for i in batch) != sorted(e.id for e in examples):
        yield f"{name}/plan.json plans other rows than were measured"
    elif batches and digest(plan(examples, max(map(len, batches)))) != digest(batches):
        yield f"{name}/plan.json is not how these rows are batched"
    locked = read_lock(run).get("model", {})
    if name == "baseline" and locked:
        known = {k: v for k, v in locked.items() if k != "about" and (k != "plugin" or k in key["identity"])}
        yield from (f"{where}: {text} in lock.json" for text in differing(key.get("identity"), known, "identity"))


def _numbers(
    run: RunDirectory, name: str, examples: Sequence[Example], predictions: Sequence[Prediction], data: Any
) -> Iterator[str]:
    """Score the answers again with the recorded evaluator, and compare each value and each metric."""
    written = {(s.example_id, s.sample): s for s in run.scores(name)}
    failed = {(p.example_id, p.sample) for p in predictions if p.error is not None}
    for key, score in written.items():
        if key in failed and score.values is not None:
            yield f"{name}/scores.jsonl: {key[0]} has a score, and its answer failed"
    evaluators = _evaluators(run, data)
    scores, metrics = score_all(evaluators, examples, predictions)
    if run.path(name, "losses.jsonl").exists():
        scores, metrics = with_losses(run, name, scores, metrics)
    yield from _scores(name, written, scores)
    recomputed = {m.name: m for m in metrics}
    for metric, found in run.metrics(name).items():
        if metric not in recomputed:
            yield f"{name}/metrics.json: no evaluator of the recipe gives {metric!r}"
            continue
        yield from (
            f"{name}/metrics.json: {text} from the answers" for text in _metric(found, recomputed[metric], metric)
        )
    for metric in recomputed.keys() - run.metrics(name).keys():
        yield f"{name}/metrics.json lacks {metric!r}"


def _evaluators(run: RunDirectory, data: Any) -> list[Any]:
    """Return the recorded evaluators; of scored files, which have no recipe, from the recorded settings."""
    if run.path("recipe.yaml").exists():
        for ref in run.recipe.evaluators:
            try:
                installed_plugins().resolve(ref.kind, ref.name)
            except InputError as error:
                raise NotChecked(f"the numbers cannot be computed here: {error}") from None
        return run.evaluators
    made = []
    for name, settings in data["settings"]["evaluators"].items():
        cls = installed_plugins().resolve("evaluator", name.split("#")[0])
        try:
            known = {key: value for key, value in settings.items() if key in cls.Options.model_fields}
            made.append(cls(cls.Options(**known)))
        except ValueError as error:
            raise NotChecked(f"the options of {name} are not recorded whole: {error}") from None
    return made


def _scores(name: str, written: Mapping[Any, Score], scores: Sequence[Score]) -> Iterator[str]:
    for score in scores:
        found = written.get((score.example_id, score.sample))
        if found is None:
            yield f"{name}/scores.jsonl lacks {score.example_id}"
            continue
        yield from (
            f"{name}/scores.jsonl: {score.example_id}: {text} from its answer"
            for text in differing(found.values, score.values, "values")
        )
    for key in written.keys() - {(s.example_id, s.sample) for s in scores}:
        yield f"{name}/scores.jsonl: {key[0]} has no answer"


def _metric(found: Metric, recomputed: Metric, name: str) -> Iterator[str]:
    ours, theirs = ({k: v for k, v in m.to_dict().items() if k not in _WORDS} for m in (found, recomputed))
    yield from differing(ours, theirs, name)


# ---------------------------------------------------------------- the report


def check_report(run: RunDirectory, same_code: bool) -> Iterator[str]:
    """Yield where report.json is not what the run's files give, and where the pages show other numbers than report.json.

    `same_code` says that this ftkit wrote it: then every byte must agree.
    """
    if not run.path("report.json").exists():
        if run.record().kind == "run":
            yield "report.json is missing"
        return
    report = Report.from_dict(read_json(run.path("report.json")))
    written = json.loads(dump_json(report.to_dict()).replace(run.record().id, run.id))  # a directory may be renamed
    now = build_report([run]).to_dict()
    for key in (
        "primary",
        "systems",
        "deltas",
        "pairs",
        "curves",
        *(("title", "verdict", "verdict_detail") if same_code else ()),
    ):
        ours, theirs = (_by_name(key, side.get(key)) for side in (written, now))
        yield from (f"report.json: {text} from the run's files" for text in differing(ours, theirs, key))
    for text in run.record().warnings:
        if text not in written.get("warnings", ()):
            yield f"report.json leaves out a warning of the run: {text[:100]}"
    for text in written.get("warnings", ()) if same_code else ():
        if text not in now["warnings"] and "section" not in text:
            yield f"report.json holds a warning that the run does not give: {text[:100]}"
    for text in now["warnings"] if same_code else ():
        if text not in written.get("warnings", ()) and "section" not in text:
            yield f"report.json lacks a warning: {text[:100]}"
    yield from _provenance(written.get("runs"), now["runs"], (run.id, run.mark))
    with speaking(_language(run)):
        pages = {"report.html": render_html(report), "report.md": render_markdown(report)}
        shown = [] if same_code else list(_shown_numbers(run, report))
    for name, expected in pages.items():
        yield from _page(run, name, expected, same_code)
    yield from shown


def _language(run: RunDirectory) -> str:
    """Return the language that the run's report was written in: its page says it."""
    path = run.path("report.html")
    found = re.search(r'<html lang="(\w+)"', path.read_text(encoding="utf-8")[:1000]) if path.exists() else None
    return found[1] if found and found[1] in LANGUAGES else "en"


def _by_name(key: str, value: Any) -> Any:
    """Return systems and examples by name, so that a message names them."""
    by = {"systems": "name", "pairs": "example_id"}.get(key)
    if by is None or not isinstance(value, list | tuple):
        return value
    return {str(item.get(by)): item for item in value}


def _provenance(written: Any, now: Sequence[dict[str, Any]], names: Sequence[str]) -> Iterator[str]:
    """Compare the copies of record, recipe, lock and audit in report.json with the files they are of.

    `names` are the run's name and the one that it had at first.
    """
    if not isinstance(written, list) or len(written) != len(now):
        yield "report.json speaks of other runs"
        return
    for ours, theirs in zip(written, now, strict=True):
        sides = []
        for side in (ours, theirs):
            stages = [s for s in side.get("stages", ()) if s.get("name") != "report"]  # it was running
            mark = None if side.get("mark") in names else side.get("mark")  # a directory may be renamed
            sides.append({**side, "stages": stages, "warnings": None, "id": None, "mark": mark})
        for key in dict.fromkeys([*sides[0], *sides[1]]):
            file = {"lock": "lock.json", "recipe": "recipe.yaml", "audit": "audit.json"}.get(key, "run.json")
            found = differing(sides[0].get(key), sides[1].get(key), key)
            yield from (f"{file} is not as report.json shows it: {text}" for text in found)


def _page(run: RunDirectory, name: str, expected: str, same_code: bool) -> Iterator[str]:
    path = run.path(name)
    if not path.exists():
        yield f"{name} is missing"
        return
    text = path.read_text(encoding="utf-8")
    if not same_code or text == expected:
        return
    lines = zip(text.split("\n"), expected.split("\n"), strict=False)
    number, (ours, theirs) = next(
        ((n, pair) for n, pair in enumerate(lines, 1) if pair[0] != pair[1]), (0, ("more or fewer lines", ""))
    )
    start = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), 0)
    begin = max(0, start - 20)
    yield f"{name}:{number} is not what report.json gives: {ours[begin : begin + _SHOWN]!r}, and {theirs[begin : begin + _SHOWN]!r}"


def _shown_numbers(run: RunDirectory, report: Report) -> Iterator[str]:
    """Look for each metric and difference of report.json in report.html: another version may write the rest otherwise."""
    path = run.path("report.html")
    page, view = path.read_text(encoding="utf-8") if path.exists() else "", view_of(report)
    for system in view["systems"]:
        columns = view["further_columns" if system["role"] == "extra" else "columns"]
        for column, cell in zip(columns, system["cells"], strict=True):
            if cell["value"] not in page:
                yield f"report.html does not show {column['name']} {cell['value']} of {system['name']}"
    for delta in view["deltas"]:
        if delta["delta"] not in page:
            yield f"report.html does not show the difference {delta['delta']} from {delta['from']} to {delta['to']}"
