"""The hooks. A plugin module implements them as functions with `@ftkit.hookimpl`.

Collecting hooks return classes; ftkit calls them once, when a name must be resolved. Notifying hooks
are called in a thread of their own and cannot delay, change or end a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from .api import Backend, DatasetLoader, Evaluator, Launcher, MeasuredRun, Run, Tracker
    from .records import Report, RunRecord, Section, StageRecord

hookspec = pluggy.HookspecMarker("ftkit")
hookimpl = pluggy.HookimplMarker("ftkit")


@hookspec
def ftkit_backends() -> list[type[Backend]]:  # type: ignore[empty-body]
    """Return backend classes; a recipe names one with `backend: {plugin: NAME}`.

    >>> @hookimpl
    ... def ftkit_backends():
    ...     return [MyBackend]
    """


@hookspec
def ftkit_evaluators() -> list[type[Evaluator]]:  # type: ignore[empty-body]
    """Return evaluator classes; a recipe names one with `evaluator: {plugin: NAME}`.

    >>> @hookimpl
    ... def ftkit_evaluators():
    ...     return [MyEvaluator]
    """


@hookspec
def ftkit_datasets() -> list[type[DatasetLoader]]:  # type: ignore[empty-body]
    """Return dataset loader classes; a recipe names one with `dataset: {path: loader:NAME}`.

    >>> @hookimpl
    ... def ftkit_datasets():
    ...     return [MyRows]
    """


@hookspec
def ftkit_launchers() -> list[type[Launcher]]:  # type: ignore[empty-body]
    """Return launcher classes; `ftkit run --on NAME` uses one.

    >>> @hookimpl
    ... def ftkit_launchers():
    ...     return [MyLauncher]
    """


@hookspec
def ftkit_trackers() -> list[type[Tracker]]:  # type: ignore[empty-body]
    """Return tracker classes; a recipe names one with `tracking: [{plugin: NAME}]`.

    >>> @hookimpl
    ... def ftkit_trackers():
    ...     return [MyTracker]
    """


@hookspec
def ftkit_run_started(run: Run, record: RunRecord) -> None:
    """Called when the `prepare` stage is done and the recipe, lock and audit are on disk.

    >>> @hookimpl
    ... def ftkit_run_started(run, record):
    ...     print("started", record.id, run.dir)
    """


@hookspec
def ftkit_metrics_logged(run: Run, event: dict[str, Any]) -> None:
    """Called for each line of train/log.jsonl, soon after it was written.

    `event` has "event" ("step", "eval", ...), "time" (seconds since the epoch), mostly "step", and values.

    >>> @hookimpl
    ... def ftkit_metrics_logged(run, event):
    ...     print(event.get("step"), event.get("loss"))
    """


@hookspec
def ftkit_stage_finished(run: Run, stage: StageRecord) -> None:
    """Called after each stage that ended well; its files are complete.

    >>> @hookimpl
    ... def ftkit_stage_finished(run, stage):
    ...     print(stage.name, stage.seconds)
    """


@hookspec
def ftkit_run_failed(run: Run, record: RunRecord) -> None:
    """Called once when a run fails or is interrupted; `record.error` says why.

    >>> @hookimpl
    ... def ftkit_run_failed(run, record):
    ...     print("failed", record.error)
    """


@hookspec
def ftkit_run_finished(run: Run, record: RunRecord, report: Report) -> None:
    """Called once when a run is done and its report is written.

    >>> @hookimpl
    ... def ftkit_run_finished(run, record, report):
    ...     print(report.verdict)
    """


@hookspec
def ftkit_report_sections(runs: list[MeasuredRun]) -> list[Section]:  # type: ignore[empty-body]
    """Return further sections for a report over `runs`: plain data, which ftkit escapes and draws.

    A section's `headline`, one sentence, leads the report in place of its own headline; `lead` follows it.

    >>> @hookimpl
    ... def ftkit_report_sections(runs):
    ...     return [Section("Costs", ({"kind": "text", "text": "0 USD"},))]
    """
