"""The command that hands a finished run's model on: export."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from ..text import metric_value, size
from . import options
from .show import echo, echo_next, echo_table, print_json

if TYPE_CHECKING:
    from ..run.export import ExportDone
    from ..run.push import Push


@click.command()
@click.argument("run")
@click.option("--to", required=True, metavar="DIR|hf:ORG/NAME", help="A new folder, or a repository on the hub.")
@click.option("--merge", is_flag=True, help="Add the adapter to the weights of its base model.")
@click.option(
    "--base",
    type=click.Choice(["trained", "original"]),
    help="Weights to merge into: those that training used (default), or those that the base is published with.",
)
@click.option("--gguf", type=click.Choice(["q8_0", "q4_k_m"]), help="Write a GGUF file of this quantisation.")
@click.option("--push", is_flag=True, help="Show what would be sent to the hub; with --yes, send it.")
@click.option("--yes", is_flag=True, help="Send it (with --push).")
@click.option("--public", is_flag=True, help="Make a new repository public (default: private).")
@options.as_json
@click.pass_obj
def export(
    debug: bool, run: str, to: str, merge: bool, base: str | None, gguf: str | None, push: bool, yes: bool, public: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Write the trained model of RUN for others to use, measured on the test rows.

    As it is (an adapter, or all weights), merged (--merge), or as a GGUF file. The export is measured as the run was,
    and the run's report shows it.
    """
    from .. import interface
    from ..console import Console

    done, sent = interface.export_and_push(run, to, merge, base, gguf, push, yes, not public, Console(debug))
    if as_json:
        print_json({**done.to_dict(), "push": sent.to_dict() if sent else None})
    else:
        _print(done, sent, f"ftkit export {shlex.quote(run)} --to {shlex.quote(to)}", push)


def _print(done: ExportDone, sent: Push | None, command: str, asked: bool) -> None:
    from ..run.export import summary_lines

    rows = [["system", "metric", "value", "95 % interval", "n"]]
    for name, metrics in done.systems.items():
        for m in list(metrics.values())[:1]:
            low, high = metric_value(m.low, m.unit), metric_value(m.high, m.unit)
            interval = f"{low} to {high}" if m.low is not None and m.high is not None else "–"
            rows.append([name, m.name, metric_value(m.value, m.unit), interval, str(m.n)])
    echo_table(rows, left=(0, 1))
    for line in summary_lines(done):
        echo(line)
    for text in done.lost:
        echo(f"warning: {text}", err=True)
    for use in done.usage:
        echo()
        echo(f"{use['title']}:")
        for line in use["code"].rstrip("\n").split("\n"):
            echo(f"  {line}")
    if sent is not None:
        _print_push(sent, command, asked)


def _print_push(sent: Push, command: str, asked: bool) -> None:
    echo()
    kind = "private" if sent.private else "public"
    if sent.commit is not None:
        echo(f"pushed to {sent.repository}: {len(sent.files)} files, {size(sum(sent.files.values()))}, {sent.commit}")
        return
    echo(f"nothing was pushed. {sent.repository} ({kind}, if it is new) would get:")
    for name, n in sent.files.items():
        echo(f"  {size(n):>9}  {name}")
    echo_next(f"{command} ... --push --yes" if asked else f"{command} ... --push --yes sends it")
