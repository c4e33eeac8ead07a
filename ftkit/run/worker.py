"""The child process that trains one job: `python -m ftkit_openai.server.train RUN_DIRECTORY`.

It works on a run directory as `ftkit run` does, so that a job whose server was killed goes on from its
last checkpoint. It ends when its parent does: the parent holds the other end of its standard input.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ftkit.api import Backend
from ftkit.errors import FtkitError, InputError
from ftkit.records import ModelRef
from ftkit.store import RunContext, write_json

_PATIENCE = 20.0  # seconds
_MEASURED = 64  # validation rows whose loss is computed at the end


def end_with_parent() -> None:
    """End this process when its standard input closes: when the process that holds it is gone."""

    def wait() -> None:
        while os.read(0, 1 << 16):  # not sys.stdin: its lock would be held when the interpreter ends
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def train(directory: Path) -> None:
    """Write train/model.json in the run directory, and train/valid.json where there are validation rows."""
    run = RunContext.open(directory)
    with _exclusive(run):
        run.log_rows()  # cuts a line that a killed process left half-written
        backend: Backend = run.recipe.backend.make()
        model = backend.train(run.task, run)
        loss = _validation_loss(backend, model, run)
        if loss is not None:
            write_json(run.path("train", "valid.json"), {"valid_loss": loss})
        write_json(run.path("train", "model.json"), model.to_dict())


@contextlib.contextmanager
def _exclusive(run: RunContext) -> Iterator[None]:
    """Hold the run directory; the child of a server that was killed a moment ago may need a little to end."""
    deadline = time.monotonic() + _PATIENCE
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(run.exclusive())
                break
            except InputError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.2)
        yield


def _validation_loss(backend: Backend, model: ModelRef, run: RunContext) -> float | None:
    """Return the mean loss in nats per token, or None where there are no rows or the backend has none to give."""
    rows = run.task.validation[:_MEASURED]
    if not rows:
        return None
    try:
        with backend.load(model, run) as session:
            losses = [loss for i in range(0, len(rows), 8) for loss in session.loss(rows[i : i + 8])]
    except NotImplementedError:
        return None
    return sum(losses) / len(losses)


def main() -> None:
    directory = Path(sys.argv[1])
    end_with_parent()
    try:
        train(directory)
    except Exception as error:
        message = str(error) if isinstance(error, FtkitError) else f"{type(error).__name__}: {error}"
        write_json(directory / "train" / "error.json", {"message": message})
        raise


if __name__ == "__main__":
    main()
