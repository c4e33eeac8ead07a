"""Commands over the runs in a folder: runs, open, rm, clean."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import InputError
from ..lang import msg, plural, tr, word
from ..terminal import cells, columns, fit
from ..text import NONE, age, counted, duration, scale_for, size, visible
from . import options
from .show import echo, echo_next, echo_table, print_json

if TYPE_CHECKING:
    from ..listing import Summary

_CSV = ("run", "name", "status", "started", "seconds", "metric", "unit", "base", "tuned", "change", "why")


_COLUMNS = (msg("id"), msg("name"), msg("age"), msg("time"), msg("score"), msg("change"), msg("status"))


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@options.out
@click.option(
    "--sort",
    "order",
    metavar="KEY",
    help="By age, name, time, base, tuned, change or status: the newest, longest or best first.",
)
@click.option(
    "--where", "conditions", multiple=True, metavar="KEY=VALUE",
    help="Only runs whose recipe says so, such as backend.lora_r=8 (or status=failed).",
)  # fmt: skip
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values on stdout.")
@options.verbose
@options.lang
@options.as_json
def runs(
    folder: Path | None, out: Path, order: str | None, conditions: tuple[str, ...], as_csv: bool, verbose: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """List what was run in FOLDER (the same as --out FOLDER): age, time, scores, status, and why a run failed.

    Without --sort, the newest is the last. Every command takes the first column in place of a run's folder.
    """
    from .. import listing

    if as_csv and as_json:
        raise InputError("--csv and --json: choose one of them")
    out = folder or out
    everything = listing.summaries(out)
    found = listing.chosen(everything, conditions)
    found = listing.in_order(found, order) if order else found
    if as_json:
        print_json({"runs": [s.to_dict() for s in found]})
    elif as_csv:
        _print_csv(found)
    elif not everything:
        echo(tr("no runs in {folder}/", folder=out), err=True)
        echo_next(tr("ftkit run quickstart (`ftkit recipes` lists what ships with ftkit)"))
    elif not found:
        one, many = (
            msg("none of the {n:,} run in {folder}/ is like that"),
            msg("none of the {n:,} runs in {folder}/ is like that"),
        )
        echo(plural(len(everything), one, many, folder=out), err=True)
    else:
        _print_runs(found, verbose)
        echo_next(_next(found))


def _print_runs(found: Sequence[Summary], verbose: bool) -> None:
    """Print one run a row; below the table, why runs are not done."""
    from ..listing import short_id
    from ..report.spoken import translator

    names = {m.name for s in found for m in s.metrics.values()}
    one = next(iter(names)) if len(names) == 1 else None
    rows = [[tr(name) for name in _COLUMNS]]
    rows[0][4] = one or rows[0][4]
    for s in found:
        metrics = [m for m in (s.base, s.tuned) if m is not None]
        scale = scale_for(metrics[0].unit, [m.value for m in metrics]) if metrics else None
        score = " -> ".join(scale.value(m.value) for m in metrics) if scale else NONE
        if metrics and one is None:
            score = f"{metrics[-1].name} {score}"
        change = scale.signed(s.change) if scale else NONE
        rows.append([short_id(s.run.id), s.record.name, age(s.age), duration(s.seconds), score, change, word(s.status)])
    echo_table(rows, left=(0, 1, 6), elastic=(1, 4))
    width, translate = columns(sys.stdout), translator({})
    whys = [f"{short_id(s.run.id)} {word(s.status)}: {translate(s.why)}" for s in found if s.why]
    if whys:
        echo()
    for why in whys:
        echo(why if verbose else fit(visible(why), width))
    if verbose:
        echo()
        for s in found:
            echo(f"{short_id(s.run.id)}  {s.run.dir}")
    for path in (path for s in found for path in s.unreadable):
        echo(tr("cannot be read: {path}", path=path), err=True)


def _next(found: Sequence[Summary]) -> str:
    """Return what one would do now: resume the newest run if it did not end well, else look at results."""
    from ..listing import short_id

    newest = max(found, key=lambda s: s.record.started)
    name = short_id(newest.run.id)
    if newest.status in ("interrupted", "killed", "failed", "prepared"):
        return f"ftkit run --resume {newest.run.dir}"
    done = [s for s in found if s.status == "done"]
    if len(done) > 1:
        last = " ".join(str(s.run.dir) for s in done[-2:])
        return tr("ftkit open {name} (its report), or ftkit report {runs}", name=name, runs=last)
    return f"ftkit open {name}"


def _print_csv(found: Sequence[Summary]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(_CSV)
    for s in found:
        metric = s.tuned or s.base
        values = [m.value if m else "" for m in (s.base, s.tuned)]
        about = [metric.name, metric.unit] if metric else ["", ""]
        row = [s.run.dir, s.record.name, s.status, s.record.started, s.seconds, *about, *values, s.change, s.why]
        writer.writerow(["" if cell is None else cell for cell in row])


# ---------------------------------------------------------------- open


@click.command(name="open")
@click.argument("run", required=False)
@options.out
@click.option("--print", "only_print", is_flag=True, help="Only print where the report is.")
def open_(run: str | None, out: Path, only_print: bool) -> None:
    """Show a report in the browser: of RUN (a folder, or the id of `ftkit runs`), else the newest in --out."""
    from ..terminal import has_graphical_screen

    page = _page_of(run, out) if run is not None else _newest_page(out)
    echo(str(page))
    if only_print:
        return
    import webbrowser

    try:
        shown = has_graphical_screen() and webbrowser.open(page.absolute().as_uri())
    except (webbrowser.Error, OSError):
        shown = False
    if not shown:
        echo("no browser can be opened here: open this file in one", err=True)


def _page_of(run: str, out: Path) -> Path:
    from ..directory import RunDirectory

    folder = Path(run)
    if not (folder.is_dir() and (folder / "report.html").is_file()):  # a report over several runs is no run
        folder = RunDirectory.open(run, out).dir
    page = folder / "report.html"
    if not page.is_file():
        raise InputError(f"{folder} has no report yet", f"ftkit run --resume {folder}")
    return page


def _newest_page(out: Path) -> Path:
    pages = sorted(out.glob("*/report.html"), key=lambda path: path.stat().st_mtime)
    if not pages:
        raise InputError(f"there is no report in {out}/", "ftkit run RECIPE writes one")
    return pages[-1]


# ---------------------------------------------------------------- rm, clean


@click.command()
@click.argument("runs", nargs=-1, required=True)
@options.out
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.as_json
def rm(runs: tuple[str, ...], out: Path, yes: bool, as_json: bool) -> None:
    """Delete runs, each named by its folder or by the id of `ftkit runs`. Asks first.

    Refused are folders that are not runs, and runs that are in progress.
    """
    from ..directory import RunDirectory
    from ..listing import summary

    found = {}
    for name in runs:
        if Path(name).is_symlink():
            raise InputError(f"{name} is a link: it is not followed", "name the folder itself")
        run = RunDirectory.open(name, out)
        found[run.dir] = summary(run)
    _delete(list(found.values()), yes, as_json)


@click.command()
@click.option("--failed", is_flag=True, help="Runs that failed or were killed.")
@click.option("--keep-best", type=click.IntRange(min=0), metavar="N", help="Finished runs, but for the N best.")
@click.option("--older-than", metavar="AGE", help="Only what was started longer ago: 30d, 12h, 90m, 2w.")
@options.out
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.as_json
def clean(failed: bool, keep_best: int | None, older_than: str | None, out: Path, yes: bool, as_json: bool) -> None:
    """Delete runs of one kind or several. Asks first.

    The best are those with the best primary metric, among runs that measured it on the same rows. --older-than alone deletes all that
    have ended, whatever their status. A run in progress is never deleted.
    """
    from ..listing import summaries
    from ..removal import seconds_of, to_clean

    if not failed and keep_best is None and older_than is None:
        raise InputError("say which runs: --failed, --keep-best N, --older-than AGE", "`ftkit rm RUN` deletes one")
    seconds = None if older_than is None else seconds_of(older_than)
    found = to_clean(summaries(out), failed, keep_best, seconds)
    if not found and not as_json:
        echo(f"nothing to delete in {out}/", err=True)
        return
    _delete(found, yes, as_json)


def _delete(found: Sequence[Summary], yes: bool, as_json: bool) -> None:
    """Show runs with their sizes, ask, and delete them: all of them may be deleted, or none is."""
    from ..removal import check_removable, remove, size_of

    for s in found:
        check_removable(s.run)
    sizes = {s.run.dir: size_of(s.run.dir) for s in found}
    if not as_json:
        widest = max((cells(visible(str(path))) for path in sizes), default=0)
        for s in found:
            path = visible(str(s.run.dir))
            echo(f"{path}{' ' * (widest - cells(path))}  {s.status:<11} {size(sizes[s.run.dir]):>9}", err=True)
    if found and not yes:
        _ask(f"Delete {counted(len(found), 'run', 'runs')} ({size(sum(sizes.values()))})?")
    for s in found:
        remove(s.run)
    if as_json:
        print_json({"deleted": [{"run": str(path), "bytes": n} for path, n in sizes.items()]})
    else:
        echo(f"deleted: {counted(len(found), 'run', 'runs')}, {size(sum(sizes.values()))}", err=True)


def _ask(question: str) -> None:
    """Ask before something is deleted. Raises InputError where the answer is not yes, or no person can answer."""
    from ..console import Console

    if not Console().confirm(question):
        raise InputError("nothing was deleted: that was not confirmed", "confirm with --yes")
