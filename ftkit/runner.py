"""The five stages of a run: prepare, baseline, train, evaluate, report. Nothing else."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import provenance
from .api import Backend
from .console import Console, clock, usd_text
from .endings import Stops, explained, interrupted
from .errors import FtkitError, InputError, Interrupted, RunFailed
from .measure import key_of, measure_all
from .observers import Observers
from .plugins import installed_plugins
from .preflight import preflight
from .recipe import Recipe
from .records import Measurement, StageRecord, Task
from .resuming import check_resumable, is_done, what_changed
from .store import RunContext, list_runs, publish, read_json, utc_now, write_json

# What a copied baseline consists of; its scores are made anew, by this run's own evaluators.
_PREDICTION_FILES = (
    "predictions.jsonl", "timings.jsonl", "losses.jsonl", "plan.json", "key.json", "cost.json", "examples.jsonl",
)  # fmt: skip


def start(recipe: Recipe, out: Path, console: Console, reuse: bool = True, yes: bool = False) -> RunContext:
    """Run a recipe in a new directory under `out`. Raises FtkitError; what was done is kept and resumable.

    `reuse` allows copying the baseline's predictions from another run in `out` that has the same key;
    `yes` spends the estimated price without asking.
    """
    run = None
    with Stops() as stops:
        try:
            run = RunContext.create(out, recipe.name, recipe.to_yaml(), reuse)
            run.recipe = recipe
            with run.exclusive():
                try:
                    return _Execution(run, console, yes, stops).go()
                except InputError:
                    if not run.path("lock.json").exists():  # nothing was spent: leave nothing behind
                        shutil.rmtree(run.dir, ignore_errors=True)
                    raise
        except KeyboardInterrupt:
            raise interrupted(run) from None


def resume(directory: str | Path, console: Console, yes: bool = False, create_again: bool = False) -> RunContext:
    """Go on with an unfinished run from its directory alone; finished stages are not repeated.

    `create_again` is the user's word, for a remote job in doubt, that the provider has none.
    """
    run = RunContext.open(directory)
    check_resumable(run)
    if is_done(run.record()):
        console.say(f"{run.dir} is done: there is nothing left to do")
        if not run.path("report.json").exists():
            from .report import write_report

            write_report([run], run.dir)
        return run
    with Stops() as stops:
        try:
            with run.exclusive():
                if create_again:
                    run.save_state(create_again=True)
                return _Execution(run, console, yes, stops).go()
        except KeyboardInterrupt:
            raise interrupted(run) from None


class _Execution:
    def __init__(self, run: RunContext, console: Console, yes: bool, stops: Stops) -> None:
        self.run, self.console, self.yes, self.stops = run, console, yes, stops
        run.stop_asked = lambda: stops.asked
        self.recipe = run.recipe
        self.backend: Backend = self.recipe.backend.make()
        self.evaluators = [ref.make() for ref in self.recipe.evaluators]
        self.record = run.record()
        self.lock = threading.RLock()

    def go(self) -> RunContext:
        run = self.run
        for left in run.dir.rglob(".*.tmp"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        run.journal.repair()
        self.record = replace(self.record, status="running", error=None)
        trackers = [(ref.name, ref.make()) for ref in self.recipe.tracking]
        self.observers = Observers(installed_plugins(), trackers, self.warn)
        try:
            with self.console.quiet(run.path("debug.log")):
                if self.is_done("prepare") and (changed := what_changed(run, self.backend)):
                    self.warn(changed)
                self.stage("prepare", self.prepare)
                self.console.say(f"run directory: {run.dir}")
                self.observers.tell("ftkit_run_started", run=run, record=self.record)
                self.stage("baseline", self.baseline)
                self.stage("train", self.train)
                self.stage("evaluate", self.evaluate)
                self.stage("report", self.report)
                if self.record.status != "done":  # it was interrupted after its last stage
                    self.save(status="done")
        except KeyboardInterrupt:
            self.failed("interrupted", "interrupted")
            raise
        except Interrupted as detached:  # a backend left a remote job that goes on without this process
            self.failed("interrupted", detached.message)
            raise
        except FtkitError as error:
            self.failed("failed", str(error))
            raise
        except Exception as error:
            self.failed("failed", f"{type(error).__name__}: {error}")
            raise explained(error, run) from error
        finally:
            self.stops.winding_down = True
            self.observers.close()
        return run

    # ---- the stages

    def prepare(self) -> dict[str, Any]:
        found = preflight(self.recipe)
        found.raise_errors(self.recipe)
        assert found.task is not None
        for finding in found.findings:
            if finding.level == "note":
                self.console.say(f"  note: {finding.message}")
        for text in found.warnings:
            self.warn(text)
        confirm_price(found.estimates, self.console, self.yes)
        self.run.save_task(found.task)
        self.run.task = found.task
        estimates = {"estimate": found.estimate, "control_estimates": found.control_estimates}
        write_json(self.run.path("audit.json"), {**found.audit, **estimates})
        lock = provenance.lock(self.recipe.source)
        lock["data"] = {**found.task.source, "fingerprints": found.task.fingerprints, "prompt": found.task.prompt_hash}
        lock["model"] = self.backend.identity(self.backend.base_model(), self.run)
        lock["seed"] = self.recipe.seed
        lock["recipe"] = hashlib.sha256(self.run.path("recipe.yaml").read_bytes()).hexdigest()
        write_json(self.run.path("lock.json"), lock)
        return {"rows": {split: len(part) for split, part in found.task.splits.items()}}

    def baseline(self) -> dict[str, Any]:
        base = self.backend.base_model()
        extra = list(self.backend.measurements(self.run.task, None))
        stats = self.measure(self.backend, [Measurement("baseline", base), *extra], reuse=self.record.reuse)
        answers = self.run.predictions("baseline")
        if answers and all(p.error is not None for p in answers):
            shutil.rmtree(self.run.path("baseline"))  # --resume asks again
            raise RunFailed(
                f"the base model gave no answer: all {len(answers)} requests failed, the first with: {answers[0].error}",
                f"nothing was trained; when that is mended, go on with: ftkit run --resume {self.run.dir}",
            )
        for ref in self.recipe.controls:
            control = ref.make()
            asked = Measurement(f"control-{ref.name}", control.base_model())
            usd = self.measure(control, [asked], reuse=self.record.reuse).get("usd")
            stats = stats if usd is None else {**stats, "usd": stats.get("usd", 0.0) + usd}
        return stats

    def train(self) -> dict[str, Any]:
        with _follow(self.run.path("train", "log.jsonl"), self.logged):
            model = self.backend.train(_without_test(self.run.task), self.run)
        write_json(self.run.path("train", "model.json"), model.to_dict())
        ends = [row for row in self.run.log_rows() if row["event"] == "end"]
        return {k: v for k, v in ends[-1].items() if k not in ("event", "time")} if ends else {}

    def evaluate(self) -> dict[str, Any]:
        tuned = self.run.model()
        if tuned is None:
            raise RunFailed("training handed over no model")
        extra = list(self.backend.measurements(self.run.task, tuned))
        stats = self.measure(self.backend, [Measurement("tuned", tuned), *extra])
        before, after = (
            {(p.example_id, p.sample): p.text for p in self.run.predictions(name) if p.error is None}
            for name in ("baseline", "tuned")
        )
        if after and before == after:
            self.warn(
                f"the tuned model gave the base model's answer to all {len(self.run.task.test)} test rows: "
                "training changed nothing that can be seen"
            )
        return stats

    def report(self) -> dict[str, Any]:
        from .report import write_report

        shutil.rmtree(self.run.path(".work"), ignore_errors=True)
        # The report speaks of this run as done: it is the last stage, and a reader finds it beside run.json.
        self.save(status="done")
        self.built = write_report([self.run], self.run.dir)
        self.observers.tell("ftkit_run_finished", run=self.run, record=self.record, report=self.built)
        return {}

    # ---- what the stages share

    def is_done(self, stage: str) -> bool:
        return any(s.name == stage and s.status == "done" for s in self.record.stages)

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Do one stage unless it is done; its record is on disk before and after."""
        if self.is_done(name):
            return
        before = next((s for s in self.record.stages if s.name == name), None)
        self.console.say(f"{name} ...")
        record = StageRecord(name, "running", utc_now(), seconds=self.earlier(before) if before else None)
        self.save_stage(record)
        began = time.monotonic()
        try:
            meta = work()
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | Interrupted)
            status = "interrupted" if stopped or self.stops.asked else "failed"
            text = status if self.stops.asked and not stopped else str(error) or status
            self.save_stage(replace(record, status=status, seconds=_spent(record, began), error=text))
            if self.stops.asked and not stopped:
                raise KeyboardInterrupt from error
            raise
        record = replace(record, status="done", seconds=_spent(record, began), usd=meta.get("usd"), meta=meta)
        self.save_stage(record)
        self.console.say(f"{name}: done in {clock(time.monotonic() - began)}{_headline(self.run, name)}")
        self.observers.tell("ftkit_stage_finished", run=self.run, stage=record)

    def earlier(self, stage: StageRecord) -> float:
        """Return the seconds that earlier attempts at a stage took: of one that was killed, up to its last log line."""
        seconds = stage.seconds or 0.0
        if stage.status == "running":
            logged = max((row["time"] for row in self.run.journal), default=0.0)
            seconds += max(0.0, logged - datetime.datetime.fromisoformat(stage.started).timestamp())
        return round(seconds, 3)

    def measure(self, backend: Backend, measurements: Sequence[Measurement], reuse: bool = False) -> dict[str, Any]:
        names = [m.name for m in measurements]
        if len(set(names)) != len(names):
            raise RunFailed(f"backend {backend.name!r} asks for two measurements of one name: {', '.join(names)}")
        self.save(systems=tuple(dict.fromkeys([*self.record.systems, *names])))
        for measurement in measurements:
            if reuse:
                self.reuse_predictions(backend, measurement)
        stats = measure_all(self.run, backend, measurements, self.evaluators, self.console.progress)
        costs = [read_json(self.run.path(name, "cost.json")) for name in names]
        usd = [c["usd"] for c in costs if c.get("usd") is not None and "reused_from" not in c]
        return {**stats, "usd": sum(usd)} if usd else stats

    def reuse_predictions(self, backend: Backend, measurement: Measurement) -> None:
        """Copy the predictions of another run beside this one that asked the same model the same things."""
        folder = self.run.path(measurement.name)
        if folder.exists():
            return
        key = json.loads(json.dumps(key_of(self.run, backend, measurement)))
        for other in list_runs(self.run.dir.parent):
            source = other.path(measurement.name)
            if (
                other.id == self.run.id
                or not (source / "predictions.jsonl").exists()
                or not (source / "key.json").exists()
            ):
                continue
            if read_json(source / "key.json") == key:
                staging = self.run.scratch("reuse") / measurement.name
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir()
                for name in _PREDICTION_FILES:
                    if (source / name).exists():
                        shutil.copyfile(source / name, staging / name)
                write_json(staging / "cost.json", {**read_json(staging / "cost.json"), "reused_from": other.id})
                publish(staging, folder)
                self.console.say(
                    f"  {measurement.name}: the predictions of {other.id} are reused (same model, rows and settings)"
                )
                return

    def logged(self, event: dict[str, Any]) -> None:
        if event["event"] == "step" and event.get("max_steps"):
            parts = [f"loss {event['loss']:.3f}"] if event.get("loss") is not None else []
            if event.get("tokens_per_second"):
                parts.append(f"{event['tokens_per_second']:.0f} tokens/s")
            self.console.progress(
                "step", event["step"], event["max_steps"], event.get("seconds", 0.0), ", ".join(parts)
            )
        elif event["event"] == "warning":
            self.warn(event["message"])
        elif event["event"] == "note":
            self.console.say(f"  {event['message']}")
        self.observers.tell("ftkit_metrics_logged", run=self.run, event=event)

    def warn(self, text: str) -> None:
        self.console.warn(text)
        if text not in self.record.warnings:
            self.save(warnings=(*self.record.warnings, text))

    def failed(self, status: str, why: str) -> None:
        self.stops.winding_down = True
        with contextlib.suppress(OSError, FtkitError):  # a full disk, a directory that is gone: they must not hide it
            self.save(status=status, error=why)
        self.observers.tell("ftkit_run_failed", run=self.run, record=self.record)

    def save(self, **changes: Any) -> None:
        with self.lock:  # observers and the log's follower warn from threads of their own
            self.record = replace(self.record, **changes)
            self.run.save_record(self.record)

    def save_stage(self, stage: StageRecord) -> None:
        with self.lock:
            self.save(stages=(*(s for s in self.record.stages if s.name != stage.name), stage))


