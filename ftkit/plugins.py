"""Find, register and resolve plugins; every message about a plugin is made here.

In-repo plugins and a stranger's come in by the same door: the `ftkit` entry-point group, whose
entries name modules that implement the hooks of `ftkit.hookspecs`.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.metadata
import importlib.util
import inspect
import sys
from dataclasses import dataclass
from typing import Any

import pluggy
from pydantic import BaseModel

from . import hookspecs
from .api import Backend, DatasetLoader, Evaluator, Launcher, Plugin, Tracker
from .errors import InputError

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
class Owner:
    """Where a plugin came from: its entry point and distribution; `error` says why it does not work."""

    entry: str
    module: str
    distribution: str
    version: str
    error: str | None = None

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} ({self.module})"


@dataclass(frozen=True)
class Offer:
    """One named plugin class and who offers it."""

    kind: str
    cls: type[Plugin]
    owner: Owner

    @property
    def name(self) -> str:
        return self.cls.name

    def missing(self) -> list[str]:
        """Return the modules that this plugin requires and that are not installed (nothing is imported)."""
        return [m for m in self.cls.requires.modules if not _installed(m)]


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


class Plugins:
    """All plugins of this environment: what they offer, and what failed to load and why."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager("ftkit")
        self.manager.add_hookspecs(hookspecs)
        self.owners: list[Owner] = []
        self.offers: dict[tuple[str, str], list[Offer]] = {}

    def discover(self) -> Plugins:
        """Load every installed entry point, each on its own: one that fails does not stop the rest."""
        entries = importlib.metadata.entry_points(group=GROUP)
        for entry in sorted(entries, key=lambda e: (e.name, e.value)):
            dist = entry.dist
            owner = Owner(entry.name, entry.value, dist.name if dist else "?", dist.version if dist else "?")
            try:
                with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to results: --json is on it
                    module = entry.load()
            except BaseException as error:  # a stranger's import may raise anything, SystemExit included
                if isinstance(error, KeyboardInterrupt):
                    raise
                self._failed(owner, f"cannot be imported: {type(error).__name__}: {_one_line(error)}")
                continue
            self.register(module, owner)
        return self

    def register(self, module: object, owner: Owner) -> None:
        """Register one plugin module (or object); its mistakes are kept in `owners`, not raised."""
        try:
            self.manager.register(module, name=f"{owner.entry}:{owner.distribution}:{owner.module}")
        except Exception as error:  # pluggy has registered it partly: take it out
            if self.manager.is_registered(module):
                self.manager.unregister(module)
            self._failed(owner, f"implements a hook wrongly: {_one_line(error)}")
            return
        try:
            self.manager.check_pending()
        except pluggy.PluginValidationError as error:
            self.manager.unregister(module)
            self._failed(owner, self._misspelt(module, error))
            return
        offers: list[Offer] = []
        for kind, (hook, base) in KINDS.items():
            collect = getattr(module, hook, None)
            if collect is None or getattr(collect, "ftkit_impl", None) is None:
                continue  # without the decorator it is a function that only happens to have this name
            try:
                offers += [Offer(kind, _checked(cls, kind, base), owner) for cls in collect()]
            except Exception as error:
                self.manager.unregister(module)
                self._failed(owner, f"{hook}() is wrong: {_one_line(error)}")
                return
        self.owners.append(owner)
        for offer in offers:
            self.offers.setdefault((offer.kind, offer.name), []).append(offer)

    def _failed(self, owner: Owner, why: str) -> None:
        self.owners.append(Owner(owner.entry, owner.module, owner.distribution, owner.version, why))

    def _misspelt(self, module: object, error: Exception) -> str:
        for name in dir(module):
            if name.startswith("ftkit_") and name not in HOOKS and callable(getattr(module, name)):
                near = difflib.get_close_matches(name, HOOKS, 1)
                return f"implements unknown hook {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        return f"implements an unknown hook: {_one_line(error)}"

    @property
    def failures(self) -> list[Owner]:
        return [owner for owner in self.owners if owner.error]

    def names(self, kind: str) -> list[str]:
        return sorted(name for k, name in self.offers if k == kind)

    def all_offers(self) -> list[Offer]:
        return [offer for key in sorted(self.offers) for offer in self.offers[key]]

    def duplicates(self) -> list[str]:
        """Return one message for each name that two plugins offer."""
        return [
            f"{kind} {name!r} is offered by both {' and '.join(str(o.owner) for o in offers)}"
            for (kind, name), offers in sorted(self.offers.items())
            if len(offers) > 1
        ]

    def resolve(self, kind: str, name: str) -> type[Any]:
        """Return the class that `kind` and `name` mean.

        Raises InputError for an unknown name (with the nearest, what is installed, and what failed to
        load), for a name that two plugins claim, and where a required module is missing.
        """
        offer = self.find(kind, name)
        missing = offer.missing()
        if missing:
            install = offer.cls.requires.install
            raise InputError(
                f"{kind} {name!r} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
                f"pip install '{install}'" if install else f"pip install {' '.join(missing)}",
            )
        return offer.cls

    def find(self, kind: str, name: str) -> Offer:
        """Like `resolve`, but without looking at what the plugin requires."""
        offers = self.offers.get((kind, name), [])
        if len(offers) == 1:
            return offers[0]
        if offers:
            owners = " and ".join(str(o.owner) for o in offers)
            raise InputError(f"{kind} {name!r} is offered by both {owners}", "uninstall one of them")
        installed = self.names(kind)
        near = difflib.get_close_matches(name, installed, 1)
        hints = [f"did you mean {near[0]!r}?"] if near else []
        hints.append(f"installed: {', '.join(installed) or 'none'}")
        hints += [f"failed to load: {o.entry} from {o.distribution} {o.version}: {o.error}" for o in self.failures]
        raise InputError(f"no {kind} named {name!r}", "\n  ".join(hints))


def _checked(cls: Any, kind: str, base: type[Plugin]) -> type[Plugin]:
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise TypeError(f"{cls!r} is not a subclass of ftkit.{base.__name__}")
    if not isinstance(getattr(cls, "name", None), str):
        raise TypeError(f"{cls.__name__} has no `name`")
    if inspect.isabstract(cls):
        raise TypeError(f"{cls.__name__} lacks {', '.join(sorted(getattr(cls, '__abstractmethods__', ())))}")
    if not (isinstance(cls.Options, type) and issubclass(cls.Options, BaseModel)):
        raise TypeError(f"{cls.__name__}.Options is not a subclass of ftkit.Options")
    return cls


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


@functools.cache
def installed_plugins() -> Plugins:
    """Return the plugins of this environment, discovered once per process."""
    return Plugins().discover()
