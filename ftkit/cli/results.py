"""Commands over results: score, report."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..lang import joined, tr
from ..text import NONE, count, scale_for
from . import options
from .show import echo, echo_table, print_json, print_report

if TYPE_CHECKING:
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
@options.lang
@options.as_json
def score(
    path: Path, evaluator: str, options: tuple[str, ...], target: str | None, prediction: str | None, input_: str | None,
    id_: str | None, delimiter: str | None, encoding: str | None, name: str | None, out: Path, as_json: bool,
) -> None:  # fmt: skip
    """Compute metrics for predictions that were made anywhere."""
    from ..recipe.load import make_plugin
    from ..report.spoken import translator
    from ..results import RunResult
    from ..run.score_file import score_file

    chosen = make_plugin("evaluator", evaluator, options)
    columns = {"target": target, "prediction": prediction, "input": input_, "id": id_}
    scored = RunResult(score_file(path, [chosen], out, name, columns, delimiter, encoding))
    metrics = scored.metrics["predictions"]
    if as_json:
        print_json({"run": str(scored.dir), "metrics": {n: m.to_dict() for n, m in metrics.items()}})
        return
    translate = translator({})
    _print_metrics(metrics.values())
    for warning in scored.directory.record().warnings:
        echo(tr("warning: {text}", text=translate(warning)), err=True)
    for caution in dict.fromkeys(m.caution for m in metrics.values() if m.caution):
        echo(tr("note: {text}", text=translate(caution)), err=True)
    echo(tr("run: {path}", path=scored.dir), err=True)


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
@click.option("--brief", is_flag=True, help="Write brief.html too: the result on one A4 page.")
@options.verbose
@options.lang
@options.as_json
def report(
    runs: tuple[str, ...], out: Path | None, anyway: bool, prices: tuple[str, ...], brief: bool, verbose: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Write one report (html, md, json) for any runs that may be compared."""
    import contextlib

    from ..files import read_json
    from ..report import write_report
    from ..run.manifest import REPORT_FILES, resealing
    from ..run.pack import is_archive, opened

    with contextlib.ExitStack() as stack:
        directories = [stack.enter_context(opened(r)) for r in runs]
        beside = directories[0].dir.parent if not is_archive(runs[0]) else Path(runs[0]).resolve().parent
        many = beside / f"report-{time.strftime('%Y%m%d-%H%M%S')}"
        folder = out or (directories[0].dir if len(runs) == 1 and not is_archive(runs[0]) else many)
        wrong = stack.enter_context(resealing(folder, REPORT_FILES))
        if wrong:
            echo(f"warning: {folder} is not as it was sealed: {wrong[0]}; see ftkit verify", err=True)
        write_report(directories, folder, anyway, prices, brief)
    if as_json:
        print_json({"report": str(folder), **read_json(folder / "report.json")})
    else:
        print_report(folder, verbose)


def _print_metrics(metrics: Iterable[Metric]) -> None:
    """Print one metric a row, with its interval."""
    rows = [[tr("metric"), tr("value"), tr("95 % interval"), "n"]]
    notes = []
    for m in metrics:
        scale = scale_for(m.unit, [m.value])
        unit = f" {scale.unit}" if scale.unit == "%" else ""
        rows.append([m.name + unit, scale.value(m.value), scale.interval(m.low, m.high) or NONE, count(m.n)])
        about = [tr("{n} unscored", n=count(m.n_unscored))] if m.n_unscored else []
        about += [tr("{n} different inputs", n=count(m.n_inputs))] if m.n_inputs is not None else []
        notes += [tr("{title}: {text}", title=m.name, text=joined(about))] if about else []
    echo_table(rows, elastic=(0,))
    for note in notes:
        echo(note)
