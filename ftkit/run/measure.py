"""Measure a model: generate on planned batches, score, aggregate. The same functions for every model.

The batches of a generation are planned from the whole split before it starts and kept: the text that
a model in 4-bit or bf16 gives depends on the batch it was made in, so the batch is the unit of
resume and of retry.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ..api import Backend, Session
from ..batches import plan
from ..directory import RunDirectory, list_runs
from ..errors import RunFailed
from ..files import Journal, digest, file_digest, publish, read_json, read_jsonl, write_json, write_jsonl
from ..plugins import installed_plugins
from ..records import Example, GenerationConfig, Measurement, Metric, ModelRef, Prediction, Score
from ..score import merge_scores, score_all, settings_of

N = TypeVar("N", int, float)
# What a copied measurement consists of; its scores are computed again, by this run's own evaluators.
_PREDICTION_FILES = (
    "predictions.jsonl", "timings.jsonl", "losses.jsonl", "plan.json", "key.json", "cost.json", "examples.jsonl",
)  # fmt: skip
# What metrics.json names by content: the metrics are those of these files and of no others.
_SCORED_FILES = ("predictions.jsonl", "losses.jsonl", "examples.jsonl", "scores.jsonl")
Progress = Callable[[str, int, int, float], None]  # what, done, total, seconds


def measure_all(
    run: RunDirectory,
    backend: Backend,
    measurements: Sequence[Measurement],
    progress: Progress,
    role: str | None = None,
) -> dict[str, Any]:
    """Measure what is not yet measured; each model is loaded once. Returns the sessions' `stats`.

    `role` is theirs in a report: None for those of the recipe's own backend (see `_role`).
    """
    stats: dict[str, Any] = {}
    models: list[ModelRef] = []
    for measurement in measurements:
        if measurement.model not in models:
            models.append(measurement.model)
    for model in models:
        group = [m for m in measurements if m.model == model]
        pending = [m for m in group if not _is_sealed(run, m)]
        if pending:
            with backend.load(model, run) as session:
                for measurement in pending:
                    if not run.path(measurement.name, "predictions.jsonl").exists():
                        generate(run, backend, session, measurement, progress)
                    if measurement.loss:
                        losses(run, backend, session, measurement, progress)
                stats = session.stats()
        for measurement in group:
            for journal in ("predictions.journal", "losses.journal"):  # what they held is sealed
                run.path(measurement.name, journal).unlink(missing_ok=True)
            score(run, backend, measurement, role or _role(measurement))
    return stats


def _role(measurement: Measurement) -> str:
    """Return what a measurement is in a report; System.role describes the words."""
    if measurement.name in ("baseline", "tuned"):
        return measurement.name
    return "further" if measurement.compared else "extra"


def _is_sealed(run: RunDirectory, measurement: Measurement) -> bool:
    files = ["predictions.jsonl", "losses.jsonl"] if measurement.loss else ["predictions.jsonl"]
    return all(run.path(measurement.name, file).exists() for file in files)


def examples_of(run: RunDirectory, measurement: Measurement) -> Sequence[Example]:
    return measurement.examples if measurement.examples is not None else run.task.splits[split_of(run, measurement)]


def split_of(run: RunDirectory, measurement: Measurement) -> str:
    return measurement.split or run.task.measured_split


def key_of(run: RunDirectory, backend: Backend, measurement: Measurement) -> dict[str, Any]:
    """Return all that decides the predictions: two measurements with one key have one answer."""
    examples = examples_of(run, measurement)
    source = installed_plugins().find("backend", backend.name).source
    return {
        "plugin": f"{backend.name} of {source.distribution} {source.version}",
        "identity": run.portable(backend.identity(measurement.model, run)),
        "prompts": digest([prompt_of(e) for e in examples]),
        "generation": (measurement.generation or run.recipe.generation).to_dict(),
        "plan": digest(plan(examples, backend.eval_batch_size)),
    }


def prompt_of(example: Example) -> list[Any]:
    """Return what a model is asked, as key.json hashes it."""
    return [example.id, [m.asked() for m in example.messages], *([list(example.tools)] if example.tools else [])]


def generate(
    run: RunDirectory, backend: Backend, session: Session, measurement: Measurement, progress: Progress
) -> None:
    """Write NAME/predictions.jsonl, continuing after the last finished batch of an earlier process."""
    name = measurement.name
    examples = {e.id: e for e in examples_of(run, measurement)}
    generation = measurement.generation or run.recipe.generation
    plan_path = run.path(name, "plan.json")
    if not plan_path.exists():
        write_json(plan_path, plan(list(examples.values()), backend.eval_batch_size))
    answered = answer(
        session,
        examples,
        read_json(plan_path),
        generation,
        Journal(run.path(name, "predictions.journal")),
        name,
        progress,
    )
    ordered, seconds = answered.predictions, answered.seconds
    stats = session.stats()
    usd = _sum(p.usd for p in ordered)
    if usd is None and stats.get("usd_per_hour") is not None:
        usd = seconds * stats["usd_per_hour"] / 3600
    write_json(
        run.path(name, "cost.json"),
        {
            **stats,  # first: of the whole session, so that it cannot stand in for this measurement's sums
            "seconds": round(seconds, 3),
            "tokens_in": _sum(p.tokens_in for p in ordered),
            "tokens_out": _sum(p.tokens_out for p in ordered),
            "usd": usd,
            "n_predictions": len(ordered),
            "n_failed": sum(p.error is not None for p in ordered),
            "n_length_limit": sum(p.finish_reason == "length" for p in ordered),
            "truncated_prompts": answered.truncated_prompts,
        },
    )
    if measurement.examples is not None:  # this measurement's own rows: re-scoring needs them
        write_jsonl(run.path(name, "examples.jsonl"), (e.to_dict() for e in measurement.examples))
    write_json(run.path(name, "key.json"), key_of(run, backend, measurement))
    # How long an answer took is no part of it: two runs that answer alike have predictions alike to the byte.
    write_jsonl(
        run.path(name, "timings.jsonl"),
        ({"example_id": p.example_id, "sample": p.sample, "latency": p.latency} for p in ordered),
    )
    write_jsonl(run.path(name, "predictions.jsonl"), (_without_latency(p) for p in ordered))


@dataclasses.dataclass(frozen=True)
class Answered:
    """The answers to planned batches, in the order of the examples; seconds, and prompts that were truncated."""

    predictions: list[Prediction]
    seconds: float
    truncated_prompts: int


def answer(
    session: Session,
    examples: Mapping[str, Example],
    batches: Sequence[Sequence[str]],
    generation: GenerationConfig,
    journal: Journal,
    name: str,
    progress: Progress,
) -> Answered:
    """Answer planned batches (of ids of `examples`), continuing after the last finished batch in the journal.

    What failed is retried once. Raises RunFailed where the session does not answer what was planned.
    """
    batch_of = {example_id: i for i, batch in enumerate(batches) for example_id in batch}
    done: dict[int, list[Prediction]] = {}
    seconds, truncated, truncated_before = 0.0, 0, _truncated_prompts(session)
    for row in journal:
        if "batch" not in row:  # what the journal is of
            continue
        done[row["batch"]] = [Prediction.from_dict(p) for p in row["predictions"]]
        seconds += row["seconds"]
        truncated += row.get("truncated_prompts", 0)
    answered_rows = sum(len(batches[i]) for i in done)
    for attempt in range(2):  # what failed is retried once, after all the rest
        todo = [i for i in range(len(batches)) if i not in done or (attempt and any(p.error for p in done[i]))]
        last = time.monotonic()
        answered = session.generate([[examples[i] for i in batches[b]] for b in todo], generation)
        for predictions in answered if todo else ():
            _check_batch(predictions, batches, batch_of, generation)
            index = batch_of[predictions[0].example_id]
            now, truncated_now = time.monotonic(), _truncated_prompts(session)
            facts = {
                "batch": index,
                "seconds": round(now - last, 4),
                "truncated_prompts": truncated_now - truncated_before,
            }
            journal.append({**facts, "predictions": [p.to_dict() for p in predictions]})
            seconds, last = seconds + now - last, now
            truncated, truncated_before = truncated + truncated_now - truncated_before, truncated_now
            answered_rows += 0 if index in done else len(batches[index])
            done[index] = predictions
            progress(name, answered_rows, len(examples), seconds)
    if len(done) != len(batches):
        raise RunFailed(f"{name}: the backend answered {len(done)} of {len(batches)} batches")
    by_id: dict[str, list[Prediction]] = {}
    for predictions in done.values():
        for p in predictions:
            by_id.setdefault(p.example_id, []).append(p)
    ordered = [p for example_id in examples for p in sorted(by_id[example_id], key=lambda p: p.sample)]
    return Answered(ordered, seconds, truncated)


def losses(run: RunDirectory, backend: Backend, session: Session, measurement: Measurement, progress: Progress) -> None:
    """Write NAME/losses.jsonl: each example's teacher-forced loss, in nats per token of the loss mask."""
    name = measurement.name
    path = run.path(name, "losses.jsonl")
    if path.exists():
        return
    examples = {e.id: e for e in examples_of(run, measurement)}
    journal = Journal(run.path(name, "losses.journal"))
    found: dict[str, float] = {row["example_id"]: row["loss"] for batch in journal for row in batch}
    began = time.monotonic()
    for ids in plan(list(examples.values()), backend.eval_batch_size):
        if ids[0] in found:
            continue
        batch = dict(zip(ids, session.loss([examples[i] for i in ids]), strict=True))
        journal.append([{"example_id": i, "loss": value} for i, value in batch.items()])
        found |= batch
        progress(f"{name} (loss)", len(found), len(examples), time.monotonic() - began)
    write_jsonl(path, ({"example_id": i, "loss": found[i]} for i in examples))


