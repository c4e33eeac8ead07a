"""What training came to: the step that `keep_best` selected, and a loss that did not fall."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from ftkit.api import Run
from ftkit.errors import InputError
from ftkit.records import Prediction, Task


class Selected(NamedTuple):
    """The measurement whose weights `keep_best` keeps."""

    step: int
    metric: str
    value: float

    def sentence(self, last: int) -> str:
        """Return what was selected, in words; `last` is the last step of training."""
        return (
            f"keep_best: the weights of step {self.step} of {last} are kept ({self.metric} {self.value:.4f} on the "
            "validation sample)"
        )


def best_measurement(folder: Path) -> Selected | None:
    """Return the best measurement so far; None where none was made after step 0."""
    path = folder / "metric.json"
    return Selected(**json.loads(path.read_text())) if path.exists() else None


def refuse_undirected(task: Task, run: Run) -> None:
    """Raise InputError where `keep_best` cannot tell which of two values of the primary metric is better.

    The right answers of the validation sample are scored in place of a model's.
    """
    examples = task.validation[:2]
    predictions = [
        Prediction(e.id, e.targets[0], sample=sample) for e in examples for sample in range(run.generation.samples)
    ]
    found = {metric.name: metric for metric in run.evaluate(examples, predictions)}
    primary = found.get(run.primary)
    if primary is not None and primary.higher_is_better is not None:
        return
    directed = [name for name, metric in found.items() if metric.higher_is_better is not None]
    why = "neither higher nor lower is better" if primary is not None else "the evaluators do not give it"
    raise InputError(
        f"backend.keep_best cannot choose by {run.primary!r}: {why}",
        "remove backend.keep_best, or name an evaluator first that has a direction"
        + (f" (these metrics have one: {', '.join(directed)})" if directed else ""),
    )


def warn_of_rising_loss(history: Sequence[Mapping[str, Any]], run: Run) -> None:
    """Log a warning where the training loss ends above where it began.

    `history` is the Trainer's, with that of the attempts before a resume. The first and the last tenth of the logged
    losses are compared, so that one batch decides nothing.
    """
    losses = [row["loss"] for row in history if "loss" in row]
    part = math.ceil(len(losses) / 10)
    if len(losses) < 2:
        return
    first, last = fmean(losses[:part]), fmean(losses[-part:])
    if last > first:
        run.log(
            "warning",
            message=f"the training loss rose: {first:.4g} at the start, {last:.4g} at the end; lower "
            "backend.learning_rate, or set backend.warmup_steps",
        )
