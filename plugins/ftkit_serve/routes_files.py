"""/v1/files and /v1/uploads."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Depends, File, Form, Query, Request, UploadFile
from fastapi.responses import FileResponse

from .errors import ApiError, not_found
from .state import Server, server_of
from .store import Doc, new_id, now, public
from .wire import CompleteUpload, CreateUpload, FilePurpose

router = APIRouter()
_UPLOAD_LIFETIME = 3600  # seconds, as at OpenAI


def _only(*names: str) -> Any:
    """Return a dependency that rejects a form with other fields than these."""

    async def check(request: Request) -> None:
        for field in await request.form():  # FastAPI has read it before
            if field not in names:
                raise ApiError(
                    400, f"Unrecognized request argument supplied: {field[:80]}", "unknown_parameter", field[:80]
                )

    return Depends(check)


@router.post("/files", dependencies=[_only("file", "purpose", "expires_after[anchor]", "expires_after[seconds]")])
def create_file(
    request: Request,
    file: Annotated[UploadFile, File()],
    purpose: Annotated[str, Form()],
    anchor: Annotated[str | None, Form(alias="expires_after[anchor]")] = None,
    seconds: Annotated[int | None, Form(alias="expires_after[seconds]", ge=3600, le=2_592_000)] = None,
) -> Doc:
    if purpose not in get_args(FilePurpose):
        raise ApiError(
            400, f"'{purpose[:40]}' is not one of {list(get_args(FilePurpose))}.", "invalid_value", "purpose"
        )
    server = server_of(request)
    if (file.size or 0) > server.max_upload:
        raise ApiError(
            413,
            f"The file is larger than {server.max_upload >> 20} MB: use an upload in parts.",
            "file_too_large",
            "file",
        )
    return server.files.add(file.filename or "file", purpose, file.file, expires_after=seconds)


@router.get("/files")
def list_files(
    request: Request,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: str = "desc",
    after: str | None = None,
) -> Doc:
    def matches(doc: Doc) -> bool:
        return purpose in (None, doc["purpose"]) and doc.get("expires_at", now() + 1) > now()

    return server_of(request).database.page("file", limit, after, oldest_first=order == "asc", where=matches)


@router.get("/files/{id}")
def retrieve_file(request: Request, id: str) -> Doc:
    return public(server_of(request).files.get(id))


@router.get("/files/{id}/content")
def file_content(request: Request, id: str) -> FileResponse:
    files = server_of(request).files
    path = files.path(files.get(id)["id"])
    if not path.exists():  # a deletion that was interrupted
        raise not_found("File object", id, "id")
    return FileResponse(path, media_type="application/octet-stream")


@router.delete("/files/{id}")
def delete_file(request: Request, id: str) -> Doc:
    server_of(request).files.delete(id)
    return {"id": id, "object": "file", "deleted": True}


# ---- uploads in parts


@router.post("/uploads")
def create_upload(request: Request, body: CreateUpload) -> Doc:
    server = server_of(request)
    if body.bytes > 16 * server.max_upload:
        raise ApiError(413, f"An upload has at most {16 * server.max_upload >> 20} MB.", "file_too_large", "bytes")
    doc: Doc = {
        "id": new_id("upload_"),
        "object": "upload",
        "bytes": body.bytes,
        "created_at": now(),
        "filename": body.filename,
        "purpose": body.purpose,
        "status": "pending",
        "expires_at": now() + _UPLOAD_LIFETIME,
        "_expires_after": body.expires_after.seconds if body.expires_after else None,
    }
    return public(server.database.add("upload", doc))


@router.post("/uploads/{id}/parts", dependencies=[_only("data")])
def add_part(request: Request, id: str, data: Annotated[UploadFile, File()]) -> Doc:
    server = server_of(request)
    upload = _pending(server, id)
    sent = sum(part["_bytes"] for part in server.database.all("part", parent=id))
    if sent + (data.size or 0) > upload["bytes"]:
        raise ApiError(
            400,
            f"The parts have more than the {upload['bytes']} bytes that the upload was created for.",
            "invalid_upload",
            "data",
        )
    part = new_id("part_")
    size = server.files.write(part, data.file)
    doc = {"id": part, "object": "upload.part", "created_at": now(), "upload_id": id, "_bytes": size}
    with server.files.removed_on_error([part]):
        return public(server.database.add("part", doc, parent=id))


@router.post("/uploads/{id}/complete")
def complete_upload(request: Request, id: str, body: CompleteUpload) -> Doc:
    server = server_of(request)
    upload = _pending(server, id)
    parts = {part["id"]: part for part in server.database.all("part", parent=id)}
    if unknown := [part for part in body.part_ids if part not in parts]:
        raise ApiError(400, f"The upload has no part {unknown[0]!r}.", "invalid_upload", "part_ids")
    if len(set(body.part_ids)) != len(body.part_ids):
        raise ApiError(400, "A part is listed twice.", "invalid_upload", "part_ids")
    total = sum(parts[part]["_bytes"] for part in body.part_ids)
    if total != upload["bytes"]:
        raise ApiError(
            400,
            f"The parts have {total} bytes, but the upload was created for {upload['bytes']} bytes.",
            "invalid_upload",
            "part_ids",
        )
    file = new_id("file-")
    server.files.write(file, *[server.files.path(part) for part in body.part_ids])
    if body.md5 is not None and body.md5.lower() != _md5(server.files.path(file)):
        server.files.discard([file])
        raise ApiError(400, "The md5 checksum does not match the uploaded parts.", "invalid_upload", "md5")
    with server.files.removed_on_error([file]), server.database.transaction():
        done = server.database.update("upload", id, ("pending",), status="completed")
        if done is None:
            raise _not_pending(server, id)
        file_object = server.files.register(file, upload["filename"], upload["purpose"], upload["_expires_after"])
        server.database.update("upload", id, file=file_object)
    server.files.discard(parts)
    return public({**done, "file": file_object})


@router.post("/uploads/{id}/cancel")
def cancel_upload(request: Request, id: str) -> Doc:
    server = server_of(request)
    _pending(server, id)
    done = server.database.update("upload", id, ("pending",), status="cancelled")
    if done is None:
        raise _not_pending(server, id)
    server.files.discard(part["id"] for part in server.database.all("part", parent=id))
    return public(done)


def _pending(server: Server, id: str) -> Doc:
    """Return an upload that takes parts. Raises an ApiError if there is none, or if it ended."""
    upload = server.database.get("upload", id)
    if upload is None:
        raise not_found("upload", id, "upload_id")
    if upload["status"] == "pending" and upload["expires_at"] <= now():
        server.database.update("upload", id, ("pending",), status="expired")
        upload["status"] = "expired"
    if upload["status"] != "pending":
        raise _not_pending(server, id)
    return upload


def _not_pending(server: Server, id: str) -> ApiError:
    upload = server.database.get("upload", id)
    return ApiError(400, f"The upload is {upload['status'] if upload else 'gone'}.", "invalid_upload", "upload_id")


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
