"""Commands over recipes and runs in progress: run, check, preview, cancel."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from ..terminal import colourful, paint
from ..text import dollars, duration, size, visible
from . import options
from .show import echo, echo_next, print_json, print_report, problems_in, show_problems

if TYPE_CHECKING:
    from ..looking import Preview


@click.command()
@click.argument("recipes", nargs=-1)
@options.overrides
@options.out
@click.option(
    "--resume",
    "resume_dir",
    metavar="RUN_DIR",
    help="Resume an unfinished run; takes no recipe. --set may change options that change no measured number; in a "
    "finished run it may add steps.",
)
@click.option(
    "--on",
    "where",
    metavar="WHERE",
    help="Run elsewhere, through an installed launcher: NAME, NAME:WHERE, NAME:WHERE,OPTION=VALUE.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    metavar="N",
    help="Train each recipe N times: with its seed and the next ones.",
)
@click.option("--dry-run", is_flag=True, help="Stop after everything was checked.")
@options.gpu
@click.option("--yes", is_flag=True, help="Do not ask before money is spent (for backends that cost any).")
@click.option(
    "--answer",
    "answers",
    multiple=True,
    metavar="KEY=VALUE",
    help="With --resume: answer a question of the run's backend.",
)
@click.option("--no-reuse", is_flag=True, help="Measure the baseline again even where another run in --out has it.")
@options.verbose
@options.lang
@options.as_json
@click.pass_obj
def run(
    debug: bool, recipes: tuple[str, ...], overrides: tuple[str, ...], out: Path, resume_dir: str | None, where: str | None,
    seeds: int | None, dry_run: bool, gpu: str | None, yes: bool, answers: tuple[str, ...], no_reuse: bool, verbose: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Measure the base model, fine-tune, measure again, and write a report. Several recipes share one."""
    from .. import interface
    from ..console import Console
    from ..listing import short_id
    from ..results import RunResult

    if bool(recipes) == bool(resume_dir):
        raise InputError(
            "name a recipe, or a run to --resume (and not both)", "`ftkit recipes` lists what ships with ftkit"
        )
    if resume_dir and dry_run:
        raise InputError("--resume uses the run's own recipe, which was checked: it takes no --dry-run")
    if resume_dir and seeds is not None:
        raise InputError("--resume resumes one run: it takes no --seeds", "the runs of --seeds are resumed one by one")
    if answers and not resume_dir:
        raise InputError("--answer goes with --resume RUN_DIR")
    if gpu is not None and not dry_run:
        raise InputError("--gpu goes with --dry-run: it asks about a machine that is not here")
    console = Console(debug)
    if dry_run:
        if seeds is not None and seeds > 1:
            echo(f"--seeds {seeds}: each recipe is trained {seeds} times; the estimates are of one", err=True)
        _show_limit(where)
        _check_all(recipes, overrides, debug, as_json, gpu)
    if resume_dir:
        pairs = dict(_key_and_value(text) for text in answers)
        done: Any = interface.resume(resume_dir, console, pairs, where, overrides, yes)
    else:
        done = interface.run(
            *recipes,
            overrides=overrides,
            out=out,
            reuse=not no_reuse,
            console=console,
            yes=yes,
            where=where,
            seeds=seeds,
        )
    if as_json:
        print_json(done.to_dict())
    else:
        print_report(done.dir, verbose)
        echo_next(f"ftkit open {short_id(done.dir.name) if isinstance(done, RunResult) else done.dir}")


def _show_limit(where: str | None) -> None:
    """Say what a run at this place may cost at most."""
    from ..run.elsewhere import launch_estimate

    limit = launch_estimate(where, ())
    if limit.get("usd") is not None:
        detail = f"{dollars(limit['usd'])} a run. {limit.get('usd_detail', '')}".rstrip()
        echo(f"price limit: {limit['launcher']}, at most {detail}", err=True)


def _key_and_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--answer {text}: not of the form KEY=VALUE")
    return key, value


@click.command()
@click.argument("recipes", nargs=-1, required=True)
@options.overrides
@options.gpu
@options.as_json
@click.pass_obj
def check(debug: bool, recipes: tuple[str, ...], overrides: tuple[str, ...], gpu: str | None, as_json: bool) -> None:
    """Say everything that can be known before spending: recipe, data audit, labels, fit, price."""
    _check_all(recipes, overrides, debug, as_json, gpu)


