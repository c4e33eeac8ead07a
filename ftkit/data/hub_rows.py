"""Rows of a dataset on the hub, all of one commit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from ..recipe.keys import DatasetConfig

_COMMIT = re.compile(r"[0-9a-f]{40}")


def read_hub(dataset: DatasetConfig) -> tuple[dict[str, list[Mapping[str, Any]]], dict[str, Any]]:
    """Return the rows per split, by the names of the source, and where they came from: `revision` is the commit.

    Raises InputError, with the fix, where the dataset cannot be had.
    """
    from ..hub import commit_of, explain, prefer_cache_when_unreachable

    assert isinstance(dataset.path, str)
    prefer_cache_when_unreachable()
    try:
        import datasets
    except ImportError:
        raise InputError(f"dataset {dataset.path!r} is on the hub: reading it needs the `datasets` library",
                         "pip install 'ftkit[data]'") from None  # fmt: skip
    datasets.disable_progress_bars()
    commit = commit_of("dataset", dataset.path, dataset.revision)
    try:
        found = datasets.load_dataset(dataset.path, dataset.name, revision=commit or dataset.revision)
    except Exception as error:  # the library raises a dozen unrelated types for one failed download
        raise explain("dataset", dataset.path, error, dataset.revision) from None
    used = _cached_commit(found)
    if dataset.revision and used and commit and used != commit:
        # Offline, the library takes the newest copy in its cache, whatever its revision.
        raise InputError(
            f"dataset {dataset.path!r}: the local cache holds commit {used[:12]}, not revision {dataset.revision!r}, "
            "and the hub cannot be reached",
            "connect once, or remove dataset.revision to use the copy in the cache",
        )
    rows = {split: list(part) for split, part in found.items()}
    asked = {"asked": dataset.revision} if dataset.revision and dataset.revision != (used or commit) else {}
    return rows, {"path": dataset.path, "name": dataset.name, "revision": used or commit or dataset.revision, **asked}


def _cached_commit(found: Mapping[str, Any]) -> str | None:
    """Return the commit whose rows these are: the library keeps them in a folder of that name; None where it does not."""
    folders = {Path(file["filename"]).parent.name for part in found.values() for file in part.cache_files}
    return next((name for name in folders if _COMMIT.fullmatch(name)), None)
