"""One run as Weights & Biases has it. Runs in the tracker's own process.

wandb's own capture is off: no console, code, git, machine, packages or arguments; what is sent is what `ftkit.tracking`
picks. The transaction log (`*.wandb`) holds all of it, also where a server takes nothing.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.pop("WANDB_SERVICE", None)  # of another process
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # before the import: no telemetry about errors of the client

import wandb

from ftkit import tracking
from ftkit.api import MeasuredRun, Run
from ftkit.records import Report, RunRecord, StageRecord
from ftkit.text import one_line

if TYPE_CHECKING:
    from . import WandbOptions

_AXES = {"step": "train", "eval": "eval"}  # kind of an event -> the name of its curves, each with its own step axis
_FLUSH = 2.0  # seconds after which what is logged is in the transaction log
_SENT = "ftkit-sent"  # marks a folder of wandb whose content the server has


class Client:
    """A W&B run, online or offline. Its id is the ftkit run's, so that a resumed run continues it."""

    def __init__(
        self,
        options: WandbOptions,
        run: Run,
        record: RunRecord,
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self.options, self.id, self.say, self.warn = options, record.id, say, warn
        settings = self._settings(run, record)
        self.fresh = tracking.Fresh(run, resumed=bool(self._folders(settings)))
        self.step = 0
        self.run = self._start(settings, tracking.config(run))
        self.run._log_artifact = functools.partial(_publish, self.run)  # of tables, too
        self.folder = Path(self.run.dir).parent  # .../wandb/run-TIME-ID
        for name in _AXES.values():
            self.run.define_metric(f"{name}/step", hidden=True)
            self.run.define_metric(f"{name}/*", step_metric=f"{name}/step")
        self._artifact(tracking.dataset(run, options.send_data), used=True)

    # ---- start

    def _settings(self, run: Run, record: RunRecord) -> wandb.Settings:
        o = self.options
        chosen = {"mode": o.mode, "base_url": o.base_url, "entity": o.entity, "run_group": o.group or record.group}
        return wandb.Settings(
            **{key: value for key, value in chosen.items() if value is not None},
            project=o.project, run_id=self.id, run_name=record.name, run_tags=tuple(o.tags), resume="allow",
            root_dir=o.dir or os.environ.get("WANDB_DIR") or str(run.dir.parent),
            init_timeout=o.init_timeout, finish_timeout=o.finish_timeout, finish_timeout_raises=True,
            x_transaction_log_flush_interval=_FLUSH,
            silent=True, console="off", program="ftkit", host="", disable_code=True, save_code=False, disable_git=True, disable_job_creation=True,
            x_disable_meta=True, x_disable_machine_info=True, x_disable_stats=True, x_save_requirements=False,
        )  # fmt: skip

    def _start(self, settings: wandb.Settings, config: dict[str, Any]) -> wandb.Run:
        before = set(self._folders(settings))
        try:
            return wandb.init(settings=settings, config=config)
        except wandb.errors.UsageError as error:  # no key, and nobody to ask for one
            self.say(f"recording offline: {one_line(error, 200)}")
        except Exception as error:
            self.warn(f"recording offline, since the server cannot be used: {one_line(error, 200)}")
        wandb.teardown(1)  # the service holds the run's id
        for left in set(self._folders(settings)) - before:
            shutil.rmtree(left, ignore_errors=True)
        offline = settings.model_copy(update={"mode": "offline"})
        return wandb.init(settings=offline, config=config)

    def _folders(self, settings: wandb.Settings) -> list[Path]:
        """Return the folders of this run's id, oldest first: offline, each process makes one."""
        root = Path(settings.root_dir)
        found = [p for name in ("wandb", ".wandb") for p in root.glob(f"{name}/*run-*-{self.id}") if p.is_dir()]
        return sorted(found, key=lambda p: p.name.removeprefix("offline-"))

    # ---- what is logged

    def log(self, event: dict[str, Any]) -> None:
        kind = event.get("event")
        values = tracking.numbers(event)
        if not self.fresh(event) or not values:
            return
        if kind == "end":
            self.run.summary.update({f"train/{key}": value for key, value in values.items()})
        elif kind in _AXES and isinstance(event.get("step"), int | float):
            axis = _AXES[kind]
            self._log({f"{axis}/step": event["step"], **{f"{axis}/{key}": value for key, value in values.items()}})

    def _log(self, values: dict[str, Any]) -> None:
        """Log at W&B's own step, which counts on over all processes of the run: their folders are merged by a sync."""
        self.step = max(self.step, self.run.step, self.fresh.before) + 1
        self.run.log(values, step=self.step)

    def stage(self, run: Run, stage: StageRecord) -> None:
        found = tracking.stage_numbers(stage)
        if isinstance(run, MeasuredRun):
            for name in run.measured():
                found |= tracking.metric_numbers(name, run.metrics(name))
        self.run.summary.update(found)

    def finish(self, run: MeasuredRun, record: RunRecord, report: Report) -> None:
        try:
            self._tell_results(run, record, report)
        except Exception as error:  # what is recorded so far is sent all the same
            self.warn(f"not everything was recorded: {type(error).__name__}: {one_line(error, 200)}")
        self._end(0)

    def _tell_results(self, run: MeasuredRun, record: RunRecord, report: Report) -> None:
        self.run.summary.update(tracking.summary(record, report))
        o = self.options
        artifacts = [tracking.model(run, o.send_model)]
        if o.send_answers:
            columns, rows = tracking.table(report, o.table_rows, o.table_characters)
            shown: dict[str, Any] = {"report": wandb.Html(str(run.path("report.html")), inject=False)}
            if rows:
                shown["predictions"] = wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
            self._log(shown)
            artifacts += [tracking.predictions(run), tracking.report_page(run)]
        for artifact in artifacts:
            if artifact is not None:
                self._artifact(artifact)

    def fail(self, record: RunRecord) -> None:
        self.run.summary.update({"status": record.status})
        self._end(1)

    def _artifact(self, artifact: tracking.Artifact, used: bool = False) -> None:
        """Log an artifact as one that the run used, or made. Its version has an alias: the fingerprint."""
        made = wandb.Artifact(artifact.name, artifact.kind, metadata=artifact.metadata)
        if artifact.content is not None:
            with made.new_file("about.json", encoding="utf-8") as file:
                file.write(tracking.text(artifact.content))
        for name, path in artifact.files.items():
            made.add_file(str(path.resolve()), name, policy="immutable")
        try:
            # Not `use_artifact`: it refuses to work offline, and waits for the server online.
            _publish(self.run, made, aliases=[artifact.version], is_user_created=True, use_after_commit=used)
        except Exception as error:
            self.warn(f"the artifact {artifact.name} was not sent: {one_line(error, 200)}")

    # ---- end

    def _end(self, status: int) -> None:
        """Finish the run. wandb's own limit, `finish_timeout`, does not hold for every request: a thread is left behind."""
        problems: list[str] = []

        def finish() -> None:
            try:
                self.run.finish(exit_code=status)
            except TimeoutError:
                problems.append(too_slow)
            except Exception as error:  # the client's own service may end of what a server answers
                problems.append(f"not everything was sent: {type(error).__name__} {one_line(error, 200)}".rstrip())

        too_slow = f"the server did not take everything within {self.options.finish_timeout:g} s"
        thread = threading.Thread(target=finish, daemon=True)
        thread.start()
        thread.join(self.options.finish_timeout + _FLUSH)
        if thread.is_alive():
            problems.append(too_slow)
        for problem in problems:
            self.warn(problem)
        if not problems and not self.run.offline:
            (self.folder / _SENT).touch()
        self._say_what_to_sync()

    def _say_what_to_sync(self) -> None:
        folders = self.folder.parent.glob(f"*run-*-{self.id}")
        for folder in sorted(folders, key=lambda p: p.name.removeprefix("offline-")):
            if not (folder / _SENT).exists() and not list(folder.glob("*.wandb.synced")):
                self.say(f"send it to the server with: wandb sync --yes {shlex.quote(str(folder))}")


def _publish(
    run: wandb.Run,
    artifact: wandb.Artifact,
    aliases: list[str] | None = None,
    is_user_created: bool = False,
    use_after_commit: bool = False,
    **_: None,  # what wandb passes for an artifact that is not one yet
) -> wandb.Artifact:
    """Log an artifact online as wandb does it offline: it is queued. Online, wandb first asks the server, which may hang."""
    artifact, aliases = run._prepare_artifact(artifact, aliases=aliases)
    artifact.metadata = dict(artifact.metadata)  # checks it
    run._interface.publish_artifact(
        run, artifact, aliases, is_user_created=is_user_created, use_after_commit=use_after_commit
    )
    return artifact
