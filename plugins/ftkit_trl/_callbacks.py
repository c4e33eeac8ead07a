"""Trainer callbacks: checkpoints, snapshots, the log, and the evaluator's metric during training."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ftkit.api import Run
from ftkit.batches import plan
from ftkit.errors import RunFailed
from ftkit.files import publish, sync_tree, write_atomic
from ftkit.records import Example, Task

from ._batches import TokenCounter
from ._generate import TrlSession
from ._packing import attention
from ._random import preserved_random_state

Save = Callable[[Path], None]  # writes the model's weights into a folder
_COMPLETE = "ftkit-complete"  # a file that marks a completely written checkpoint


def last_complete(checkpoints: Path) -> str | None:
    """Return the newest complete checkpoint, or None; remove those that were not written to their end."""
    found = sorted(checkpoints.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    for path in [p for p in found if not (p / _COMPLETE).exists()]:
        shutil.rmtree(path)
    complete = [p for p in found if p.exists()]
    return str(complete[-1]) if complete else None


class Checkpoints(TrainerCallback):
    """Marks each checkpoint once it is complete: the Trainer does not write them atomically."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        sync_tree(folder)
        (folder / _COMPLETE).touch()


class Snapshots(TrainerCallback):
    """Saves the weights after the given steps in `train/snapshots/STEP/`, as safetensors."""

    def __init__(self, save: Save, steps: list[int], run: Run) -> None:
        self.save, self.steps, self.run = save, steps, run

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for step in (s for s in self.steps if s > state.max_steps):
            self.run.log("warning", message=f"no snapshot of step {step}: training ends at step {state.max_steps}")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Before the checkpoint of this step is written: a resumed run repeats the step or finds its snapshot.
        if state.global_step in self.steps:
            staging = self.run.scratch("snapshot")
            shutil.rmtree(staging)
            self.save(staging)
            publish(staging, self.run.path("train", "snapshots", str(state.global_step)))


class Monitor(TrainerCallback):
    """Logs loss and throughput, and every `eval_steps` the evaluator's own metric on a validation sample.

    With `keep_best`, saves the weights of the best measurement in the scratch folder `best`. `plain` names the
    attention implementation that the model generates with.
    """

    def __init__(
        self, session: TrlSession, save: Save, plain: str, counter: TokenCounter, task: Task, run: Run
    ) -> None:
        self.session, self.save, self.plain, self.counter, self.run = session, save, plain, counter, run
        options = self.options = session.options
        self.sample = {e.id: e for e in task.validation[: options.eval_samples]} if options.eval_steps else {}
        self.primary = run.primary if self.sample else None  # the metric of keep_best
        self.best = run.scratch("best")
        self.began, self.measuring, self.first_tokens = 0.0, 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began, self.first_tokens = time.monotonic(), self.counter.after(state.global_step)[0]
        if state.global_step == 0:
            self.measure(0)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        if not torch.isfinite(torch.tensor(logs["loss"])):
            raise RunFailed(
                f"the loss is {logs['loss']} at step {state.global_step}",
                "lower backend.learning_rate, or use another dtype",
            )
        seconds = time.monotonic() - self.began - self.measuring
        tokens, _ = self.counter.after(state.global_step)
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
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
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
        model, generation = self.session.model, self.run.generation
        model.eval()
        examples: list[Example] = list(self.sample.values())
        batches = [[self.sample[i] for i in ids] for ids in plan(examples, self.options.eval_batch_size)]
        with attention(model, self.plain):
            predictions = [p for batch in self.session.generate(batches, generation) for p in batch]
        model.train()
        metrics = {m.name: m for m in self.run.evaluate(examples, predictions)}
        self.measuring += time.monotonic() - began
        self.run.log("eval", step=step, n=len(examples), **{name: round(m.value, 6) for name, m in metrics.items()})
        primary = metrics.get(self.primary) if self.primary else None
        if (
            self.options.keep_best
            and step > 0
            and primary
            and self.is_better(primary.value, bool(primary.higher_is_better))
        ):
            staging = self.run.scratch("best-new")
            shutil.rmtree(staging)
            self.save(staging)
            write_atomic(
                staging / "metric.json", json.dumps({"step": step, "metric": primary.name, "value": primary.value})
            )
            publish(staging, self.best)

    def is_better(self, value: float, higher: bool) -> bool:
        path = self.best / "metric.json"
        if not path.exists():
            return True
        best: float = json.loads(path.read_text())["value"]
        return value > best if higher else value < best
