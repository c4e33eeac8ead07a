"""Tracker `wandb`: Weights & Biases watches a run, in a process of its own.

Light: wandb is imported in `_client.py`, in the tracker's process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ftkit.api import MeasuredRun, Options, Requires, Run, Tracker
from ftkit.hookspecs import hookimpl
from ftkit.records import Diagnosis, Report, RunRecord, StageRecord

if TYPE_CHECKING:
    from ._client import Client


class WandbOptions(Options):
    project: str = Field("ftkit", min_length=1, description="the W&B project")
    entity: str | None = Field(None, description="the W&B user or team; by default that of the API key")
    group: str | None = Field(None, description="by default the runs of one command share a group")
    tags: list[str] = Field([], description="tags of the W&B run")
    mode: Literal["online", "offline"] | None = Field(
        None, description="by default WANDB_MODE, else online; offline where there is no API key or no server"
    )
    base_url: str | None = Field(None, description="address of the server; by default WANDB_BASE_URL, else W&B's own")
    dir: str | None = Field(
        None, description="where the folder wandb/ is made; by default WANDB_DIR, else beside the run directory"
    )
    send_answers: bool = Field(
        True, description="send the table of answers, all predictions, and report.html, which hold test rows"
    )
    send_data: bool = Field(False, description="send the rows of the data, not just their fingerprints")
    send_model: bool = Field(False, description="send the files of the tuned model, not just its fingerprint")
    table_rows: int = Field(200, ge=0, description="most rows of the table of answers")
    table_characters: int = Field(1000, ge=1, description="most characters of a cell of that table")
    init_timeout: float = Field(10.0, gt=0, description="seconds to wait for the server at the start")
    finish_timeout: float = Field(30.0, gt=0, description="seconds to wait for uploads at the end")
    paths = ("dir",)
    renamed: ClassVar[dict[str, str]] = {"team": "entity", "wandb_project": "project", "wandb_entity": "entity"}


class Wandb(Tracker):
    """Sends a run to Weights & Biases, or records it offline."""

    name = "wandb"
    summary = "Weights & Biases: curves, metrics with intervals, answers, report, lineage; offline without a key"
    Options = WandbOptions
    requires = Requires(("wandb",), "ftkit[wandb]")
    own_process = True
    environment = ("WANDB_*", "NETRC")

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.patience = self.options.init_timeout + self.options.finish_timeout + 5
        self._client: Client | None = None

    @classmethod
    def diagnose(cls, options: Any = None) -> Iterator[Diagnosis]:
        for modules in super().diagnose(options):
            yield modules
            if modules.ok is False:
                return
        from ._doctor import diagnoses

        yield from diagnoses(options or WandbOptions(), needed=options is not None)

    def started(self, run: Run, record: RunRecord) -> None:
        if self.options.mode is None and os.environ.get("WANDB_MODE") == "disabled":
            self.say("WANDB_MODE is disabled: nothing is recorded")
            return
        from ._client import Client

        self._client = Client(self.options, run, record, self.say, self.warn)

    def logged(self, run: Run, event: dict[str, Any]) -> None:
        if self._client:
            self._client.log(event)

    def stage_finished(self, run: Run, stage: StageRecord) -> None:
        if self._client:
            self._client.stage(run, stage)

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
    return [Wandb]
