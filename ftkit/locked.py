"""What differs between two lock.json files: each locked fact by name, the ones that decide most first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .versions import UNKNOWN

_SHOWN = 60  # characters of a value
# Variables that change where files come from, and no result.
_HARMLESS = ("_OFFLINE", "_CACHE", "_HOME", "_PATH", "_VERBOSITY")


class Change(NamedTuple):
    """One fact of lock.json that is not the same; a fact that one side lacks is "none"."""

    name: str
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.name} {_short(self.before)} -> {_short(self.now)}"


def changes(before: Mapping[str, Any], now: Mapping[str, Any], alike: bool = True) -> list[Change]:
    """Return the facts that differ between two locks, in the order in which they decide a result.

    The data come first, then generation, model, evaluators, code, packages, variables, machine, and what training chose.
    `alike` compares only the parts that both locks have: an older ftkit recorded fewer.
    """
    if alike:
        common = before.keys() & now.keys()
        before, now = ({key: lock[key] for key in lock if key in common} for lock in (before, now))
    ours, theirs = dict(_facts(before)), dict(_facts(now))
    order = {name: rank for rank, name in enumerate([*ours, *theirs][::-1])}
    names = sorted(ours.keys() | theirs.keys(), key=lambda name: (_group(name), -order[name]))
    found = (Change(name, ours.get(name, "none"), theirs.get(name, "none")) for name in names)
    return [c for c in found if c.before != c.now and UNKNOWN not in (c.before, c.now)]


_GROUPS = (
    "data",
    "file",
    "seed",
    "generation",
    "model",
    "control",
    "evaluator",
    "code",
    "package",
    "python",
    "variable",
)
_LAST = ("threads", "CPU", "GPU", "platform", "training")


def _group(name: str) -> int:
    kind = name.split(" ")[0]
    if kind in _GROUPS:
        return _GROUPS.index(kind)
    return len(_GROUPS) + _LAST.index(kind) if kind in _LAST else _GROUPS.index("package")


def _facts(lock: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of each fact that can decide a result; a package has its own name."""
    data, hardware = _part(lock, "data"), _part(lock, "hardware")
    yield from _flat("data rows", data.get("rows") or data.get("fingerprints") or {})
    if data.get("prompt"):
        yield "data prompt", str(data["prompt"])
    yield from _flat("file", _part(lock, "files"))
    if "seed" in lock:
        yield "seed", str(lock["seed"])
    yield from _flat("generation", _part(lock, "generation"))
    yield from _flat("model", {k: v for k, v in _part(lock, "model").items() if k not in ("versions", "version")})
    yield from _flat("control", _part(lock, "controls"))
    yield from _flat("evaluator", _part(lock, "evaluators"))
    yield from ((f"code of {name}", str(value)) for name, value in _part(lock, "code").items())
    yield from ((str(name), str(value)) for name, value in _part(lock, "packages").items())
    if "python" in lock:
        yield "python", str(lock["python"])
    variables = _part(lock, "environment") if "code" in lock else {}  # before `code` was, few were recorded
    yield from ((f"variable {k}", str(v)) for k, v in variables.items() if not k.endswith(_HARMLESS))
    for key, name in (("usable_cores", "threads"), ("cpu", "CPU"), ("gpus", "GPU")):
        if key in hardware:
            value = hardware[key]
            yield name, ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)
    if "platform" in lock:
        yield "platform", str(lock["platform"])
    yield from _flat("training", _part(lock, "training"))


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the values of a mapping, and of the mappings in it, by their path: "model flags deterministic"."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name} {key}", inner)
    else:
        yield name, "none" if value is None else str(value)


def _part(lock: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = lock.get(key)
    return part if isinstance(part, Mapping) else {}


def _short(value: str) -> str:
    """Return a value as a reader needs it: of a hash its first digits."""
    if len(value) in (40, 64) and value.isalnum():
        return value[:12]
    return value if len(value) <= _SHOWN else value[:_SHOWN] + "..."
