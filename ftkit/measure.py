"""Measure a model: generate on planned batches, score, aggregate. The same functions for every model.

The batches of a generation are planned from the whole split before it starts and kept: the text that
a model in 4-bit or bf16 gives depends on the batch it was made in, so the batch is the unit of
resume and of retry.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from .api import Backend, Evaluator, Session
from .errors import FtkitError, RunFailed
from .records import Example, Generation, Measurement, Metric, ModelRef, Prediction, Score
from .store import Journal, RunContext, digest, read_json, read_jsonl, write_json, write_jsonl

N = TypeVar("N", int, float)
Progress = Callable[[str, int, int, float], None]  # what, done, total, seconds


def plan(examples: Sequence[Example], batch_size: int) -> list[list[str]]:
    """Return the batches of a generation as lists of example ids: longest prompts first.

    Examples of like length share a batch, which saves padding; the longest come first, so that a
    batch that does not fit in memory fails at once.
    """
    ordered = sorted(examples, key=lambda e: (-sum(len(m.content) for m in e.messages), e.id))
    return [[e.id for e in ordered[i : i + batch_size]] for i in range(0, len(ordered), batch_size)]


def measure_all(
    run: RunContext,
    backend: Backend,
    measurements: Sequence[Measurement],
    evaluators: Sequence[Evaluator],
    progress: Progress,
) -> dict[str, Any]:
    """Measure what is not yet measured; each model is loaded once. Returns the sessions' `stats`."""
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
            score(run, backend, measurement, evaluators)
    return stats


def _is_sealed(run: RunContext, measurement: Measurement) -> bool:
    files = ["predictions.jsonl", "losses.jsonl"] if measurement.loss else ["predictions.jsonl"]
    return all(run.path(measurement.name, file).exists() for file in files)


def examples_of(run: RunContext, measurement: Measurement) -> Sequence[Example]:
    return measurement.examples if measurement.examples is not None else run.task.splits[measurement.split]


def key_of(run: RunContext, backend: Backend, measurement: Measurement) -> dict[str, Any]:
    """Return all that decides the predictions: two measurements with one key have one answer."""
    examples = examples_of(run, measurement)
    return {
        "identity": backend.identity(measurement.model, run),
        "prompts": digest([[e.id, [asdict(m) for m in e.messages]] for e in examples]),
        "generation": (measurement.generation or run.recipe.generation).to_dict(),
        "plan": digest(plan(examples, backend.eval_batch_size)),
    }


def generate(run: RunContext, backend: Backend, session: Session, measurement: Measurement, progress: Progress) -> None:
    """Write NAME/predictions.jsonl, going on from the last finished batch of an earlier process."""
    name = measurement.name
    examples = {e.id: e for e in examples_of(run, measurement)}
    generation = measurement.generation or run.recipe.generation
    plan_path = run.path(name, "plan.json")
    if not plan_path.exists():
        write_json(plan_path, plan(list(examples.values()), backend.eval_batch_size))
    batches: list[list[str]] = read_json(plan_path)
    batch_of = {example_id: i for i, batch in enumerate(batches) for example_id in batch}
    journal = Journal(run.path(name, "predictions.journal"))
    done: dict[int, list[Prediction]] = {}
    seconds, cut, cut_before = 0.0, 0, _truncated_prompts(session)
    for row in journal:
        done[row["batch"]] = [Prediction.from_dict(p) for p in row["predictions"]]
        seconds += row["seconds"]
        cut += row.get("truncated_prompts", 0)
    for attempt in range(2):  # what failed is tried once more, after all the rest
        todo = [i for i in range(len(batches)) if i not in done or (attempt and any(p.error for p in done[i]))]
        last = time.monotonic()
        answered = session.generate([[examples[i] for i in batches[b]] for b in todo], generation)
        for predictions in answered if todo else ():
            _check_batch(predictions, batches, batch_of, generation)
            index = batch_of[predictions[0].example_id]
            now, cut_now = time.monotonic(), _truncated_prompts(session)
            facts = {"batch": index, "seconds": round(now - last, 4), "truncated_prompts": cut_now - cut_before}
            journal.append({**facts, "predictions": [p.to_dict() for p in predictions]})
            seconds, last = seconds + now - last, now
            cut, cut_before = cut + cut_now - cut_before, cut_now
            done[index] = predictions
            progress(name, sum(len(batches[i]) for i in done), len(examples), seconds)
    if len(done) != len(batches):
        raise RunFailed(f"{name}: the backend answered {len(done)} of {len(batches)} batches")
    by_id: dict[str, list[Prediction]] = {}
    for predictions in done.values():
        for p in predictions:
            by_id.setdefault(p.example_id, []).append(p)
    ordered = [p for example_id in examples for p in sorted(by_id[example_id], key=lambda p: p.sample)]
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
            "truncated_prompts": cut,
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


def losses(run: RunContext, backend: Backend, session: Session, measurement: Measurement, progress: Progress) -> None:
    """Write NAME/losses.jsonl: each example's teacher-forced loss, in nats per learned token."""
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
    """Return how many prompts a session has cut to fit the model's context so far."""
    return int(session.stats().get("truncated_prompts") or 0)


def _check_batch(
    predictions: list[Prediction], batches: list[list[str]], batch_of: dict[str, int], generation: Generation
) -> None:
    ids = [p.example_id for p in predictions]
    batch = batches[batch_of[ids[0]]] if ids and ids[0] in batch_of else []
    if sorted(ids) != sorted(batch * generation.samples):
        raise RunFailed("the backend answered something other than a planned batch", f"it answered: {ids[:5]}")


