"""A small real HTTP server on loopback that speaks OpenAI's wire format, and fails where a test says so.

It is as strict as OpenAI with keys and unknown files (openai_spec.py checks the fields). It keeps all requests, so
that a test can count what was paid for.

    with Stub() as stub:
        stub.fail("POST", "/v1/fine_tuning/jobs", status=502, after=True)   # the job is created, its answer lost
        ... stub.url, stub.jobs, stub.answered
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

KEY = "sk-proj-TESTSECRET0123456789abcdefghijklmnop"
MODEL = "gpt-4o-mini-2024-07-18"
Json = dict[str, Any]


@dataclass
class Seen:
    """One request, and the answer to it."""

    method: str
    path: str  # with its query
    body: bytes
    content_type: str
    time: float
    key: str | None
    status: int = 0
    answer: bytes = b""


@dataclass
class Fault:
    """What happens to matching requests in place of the answer, or after the request was processed (`after`)."""

    method: str
    path: re.Pattern[str]
    times: int = 1
    status: int | None = None
    error: Json | None = None  # the `error` object; None: a plain one
    body: bytes | None = None  # the whole answer, with the status or 200
    headers: Json = field(default_factory=dict)
    reset: bool = False  # cut the connection instead of answering
    half: bool = False  # cut it in the middle of the answer
    early: bool = False  # cut it before the request's body was read
    after: bool = False  # process the request first
    delay: float = 0.0
    when: Callable[[Json], bool] | None = None  # a condition on the JSON body


class ApiError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, type: str = "invalid_request_error") -> None:
        self.status = status
        self.error = {"message": message, "type": type, "param": None, "code": code}


class Stub:
    """The server and its data. Attributes may be changed while it runs."""

    def __init__(self, latency: float = 0.0, job_seconds: float = 0.15, steps: int = 6, prefix: str = "/v1") -> None:
        self.latency, self.job_seconds, self.steps, self.prefix = latency, job_seconds, steps, prefix
        self.key: str | None = KEY
        self.models: dict[str, Json] = {}
        self.add_model(MODEL, "2027-01-14")
        self.add_model("gpt-4.1-2025-04-14", None)
        self.files: dict[str, Json] = {}
        self.contents: dict[str, bytes] = {}
        self.uploads: dict[str, Json] = {}
        self.jobs: dict[str, Json] = {}
        self.batches: dict[str, Json] = {}
        self.plan: list[str] = ["validating_files", "queued", "running"]  # the statuses of a job before it ends
        self.ending = "succeeded"
        self.job_error: Json | None = None
        self.end_with_empty_error = False  # jobs answer `error: {}` where they have no error
        self.results_base64 = True
        self.hide_jobs_for = 0.0  # seconds that a new job is missing in lists
        self.model_missing_for = 0.0  # seconds that a tuned model answers 404
        self.batch_seconds = 0.2
        self.answer: Callable[[Json], str] | None = None
        self.rate_headers: Json = {}
        self.per_second: float | None = None  # requests a second that are answered; the others get 429
        self.requests: list[Seen] = []
        self.faults: list[Fault] = []
        self.answered = 0  # chat requests that were answered, and are paid for
        self.refused = 0
        self.deployments: dict[str, Json] = {}
        self.keep_bodies = True
        self._lock = threading.RLock()
        self._count = 0
        self._allowance = (time.monotonic(), 0.0)
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self._connections: set[socket.socket] = set()

    # ---- running

    def __enter__(self) -> Stub:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        stub = self

        class Handler(_Handler):
            state = stub

        class Server(ThreadingHTTPServer):
            request_queue_size = 256
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Ignore it: the tests disconnect clients on purpose."""

        self._server = Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Stop listening and cut all connections; the data stay."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}{self.prefix}"

    def fail(self, method: str, path: str, **how: Any) -> Fault:
        """Make the next `times` requests to `path`, a regular expression, fail."""
        fault = Fault(method, re.compile(path + r"(?:\?|$)"), **how)
        self.faults.append(fault)
        return fault

    def add_model(self, id: str, shutdown: str | None) -> None:
        self.models[id] = {
            "id": id,
            "object": "model",
            "created": 1721172741,
            "owned_by": "system",
            "shutdown_date": shutdown,
        }

    def count(self, method: str, path: str) -> int:
        return sum(s.method == method and re.fullmatch(path, s.path.split("?")[0]) is not None for s in self.requests)

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

    def too_many(self) -> bool:
        """Say whether a chat request exceeds `per_second`, by a token bucket for a tenth of a second."""
        if self.per_second is None:
            return False
        with self._lock:
            last, left = self._allowance
            now = time.monotonic()
            left = min(max(1.0, self.per_second / 10), left + (now - last) * self.per_second)
            self._allowance = (now, left - 1 if left >= 1 else left)
            return left < 1


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


