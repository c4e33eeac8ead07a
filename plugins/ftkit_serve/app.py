"""The application: routes, and every error in OpenAI's shape."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from .batches import Batches
from .engine import Engine
from .errors import ApiError
from .files import Files
from .gate import Gate
from .jobs import Jobs
from .models import ServedModel
from .store import Store


@dataclass
class Server:
    """The parts that routes use, found as `request.app.state.server`."""

    store: Store
    files: Files
    jobs: Jobs
    engine: Engine
    batches: Batches
    max_upload: int  # bytes of one file


def open_server(data: Path, models: dict[str, ServedModel], max_upload: int) -> Server:
    """Open the data directory; the caller holds its lock."""
    store = Store(data / "server.sqlite")
    files = Files(data, store)
    engine = Engine(data, store, models)
    return Server(
        store, files, Jobs(data, store, files, models), engine, Batches(data, store, files, engine), max_upload
    )


def make_app(server: Server, key: str | None, ready: Callable[[], None]) -> Gate:
    """Return the application; `ready` is called when it begins to answer. `key` None lets everybody in."""
    from . import routes_batches, routes_chat, routes_files, routes_jobs, routes_models

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server.jobs.start()
        server.batches.start()
        ready()
        yield
        server.batches.stop()
        server.jobs.stop()
        server.engine.stop()
        server.store.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.server = server
    for routes in (routes_files, routes_jobs, routes_models, routes_chat, routes_batches):
        app.include_router(routes.router, prefix="/v1")
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _crash)
    return Gate(app, key, server.max_upload)


def _api_error(request: Request, error: Any) -> JSONResponse:
    return JSONResponse(error.body, error.status)


def _invalid(request: Request, error: Any) -> JSONResponse:
    """A body or a query that does not fit: OpenAI names the first field at fault."""
    errors = error.errors()
    first, param = errors[0], _field(errors[0])
    if first["type"] == "extra_forbidden":
        return _api_error(
            request, ApiError(400, f"Unrecognized request argument supplied: {param}", "unknown_parameter", param)
        )
    if first["type"] == "missing" and param:
        return _api_error(
            request, ApiError(400, f"Missing required parameter: '{param}'.", "missing_required_parameter", param)
        )
    if first["type"] == "json_invalid":
        return _api_error(request, ApiError(400, "The body is not valid JSON."))
    # A field that may be one thing or another has an error for each.
    why = ", or ".join(dict.fromkeys(e["msg"] for e in errors if _field(e) == param))
    return _api_error(request, ApiError(400, f"Invalid value for '{param}': {why}.", "invalid_value", param))


def _field(error: Any) -> str | None:
    """Return the dotted name of a field, without what pydantic adds for a union ("literal['auto']")."""
    where = [str(part) for part in error["loc"] if part not in ("body", "query", "path")]
    names = [part for part in where if part.isidentifier() or part.isdecimal()]
    return ".".join(names) or None


def _http_error(request: Request, error: Any) -> JSONResponse:
    if error.status_code == 404:
        return _api_error(request, ApiError(404, f"Invalid URL ({request.method} {request.url.path})"))
    return _api_error(request, ApiError(error.status_code, str(error.detail)))


def _crash(request: Request, error: Exception) -> JSONResponse:
    message = f"The server had an error: {type(error).__name__}"
    return _api_error(request, ApiError(500, message, "server_error", type="server_error"))
