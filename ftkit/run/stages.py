"""Execute a prepared run directory: baseline, train, evaluate, report. A new run and a resumed one are the same here."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..api import Backend
from ..causes import Failure, cause_of
from ..console import Console
from ..directory import RunDirectory, utc_now
from ..errors import FtkitError, InputError, Interrupted, RunFailed
from ..files import read_json, write_json
from ..lang import joined, msg, tr, word
from ..masking import masked
from ..plugins import installed_plugins
from ..recipe.load import Recipe
from ..records import Measurement, Remedy, Report, RunRecord, StageRecord
from ..report import write_report
from ..report.failure import keep_traceback, remedies_of
from ..text import duration, finite, metric_value, nearest, one_line
from .elsewhere import HERE, confirm_place, launcher_at, place_of
from .extend import INTENT, complete, extend
from .launched import EVENTS, Relay, is_launched, relock, stage_of
from .live import LivePage
from .lock import add_facts, add_model, check_resumable, is_done, what_changed
from .manifest import MANIFEST, seal
from .measure import measure_all, reuse_predictions
from .observers import Observers, follow
from .recorder import Recorder
from .resume import change, recipe_with
from .signals import StopSignals, explained, how_to_resume, interrupted, remedy_lines, what_is

_PROGRESS: dict[str, Any] = {"what": "", "done": 0, "total": 0, "seconds": 0.0}  # of the event `progress`


def execute(
    run: RunDirectory,
    console: Console,
    where: str | None = None,
    answers: Mapping[str, str] | None = None,
    overrides: Sequence[str] = (),
    yes: bool = False,
) -> RunDirectory:
    """Do what is left of a prepared run, here or through the launcher that `where` names, and write its report.

    Finished stages are not repeated, so that an interrupted or killed run resumes with the same call. Without `where`
    it stays where it was started; "here" is this machine, and what a launcher's remote side names. `answers` are the
    user's to `Backend.questions`. `overrides` change options that change no measured number, and in a finished run
    those that continue its training. A place that differs from the run's own is confirmed where it costs something;
    `yes` confirms it.
    Raises FtkitError; what was done is kept.
    """
    check_resumable(run)
    if run.path(INTENT).exists():
        with run.exclusive():
            complete(run)
    if is_done(run.record()) and overrides:
        with run.exclusive():
            for line in extend(run, overrides):
                console.say(f"  {line}")
        overrides = ()
    if is_done(run.record()):
        console.say(tr("{path} is done: there is nothing left to do", path=run.dir))
        missing = [name for name in ("report.json", MANIFEST) if not run.path(name).exists()]
        if (missing or any(_torn(run))) and os.access(run.dir, os.W_OK):  # it was killed before its last step
            with run.exclusive():
                _sweep(run)
                if missing:  # a sealed run stays as it is: sealing it again would hide what changed
                    _finish(run)
        return run
    recipe = recipe_with(run, overrides) if overrides else run.recipe
    _check_installed(recipe)
    backend: Backend = recipe.backend.make()
    run.answers = _checked_answers(backend, answers or {})
    if where not in (None, HERE, run.record().where):
        confirm_place(run, str(where), console, yes)
    with StopSignals() as signals:
        run.is_interrupted = lambda: signals.interrupted
        try:
            with run.exclusive():
                for line in change(run, recipe) if overrides else ():
                    console.say(f"  {line}")
                _Execution(run, backend, console, signals, where).go()
                _finish(run)
                return run
        except KeyboardInterrupt:
            raise interrupted(run) from None
        except OSError as error:  # before the first stage: the lock or run.json could not be written
            raise explained(error, run) from error


def _torn(run: RunDirectory) -> Iterator[Path]:
    """Yield the files that a killed process left half written."""
    return run.dir.rglob(".*.tmp")


def _sweep(run: RunDirectory) -> None:
    for left in list(_torn(run)):
        left.unlink(missing_ok=True)


def _finish(run: RunDirectory) -> None:
    """Seal a run; first write its report (again), where there is none or an observer has warned since."""
    path = run.path("report.json")
    said = read_json(path)["warnings"] if path.exists() else None
    if said is None or not set(run.record().warnings) <= set(said):
        write_report([run], run.dir)
    seal(run)


def _check_installed(recipe: Recipe) -> None:
    """Raise InputError where a plugin of the recipe needs what is not installed on this machine."""
    trackers = () if is_launched() else recipe.tracking
    for ref in (recipe.backend, *recipe.evaluators, *recipe.controls, *trackers):
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
        self.live = LivePage(run, self.record)
        self.where = None if where == HERE else where or self.recorder.record.where
        self.relay = Relay(run) if is_launched() and not self.where else None  # to the machine that launched the run
        self.elsewhere: dict[str, StageRecord] = {}  # the stages that a launcher has reported
        self.systems: tuple[str, ...] = ()  # and the measurements
        self.reported: set[str] = set()  # those stages that were reported to trackers
        self.steps = self.unlogged = 0  # of the training in progress: in all, and those that no line has shown yet

    def go(self) -> RunDirectory:
        run, recorder = self.run, self.recorder
        self.check_free()
        _sweep(run)
        run.journal.repair()
        resumed = recorder.record.status != "prepared"
        recorder.save(status="running", error=None, remedies=(), where=self.where or recorder.record.where)
        trackers = [] if self.relay else [(ref.name, ref.make()) for ref in self.recipe.tracking]
        plugins = None if self.relay else installed_plugins()  # the side that launched the run notifies them
        self.observers = Observers(plugins, trackers, run.dir, self.console.say, recorder.warn)
        try:
            if not recorder.is_done("report"):
                self.live.start()
            with self.console.quiet(run.path("debug.log")):
                if resumed and (changed := what_changed(run, self.backend)):
                    recorder.warn(changed)
                if self.relay and not resumed and (differs := relock(run)):
                    run.log("note", message=differs)
                text = msg("run directory: {path} (report.html in it shows how far the run is)")
                self.console.say(tr(text, path=run.dir))
                self.observers.notify("started", run=run, record=recorder.record)
                for stage in () if resumed else recorder.record.stages:  # those of `prepare`
                    self.observers.notify("stage_finished", run=run, stage=stage)
                if self.where:
                    self.launch(self.where)
                else:
                    self.compute()
                shutil.rmtree(run.path(".work"), ignore_errors=True)
                self.live.stop()  # before the report takes its page's place
                if self.where and recorder.is_done("report"):  # its record was brought back; the page here is ours
                    report = write_report([run], run.dir)
                    self.observers.notify("finished", run=run, record=recorder.record, report=report)
                self.stage("report")
                if recorder.record.status != "done":  # it was interrupted after its last stage
                    recorder.save(status="done")
        except KeyboardInterrupt:
            self.ended("interrupted", "interrupted")
            raise
        except Interrupted as detached:  # a backend left a remote job that continues without this process
            self.ended("interrupted", str(detached))
            raise
        except FtkitError as error:
            remedies = self.failed(error, str(error))
            error.hint = "\n  ".join([*filter(None, [error.hint]), *remedy_lines(remedies, run)]) or None
            raise
        except Exception as error:
            remedies = self.failed(error, what_is(error))
            raise explained(error, run, remedies) from error
        finally:
            self.signals.winding_down = True
            self.observers.close(hurry=lambda: self.signals.insisted)
        return run

    # ---- the stages

    def compute(self) -> None:
        """Do baseline, train and evaluate; after a failure that the backend can adapt to, what is left of them."""
        while True:
            try:
                for name in ("baseline", "train", "evaluate"):
                    self.stage(name)
                return
            except Interrupted:
                raise
            except Exception as error:
                if not self.adapted(error):
                    raise
            gc.collect()  # the failed attempt's model: it is held by the error, and in cycles

    def adapted(self, error: Exception) -> bool:
        """Change the run's recipe as its backend asks for after this failure; return whether it did."""
        stage = next((s.name for s in reversed(self.recorder.record.stages) if s.status != "done"), "")
        cause = cause_of(error)
        try:
            overrides = list(self.backend.adapt(Failure(cause.name, stage, error), self.run))
            recipe = recipe_with(self.run, overrides) if overrides else self.recipe
        except Exception as wrong:
            self.recorder.warn(f"backend {self.backend.name!r} could not adapt to a failure: {one_line(wrong, 200)}")
            return False
        if recipe.to_dict() == self.recipe.to_dict():
            return False
        with contextlib.suppress(OSError):
            keep_traceback(self.run, stage, error)
        lines = list(change(self.run, recipe, adapted=True))
        self.recorder.reload()
        self.recipe, self.backend = recipe, recipe.backend.make()
        self.recorder.warn(
            f"{cause.words or one_line(error, 200)} in {stage}: the run continues with {'; '.join(lines)}"
        )
        return True

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
        add_facts(self.run)
        add_model(self.run)
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
        task = self.run.task
        if after and before == after:
            self.recorder.warn(
                f"the tuned model gave the base model's answer to all {len(task.measured)} {task.measured_split} rows: "
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

    def check_free(self) -> None:
        """Raise InputError where the run may still be executed elsewhere, and is to be executed at another place now."""
        known = self.recorder.record.where
        if known is None or is_launched() or (self.where is not None and place_of(known) == place_of(self.where)):
            return
        name = place_of(known).partition(":")[0]
        launchers = installed_plugins()
        if name in launchers.names("launcher") and launchers.resolve("launcher", name)().is_busy(self.run):
            raise InputError(
                f"this run was started on {known}, and may still be executed there",
                f"bring it back first: ftkit run --resume {self.run.dir}\n  or end it: ftkit cancel {self.run.dir}",
            )

    def launch(self, where: str) -> None:
        """Let a launcher do the stages; what it brings back has them in its run.json."""
        launcher, place = launcher_at(where)
        name = launcher.name
        before = [stage.name for stage in self.recorder.record.stages if stage.status == "done"]
        with self.recorder.lent(), follow(self.run.journal.path, self.logged, self.recorder.warn):
            rental = launcher.launch(self.run, place)
        if rental:
            self.recorder.save(rental=dict(rental))
        missing = [s for s in ("baseline", "train", "evaluate") if not self.recorder.is_done(s)]
        if missing:
            raise RunFailed(
                f"launcher {name!r} returned before {' and '.join(missing)} were done", how_to_resume(self.run)
            )
        for stage in self.recorder.record.stages:
            if stage.name not in before and stage.name not in self.reported:
                self.observers.notify("stage_finished", run=self.run, stage=stage)

    # ---- what the stages share

    def stage(self, name: str) -> None:
        self.live.stage()
        if self.relay and not self.recorder.is_done(name):
            self.relay.stage(StageRecord(name, "running", utc_now()))

        def work() -> dict[str, Any]:
            with follow(self.run.journal.path, self.logged, self.recorder.warn):
                done: dict[str, Any] = getattr(self, name)()
            return done

        done = self.recorder.stage(name, work, lambda: self.headline(name))
        if done is not None:
            if self.relay and name != "report":  # the report is sealed with the log
                self.relay.stage(done)
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
                text = msg("{name}: the predictions of {source} are reused (same model, rows and settings)")
                self.console.say("  " + tr(text, name=word(measurement.name), source=source))
        stats = measure_all(self.run, backend, measurements, self.measured, "control" if control else None)
        add_facts(self.run)
        costs = [read_json(self.run.path(name, "cost.json")) for name in names]
        usd = [c["usd"] for c in costs if c.get("usd") is not None and "reused_from" not in c]
        return {**stats, "usd": sum(usd)} if usd else stats

    def measured(self, what: str, done: int, total: int, seconds: float) -> None:
        self.console.progress(word(what), done, total, seconds)
        self.live.progress(what, done, total, seconds)
        if self.relay:
            self.relay.progress(what, done, total, seconds)

    def record(self) -> RunRecord:
        """Return the run's record as its page shows it: with the stages that are done elsewhere."""
        record = self.recorder.record
        own = tuple(stage for stage in record.stages if stage.name not in self.elsewhere)
        systems = tuple(dict.fromkeys([*record.systems, *self.systems]))
        return replace(record, stages=(*own, *self.elsewhere.values()), systems=systems)

    def reported_stage(self, event: dict[str, Any]) -> None:
        """Show a stage that began or ended elsewhere."""
        stage = stage_of(event)
        if stage is None:
            return
        self.live.stage()
        self.elsewhere[stage.name] = stage
        self.systems = tuple(map(str, event.get("systems") or ()))
        if stage.status != "done":
            self.console.say(tr("{stage} ...", stage=word(stage.name)))
            return
        text = tr("{stage}: done in {time}", stage=word(stage.name), time=duration(stage.seconds))
        self.console.say(text + self.headline(stage.name))
        self.reported.add(stage.name)
        self.observers.notify("stage_finished", run=self.run, stage=stage)

    def logged(self, event: dict[str, Any]) -> None:
        kind = event.get("event")
        if kind in EVENTS:
            if self.where and kind == "stage":
                self.reported_stage(event)
            elif self.where:
                self.measured(*(event.get(key, default) for key, default in _PROGRESS.items()))
            return
        self.live.logged(event)
        if kind == "step" and event.get("max_steps"):
            parts = [tr("loss {loss:.3f}", loss=event["loss"])] if isinstance(event.get("loss"), int | float) else []
            if event.get("tokens_per_second"):
                parts.append(tr("{n:.0f} tokens/s", n=event["tokens_per_second"]))
            step, self.steps = event.get("step") or 0, event["max_steps"]
            self.unlogged = self.steps - step
            left = finite(event.get("seconds_left"))
            self.console.progress(tr("step"), step, self.steps, event.get("seconds"), joined(parts), left)
        elif kind == "end" and event.get("steps") and self.unlogged:
            self.console.progress(tr("step"), event["steps"], self.steps)
        elif kind in ("warning", "note"):
            text = str(event.get("message") or f"a {kind} without a message")
            self.recorder.warn(text) if kind == "warning" else self.console.say(f"  {text}")
        self.observers.notify("logged", run=self.run, event=event)

    def failed(self, error: Exception, why: str) -> tuple[Remedy, ...]:
        """Record a failure with its traceback; return what may help."""
        self.signals.winding_down = True
        stage = next((s.name for s in reversed(self.recorder.record.stages) if s.status != "done"), "")
        remedies = remedies_of(Failure(cause_of(error).name, stage, error), self.run, self.backend)
        with contextlib.suppress(OSError):
            keep_traceback(self.run, stage, error)
        self.ended("failed", masked(why), remedies)
        return remedies

    def ended(self, status: str, why: str, remedies: tuple[Remedy, ...] = ()) -> None:
        """Record that the run ended before it was done."""
        self.signals.winding_down = True
        with contextlib.suppress(OSError, FtkitError):  # a full disk, a deleted directory: they must not hide the cause
            self.recorder.save(status=status, error=why, remedies=remedies)
        self.live.stop()
        if not self.recorder.is_done("report"):
            self.live.ended_early()
        self.observers.notify("failed", run=self.run, record=self.recorder.record)
