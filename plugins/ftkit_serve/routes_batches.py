"""/v1/batches."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from .errors import ApiError, not_found
from .state import server_of
from .store import Doc, new_id, now, public
from .wire import CreateBatch

router = APIRouter(prefix="/batches")
_WINDOW = 24 * 3600  # seconds


@router.post("")
def create_batch(request: Request, body: CreateBatch) -> Doc:
    server = server_of(request)
    if body.endpoint != "/v1/chat/completions":
        raise ApiError(400, "This server supports batches for /v1/chat/completions only.", "invalid_value", "endpoint")
    if server.files.get(body.input_file_id, "input_file_id")["purpose"] != "batch":
        raise ApiError(
            400, "The input file was not uploaded with the purpose 'batch'.", "invalid_file_purpose", "input_file_id"
        )
    batch: Doc = {
        "id": new_id("batch_"),
        "object": "batch",
        "endpoint": body.endpoint,
        "input_file_id": body.input_file_id,
        "completion_window": body.completion_window,
        "status": "validating",
        "created_at": now(),
        "expires_at": now() + _WINDOW,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": body.metadata,
        "_expires_after": body.output_expires_after.seconds if body.output_expires_after else None,
    }
    server.database.add("batch", batch)
    server.batches.wake.set()
    return public(batch)


@router.get("")
def list_batches(request: Request, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> Doc:
    return server_of(request).database.page("batch", limit, after)


@router.get("/{id}")
def retrieve_batch(request: Request, id: str) -> Doc:
    batch = server_of(request).database.get("batch", id)
    if batch is None:
        raise not_found("batch", id, "batch_id")
    return public(batch)


@router.post("/{id}/cancel")
def cancel_batch(request: Request, id: str) -> Doc:
    server = server_of(request)
    found = retrieve_batch(request, id)
    batch = server.database.update(
        "batch", id, ("validating", "in_progress", "finalizing"), status="cancelling", cancelling_at=now()
    )
    if batch is None:
        raise ApiError(400, f"The batch is {found['status']}: it cannot be cancelled.", "invalid_batch_status")
    server.batches.wake.set()
    return public(batch)
