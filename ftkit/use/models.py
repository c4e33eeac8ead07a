"""The models of a run, ready to be asked: whether they are there and whole, what they cost, and loaded once."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..api import Backend, Session
from ..console import Console
from ..data.task import fingerprint
from ..directory import RunDirectory
from ..errors import FtkitError, InputError, RecipeError, RunFailed
from ..files import file_digest
from ..lang import word
from ..plugins import installed_plugins
from ..recipe.load import load_recipe
from ..records import Example, GenerationConfig, ModelRef
from ..run.lock import is_done, read_lock, what_changed
from ..run.prepare import unsupported_settings
from ..run.prices import confirm_price
from ..run.signals import what_is
from ..text import dollars
from .guest import GuestRun

BASE, TUNED = "baseline", "tuned"  # as measurements are called
_SHOWN = {BASE: "base", TUNED: "tuned"}


class RunModels:
    """The untouched and the tuned model of a run. Each is loaded when it is first asked, and freed by `close`."""

    def __init__(self, run: RunDirectory, console: Console | None = None, overrides: Sequence[str] = ()) -> None:
        """`overrides` change the recipe for this use, such as "generation.temperature=0.7".

        Raises InputError where `run` holds scored predictions, or its recipe cannot be used here.
        """
        if run.record().kind != "run" or not run.path("recipe.yaml").exists():
            raise InputError(f"{run.dir} holds no model: it holds scored predictions", "name the directory of a run")
        self.console = console or Console(silent=True)
        self.recipe = load_recipe(run.path("recipe.yaml"), overrides, check_modules=False)
        ref = self.recipe.backend
        installed_plugins().resolve(ref.kind, ref.name)
        problems = [f for f in unsupported_settings(ref, self.generation) if f.level == "error"]
        if problems:
            raise InputError(problems[0].message, problems[0].hint)
        self.backend: Backend = ref.make()
        self._stack = contextlib.ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ftkit-use-")))
        self.log = folder / "debug.log"  # what libraries print
        self.run = GuestRun(run.dir, folder, self.console.warn)
        self.run.recipe = self.recipe
        self._sessions: dict[str, Session] = {}
        self._warned: set[str] = set()

    def __enter__(self) -> RunModels:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the models."""
        self._sessions.clear()
        self._stack.close()

    @property
    def generation(self) -> GenerationConfig:
        return self.recipe.generation

    # ---- which models there are

    def ref(self, name: str) -> ModelRef:
        """Return the handle of a model. Raises InputError where it is not there, or not as training left it."""
        if name == BASE:
            return self.backend.base_model()
        model = self.run.model()
        if model is None:
            raise InputError(*_no_model(self.run))
        problem = _changed_file(self.run, model)
        if problem:
            raise InputError(*problem)
        return model

    def shown(self, name: str) -> str:
        """Return what a model is called on a terminal: base, tuned."""
        return _SHOWN.get(name, word(name))

    def warn_of_changes(self, name: str) -> None:
        """Warn, once, of what a user should know before a model is asked: the run is not done, something has changed.

        Called before anything heavy is imported: libraries set variables of their own.
        """
        if not self._warned:
            with contextlib.suppress(FtkitError):  # what cannot be loaded is said by who loads it
                self._warn(what_changed(self.run, self.backend, "answers may differ from those that it measured"))
        if name == TUNED and not is_done(self.run.record()):
            self._warn(f"this run is not done ({self.run.status()}): its tuned model may not be measured yet")
        self._warned.add("")

    def _warn(self, text: str | None) -> None:
        if text and text not in self._warned:
            self.console.warn(text)
            self._warned.add(text)

    # ---- asking costs

    def confirm(self, name: str, examples: Sequence[Example], yes: bool) -> None:
        """Show what the answers to these rows are estimated to cost, and ask. Raises InputError on a no."""
        confirm_price([self._estimate(name, examples)], self.console, yes)

    def confirm_talk(self, names: Sequence[str], yes: bool) -> None:
        """Say that each answer of a talk costs something, where it does, and ask. Raises InputError on a no."""
        rows = self.run.task.test[:20]
        found = [self._estimate(name, rows) for name in names]
        if not any(e.get("paid") or (e.get("usd") or 0) > 0 for e in found):
            return
        each = sum(e.get("usd") or 0.0 for e in found) / max(1, len(rows))
        like = f"; one to a test row costs about {dollars(each)}" if each else ""
        confirm_price([{"usd": None, "paid": True, "not_estimated": f"each answer is paid{like}"}], self.console, yes)

    def _estimate(self, name: str, examples: Sequence[Example]) -> dict[str, Any]:
        task = self.run.task
        rows = tuple(examples)
        about = {**task.fingerprints, "test": fingerprint(rows), "train": "", "validation": ""}
        asked = replace(task, splits={"test": rows}, fingerprints=about, generation=self.generation)
        try:
            return dict(self.backend.estimate_answers(asked, self.ref(name)))
        except FtkitError:
            raise
        except Exception as error:  # an estimate that fails must not stop anything
            return {"not_estimated": f"{type(error).__name__}: {error}"}

    # ---- loaded

    def session(self, name: str) -> Session:
        """Return a loaded model; models that share weights are in memory once. Raises FtkitError where it cannot be loaded."""
        if name not in self._sessions:
            ref = self.ref(name)
            with self.console.quiet(self.log), self.console.working(f"loading the {self.shown(name)} model"):
                self.console.phase(f"loading the {self.shown(name)} model")
                self._sessions[name] = self._loaded(name, ref)
        return self._sessions[name]

    def _loaded(self, name: str, ref: ModelRef) -> Session:
        try:
            for other in self._sessions.values():
                beside = self.backend.load_beside(other, ref, self.run)
                if beside is not None:
                    return self._stack.enter_context(beside)
            return self._stack.enter_context(self.backend.load(ref, self.run))
        except RecipeError:
            raise
        except FtkitError as error:
            raise type(error)(f"the {self.shown(name)} model cannot be loaded: {error.message}", error.hint) from error
        except OSError as error:
            raise RunFailed(f"the {self.shown(name)} model cannot be loaded: {what_is(error)}") from error


