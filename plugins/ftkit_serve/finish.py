"""What a finished job leaves: the tuned model, its checkpoints, and the result file."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import math
import re
from typing import TYPE_CHECKING, Any

from ftkit.records import ModelRef
from ftkit.store import RunContext, read_json

from .store import Doc, new_id, now

if TYPE_CHECKING:
    from .jobs import Jobs

# OpenAI's name of a metric -> names that backends log it under
_METRICS = {
    "train_loss": ("loss", "train_loss"),
    "train_mean_token_accuracy": ("mean_token_accuracy", "train_mean_token_accuracy"),
    "valid_loss": ("valid_loss", "eval_loss"),
}
_COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")


def metrics(row: dict[str, Any]) -> dict[str, Any]:
    """Return a logged step as OpenAI's events and checkpoints give it; a number that is not finite is left out."""
    found: dict[str, Any] = {"step": row["step"]}
    for name, keys in _METRICS.items():
        value = next((row[key] for key in keys if isinstance(row.get(key), int | float)), None)
        if value is not None and math.isfinite(value):
            found[name] = value
    return found


def result_csv(steps: list[dict[str, Any]]) -> bytes:
    """Return the result file: CSV in base64, which is how OpenAI hands it out."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for step in steps:
        accuracy = step.get("train_mean_token_accuracy", "")
        writer.writerow([step["step"], step.get("train_loss", ""), accuracy, step.get("valid_loss", ""), ""])
    return base64.b64encode(text.getvalue().encode())


def finish(jobs: Jobs, job: Doc, run: RunContext) -> None:
    """Make the tuned model known, with its checkpoints and the result file, and end the job: all at once."""
    model = run.model()
    assert model is not None
    rows = run.log_rows()
    steps = [metrics(row) for row in rows if row["event"] == "step"]
    valid = run.path("train", "valid.json")
    if valid.exists() and steps:
        steps[-1]["valid_loss"] = steps[-1]["full_valid_loss"] = read_json(valid)["valid_loss"]
    tokens = next((row["tokens"] for row in reversed(rows) if row.get("tokens") is not None), None)
    suffix = re.sub(r"[^A-Za-z0-9]+", "-", job["_suffix"] or "").strip("-")
    name = f"ft:{job['model']}:ftkit:{suffix}:{job['id'][-8:]}"
    result = new_id("file-")
    jobs.files.write(result, result_csv(steps))
    with jobs.store.together():
        changes: Doc = {
            "status": "succeeded",
            "fine_tuned_model": name,
            "finished_at": now(),
            "trained_tokens": tokens,
            "result_files": [result],
            "estimated_finish": None,
        }
        if not jobs.store.update("job", job["id"], ("running",), **changes):
            return
        jobs.files.register(result, "step_metrics.csv", "fine-tune-results")
        _serve(jobs, job, name, model)
        last = steps[-1] if steps else {"step": 0}
        for step, reference in [*_snapshots(run, model), (last["step"], model)]:
            checkpoint = name if reference == model else f"{name}:ckpt-step-{step}"
            if reference != model:
                _serve(jobs, job, checkpoint, reference)
            jobs.store.add(
                "checkpoint",
                {
                    "object": "fine_tuning.job.checkpoint",
                    "id": new_id("ftckpt_"),
                    "created_at": now(),
                    "fine_tuned_model_checkpoint": checkpoint,
                    "fine_tuning_job_id": job["id"],
                    "metrics": next((s for s in steps if s["step"] == step), {"step": step}),
                    "step_number": step,
                },
                parent=job["id"],
            )
            jobs.event(job["id"], f"Checkpoint created at step {step}")
        jobs.event(job["id"], f"New fine-tuned model created: {name}")
        jobs.event(job["id"], "The job has successfully completed")
    jobs.clear(job["id"])


def _snapshots(run: RunContext, model: ModelRef) -> list[tuple[int, ModelRef]]:
    """Return (step, model) of what training kept on its way, the last step left out."""
    kept = sorted(int(path.name) for path in run.path("train", "snapshots").glob("*") if path.name.isdecimal())
    last = max((row["step"] for row in run.log_rows() if row["event"] == "step"), default=0)
    return [(step, dataclasses.replace(model, uri=f"train/snapshots/{step}")) for step in kept if step < last]


def _serve(jobs: Jobs, job: Doc, name: str, reference: ModelRef) -> None:
    jobs.store.add(
        "model",
        {
            "id": name,
            "object": "model",
            "created": now(),
            "owned_by": "org-ftkit",
            "_base": job["model"],
            "_job": job["id"],
            "_model": reference.to_dict(),
        },
    )
