"""/v1/fine_tuning/jobs."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import APIRouter, Query, Request

from .errors import ApiError
from .events import record_event
from .finish import ORGANIZATION
from .jobs import ACTIVE
from .state import server_of
from .store import Doc, new_id, now, public
from .wire import CreateJob, Hyperparameters

router = APIRouter(prefix="/fine_tuning/jobs")


@router.post("")
def create_job(request: Request, body: CreateJob) -> Doc:
    server = server_of(request)
    if body.model not in server.engine.models:
        names = ", ".join(server.engine.models)
        server.engine.find(body.model)  # raises a 404 for an unknown name
        raise ApiError(
            400, f"Model {body.model} cannot be fine-tuned. Models that can: {names}", "model_not_available", "model"
        )
    for param in ("training_file", "validation_file"):
        id = getattr(body, param)
        if id is not None and server.files.get(id, param)["purpose"] != "fine-tune":
            raise ApiError(
                400, f"File '{id}' was not uploaded with the purpose 'fine-tune'.", "invalid_file_purpose", param
            )
    if body.method and body.hyperparameters:
        raise ApiError(
            400, "Send `method` only: `hyperparameters` is its deprecated form.", "invalid_value", "hyperparameters"
        )
    chosen = body.method.supervised.hyperparameters if body.method else body.hyperparameters or Hyperparameters()
    requested = chosen.model_dump()
    job: Doc = {
        "object": "fine_tuning.job",
        "id": new_id("ftjob-"),
        "model": body.model,
        "created_at": now(),
        "finished_at": None,
        "fine_tuned_model": None,
        "organization_id": ORGANIZATION,
        "result_files": [],
        "status": "validating_files",
        "training_file": body.training_file,
        "validation_file": body.validation_file,
        "hyperparameters": requested,
        "method": {"type": "supervised", "supervised": {"hyperparameters": requested}},
        "trained_tokens": None,
        "error": None,
        "seed": secrets.randbelow(2**31) if body.seed is None else body.seed,
        "estimated_finish": None,
        "integrations": [entry.model_dump(exclude_none=True) for entry in body.integrations or []],
        "metadata": body.metadata,
        "_suffix": body.suffix,
        "_requested": requested,
        "_started": False,
        "_log_read": 0,
        "_step": 0,
        "_clock": None,
    }
    with server.database.transaction():
        server.database.add("job", job)
        record_event(server.database, job["id"], f"Created fine-tuning job: {job['id']}")
        if body.integrations:
            message = "Integrations are stored with the job. This server does not run them."
            record_event(server.database, job["id"], message, "warn")
    server.jobs.wake.set()
    return public(job)


@router.get("")
def list_jobs(request: Request, after: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> Doc:
    query = request.query_params
    pairs = {key[9:-1]: value for key, value in query.items() if key.startswith("metadata[") and key.endswith("]")}
    without = query.get("metadata") == "null"  # only jobs without metadata

    def matches(job: Doc) -> bool:
        metadata = job["metadata"] or {}
        return not (without and metadata) and all(metadata.get(key) == value for key, value in pairs.items())

    return server_of(request).database.page("job", limit, after, where=matches)


@router.get("/{id}")
def retrieve_job(request: Request, id: str) -> Doc:
    return public(_job(request, id))


@router.post("/{id}/cancel")
def cancel_job(request: Request, id: str) -> Doc:
    return _change(request, id, ACTIVE, "cancelled", "The job was cancelled", finished_at=now(), estimated_finish=None)


@router.post("/{id}/pause")
def pause_job(request: Request, id: str) -> Doc:
    return _change(request, id, ("queued", "running"), "paused", "The job was paused", estimated_finish=None)


@router.post("/{id}/resume")
def resume_job(request: Request, id: str) -> Doc:
    return _change(request, id, ("paused",), "queued", "The job was resumed")


@router.get("/{id}/events")
def list_events(
    request: Request, id: str, after: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 20
) -> Doc:
    _job(request, id)
    return server_of(request).database.page("event", limit, after, parent=id)


@router.get("/{id}/checkpoints")
def list_checkpoints(
    request: Request, id: str, after: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 10
) -> Doc:
    _job(request, id)
    return server_of(request).database.page("checkpoint", limit, after, parent=id)


def _job(request: Request, id: str) -> Doc:
    job = server_of(request).database.get("job", id)
    if job is None:
        raise ApiError(404, f"Could not find fine tune: {id}", "fine_tune_not_found", "fine_tuning_job_id")
    return job


def _change(request: Request, id: str, if_status: tuple[str, ...], status: str, message: str, **changes: object) -> Doc:
    """Change the status of a job whose status is in `if_status`. The thread of `Jobs` acts on it."""
    server = server_of(request)
    with server.database.transaction():
        job = server.database.update("job", id, if_status, status=status, **changes)
        if job is None:
            found = _job(request, id)["status"]
            raise ApiError(400, f"The job is {found}: it cannot become {status}.", "invalid_job_status")
        record_event(server.database, id, message)
    server.jobs.wake.set()
    return public(job)
