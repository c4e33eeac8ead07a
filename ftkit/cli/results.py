"""Commands over results: score, report, runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import FtkitError
from ..text import metric_value, visible
from . import options
from .show import print_json, print_report

if TYPE_CHECKING:
    from ..directory import RunDirectory
    from ..records import Metric


@click.command()
@click.option(
    "--predictions",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    help=".jsonl, .json, .csv, .tsv (each also as .gz) or .parquet file.",
)
@click.option("--evaluator", required=True, help="Evaluator plugin, such as those in `ftkit plugins`.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="An option of the evaluator.")
@click.option("--target", help="Column of the reference (default: looked for by its usual names).")
@click.option("--prediction", help="Column of the prediction.")
@click.option("--input", "input_", help="Column of the input text, by which a report matches examples.")
@click.option("--id", "id_", help="Column of the example id.")
@click.option("--delimiter", help="What separates the fields of a .csv or .tsv file (default: a comma, a tab).")
@click.option("--encoding", help="Encoding of a text file, such as shift_jis (default: UTF-8).")
@click.option("--name", help="What the report calls this system (default: the file's name).")
@options.out
@options.as_json
def score(
    path: Path, evaluator: str, options: tuple[str, ...], target: str | None, prediction: str | None, input_: str | None,
    id_: str | None, delimiter: str | None, encoding: str | None, name: str | None, out: Path, as_json: bool,
) -> None:  # fmt: skip
    """Compute metrics for predictions that were made anywhere."""
    from ..interface import RunResult
    from ..recipe.load import make_plugin
    from ..run.score_file import score_file

    chosen = make_plugin("evaluator", evaluator, options)
    columns = {"target": target, "prediction": prediction, "input": input_, "id": id_}
    scored = RunResult(score_file(path, [chosen], out, name, columns, delimiter, encoding))
    metrics = scored.metrics["predictions"]
    if as_json:
        print_json({"run": str(scored.dir), "metrics": {n: m.to_dict() for n, m in metrics.items()}})
        return
    _print_metrics(metrics.values())
    for warning in scored.directory.record().warnings:
        click.echo(visible(f"warning: {warning}"), err=True)
    for caution in dict.fromkeys(m.caution for m in metrics.values() if m.caution):
        click.echo(visible(f"note: {caution}"), err=True)
    click.echo(f"run: {scored.dir}", err=True)


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the report (default: the run's own, or runs/report-TIME)."
)
@click.option("--anyway", is_flag=True, help="Compare runs that were not measured alike; the report is marked.")
@click.option(
    "--set-price",
    "prices",
    multiple=True,
    metavar="SYSTEM.KEY=DOLLARS",
    help="A price to compute with: usd_per_hour of a machine, usd_per_1k predictions, train_usd.",
)
@options.as_json
def report(runs: tuple[str, ...], out: Path | None, anyway: bool, prices: tuple[str, ...], as_json: bool) -> None:
    """Write one report (html, md, json) for any runs that may be compared."""
    from ..directory import RunDirectory
    from ..files import read_json
    from ..report import write_report

    opened = [RunDirectory.open(r) for r in runs]
    folder = out or (
        opened[0].dir if len(opened) == 1 else opened[0].dir.parent / f"report-{time.strftime('%Y%m%d-%H%M%S')}"
    )
    write_report(opened, folder, anyway, prices)
    if as_json:
        print_json({"report": str(folder), **read_json(folder / "report.json")})
    else:
        print_report(folder)


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@options.out
@options.as_json
def runs(folder: Path | None, out: Path, as_json: bool) -> None:
    """List what was run in FOLDER (the same as --out FOLDER), with its headline numbers."""
    from ..directory import list_runs

    out = folder or out
    rows = [_headlines(found) for found in list_runs(out)]
    if as_json:
        print_json({"runs": rows})
        return
    _print_runs(rows)
    if not rows:
        click.echo(f"no runs in {out}/", err=True)


def _print_metrics(metrics: Iterable[Metric]) -> None:
    """Print one metric a line, with its interval."""
    for m in metrics:
        interval = f"  [{metric_value(m.low, m.unit)}, {metric_value(m.high, m.unit)}]" if m.low is not None else ""
        unscored = f", {m.n_unscored} unscored" if m.n_unscored else ""
        inputs = f" ({m.n_inputs} different inputs)" if m.n_inputs is not None else ""
        click.echo(visible(f"{m.name:<18} {metric_value(m.value, m.unit):>7}{interval}  n={m.n}{inputs}{unscored}"))


def _headlines(run: RunDirectory) -> dict[str, Any]:
    """Return what `ftkit runs` says of a run: its status, and the primary metric of each measurement."""
    primary = {}
    unreadable = []
    for stage in run.measured():
        try:
            name = run.measurement(stage)["settings"].get("primary")
            metrics = run.metrics(stage)
        except (FtkitError, OSError, TypeError, AttributeError, KeyError):
            unreadable.append(str(run.path(stage, "metrics.json")))
            continue
        if name in metrics:
            primary[stage] = {"metric": name, "value": metrics[name].value, "unit": metrics[name].unit}
    record = run.record()
    return {
        "run": str(run.dir),
        "name": record.name,
        "status": run.status(),
        "started": record.started,
        "metrics": primary,
        "unreadable": unreadable,
    }


def _print_runs(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print one run a line: its folder, status and headline numbers."""
    for row in rows:
        headline = ", ".join(
            f"{stage} {p['metric']} {metric_value(p['value'], p['unit'])}" for stage, p in row["metrics"].items()
        )
        click.echo(visible(f"{row['run']}  {row['status']}  {headline}"))
        for path in row["unreadable"]:
            click.echo(visible(f"cannot be read: {path}"), err=True)