class _Handler(BaseHTTPRequestHandler):
    state: Stub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def setup(self) -> None:
        super().setup()
        self.state._connections.add(self.connection)

    def finish(self) -> None:
        self.state._connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def serve(self) -> None:
        stub = self.state
        fault = self.fault(lambda f: f.when is None)
        if fault and fault.early:
            return self.cut()
        body = self.rfile.read(int(self.headers.get("content-length") or 0)) if "chunked" not in (
            self.headers.get("transfer-encoding") or "") else b"".join(self.chunks())  # fmt: skip
        content_type = self.headers.get("content-type") or ""
        key = (self.headers.get("authorization") or "").removeprefix("Bearer ") or None
        seen = Seen(self.command, self.path, body if stub.keep_bodies else b"", content_type, time.time(), key)
        stub.requests.append(seen)
        parsed = self.parsed(body, content_type)
        fault = fault or self.fault(lambda f: f.when is not None and isinstance(parsed, dict) and f.when(parsed))
        if fault:
            time.sleep(fault.delay)
            answers = fault.status is not None or fault.body is not None or fault.reset or fault.half
            status, answer = 200, b""
            if fault.after or not answers:
                status, answer = self.done(parsed, key)
            if fault.reset:
                return self.cut()
            if fault.half:
                return self.send(200, answer or b'{"id": "half", "object": ' + b" " * 200, seen, cut=True)
            if answers:
                status = fault.status or 200
                error = (
                    {"message": "a fault of the test", "type": "server_error", "param": None, "code": None}
                    if fault.error is None
                    else fault.error
                )
                answer = fault.body if fault.body is not None else json.dumps({"error": error}).encode()
            return self.send(status, answer, seen, fault.headers)
        is_chat = self.path.split("?")[0].endswith("/chat/completions")
        if is_chat and stub.too_many():
            stub.refused += 1
            error = {"message": "Rate limit reached", "type": "requests", "param": None, "code": "rate_limit_exceeded"}
            return self.send(429, json.dumps({"error": error}).encode(), seen, {"retry-after-ms": "50"})
        if is_chat:
            time.sleep(stub.latency)
        status, answer = self.done(parsed, key)
        self.send(status, answer, seen, stub.rate_headers if is_chat else {})

    do_GET = do_POST = do_PUT = serve

    def fault(self, fits: Callable[[Fault], bool]) -> Fault | None:
        with self.state._lock:
            for fault in self.state.faults:
                if fault.times > 0 and fault.method == self.command and fault.path.match(self.path) and fits(fault):
                    fault.times -= 1
                    return fault
        return None

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def parsed(self, body: bytes, content_type: str) -> Any:
        if content_type.startswith("multipart/form-data"):
            return _multipart(body, content_type)
        return json.loads(body) if body else None

    def done(self, parsed: Any, key: str | None) -> tuple[int, bytes]:
        stub = self.state
        try:
            if stub.key is not None and key != stub.key and "/deployments/" not in self.path:
                # OpenAI repeats a part of the key in this message; the stub repeats all of it.
                raise ApiError(
                    401, f"Incorrect API key provided: {key}. You can find your API key at ...", "invalid_api_key"
                )
            parts = urlsplit(self.path)
            answer = stub.route(self.command, parts.path, dict(parse_qsl(parts.query)), parsed)
            return 200, answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        except ApiError as error:
            return error.status, json.dumps({"error": error.error}).encode()

    def send(self, status: int, answer: bytes, seen: Seen, headers: Json | None = None, cut: bool = False) -> None:
        seen.status = status
        seen.answer = answer if self.state.keep_bodies else b""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("x-request-id", "req_stub")
        for name, value in (headers or {}).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(answer[: len(answer) // 2] if cut else answer)
        self.wfile.flush()
        if cut:
            self.cut()

    def cut(self) -> None:
        """Reset the connection: the client sees it break."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


def _multipart(body: bytes, content_type: str) -> dict[str, tuple[str, bytes]]:
    """Return the parts of a form by name: (filename, content)."""
    from werkzeug.formparser import parse_form_data

    environ = {
        "wsgi.input": io.BytesIO(body),
        "CONTENT_LENGTH": str(len(body)),
        "CONTENT_TYPE": content_type,
        "REQUEST_METHOD": "POST",
    }
    _, form, files = parse_form_data(environ)
    found = {name: ("", value.encode()) for name, value in form.items()}
    return found | {name: (f.filename or "", f.read()) for name, f in files.items()}


def main() -> None:
    """Serve in a process of its own until its standard input closes (for measurements): `openai_stub.py LATENCY`."""
    import sys

    with Stub(latency=float(sys.argv[1])) as stub:
        stub.keep_bodies = False
        print(stub.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
