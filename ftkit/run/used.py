"""The files that a run uses beside the core: its recipe, its data, its plugins' code, and the files that options name.

Small files that options name are copied into the run directory, so that the directory alone is enough to run it again.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..data.rows import is_local, local_files
from ..directory import FILES, RunDirectory
from ..errors import FtkitError
from ..files import file_digest
from ..plugins import installed_plugins
from ..recipe.load import PluginRef, Recipe, load_recipe
from ..recipe.yaml import Node

_LARGEST = 16 * 1024 * 1024  # bytes of a file that is copied into the run directory
# Files and options that may hold a secret are never copied.
_SECRET = re.compile(r"key|token(?!izer)|secret|passw|credential|\.env|\.pem|id_[a-z0-9]+$", re.IGNORECASE)
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")


def plugin_refs(recipe: Recipe) -> tuple[PluginRef, ...]:
    """Return the plugins of a recipe that decide its results: trackers only watch."""
    loader = [recipe.dataset.loader] if recipe.dataset.loader is not None else []
    return (recipe.backend, *recipe.evaluators, *recipe.controls, *loader)


def code_of(ref: PluginRef) -> list[Path]:
    """Return the Python files of a plugin: its module, or all in its package."""
    module = sys.modules.get(installed_plugins().find(ref.kind, ref.name).cls.__module__)
    path = Path(getattr(module, "__file__", None) or "")
    if not path.is_file():
        return []
    return sorted(path.parent.rglob("*.py")) if path.stem == "__init__" else [path]


def used_files(recipe: Recipe) -> list[Path]:
    """Return the files of this machine that decide what the run is, each once: recipes, data, code, files of options."""
    found = [Path(name) for name in _recipe_files(recipe.root)]
    if is_local(recipe.dataset.path) and recipe.dataset.loader is None and recipe.dataset.given is None:
        with contextlib.suppress(FtkitError, OSError):  # they were read a moment ago: what is gone cannot be hashed
            found += [path for paths in local_files(recipe.dataset.path).values() for path in paths]
    for ref in plugin_refs(recipe):
        found += [*code_of(ref), *(path for _, path in _option_files(ref))]
    return list(dict.fromkeys(path.resolve() for path in found if path.is_file()))


def _recipe_files(node: Node) -> Iterator[str]:
    if node.file is not None and os.path.isfile(node.file):
        yield os.path.abspath(node.file)
    children: Iterable[Any] = node.value.values() if isinstance(node.value, dict) else node.value
    if isinstance(node.value, dict | list):
        for child in children:
            yield from _recipe_files(child)


def _option_files(ref: PluginRef) -> Iterator[tuple[str, Path]]:
    """Yield (option, file) of each option whose value is the absolute path of a file."""
    for name, value in ref.options.model_dump(mode="json", by_alias=True).items():
        if isinstance(value, str) and len(value) < 4096 and os.path.isabs(value) and os.path.isfile(value):
            yield name, Path(value)


# ---------------------------------------------------------------- kept in the run directory


def keep_files(run: RunDirectory, recipe: Recipe) -> str:
    """Copy the small files that options name into the run directory; return the recipe's text, which names the copies.

    Folders (models), large files and what may hold a secret are not copied: the recipe keeps their paths.
    """
    data = recipe.to_dict()
    several = data["evaluator"] if isinstance(data["evaluator"], list) else [data["evaluator"]]
    sides = [(recipe.backend, data["backend"])]
    sides += list(zip(recipe.evaluators, several, strict=True)) + list(
        zip(recipe.controls, data["controls"], strict=True)
    )
    taken: dict[str, str] = {}  # name in the run directory -> SHA-256
    for ref, options in sides:
        for option, path in _option_files(ref):
            secret = _SECRET.search(option) or _SECRET.search(path.name)
            if path.stat().st_size <= _LARGEST and path.suffix.lower() not in _WEIGHTS and not secret:
                options[option] = f"./{FILES}/{_keep(run, path, taken)}"
    return recipe.written(data)


def _keep(run: RunDirectory, path: Path, taken: dict[str, str]) -> str:
    if path.parent == run.dir / FILES:  # the run has it already
        taken[path.name] = file_digest(path)
        return path.name
    content = file_digest(path)
    name, number = path.name, 2
    while taken.get(name, content) != content:
        name, number = f"{path.stem}-{number}{path.suffix}", number + 1
    if name not in taken:
        run.path(FILES).mkdir(exist_ok=True)
        shutil.copyfile(path, run.path(FILES, name))
        taken[name] = content
    return name


def reopened(run: RunDirectory, recipe: Recipe) -> Recipe:
    """Return the recipe as every other process reads it: with the run's own copies of the files that options name."""
    return load_recipe(run.path("recipe.yaml"), check_modules=False) if run.path(FILES).is_dir() else recipe
