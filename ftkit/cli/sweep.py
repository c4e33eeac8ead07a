"""The command that searches for a better setting: sweep."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import InputError
from . import options
from .show import echo, echo_next, echo_table, print_json, print_report


@click.command()
@click.argument("recipe", required=False)
@click.option(
    "--vary",
    multiple=True,
    metavar="KEY=VALUES",
    help="Values to try, such as backend.lora_r=4,8,16; with --search tpe also a range: 1e-5..1e-3:log.",
)
@options.overrides
@click.option("--one-at-a-time", is_flag=True, help="Change one key at a time, beside the recipe's own setting.")
@click.option("--search", type=click.Choice(["grid", "tpe"]), help="grid: all combinations (default); tpe: a search.")
@click.option("--trials", type=int, metavar="N", help="With --search tpe: how many settings to try (default 20).")
@click.option("--prune", is_flag=True, help="End a training early that is worse than most, on the validation rows.")
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Train each setting N times; it counts by its mean.",
)
@click.option(
    "--parallel", type=click.IntRange(min=1), metavar="N", help="So many trials at the same time (default 1)."
)
@click.option(
    "--out",
    default="runs",
    type=click.Path(path_type=Path),
    help="Where the sweep's directory is made (default runs/).",
)
@click.option("--yes", is_flag=True, help="Do not ask before money is spent (for backends that cost any).")
@click.option(
    "--resume", "resume_dir", metavar="DIR", type=click.Path(path_type=Path), help="Resume a sweep from its directory."
)
@options.lang
@options.as_json
@click.pass_obj
def sweep(
    debug: bool, recipe: str | None, vary: tuple[str, ...], overrides: tuple[str, ...], one_at_a_time: bool, search: str | None,
    trials: int | None, prune: bool, seeds: int, parallel: int | None, out: Path, yes: bool, resume_dir: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Try settings on the validation rows, and measure the best one on the test rows."""
    from .. import interface
    from ..console import Console

    if bool(recipe) == bool(resume_dir):
        raise InputError("name a recipe, or a sweep to --resume (and not both)")
    console = Console(debug)
    if resume_dir is not None:
        fixed = {"--vary": vary, "--set": overrides, "--one-at-a-time": one_at_a_time, "--search": search}
        fixed |= {"--trials": trials, "--prune": prune, "--seeds": seeds > 1}
        given = [name for name, value in fixed.items() if value]
        if given:
            raise InputError(f"--resume keeps to the plan of the sweep: it takes no {' and no '.join(given)}")
        done = interface.sweep(None, resume=resume_dir, parallel=parallel, console=console)
    else:
        if one_at_a_time and search:
            raise InputError("--one-at-a-time and --search exclude each other")
        done = interface.sweep(
            recipe,
            vary,
            search="one-at-a-time" if one_at_a_time else search or "grid",
            trials=trials,
            prune=prune,
            seeds=seeds,
            parallel=parallel,
            overrides=overrides,
            out=out,
            yes=yes,
            console=console,
        )
    if as_json:
        print_json(done.to_dict())
        return
    from ..sweep.page import header, row, scale_of_lines

    lines, plan = done.leaderboard, done.sweep.plan
    scale = scale_of_lines(lines)
    echo()
    echo_table([header(plan, scale), *(row(plan, line, scale) for line in lines)], elastic=(len(plan.keys) + 5,))
    print_report(done.dir)
    echo_next(f"ftkit open {done.dir}")
