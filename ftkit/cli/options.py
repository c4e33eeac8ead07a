"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from ..lang import LANGUAGES, VARIABLE

overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the recipe, such as backend.lora_r=8.",
)
out = click.option(
    "--out", default="runs", type=click.Path(path_type=Path), help="Where run directories are made (default runs/)."
)
gpu = click.option("--gpu", metavar="GPU", help="Answer for a machine that is not here: a10g, t4, 24GB, 4xa100, ...")
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


def _speak(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    """Use a language from here on, in child processes too."""
    if value is not None:
        os.environ[VARIABLE] = value


lang = click.option(
    "--lang",
    type=click.Choice(LANGUAGES),
    expose_value=False,
    is_eager=True,
    callback=_speak,
    help="Language of report and results (default: FTKIT_LANG, else that of the locale).",
)
verbose = click.option("-v", "--verbose", is_flag=True, help="Show all metrics, and whole texts.")