def _without_latency(prediction: Prediction) -> dict[str, Any]:
    row = prediction.to_dict()
    del row["latency"]
    return row


def _truncated_prompts(session: Session) -> int:
    """Return how many prompts a session has truncated to fit the model's context so far."""
    return int(session.stats().get("truncated_prompts") or 0)


def _check_batch(
    predictions: list[Prediction],
    batches: Sequence[Sequence[str]],
    batch_of: Mapping[str, int],
    generation: GenerationConfig,
) -> None:
    ids = [p.example_id for p in predictions]
    batch = list(batches[batch_of[ids[0]]]) if ids and ids[0] in batch_of else []
    if sorted(ids) != sorted(batch * generation.samples):
        raise RunFailed("the backend answered something other than a planned batch", f"it answered: {ids[:5]}")


def _sum(values: Iterable[N | None]) -> N | None:
    known = [v for v in values if v is not None]
    return sum(known[1:], known[0]) if known else None


def score(run: RunDirectory, backend: Backend, measurement: Measurement, role: str) -> None:
    """Write NAME/scores.jsonl and NAME/metrics.json from NAME/predictions.jsonl, unless they are there."""
    name, evaluators = measurement.name, run.evaluators
    if run.path(name, "metrics.json").exists():
        return
    examples = examples_of(run, measurement)
    scores, metrics = score_all(evaluators, examples, run.predictions(name))
    if measurement.loss:
        scores, metrics = with_losses(run, name, scores, metrics)
    write_jsonl(run.path(name, "scores.jsonl"), (s.to_dict() for s in scores))
    cost_path = run.path(name, "cost.json")
    generation = measurement.generation or run.recipe.generation
    run.write_metrics(
        name,
        metrics,
        settings={
            "rows": run.task.fingerprints[split_of(run, measurement)]
            if measurement.examples is None
            else digest([e.id for e in examples]),
            "split": split_of(run, measurement),
            "prompt": run.task.prompt_hash if measurement.examples is None else digest([e.to_dict() for e in examples]),
            "generation": generation.to_dict(),
            "evaluators": run.portable(settings_of(evaluators)),
            "primary": evaluators[0].primary,
        },
        backend=backend.name,
        model=measurement.model.to_dict(),
        role=role,
        cost=read_json(cost_path) if cost_path.exists() else {},
        sha256={file: file_digest(run.path(name, file)) for file in _SCORED_FILES if run.path(name, file).exists()},
    )


