"""The FastAPI application: routes, and every error in OpenAI's format."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from . import routes_batches, routes_chat, routes_files, routes_jobs, routes_models
from .errors import ApiError
from .middleware import AuthMiddleware
from .state import Server


def make_app(server: Server, key: str | None, ready: Callable[[], None]) -> AuthMiddleware:
    """Return the application. It calls `ready` when it starts to answer. `key` None: clients need no key."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server.jobs.start()
        server.batches.start()
        ready()
        yield
        server.batches.stop()
        server.jobs.stop()
        server.engine.stop()
        server.database.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.server = server
    for routes in (routes_files, routes_jobs, routes_models, routes_chat, routes_batches):
        app.include_router(routes.router, prefix="/v1")
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _server_error)
    return AuthMiddleware(app, key, server.max_upload)


def _api_error(request: Request, error: Any) -> JSONResponse:
    return JSONResponse(error.body, error.status)


def _validation_error(request: Request, error: Any) -> JSONResponse:
    """Answer a body or a query that does not fit. OpenAI names the first invalid field."""
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
    # A field of a union type has one error for each member of the union.
    reason = ", or ".join(dict.fromkeys(e["msg"] for e in errors if _field(e) == param))
    return _api_error(request, ApiError(400, f"Invalid value for '{param}': {reason}.", "invalid_value", param))


def _field(error: Any) -> str | None:
    """Return the dotted name of a field, without the parts that pydantic adds for a union ("literal['auto']")."""
    location = [str(part) for part in error["loc"] if part not in ("body", "query", "path")]
    names = [part for part in location if part.isidentifier() or part.isdecimal()]
    return ".".join(names) or None


def _http_error(request: Request, error: Any) -> JSONResponse:
    if error.status_code == 404:
        return _api_error(request, ApiError(404, f"Invalid URL ({request.method} {request.url.path})"))
    return _api_error(request, ApiError(error.status_code, str(error.detail)))


def _server_error(request: Request, error: Exception) -> JSONResponse:
    message = f"The server had an error: {type(error).__name__}"
    return _api_error(request, ApiError(500, message, "server_error", type="server_error"))
