"""Rows as they are found: in files, a folder of splits, on the hub, given from Python, or made by a loader plugin."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..recipe.given import GIVEN
from .formats import ENDINGS, Reading, Row, ending_of, read_file
from .memory import rows_in_memory

if TYPE_CHECKING:
    from ..recipe.keys import DatasetConfig, DatasetPath

FILE_SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
               "validation": "validation", "dev": "validation", "test": "test"}  # fmt: skip
_SHOWN = 8  # names in one message


def read_rows(dataset: DatasetConfig) -> tuple[dict[str, list[Row]], dict[str, Any], list[str]]:
    """Return rows per split, where they came from, and notes on what was passed over.

    A source without splits (a single file) comes back as {"all": rows}. Raises InputError with the
    way out where the source cannot be had.
    """
    path = dataset.path
    reading = Reading(dataset.delimiter, dataset.encoding)
    if dataset.loader is not None:
        _refuse_idle(reading, {})
        loader = dataset.loader.make()
        rows = {split: list(part) for split, part in loader.load().items()}
        options = dataset.loader.options.model_dump(mode="json")
        return rows, {"path": path, "loader": options, **loader.about()}, []
    if isinstance(path, str) and path.startswith(GIVEN):
        _refuse_idle(reading, {})
        rows, notes = _by_split(rows_in_memory(path, dataset.given))
        return rows, {"path": path}, notes
    if not is_local(path):
        _refuse_idle(reading, {})
        from .hub_rows import read_hub

        found, about = read_hub(dataset)
        rows, notes = _by_split(found)
        return rows, about, notes
    files = local_files(path)
    _refuse_idle(reading, files)
    rows = {split: [row for p in paths for row in read_file(p, reading)] for split, paths in files.items()}
    return rows, {"path": path if not isinstance(path, str) else str(_here(path))}, file_notes(path, files)


def _here(path: str) -> Path:
    return Path(os.path.expanduser(path))


def is_local(path: DatasetPath) -> bool:
    """Return whether `dataset.path` names files of this machine; a list and a mapping always do."""
    if not isinstance(path, str):
        return True
    here = _here(path)
    return os.path.exists(here) or here.is_absolute() or ending_of(here) is not None or path.startswith((".", "~"))


def local_files(path: DatasetPath) -> dict[str, list[Path]]:
    """Return the files of each split of `dataset.path`; files that belong to no split are {"all": files}.

    Raises InputError; where its message starts with a key of the recipe, this key is what is wrong.
    """
    if isinstance(path, str):
        here = _here(path)
        return _split_files(here) if os.path.isdir(here) else {"all": [_file(path, "dataset.path")]}
    parts = path.items() if isinstance(path, dict) else [("all", path)]
    files: dict[str, list[Path]] = {}
    for split, names in parts:
        key = "dataset.path" if split == "all" else f"dataset.path.{split}"
        several = not isinstance(names, str)
        files[split] = [_file(n, f"{key}.{i}" if several else key) for i, n in enumerate(names if several else [names])]
        double = next((p for p in files[split] if files[split].count(p) > 1), None)
        if double:
            raise InputError(f"{key}: {double} is named twice", "its rows would be read twice: remove one")
    return files


def _file(name: str, key: str) -> Path:
    """Return the path of a file that is there."""
    path = _here(name)
    try:
        if os.path.isfile(path):
            return path
        if os.path.isdir(path):
            raise InputError(f"{key}: {path} is a folder, and one of several paths must be a file", "name its files")
        folder = path.parent
        names = os.listdir(folder) if os.path.isdir(folder) else []
    except OSError as error:
        raise InputError(f"{key}: {path} cannot be read: {error.strerror}") from None
    near = difflib.get_close_matches(path.name, names, 1)
    hint = f"did you mean {folder / near[0]}?" if near else "it is resolved against the folder of the recipe"
    raise InputError(f"{key}: there is no {path}", hint)


# ---------------------------------------------------------------- a folder of splits


def _split_files(folder: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    odd = []
    for path in _listed(folder):
        split = _split_of(path)
        if split is None or os.path.isdir(path):
            continue
        if ending_of(path):
            files.setdefault(split, []).append(path)
        else:
            odd.append(path.name)
    names = "dataset.path: {train: FILE, test: FILE}"
    if odd:
        raise InputError(
            f"{folder}: the name of a split begins {_some(odd)}, which cannot be read",
            f"rename it, move it, or name the files: {names}; files that can be read: {', '.join(ENDINGS)}",
        )
    for path in _listed(folder):
        if path.name.lower() in FILE_SPLITS and os.path.isdir(path) and FILE_SPLITS[path.name.lower()] not in files:
            raise InputError(
                f"{folder}: {path.name} is a folder, and a split must be a file", f"name its files: {names}"
            )
    for split, paths in files.items():
        if len({ending_of(p) for p in paths}) > 1:  # most likely the same rows twice
            both = ", ".join(p.name for p in paths)
            raise InputError(f"{folder} holds its {split} rows in several formats: {both}", "keep one of them")
    if not files:
        found = _some([p.name for p in _listed(folder)]) or "nothing"
        raise InputError(
            f"{folder} holds no train, validation or test file", f"found: {found}; name the files: {names}"
        )
    return files


def _listed(folder: Path) -> list[Path]:
    """Return what a folder holds, but for hidden files."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"dataset.path: {folder} cannot be read: {error.strerror}") from None


def _split_of(path: Path) -> str | None:
    return FILE_SPLITS.get(re.split(r"[-_.]", path.name.lower())[0])


def file_notes(path: DatasetPath, files: Mapping[str, list[Path]]) -> list[str]:
    """Return what a reader must know of a folder: the files that make up a split together, and those passed over."""
    if not isinstance(path, str) or "all" in files:
        return []
    notes = [
        f"{split}: the rows of {len(paths)} files: {_some([p.name for p in paths])}"
        for split, paths in files.items()
        if len(paths) > 1
    ]
    read = {p for paths in files.values() for p in paths}
    over = [p.name + ("/" if os.path.isdir(p) else "") for p in _listed(_here(path)) if p not in read]
    if over:
        notes.append(f"not read, because no split has this name: {_some(over)} (in {_here(path)})")
    return notes


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _refuse_idle(reading: Reading, files: Mapping[str, list[Path]]) -> None:
    """Refuse a key that would change nothing."""
    endings = {ending_of(p) or "" for paths in files.values() for p in paths}
    if reading.delimiter and not any(e.startswith((".csv", ".tsv")) for e in endings):
        raise InputError("dataset.delimiter: there is no .csv and no .tsv file among the data", "remove this key")
    if reading.encoding and not endings - {".parquet"}:
        raise InputError("dataset.encoding: there is no text file among the data", "remove this key")


# ---------------------------------------------------------------- splits by name, the hub


def _by_split(found: Mapping[str, list[Row]]) -> tuple[dict[str, list[Row]], list[str]]:
    """Return the rows under ftkit's names of splits, and a note on the splits that are not read."""
    rows: dict[str, list[Row]] = {}
    over = []
    for name in sorted(found, key=lambda name: name not in FILE_SPLITS.values()):  # `validation` before `dev`
        split = FILE_SPLITS.get(name, name)
        if split in rows or (split not in FILE_SPLITS.values() and split != "all"):
            over.append(name)
        else:
            rows[split] = found[name]
    if not rows:
        raise InputError(f"dataset.path: the data has no train, validation or test split; it has {', '.join(over)}")
    return rows, [f"not read, because ftkit has no split of this name: {_some(over)}"] if over else []