def confirm_price(estimates: Sequence[dict[str, Any]], console: Console, yes: bool) -> None:
    """Show what runs are estimated to cost, and ask before any of it is spent. Raises InputError on a no."""
    priced = [e for e in estimates if (e.get("usd") or 0) > 0]
    unknown = [e for e in estimates if e.get("paid") and e.get("usd") is None]
    for estimate in priced:
        price = f"{_of_control(estimate)}{usd_text(estimate['usd'])} USD"
        console.say(f"  estimated price: {price}. {estimate.get('usd_detail', '')}".rstrip())
    for estimate in unknown:
        why = f"{_of_control(estimate)}{estimate.get('not_estimated', 'the backend does not say why')}"
        console.say(f"  the price is not known: {why}")
    amounts = [f"about {usd_text(sum(e['usd'] for e in priced))} USD"] if priced else []
    amounts += ["an amount that is not known"] if unknown else []
    if not amounts or yes or console.confirm(f"Spend {' and '.join(amounts)}?"):
        return
    raise InputError(
        f"not started: it would cost {' and '.join(amounts)}, and nobody confirmed that; nothing was spent",
        "confirm with --yes (in Python: yes=True)",
    )


def _of_control(estimate: dict[str, Any]) -> str:
    return f"control {estimate['control']}, " if "control" in estimate else ""


