"""Commands over what is installed: recipes, plugins, schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import options
from .show import echo, echo_next, echo_table, print_json

if TYPE_CHECKING:
    from ..plugins import Plugins


@click.command()
@options.as_json
def recipes(as_json: bool) -> None:
    """List the recipes that ship with ftkit; `ftkit run NAME` runs one."""
    from ..interface import shipped_recipes

    shipped: dict[str, Path] = shipped_recipes()
    if as_json:
        print_json({name: str(path) for name, path in shipped.items()})
        return
    rows = [["recipe", "shows"], *([name, _first_comment(path)] for name, path in shipped.items())]
    echo_table(rows, left=(0, 1), wrapped=1)
    echo_next("ftkit check RECIPE, then ftkit run RECIPE")


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line[2:].strip() for line in lines if line.startswith("# ") and "yaml-language" not in line), "")


@click.command()
@options.as_json
def plugins(as_json: bool) -> None:
    """List what is installed: name, kind, distribution and version; and what failed to load, and why."""
    from ..plugins import installed_plugins

    found = installed_plugins()
    if as_json:
        print_json(_plugins_as_dict(found))
        return
    _print_plugins(found)


@click.command()
def schema() -> None:
    """Print the JSON Schema of a recipe with every installed plugin's options, for editors."""
    from ..plugins import installed_plugins
    from ..recipe.schema import recipe_schema

    echo(json.dumps(recipe_schema(installed_plugins()), indent=2))


def _plugins_as_dict(found: Plugins) -> dict[str, Any]:
    """Return what `ftkit plugins --json` prints."""
    return {
        "plugins": [
            {
                "name": e.name,
                "kind": e.kind,
                "summary": e.cls.summary,
                "distribution": e.source.distribution,
                "version": e.source.version,
                "module": e.source.module,
                "missing": e.missing(),
            }
            for e in found.all_entries()
        ],
        "failed": [
            {
                "entry": s.entry,
                "module": s.module,
                "distribution": s.distribution,
                "version": s.version,
                "error": s.error,
            }
            for s in found.failures
        ],
        "duplicates": _conflicts(found),
    }


def _print_plugins(found: Plugins) -> None:
    """Print one plugin a row, then what failed to load and which names clash."""
    rows = [["plugin", "kind", "from", "does"]]
    needs = []
    for e in found.all_entries():
        missing = e.missing()
        install = e.cls.requires.install or " ".join(missing)
        rows.append([e.name, e.kind, f"{e.source.distribution} {e.source.version}", e.cls.summary])
        if missing:
            needs.append(f"{e.name} needs {', '.join(missing)}: pip install '{install}'")
    echo_table(rows, left=(0, 1, 2, 3), wrapped=3)
    for line in needs:
        echo(line)
    for source in found.failures:
        where = f"{source.distribution} {source.version} ({source.module})"
        echo(f"{source.entry} does not work: {where} {source.error}")
    for text in _conflicts(found):
        echo(f"conflict: {text}; uninstall one of them")


def _conflicts(found: Plugins) -> list[str]:
    """Return one message for each name of a plugin or a command that is offered twice."""
    from ..commands import conflicts

    parent = click.get_current_context().parent
    own = parent.command.commands if parent and isinstance(parent.command, click.Group) else {}
    return [*found.duplicates(), *conflicts(own)]
