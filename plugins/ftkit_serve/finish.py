"""The end of a job: its tuned model, checkpoints and result file; its temporary files are removed."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import re
import shutil
from pathlib import Path
from typing import Any

from ftkit.directory import RunDirectory
from ftkit.files import read_json
from ftkit.records import ModelRef

from .events import metrics, record_event
from .files import Files
from .store import Database, Doc, new_id, now

ORGANIZATION = "org-ftkit"
_COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")


def finish(database: Database, files: Files, job: Doc, run: RunDirectory) -> None:
    """Add the tuned model, its checkpoints and the result file, and end the job, in one transaction."""
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
    files.write(result, result_csv(steps))
    with files.removed_on_error([result]), database.transaction():
        changes: Doc = {
            "status": "succeeded",
            "fine_tuned_model": name,
            "finished_at": now(),
            "trained_tokens": tokens,
            "result_files": [result],
            "estimated_finish": None,
        }
        if not database.update("job", job["id"], ("running",), **changes):
            return
        files.register(result, "step_metrics.csv", "fine-tune-results")
        _add_model(database, job, name, model)
        last = steps[-1] if steps else {"step": 0}
        for step, reference in [*_snapshots(run, model), (last["step"], model)]:
            checkpoint = name if reference == model else f"{name}:ckpt-step-{step}"
            if reference != model:
                _add_model(database, job, checkpoint, reference)
            database.add(
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
            record_event(database, job["id"], f"Checkpoint created at step {step}")
        record_event(database, job["id"], f"New fine-tuned model created: {name}")
        record_event(database, job["id"], "The job has successfully completed")
    remove_scratch(run.dir)


def remove_scratch(directory: Path) -> None:
    """Remove the trainer's checkpoints from the run directory of a job that ended and cannot be resumed."""
    shutil.rmtree(directory / ".work", ignore_errors=True)


def result_csv(steps: list[dict[str, Any]]) -> bytes:
    """Return the result file: CSV in base64, the format that OpenAI returns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for step in steps:
        accuracy = step.get("train_mean_token_accuracy", "")
        writer.writerow([step["step"], step.get("train_loss", ""), accuracy, step.get("valid_loss", ""), ""])
    return base64.b64encode(text.getvalue().encode())


def _snapshots(run: RunDirectory, model: ModelRef) -> list[tuple[int, ModelRef]]:
    """Return (step, model) of each snapshot that training kept, except that of the last step."""
    kept = sorted(int(path.name) for path in run.path("train", "snapshots").glob("*") if path.name.isdecimal())
    last = max((row["step"] for row in run.log_rows() if row["event"] == "step"), default=0)
    return [(step, dataclasses.replace(model, uri=f"train/snapshots/{step}")) for step in kept if step < last]


def _add_model(database: Database, job: Doc, name: str, reference: ModelRef) -> None:
    database.add(
        "model",
        {
            "id": name,
            "object": "model",
            "created": now(),
            "owned_by": ORGANIZATION,
            "_base": job["model"],
            "_job": job["id"],
            "_model": reference.to_dict(),
        },
    )
