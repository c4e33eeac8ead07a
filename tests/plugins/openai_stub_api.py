"""What the stub's server answers: its files, jobs, models, batches and deployments, and one method per request."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openai_stub import Fault

Json = dict[str, Any]


class ApiError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, type: str = "invalid_request_error") -> None:
        self.status = status
        self.error = {"message": message, "type": type, "param": None, "code": code}


class Endpoints:
    """The data of a provider. Attributes may be changed while the server runs."""

    def __init__(self, job_seconds: float, steps: int, prefix: str) -> None:
        self.job_seconds, self.steps, self.prefix = job_seconds, steps, prefix
        self.models: dict[str, Json] = {}
        self.files: dict[str, Json] = {}
        self.contents: dict[str, bytes] = {}
        self.uploads: dict[str, Json] = {}
        self.jobs: dict[str, Json] = {}
        self.batches: dict[str, Json] = {}
        self.deployments: dict[str, Json] = {}
        self.plan: list[str] = ["validating_files", "queued", "running"]  # the statuses of a job before it ends
        self.ending = "succeeded"
        self.job_error: Json | None = None
        self.end_with_empty_error = False  # jobs answer `error: {}` where they have no error
        self.results_base64 = True
        self.hide_jobs_for = 0.0  # seconds that a new job is missing in lists
        self.model_missing_for = 0.0  # seconds that a tuned model answers 404
        self.batch_seconds = 0.2
        self.answer: Callable[[Json], str] | None = None
        self.answered = 0  # chat requests that were answered, and are paid for
        self.faults: list[Fault] = []
        self._lock = threading.RLock()
        self._count = 0

    def add_model(self, id: str, shutdown: str | None) -> None:
        self.models[id] = {
            "id": id,
            "object": "model",
            "created": 1721172741,
            "owned_by": "system",
            "shutdown_date": shutdown,
        }

    # ---- one method per request; each returns a JSON document or bytes, or raises ApiError

    def new_id(self, prefix: str) -> str:
        with self._lock:
            self._count += 1
            return f"{prefix}{self._count:06d}"

    def route(self, method: str, path: str, query: dict[str, str], body: Any) -> Json | bytes:
        path = path[len(self.prefix) :] if path.startswith(self.prefix) else path
        for pattern, name in _ROUTES:
            found = re.fullmatch(pattern, f"{method} {path}")
            if found:
                with self._lock:
                    answer: Json | bytes = getattr(self, name)(query, body, *found.groups())
                return answer
        raise ApiError(404, f"Invalid URL ({method} {path})")

    def list_models(self, query: dict[str, str], body: Any) -> Json:
        return {"object": "list", "data": list(self.models.values())}

    def get_model(self, query: dict[str, str], body: Any, id: str) -> Json:
        if id not in self.models:
            raise ApiError(404, f"The model '{id}' does not exist", "model_not_found")
        return {k: v for k, v in self.models[id].items() if k[0] != "_"}

    def add_file(self, name: str, data: bytes, purpose: str) -> Json:
        id = self.new_id("file-")
        self.contents[id] = data
        self.files[id] = {"id": id, "object": "file", "bytes": len(data), "created_at": int(time.time()), "filename": name,
                          "purpose": purpose, "status": "processed", "status_details": None}  # fmt: skip
        return self.files[id]

    def post_file(self, query: dict[str, str], body: Any) -> Json:
        return _without_none(self.add_file(body["file"][0], body["file"][1], body["purpose"][1].decode()))

    def list_files(self, query: dict[str, str], body: Any) -> Json:
        found = [_without_none(f) for f in self.files.values() if query.get("purpose") in (None, f["purpose"])]
        return {"object": "list", "data": found[::-1], "has_more": False, **_ends(found[::-1])}

    def get_file(self, query: dict[str, str], body: Any, id: str) -> Json:
        if id not in self.files:
            raise ApiError(404, f"No such File object: {id}")
        return _without_none(self.files[id])

    def get_content(self, query: dict[str, str], body: Any, id: str) -> bytes:
        self.get_file(query, body, id)
        return self.contents[id]

    def post_upload(self, query: dict[str, str], body: Any) -> Json:
        id = self.new_id("upload_")
        self.uploads[id] = {"id": id, "object": "upload", "status": "pending", "created_at": int(time.time()),
                            "expires_at": int(time.time()) + 3600, **{k: body[k] for k in ("filename", "bytes", "purpose")}, "_parts": {}}  # fmt: skip
        return _public(self.uploads[id])

    def post_part(self, query: dict[str, str], body: Any, upload: str) -> Json:
        id = self.new_id("part_")
        self.uploads[upload]["_parts"][id] = body["data"][1]
        return {"id": id, "object": "upload.part", "created_at": int(time.time()), "upload_id": upload}

    def complete_upload(self, query: dict[str, str], body: Any, upload: str) -> Json:
        entry = self.uploads[upload]
        data = b"".join(entry["_parts"][id] for id in body["part_ids"])
        if len(data) != entry["bytes"]:
            raise ApiError(400, "The number of bytes does not match")
        entry |= {"status": "completed", "file": self.add_file(entry["filename"], data, entry["purpose"])}
        return _public({**entry, "file": _without_none(entry["file"])})

    def post_job(self, query: dict[str, str], body: Any) -> Json:
        if body["training_file"] not in self.files:
            raise ApiError(400, f"File with id '{body['training_file']}' does not exist", "invalid_training_file")
        if body["model"] not in self.models:
            raise ApiError(404, f"The model `{body['model']}` does not exist", "model_not_found")
        id = self.new_id("ftjob-")
        wanted = (
            (body.get("method") or {}).get("supervised", {}).get("hyperparameters") or body.get("hyperparameters") or {}
        )
        self.jobs[id] = {
            "object": "fine_tuning.job", "id": id, "model": body["model"], "created_at": int(time.time()), "finished_at": None,
            "fine_tuned_model": None, "organization_id": "org-1", "result_files": [], "status": self.plan[0],
            "validation_file": body.get("validation_file"), "training_file": body["training_file"], "trained_tokens": None,
            "hyperparameters": {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto",
                                **{k: v for k, v in wanted.items() if k in ("n_epochs", "batch_size", "learning_rate_multiplier")}},
            "error": {} if self.end_with_empty_error else None, "seed": body.get("seed", 0), "estimated_finish": None, "metadata": body.get("metadata"),
            "suffix": body.get("suffix"), "_began": time.monotonic(), "_plan": list(self.plan),
        }  # fmt: skip
        return self.shown(id)

    def shown(self, id: str) -> Json:
        """Return a job as it is now: it goes through its plan, then ends."""
        job = self.jobs[id]
        spent = time.monotonic() - job["_began"]
        if job["status"] not in ("succeeded", "failed", "cancelled"):
            place = int(spent / max(self.job_seconds, 1e-6) * len(job["_plan"]))
            if place < len(job["_plan"]):
                job["status"] = job["_plan"][place]
                running = job["status"] == "running"
                job["estimated_finish"] = int(time.time()) + 600 if running else None
            else:
                self.end(job)
        return _public(job)

    def end(self, job: Json) -> None:
        job |= {"status": self.ending, "finished_at": int(time.time()), "estimated_finish": None}
        if self.ending == "failed":
            job["error"] = {} if self.end_with_empty_error else self.job_error
        if self.ending != "succeeded":
            return
        tuned = f"ft:{job['model']}:org::{job['id'][-6:]}"
        self.add_model(tuned, self.models[job["model"]].get("shutdown_date"))
        self.models[tuned]["_since"] = time.monotonic()
        rows = self.contents[job["training_file"]].decode("utf-8-sig").splitlines()
        tokens = sum(len(line) // 4 for line in rows)
        csv = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n" + "".join(
            f"{s},{2 / s:.5f},{1 - 1 / (s + 1):.5f},{2.5 / s if s % 3 == 0 else ''},\n"
            for s in range(1, self.steps + 1)
        )
        data = base64.b64encode(csv.encode()) if self.results_base64 else csv.encode()
        results = self.add_file("step_metrics.csv", data, "fine-tune-results")["id"]
        job |= {"fine_tuned_model": tuned, "trained_tokens": tokens, "result_files": [results]}

    def list_jobs(self, query: dict[str, str], body: Any) -> Json:
        wanted = {k[9:-1]: v for k, v in query.items() if k.startswith("metadata[")}
        ids = [
            id for id, job in self.jobs.items()
            if wanted.items() <= (job["metadata"] or {}).items() and time.monotonic() - job["_began"] >= self.hide_jobs_for
        ]  # fmt: skip
        return _page([self.shown(id) for id in ids][::-1], query)

    def get_job(self, query: dict[str, str], body: Any, id: str) -> Json:
        if id not in self.jobs:
            raise ApiError(404, f"Could not find fine tune: {id}", "fine_tune_not_found")
        return self.shown(id)

    def cancel_job(self, query: dict[str, str], body: Any, id: str) -> Json:
        job = self.jobs[id]
        if self.shown(id)["status"] in ("succeeded", "failed", "cancelled"):
            raise ApiError(400, f"Job has already completed: {id}")
        job["status"] = "cancelled"
        return self.shown(id)

    def list_events(self, query: dict[str, str], body: Any, id: str) -> Json:
        job = self.shown(id)
        spent = time.monotonic() - self.jobs[id]["_began"]
        done = (
            self.steps
            if job["status"] == "succeeded"
            else min(self.steps, int(self.steps * spent / max(self.job_seconds, 1e-6)))
        )
        events = [{"object": "fine_tuning.job.event", "id": f"ftevent-{id[-6:]}-0", "created_at": job["created_at"],
                   "level": "info", "message": "Created fine-tuning job", "data": {}, "type": "message"}]  # fmt: skip
        events += [
            {"object": "fine_tuning.job.event", "id": f"ftevent-{id[-6:]}-{s}", "created_at": job["created_at"], "level": "info",
             "message": f"Step {s}/{self.steps}: training loss={2 / s:.2f}", "type": "metrics",
             "data": {"step": s, "train_loss": 2 / s, "total_steps": self.steps, "train_mean_token_accuracy": 0.5}}
            for s in range(1, done + 1)
        ]  # fmt: skip
        return _page(events[::-1], query)

    def list_checkpoints(self, query: dict[str, str], body: Any, id: str) -> Json:
        job = self.shown(id)
        if job["status"] != "succeeded":
            return _page([], query)
        half = max(1, self.steps // 2)
        return _page([
            {"object": "fine_tuning.job.checkpoint", "id": f"ftckpt_{id[-6:]}_{s}", "created_at": job["created_at"], "step_number": s,
             "fine_tuned_model_checkpoint": f"{job['fine_tuned_model']}:ckpt-step-{s}", "fine_tuning_job_id": id,
             "metrics": {"step": s, "train_loss": 2 / s}}
            for s in (self.steps, half)
        ], query)  # fmt: skip

    def chat(self, query: dict[str, str], body: Any) -> Json:
        model = self.models.get(body["model"]) or next(
            (m for m in self.deployments.values() if m["name"] == body["model"]), None
        )
        if model is None or (
            time.monotonic() - model.get("_since", 0.0) < self.model_missing_for and "_since" in model
        ):
            raise ApiError(
                404, f"The model `{body['model']}` does not exist or you do not have access to it.", "model_not_found"
            )
        text = body["messages"][-1]["content"]
        tuned = body["model"].startswith("ft:") or body["model"] in self.deployments
        answer = self.answer(body) if self.answer else text.upper() if tuned else text
        self.answered += 1
        choice = {
            "finish_reason": "stop",
            "logprobs": None,
            "message": {"role": "assistant", "content": answer, "refusal": None},
        }
        n = body.get("n") or 1
        used = {"prompt_tokens": len(text) // 4 + 8, "completion_tokens": n * (len(answer) // 4 + 1)}
        return {
            "id": self.new_id("chatcmpl-"), "object": "chat.completion", "created": int(time.time()), "model": body["model"],
            "system_fingerprint": "fp_tuned" if tuned else "fp_base",
            "choices": [{"index": i, **choice} for i in range(n)], "usage": {**used, "total_tokens": sum(used.values())},
        }  # fmt: skip

    def post_batch(self, query: dict[str, str], body: Any) -> Json:
        id = self.new_id("batch_")
        lines = [json.loads(line) for line in self.contents[body["input_file_id"]].decode().splitlines()]
        self.batches[id] = {
            "id": id, "object": "batch", "endpoint": body["endpoint"], "input_file_id": body["input_file_id"],
            "completion_window": body["completion_window"], "status": "in_progress", "created_at": int(time.time()),
            "metadata": body.get("metadata"), "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
            "_began": time.monotonic(), "_lines": lines,
        }  # fmt: skip
        return _public(self.batches[id])

    def get_batch(self, query: dict[str, str], body: Any, id: str) -> Json:
        batch = self.batches[id]
        cancelled = batch["status"] == "cancelling"
        if cancelled or (batch["status"] == "in_progress" and time.monotonic() - batch["_began"] >= self.batch_seconds):
            good, bad = [], []
            lines = batch["_lines"]
            for line in lines[: len(lines) // 2] if cancelled else lines:  # the answered part is paid for
                row = {"id": self.new_id("batch_req_"), "custom_id": line["custom_id"], "error": None}
                try:
                    if any(f.times > 0 and f.when and f.when(line["body"]) for f in self.faults):
                        raise ApiError(400, "this line is refused")
                    answer = self.chat({}, line["body"])
                    good.append({**row, "response": {"status_code": 200, "request_id": "r", "body": answer}})
                except ApiError as error:
                    bad.append(
                        {
                            **row,
                            "response": {
                                "status_code": error.status,
                                "request_id": "r",
                                "body": {"error": error.error},
                            },
                        }
                    )
            for name, rows in (("output_file_id", good), ("error_file_id", bad)):
                if rows:
                    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
                    batch[name] = self.add_file(f"{name}.jsonl", data, "batch_output")["id"]
            batch["status"] = "cancelled" if cancelled else "completed"
            batch["request_counts"] = {"total": len(batch["_lines"]), "completed": len(good), "failed": len(bad)}
        return _public(batch)

    def list_batches(self, query: dict[str, str], body: Any) -> Json:
        return _page([_public(b) for b in self.batches.values()][::-1], query)

    def cancel_batch(self, query: dict[str, str], body: Any, id: str) -> Json:
        if self.batches[id]["status"] == "in_progress":
            self.batches[id]["status"] = "cancelling"
        return _public(self.batches[id])

    # ---- the deployment steps of Azure and Nebius

    def put_deployment(self, query: dict[str, str], body: Any, name: str) -> Json:
        self.deployments[name] = {"name": name, "request": body}
        return {"properties": {"provisioningState": "Creating"}}

    def get_deployment(self, query: dict[str, str], body: Any, name: str) -> Json:
        return {"properties": {"provisioningState": "Succeeded"}}

    def post_adapter(self, query: dict[str, str], body: Any) -> Json:
        name = f"{body['base_model']}-LoRa:{body['name']}-AbCd"
        self.deployments[name] = {"name": name, "status": "active", "request": body}
        return {"name": body["name"], "status": "validating"}

    def list_adapters(self, query: dict[str, str], body: Any) -> Json:
        return {"models": list(self.deployments.values())}


_ROUTES = [
    (r"GET /models", "list_models"),
    (r"GET /models/(.+)", "get_model"),
    (r"POST /files", "post_file"),
    (r"GET /files", "list_files"),
    (r"GET /files/([^/]+)", "get_file"),
    (r"GET /files/([^/]+)/content", "get_content"),
    (r"POST /uploads", "post_upload"),
    (r"POST /uploads/([^/]+)/parts", "post_part"),
    (r"POST /uploads/([^/]+)/complete", "complete_upload"),
    (r"POST /fine_tuning/jobs", "post_job"),
    (r"GET /fine_tuning/jobs", "list_jobs"),
    (r"GET /fine_tuning/jobs/([^/]+)", "get_job"),
    (r"POST /fine_tuning/jobs/([^/]+)/cancel", "cancel_job"),
    (r"GET /fine_tuning/jobs/([^/]+)/events", "list_events"),
    (r"GET /fine_tuning/jobs/([^/]+)/checkpoints", "list_checkpoints"),
    (r"POST /chat/completions", "chat"),
    (r"POST /batches", "post_batch"),
    (r"GET /batches", "list_batches"),
    (r"GET /batches/([^/]+)", "get_batch"),
    (r"POST /batches/([^/]+)/cancel", "cancel_batch"),
    (r"PUT .*/deployments/([^/]+)", "put_deployment"),
    (r"GET .*/deployments/([^/]+)", "get_deployment"),
    (r"POST /v0/models", "post_adapter"),
    (r"GET /v0/models", "list_adapters"),
]


def _public(doc: Json) -> Json:
    return {k: v for k, v in doc.items() if not k.startswith("_")}


def _without_none(doc: Json) -> Json:
    return {k: v for k, v in doc.items() if v is not None}


def _ends(data: list[Json]) -> Json:
    return {"first_id": data[0]["id"] if data else "", "last_id": data[-1]["id"] if data else ""}


def _page(data: list[Json], query: dict[str, str]) -> Json:
    """Return one page of a list that is newest first."""
    limit = int(query.get("limit", 20))
    start = next((i + 1 for i, entry in enumerate(data) if entry["id"] == query.get("after")), 0)
    return {"object": "list", "data": data[start : start + limit], "has_more": len(data) > start + limit,
            **_ends(data[start : start + limit])}  # fmt: skip
