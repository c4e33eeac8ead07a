"""The training process of a job: ftkit's worker, then the loss on the validation rows.

    python -m ftkit_serve.worker DIR --end-with-stdin

See `ftkit.run.worker`. This process also writes train/valid.json, `{"valid_loss": nats per token}`, if the job has
validation rows and the backend can compute a loss. Its exit status is 75 if the machine lacked disk space, memory or
file descriptors.
"""

from __future__ import annotations

import contextlib
import os
import traceback

from ftkit.api import Backend
from ftkit.directory import RunDirectory
from ftkit.files import write_json
from ftkit.records import ModelRef
from ftkit.run import worker

from .shortage import EXIT_STATUS, shortage_of

_MAX_ROWS = 64  # validation rows whose loss is computed
_BATCH_SIZE = 8


def train_and_validate(run: RunDirectory) -> ModelRef:
    """Train, write train/valid.json, and return the trained model."""
    model = worker.train(run)
    loss = validation_loss(run, model)
    if loss is not None:
        write_json(run.path("train", "valid.json"), {"valid_loss": loss})
    return model


def validation_loss(run: RunDirectory, model: ModelRef) -> float | None:
    """Return the mean loss in nats per token; None if there are no rows or the backend cannot compute a loss."""
    rows = run.task.validation[:_MAX_ROWS]
    if not rows:
        return None
    backend: Backend = run.recipe.backend.make()
    try:
        with backend.load(model, run) as session:
            losses = [
                loss for i in range(0, len(rows), _BATCH_SIZE) for loss in session.loss(rows[i : i + _BATCH_SIZE])
            ]
    except NotImplementedError:
        return None
    return sum(losses) / len(losses)


def main() -> None:
    """Run the worker. The exit status tells the server that a shortage ended it: the server then starts it again."""
    try:
        worker.main(train_and_validate)
    except Exception as error:
        if shortage_of(error) is None:
            raise
        with contextlib.suppress(OSError):  # the log may be on the full disk
            traceback.print_exc()
        os._exit(EXIT_STATUS)  # the interpreter's own end would replace the status if it cannot write to the log


if __name__ == "__main__":
    main()
