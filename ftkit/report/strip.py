"""The strip under the headline: model and size, method, data and leaks, time and price, seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..directory import RunDirectory
from ..files import read_json
from ..lang import joined, msg, plural, tr
from ..records import System
from ..text import dollars, duration
from .names import recipe_of, short_options

Fact = dict[str, str]


def strip_of(runs: Sequence[RunDirectory], systems: Sequence[System]) -> list[Fact]:
    """Return {"label", "value", "note"} of what a reader asks next; what is not known is left out."""
    trained = [run for run in runs if run.record().kind == "run"]
    if not trained:
        return []
    audits = [_json(run, "audit.json") for run in trained]
    locks = [_json(run, "lock.json") for run in trained]
    models = [_model_of(lock) for lock in locks]
    facts = [_model(models, audits), _method(trained), _data(audits), _time(trained, locks, systems), _seeds(systems)]
    return [fact for fact in facts if fact is not None]


def _json(run: RunDirectory, name: str) -> Mapping[str, Any]:
    path = run.path(name)
    found = read_json(path) if path.exists() else {}
    return found if isinstance(found, dict) else {}


def _model_of(lock: Mapping[str, Any]) -> Mapping[str, Any]:
    model = lock.get("model")
    return model if isinstance(model, dict) else {}


def _fact(label: str, value: str, note: str = "") -> Fact:
    return {"label": label, "value": value, "note": note}


def _model(models: Sequence[Mapping[str, Any]], audits: Sequence[Mapping[str, Any]]) -> Fact | None:
    names = {str(m["model"]): (audit.get("estimate") or {}).get("parameters") for m, audit in zip(models, audits, strict=True) if m.get("model")}  # fmt: skip
    if not names:
        return None
    shown = [f"{name.removeprefix('package:')}{f', {size_of(n)}' if n else ''}" for name, n in names.items()]
    precision = {str(m[key]) for m in models for key in ("quantisation", "dtype") if m.get(key)}
    return _fact(tr("Model") if len(names) == 1 else tr("Models"), "; ".join(shown), ", ".join(sorted(precision)))


def size_of(parameters: float) -> str:
    """Return a number of parameters as people say it: 1.97 M, 1.24 B."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= limit:
            return f"{parameters / limit:.3g} {unit}"
    return f"{parameters:g}"


def _method(runs: Sequence[RunDirectory]) -> Fact | None:
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        train = next((s for s in run.record().stages if s.name == "train"), None)
        plugin, options = _backend(run)
        if plugin:
            steps = train.meta.get("steps") if train else None
            said = [
                short_options("backend", plugin, options),
                tr("{n:,} steps", n=steps) if isinstance(steps, int) else "",
            ]
            found.setdefault(plugin, {})[joined([text for text in said if text])] = None
    if not found:
        return None
    settings = [next(iter(s)) if len(s) == 1 else tr("{n} settings", n=len(s)) for s in found.values()]
    return _fact(tr("Method"), "; ".join(found), joined([text for text in settings if text], "; "))


def _backend(run: RunDirectory) -> tuple[str, Mapping[str, Any]]:
    backend = recipe_of(run).get("backend")
    options = backend if isinstance(backend, dict) else {}
    return str(options.get("plugin") or ""), options


def _data(audits: Sequence[Mapping[str, Any]]) -> Fact | None:
    said = list(dict.fromkeys(filter(None, map(_rows, audits))))
    if not said:
        return None
    leaks = {(audit.get("leaks") or {}).get("test", {}).get("rows") for audit in audits} - {None}
    note = tr("no leaks found") if leaks else ""
    if leaks and any(map(_others, audits)):  # which the warnings below name
        note = tr("no test row in the training rows")
    if any(leaks):
        one, many = msg("{n:,} test row also in the training rows"), msg("{n:,} test rows also in the training rows")
        note = plural(max(leaks), one, many)
    return _fact(tr("Data"), said[0] if len(said) == 1 else tr("{n} data sets", n=len(said)), note)


def _others(audit: Mapping[str, Any]) -> bool:
    """Return whether rows of validation are also in train, or rows of test in validation."""
    validation = (audit.get("leaks") or {}).get("validation") or {}
    return bool(validation.get("rows") or (audit.get("test_in_validation") or {}).get("rows"))


def _rows(audit: Mapping[str, Any]) -> str:
    splits = audit.get("splits") or {}
    parts = [
        tr("{n:,} {split}", n=split["rows"], split=tr(str(name)))
        for name, split in splits.items()
        if isinstance(split, dict) and split.get("rows")
    ]
    return joined(parts, " · ")


def _time(runs: Sequence[RunDirectory], locks: Sequence[Mapping[str, Any]], systems: Sequence[System]) -> Fact:
    stages = [stage for run in runs for stage in run.record().stages]
    seconds = sum(stage.seconds for stage in stages if stage.seconds)
    spent = [stage.usd for stage in stages if stage.usd is not None]
    machines = dict.fromkeys(filter(None, map(machine_of, locks)))
    value = [duration(seconds), *([dollars(sum(spent))] if spent else [])]
    each = [tr("{n} runs together", n=len(runs))] if len(runs) > 1 else []
    return _fact(tr("Time and price") if spent else tr("Time"), joined(value), joined([*each, *machines], "; "))


def machine_of(lock: Mapping[str, Any]) -> str:
    """Return the machine of a lock as a person calls it: "NVIDIA A10G", "2 CPU cores (AMD EPYC)"."""
    hardware = lock.get("hardware")
    if not isinstance(hardware, dict):
        return ""
    gpus = [str(g.get("name", g) if isinstance(g, dict) else g) for g in hardware.get("gpus") or ()]
    if gpus:
        return ", ".join(f"{gpus.count(g)} × {g}" if gpus.count(g) > 1 else g for g in dict.fromkeys(gpus))
    cores, cpu = hardware.get("cores"), hardware.get("cpu")
    if not cores:
        return str(cpu or "")
    return tr("{n} CPU cores ({cpu})", n=cores, cpu=cpu) if cpu else tr("{n} CPU cores", n=cores)


def _seeds(systems: Sequence[System]) -> Fact | None:
    tuned = [s for s in systems if s.role == "tuned" and s.seeds]
    if not tuned:
        return None
    counts = {len(s.seeds) for s in tuned}
    if counts == {1}:
        return _fact(tr("Seeds"), _each("1", len(tuned)), tr("training noise not measured"))
    listed = dict.fromkeys(", ".join(str(entry["seed"]) for entry in s.seeds) for s in tuned)
    number = _each("/".join(map(str, sorted(counts))), len(tuned))
    return _fact(tr("Seeds"), number, "; ".join(listed) if len(listed) == 1 else "")


def _each(number: str, systems: int) -> str:
    return tr("{n} each", n=number) if systems > 1 else number
