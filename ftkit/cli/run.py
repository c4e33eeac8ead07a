"""Commands over recipes and runs in progress: run, check, preview, cancel."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError, Problem
from ..text import counted, dollars, duration, size, visible
from . import options
from .show import print_json, print_report, problems_in

if TYPE_CHECKING:
    from ..records import Rendered
    from ..run.prepare import Preflight

_PREVIEWED = 2000  # rows whose lengths `preview` measures, about two seconds; `check` measures all


@click.command()
@click.argument("recipes", nargs=-1)
@options.overrides
@options.out
@click.option("--resume", "resume_dir", metavar="RUN_DIR", help="Resume an unfinished run; takes no recipe.")
@click.option(
    "--on", "where", metavar="WHERE", help="Run elsewhere, through an installed launcher: NAME or NAME:WHERE."
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    metavar="N",
    help="Train each recipe N times: with its seed and the next ones.",
)
@click.option("--dry-run", is_flag=True, help="Stop after everything was checked.")
@click.option("--yes", is_flag=True, help="Do not ask before money is spent (for backends that cost any).")
@click.option(
    "--answer",
    "answers",
    multiple=True,
    metavar="KEY=VALUE",
    help="With --resume: answer a question of the run's backend.",
)
@click.option("--no-reuse", is_flag=True, help="Measure the baseline again even where another run in --out has it.")
@options.as_json
@click.pass_obj
def run(
    debug: bool, recipes: tuple[str, ...], overrides: tuple[str, ...], out: Path, resume_dir: str | None, where: str | None,
    seeds: int | None, dry_run: bool, yes: bool, answers: tuple[str, ...], no_reuse: bool, as_json: bool,
) -> None:  # fmt: skip
    """Measure the base model, fine-tune, measure again, and write a report. Several recipes share one."""
    from .. import interface
    from ..console import Console

    if bool(recipes) == bool(resume_dir):
        raise InputError(
            "name a recipe, or a run to --resume (and not both)", "`ftkit recipes` lists what ships with ftkit"
        )
    if resume_dir and (overrides or dry_run):
        raise InputError("--resume uses the run's own recipe: it takes no --set and no --dry-run")
    if resume_dir and seeds is not None:
        raise InputError("--resume resumes one run: it takes no --seeds", "the runs of --seeds are resumed one by one")
    if answers and not resume_dir:
        raise InputError("--answer goes with --resume RUN_DIR")
    console = Console(debug)
    if dry_run:
        if seeds is not None and seeds > 1:
            click.echo(f"--seeds {seeds}: each recipe is trained {seeds} times; the estimates are of one", err=True)
        _check_all(recipes, overrides, debug, as_json)
    if resume_dir:
        pairs = dict(_key_and_value(text) for text in answers)
        done: Any = interface.resume(resume_dir, console, pairs, where)
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
        print_report(done.dir)


def _key_and_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--answer {text}: not of the form KEY=VALUE")
    return key, value


@click.command()
@click.argument("recipes", nargs=-1, required=True)
@options.overrides
@options.as_json
@click.pass_obj
def check(debug: bool, recipes: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> None:
    """Say everything that can be known before spending: recipe, data audit, labels, fit, price."""
    _check_all(recipes, overrides, debug, as_json)


def _check_all(recipes: Sequence[str], overrides: Sequence[str], debug: bool, as_json: bool) -> None:
    found = [_checked(name, overrides, debug) for name in recipes]
    if as_json:
        print_json(found if len(found) > 1 else found[0])
    sys.exit(0 if all(f["ok"] for f in found) else 2)


def _checked(name: str, overrides: Sequence[str], debug: bool) -> dict[str, Any]:
    """Check one recipe; print it for people on stderr and return it for programs."""
    import tempfile

    from ..console import Console
    from ..interface import load

    try:
        recipe = load(name, overrides)
    except InputError as error:
        click.echo(visible(str(error)), err=True)
        problems = problems_in(error)
        _show_count(name, len(problems))
        return _checked_as_dict(name, problems)
    from ..run.prepare import preflight, problems_of

    with tempfile.TemporaryDirectory() as folder, Console(debug).quiet(Path(folder, "log")):
        found = preflight(recipe)
    problems = problems_of(recipe, found.findings)
    _show_findings(name, found, problems)
    return _checked_as_dict(name, problems, found.audit, found.estimate, found.control_estimates)


def _show_findings(name: str, found: Preflight, problems: Iterable[Problem]) -> None:
    """Say what `ftkit check` found."""
    for p in problems:
        click.echo(visible(("" if p.level == "error" else f"{p.level}: ") + str(p)), err=True)
    if found.task is not None:
        rows = ", ".join(f"{len(part)} {split}" for split, part in found.task.splits.items())
        click.echo(visible(f"{name}: {rows} rows"), err=True)
    for estimate in found.estimates:
        of = f"control {estimate['control']}: " if "control" in estimate else ""
        if "not_estimated" in estimate and not of:
            click.echo(visible(f"not estimated: {estimate['not_estimated']}"), err=True)
        parts = [f"{size(estimate['memory_bytes'])}"] if estimate.get("memory_bytes") else []
        parts += [duration(estimate["seconds"])] if estimate.get("seconds") else []
        parts += [f"{dollars(estimate['usd'])}"] if estimate.get("usd") is not None else []
        parts += [str(estimate["usd_detail"])] if estimate.get("usd_detail") else []
        if parts:
            click.echo(visible(f"{of}estimate (rough): {', '.join(parts)}"), err=True)
    _show_count(name, len(found.errors))


def _checked_as_dict(
    name: str,
    problems: Sequence[Problem],
    audit: Mapping[str, Any] | None = None,
    estimate: Any = None,
    controls: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return what `check --json` prints of one recipe."""
    levels = {level: [p.to_dict() for p in problems if p.level == level] for level in ("error", "warning")}
    return {
        "recipe": name,
        "ok": not levels["error"],
        "errors": levels["error"],
        "warnings": levels["warning"],
        "audit": audit or {},
        "estimate": estimate or {},
        "control_estimates": list(controls),
    }


