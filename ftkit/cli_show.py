"""What the command line prints: results on stdout, everything said to people beside them on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import FtkitError, Interrupted, Problem, RecipeError

if TYPE_CHECKING:
    from .plugins import Plugins
    from .preflight import Preflight
    from .records import Metric, Rendered, Report
    from .store import RunContext


def print_json(data: Any) -> None:
    """Print the one JSON document of a command."""
    from .store import dump_json

    click.echo(dump_json(data, indent=2))


def show_error(error: FtkitError, as_json: bool) -> None:
    """Say what ended the command; with `as_json` on stdout too."""
    from .console import escape

    lead = "" if isinstance(error, Interrupted | RecipeError) else "error: "
    try:
        if as_json:
            print_json({"ok": False, "errors": [p.to_dict() for p in problems_in(error)]})
        click.echo(escape(f"{lead}{error}"), err=True)
    except OSError:  # the terminal was closed, nobody reads: what counts is the exit status
        for fd in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


def problems_in(error: FtkitError) -> list[Problem]:
    return error.problems if isinstance(error, RecipeError) else [Problem(error.message, hint=error.hint)]


def show_findings(name: str, found: Preflight, problems: Iterable[Problem]) -> None:
    """Say what `ftkit check` found."""
    from .console import clock, escape, usd_text

    for p in problems:
        click.echo(escape(("" if p.level == "error" else f"{p.level}: ") + str(p)), err=True)
    if found.task is not None:
        rows = ", ".join(f"{len(part)} {split}" for split, part in found.task.splits.items())
        click.echo(escape(f"{name}: {rows} rows"), err=True)
    for estimate in found.estimates:
        of = f"control {estimate['control']}: " if "control" in estimate else ""
        if "not_estimated" in estimate and not of:
            click.echo(escape(f"not estimated: {estimate['not_estimated']}"), err=True)
        parts = [f"{estimate['memory_bytes'] / 1e9:.1f} GB"] if estimate.get("memory_bytes") else []
        parts += [clock(estimate["seconds"])] if estimate.get("seconds") else []
        parts += [f"{usd_text(estimate['usd'])} USD"] if estimate.get("usd") is not None else []
        parts += [str(estimate["usd_detail"])] if estimate.get("usd_detail") else []
        if parts:
            click.echo(escape(f"{of}estimate (rough): {', '.join(parts)}"), err=True)
    show_count(name, len(found.errors))


def checked_as_dict(
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


def show_count(name: str, errors: int) -> None:
    """Say whether a recipe is right: its mistakes may stand in the files that it extends."""
    from .console import escape

    many = "ok" if not errors else "1 error" if errors == 1 else f"{errors} errors"
    click.echo(escape(f"{name}: {many}"), err=True)


def print_report(folder: Path) -> None:
    """Print the report in `folder` as a table and its verdict."""
    from .console import escape
    from .records import Report
    from .store import read_json

    report = Report.from_dict(read_json(folder / "report.json"))
    click.echo()
    click.echo(escape(_table(report)))
    click.echo(escape(f"\n{report.verdict}\n{report.verdict_detail}"))
    for note in report.notes:
        click.echo(escape(f"note: {note}"))
    click.echo(escape(f"\nreport: {folder / 'report.html'}"))


def _table(report: Report) -> str:
    """Return the systems as plain text: one row each."""
    from .console import clock, number

    names = list(dict.fromkeys(n for s in report.systems for n in s.metrics))
    rows = [["system", *names, "n", "seconds"]]
    for s in report.systems:
        cells = [number(s.metrics[n].value, s.metrics[n].unit) if n in s.metrics else "-" for n in names]
        n = max((m.n for m in s.metrics.values()), default=0)
        rows.append([s.name, *cells, str(n), clock(s.seconds)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )


def print_example(shown: Rendered, lengths: Mapping[str, Any], rows: int) -> None:
    """Print one training example token by token, with counts, and the lengths of its split of so many `rows`."""
    from .audit import counted
    from .console import escape

    _print_tokens(shown)
    if shown.finding is not None:
        click.echo(escape(f"\n{shown.finding.level}: {shown.finding.message}\n  {shown.finding.hint or ''}".rstrip()))
    click.echo(f"\n{len(shown.ids)} tokens: {shown.n_prompt} of the prompt, {sum(shown.learned)} learned")
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
            lost = f"; {lose} (backend.sequence_len)" if lose else ""
            click.echo(f"{name}, {which}: {lengths_of}{lost}")


def _print_tokens(shown: Rendered) -> None:
    """Print the tokens with their boundaries: learned ones green on a terminal, in «» elsewhere."""
    from .console import escape

    colour = sys.stdout.isatty()
    for token, learned in zip(shown.tokens, shown.learned, strict=True):
        text = escape(token.replace(" ", "·").replace("▁", "·").replace("\n", "⏎\n"))
        if colour:
            click.secho(text, fg="green" if learned else None, bold=learned, nl=False)
            click.secho("|", dim=True, nl=False)
        else:
            click.echo(f"«{text}»" if learned else f"{text}|", nl=False)
    click.echo()


def print_metrics(metrics: Iterable[Metric]) -> None:
    """Print one metric a line, with its interval."""
    from .console import escape, number

    for m in metrics:
        interval = f"  [{number(m.low, m.unit)}, {number(m.high, m.unit)}]" if m.low is not None else ""
        unscored = f", {m.n_unscored} unscored" if m.n_unscored else ""
        click.echo(escape(f"{m.name:<18} {number(m.value, m.unit):>7}{interval}  n={m.n}{unscored}"))


def headlines(run: RunContext) -> dict[str, Any]:
    """Return what `ftkit runs` says of a run: its status, and the primary metric of each measurement."""
    from .store import read_json

    primary = {}
    for stage in run.measured():
        metrics = read_json(run.path(stage, "metrics.json"))
        name = metrics["settings"].get("primary")
        if name in metrics["metrics"]:
            found = metrics["metrics"][name]
            primary[stage] = {"metric": name, "value": found["value"], "unit": found["unit"]}
    record = run.record()
    return {
        "run": str(run.dir),
        "name": record.name,
        "status": run.status(),
        "started": record.started,
        "metrics": primary,
    }


def print_runs(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print one run a line: its folder, status and headline numbers."""
    from .console import escape, number

    for row in rows:
        headline = ", ".join(
            f"{stage} {p['metric']} {number(p['value'], p['unit'])}" for stage, p in row["metrics"].items()
        )
        click.echo(escape(f"{row['run']}  {row['status']}  {headline}"))


