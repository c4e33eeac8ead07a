"""The models of finished runs that `ftkit serve RUN...` offers: the tuned ones, and their base models under their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ftkit.api import Backend
from ftkit.directory import RunDirectory
from ftkit.errors import FtkitError, InputError
from ftkit.files import digest
from ftkit.records import ModelRef
from ftkit.use.models import BASE, TUNED, RunModels

from .models import ServedModel

_TOKENS = 512  # that a request may generate, unless the run's own limit is higher


@dataclass(frozen=True)
class RunModel:
    """One model of a run: its backend and handle, the run it is loaded from, and what a client reads of it."""

    models: RunModels  # it holds the folder for what the backend writes
    ref: ModelRef
    entry: ServedModel

    @property
    def run(self) -> RunDirectory:
        return self.models.run

    @property
    def backend(self) -> Backend:
        return self.models.backend


def read_runs(paths: Sequence[Path]) -> dict[str, RunModel]:
    """Return the models by the name that a client asks for. Raises InputError for a run whose model cannot be served.

    A tuned model has the name of its recipe; where two would have one name, that of its run directory. A base model has
    the name that the recipe gives it.
    """
    opened = [RunModels(RunDirectory.open(path)) for path in paths]
    names = [models.run.record().name for models in opened]
    found: dict[str, RunModel] = {}
    bases: dict[str, str] = {}  # what decides a base model's answers -> its name
    for path, models, name in zip(paths, opened, names, strict=True):
        tuned = _tuned(path, models)
        entry = ServedModel(backend={}, max_tokens=max(_TOKENS, models.generation.max_new_tokens))
        own = name if names.count(name) == 1 else models.run.id
        if own in found:
            raise InputError(f"{path} is named twice, or another model has the name {own}")
        found[own] = RunModel(models, tuned, entry)
        base = models.ref(BASE)
        try:
            same = digest(models.run.portable(models.backend.identity(base, models.run)))
        except FtkitError as error:
            raise InputError(f"{path} cannot be served: {error.message}", error.hint) from None
        if same not in bases:
            taken = base.uri in bases.values() or base.uri in found
            bases[same] = f"{base.uri}@{own}" if taken else base.uri
            found[bases[same]] = RunModel(models, base, entry)
    return found


def _tuned(path: Path, models: RunModels) -> ModelRef:
    try:
        tuned = models.ref(TUNED)
    except InputError as error:
        hint = (error.hint or "").split("\n")[0]  # without what another command could do
        raise InputError(f"{path} cannot be served: {error.message}", hint or None) from None
    if tuned.kind == "remote":
        raise InputError(
            f"{path} cannot be served: its model is at a provider ({tuned.uri})", "ask the provider, or: ftkit chat RUN"
        )
    return tuned
