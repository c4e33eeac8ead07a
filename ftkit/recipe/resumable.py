"""Which keys of a recipe may change when its run is resumed: those that change no measured number."""

from __future__ import annotations

from collections.abc import Iterable

from .load import PluginRef, Recipe

_FREE = ("note", "tracking", "export")  # what nothing is computed from
_WHY = {
    "name": "the run directory bears it",
    "seed": "the run began with its own seed",
    "measure": "the rows of a run are those in its directory",
    "dataset": "the rows of a run are those in its directory",
    "prompt": "what the run has measured was generated with its own prompt",
    "generation": "what the run has measured was answered with its own settings",
    "evaluator": "what the run has measured was scored by its own evaluators",
    "controls": "they are measured beside the base model",
}


def why_not_resumable(backend: PluginRef, key: str) -> str | None:
    """Return why `key`, such as "backend.lora_r", must not change in a run that has begun; None where it may."""
    section, _, rest = key.partition(".")
    if section in _FREE:
        return None
    if section != "backend":
        return _WHY.get(section, "it may change measured numbers")
    accepted = resumable_options(backend)
    if rest.partition(".")[0] in accepted:
        return None
    which = ", ".join(sorted(accepted)) or "no option"
    return f"it may change measured numbers; of backend {backend.name!r} may change: {which}"


def resumable_options(backend: PluginRef) -> frozenset[str]:
    found: Iterable[str] = getattr(backend.cls.Options, "resumable", ())
    return frozenset(found)


def extending_options(backend: PluginRef) -> frozenset[str]:
    """Return the options whose increase continues a finished training."""
    found: Iterable[str] = getattr(backend.cls.Options, "extends", ())
    return frozenset(found)


def changed_keys(before: Recipe, after: Recipe) -> dict[str, tuple[object, object]]:
    """Return the keys of two recipes that differ, each with both values: option by option, lists as a whole."""
    old, new = _flat(before.to_dict()), _flat(after.to_dict())
    return {
        key: (old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)
    }


def _flat(data: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(data, dict) or not data:
        return {prefix: data}
    return {k: v for key, value in data.items() for k, v in _flat(value, f"{prefix}.{key}" if prefix else key).items()}
