"""Look into local data files for the columns and splits that a recipe names: before its plugins are right, even."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError, Problem
from ..recipe.keys import Columns, Splits, columns_of_format
from ..recipe.load import text_at
from ..recipe.validate import validate
from ..recipe.yaml import Node
from .rows import column_names, local_files
from .task import missing_columns, missing_splits, named_columns


def check_data(root: Node, known: Sequence[Problem]) -> list[Problem]:
    """Return a problem for each column and split that the recipe's tree names and the local data lack.

    A loader and a hub id are looked at when the data are read. What `known` speaks of already is left out.
    """
    dataset = root.value.get("dataset")
    path = text_at(dataset, "path") if dataset else None
    if dataset is None or path is None or not os.path.isabs(path) or "\0" in path:
        return []
    try:
        files = local_files(Path(path))
        found: list[Problem] = []
        splits = validate(Splits, _section(dataset, "splits"), (), [])
        if splits is not None:
            found += missing_splits(files, dict(splits))
        columns = _columns(dataset)
        if columns is not None:
            wanted = named_columns(columns).values()
            have = {s: set.union(*(column_names(p, wanted) for p in part)) for s, part in files.items()}
            found += missing_columns(columns, have)
    except InputError as error:
        found = [dataset.value["path"].problem(error.message, ("dataset", "path"), error.hint)]
    wrong = {problem.key for problem in known}
    return [_placed(root, problem) for problem in found if problem.key not in wrong]


def _columns(dataset: Node) -> Columns | None:
    """Return the columns that the recipe reads; None where they are wrong, which is said elsewhere."""
    section = _section(dataset, "columns")
    columns = validate(Columns, section, (), [])
    chat_format = text_at(dataset, "chat_format")
    if columns is None or chat_format is None:
        return columns
    try:
        return Columns.model_validate(columns_of_format(chat_format, section.plain()))
    except ValueError:
        return None


def _section(node: Node, key: str) -> Node:
    """Return a mapping below `node`; an empty one where there is none."""
    below = node.below(key)
    return below if below is not None and isinstance(below.value, dict) else Node({})


def _placed(root: Node, problem: Problem) -> Problem:
    if problem.line:
        return problem
    key = tuple(int(part) if part.isdecimal() else part for part in (problem.key or "").split("."))
    return root.at(key).problem(problem.message, key, problem.hint)
