"""Rows that were given from Python: lists of dicts, and the tables of pandas, Polars, PyArrow and `datasets`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from ..recipe.given import GIVEN, is_table
from .formats import Row


def rows_in_memory(path: str, given: Any) -> dict[str, list[Row]]:
    """Return the rows per split; a single table is {"all": rows}.

    `path` is what the recipe says of them. Raises InputError where they are not there any more, or are no rows.
    """
    if given is None:
        raise InputError(
            f"dataset.path: the rows ({path.removeprefix(GIVEN)}) were given from Python, and a recipe cannot hold them",
            "resume that run with `ftkit run --resume RUN` (it keeps its rows in data/), or write them to a file and name it",
        )
    if isinstance(given, Mapping):
        return {str(split): _rows(part, f"dataset.path.{split}") for split, part in given.items()}
    return {"all": _rows(given, "dataset.path")}


def _rows(value: Any, key: str) -> list[Row]:
    if is_table(value):
        return _table_rows(value, key)
    if not isinstance(value, list | tuple):
        raise InputError(
            f"{key}: expected a list of dicts or a table, and this is a {type(value).__name__}",
            "give the rows of every split from Python, or name a file for every split",
        )
    rows: list[Row] = []
    for number, row in enumerate(value, 1):
        if not isinstance(row, Mapping):
            raise InputError(f"{key}: row {number} is not a dict, but a {type(row).__name__}")
        rows.append({str(name): part for name, part in row.items()})
    return rows


def _table_rows(value: Any, key: str) -> list[Row]:
    names = [str(name) for name in getattr(value, "column_names", None) or value.columns]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise InputError(f"{key}: two columns have the name {double!r}", "rename one of them")
    if hasattr(value, "iloc"):  # pandas writes a missing value as NaN
        value = value.astype(object).where(value.notna(), None)
        return [{str(name): part for name, part in row.items()} for row in value.to_dict("records")]
    for method in ("to_dicts", "to_pylist", "to_list"):
        if hasattr(value, method):
            return list(getattr(value, method)())
    raise InputError(f"{key}: cannot read rows from a {type(value).__name__}", "give a list of dicts")