def with_losses(
    run: RunDirectory, name: str, scores: list[Score], metrics: list[Metric]
) -> tuple[list[Score], list[Metric]]:
    """Add the loss to each example's values, and its mean to the metrics."""
    from ..stats import mean_metrics

    rows = read_jsonl(run.path(name, "losses.jsonl"))
    by_id = {row["example_id"]: Score(row["example_id"], {"loss": row["loss"]}) for row in rows}
    merged = [merge_scores(s, by_id[s.example_id]) if s.sample == 0 else s for s in scores]
    return merged, [*metrics, *mean_metrics(list(by_id.values()), {"loss": "nats/token"}, {"loss": False})]


def reuse_predictions(run: RunDirectory, backend: Backend, measurement: Measurement) -> str | None:
    """Copy the predictions of a run beside this one that has the same key; return that run's id, or None."""
    folder = run.path(measurement.name)
    if folder.exists():
        return None
    key = json.loads(json.dumps(key_of(run, backend, measurement)))
    for other in list_runs(run.dir.parent):
        source = other.path(measurement.name)
        files = (source / "predictions.jsonl", source / "key.json")
        if other.id == run.id or not all(path.exists() for path in files) or read_json(files[1]) != key:
            continue
        staging = run.scratch("reuse") / measurement.name
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        for name in _PREDICTION_FILES:
            if (source / name).exists():
                shutil.copyfile(source / name, staging / name)
        write_json(staging / "cost.json", {**read_json(staging / "cost.json"), "reused_from": other.id})
        publish(staging, folder)
        return other.id
    return None
