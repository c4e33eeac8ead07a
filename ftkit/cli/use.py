"""Commands over the models of a finished run: chat, predict."""

from __future__ import annotations

from pathlib import Path

import click

from ..text import counted, dollars, duration
from . import options
from .show import echo, print_json

_CHANGES = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a key of the run's recipe for this use alone, such as generation.temperature=0.7.",
)
_BASE = click.option("--base", is_flag=True, help="Ask the untouched model.")
_YES = click.option("--yes", is_flag=True, help="Do not ask before money is spent (for models that cost any).")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@_BASE
@click.option("--compare", is_flag=True, help="Ask both models, and show their answers one below the other.")
@_CHANGES
@_YES
@click.pass_obj
def chat(debug: bool, run: Path, base: bool, compare: bool, overrides: tuple[str, ...], yes: bool) -> None:
    """Ask the tuned model of RUN from the terminal, or from lines that are piped in."""
    from ..console import Console
    from ..directory import RunDirectory
    from ..errors import InputError
    from ..use.chat import chat as talk

    if base and compare:
        raise InputError("--compare asks both models, and --base one: name one of the two")
    talk(RunDirectory.open(run), Console(debug), base, compare, overrides, yes)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="File to write: .jsonl, .json, .csv, .tsv or .parquet.",
)
@_BASE
@click.option("--column", default="prediction", show_default=True, help="Name of the column with the answers.")
@_CHANGES
@_YES
@options.as_json
@click.pass_obj
def predict(
    debug: bool, run: Path, file: Path, out: Path, base: bool, column: str, overrides: tuple[str, ...], yes: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Answer the rows of FILE (.jsonl, .json, .csv, .tsv, .parquet) with the tuned model of RUN, in the recipe's prompt.

    Each row comes back whole, with a further column. A call that was stopped continues when it is repeated.
    """
    from .. import interface
    from ..console import Console

    done = interface.predict(run, file, out, base, column, overrides, yes, Console(debug))
    if as_json:
        print_json(done.to_dict())
        return
    notes = [f"{done.model} model", duration(done.seconds)]
    notes += [dollars(done.usd)] if done.usd is not None else []
    echo(f"{done.out}: {counted(done.rows, 'row', 'rows')} ({', '.join(notes)})")
    if done.failed:
        echo(f"warning: {counted(done.failed, 'row has', 'rows have')} no answer; see prediction_error", err=True)
    if done.n_length_limit:
        cut = counted(done.n_length_limit, "answer ends", "answers end")
        echo(f"note: {cut} at the length limit (generation.max_new_tokens)", err=True)
    if done.truncated_prompts:
        cut = counted(done.truncated_prompts, "prompt was", "prompts were")
        echo(f"warning: {cut} truncated to fit into the model's context", err=True)
