"""/v1/models."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from .errors import ApiError
from .models import ServedModel
from .state import server_of
from .store import Doc

router = APIRouter(prefix="/models")


@router.get("")
def list_models(request: Request) -> Doc:
    server = server_of(request)
    base = [_shown(name, entry, None) for name, entry in server.engine.models.items()]
    tuned = [_shown(doc["id"], server.engine.models.get(doc["_base"]), doc) for doc in server.database.all("model")]
    runs = [_shown(name, served.entry, None) for name, served in server.engine.runs.items()]
    return {"object": "list", "data": base + runs + tuned}


@router.get("/{name:path}")
def retrieve_model(request: Request, name: str) -> Doc:
    return _shown(name, *server_of(request).engine.find(name))


@router.delete("/{name:path}")
def delete_model(request: Request, name: str) -> Doc:
    server = server_of(request)
    _, doc = server.engine.find(name)
    if doc is None:
        raise ApiError(403, "A base model cannot be deleted.", "permission_denied", "model")
    server.database.delete("model", name)
    server.engine.forget(doc)
    return {"id": name, "object": "model", "deleted": True}


def _shown(name: str, entry: ServedModel | None, doc: Doc | None) -> dict[str, Any]:
    """Return a model in OpenAI's format. A tuned model has the shutdown date of its base model."""
    shutdown = entry.shutdown_date.isoformat() if entry and entry.shutdown_date else None
    created, owner = (doc["created"], doc["owned_by"]) if doc else (0, "ftkit")
    return {"id": name, "object": "model", "created": created, "owned_by": owner, "shutdown_date": shutdown}
