"""Commands over what is installed: recipes, plugins, schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..text import visible
from . import options
from .show import print_json

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
    for name, path in shipped.items():
        first = next(
            (
                line
                for line in path.read_text(encoding="utf-8").splitlines()
                if line.startswith("# ") and "yaml-language" not in line
            ),
            "#",
        )
        click.echo(f"{name:<24} {first[2:].strip()}")


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

    click.echo(json.dumps(recipe_schema(installed_plugins()), indent=2))


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
    """Print one plugin a line, then what failed to load and which names clash."""
    for e in found.all_entries():
        missing = e.missing()
        install = e.cls.requires.install or " ".join(missing)
        needs = f"  (needs {', '.join(missing)}: pip install '{install}')" if missing else ""
        line = f"{e.name:<22} {e.kind:<10} {e.source.distribution} {e.source.version}  {e.cls.summary}{needs}"
        click.echo(visible(line))
    for source in found.failures:
        where = f"{source.distribution} {source.version} ({source.module})"
        click.echo(visible(f"{source.entry:<22} does not work: {where} {source.error}"))
    for text in _conflicts(found):
        click.echo(visible(f"conflict: {text}; uninstall one of them"))


def _conflicts(found: Plugins) -> list[str]:
    """Return one message for each name of a plugin or a command that is offered twice."""
    from ..commands import conflicts

    parent = click.get_current_context().parent
    own = parent.command.commands if parent and isinstance(parent.command, click.Group) else {}
    return [*found.duplicates(), *conflicts(own)]
