"""How a run knows its jobs again at the provider."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

from ftkit.api import Run

from ._client import Provider

if TYPE_CHECKING:
    from . import ManagedOptions

ENDS = ("succeeded", "failed", "cancelled")
_MOST = 1000  # jobs that are looked through where the list cannot be filtered; no clock decides: two differ


def job_status(provider: Provider, job: Any) -> str:
    """Return a job's status in OpenAI's words; one that is not known stays as it is, and is no end."""
    status = str(job.status or "unknown")
    return provider.dialect.statuses.get(status.lower(), status)


def ended_badly(provider: Provider, job: Any) -> bool:
    return job_status(provider, job) in ("failed", "cancelled")


def job_mark(run: Run) -> dict[str, str]:
    """Return the metadata of the job that the run asks for now."""
    return {"ftkit_run": run.id, "ftkit_attempt": str(_attempt(run))}


def job_suffix(options: ManagedOptions, provider: Provider, run: Run) -> str | None:
    """Return the suffix of the tuned model's name; where jobs keep no metadata it holds the run's mark."""
    if provider.dialect.metadata:
        return options.suffix
    return f"{_suffix(options, run)}-{_attempt(run)}"


def find_jobs(provider: Provider, run: Run) -> list[Any]:
    """Return every job that carries the run's mark, the oldest first. May raise what the client raises."""
    jobs = provider.client.fine_tuning.jobs
    if provider.dialect.metadata:
        listed = iter(jobs.list(limit=100, metadata={"ftkit_run": run.id}))
    else:
        listed = itertools.islice(jobs.list(limit=100), _MOST)
    found = [job for job in listed if _attempt_of(provider, run, job) is not None]
    found.reverse()
    return sorted(found, key=lambda job: job.created_at)  # of one second, the earlier is listed last


def job_to_take(provider: Provider, run: Run) -> Any:
    """Return the job that the run goes on with, or None: this attempt's, or an earlier one's that showed late.

    One that ended badly is taken where the user asked for no other. May raise what the client raises.
    """
    jobs = find_jobs(provider, run)
    ours = [job for job in jobs if of_this_attempt(provider, run, job)]
    good = [job for job in jobs if not ended_badly(provider, job)]
    wanted = [job for job in ours if job in good] + good + ([] if run.state.get("create_again") else ours)
    return next(iter(wanted), None)


def of_this_attempt(provider: Provider, run: Run, job: Any) -> bool:
    return _attempt_of(provider, run, job) == str(_attempt(run))


def _attempt(run: Run) -> int:
    return int(run.state.get("attempt", 1))


def _attempt_of(provider: Provider, run: Run, job: Any) -> str | None:
    """Return which attempt of the run made a job; None where it was none."""
    if provider.dialect.metadata:
        metadata = getattr(job, "metadata", None) or {}
        return str(metadata.get("ftkit_attempt", "1")) if metadata.get("ftkit_run") == run.id else None
    mark = re.fullmatch(rf"{re.escape(_suffix(provider.options, run))}-(\d+)", str(getattr(job, "suffix", None)))
    return mark and mark[1]


def _suffix(options: ManagedOptions, run: Run) -> str:
    return f"{options.suffix or 'ftkit'}-{run.id[-6:]}"
