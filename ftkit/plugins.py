"""Find, register and resolve plugins; every message about a plugin is made here.

In-repo plugins and third-party ones are loaded the same way: from the `ftkit` entry-point group, whose
entries name modules that implement the hooks of `ftkit.hookspecs`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import inspect
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import pluggy
from pydantic import BaseModel

from . import hookspecs
from .api import Backend, DatasetLoader, Evaluator, Launcher, Plugin, Tracker
from .errors import InputError
from .probing import missing_modules
from .text import nearest, one_line

HOOKS = [name for name in dir(hookspecs) if name.startswith("ftkit_")]
GROUP = "ftkit"

# kind -> (hook that collects its classes, base class)
KINDS: dict[str, tuple[str, type[Plugin]]] = {
    "backend": ("ftkit_backends", Backend),
    "evaluator": ("ftkit_evaluators", Evaluator),
    "dataset": ("ftkit_datasets", DatasetLoader),
    "launcher": ("ftkit_launchers", Launcher),
    "tracker": ("ftkit_trackers", Tracker),
}


@dataclass(frozen=True)
class PluginSource:
    """Where a plugin came from: its entry point and distribution; `error` says why it does not work."""

    entry: str
    module: str
    distribution: str
    version: str
    error: str | None = None

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} ({self.module})"


@dataclass(frozen=True)
class PluginEntry:
    """One named plugin class and where it came from."""

    kind: str
    cls: type[Plugin]
    source: PluginSource

    @property
    def name(self) -> str:
        return self.cls.name

    def missing(self) -> list[str]:
        """Return the modules that this plugin requires and that are not installed (nothing is imported)."""
        return missing_modules(self.cls.requires.modules)


class Plugins:
    """All plugins of this environment: what they offer, and what failed to load and why."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager("ftkit")
        self.manager.add_hookspecs(hookspecs)
        self.sources: list[PluginSource] = []
        self.entries: dict[tuple[str, str], list[PluginEntry]] = {}

    def discover(self) -> Plugins:
        """Load every installed entry point, each on its own: one that fails does not stop the rest."""
        for entry in _entry_points(GROUP):
            source = _source_of(entry)
            try:
                with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to results: --json is on it
                    module = entry.load()
            except BaseException as error:  # a plugin's import may raise anything, SystemExit included
                if isinstance(error, KeyboardInterrupt):
                    raise
                self._failed(source, f"cannot be imported: {type(error).__name__}: {one_line(error)}")
                continue
            self.register(module, source)
        return self

    def register(self, module: object, source: PluginSource) -> None:
        """Register one plugin module (or object); its mistakes are kept in `sources`, not raised."""
        try:
            self.manager.register(module, name=f"{source.entry}:{source.distribution}:{source.module}")
        except Exception as error:  # pluggy has registered it partly: take it out
            if self.manager.is_registered(module):
                self.manager.unregister(module)
            self._failed(source, f"implements a hook wrongly: {one_line(error)}")
            return
        try:
            self.manager.check_pending()
        except pluggy.PluginValidationError as error:
            self.manager.unregister(module)
            self._failed(source, self._misspelt(module, error))
            return
        entries: list[PluginEntry] = []
        for kind, (hook, base) in KINDS.items():
            collect = getattr(module, hook, None)
            if collect is None or getattr(collect, "ftkit_impl", None) is None:
                continue  # without the decorator it is a function that only happens to have this name
            try:
                entries += [PluginEntry(kind, _checked(cls, base), source) for cls in collect()]
            except Exception as error:
                self.manager.unregister(module)
                self._failed(source, f"{hook}() is wrong: {one_line(error)}")
                return
        self.sources.append(source)
        for entry in entries:
            self.entries.setdefault((entry.kind, entry.name), []).append(entry)

    def _failed(self, source: PluginSource, why: str) -> None:
        self.sources.append(replace(source, error=why))

    def _misspelt(self, module: object, error: Exception) -> str:
        for name in dir(module):
            if name.startswith("ftkit_") and name not in HOOKS and callable(getattr(module, name)):
                near = nearest(name, HOOKS)
                return f"implements unknown hook {name!r}" + (f"; did you mean {near!r}?" if near else "")
        return f"implements an unknown hook: {one_line(error)}"

    @property
    def failures(self) -> list[PluginSource]:
        return [source for source in self.sources if source.error]

    def names(self, kind: str) -> list[str]:
        return sorted(name for k, name in self.entries if k == kind)

    def all_entries(self) -> list[PluginEntry]:
        return [entry for key in sorted(self.entries) for entry in self.entries[key]]

    def duplicates(self) -> list[str]:
        """Return one message for each name that two plugins offer."""
        return [
            f"{kind} {name!r} is offered by both {_both(e.source for e in entries)}"
            for (kind, name), entries in sorted(self.entries.items())
            if len(entries) > 1
        ]

    def resolve(self, kind: str, name: str) -> type[Any]:
        """Return the class that `kind` and `name` mean.

        Raises InputError for an unknown name (with the nearest, what is installed, and what failed to
        load), for a name that two plugins claim, and where a required module is missing.
        """
        entry = self.find(kind, name)
        missing = entry.missing()
        if missing:
            install = entry.cls.requires.install
            raise InputError(
                f"{kind} {name!r} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
                f"pip install '{install}'" if install else f"pip install {' '.join(missing)}",
            )
        return entry.cls

    def find(self, kind: str, name: str) -> PluginEntry:
        """Like `resolve`, but without looking at what the plugin requires."""
        entries = self.entries.get((kind, name), [])
        if len(entries) == 1:
            return entries[0]
        if entries:
            both = _both(e.source for e in entries)
            raise InputError(f"{kind} {name!r} is offered by both {both}", "uninstall one of them")
        installed = self.names(kind)
        near = nearest(name, installed)
        hints = [f"did you mean {near!r}?"] if near else []
        hints.append(f"installed: {', '.join(installed) or 'none'}")
        hints += [f"failed to load: {s.entry} from {s.distribution} {s.version}: {s.error}" for s in self.failures]
        raise InputError(f"no {kind} named {name!r}", "\n  ".join(hints))


