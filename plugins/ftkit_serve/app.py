"""The FastAPI application: routes, and every error in OpenAI's format."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from . import routes_batches, routes_chat, routes_files, routes_jobs, routes_models
from .errors import ApiError, short
from .middleware import AuthMiddleware
from .shortage import concerns_disk, explained, log, shortage_of
from .state import Server

_FORMS = re.compile(r"/v1/files|/v1/uploads/[^/]+/parts")  # paths whose body is a form; other bodies are JSON


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
    for kind in (OSError, sqlite3.Error, MemoryError, RuntimeError):
        app.add_exception_handler(kind, _shortage)
    app.add_exception_handler(Exception, _server_error)
    return AuthMiddleware(app, key, server.max_upload)


# The handlers are coroutines: others would need a thread, which is one of the things that can be short.
async def _api_error(request: Request, error: Any) -> JSONResponse:
    return _answer(error)


def _answer(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, error.status)


async def _shortage(request: Request, error: Exception) -> JSONResponse:
    """Answer a request that failed because the machine lacks something. Another error is raised again: it is logged."""
    reason = shortage_of(error)
    if reason is None:
        raise error
    log.warning("a request failed: %s", explained(error))
    return _answer(short(reason, concerns_disk(error)))


async def _validation_error(request: Request, error: Any) -> JSONResponse:
    """Answer a body or a query that does not fit. OpenAI names the first invalid field."""
    errors = error.errors()
    first, param = errors[0], _field(errors[0])
    if first["loc"][0] == "body" and (wrong := _wrong_content_type(request)):
        return _answer(ApiError(400, wrong, "invalid_content_type"))
    if first["type"] == "missing" and not param:
        return _answer(ApiError(400, "The request has no body: send a JSON object."))
    if first["type"] == "extra_forbidden":
        return _answer(ApiError(400, f"Unrecognized request argument supplied: {param}", "unknown_parameter", param))
    if first["type"] == "missing" and param:
        return _answer(ApiError(400, f"Missing required parameter: '{param}'.", "missing_required_parameter", param))
    if first["type"] == "json_invalid":
        return _answer(ApiError(400, "The body is not valid JSON."))
    # A field of a union type has one error for each member of the union.
    said = (e["msg"].removeprefix("Value error, ") for e in errors if _field(e) == param)
    reason = ", or ".join(dict.fromkeys(said))
    where = f"value for '{param}'" if param else "body"
    return _answer(ApiError(400, f"Invalid {where}: {reason}.", "invalid_value", param))


def _wrong_content_type(request: Request) -> str | None:
    """Return what to correct if the header Content-Type is not that of a form with a file, or of JSON."""
    given = request.headers.get("content-type", "")
    kind = given.split(";")[0].strip().lower()
    said = f"not {given[:80]!r}" if given else "but it is missing"
    if _FORMS.fullmatch(request.url.path):
        right, expected = kind == "multipart/form-data", "multipart/form-data, with the file as a part of the form"
    else:
        right, expected = kind.startswith("application/") and kind.endswith(("/json", "+json")), "application/json"
    return None if right else f"The header Content-Type must be {expected}, {said}."


def _field(error: Any) -> str | None:
    """Return the dotted name of a field, without the parts that pydantic adds for a union ("literal['auto']", "str")."""
    location = [str(part) for part in error["loc"] if part not in ("body", "query", "path", "str", "int", "float")]
    names = [part for part in location if part.isidentifier() or part.isdecimal()]
    return ".".join(names) or None


async def _http_error(request: Request, error: Any) -> JSONResponse:
    if shortage_of(error):  # FastAPI makes a 400 of every error while it reads a body
        return await _shortage(request, error)
    if isinstance(error.__cause__, UnicodeDecodeError):
        return _answer(ApiError(400, "The body is not UTF-8."))
    if isinstance(error.__cause__, RecursionError):
        return _answer(ApiError(400, "The JSON of the body is nested too deeply."))
    if isinstance(error.__cause__, ValueError):
        return _answer(ApiError(400, f"The body cannot be read: {error.__cause__}."))
    if error.status_code == 404:
        return _answer(ApiError(404, f"Invalid URL ({request.method} {request.url.path})"))
    return _answer(ApiError(error.status_code, str(error.detail)))


async def _server_error(request: Request, error: Exception) -> JSONResponse:
    message = f"The server had an error: {type(error).__name__}"
    return _answer(ApiError(500, message, "server_error", type="server_error"))