def _no_model(run: RunDirectory) -> tuple[str, str]:
    """Return why there is no tuned model, and what helps."""
    record, status = run.record(), run.status()
    stage = next((f" in {s.name}" for s in record.stages if s.status != "done"), "")
    base = "--base asks the untouched model"
    if status == "running":
        return f"{run.dir} has no tuned model yet: the run is in progress{stage}", f"wait until it is done; {base}"
    how = "was prepared and not started" if status == "prepared" else status if status == "failed" else f"was {status}"
    how += "" if status == "prepared" else stage
    return f"{run.dir} has no tuned model: the run {how}", f"resume with: ftkit run --resume {run.dir}\n  {base}"


def _changed_file(run: RunDirectory, model: ModelRef) -> tuple[str, str] | None:
    """Return what is wrong with the files of the trained model, compared with those that training left; None for nothing."""
    folder = run.resolve_uri(model.uri)
    if model.kind not in ("adapter", "path") or not folder.is_relative_to(run.dir):
        return None
    trained: dict[str, str] = read_lock(run).get("trained", {})
    listed = {path: sha for path, sha in trained.items() if run.path(path).is_relative_to(folder)}
    again = f"take the file from a copy of the run, or train again: ftkit rerun {run.dir}"
    if not folder.is_dir():
        return f"the tuned model is missing: {folder}", again
    for path, expected in listed.items():
        file = run.path(path)
        if not file.is_file():
            return f"the tuned model is not whole: {file} is missing", again
        if file_digest(file) != expected:
            return f"{file} was changed after training: it is not the model that was measured", again
    return None