def _check_all(
    recipes: Sequence[str], overrides: Sequence[str], debug: bool, as_json: bool, gpu: str | None = None
) -> None:
    if gpu is not None:
        from ..machines import machine

        machine(gpu)  # a name that is not known ends the command, before a recipe is read
    found = [_checked(name, overrides, debug, gpu) for name in recipes]
    good = all(f["ok"] for f in found)
    if as_json:
        print_json(found if len(found) > 1 else found[0])
    changes = [part for text in overrides for part in ("--set", text)]
    echo_next(shlex.join(["ftkit", "run" if good else "check", *recipes, *changes]))
    sys.exit(0 if good else 2)


def _checked(name: str, overrides: Sequence[str], debug: bool, gpu: str | None) -> dict[str, Any]:
    """Check one recipe; print it for people on stderr and return it for programs."""
    from .. import interface
    from ..console import Console
    from ..looking import Checked

    try:
        found = interface.check(name, overrides, Console(debug), gpu)
    except InputError as error:  # there is no such recipe
        found = Checked(tuple(problems_in(error)))
    show_problems(found.problems)
    for line in found.summary:
        echo(line, err=True)
    for estimate in (found.estimate, *found.control_estimates):
        _show_estimate(estimate)
    echo(f"{name}: {found.count}", err=True)
    return {"recipe": name, **found.to_dict()}


def _show_estimate(estimate: Mapping[str, Any]) -> None:
    """Say what a backend is estimated to need, or one of the recipe's controls."""
    of = f"control {estimate['control']}: " if "control" in estimate else ""
    if "not_estimated" in estimate and not of:
        echo(f"not estimated: {estimate['not_estimated']}", err=True)
    if estimate.get("memory"):
        echo(f"{of}memory: {estimate['memory']}", err=True)
    parts = [f"{size(estimate['memory_bytes'])}"] if estimate.get("memory_bytes") and not estimate.get("memory") else []
    parts += [duration(estimate["seconds"])] if estimate.get("seconds") else []
    parts += [f"{dollars(estimate['usd'])}"] if estimate.get("usd") is not None else []
    parts += [str(estimate["usd_detail"])] if estimate.get("usd_detail") else []
    if parts:
        echo(f"{of}estimate (rough): {', '.join(parts)}", err=True)


@click.command()
@click.argument("recipe")
@options.overrides
@click.option("--split", default="train", help="Which split the example is taken from.")
@click.option("--index", default=0, help="Which example, counted from 0.")
@options.as_json
@click.pass_obj
def preview(debug: bool, recipe: str, overrides: tuple[str, ...], split: str, index: int, as_json: bool) -> None:
    """Show one training example as the model sees it, and which tokens are in the loss mask."""
    from .. import interface
    from ..console import Console

    found = interface.preview(recipe, split, index, overrides, Console(debug))
    if as_json:
        print_json(found.to_dict())
        return
    echo_tokens(found)
    echo()
    for line in found.facts:
        echo(line)


def echo_tokens(found: Preview) -> None:
    """Print the tokens with their boundaries: those in the loss mask green, or in «» where there are no colours."""
    if not colourful(sys.stdout):
        echo(found.text)
        return
    from ..looking import shown_tokens
    from ..tokens import pieces

    bar = paint("|", "dim", stream=sys.stdout)
    for piece in pieces(shown_tokens(found.example), found.example.loss_mask):
        styles = ("green", "bold") if piece.trained else ()
        print(paint(visible(str(piece)), *styles, stream=sys.stdout), end=bar)
    print(flush=True)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@options.as_json
def cancel(run: Path, as_json: bool) -> None:
    """End what RUN has started at a provider, and start no more; what it has trained so far may be billed."""
    from .. import interface

    done = interface.cancel(run)
    if as_json:
        print_json({"run": str(run), "cancelled": list(done.ended), "outcome_unknown": list(done.unknown)})
        return
    for entry in done.ended:
        echo(f"{entry['what']} {entry['id']}: {entry['status']}")
    if not done.ended and not done.unknown:
        echo("nothing to cancel: this run has nothing in progress elsewhere")
    for text in done.notes:
        echo(text)
