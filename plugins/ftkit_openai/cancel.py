"""`ftkit cancel RUN`: end a run's job at the provider. Interrupting `ftkit run` only detaches from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ftkit.errors import InputError
from ftkit.store import RunContext


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def cancel(run: Path, as_json: bool) -> None:
    """End the job that RUN started at a provider; what it trained so far may be billed."""
    context = RunContext.open(run)
    options = context.recipe.backend.options
    if context.recipe.backend.name != "openai-managed":
        raise InputError(
            f"{context.dir} has no job at a provider: it was trained by {context.recipe.backend.name}",
            "stop it with Ctrl-C where it runs",
        )
    from ._connect import connected
    from ._local import stop

    try:
        with connected(options, context) as provider:
            ended = _cancelled(provider, context)
    finally:
        stop(context)
    if as_json:
        click.echo(json.dumps({"run": str(context.dir), "cancelled": ended}))
        return
    for entry in ended:
        click.echo(f"{entry['what']} {entry['id']}: {entry['status']}")
    if not ended:
        click.echo("nothing to cancel: this run has nothing under way at the provider")


def _cancelled(provider: Any, run: RunContext) -> list[dict[str, str]]:
    """Cancel the run's job and its open batches; return what was asked to end, with its status afterwards."""
    from ._train import ENDS, find_job, job_status

    ended = []
    state = run.state
    job_state = state.get("job") or {}
    jobs = provider.client.fine_tuning.jobs
    job = None
    if job_state.get("id"):
        job = provider.read("looking at the job", lambda: jobs.retrieve(job_state["id"]))
    elif job_state.get("phase") in ("creating", "unknown"):
        job = provider.read("looking for the job", lambda: find_job(provider, run))
    if job is not None and job_status(provider, job) not in ENDS:
        job = _asked(provider, "cancelling the job", lambda: jobs.cancel(job.id), lambda: jobs.retrieve(job.id))
        ended.append({"what": "job", "id": job.id, "status": job_status(provider, job)})
    batches = provider.client.batches
    for name, entry in state.items():
        if name.startswith("batch-") and (entry or {}).get("id"):
            batch = _asked(
                provider,
                "cancelling the batch",
                lambda id=entry["id"]: batches.cancel(id),  # type: ignore[misc]
                lambda id=entry["id"]: batches.retrieve(id),  # type: ignore[misc]
            )
            ended.append({"what": "batch", "id": batch.id, "status": batch.status})
    return ended


def _asked(provider: Any, what: str, end: Any, look: Any) -> Any:
    """Ask for the end; what had just ended by itself is shown as it is."""
    from ._client import kind

    def end_or_look() -> Any:
        try:
            return end()
        except Exception as error:
            if kind(error) == "invalid":
                return look()
            raise

    return provider.read(what, end_or_look)
