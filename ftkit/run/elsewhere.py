"""Launchers as `--on` names them: NAME, NAME:PLACE, NAME:PLACE,OPTION=VALUE; and what a run there may cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..api import Launcher
from ..console import Console
from ..directory import RunDirectory
from ..errors import RecipeError
from ..files import read_json, write_json
from ..recipe.load import make_plugin
from .prices import confirm_price

HERE = "here"  # the `where` of this machine
ESTIMATE = "launch_estimate"  # the key of audit.json that holds what was confirmed


def place_of(where: str) -> str:
    """Return `NAME:PLACE` without the options behind it: a run may be resumed there with others."""
    return where.split(",")[0]


def launcher_at(where: str) -> tuple[Launcher, str]:
    """Return the launcher that `where` names, made with its options, and its place ("" where none is named).

    Raises InputError for an unknown launcher, RecipeError for an option that it does not have.
    """
    head, *options = where.split(",")
    name, _, place = head.partition(":")
    try:
        launcher: Launcher = make_plugin("launcher", name, options)
    except RecipeError as error:
        raise RecipeError([replace(p, file="--on", line=None, column=None) for p in error.problems]) from None
    return launcher, place


def launch_estimate(where: str | None, estimates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what `Launcher.estimate` says of `where`; {} for this machine and for a launcher that costs nothing.

    `estimates` are those of the run's backend and controls.
    """
    if where is None or where == HERE:
        return {}
    launcher, place = launcher_at(where)
    found = launcher.estimate(place, estimates)
    return {"launcher": launcher.name, **found} if found else {}


def confirm_place(run: RunDirectory, where: str, console: Console, yes: bool) -> None:
    """Confirm what a run that was prepared for another place may cost at this one, and keep what was confirmed."""
    path = run.path("audit.json")
    audit = read_json(path) if path.exists() else {}
    found = launch_estimate(where, [e for e in (audit.get("estimate"), *audit.get("control_estimates", ())) if e])
    if found:
        confirm_price([found], console, yes)
    write_json(path, {**audit, ESTIMATE: found})
