"""Execute a sweep: its trials, several at a time, then the choice, the winner on the test rows, and the report."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from ..console import Console
from ..directory import RunDirectory
from ..errors import InputError, Interrupted, RunFailed
from ..run.signals import StopSignals
from ..text import counted, metric_value
from . import prune, space
from .choose import best_of, direction, seen_by_search
from .directory import DONE, WAITING, SweepDirectory, Trial
from .plan import TPE, Source, prepare_trial
from .processes import Process, stop
from .search import Tpe, check_installed
from .winner import finish, prepare_winner

_POLL = 0.05  # seconds between two looks at the processes
_LOOK = 0.25  # seconds between two looks at the logs of trainings
_FREED = 30.0  # seconds in which the process of a killed sweep lets go of its run

Job = tuple[Trial | None, RunDirectory]  # a run, and the trial that it belongs to; None: the winner


def execute_sweep(
    sweep: SweepDirectory, console: Console, parallel: int | None = None, source: Source | None = None
) -> SweepDirectory:
    """Do what is left of a sweep. Finished trials are not repeated; failed ones are tried again, once for each call.

    `parallel` is how many runs work at the same time (default: as planned); `source` is the recipe, where the plan
    names none. Raises Interrupted after Ctrl-C, RunFailed where no trial could be done.
    """
    plan = sweep.plan
    if plan.search == TPE and sweep.chosen is None:
        check_installed()
    with sweep.exclusive(), StopSignals() as signals:
        work = _Work(sweep, console, parallel or plan.parallel, source)
        try:
            console.say(f"sweep directory: {sweep.dir}")
            _remove_left_over(sweep)
            if sweep.chosen is None:
                work.search()
                _choose(sweep, console)
            prepare_winner(sweep, console)
            work.run_all([(None, run) for run in sweep.winner])
            for run in sweep.winner:
                if run.status() != "done":
                    why = run.record().error or "its process ended without a word"
                    text = f"the chosen setting could not be measured on the test rows: {why}"
                    raise RunFailed(text, how_to_resume(sweep))
            finish(sweep)
        except BaseException as error:
            signals.winding_down = True
            work.stop()
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(f"interrupted in {sweep.dir}", how_to_resume(sweep)) from None
            raise
    return sweep


def how_to_resume(sweep: SweepDirectory) -> str:
    return f"resume with: ftkit sweep --resume {sweep.dir}"


def _remove_left_over(sweep: SweepDirectory) -> None:
    """Remove run directories that were prepared and did not get into the journal: a killed process left them."""
    known = {run.dir for trial in sweep.trials() for run in trial.runs} | {run.dir for run in sweep.winner}
    for folder in ("trials", "winner"):
        for path in (sweep.dir / folder).glob("*"):
            if path.is_dir() and path not in known:
                shutil.rmtree(path)


def _choose(sweep: SweepDirectory, console: Console) -> None:
    trials = sweep.trials()
    waiting = [t for t in trials if t.status == WAITING]
    if waiting:  # a backend left a remote job that continues
        many = counted(len(waiting), "trial waits", "trials wait")
        raise Interrupted(f"{many} for what continues elsewhere", how_to_resume(sweep))
    best = best_of(trials)
    if best is None:
        errors = [t.error for t in trials if t.error]
        why = f": {errors[0]}" if errors else ""
        raise RunFailed(f"no trial could be measured{why}", f"when the cause is fixed, {how_to_resume(sweep)}")
    sweep.journal.append({"event": "chosen", "trial": best.number})
    console.say(
        f"chosen by the validation rows: trial {best.number}, {space.setting_text(best.values, sweep.plan.keys)}"
    )


class _Work:
    """The processes of one execution of a sweep."""

    def __init__(self, sweep: SweepDirectory, console: Console, parallel: int, source: Source | None) -> None:
        self.sweep, self.console, self.parallel = sweep, console, parallel
        self.plan = sweep.plan
        self.source = source if source is not None else self.plan.recipe
        self.running: dict[Path, tuple[Trial | None, Process]] = {}
        self.tried: set[Path] = set()  # runs that this execution has started: none is started twice
        self.pruned = {t.number for t in sweep.trials() if t.pruned is not None}
        self.looked = 0.0
        self.sizes: dict[Path, int] = {}  # of the logs, when they were last looked at

    # ---- which runs

    def search(self) -> None:
        """Run the trials of the plan; those of a search are chosen one after the other."""
        if self.plan.search != TPE:
            self.run_all(_jobs(self.sweep.trials()))
            return
        while True:
            trials = self.sweep.trials()
            todo = [job for job in _jobs(trials) if self._is_open(*job)]
            if todo:
                self.run_all(todo, refill=True)
            elif len(trials) < self.plan.trials:
                self._ask(trials)
            elif self.running:
                self.run_all([])
            else:
                return

    def _is_open(self, trial: Trial | None, run: RunDirectory) -> bool:
        pruned = trial is not None and trial.number in self.pruned
        return not pruned and run.dir not in self.tried and run.record().status != "done"

    def _ask(self, trials: Sequence[Trial]) -> None:
        """Choose and prepare the next trial of a search."""
        if self.source is None:
            raise InputError(
                "this sweep was started with a recipe from Python: give it again to continue the search",
                "ftkit.sweep(RECIPE, resume=DIR)",
            )
        tried = [seen_by_search(t, self.plan.metric) for t in trials]
        values = Tpe(self.plan.varied, self.plan.trials, self.plan.seed, direction(trials)).ask(tried)
        same = next((t for t in trials if t.values == values), None)
        if same is not None:  # it was tried already, and its numbers would be the same
            self.sweep.add_trial(len(trials) + 1, values, same.runs)
        else:
            prepare_trial(self.sweep, len(trials) + 1, values, self.source, self.console)

    # ---- processes

    def run_all(self, todo: Sequence[Job], refill: bool = False) -> None:
        """Execute runs, `parallel` at a time. With `refill`, return as soon as there is room and nothing waits."""
        queue = list(todo)
        while queue or self.running:
            for path, (trial, process) in list(self.running.items()):
                if process.ended is not None:
                    del self.running[path]
                    self._ended(trial, process)
            queue = [job for job in queue if self._is_open(*job)]
            while queue and self._has_room():
                self._start(*queue.pop(0))
            if refill and not queue and self._has_room():
                return
            if self.plan.prune and time.monotonic() - self.looked > _LOOK:
                self.looked = time.monotonic()
                self._prune()
            time.sleep(_POLL)

    def _has_room(self) -> bool:
        """Whether one more may start. The first one measures the baseline before others begin: they copy it."""
        if not self.running:
            return True
        if len(self.running) >= self.parallel:
            return False
        folder = next(iter(self.running)).parent
        return any(path.exists() for path in folder.glob("*/baseline/predictions.jsonl"))

    def _start(self, trial: Trial | None, run: RunDirectory) -> None:
        self.tried.add(run.dir)
        deadline = time.monotonic() + _FREED
        while run.is_held() and time.monotonic() < deadline:
            time.sleep(_POLL)
        label = "[winner]" if trial is None else f"[{trial.number}/{self.plan.trials}]"
        seed = f", seed {run.seed}" if self.plan.seeds > 1 else ""
        if trial is None:
            self.console.say(f"the chosen setting on the test rows{seed} ...")
        else:
            self.console.say(f"{self._called(trial)}: {space.setting_text(trial.values, self.plan.keys)}{seed} ...")
        self.running[run.dir] = (trial, Process(run, label, self.console, self.plan.parallel))

    def _called(self, trial: Trial) -> str:
        return f"trial {trial.number} of {self.plan.trials}"

    def _ended(self, trial: Trial | None, process: Process) -> None:
        """Say how a run ended."""
        run, status = process.run, process.run.status()
        if status in ("prepared", "running"):  # it could not begin
            error = process.last_line or f"its process ended with status {process.ended}"
            run.save_record(dataclasses.replace(run.record(), status="failed", error=error))
            status = "failed"
        if trial is None or trial.number in self.pruned:
            return
        if status == "done":
            metric = run.metrics("tuned").get(self.plan.metric)
            value = f": {metric.name} {metric_value(metric.value, metric.unit)}" if metric else ""
            self.console.say(f"{self._called(trial)}: done{value}")
        elif status in ("failed", "killed"):
            self.console.warn(f"{self._called(trial)} failed, and the sweep continues: {trial.error}")

    def _prune(self) -> None:
        """End the trainings that are worse than most of the trials that are done."""
        done = [t for t in self.sweep.trials() if t.status == DONE]
        if len(done) < prune.AFTER:
            return
        for trial, process in list(self.running.values()):
            log = process.run.journal.path
            size = log.stat().st_size if log.exists() else 0
            if trial is None or trial.number in self.pruned or self.sizes.get(log) == size:
                continue
            if any(s.name == "train" and s.status == "done" for s in process.run.record().stages):
                continue  # nothing would be saved
            self.sizes[log] = size
            verdict = _verdict(process.run, done, self.plan.metric)
            if verdict is not None and process.ended is None:
                self._end_trial(trial, verdict)

    def _end_trial(self, trial: Trial, verdict: prune.Verdict) -> None:
        self.sweep.add_pruned(trial.number, dataclasses.asdict(verdict))
        self.pruned.add(trial.number)
        values = f"{verdict.metric} {verdict.value:.4g}, the median is {verdict.median:.4g}"
        self.console.say(f"{self._called(trial)}: pruned at step {verdict.step}: {values}")
        for other, process in self.running.values():
            if other is not None and other.number == trial.number:
                process.interrupt()

    def stop(self) -> None:
        """Interrupt what is running, and wait for it."""
        stop(process for _, process in self.running.values())


def _jobs(trials: Sequence[Trial]) -> list[Job]:
    return [(trial, run) for trial in trials for run in trial.runs]


def _verdict(run: RunDirectory, done: Sequence[Trial], primary: str) -> prune.Verdict | None:
    metric, values = prune.evaluations(run, primary)
    logged = [prune.evaluations(t.runs[0], primary) for t in done]
    higher = direction(done) if metric != prune.LOSS else False
    return prune.verdict(values, [found for name, found in logged if name == metric], metric, higher)