def plugins_as_dict(found: Plugins) -> dict[str, Any]:
    """Return what `ftkit plugins --json` prints."""
    return {
        "plugins": [
            {
                "name": o.name,
                "kind": o.kind,
                "summary": o.cls.summary,
                "distribution": o.owner.distribution,
                "version": o.owner.version,
                "module": o.owner.module,
                "missing": o.missing(),
            }
            for o in found.all_offers()
        ],
        "failed": [
            {
                "entry": o.entry,
                "module": o.module,
                "distribution": o.distribution,
                "version": o.version,
                "error": o.error,
            }
            for o in found.failures
        ],
        "duplicates": found.duplicates(),
    }


def print_plugins(found: Plugins) -> None:
    """Print one plugin a line, then what failed to load and which names clash."""
    from .console import escape

    for o in found.all_offers():
        missing = o.missing()
        install = o.cls.requires.install or " ".join(missing)
        needs = f"  (needs {', '.join(missing)}: pip install '{install}')" if missing else ""
        line = f"{o.name:<22} {o.kind:<10} {o.owner.distribution} {o.owner.version}  {o.cls.summary}{needs}"
        click.echo(escape(line))
    for owner in found.failures:
        where = f"{owner.distribution} {owner.version} ({owner.module})"
        click.echo(escape(f"{owner.entry:<22} does not work: {where} {owner.error}"))
    for text in found.duplicates():
        click.echo(escape(f"conflict: {text}; uninstall one of them"))
