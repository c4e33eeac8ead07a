"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

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
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
