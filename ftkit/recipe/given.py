"""Rows that a recipe in Python holds itself, as `dataset.path`: taken out before the recipe is read.

The recipe then says `path: "python:300 rows"`, which names where they came from and cannot be read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GIVEN = "python:"  # what `path` begins with where the rows were given from Python
# Methods that turn a table into a list of rows: pandas, Polars, PyArrow, datasets.
TABLE_METHODS = ("to_dict", "to_dicts", "to_pylist", "to_list")


def take_rows(source: Mapping[str, Any]) -> tuple[Mapping[str, Any], Any]:
    """Return the recipe with `dataset.path` as text, and the rows that stood there (None where there were none)."""
    dataset = source.get("dataset")
    path = dataset.get("path") if isinstance(dataset, Mapping) else None
    if not isinstance(dataset, Mapping) or not _holds_rows(path):
        return source, None
    if isinstance(path, Mapping):
        about = ", ".join(f"{split} {_size(part)}" for split, part in path.items()) + " rows"
    else:
        about = f"{_size(path)} rows"
    return {**source, "dataset": {**dataset, "path": GIVEN + about}}, path


def is_table(value: Any) -> bool:
    """Return whether a value is a table of a library: a DataFrame, a `datasets.Dataset`, a PyArrow table."""
    columns = hasattr(value, "columns") or hasattr(value, "column_names")
    return not isinstance(value, Mapping | type) and columns and any(hasattr(value, name) for name in TABLE_METHODS)


def _holds_rows(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(is_table(part) or _are_rows(part) for part in value.values())
    return is_table(value) or _are_rows(value)


def _are_rows(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(row, Mapping) for row in value)


def _size(value: Any) -> str:
    return f"{len(value):,}" if hasattr(value, "__len__") else "some"
