"""Commands that make a result one that others can have: rerun, diff, verify, pack."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..text import metric_value, p_equals, scale_for, size, visible
from . import options
from .show import print_json

if TYPE_CHECKING:
    from ..report.diff import AnswerDiff, MetricDiff, RunsDiff
    from ..run.verify import Verification

_SHOWN = 10  # changes, and examples, that the terminal shows; --json has all
_TEXT = 300  # characters of an answer


_trust = click.option("--trust", is_flag=True, help="Let the recipe of an archive allow code of others to run here.")


@click.command()
@click.argument("run")
@options.overrides
@options.out
@click.option("--dry-run", is_flag=True, help="Stop after the differences between lock and machine were named.")
@click.option("--yes", is_flag=True, help="Do not ask before money is spent (for backends that cost any).")
@_trust
@options.as_json
@click.pass_obj
def rerun(
    debug: bool, run: str, overrides: tuple[str, ...], out: Path, dry_run: bool, yes: bool, trust: bool, as_json: bool
) -> None:
    """Run RUN (a run directory or a packed archive) again, and say whether the result is the same.

    The exit status is 0 where the result is identical or equal within the interval, else 1.
    """
    from .. import reproduce
    from ..console import Console
    from ..run.rerun import EQUAL, IDENTICAL

    done = reproduce.rerun(run, out, overrides, Console(debug), yes, dry_run, trust)
    folder = None if done.run is None else str(out / done.run)
    if as_json:
        print_json({**done.to_dict(), "run": folder})
    elif dry_run:
        for text in done.differences or ("nothing that lock.json records differs here",):
            click.echo(visible(text))
    else:
        click.echo(visible(f"{done.verdict}: {done.detail}"))
        if folder is not None:
            click.echo(visible(f"run: {folder}"), err=True)
    sys.exit(0 if done.verdict in ("", IDENTICAL, EQUAL) else 1)


@click.command()
@click.argument("before")
@click.argument("now")
@options.as_json
def diff(before: str, now: str, as_json: bool) -> None:
    """Say in what two runs differ: recipe, lock, data, metrics (with paired tests) and answers."""
    from .. import reproduce

    found = reproduce.diff(before, now)
    if as_json:
        print_json({**found.to_dict(), "identical": found.identical})
    else:
        _print_diff(found)


def _print_diff(found: RunsDiff) -> None:
    from ..locked import Change
    from ..report.diff import headline, split_in_words

    for title, changes in (("recipe", found.recipe), ("lock", found.lock)):
        for change in changes[:_SHOWN]:
            click.echo(visible(f"{title}: {Change(**change)}"))
        if len(changes) > _SHOWN:
            click.echo(f"{title}: {len(changes) - _SHOWN} more (--json has all)")
    for split in found.data:
        if not split.same:
            click.echo(visible(f"data: {split_in_words(split)}"))
    for name in found.unmatched:
        click.echo(visible(f"only one of the two runs has the measurement {name}"))
    for metric in found.metrics:
        if not metric.identical:
            click.echo(visible(_metric_line(metric)))
    for answer in found.answers[:_SHOWN]:
        _print_answer(answer)
    if len(found.answers) > _SHOWN:
        click.echo(f"{len(found.answers) - _SHOWN} more answers differ (--json has all)")
    click.echo(visible(headline(found)))


def _metric_line(m: MetricDiff) -> str:
    scale = scale_for(m.unit, [m.before, m.now])
    text = f"{m.measurement} {m.metric}: {metric_value(m.before, m.unit)} -> {metric_value(m.now, m.unit)}"
    if m.delta is None:
        return f"{text} (no row in common)"
    interval = scale.signed_interval(m.low, m.high)
    parts = [f"paired difference {scale.signed(m.delta)} {scale.delta_unit}"]
    parts += [f"95 % interval {interval}"] if interval else []
    return f"{text}; {', '.join([*parts, f'{p_equals(m.p_adjusted)} (Holm)', f'n={m.n}'])}"


def _print_answer(a: AnswerDiff) -> None:
    click.echo(visible(f"{a.measurement} {a.example_id}{f' (answer {a.sample + 1})' if a.sample else ''}:"))
    for sign, text, score in (("-", a.before, a.score_before), ("+", a.now, a.score_now)):
        shown = text if len(text) <= _TEXT else f"{text[:_TEXT]}..."
        click.echo(visible(f"  {sign} {shown}" + ("" if score is None else f"  [{score:g}]")))


@click.command()
@click.argument("run")
@click.option("--against", metavar="DATA", help="Read the rows again from DATA (a path, or a hub id), and compare.")
@_trust
@options.as_json
def verify(run: str, against: str | None, trust: bool, as_json: bool) -> None:
    """Check RUN (a run directory or a packed archive): its files, and every number that follows from other files.

    The exit status is 0 where nothing is wrong, else 1.
    """
    from .. import reproduce

    found = reproduce.verify(run, against, trust)
    if as_json:
        print_json(found.to_dict())
    else:
        _print_verification(found)
    sys.exit(0 if found.ok else 1)


def _print_verification(found: Verification) -> None:
    for check in found.checks:
        word = {True: "ok", False: "WRONG", None: "not checked"}[check.ok]
        click.echo(visible(f"{check.name}: {word}" + (f" ({check.note})" if check.note else "")))
        for problem in check.problems:
            click.echo(visible(f"  {problem}"))
    for note in found.notes:
        click.echo(visible(f"note: {note}"))
    wrong = sum(check.ok is False for check in found.checks)
    click.echo(f"{found.run}: " + (f"{wrong} of {len(found.checks)} checks failed" if wrong else "nothing is wrong"))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", "target", type=click.Path(path_type=Path), help="Path of the archive (default: RUN.tar.gz).")
@click.option("--anyway", is_flag=True, help="Pack the run although a file holds what looks like a secret.")
@options.as_json
def pack(run: Path, target: Path | None, anyway: bool, as_json: bool) -> None:
    """Write RUN into one archive to send; `ftkit verify`, `rerun`, `diff` and `report` take it."""
    from .. import reproduce

    archive = reproduce.pack(run, target, anyway)
    n = archive.stat().st_size
    if as_json:
        print_json({"archive": str(archive), "bytes": n})
    else:
        click.echo(visible(f"{archive}: {size(n)} ({n:,} bytes)"))