def _show_count(name: str, errors: int) -> None:
    """Say whether a recipe is right: its mistakes may stand in the files that it extends."""
    many = "ok" if not errors else "1 error" if errors == 1 else f"{errors} errors"
    click.echo(visible(f"{name}: {many}"), err=True)


@click.command()
@click.argument("recipe")
@options.overrides
@click.option("--split", default="train", help="Which split the example is taken from.")
@click.option("--index", default=0, help="Which example, counted from 0.")
@options.as_json
@click.pass_obj
def preview(debug: bool, recipe: str, overrides: tuple[str, ...], split: str, index: int, as_json: bool) -> None:
    """Show one training example as the model sees it, and which tokens are in the loss mask."""
    import tempfile
    from dataclasses import replace

    from ..console import Console
    from ..data.task import load_task
    from ..interface import load
    from ..run.prepare import token_lengths

    loaded = load(recipe, overrides)
    with tempfile.TemporaryDirectory() as folder, Console(debug).quiet(Path(folder, "log")):
        task, _ = load_task(loaded)
        rows = task.splits.get(split, ())
        if not -len(rows) <= index < len(rows):
            raise InputError(f"the {split} split has {len(rows)} rows: there is no row {index}")
        backend = loaded.backend.make()
        try:
            shown = next(iter(backend.render([rows[index]])))
            lengths = token_lengths(backend, replace(task, splits={split: rows[:_PREVIEWED]}))
        except NotImplementedError as error:
            raise InputError(str(error)) from None
    if as_json:
        print_json({"example": shown.to_dict(), "rows": len(rows), "lengths": lengths})
        return
    limit = backend.length_limit
    _print_example(shown, lengths, len(rows), limit.key if limit else None)


def _print_example(shown: Rendered, lengths: Mapping[str, Any], rows: int, limit_key: str | None) -> None:
    """Print one training example token by token, with counts, and the lengths of its split of so many `rows`."""
    _print_tokens(shown)
    if shown.finding is not None:
        click.echo(visible(f"\n{shown.finding.level}: {shown.finding.message}\n  {shown.finding.hint or ''}".rstrip()))
    click.echo(f"\n{len(shown.ids)} tokens: {shown.n_prompt} of the prompt, {sum(shown.loss_mask)} in the loss mask")
    if any(shown.truncated):
        click.echo(f"cut off: {shown.truncated[0]} prompt tokens, {shown.truncated[1]} target tokens")
    for name, facts in lengths.items():
        if isinstance(facts, dict):
            seen = facts["rendered"]
            which = f"the first {seen:,} of {rows:,} rows" if seen < rows else f"all {rows:,} rows"
            lengths_of = f"median {facts['median']:.0f}, 95 % below {facts['p95']:.0f}, longest {facts['max']} tokens"
            lose = ", ".join(
                f"{counted(n, 'loses', 'lose')} {part} tokens"
                for part in ("prompt", "target")
                if (n := facts[f"lose_{part}_tokens"])
            )
            lost = f"; {lose}{f' ({limit_key})' if limit_key else ''}" if lose else ""
            click.echo(f"{name}, {which}: {lengths_of}{lost}")


def _print_tokens(shown: Rendered) -> None:
    """Print the tokens with their boundaries: those in the loss mask green on a terminal, in «» elsewhere."""
    colour = sys.stdout.isatty()
    for token, trained in zip(shown.tokens, shown.loss_mask, strict=True):
        text = visible(token.replace(" ", "·").replace("▁", "·").replace("\n", "⏎\n"))
        if colour:
            click.secho(text, fg="green" if trained else None, bold=trained, nl=False)
            click.secho("|", dim=True, nl=False)
        else:
            click.echo(f"«{text}»" if trained else f"{text}|", nl=False)
    click.echo()


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
        click.echo(visible(f"{entry['what']} {entry['id']}: {entry['status']}"))
    if not done.ended and not done.unknown:
        click.echo("nothing to cancel: this run has nothing in progress elsewhere")
    for text in done.notes:
        click.echo(visible(text))
