"""Trainer callbacks: checkpoints, snapshots, the log, and the evaluator's metric during training."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from ftkit.api import Run
from ftkit.batches import plan
from ftkit.files import publish, sync_tree, write_atomic, write_json
from ftkit.records import Example, Prediction, Task
from ftkit.text import duration

from ._batches import TokenCounter
from ._fsdp import reshard
from ._generate import TrlSession
from ._model import peak_memory
from ._outcome import best_measurement
from ._pace import MEASURED, Pace
from ._packing import attention
from ._random import preserved_random_state
from ._remedies import LossNotFinite
from ._world import World, is_sharded
from .options import TrainOptions

Save = Callable[[Path], None]  # writes the model's weights into a folder
_WORTH_SAYING = 60.0  # seconds of training beyond which its length is shown
_COMPLETE = "ftkit-complete"  # a file that marks a completely written checkpoint


def last_complete(checkpoints: Path, world: World) -> str | None:
    """Return the newest complete checkpoint, or None; remove those that were not written to their end.

    All processes call it.
    """
    found = sorted(checkpoints.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    complete = [p for p in found if (p / _COMPLETE).exists()]
    world.wait()  # until all have looked
    if world.is_main:
        for path in set(found) - set(complete):
            shutil.rmtree(path)
    return str(complete[-1]) if complete else None


def follow_options(checkpoint: Path, options: TrainOptions) -> None:
    """Let a checkpoint name the options that a resumed run may change: the Trainer takes them from there."""
    path = checkpoint / "trainer_state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    now = {
        "train_batch_size": options.micro_batch_size,
        "logging_steps": options.logging_steps,
        "save_steps": options.save_steps,
    }
    if state | now != state:
        write_json(path, state | now)


def first_checkpoint(model: Path, checkpoints: Path, steps: int, world: World) -> str:
    """Make a checkpoint of a finished training, whose optimizer is gone, and return it: its saved `model`, its last step.

    All processes call it.
    """
    folder = checkpoints / f"checkpoint-{steps}"
    if world.is_main:
        shutil.copytree(model, folder)
        # The Trainer writes the number of steps itself; it must be more than those that are done.
        state = TrainerState(global_step=steps, max_steps=steps + 1, stateful_callbacks=[TrainerControl()])
        state.save_to_json(str(folder / "trainer_state.json"))
        sync_tree(folder)
    world.wait()
    return str(folder)


class ScheduleFrom(TrainerCallback):
    """Lets the learning rate continue after `steps` steps, as in a training that was planned as long as it is now."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_begin(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **_: Any) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)  # it is meant
            for _step in range(self.steps):
                lr_scheduler.step()


class Checkpoints(TrainerCallback):
    """Marks each checkpoint once it is complete: the Trainer does not write them atomically."""

    def __init__(self, world: World) -> None:
        self.world = world

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps and (args.deepspeed or args.fsdp):
            control.should_save = False  # the engine could only be made again by one more step

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        self.world.wait()  # until each process has written its part
        if self.world.is_main:
            sync_tree(folder)
            (folder / _COMPLETE).touch()


class Snapshots(TrainerCallback):
    """Saves the weights after the given steps in `train/snapshots/STEP/`, as safetensors."""

    def __init__(self, save: Save, steps: list[int], run: Run, world: World) -> None:
        self.save, self.steps, self.run, self.world = save, steps, run, world

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for step in (s for s in self.steps if s > state.max_steps):
            self.run.log("warning", message=f"no snapshot of step {step}: training ends at step {state.max_steps}")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Before the checkpoint of this step is written: a resumed run repeats the step or finds its snapshot.
        if state.global_step in self.steps:
            staging = self.world.emptied(self.run, "snapshot")
            self.save(staging)
            if self.world.is_main:
                publish(staging, self.run.path("train", "snapshots", str(state.global_step)))


