"""The command `doctor`: what works on this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..terminal import paint
from ..text import visible
from . import options
from .show import TROUBLESHOOTING, echo, echo_next, print_json

if TYPE_CHECKING:
    from ..doctor import Verdict
    from ..records import Diagnosis

_STATES = {True: ("usable", "green"), False: ("not usable", "red"), None: ("not set up", "yellow")}
_MARKS = {True: ("ok", "green"), False: ("wrong", "red"), None: ("-", "dim")}


@click.command()
@click.argument("recipe", required=False)
@options.overrides
@options.out
@options.verbose
@options.as_json
@click.pass_obj
def doctor(
    debug: bool, recipe: str | None, overrides: tuple[str, ...], out: Path, verbose: bool, as_json: bool
) -> None:
    """Say what works on this machine and what does not, with the fix: all that is installed, or what RECIPE needs.

    The exit status is 0 where all of it is usable, else 1. Without a recipe, what is not set up counts as usable.
    """
    from .. import interface
    from ..console import Console
    from ..errors import InputError

    if overrides and recipe is None:
        raise InputError("--set changes a recipe, and none is named", "ftkit doctor RECIPE --set KEY=VALUE")
    with Console(debug).working("doctor"):
        found = interface.doctor(recipe, overrides, out)
    if as_json:
        print_json(found.to_dict())
    else:
        for verdict in found.verdicts:
            _print_verdict(verdict, verbose or recipe is not None)
    again = f"ftkit doctor {recipe}" if recipe else "ftkit doctor"
    echo_next((f"ftkit check {recipe}" if recipe else "ftkit doctor RECIPE") if found.ok else f"{again}, after the fix")
    sys.exit(0 if found.ok else 1)


def _print_verdict(verdict: Verdict, all_of_it: bool) -> None:
    """Print one verdict; of a usable plugin the single diagnoses only where they are asked for."""
    state, colour = _STATES[verdict.ok]
    kind = "" if verdict.kind == "machine" else f" ({verdict.kind})"
    print(f"{visible(verdict.name)}{kind}: {paint(state, colour, stream=sys.stdout)}", flush=True)
    shown = verdict.diagnoses if all_of_it or verdict.kind == "machine" else _telling(verdict)
    for diagnosis in shown:
        mark, colour = _MARKS[diagnosis.ok]
        print(
            f"  {paint(f'{mark:5}', colour, stream=sys.stdout)} {visible(diagnosis.what)}: {visible(diagnosis.detail)}"
        )
    worst = verdict.worst
    if verdict.ok is not True and worst is not None:
        if worst.fix:
            echo(f"  fix: {worst.fix}")
        if worst.see:
            echo(f"  see: {_page(worst.see)}")


def _telling(verdict: Verdict) -> Iterator[Diagnosis]:
    """Yield what decides the verdict."""
    return (d for d in verdict.diagnoses if d.ok is not True and d.ok is verdict.ok)


def _page(see: str) -> str:
    return see if see.startswith(("http://", "https://")) else f'{TROUBLESHOOTING}, "{see}"'
