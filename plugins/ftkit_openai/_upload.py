"""Upload a file once: where the provider has one with the same hash, that one is used."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ftkit.api import Run
from ftkit.errors import RunFailed

from ._client import Provider
from ._errors import RETRYABLE, Malformed, classify
from ._lists import id_of, items
from ._rows import DataFile
from ._state import state_of

_PART = 64 << 20  # bytes: the largest part that the Uploads API takes
_PROCESSING = 3600.0  # seconds that a provider may process a file


def upload_file(provider: Provider, run: Run, file: DataFile, purpose: str) -> str:
    """Return the id of the provider's copy of `file`. Upload it only where there is none. Raises FtkitError."""
    files = dict(state_of(run).get("files") or {})
    id = files.get(file.sha256)
    if id is None or not _is_usable(provider, id):
        id = _find_copy(provider, file, purpose)
        if id is not None:
            text = f"the file {file.name[:24]}... is at the provider already ({id}): it is not uploaded again"
            run.log("note", message=text)
        else:
            id = _send(provider, file, purpose)
        state_of(run).update(files={**files, file.sha256: id})
    _wait_for_processing(provider, file, id)
    return id


def _is_usable(provider: Provider, id: str) -> bool:
    def look() -> bool:
        try:
            found = provider.client.files.retrieve(id)
        except Exception as error:
            if classify(error) in ("not_found", "model"):
                return False
            raise
        return found.status != "error"

    return provider.read("looking for a file", look)


def _find_copy(provider: Provider, file: DataFile, purpose: str) -> str | None:
    def look() -> str | None:
        for known in items(provider.client.files.list(purpose=purpose)):
            if known.filename == file.name and known.bytes == file.size and known.status != "error":
                return known.id
        return None

    return provider.read("listing the files", look)


def _send(provider: Provider, file: DataFile, purpose: str) -> str:
    what = f"uploading {file.path.name} ({file.size / 1e6:.1f} MB)"
    if file.size > provider.options.multipart_mb << 20:
        return _send_in_parts(provider, file, purpose, what)

    def send() -> str:
        with open(file.path, "rb") as content:
            created = provider.client.files.create(file=(file.name, content, "application/jsonl"), purpose=purpose)  # type: ignore[arg-type]
        if id_of(created) is None:
            raise Malformed("no id of the uploaded file")
        return created.id

    return provider.read(what, partial(_or_copy, provider, file, purpose, send))


def _or_copy(provider: Provider, file: DataFile, purpose: str, send: Callable[[], str]) -> str:
    """Return the id of the file that `send` uploads. It may have arrived although the answer was lost, or a refusal."""
    try:
        return send()
    except Exception as error:
        if classify(error) in RETRYABLE:
            found = _find_copy(provider, file, purpose)
            if found is not None:
                return found
        raise


def _send_in_parts(provider: Provider, file: DataFile, purpose: str, what: str) -> str:
    client = provider.client.uploads
    upload = provider.read(what, lambda: client.create(
        filename=file.name, purpose=purpose, bytes=file.size, mime_type="application/jsonl"))  # type: ignore[arg-type]  # fmt: skip
    part_ids: list[str] = []
    md5 = hashlib.md5(usedforsecurity=False)
    size = min(_PART, provider.options.multipart_mb << 20)
    with open(file.path, "rb") as content:
        while data := content.read(size):
            md5.update(data)
            send_part = partial(client.parts.create, upload.id, data=("part", data))
            part_ids.append(provider.read(f"{what}, part {len(part_ids) + 1}", send_part).id)

    def complete() -> str:
        done: Any = client.complete(upload.id, part_ids=part_ids, md5=md5.hexdigest())
        if id_of(done.file) is None:
            raise Malformed(f"no file for the finished upload {upload.id}")
        return str(done.file.id)

    return provider.read(what, partial(_or_copy, provider, file, purpose, complete))


def _wait_for_processing(provider: Provider, file: DataFile, id: str) -> None:
    """Wait until the provider has processed the file. Raises RunFailed with its reasons where it refuses the file."""

    def wait() -> Any:
        return provider.client.files.wait_for_processing(id, poll_interval=1.0, max_wait_seconds=_PROCESSING)

    began = time.monotonic()
    try:
        found = provider.read(f"waiting until {file.path.name} is processed", wait)
    except RuntimeError:
        raise RunFailed(f"the provider did not process {file.path.name} in {time.monotonic() - began:.0f} s",
                        f"look again: ftkit run --resume {file.path.parents[2]}") from None  # fmt: skip
    if found.status == "error":
        why = provider.clean(found.status_details or "it gives no reason")
        raise RunFailed(f"the provider refuses {file.path.name}: {why}", f"the line numbers are those of {file.path}")