def _checked(cls: Any, base: type[Plugin]) -> type[Plugin]:
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise TypeError(f"{cls!r} is not a subclass of ftkit.{base.__name__}")
    if not isinstance(getattr(cls, "name", None), str):
        raise TypeError(f"{cls.__name__} has no `name`")
    if inspect.isabstract(cls):
        raise TypeError(f"{cls.__name__} lacks {', '.join(sorted(getattr(cls, '__abstractmethods__', ())))}")
    if not (isinstance(cls.Options, type) and issubclass(cls.Options, BaseModel)):
        raise TypeError(f"{cls.__name__}.Options is not a subclass of ftkit.Options")
    if issubclass(cls, Tracker):
        _check_tracker(cls)
    return cls


def _check_tracker(cls: type[Tracker]) -> None:
    """Raise TypeError for a public method that ftkit never calls: it is most likely misspelt."""
    known = [name for name, value in vars(Tracker).items() if callable(value) and not name.startswith("_")]
    for parent in cls.__mro__:
        if parent in (Tracker, *Tracker.__mro__):
            continue
        for name, value in vars(parent).items():
            if inspect.isfunction(value) and not name.startswith("_") and name not in known:
                near = nearest(name.removeprefix("ftkit_").removeprefix("on_").removeprefix("run_"), known)
                meant = f"did you mean {near!r}?" if near else f"a tracker has: {', '.join(known)}"
                raise TypeError(f"{cls.__name__}.{name} is no method that ftkit calls; {meant}; own ones begin with _")


def _entry_points(group: str) -> list[importlib.metadata.EntryPoint]:
    return sorted(importlib.metadata.entry_points(group=group), key=lambda e: (e.name, e.value))


def _source_of(entry: importlib.metadata.EntryPoint) -> PluginSource:
    dist = entry.dist
    return PluginSource(entry.name, entry.value, dist.name if dist else "?", dist.version if dist else "?")


def _both(sources: Iterable[PluginSource]) -> str:
    return " and ".join(map(str, sources))


@functools.cache
def installed_plugins() -> Plugins:
    """Return the plugins of this environment, discovered once per process."""
    return Plugins().discover()
