"""In what else the runs of a report differ: one line, from their lock.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..directory import RunDirectory
from ..files import read_json
from ..lang import joined, msg, tr

_NAMED = 6  # packages or variables that are named one by one
# What a backend's identity may hold, and its words. A commit differs anyway between two models.
_IDENTITY = {
    "chat_template": msg("chat template"),
    "template_date": msg("template date"),
    "dtype": msg("precision"),
    "quantisation": msg("quantisation"),
    "attention": msg("attention kernel"),
    "device": msg("device"),
    "flags": msg("flags of the trainer"),
    "code": msg("code of the backend"),
}
_SAME_MODEL = {"commit": msg("model commit"), "weights": msg("weights")}


def differences(runs: Sequence[RunDirectory]) -> list[str]:
    """Return no line, or one that names what differs between the runs beside their recipes.

    What a run does not record is not compared.
    """
    locks = {run.id: read_json(run.path("lock.json")) for run in runs if run.path("lock.json").exists()}
    names = [run.record().name for run in runs]
    labels = {run.id: name if names.count(name) == 1 else run.id for run, name in zip(runs, names, strict=True)}
    found = {labels[run_id]: lock for run_id, lock in locks.items() if isinstance(lock, dict)}
    if len(found) < 2:
        return []
    models = {name: _part(lock, "model") for name, lock in found.items()}
    words = _IDENTITY | (_SAME_MODEL if len({str(m.get("model")) for m in models.values()}) == 1 else {})
    parts = [
        _values(label, {name: m.get(key) for name, m in models.items() if key in m}) for key, label in words.items()
    ]
    data = {name: _part(lock, "data") for name, lock in found.items()}
    if len({str(d.get("path")) for d in data.values()}) == 1:
        parts.append(
            _values(msg("data commit"), {name: d.get("revision") for name, d in data.items() if "revision" in d})
        )
    parts.append(_values("Python", {name: lock["python"] for name, lock in found.items() if "python" in lock}))
    gpus = {name: ", ".join(map(str, _part(lock, "hardware").get("gpus") or ())) for name, lock in found.items()}
    cpus = {name: _part(lock, "hardware").get("cpu") for name, lock in found.items()}
    parts += [_values("GPU", gpus), _values("CPU", cpus)]
    parts.append(_keys(msg("versions"), {name: _part(lock, "packages") for name, lock in found.items()}))
    parts.append(_keys(msg("variables"), {name: lock["environment"] for name, lock in found.items() if "code" in lock}))
    parts.append(
        _keys(msg("code"), {name: lock["code"] for name, lock in found.items() if "code" in lock}, shown=False)
    )
    said = joined([part for part in parts if part], "; ")
    return [tr("The runs also differ in {what}", what=said)] if said else []


def _part(lock: Mapping[str, Any], key: str) -> dict[str, Any]:
    part = lock.get(key)
    return part if isinstance(part, dict) else {}


def _values(label: str, values: Mapping[str, Any]) -> str | None:
    """Return the label, and each run's value, where the runs differ in it."""
    texts = {name: _short(value) for name, value in values.items()}
    if len({str(value) for value in values.values()}) < 2:
        return None
    return tr("{what} ({values})", what=tr(label), values=joined([f"{name}: {text}" for name, text in texts.items()]))


def _keys(label: str, sides: Mapping[str, Any], shown: bool = True) -> str | None:
    """Return the label, and the keys whose values differ, such as packages; `shown`: with the values."""
    dicts = [side for side in sides.values() if isinstance(side, dict)]
    everything = sorted({key for side in dicts for key in side}, key=str.lower)
    differing = [key for key in everything if len({str(side.get(key, "none")) for side in dicts}) > 1]
    if not differing:
        return None
    values = {key: "/".join(dict.fromkeys(_short(side.get(key, "none")) for side in dicts)) for key in differing}
    named = [f"{key} {values[key]}" if shown else key for key in differing[:_NAMED]]
    said = joined(named)
    if len(differing) > _NAMED:
        said = tr("{names} and {n} more", names=said, n=len(differing) - _NAMED)
    return tr("{what} ({values})", what=tr(label), values=said)


def _short(value: Any) -> str:
    """Return a value as a reader needs it: of a hash its first digits."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    text = "none" if value is None or value == "" else str(value)
    return text[:12] if len(text) in (40, 64) and text.isalnum() else text[:60]
