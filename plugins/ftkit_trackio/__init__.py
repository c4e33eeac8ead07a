"""Tracker `trackio`: a tracker without an account. Everything is in a SQLite file; `trackio show` draws it.

Light: trackio is imported in `_client.py`, in the tracker's process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from ftkit.api import MeasuredRun, Options, Requires, Run, Tracker
from ftkit.hookspecs import hookimpl
from ftkit.records import Report, RunRecord, StageRecord

if TYPE_CHECKING:
    from ._client import Client

_LOCAL = ("TRACKIO_DIR",)  # no other: TRACKIO_SPACE_ID, for example, would send the run to a server
_OF_THE_HUB = ("HF_*",)


class TrackioOptions(Options):
    project: str = Field("ftkit", min_length=1, description="the trackio project: one SQLite file")
    group: str | None = Field(None, description="by default the runs of one command share a group")
    dir: str | None = Field(
        None, description="where trackio keeps its files; by default TRACKIO_DIR, else its own folder"
    )
    space: str | None = Field(
        None, description="a Hugging Face Space (user/name) to send the run to; a new one is private; by default none"
    )
    send_answers: bool = Field(
        True, description="record the table of answers, all predictions, and report.html, which hold test rows"
    )
    send_data: bool = Field(False, description="copy the rows of the data, not just their fingerprints")
    send_model: bool = Field(False, description="copy the files of the tuned model, not just its fingerprint")
    table_rows: int = Field(200, ge=0, description="most rows of the table of answers")
    table_characters: int = Field(1000, ge=1, description="most characters of a cell of that table")
    paths = ("dir",)


class Trackio(Tracker):
    """Records a run with trackio: on this machine, unless the recipe names a space."""

    name = "trackio"
    summary = "trackio: curves, metrics with intervals, answers, report, lineage, on this machine; no account"
    Options = TrackioOptions
    requires = Requires(("trackio",), "ftkit[trackio]")
    own_process = True
    patience = 40.0  # trackio itself waits 30 s for its writer

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.environment = (*_LOCAL, *_OF_THE_HUB) if self.options.space else _LOCAL
        self._client: Client | None = None

    def started(self, run: Run, record: RunRecord) -> None:
        from ._client import Client

        self._client = Client(self.options, run, record, self.warn)

    def logged(self, run: Run, event: dict[str, Any]) -> None:
        if self._client:
            self._client.log(event)

    def stage_finished(self, run: Run, stage: StageRecord) -> None:
        if self._client:
            self._client.stage(stage)

    def failed(self, run: Run, record: RunRecord) -> None:
        if self._client:
            self._client.fail(record)
            self._client = None

    def finished(self, run: MeasuredRun, record: RunRecord, report: Report) -> None:
        if self._client:
            self._client.finish(run, record, report)
            self._client = None


@hookimpl
def ftkit_trackers() -> list[type[Tracker]]:
    return [Trackio]
