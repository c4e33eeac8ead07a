"""Rows as they are found: in a file, a folder of splits, on the hub, or made by a loader plugin."""

from __future__ import annotations

import csv
import difflib
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from ..recipe.keys import DatasetConfig

Row = Mapping[str, Any]

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
FILE_SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
               "validation": "validation", "dev": "validation", "test": "test"}  # fmt: skip
_PEEK = 1 << 18  # characters of a .json file that are looked at for its first rows
_GAP = re.compile(r"[\s,]*")  # between two rows of it
csv.field_size_limit(1 << 30)


def read_rows(dataset: DatasetConfig) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """Return rows per split and where they came from.

    A source without splits (a single file) comes back as {"all": rows}. Raises InputError with the
    way out where the source cannot be had.
    """
    if dataset.loader is not None:
        loader = dataset.loader.make()
        rows = {split: list(part) for split, part in loader.load().items()}
        return rows, {"path": dataset.path, "loader": dataset.loader.options.model_dump(mode="json"), **loader.about()}
    path = Path(os.path.expanduser(dataset.path))
    if os.path.exists(path) or path.is_absolute() or path.suffix in SUFFIXES or dataset.path.startswith((".", "~")):
        rows = {split: [row for p in paths for row in read_file(p)] for split, paths in local_files(path).items()}
        return rows, {"path": str(path)}
    from .hub_rows import read_hub

    rows, about = read_hub(dataset)
    return {FILE_SPLITS.get(split, split): part for split, part in rows.items()}, about


def local_files(path: Path) -> dict[str, list[Path]]:
    """Return the files that hold each split of a local source; a single file is {"all": [file]}."""
    try:
        if os.path.isfile(path):
            return {"all": [path]}
        if os.path.isdir(path):
            return _split_files(path)
        folder = path.parent
        names = os.listdir(folder) if os.path.isdir(folder) else []
    except OSError as error:
        raise InputError(f"dataset.path: {path} cannot be read: {error.strerror}") from None
    near = difflib.get_close_matches(path.name, names, 1)
    hint = f"did you mean {folder / near[0]}?" if near else "it is resolved against the folder of the recipe"
    raise InputError(f"dataset.path: there is no {path}", hint)


def _split_files(folder: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES):
        split = FILE_SPLITS.get(re.split(r"[-_.]", path.stem.lower())[0])
        if split:
            files.setdefault(split, []).append(path)
    for split, paths in files.items():
        if len({p.suffix for p in paths}) > 1:  # most likely the same rows twice
            names = ", ".join(p.name for p in paths)
            raise InputError(f"{folder} holds its {split} rows in several formats: {names}", "keep one of them")
    if not files:
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise InputError(f"{folder} holds no train, validation or test file", f"found: {found}")
    return files


def column_names(path: Path, wanted: Iterable[str]) -> set[str]:
    """Return the columns of a local file: those of its first rows, or of all where a wanted one is not among these."""
    if path.suffix == ".parquet":
        return set(_parquet(path).schema_arrow.names)
    names = {str(name) for row in _first_rows(path) for name in row}
    lacking = set(wanted) - names
    # A .csv file names all its columns at once; elsewhere a column may be in later rows alone.
    if names and (not lacking or path.suffix == ".csv" or not _mentioned(path, lacking)):
        return names
    return {str(name) for row in read_file(path) for name in row}


def _mentioned(path: Path, names: Iterable[str]) -> bool:
    """Return whether any of the columns can be in the file: parsing a large one to say no takes too long."""
    text = path.read_bytes()
    return any(not re.fullmatch(r"[\w .-]+", name, re.ASCII) or f'"{name}"'.encode() in text for name in names)


def _first_rows(path: Path, count: int = 100) -> list[Row]:
    """Return some of the first rows, perhaps none: a quick look, which is no error where the file is broken."""
    rows: list[Any] = []
    try:
        with open(path, encoding="utf-8-sig", newline="\n" if path.suffix == ".jsonl" else "") as file:
            if path.suffix == ".csv":
                rows = list(itertools.islice(csv.DictReader(file), count))
            elif path.suffix == ".jsonl":
                rows = [json.loads(line) for line in itertools.islice(file, count) if line.strip()]
            elif path.suffix == ".json":
                text, decoder = file.read(_PEEK), json.JSONDecoder()
                at = text.index("[") + 1
                for _ in range(count):
                    row, at = decoder.raw_decode(text, _GAP.match(text, at).end())  # type: ignore[union-attr]
                    rows.append(row)
    except (OSError, ValueError, csv.Error, RecursionError):
        pass
    return [row for row in rows if isinstance(row, dict)]


def read_file(path: Path) -> list[Row]:
    """Return the rows of one .json (a list of objects), .jsonl, .csv or .parquet file."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: cannot read {path.suffix or 'a file without suffix'}", f"use {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".parquet":
            rows = _parquet(path).read().to_pylist()
        elif path.suffix == ".csv":
            with open(path, encoding="utf-8-sig", newline="") as file:
                rows = _csv_rows(path, csv.DictReader(file))
        elif path.suffix == ".jsonl":
            with open(path, encoding="utf-8-sig", newline="\n") as file:
                rows = [_json_line(path, n, line) for n, line in enumerate(file, 1) if line.strip()]
        else:
            rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8", "convert it: iconv -t utf-8") from None
    except (ValueError, csv.Error, RecursionError) as error:  # ValueError: broken JSON, and a broken .parquet too
        raise InputError(f"{path} cannot be read: {error}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: expected a list of objects, one per row")
    return rows


def _csv_rows(path: Path, reader: csv.DictReader[str]) -> list[Any]:
    rows = []
    for row in reader:
        if None in row:  # the fields beyond the header
            raise InputError(f"{path}:{reader.line_num}: more fields than the header names", "quote what holds a comma")
        rows.append(row)
    return rows


def _json_line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}:{number}: not JSON: {error}") from None


def _parquet(path: Path) -> Any:
    """Open a .parquet file."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{path}: reading .parquet needs pyarrow", "pip install 'ftkit[data]'") from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
