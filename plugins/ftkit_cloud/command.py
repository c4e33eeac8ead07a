"""The command `ftkit cloud`: the machines that ftkit has asked for, what they cost, and how they are ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from ftkit.errors import InputError, RunFailed
from ftkit.text import NONE, dollars, duration, nearest

from ._money import Machine, NotAsked, key_of


@dataclass
class Found:
    """What the providers say. `passed` are those without an account here; `failed` those that gave no answer."""

    machines: list[Machine] = field(default_factory=list)
    passed: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@click.group()
def cloud() -> None:
    """List and end the machines that `ftkit run --on` has asked for. docs/cloud.md describes them."""


@cloud.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def ls(as_json: bool) -> None:
    """List the machines that have not ended, with what they cost so far."""
    found = look()
    if as_json:
        _print(
            {
                "machines": [machine.to_dict() for machine in found.machines],
                "not_asked": found.passed,
                "no_answer": found.failed,
            }
        )
    else:
        _table(found)
    if found.failed:
        raise RunFailed(
            "; ".join(f"{name} gave no answer: {why}" for name, why in found.failed.items()),
            "machines may run there: look again, or on the provider's page",
        )


@cloud.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--all", "every", is_flag=True, help="End all machines that ftkit has asked for.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def stop(runs: tuple[str, ...], every: bool, as_json: bool) -> None:
    """End the machine of each RUN: a run directory, its name, or a machine's id. What is not brought back is lost."""
    if bool(runs) == every:
        raise InputError("name the runs whose machines are to end, or give --all (and not both)", "`ftkit cloud ls`")
    found = look()
    chosen = found.machines if every else [machine for text in runs for machine in _named(text, found)]
    ended = []
    problems = [f"{name} gave no answer: {why}" for name, why in found.failed.items()] if every else []
    for machine in dict.fromkeys(chosen):
        try:
            status, usd = _end(machine)
        except Exception as error:  # one that cannot be ended must not keep the others
            problems.append(f"{machine.launcher} {machine.id} MAY STILL RUN: {error}")
            continue
        ended.append({"launcher": machine.launcher, "id": machine.id, "run": machine.run, "status": status, "usd": usd})
        if not as_json:
            cost = f"it has cost {dollars(usd)}" if usd is not None else "what it has cost is not known"
            click.echo(f"{machine.launcher} {machine.id}: {status}; {cost}")
    if as_json:
        _print({"ended": ended, "problems": problems})
    elif not ended and not problems:
        click.echo("no machine runs")
    if problems:
        raise RunFailed("; ".join(problems), "end it on the provider's page; docs/cloud.md names them")


def look() -> Found:
    """Ask every provider; one that does not answer does not hide the others."""
    found = Found()
    asked: list[tuple[str, Callable[[], list[Machine]]]] = [("hf-jobs", _of_hugging_face), ("dstack", _of_dstack)]
    for name, machines in asked:
        try:
            found.machines += machines()
        except NotAsked as error:
            found.passed[name] = str(error)
        except Exception as error:  # whatever a provider's library raises
            found.failed[name] = " ".join(str(error).split())[:300]
    return found


def _of_hugging_face() -> list[Machine]:
    try:
        from ._hf_jobs import machines
    except ImportError:
        raise NotAsked("huggingface_hub is not installed") from None
    return machines()


def _of_dstack() -> list[Machine]:
    from ._dstack_cli import NO_PROJECT, CallFailed
    from ._dstack_list import machines

    try:
        return machines("dstack")
    except InputError as error:  # it is not installed
        raise NotAsked(error.message) from None
    except CallFailed as error:
        if NO_PROJECT in str(error):
            raise NotAsked("dstack has no project") from None
        raise


def _end(machine: Machine) -> tuple[str, float | None]:
    if machine.launcher == "hf-jobs":
        from ._hf_jobs import stop as end

        return end(machine)
    from ._dstack_list import stop as end_named

    ended = end_named(machine.id)
    return (ended.status, ended.usd) if ended is not None else ("not known", None)


def _named(text: str, found: Found) -> list[Machine]:
    """Return the machines that one argument means. Raises InputError with the nearest."""
    key = _key(text)
    chosen = [m for m in found.machines if text in (m.id, m.run) or m.run == key]
    if chosen:
        return chosen
    known = [name for m in found.machines for name in (m.id, m.run)]
    near = nearest(text, known)
    silent = f" ({' and '.join(found.failed)} gave no answer)" if found.failed else ""
    hint = f"did you mean {near!r}?" if near else "`ftkit cloud ls` lists what runs"
    raise InputError(f"no machine of {text!r} runs{silent}", hint)


def _key(text: str) -> str:
    """Return the label of a run that is named by its directory or its name."""
    record = Path(text, "run.json")
    if not record.exists() and Path("runs", text, "run.json").exists():
        record = Path("runs", text, "run.json")
    try:
        data = json.loads(record.read_text("utf-8"))
        return key_of(str(data.get("mark") or data["id"]))
    except (OSError, ValueError, KeyError, AttributeError):
        return key_of(text)


def _table(found: Found) -> None:
    for name, why in found.passed.items():
        click.echo(f"{name}: not asked ({why})", err=True)
    if not found.machines:
        click.echo("no machine runs" if not found.failed else "no machine is known to run")
        return
    rows = [("LAUNCHER", "MACHINE", "RUN", "STATUS", "SINCE", "PER HOUR", "SO FAR", "WHAT")]
    for m in found.machines:
        so_far = dollars(m.usd) if m.usd is not None else NONE
        hourly = dollars(m.usd_per_hour) if m.usd_per_hour is not None else NONE
        rows.append((m.launcher, m.id, m.run, m.status, duration(m.seconds), hourly, so_far, m.page or m.what))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    click.echo("end one: ftkit cloud stop RUN; end all: ftkit cloud stop --all", err=True)


def _print(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, indent=2))
