"""Execute a prepared run directory: baseline, train, evaluate, report. A new run and a resumed one are the same here."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from ..api import Backend
from ..console import Console
from ..directory import RunDirectory
from ..errors import FtkitError, InputError, Interrupted, RunFailed
from ..files import read_json, write_json
from ..plugins import installed_plugins
from ..records import Measurement, Report
from ..report import write_report
from ..text import metric_value, nearest
from .lock import check_resumable, is_done, read_lock, what_changed
from .measure import measure_all, reuse_predictions
from .observers import Observers, follow
from .recorder import Recorder
from .signals import StopSignals, explained, how_to_resume, interrupted

HERE = "here"  # the `where` of this machine


def execute(
    run: RunDirectory, console: Console, where: str | None = None, answers: Mapping[str, str] | None = None
) -> RunDirectory:
    """Do what is left of a prepared run, here or through the launcher that `where` names, and write its report.

    Finished stages are not repeated, so that an interrupted or killed run resumes with the same call. Without `where`
    it stays where it was started; "here" is this machine, and what a launcher's remote side names. `answers` are the user's to `Backend.questions`. Raises FtkitError; what was done is kept.
    """
    check_resumable(run)
    if is_done(run.record()):
        console.say(f"{run.dir} is done: there is nothing left to do")
        if not run.path("report.json").exists():
            with run.exclusive():
                write_report([run], run.dir)
        return run
    _check_installed(run)
    backend: Backend = run.recipe.backend.make()
    run.answers = _checked_answers(backend, answers or {})
    with StopSignals() as signals:
        run.is_interrupted = lambda: signals.interrupted
        try:
            with run.exclusive():
                return _Execution(run, backend, console, signals, where).go()
        except KeyboardInterrupt:
            raise interrupted(run) from None
        except OSError as error:  # before the first stage: the lock or run.json could not be written
            raise explained(error, run) from error


def _check_installed(run: RunDirectory) -> None:
    """Raise InputError where a plugin of the recipe needs what is not installed on this machine."""
    recipe = run.recipe
    for ref in (recipe.backend, *recipe.evaluators, *recipe.controls, *recipe.tracking):
        installed_plugins().resolve(ref.kind, ref.name)


def _checked_answers(backend: Backend, answers: Mapping[str, str]) -> dict[str, str]:
    for key in answers:
        if key not in backend.questions:
            near = nearest(key, backend.questions)
            known = "; ".join(f"{key}: {what}" for key, what in backend.questions.items()) or "none"
            hint = f"did you mean {near!r}?" if near else f"questions of backend {backend.name!r}: {known}"
            raise InputError(f"--answer {key}: backend {backend.name!r} has no question {key!r}", hint)
    return dict(answers)


class _Execution:
    def __init__(
        self, run: RunDirectory, backend: Backend, console: Console, signals: StopSignals, where: str | None
    ) -> None:
        self.run, self.backend, self.console, self.signals = run, backend, console, signals
        self.recipe = run.recipe
        self.recorder = Recorder(run, console, signals)
        self.where = None if where == HERE else where or self.recorder.record.where

    def go(self) -> RunDirectory:
        run, recorder = self.run, self.recorder
        for left in run.dir.rglob(".*.tmp"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        run.journal.repair()
        resumed = recorder.record.status != "prepared"
        recorder.save(status="running", error=None, where=self.where or recorder.record.where)
        trackers = [(ref.name, ref.make()) for ref in self.recipe.tracking]
        self.observers = Observers(installed_plugins(), trackers, recorder.warn)
        try:
            with self.console.quiet(run.path("debug.log")):
                if resumed and (changed := what_changed(run, self.backend)):
                    recorder.warn(changed)
                self.console.say(f"run directory: {run.dir}")
                self.observers.notify("started", run=run, record=recorder.record)
                for stage in () if resumed else recorder.record.stages:  # those of `prepare`
                    self.observers.notify("stage_finished", run=run, stage=stage)
                if self.where:
                    self.launch(self.where)
                else:
                    self.stage("baseline")
                    self.stage("train")
                    self.stage("evaluate")
                shutil.rmtree(run.path(".work"), ignore_errors=True)
                self.stage("report")
                if recorder.record.status != "done":  # it was interrupted after its last stage
                    recorder.save(status="done")
        except KeyboardInterrupt:
            self.failed("interrupted", "interrupted")
            raise
        except Interrupted as detached:  # a backend left a remote job that continues without this process
            self.failed("interrupted", detached.message)
            raise
        except FtkitError as error:
            self.failed("failed", str(error))
            raise
        except Exception as error:
            self.failed("failed", f"{type(error).__name__}: {error}")
            raise explained(error, run) from error
        finally:
            self.signals.winding_down = True
            self.observers.close()
        return run

    # ---- the stages

    def baseline(self) -> dict[str, Any]:
        base = self.backend.base_model()
        extra = list(self.backend.measurements(self.run.task, None))
        stats = self.measure(self.backend, [Measurement("baseline", base), *extra], reuse=self.recorder.record.reuse)
        answers = self.run.predictions("baseline")
        if answers and all(p.error is not None for p in answers):
            shutil.rmtree(self.run.path("baseline"))  # --resume tries again
            raise RunFailed(
                f"the base model gave no answer: all {len(answers)} requests failed, the first with: {answers[0].error}",
                f"nothing was trained; when that is fixed, {how_to_resume(self.run)}",
            )
        for ref in self.recipe.controls:
            control = ref.make()
            measurement = Measurement(f"control-{ref.name}", control.base_model())
            found = self.measure(control, [measurement], reuse=self.recorder.record.reuse, control=True)
            usd = found.get("usd")
            stats = stats if usd is None else {**stats, "usd": stats.get("usd", 0.0) + usd}
        return stats

    def train(self) -> dict[str, Any]:
        model = self.backend.train(self.run.task.for_training(), self.run)
        write_json(self.run.path("train", "model.json"), model.to_dict())
        rows = self.run.log_rows()
        facts: dict[str, Any] = {}
        for row in rows:
            if row["event"] == "lock":
                facts |= {key: value for key, value in row.items() if key not in ("event", "time")}
        if facts:
            write_json(self.run.path("lock.json"), {**read_lock(self.run), "training": facts})
        ends = [row for row in rows if row["event"] == "end"]
        return {k: v for k, v in ends[-1].items() if k not in ("event", "time")} if ends else {}

    def evaluate(self) -> dict[str, Any]:
        tuned = self.run.model()
        if tuned is None:
            raise RunFailed("training left no model")
        extra = list(self.backend.measurements(self.run.task, tuned))
        stats = self.measure(self.backend, [Measurement("tuned", tuned), *extra])
        before, after = (
            {(p.example_id, p.sample): p.text for p in self.run.predictions(name) if p.error is None}
            for name in ("baseline", "tuned")
        )
        if after and before == after:
            self.recorder.warn(
                f"the tuned model gave the base model's answer to all {len(self.run.task.test)} test rows: "
                "training changed nothing that can be seen"
            )
        return stats

    def report(self) -> dict[str, Any]:
        # The report speaks of this run as done: it is the last stage, and a reader finds it beside run.json.
        self.recorder.save(status="done")
        report: Report = write_report([self.run], self.run.dir)
        self.observers.notify("finished", run=self.run, record=self.recorder.record, report=report)
        return {}

    # ---- elsewhere

    def launch(self, where: str) -> None:
        """Let a launcher do the stages; what it brings back has them in its run.json."""
        name, _, place = where.partition(":")
        launcher = installed_plugins().resolve("launcher", name)()
        before = [stage.name for stage in self.recorder.record.stages if stage.status == "done"]
        try:
            with follow(self.run.journal.path, self.logged, self.recorder.warn):
                launcher.launch(self.run, place)
        finally:
            self.recorder.reload()
        missing = [s for s in ("baseline", "train", "evaluate") if not self.recorder.is_done(s)]
        if missing:
            raise RunFailed(
                f"launcher {name!r} returned before {' and '.join(missing)} were done", how_to_resume(self.run)
            )
        for stage in self.recorder.record.stages:
            if stage.name not in before:
                self.observers.notify("stage_finished", run=self.run, stage=stage)

    # ---- what the stages share

    def stage(self, name: str) -> None:
        def work() -> dict[str, Any]:
            with follow(self.run.journal.path, self.logged, self.recorder.warn):
                done: dict[str, Any] = getattr(self, name)()
            return done

        done = self.recorder.stage(name, work, lambda: self.headline(name))
        if done is not None:
            self.observers.notify("stage_finished", run=self.run, stage=done)

    def headline(self, stage: str) -> str:
        name = {"baseline": "baseline", "evaluate": "tuned"}.get(stage)
        metric = next(iter(self.run.metrics(name).values()), None) if name else None
        return f" ({metric.name} {metric_value(metric.value, metric.unit)})" if metric else ""

    def measure(
        self, backend: Backend, measurements: Sequence[Measurement], reuse: bool = False, control: bool = False
    ) -> dict[str, Any]:
        names = [m.name for m in measurements]
        if len(set(names)) != len(names):
            raise RunFailed(f"backend {backend.name!r} gives two measurements one name: {', '.join(names)}")
        self.recorder.save(systems=tuple(dict.fromkeys([*self.recorder.record.systems, *names])))
        for measurement in measurements if reuse else ():
            source = reuse_predictions(self.run, backend, measurement)
            if source:
                self.console.say(
                    f"  {measurement.name}: the predictions of {source} are reused (same model, rows and settings)"
                )
        stats = measure_all(self.run, backend, measurements, self.console.progress, control)
        costs = [read_json(self.run.path(name, "cost.json")) for name in names]
        usd = [c["usd"] for c in costs if c.get("usd") is not None and "reused_from" not in c]
        return {**stats, "usd": sum(usd)} if usd else stats

    def logged(self, event: dict[str, Any]) -> None:
        kind = event.get("event")
        if kind == "step" and event.get("max_steps"):
            parts = [f"loss {event['loss']:.3f}"] if isinstance(event.get("loss"), int | float) else []
            if event.get("tokens_per_second"):
                parts.append(f"{event['tokens_per_second']:.0f} tokens/s")
            seconds = event.get("seconds") or 0.0
            self.console.progress("step", event.get("step") or 0, event["max_steps"], seconds, ", ".join(parts))
        elif kind in ("warning", "note"):
            text = str(event.get("message") or f"a {kind} without a message")
            self.recorder.warn(text) if kind == "warning" else self.console.say(f"  {text}")
        self.observers.notify("logged", run=self.run, event=event)

    def failed(self, status: str, why: str) -> None:
        self.signals.winding_down = True
        with contextlib.suppress(OSError, FtkitError):  # a full disk, a deleted directory: they must not hide the cause
            self.recorder.save(status=status, error=why)
        self.observers.notify("failed", run=self.run, record=self.recorder.record)
