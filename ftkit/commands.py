"""Commands that plugins bring: found, described and refused. Light, since `ftkit --help` imports it.

The entry-point group `ftkit.commands` names click commands. The rules for names that occur twice are those of plugins.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint
from typing import Any

from .errors import InputError

GROUP = "ftkit.commands"


def plugin_commands() -> dict[str, list[EntryPoint]]:
    """Return the commands that plugins bring, by name; nothing is imported. Two entries are a conflict."""
    commands: dict[str, list[EntryPoint]] = {}
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda e: (e.name, e.value)):
        commands.setdefault(entry.name, []).append(entry)
    return dict(sorted(commands.items()))


def load_command(entries: Sequence[EntryPoint]) -> Any:
    """Return the click command of one name. Raises InputError where two plugins bring it, or it cannot be loaded."""
    if len(entries) > 1:
        raise InputError(conflict(entries[0].name, entries), "uninstall one of them")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to results
            return entries[0].load()
    except Exception as error:
        why = " ".join(str(error).split())
        raise InputError(f"command {entries[0].name!r} of {_source(entries[0])} cannot be loaded: {why}") from None


def conflicts(own: Iterable[str]) -> list[str]:
    """Return one message for each command that two plugins bring, or that has the name of one of ftkit's `own`."""
    known = set(own)
    found = plugin_commands().items()
    return [conflict(name, entries, name in known) for name, entries in found if name in known or len(entries) > 1]


def conflict(name: str, entries: Sequence[EntryPoint], own: bool = False) -> str:
    """Return who brings the command `name`; `own` says that ftkit itself does."""
    sources = [f"ftkit {importlib.metadata.version('ftkit')}"] if own else []
    return f"command {name!r} is offered by both {' and '.join([*sources, *map(_source, entries)])}"


def _source(entry: EntryPoint) -> str:
    dist = entry.dist
    return f"{dist.name} {dist.version} ({entry.value})" if dist else entry.value
