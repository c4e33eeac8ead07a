"""Errors in OpenAI's format: a status, and a body {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """An error response. `status`: HTTP status. `param`: the invalid field. `code`: the kind of error, for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        type: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body: dict[str, Any] = {"error": {"message": message, "type": type, "param": param, "code": code}}


def not_found(what: str, id: str, param: str) -> ApiError:
    return ApiError(404, f"No such {what}: {id}", "not_found", param)


def model_not_found(id: str) -> ApiError:
    return ApiError(
        404, f"The model `{id}` does not exist or you do not have access to it.", "model_not_found", "model"
    )


def stopping() -> ApiError:
    return ApiError(503, "The server is stopping: retry when it runs again.", "server_error", type="server_error")


def short(reason: str, disk: bool) -> ApiError:
    """Return the error of a request that cannot be served because the machine lacks disk space or something else."""
    status, code = (507, "insufficient_storage") if disk else (503, "resource_shortage")
    return ApiError(status, f"The server cannot do this now: {reason}. Retry later.", code, type="server_error")