def _without_test(task: Task) -> Task:
    """Return what training may see: what is measured is not there to be learned from."""
    return replace(task, splits={split: rows for split, rows in task.splits.items() if split != "test"})


def _spent(record: StageRecord, began: float) -> float:
    """Seconds of a stage, those of interrupted attempts included."""
    return round((record.seconds or 0.0) + time.monotonic() - began, 3)


def _headline(run: RunContext, stage: str) -> str:
    from .console import number

    name = {"baseline": "baseline", "evaluate": "tuned"}.get(stage)
    if name is None:
        return ""
    metric = next(iter(run.metrics(name).values()), None)
    return f" ({metric.name} {number(metric.value, metric.unit)})" if metric else ""


@contextlib.contextmanager
def _follow(path: Path, tell: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Call `tell` for each line that is added to a JSON Lines file meanwhile, from any process."""
    start = path.stat().st_size if path.exists() else 0
    stop = threading.Event()

    def work() -> None:
        position, rest = start, b""
        while True:
            ended = stop.is_set()
            if path.exists():
                with open(path, "rb") as file:
                    file.seek(position)
                    data = file.read()
                position += len(data)
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    with contextlib.suppress(ValueError):
                        tell(json.loads(line))
            if ended:
                return
            stop.wait(0.2)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
