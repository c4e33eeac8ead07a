"""Local paths in `dataset.path` are relative to where they were written: the recipe's file, or the working directory."""

from __future__ import annotations

import os
from dataclasses import replace

from .given import GIVEN
from .keys import LOADER
from .yaml import Node

LOCAL_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".gz")


def absolute_path(node: Node, folder: str) -> Node:
    """Return the layer with local paths in `dataset.path` made absolute: they are relative to where they were written."""
    dataset = node.below("dataset")
    path = dataset.below("path") if dataset else None
    if dataset is None or path is None:
        return node
    dataset = replace(dataset, value={**dataset.value, "path": _absolute_files(path, folder, may_be_hub=True)})
    return replace(node, value={**node.value, "dataset": dataset})


def _absolute_files(node: Node, folder: str, may_be_hub: bool = False) -> Node:
    if isinstance(node.value, list):
        return replace(node, value=[_absolute_files(item, folder) for item in node.value])
    if isinstance(node.value, dict):
        return replace(node, value={key: _absolute_files(item, folder) for key, item in node.value.items()})
    path = node.value
    if not isinstance(path, str) or not path or "\0" in path or "://" in path:
        return node
    there = os.path.join(folder, os.path.expanduser(path))
    local = path.startswith((".", "/", "~")) or path.lower().endswith(LOCAL_SUFFIXES) or os.path.exists(there)
    if may_be_hub and (path.startswith((LOADER, GIVEN, "package:")) or not local):
        return node  # a hub id, or no path at all
    return replace(node, value=os.path.normpath(there))
