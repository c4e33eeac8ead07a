"""`ftkit cancel RUN`: end what a run has under way at the provider. Interrupting `ftkit run` only detaches from it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from ftkit.api import Run
from ftkit.errors import InputError


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def cancel(run: Path, as_json: bool) -> None:
    """End whatever RUN started at a provider, and start no more; what it trained so far may be billed."""
    context = Run.open(run)
    options = context.recipe.backend.options
    if context.recipe.backend.name != "openai-managed":
        raise InputError(
            f"{context.dir} has no job at a provider: it was trained by {context.recipe.backend.name}",
            "stop it with Ctrl-C where it runs",
        )
    from ._connect import connected
    from ._create import cancel_run
    from ._dialects import is_own_server
    from ._local import stop

    at_work = context.is_held()
    if at_work and is_own_server(options):
        raise InputError(f"{context.dir} is at work, with a server of its own", "stop it with Ctrl-C where it runs")
    if context.record().status != "done":
        cancel_run(context)  # first: a run at work makes nothing more while it is looked for what there is
    try:
        with connected(options, context) as provider:
            ended, doubts = _cancelled(provider, context)
    finally:
        stop(context)
    if as_json:
        click.echo(json.dumps({"run": str(context.dir), "cancelled": ended, "in_doubt": doubts}))
        return
    for entry in ended:
        click.echo(f"{entry['what']} {entry['id']}: {entry['status']}")
    for what in doubts:
        click.echo(
            f"it is unknown whether a {what} exists: none with this run's mark showed in {options.find_window:g} s\n"
            f"  look again: ftkit cancel {context.dir}, or at the provider's own pages for ftkit_run={context.id}"
        )
    if not ended and not doubts:
        click.echo("nothing to cancel: this run has nothing under way at the provider")
    if at_work:
        click.echo(
            "the run itself is at work: it ends when it sees this; answers it asks for one by one end with Ctrl-C"
        )


@dataclass
class _Thing:
    """A job or a batch of the run, as the provider shows it."""

    what: str
    id: str
    end: Callable[[], str] | None  # ends it, and returns its status; None where it has ended
    place: str | None = None  # where in the run's state it was asked for, if it is what was asked for last there


def _cancelled(provider: Any, run: Run) -> tuple[list[dict[str, str]], list[str]]:
    """Cancel every job and batch of the run that has not ended.

    Return what was asked to end, each with its status afterwards, and what may exist and did not show.
    """
    ended: dict[str, dict[str, str]] = {}
    until = time.monotonic() + provider.options.find_window
    while True:
        doubts = _doubts(run)  # before the look: what is made meanwhile is looked for once more
        found = [*_jobs(provider, run), *_batches(provider, run)]
        for thing in found:
            if thing.end is not None and thing.id not in ended:
                ended[thing.id] = {"what": thing.what, "id": thing.id, "status": thing.end()}
        settled = {thing.place for thing in found}
        left = {place for place in doubts if place not in settled}
        new = _doubts(run) - doubts
        if not (left or new) or time.monotonic() > until:
            return list(ended.values()), sorted(place.split("-")[0] for place in left | new)
        time.sleep(0.5)


def _doubts(run: Run) -> set[str]:
    """Return where in the run's state something was asked for without an answer."""
    from ._create import in_doubt

    return {name for name in run.state if (name == "job" or name.startswith("batch-")) and in_doubt(run, name)}


def _jobs(provider: Any, run: Run) -> list[_Thing]:
    from ._marks import ENDS, find_jobs, job_status, of_this_attempt

    jobs = provider.client.fine_tuning.jobs
    found = provider.read("looking for the jobs", lambda: find_jobs(provider, run))
    id = (run.state.get("job") or {}).get("id")
    if id and id not in [job.id for job in found]:
        found += provider.read("looking at the job", lambda: _there(jobs, id))

    def end(id: str) -> str:
        return job_status(provider, provider.read(f"cancelling job {id}", lambda: _asked(jobs, id)))

    return [
        _Thing(
            "job",
            job.id,
            None if job_status(provider, job) in ENDS else partial(end, job.id),
            "job" if of_this_attempt(provider, run, job) else None,
        )
        for job in found
    ]


def _batches(provider: Any, run: Run) -> list[_Thing]:
    from ._batch import BATCH_ENDS, find_batches, is_at

    if not provider.options.use_batch_api:  # not every provider has batches
        return []
    batches = provider.client.batches
    found = provider.read("looking for the batches", lambda: find_batches(provider, run))
    places = {name: entry for name, entry in run.state.items() if name.startswith("batch-") and entry}
    for id in {entry.get("id") for entry in places.values()} - {None, *(batch.id for batch in found)}:
        found += provider.read("looking at the batch", lambda id=id: _there(batches, id))

    def end(id: str) -> str:
        return str(provider.read(f"cancelling batch {id}", lambda: _asked(batches, id)).status)

    return [
        _Thing(
            "batch",
            batch.id,
            None if batch.status in (*BATCH_ENDS, "cancelling") else partial(end, batch.id),
            next((name for name in places if is_at(run, name, batch)), None),
        )
        for batch in found
    ]


def _there(things: Any, id: str) -> list[Any]:
    import openai

    try:
        return [things.retrieve(id)]
    except openai.NotFoundError:
        return []


def _asked(things: Any, id: str) -> Any:
    """Ask for the end; what had just ended by itself is shown as it is."""
    import openai

    try:
        return things.cancel(id)
    except (openai.BadRequestError, openai.ConflictError):
        return things.retrieve(id)
