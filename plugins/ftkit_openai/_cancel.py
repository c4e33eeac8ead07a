"""`ftkit cancel RUN`: cancel what a run has started at the provider. Interrupting `ftkit run` only detaches from it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from ftkit.errors import InputError
from ftkit.store import RunContext


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def cancel(run: Path, as_json: bool) -> None:
    """Cancel whatever RUN started at a provider, and start no more; what it trained so far may be billed."""
    context = RunContext.open(run)
    options: Any = context.recipe.backend.options
    if context.recipe.backend.name != "openai-managed":
        raise InputError(
            f"{context.dir} has no job at a provider: it was trained by {context.recipe.backend.name}",
            "stop it with Ctrl-C where it runs",
        )
    from ._connect import connect
    from ._dialects import is_own_server
    from ._local import stop
    from ._once import cancel_run

    running = context.is_held()
    if running and is_own_server(options):
        raise InputError(f"{context.dir} is running, with a server of its own", "stop it with Ctrl-C where it runs")
    if context.record().status != "done":
        cancel_run(context)  # first: a running process then creates nothing more during the search below
    try:
        with connect(options, context) as provider:
            cancelled, unknown = _cancel_all(provider, context)
    finally:
        stop(context)
    if as_json:
        click.echo(json.dumps({"run": str(context.dir), "cancelled": cancelled, "outcome_unknown": unknown}))
        return
    for entry in cancelled:
        click.echo(f"{entry['what']} {entry['id']}: {entry['status']}")
    for noun in unknown:
        click.echo(
            f"outcome unknown: a {noun} may exist at the provider; none with this run's metadata tag appeared within "
            f"{options.find_window:g} s\n"
            f"  search again: ftkit cancel {context.dir}, or search the provider's own pages for ftkit_run={context.id}"
        )
    if not cancelled and not unknown:
        click.echo("nothing to cancel: nothing of this run is in progress at the provider")
    if running:
        click.echo(
            "the run itself is still running: it ends when it sees the cancellation; single requests end with Ctrl-C there"
        )


@dataclass
class _Remote:
    """A job or a batch of the run, as the provider shows it."""

    noun: str  # job or batch
    id: str
    cancel: Callable[[], str] | None  # cancels it, and returns its status; None where it has ended
    key: str | None = None  # its place in the run's state, where it is what was last requested there


def _cancel_all(provider: Any, run: RunContext) -> tuple[list[dict[str, str]], list[str]]:
    """Cancel every job and batch of the run that has not ended.

    Return what was cancelled, each with its status afterwards, and the nouns of what may exist and did not appear.
    """
    cancelled: dict[str, dict[str, str]] = {}
    deadline = time.monotonic() + provider.options.find_window
    while True:
        unknown = _unknown_keys(run)  # before the search: what is created during it is searched for once more
        found = [*_find_jobs(provider, run), *_find_batches(provider, run)]
        for remote in found:
            if remote.cancel is not None and remote.id not in cancelled:
                cancelled[remote.id] = {"what": remote.noun, "id": remote.id, "status": remote.cancel()}
        left = unknown - {remote.key for remote in found}
        new = _unknown_keys(run) - unknown
        if not (left or new) or time.monotonic() > deadline:
            return list(cancelled.values()), sorted(key.split("-")[0] for key in left | new)
        time.sleep(0.5)


def _unknown_keys(run: RunContext) -> set[str]:
    """Return the places in the run's state where something was requested and the outcome is not known."""
    from ._once import outcome_unknown
    from ._tags import BATCH_PREFIX, JOB

    keys = [key for key in run.state if key == JOB or key.startswith(BATCH_PREFIX)]
    return {key for key in keys if outcome_unknown(run, key)}


def _find_jobs(provider: Any, run: RunContext) -> list[_Remote]:
    from ._tags import JOB, JOB_FINAL, find_jobs, is_current_job, job_status

    jobs = provider.client.fine_tuning.jobs
    found = provider.read("looking for the jobs", lambda: find_jobs(provider, run))
    id = (run.state.get(JOB) or {}).get("id")
    if id and id not in [job.id for job in found]:
        found += provider.read("looking at the job", lambda: _retrieve(jobs, id))

    def cancel(id: str) -> str:
        return job_status(provider, provider.read(f"cancelling job {id}", lambda: _request_cancel(jobs, id)))

    return [
        _Remote(
            "job",
            job.id,
            None if job_status(provider, job) in JOB_FINAL else partial(cancel, job.id),
            JOB if is_current_job(provider, run, job) else None,
        )
        for job in found
    ]


def _find_batches(provider: Any, run: RunContext) -> list[_Remote]:
    from ._tags import BATCH_FINAL, BATCH_PREFIX, find_batches, is_current_batch

    if not provider.options.use_batch_api:  # not every provider has batches
        return []
    batches = provider.client.batches
    found = provider.read("looking for the batches", lambda: find_batches(provider, run))
    entries = {key: entry for key, entry in run.state.items() if key.startswith(BATCH_PREFIX) and entry}
    for id in {entry.get("id") for entry in entries.values()} - {None, *(batch.id for batch in found)}:
        found += provider.read("looking at the batch", partial(_retrieve, batches, id))

    def cancel(id: str) -> str:
        return str(provider.read(f"cancelling batch {id}", lambda: _request_cancel(batches, id)).status)

    return [
        _Remote(
            "batch",
            batch.id,
            None if batch.status in (*BATCH_FINAL, "cancelling") else partial(cancel, batch.id),
            next((key for key in entries if is_current_batch(run, key, batch)), None),
        )
        for batch in found
    ]


def _retrieve(objects: Any, id: str) -> list[Any]:
    """Return the object with this id, as a list; an empty list where the provider has none."""
    import openai

    try:
        return [objects.retrieve(id)]
    except openai.NotFoundError:
        return []


def _request_cancel(objects: Any, id: str) -> Any:
    """Cancel an object, and return it. One that has just ended by itself is returned as it is."""
    import openai

    try:
        return objects.cancel(id)
    except (openai.BadRequestError, openai.ConflictError):
        return objects.retrieve(id)