class Monitor(TrainerCallback):
    """Logs loss and throughput, and every `eval_steps` the evaluator's own metric on a validation sample.

    With `keep_best`, saves the weights of the best measurement in the scratch folder `best`. `plain` names the
    attention implementation that the model generates with.
    """

    def __init__(
        self, session: TrlSession, save: Save, plain: str, counter: TokenCounter, task: Task, run: Run, world: World
    ) -> None:
        self.session, self.save, self.plain, self.counter, self.run = session, save, plain, counter, run
        self.world = world
        options = self.options = session.options
        self.sample = {e.id: e for e in task.validation[: options.eval_samples]} if options.eval_steps else {}
        self.primary = run.primary if self.sample else None  # the metric of keep_best
        self.best = run.scratch("best")
        best = best_measurement(self.best)
        self.best_value = None if best is None else best.value  # each process remembers it: one alone writes the file
        self.began, self.measuring, self.first_tokens = 0.0, 0.0, 0
        self.evaluations: list[float] = []  # the seconds of each measurement
        self.pace = Pace(counter, 0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began, self.first_tokens = time.monotonic(), self.counter.after(state.global_step)[0]
        self.pace = Pace(self.counter, state.global_step)
        if state.global_step == 0:
            self.measure(0)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        if not torch.isfinite(torch.tensor(logs["loss"])):
            raise LossNotFinite(logs["loss"], state.global_step)
        seconds = time.monotonic() - self.began - self.measuring
        tokens, _ = self.counter.after(state.global_step)
        left = self.seconds_left(state)
        self.run.log(
            "step",
            step=state.global_step,
            max_steps=state.max_steps,
            loss=logs["loss"],
            learning_rate=logs.get("learning_rate"),
            grad_norm=logs.get("grad_norm"),
            tokens=tokens,
            tokens_per_second=round((tokens - self.first_tokens) / max(seconds, 1e-9), 1),
            seconds=round(time.monotonic() - self.began, 2),
            **({} if left is None else {"seconds_left": round(left, 2)}),
            peak_memory=peak_memory(),
        )

    def seconds_left(self, state: Any) -> float | None:
        """Return the seconds that training will still take, measurements included; None where too little is measured."""
        left = self.pace.left(state.max_steps)
        if left is None or not self.sample:
            return left
        every = self.options.eval_steps or state.max_steps
        ahead = state.max_steps // every - state.global_step // every + (state.max_steps % every > 0)
        return left + ahead * (sum(self.evaluations) / max(1, len(self.evaluations)))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.pace.ended(state.global_step, time.monotonic() - self.began - self.measuring)
        if self.pace.measured == MEASURED and state.global_step < state.max_steps:
            left = self.seconds_left(state) or 0.0
            self.run.log("forecast", step=state.global_step, seconds=round(time.monotonic() - self.began + left, 2))
            if left >= _WORTH_SAYING:
                self.run.log(
                    "note", message=f"training will take about {duration(left)} more ({MEASURED} steps measured)"
                )
        if self.options.eval_steps and (
            state.global_step % self.options.eval_steps == 0 or state.global_step == state.max_steps
        ):
            self.measure(state.global_step)

    def measure(self, step: int) -> None:
        """Generate on the validation sample, score it, and save the weights if they are the best so far."""
        if self.sample:
            with preserved_random_state():
                self._measure(step)

    def _measure(self, step: int) -> None:
        began = time.monotonic()
        model = self.session.model
        model.eval()
        examples: list[Example] = list(self.sample.values())
        batches = [[self.sample[i] for i in ids] for ids in plan(examples, self.options.eval_batch_size)]
        with attention(model, self.plain):
            predictions = self._answers(batches)
        model.train()
        metrics = {m.name: m for m in self.run.evaluate(examples, predictions)}
        self.evaluations.append(time.monotonic() - began)
        self.measuring += self.evaluations[-1]
        self.run.log("eval", step=step, n=len(examples), **{name: round(m.value, 6) for name, m in metrics.items()})
        primary = metrics.get(self.primary) if self.primary else None
        if (
            self.options.keep_best
            and step > 0
            and primary
            and self.is_better(primary.value, bool(primary.higher_is_better))
        ):
            staging = self.world.emptied(self.run, "best-new")
            self.save(staging)
            self.best_value = primary.value
            if self.world.is_main:
                found = {"step": step, "metric": primary.name, "value": primary.value}
                write_atomic(staging / "metric.json", json.dumps(found))
                publish(staging, self.best)

    def _answers(self, batches: list[list[Example]]) -> list[Prediction]:
        """Return the answers to the planned batches: each process answers its share, if it has the whole model.

        The processes of a sharded model all answer everything, at the same time: each layer is gathered from all.
        """
        if is_sharded(self.session.model):
            predictions = [p for batch in self.session.generate(batches, self.run.generation) for p in batch]
            reshard(self.session.model)
            return predictions
        share = batches[self.world.rank :: self.world.size]
        answers = [p for batch in self.session.generate(share, self.run.generation) for p in batch]
        found = {(p.example_id, p.sample): p for part in self.world.gathered(answers) for p in part}
        order = [e.id for batch in batches for e in batch]
        return [found[i, sample] for i in order for sample in range(self.run.generation.samples)]

    def is_better(self, value: float, higher: bool) -> bool:
        best = self.best_value
        return best is None or (value > best if higher else value < best)
