"""`ftkit doctor`: what works on this machine, what does not, and the one fix of each.

The core looks at what is its own; a plugin says what it needs in `Plugin.diagnose`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import probing
from ..data.rows import is_local
from ..plugins import PluginEntry, Plugins, installed_plugins
from ..records import Diagnosis, Record
from ..text import one_line
from .machine import disk_diagnoses, memory_diagnosis
from .of_hub import Wanted, hub_diagnoses
from .packages import package_diagnoses, python_diagnosis

if TYPE_CHECKING:
    from ..recipe.load import PluginRef, Recipe

_SECONDS = 300.0  # that one plugin may take, all of its checks together


@dataclass(frozen=True)
class Verdict(Record):
    """What was found of one plugin, or of the machine.

    `ok` is True (usable), False (not usable), or None (not set up: not installed, or no login).
    """

    name: str
    kind: str
    ok: bool | None
    diagnoses: tuple[Diagnosis, ...]

    @property
    def worst(self) -> Diagnosis | None:
        """What decides the verdict where it is not True: its fix comes first."""
        return next((d for d in self.diagnoses if d.ok is self.ok and (d.fix or self.ok is False)), None)

    def to_dict(self) -> dict[str, Any]:
        fix = self.worst.fix if self.worst and self.ok is not True else None
        return {**super().to_dict(), "fix": fix}


@dataclass(frozen=True)
class Examination:
    """All that `ftkit doctor` found. `recipe` is the name of the one that was given, or None."""

    recipe: str | None
    verdicts: tuple[Verdict, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong. Without a recipe, what is not set up is not wrong."""
        return all(verdict.ok is not False for verdict in self.verdicts)

    def to_dict(self) -> dict[str, Any]:
        """Return what `ftkit doctor --json` prints."""
        return {"ok": self.ok, "recipe": self.recipe, "verdicts": [v.to_dict() for v in self.verdicts]}


def examine(recipe: Recipe | None = None, out: Path = Path("runs")) -> Examination:
    """Return what works and what does not: of all that is installed, or of what `recipe` needs. Spends nothing.

    It imports no plugin's libraries in this process, and each check has a time limit.
    """
    if recipe is None:
        found = installed_plugins()
        verdicts = [_of_plugin(entry, None) for entry in found.all_entries()]
        return Examination(None, (_machine(out, None, None), *_broken(found), *verdicts))
    refs = _plugins_of(recipe)
    modules = [module for ref in refs for module in ref.cls.requires.modules]
    entries = [(installed_plugins().find(ref.kind, ref.name), ref) for ref in refs]
    verdicts = [_of_plugin(entry, ref) for entry, ref in entries]
    return Examination(recipe.name, (_machine(out, modules, _wanted(recipe)), *verdicts))


def _plugins_of(recipe: Recipe) -> list[PluginRef]:
    """Return the plugins that a recipe names, each with its options; a repetition counts once."""
    loader = [recipe.dataset.loader] if recipe.dataset.loader else []
    refs = [recipe.backend, *recipe.evaluators, *recipe.controls, *loader, *recipe.tracking]
    return [ref for i, ref in enumerate(refs) if ref not in refs[:i]]


# ---------------------------------------------------------------- the machine


def _machine(out: Path, modules: Iterable[str] | None, wanted: list[Wanted] | None) -> Verdict:
    """Return what all plugins share. `modules` and `wanted` are those of a recipe; None without one."""

    def diagnoses() -> Iterator[Diagnosis]:
        yield python_diagnosis()
        yield from package_diagnoses(modules)
        yield from disk_diagnoses(out, downloads=wanted is None or bool(wanted))
        yield memory_diagnosis()
        if wanted is None or wanted:
            yield from hub_diagnoses(wanted or [])

    return _verdict("this machine", "machine", diagnoses)


def _wanted(recipe: Recipe) -> list[Wanted]:
    """Return what a recipe takes from the hub."""
    found = []
    for ref in (recipe.backend, *recipe.controls):
        try:
            model = ref.make().base_model()
        except Exception:  # of a plugin whose library is missing: its own verdict says so
            continue
        if model.kind == "hub" and not Path(model.uri).expanduser().exists():
            found.append(Wanted("model", model.uri, model.meta.get("revision")))
    path = recipe.dataset.path
    if recipe.dataset.loader is None and recipe.dataset.given is None and isinstance(path, str) and not is_local(path):
        found.append(Wanted("dataset", path, recipe.dataset.revision))
    return list(dict.fromkeys(found))


# ---------------------------------------------------------------- plugins


def _broken(found: Plugins) -> Iterator[Verdict]:
    """Yield one verdict for each plugin that cannot be loaded."""
    for source in found.failures:
        text = f"{source.distribution} {source.version}: {source.error}"
        fix = f"pip install --upgrade {source.distribution}, or uninstall it"
        yield Verdict(source.entry, "plugin", False, (Diagnosis("loading", False, text, fix, "version mismatch"),))


def _of_plugin(entry: PluginEntry, ref: PluginRef | None) -> Verdict:
    """Return what a plugin says of itself. Without a recipe, one that is not installed is not set up."""
    verdict = _verdict(entry.name, entry.kind, lambda: entry.cls.diagnose(ref.options if ref else None))
    if ref is None and probing.missing_modules(entry.cls.requires.modules[:1]):
        missing = next((d for d in verdict.diagnoses if d.what == "modules"), None)
        known = () if missing is None else (Diagnosis("modules", None, missing.detail, missing.fix, missing.see),)
        return Verdict(entry.name, entry.kind, None, known)
    return verdict


def _verdict(name: str, kind: str, diagnose: Callable[[], Iterable[Diagnosis]]) -> Verdict:
    """Return the verdict over what `diagnose` yields; what it raises is one diagnosis more."""
    found: list[Diagnosis] = []

    def collect() -> None:
        for diagnosis in diagnose() or ():
            if not isinstance(diagnosis, Diagnosis):
                raise TypeError(f"diagnose() yielded a {type(diagnosis).__name__}, not a Diagnosis")
            found.append(diagnosis)

    try:
        probing.within(_SECONDS, collect)
    except Exception as error:
        text = f"the check itself failed: {type(error).__name__}: {one_line(error, 200)}"
        found.append(Diagnosis("check", False, text, "run `ftkit --debug doctor`, and report this"))
    found = list(dict.fromkeys(found))
    if any(d.ok is False for d in found):
        ok: bool | None = False
    else:
        ok = None if any(d.ok is None and d.fix for d in found) else True
    return Verdict(name, kind, ok, tuple(found))
