"""Cancel what a run has started at the provider (`ftkit cancel RUN`). Interrupting `ftkit run` only detaches from it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import openai

from ftkit.api import MeasuredRun, Run
from ftkit.errors import InputError
from ftkit.records import Cancelled

from ._connect import connect
from ._dialects import is_own_server
from ._local import stop
from ._once import cancel_run, outcome_unknown
from ._state import state_of
from ._tags import (
    BATCH_FINAL,
    BATCH_PREFIX,
    JOB,
    JOB_FINAL,
    find_batches,
    find_jobs,
    is_current_batch,
    is_current_job,
    job_status,
)

if TYPE_CHECKING:
    from .options import ManagedOptions


def cancel(options: ManagedOptions, run: MeasuredRun, running: bool) -> Cancelled:
    """Cancel whatever the run started at a provider, and keep it from starting more. See `Backend.cancel`."""
    if running and is_own_server(options):
        raise InputError(f"{run.dir} is running, with a server of its own", "stop it with Ctrl-C where it runs")
    if run.record().status != "done":
        cancel_run(run)  # first: a running process then creates nothing more during the search below
    try:
        with connect(options, run) as provider:
            ended, unknown = _cancel_all(provider, run)
    finally:
        stop(run)
    texts = tuple(
        f"outcome unknown: a {noun} may exist at the provider; none with this run's metadata tag appeared within "
        f"{options.find_window:g} s\n"
        f"  search again: ftkit cancel {run.dir}, or search the provider's own pages for ftkit_run={run.mark}"
        for noun in unknown
    )
    note = (
        "the run itself is still running: it ends when it sees the cancellation; single requests end with Ctrl-C there"
    )
    return Cancelled(tuple(ended), tuple(unknown), (*texts, note) if running else texts)


@dataclass
class _Remote:
    """A job or a batch of the run, as the provider shows it."""

    noun: str  # job or batch
    id: str
    cancel: Callable[[], str] | None  # cancels it, and returns its status; None where it has ended
    key: str | None = None  # its place in the run's state, where it is what was last requested there


def _cancel_all(provider: Any, run: Run) -> tuple[list[dict[str, str]], list[str]]:
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


def _unknown_keys(run: Run) -> set[str]:
    """Return the places in the run's state where something was requested and the outcome is not known."""
    keys = [key for key in state_of(run) if key == JOB or key.startswith(BATCH_PREFIX)]
    return {key for key in keys if outcome_unknown(run, key)}


def _find_jobs(provider: Any, run: Run) -> list[_Remote]:
    jobs = provider.client.fine_tuning.jobs
    found = provider.read("looking for the jobs", lambda: find_jobs(provider, run))
    id = (state_of(run).get(JOB) or {}).get("id")
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


def _find_batches(provider: Any, run: Run) -> list[_Remote]:
    if not provider.options.use_batch_api:  # not every provider has batches
        return []
    batches = provider.client.batches
    found = provider.read("looking for the batches", lambda: find_batches(provider, run))
    entries = {key: entry for key, entry in state_of(run).items() if key.startswith(BATCH_PREFIX) and entry}
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
    try:
        return [objects.retrieve(id)]
    except openai.NotFoundError:
        return []


def _request_cancel(objects: Any, id: str) -> Any:
    """Cancel an object, and return it. One that has just ended by itself is returned as it is."""
    try:
        return objects.cancel(id)
    except (openai.BadRequestError, openai.ConflictError):
        return objects.retrieve(id)
