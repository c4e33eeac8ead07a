"""The training process of a prepared run directory.

    python -m ftkit.run.worker DIR [--end-with-stdin] [--parent-holds-lock]

DIR holds all that training needs: the recipe (recipe.yaml), the rows (data/) and the record (run.json). The worker
locks DIR, trains, and leaves one of two files:

- train/model.json: the trained model, as `ModelRef.to_dict` gives it.
- train/error.json: `{"message": text, "hint": text or null, "cause": name, "kind": name}`. `cause` is what made training
  fail (see `ftkit.causes`), `kind` the type of the exception. The exit status is 1, the traceback is on standard error.

A worker that is killed leaves neither file. Start it again on DIR: the backend resumes from its last checkpoint.

The worker ends when its standard input closes, if `--end-with-stdin` is given. The parent process then passes a pipe as
standard input and keeps the other end open: the worker ends with its parent, even if the parent is killed. Without the
option the worker does not read its standard input, which may be a terminal, a file or /dev/null.

A backend may train with several processes at once. One of them is the worker; the others are its helpers, which call
`main(helper=NAME)`: a helper writes no log and no train/model.json, and leaves its error in train/error-NAME.json.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..api import Backend
from ..causes import cause_of
from ..directory import RunDirectory
from ..errors import FtkitError, InputError
from ..files import write_json
from ..records import ModelRef

_LOCK_TIMEOUT = 20.0  # seconds to wait for the lock; a worker whose parent was killed needs a moment to end


def train(run: RunDirectory) -> ModelRef:
    """Train with the backend of the run's recipe and return the trained model. The backend gets no test rows."""
    backend: Backend = run.recipe.backend.make()
    return backend.train(run.task.for_training(), run)


def main(work: Callable[[RunDirectory], ModelRef] = train, helper: str | None = None) -> None:
    """Run `work` on the directory that the command line names.

    A plugin with more to do in the training process passes its own `work`, which calls `train`. `helper` is the name
    of this process where it is not the worker itself.
    """
    atexit.register(gc.freeze)  # as of the command line: a quick exit
    parser = argparse.ArgumentParser(description="Train in a prepared run directory.")
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument("--end-with-stdin", action="store_true", help="end when standard input closes")
    parser.add_argument(
        "--parent-holds-lock", action="store_true", help="do not lock DIR: the process that started this one did"
    )
    arguments = parser.parse_args()
    if arguments.end_with_stdin:
        _end_with_stdin()
    try:
        run = RunDirectory.open(arguments.directory)
    except InputError as error:
        parser.error(str(error))
    run.is_logged = helper is None
    left = run.path("train", "error.json" if helper is None else f"error-{helper}.json")
    left.unlink(missing_ok=True)  # of an earlier attempt
    try:
        with contextlib.nullcontext() if helper or arguments.parent_holds_lock else _locked(run):
            if helper is None:
                run.journal.repair()
            model = work(run)
            if helper is None:
                write_json(run.path("train", "model.json"), model.to_dict())
    except Exception as error:
        message, hint = f"{type(error).__name__}: {error}", None
        if isinstance(error, FtkitError):
            message, hint = error.message, error.hint
        kind = type(error).__name__
        write_json(left, {"message": message, "hint": hint, "cause": cause_of(error).name, "kind": kind})
        raise


def _end_with_stdin() -> None:
    """End this process when its standard input closes."""

    def wait() -> None:
        while os.read(0, 1 << 16):  # not sys.stdin: the interpreter would wait for its lock at the end
            pass
        os._exit(0)

    threading.Thread(target=wait, name="end-with-stdin", daemon=True).start()


@contextlib.contextmanager
def _locked(run: RunDirectory) -> Iterator[None]:
    """Lock the run directory. Raises InputError if another process holds it for longer than `_LOCK_TIMEOUT`."""
    deadline = time.monotonic() + _LOCK_TIMEOUT
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(run.exclusive())
                break
            except InputError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.2)
        yield


if __name__ == "__main__":
    main()
