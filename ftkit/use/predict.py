"""`ftkit predict`: the answers to the rows of a file, resumable, in the batches in which a measurement would ask them."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..batches import plan
from ..console import Console
from ..data.asking import questions
from ..data.formats import Reading, Row, read_file
from ..directory import RunDirectory
from ..errors import InputError, Interrupted, RunFailed
from ..files import Journal, digest, read_json, write_json
from ..records import Example, Record
from ..run.measure import answer
from ..run.signals import StopSignals
from ..text import counted
from .ask import texts_of
from .models import BASE, TUNED, RunModels
from .tables import check_output, write_rows

COLUMN = "prediction"
ERRORS = "prediction_error"  # the column that says why a row has no answer; only where a request failed
_UNFINISHED = ".unfinished"  # the folder OUT.unfinished holds plan and answers until OUT is written


@dataclass(frozen=True)
class Predicted(Record):
    """What was done: `seconds` and `usd` are of all answers, those of an interrupted attempt included."""

    run: str
    model: str
    out: str
    rows: int
    failed: int = 0
    n_length_limit: int = 0
    truncated_prompts: int = 0
    seconds: float = 0.0
    usd: float | None = None


def predict(
    run: RunDirectory,
    path: Path,
    out: Path,
    console: Console,
    base: bool = False,
    column: str = COLUMN,
    overrides: Sequence[str] = (),
    yes: bool = False,
) -> Predicted:
    """Write the rows of `path` to `out`, each with a further column that holds the model's answer.

    Killed or interrupted, the same call continues. `base` asks the untouched model; `overrides` change the recipe for
    this use; `yes` spends the estimated price without asking. Raises InputError with the file and row of a mistake,
    Interrupted after Ctrl-C, RunFailed where no request succeeded.
    """
    name = BASE if base else TUNED
    check_output(out, path)
    work = out.with_name(out.name + _UNFINISHED)
    if out.exists() and not work.exists():
        raise InputError(f"{out} exists already", "choose another name with --out, or remove it")
    with StopSignals(), RunModels(run, console, overrides) as models:
        dataset = models.recipe.dataset
        rows = read_file(path, Reading(dataset.delimiter, dataset.encoding))
        _check_rows(path, rows, column)
        examples = {e.id: e for e in questions(models.recipe, rows, str(path))}
        models.ref(name)  # it is there, and whole
        models.warn_of_changes(name)
        try:
            with _unfinished(work) as journal:
                batches = _planned(work, _key(models, name, path, examples), list(examples.values()), models)
                _confirm(models, name, examples, batches, journal, yes)
                session = models.session(name)
                with console.quiet(models.log), console.working("predicting"):
                    found = answer(
                        session, examples, batches, models.generation, journal, path.name,
                        lambda what, done, total, seconds: console.progress(what, done, total, seconds),
                    )  # fmt: skip
                failed = {p.example_id: p.error for p in found.predictions if p.error is not None}
                if len(failed) == len(examples):
                    raise RunFailed(
                        f"the model gave no answer: all {len(failed)} requests failed, the first with: "
                        f"{next(iter(failed.values()))}",
                        "when that is fixed, the same command asks again",
                    )
                texts = texts_of(found.predictions)
                more = {column: [texts[i] for i in examples]}
                if failed:
                    more[ERRORS] = [failed.get(i) for i in examples]
                write_rows(out, path, rows, more, dataset.delimiter)
            shutil.rmtree(work)
        except KeyboardInterrupt:
            kept = f"what was answered is in {work}; the same command continues"
            raise Interrupted("interrupted", kept if work.exists() else "the same command starts again") from None
        except OSError as error:
            raise _disk(error, out, work) from error
    usd = [p.usd for p in found.predictions if p.usd is not None]
    return Predicted(
        run=str(run.dir),
        model=models.shown(name),
        out=str(out),
        rows=len(rows),
        failed=len(failed),
        n_length_limit=sum(p.finish_reason == "length" for p in found.predictions),
        truncated_prompts=found.truncated_prompts,
        seconds=round(found.seconds, 3),
        usd=sum(usd) if usd else None,
    )


def _check_rows(path: Path, rows: Sequence[Row], column: str) -> None:
    if not rows:
        raise InputError(f"{path} holds no rows")
    have = {str(name) for row in rows for name in row}
    if column in have:
        raise InputError(
            f"{path} has a column {column!r} already, and answers must not take its place",
            f"name another column for the answers: --column {_free(column, have)}",
        )
    if ERRORS in have:
        raise InputError(f"{path} has a column {ERRORS!r}, which says why a row has no answer", "rename the column")


def _free(column: str, have: set[str]) -> str:
    return next(name for n in range(2, len(have) + 3) if (name := f"{column}_{n}") not in have)


# ---------------------------------------------------------------- what an unfinished call leaves


@contextlib.contextmanager
def _unfinished(work: Path) -> Iterator[Journal]:
    """Hold the folder of an unfinished call; one process at a time. Gives the journal of its answers."""
    try:
        work.mkdir(exist_ok=True)
        lock = open(work / "lock", "a")  # noqa: SIM115  closed below
    except OSError as error:
        raise InputError(f"cannot write beside {work}: {error.strerror}", "choose another place with --out") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is writing {work}", "wait for it to end, or stop it") from None
        except OSError:  # a file system without locks
            pass
        journal = Journal(work / "predictions.journal")
        journal.repair()
        try:
            yield journal
        except BaseException:
            if not any(True for _ in journal):  # nothing is lost
                shutil.rmtree(work, ignore_errors=True)
            raise


def _key(models: RunModels, name: str, path: Path, examples: dict[str, Example]) -> dict[str, str]:
    """Return what decides the answers, each part as a digest: by the words that a message has for it."""
    identity = models.run.portable(models.backend.identity(models.ref(name), models.run))
    asked = [[e.id, [m.asked() for m in e.messages], list(e.tools)] for e in examples.values()]
    return {
        "the run": models.run.mark,
        "the model that is asked (base or tuned)": name,
        "the model, or what it runs on": digest(identity),
        f"the rows of {path.name}": digest(asked),
        "the generation settings": digest(models.generation.to_dict()),
    }


def _planned(work: Path, key: dict[str, str], examples: list[Example], models: RunModels) -> list[list[str]]:
    """Return the batches: those of the unfinished call, which must be of the same input, or new ones, which are kept."""
    path = work / "plan.json"
    if path.exists():
        kept: dict[str, Any] = read_json(path)
        differing = [what for what in key if kept.get("key", {}).get(what) != key[what]]
        if not differing:
            batches: list[list[str]] = kept["batches"]
            return batches
        raise InputError(
            f"{work} holds answers of an unfinished call, and this one differs in {differing[0]}",
            f"repeat the call that was stopped, remove the folder (its answers are lost), or choose another --out: rm -r {work}",
        )
    batches = plan(examples, models.backend.eval_batch_size)
    write_json(path, {"key": key, "batches": batches})
    return batches


def _confirm(
    models: RunModels,
    name: str,
    examples: dict[str, Example],
    batches: list[list[str]],
    journal: Journal,
    yes: bool,
) -> None:
    """Ask for the price of the rows that have no answer yet."""
    done = {index for row in journal if (index := row.get("batch")) is not None}
    left = [examples[i] for number, batch in enumerate(batches) if number not in done for i in batch]
    if done:
        models.console.say(f"  {counted(len(examples) - len(left), 'row has', 'rows have')} an answer already")
    if left:
        models.confirm(name, left, yes)


def _disk(error: OSError, out: Path, work: Path) -> RunFailed:
    import errno

    again = f"the answers so far are in {work}; when the cause is fixed, the same command continues"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunFailed(f"the disk is full: {error.filename or out}", again)
    return RunFailed(f"{error.filename or out}: {error.strerror or error}", again)
