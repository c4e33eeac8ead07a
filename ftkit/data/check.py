"""Look into local data files for the columns and splits that a recipe names: before its plugins are right, even."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..errors import InputError, Problem
from ..recipe.keys import Columns, DatasetKeys, Prompt, Splits, columns_of_format
from ..recipe.load import text_at
from ..recipe.validate import validate
from ..recipe.yaml import Node
from .formats import Reading, column_names
from .rows import local_files
from .splits import unfit_splits
from .task import missing_columns, named_columns


def check_data(root: Node, known: Sequence[Problem]) -> list[Problem]:
    """Return a problem for each column and split that the recipe's tree names and the local data lack.

    A loader and a hub id are looked at when the data are read. What `known` speaks of already is left out.
    """
    dataset = root.value.get("dataset")
    node = dataset.below("path") if dataset else None
    if dataset is None or node is None or not _readable(node):
        return []
    found: list[Problem] = []
    try:
        files = local_files(node.plain())
        splits = validate(Splits, _section(dataset, "splits"), (), [])
        if splits is not None:
            found += unfit_splits(files, dict(splits))
        columns = _columns(dataset)
        if columns is not None:
            named = named_columns(columns, validate(Prompt, _section(root, "prompt"), (), []))
            wanted, reading = [name for _, name in named], _reading(dataset)
            have = {s: set.union(*(column_names(p, wanted, reading) for p in part)) for s, part in files.items()}
            found += missing_columns(named, have)
    except InputError as error:
        key = error.message.split(":")[0]
        found.append(Problem(error.message, key=key if key.startswith("dataset.") else "dataset.path", hint=error.hint))
    wrong = {problem.key for problem in known}
    return [_placed(root, problem) for problem in found if problem.key not in wrong]


def _readable(path: Node) -> bool:
    """Return whether `dataset.path` is well formed, and names local files."""
    if isinstance(path.value, str):
        return os.path.isabs(path.value) and "\0" not in path.value
    return isinstance(path.value, list | dict) and validate(DatasetKeys, Node({"path": path}), (), []) is not None


def _reading(dataset: Node) -> Reading:
    """Return how files are read; as usual where the recipe's own keys are not right."""
    keys = {key: node for key in ("delimiter", "encoding") if (node := dataset.below(key)) is not None}
    found = validate(DatasetKeys, Node({"path": Node("x"), **keys}), (), [])
    return Reading(found.delimiter, found.encoding) if found else Reading()


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
