"""The metadata tag by which a run recognises its jobs and batches at the provider.

A tag names the run and the attempt. The attempt grows each time another object is created in place of an earlier one,
so that an object that appears late in the provider's list is never confused with its successor.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ftkit.api import Run

from ._lists import items, mapping_of
from ._results import number_of
from ._state import create_again, state_of

if TYPE_CHECKING:
    from ._client import Provider

JOB = "job"  # key of the job in the run's state
BATCH_PREFIX = "batch-"  # keys of batches in the run's state begin with this; the hash of the requests follows
JOB_FINAL = ("succeeded", "failed", "cancelled")  # statuses that do not change any more
BATCH_FINAL = ("completed", "failed", "expired", "cancelled")
_MOST_LISTED = 1000  # objects that are searched where the list has no filter; not limited by time, since clocks differ


def attempt_of(run: Run, key: str) -> int:
    """Return the number, from 1, of the attempt at the object that the run's state holds under `key`."""
    return int((state_of(run).get("attempts") or {}).get(key, 1))


def attempts_after(run: Run, key: str) -> dict[str, int]:
    """Return the `attempts` of the run's state with the next attempt at `key`; the caller saves them."""
    return {**(state_of(run).get("attempts") or {}), key: attempt_of(run, key) + 1}


# ---------------------------------------------------------------- jobs


def job_status(provider: Provider, job: Any) -> str:
    """Return a job's status under OpenAI's name. An unknown status stays as it is, and is not final."""
    status = str(getattr(job, "status", None) or "unknown")
    return provider.dialect.statuses.get(status.lower(), status)


def failed_or_cancelled(provider: Provider, job: Any) -> bool:
    return job_status(provider, job) in ("failed", "cancelled")


def job_tag(run: Run) -> dict[str, str]:
    """Return the metadata of the job that the run creates now."""
    return {"ftkit_run": run.mark, "ftkit_attempt": str(attempt_of(run, JOB))}


def job_suffix(provider: Provider, run: Run) -> str | None:
    """Return the suffix of the tuned model's name. Where jobs carry no metadata, the suffix carries the tag."""
    if provider.dialect.metadata:
        return provider.options.suffix
    return f"{_suffix(provider, run)}-{attempt_of(run, JOB)}"


def find_jobs(provider: Provider, run: Run) -> list[Any]:
    """Return every job with the run's tag, the oldest first. May raise what the client raises."""
    jobs = provider.client.fine_tuning.jobs
    if provider.dialect.metadata:
        listed = items(jobs.list(limit=100, metadata={"ftkit_run": run.mark}))
    else:
        listed = items(jobs.list(limit=100), most=_MOST_LISTED)
    found = [job for job in listed if _attempt_in_tag(provider, run, job) is not None]
    found.reverse()
    # Of the same second, the earlier job is listed last.
    return sorted(found, key=lambda job: number_of(getattr(job, "created_at", None)) or 0.0)


def job_to_adopt(provider: Provider, run: Run) -> Any:
    """Return the job that the run resumes with, or None: that of this attempt, or one of an earlier attempt.

    A failed or cancelled one of this attempt counts, unless the user confirmed that another may be created.
    May raise what the client raises.
    """
    jobs = find_jobs(provider, run)
    current = [job for job in jobs if is_current_job(provider, run, job)]
    good = [job for job in jobs if not failed_or_cancelled(provider, job)]
    candidates = [job for job in current if job in good] + good + ([] if create_again(run) else current)
    return next(iter(candidates), None)


def is_current_job(provider: Provider, run: Run, job: Any) -> bool:
    """Say whether a job belongs to the run's current attempt."""
    return _attempt_in_tag(provider, run, job) == str(attempt_of(run, JOB))


def _attempt_in_tag(provider: Provider, run: Run, job: Any) -> str | None:
    """Return the attempt that a job's tag names; None where the job is not this run's."""
    if provider.dialect.metadata:
        metadata = mapping_of(getattr(job, "metadata", None))
        return str(metadata.get("ftkit_attempt", "1")) if metadata.get("ftkit_run") == run.mark else None
    match = re.fullmatch(rf"{re.escape(_suffix(provider, run))}-(\d+)", str(getattr(job, "suffix", None)))
    return match and match[1]


def _suffix(provider: Provider, run: Run) -> str:
    return f"{provider.options.suffix or 'ftkit'}-{run.mark[-6:]}"


# ---------------------------------------------------------------- batches


def batch_tag(run: Run, key: str) -> dict[str, str]:
    """Return the metadata of the batch that the run creates now for the requests of `key`."""
    content = key.removeprefix(BATCH_PREFIX)
    return {"ftkit_run": run.mark, "ftkit_batch": content, "ftkit_attempt": str(attempt_of(run, key))}


def find_batches(provider: Provider, run: Run) -> list[Any]:
    """Return the recent batches with the run's tag, the oldest first. May raise what the client raises."""
    listed = items(provider.client.batches.list(limit=100), most=_MOST_LISTED)
    return [batch for batch in listed if mapping_of(batch.metadata).get("ftkit_run") == run.mark][::-1]


def batch_to_adopt(provider: Provider, run: Run, key: str) -> Any:
    """Return the batch that the run resumes with, or None: that of this attempt, or an earlier one still running.

    A cancelled one of this attempt counts, unless the user confirmed that another may be created.
    May raise what the client raises.
    """
    content = batch_tag(run, key)["ftkit_batch"]
    found = [batch for batch in find_batches(provider, run) if batch.metadata.get("ftkit_batch") == content]
    current = [batch for batch in found if is_current_batch(run, key, batch)]
    running = [batch for batch in found if batch.status not in (*BATCH_FINAL, "cancelling")]
    if create_again(run):
        current = [batch for batch in current if batch.status not in ("cancelled", "cancelling")]
    return next(iter([*current, *running]), None)


def is_current_batch(run: Run, key: str, batch: Any) -> bool:
    """Say whether a batch belongs to the run's current attempt at the requests of `key`."""
    return bool(batch_tag(run, key).items() <= mapping_of(batch.metadata).items())
