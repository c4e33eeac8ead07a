"""Upload a file once: one with the same hash that is already there is used."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from ftkit.api import Run
from ftkit.errors import RunFailed

from ._client import Provider, kind
from ._rows import DataFile

_PART = 64 << 20  # bytes: the largest part that the Uploads API takes
_PROCESSING = 3600.0  # seconds that a provider may look at a file


def uploaded(provider: Provider, run: Run, file: DataFile, purpose: str) -> str:
    """Return the id of the provider's copy of `file`, uploading it only where it is not there. Raises FtkitError."""
    files = dict(run.state.get("files") or {})
    id = files.get(file.sha256)
    if id is None or not _usable(provider, id):
        id = _found(provider, file, purpose)
        if id is not None:
            run.log(
                "note", message=f"the file {file.name[:24]}... is at the provider already ({id}): it is not sent again"
            )
        else:
            id = _sent(provider, file, purpose)
        run.save_state(files={**files, file.sha256: id})
    _processed(provider, file, id)
    return id


def _usable(provider: Provider, id: str) -> bool:
    def look() -> bool:
        try:
            found = provider.client.files.retrieve(id)
        except Exception as error:
            if kind(error) in ("not_found", "model"):
                return False
            raise
        return found.status != "error"

    return provider.read("looking for a file", look)


def _found(provider: Provider, file: DataFile, purpose: str) -> str | None:
    def look() -> str | None:
        for known in provider.client.files.list(purpose=purpose):
            if known.filename == file.name and known.bytes == file.size and known.status != "error":
                return known.id
        return None

    return provider.read("listing the files", look)


def _sent(provider: Provider, file: DataFile, purpose: str) -> str:
    what = f"uploading {file.path.name} ({file.size / 1e6:.1f} MB)"
    if file.size > provider.options.multipart_mb << 20:
        return _sent_in_parts(provider, file, purpose, what)

    def send() -> str:
        with open(file.path, "rb") as content:
            made = provider.client.files.create(file=(file.name, content, "application/jsonl"), purpose=purpose)  # type: ignore[arg-type]
        return made.id

    def send_or_find() -> str:
        # An upload whose answer was lost may have arrived: looking costs less than a second copy.
        try:
            return send()
        except Exception as error:
            if kind(error) in ("server", "network", "timeout", "malformed"):
                found = _found(provider, file, purpose)
                if found is not None:
                    return found
            raise

    return provider.read(what, send_or_find)


def _sent_in_parts(provider: Provider, file: DataFile, purpose: str, what: str) -> str:
    client = provider.client.uploads
    upload = provider.read(what, lambda: client.create(
        filename=file.name, purpose=purpose, bytes=file.size, mime_type="application/jsonl"))  # type: ignore[arg-type]  # fmt: skip
    part_ids: list[str] = []
    md5 = hashlib.md5(usedforsecurity=False)
    size = min(_PART, provider.options.multipart_mb << 20)
    with open(file.path, "rb") as content:
        while data := content.read(size):
            md5.update(data)
            part = provider.read(
                f"{what}, part {len(part_ids) + 1}",
                lambda data=data: client.parts.create(upload.id, data=("part", data)),
            )  # type: ignore[misc]
            part_ids.append(part.id)
    done: Any = provider.read(what, lambda: client.complete(upload.id, part_ids=part_ids, md5=md5.hexdigest()))
    if done.file is None:
        raise RunFailed(f"{provider.dialect.where} gave no file for the finished upload {upload.id}", "try again")
    return str(done.file.id)


def _processed(provider: Provider, file: DataFile, id: str) -> None:
    """Wait until the provider has looked at the file. Raises RunFailed with its reasons where it refuses it."""

    def wait() -> Any:
        return provider.client.files.wait_for_processing(id, poll_interval=1.0, max_wait_seconds=_PROCESSING)

    began = time.monotonic()
    try:
        found = provider.read(f"waiting for {file.path.name} to be looked at", wait)
    except RuntimeError:
        raise RunFailed(f"the provider did not process {file.path.name} in {time.monotonic() - began:.0f} s",
                        f"look again: ftkit run --resume {file.path.parents[2]}") from None  # fmt: skip
    if found.status == "error":
        why = provider.clean(found.status_details or "it gives no reason")
        raise RunFailed(f"the provider refuses {file.path.name}: {why}", f"its lines are those of {file.path}")