def _sum(values: Iterable[N | None]) -> N | None:
    known = [v for v in values if v is not None]
    return sum(known[1:], known[0]) if known else None


def score(run: RunContext, backend: Backend, measurement: Measurement, evaluators: Sequence[Evaluator]) -> None:
    """Write NAME/scores.jsonl and NAME/metrics.json from NAME/predictions.jsonl, unless they are there."""
    name = measurement.name
    if run.path(name, "metrics.json").exists():
        return
    examples = examples_of(run, measurement)
    scores, metrics = score_all(evaluators, examples, run.predictions(name))
    if measurement.loss:
        scores, metrics = _with_losses(run, name, scores, metrics)
    write_jsonl(run.path(name, "scores.jsonl"), (s.to_dict() for s in scores))
    cost_path = run.path(name, "cost.json")
    generation = measurement.generation or run.recipe.generation
    write_metrics(
        run,
        name,
        metrics,
        settings={
            "rows": run.task.fingerprints[measurement.split]
            if measurement.examples is None
            else digest([e.id for e in examples]),
            "split": measurement.split,
            "prompt": run.task.prompt_hash if measurement.examples is None else digest([e.to_dict() for e in examples]),
            "generation": generation.to_dict(),
            "evaluators": settings_of(evaluators),
            "primary": evaluators[0].primary,
        },
        backend=backend.name,
        model=measurement.model.to_dict(),
        control=measurement.control,
        cost=read_json(cost_path) if cost_path.exists() else {},
    )


def _with_losses(
    run: RunContext, name: str, scores: list[Score], metrics: list[Metric]
) -> tuple[list[Score], list[Metric]]:
    """Add the loss to each example's values, and its mean to the metrics."""
    from .stats import mean_metrics

    rows = read_jsonl(run.path(name, "losses.jsonl"))
    by_id = {row["example_id"]: Score(row["example_id"], {"loss": row["loss"]}) for row in rows}
    merged = [_merge(s, by_id[s.example_id]) if s.sample == 0 else s for s in scores]
    return merged, [*metrics, *mean_metrics(list(by_id.values()), {"loss": "nats/token"}, {"loss": False})]


def settings_of(evaluators: Sequence[Evaluator]) -> dict[str, Any]:
    """Return each evaluator's settings by name; a second one of a name gets a number."""
    settings: dict[str, Any] = {}
    for e in evaluators:
        count = sum(name.split("#")[0] == e.name for name in settings)
        settings[f"{e.name}#{count + 1}" if count else e.name] = e.settings()
    return settings


def write_metrics(run: RunContext, name: str, metrics: Sequence[Metric], **rest: Any) -> None:
    """Write NAME/metrics.json, the shape that scripts rely on: metrics by name, then settings and the rest."""
    by_name = {m.name: {k: v for k, v in m.to_dict().items() if k != "name"} for m in metrics}
    write_json(run.path(name, "metrics.json"), {"metrics": by_name, **rest})


def score_all(
    evaluators: Sequence[Evaluator], examples: Sequence[Example], predictions: Sequence[Prediction]
) -> tuple[list[Score], list[Metric]]:
    """Return one score per prediction (all evaluators' values together) and all metrics.

    A failed prediction is unscored. Raises RunFailed where two evaluators name a metric alike.
    """
    by_id = {e.id: e for e in examples}
    merged: dict[tuple[str, int], Score] = {}
    metrics: dict[str, Metric] = {}
    for evaluator in evaluators:
        evaluator.prepare(examples)
        scores = []
        for p in predictions:
            if p.error is not None:
                s = Score(p.example_id, None, p.sample, reason=f"failed: {p.error}")
            else:
                s = _scored(evaluator, by_id[p.example_id], p)
            scores.append(s)
            key = (p.example_id, p.sample)
            merged[key] = _merge(merged[key], s) if key in merged else s
        for metric in evaluator.aggregate([by_id[p.example_id] for p in predictions], predictions, scores):
            if metric.name in metrics:
                raise RunFailed(
                    f"two evaluators both name a metric {metric.name!r}", "name fewer evaluators in the recipe"
                )
            if not math.isfinite(metric.value):
                raise RunFailed(f"evaluator {evaluator.name!r} gave {metric.value} for {metric.name!r}")
            metrics[metric.name] = metric
        if evaluator.primary not in metrics and any(s.values for s in scores):
            raise RunFailed(f"evaluator {evaluator.name!r} gave no metric named {evaluator.primary!r}, its primary one")
    return list(merged.values()), list(metrics.values())


def _scored(evaluator: Evaluator, example: Example, prediction: Prediction) -> Score:
    try:
        found = evaluator.score(example, prediction)
    except FtkitError:
        raise
    except Exception as error:
        raise RunFailed(
            f"evaluator {evaluator.name!r} raised {type(error).__name__} on example {example.id!r}: {error}"
        ) from error
    if not isinstance(found, Score):
        raise RunFailed(f"evaluator {evaluator.name!r} returned {type(found).__name__} instead of a Score")
    return found


def _merge(a: Score, b: Score) -> Score:
    values = None if a.values is None and b.values is None else {**(a.values or {}), **(b.values or {})}
    return Score(a.example_id, values, a.sample, a.answer or b.answer, a.reason or b.reason)
