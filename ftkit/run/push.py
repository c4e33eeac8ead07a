"""Send a finished export to the hub: first what would be sent, then, where it was confirmed, one commit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..errors import FtkitError, RunFailed
from ..hub import account_status, endpoint, explain, token
from ..masking import masked
from ..records import Record
from ..text import one_line


@dataclasses.dataclass(frozen=True)
class Push(Record):
    """What was sent, or would be: `commit` is None where nothing was. `files` maps paths to bytes."""

    repository: str
    private: bool
    files: dict[str, int]
    commit: str | None = None


def push(folder: Path, repository: str, private: bool, message: str) -> Push:
    """Upload the export in `folder` as one commit; the repository is made where there is none. Raises RunFailed.

    An existing repository keeps its visibility. Files that the export does not hold stay in it.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    files = _files(folder)
    if token() is None:
        raise RunFailed("you are not logged in to the hub: nothing was pushed", "run `hf auth login`, or set HF_TOKEN")
    try:
        if account_status() == 401:
            raise RunFailed("the hub does not know the token: nothing was pushed",
                            "run `hf auth login`, or set HF_TOKEN to a token with write access")  # fmt: skip
        api = HfApi(endpoint=endpoint())
        api.create_repo(repository, private=private, exist_ok=True)
        added = [CommitOperationAdd(path, folder / path) for path in files]
        done: Any = api.create_commit(repository, added, commit_message=message)  # one commit: all of it, or nothing
    except FtkitError:
        raise
    except Exception as error:  # each version of the library has an HTTP client, and exceptions, of its own
        raise _failed(repository, error) from None
    return Push(repository, private, files, str(done.oid))


def planned(folder: Path, repository: str, private: bool) -> Push:
    """Return what `push` would send, without a question."""
    return Push(repository, private, _files(folder))


def _files(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}


def _failed(repository: str, error: Exception) -> RunFailed:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return RunFailed(f"the hub does not let this account write {repository} (status {status})",
                         "use a token with write access to it, or another name: --to hf:ORG/NAME")  # fmt: skip
    known = explain("model", repository, error)
    text = known.message.replace("cannot be downloaded", "cannot be written").replace(
        "cannot be loaded", "cannot be written"
    )
    return RunFailed(f"push failed: {masked(one_line(text, 400))}", "what was exported is complete: push again")
