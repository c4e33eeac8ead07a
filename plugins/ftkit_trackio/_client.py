"""One run as trackio has it. Runs in the tracker's own process; `__init__.py` imports it there."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit import tracking
from ftkit.api import MeasuredRun, Run
from ftkit.records import Report, RunRecord, StageRecord
from ftkit.text import one_line

if TYPE_CHECKING:
    from . import TrackioOptions

_CURVES = {"step": "train", "eval": "eval"}  # kind of an event -> the name of its curves


class Client:
    """A trackio run, named like the ftkit run, so that a resumed run continues it."""

    def __init__(self, options: TrackioOptions, run: Run, record: RunRecord, warn: Callable[[str], None]) -> None:
        if options.dir:
            os.environ["TRACKIO_DIR"] = options.dir  # trackio reads it when it is imported
        import trackio

        self.trackio, self.options, self.warn = trackio, options, warn
        # What trackio leaves out it says by a warning, which nobody would see in this process.
        warnings.showwarning = lambda message, *_, **__: warn(one_line(message, 300))
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=UserWarning, module="trackio")
        self.step = 0
        self.final: dict[str, Any] = {}  # what other trackers keep in a summary
        self.run = trackio.init(
            project=options.project, name=record.id, group=options.group or record.group, config=tracking.config(run),
            space_id=options.space, private=True if options.space else None, resume="allow", embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip
        self.fresh = tracking.Fresh(run, resumed=self.run._next_step > 0)
        self._artifact(tracking.dataset(run, options.send_data), used=True)

    def log(self, event: dict[str, Any]) -> None:
        kind = event.get("event")
        values = tracking.numbers(event)
        step = event.get("step")
        if not self.fresh(event) or not values:
            return
        if kind == "end":
            self.final |= {f"train/{key}": value for key, value in values.items()}
        elif kind in _CURVES and isinstance(step, int):
            self.step = max(self.step, step)
            self.run.log({f"{_CURVES[kind]}/{key}": value for key, value in values.items()}, step=step)

    def stage(self, stage: StageRecord) -> None:
        self.final |= tracking.stage_numbers(stage)

    def finish(self, run: MeasuredRun, record: RunRecord, report: Report) -> None:
        o = self.options
        artifacts = [tracking.model(run, o.send_model)]
        shown: dict[str, Any] = {}
        if o.send_answers:
            columns, rows = tracking.table(report, o.table_rows, o.table_characters)
            shown["report"] = self.trackio.Html(str(run.path("report.html")), inject=False)
            if rows:
                shown["predictions"] = self.trackio.Table(columns=columns, data=rows)
            artifacts += [tracking.predictions(run), tracking.report_page(run)]
        self.run.log({**self.final, **tracking.summary(record, report), **shown}, step=self.step)
        for artifact in artifacts:
            if artifact is not None:
                self._artifact(artifact)
        self.run.finish()

    def fail(self, record: RunRecord) -> None:
        self.run.log({**self.final, "status": record.status}, step=self.step)
        self.run.finish()

    def _artifact(self, artifact: tracking.Artifact, used: bool = False) -> None:
        """Log an artifact, and that the run uses it. Its version has an alias: the fingerprint."""
        made = self.trackio.Artifact(artifact.name, artifact.kind, metadata=artifact.metadata)
        try:
            with tempfile.TemporaryDirectory() as folder:
                if artifact.content is not None:
                    about = Path(folder, "about.json")
                    about.write_text(tracking.text(artifact.content), encoding="utf-8")
                    made.add_file(about, "about.json")
                for name, path in artifact.files.items():
                    made.add_file(path, name)
                logged = self.run.log_artifact(made, aliases=[artifact.version])
            if used:
                self.run.use_artifact(logged)
        except Exception as error:
            self.warn(f"the artifact {artifact.name} was not recorded: {one_line(error, 200)}")
