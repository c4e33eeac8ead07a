"""What ran where, as a person would say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...lang import msg, tr, word
from ...text import NONE, dollars, duration, size
from ..strip import machine_of
from .text import moment, pretty

View = dict[str, Any]
_STATUS = {"done": msg("finished"), "running": msg("still runs"), "prepared": msg("was prepared and not started")}
_STAGES = {"reused": msg("reused from an earlier run"), "running": msg("still running")}
_TITLES = {"mark": msg("Mark"), "remedies": msg("Remedies"), "changes": msg("Changes")}
_KNOWN = (
    "id", "name", "status", "started", "kind", "stages", "warnings", "systems", "error", "recipe", "lock", "audit", "reuse", "where", "label",
)  # fmt: skip


def run_view(run: Mapping[str, Any]) -> View:
    """Return one run: a sentence on where and how long, its stages, what it used, its recipe and packages."""
    lock, audit = (found if isinstance(found := run.get(key), Mapping) else {} for key in ("lock", "audit"))
    packages = lock.get("packages")
    packages = packages if isinstance(packages, Mapping) else {}
    documents = [{"title": tr("Recipe"), "text": pretty(run["recipe"])}] if run.get("recipe") else []
    documents += [
        {"title": tr(_TITLES.get(key, key.replace("_", " ").capitalize())), "text": pretty(run[key])}
        for key in run
        if key not in _KNOWN and run[key]
    ]
    return {
        "id": run.get("id") or tr("unnamed"),
        "name": run.get("label") or run.get("name") or run.get("id") or tr("unnamed"),
        "status": _state(run.get("status"), _STATUS) or tr("status not known"),
        "started": moment(run.get("started")),
        "error": run.get("error"),
        "sentence": _sentence(run, lock),
        "stages": [_stage(stage) for stage in _stages(run)],
        "has_usd": any(stage.get("usd") is not None for stage in _stages(run)),
        "facts": [*_used(lock), *_data(audit)],
        "packages": [f"{name} {version}" for name, version in packages.items()],
        "recipe": pretty(run["recipe"]) if run.get("recipe") else None,
        "documents": documents,
    }


def _stages(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the stages; without the one that is writing this report."""
    found = [stage for stage in run.get("stages") or () if isinstance(stage, Mapping)]
    return [s for s in found if not (s.get("name") == "report" and s.get("status") == "running")]


def _stage(stage: Mapping[str, Any]) -> View:
    return {
        "name": word(str(stage.get("name"))),
        "status": _state(stage.get("status"), _STAGES),
        "seconds": duration(stage.get("seconds")),
        "usd": dollars(stage.get("usd")),
        "error": stage.get("error"),
    }


def _state(status: object, words: Mapping[str, str]) -> str:
    text = words.get(str(status))
    return tr(text) if text else word(str(status)) if status else ""


def _sentence(run: Mapping[str, Any], lock: Mapping[str, Any]) -> str:
    """Return where and how long a run worked: "Ran on 2 CPU cores (AMD EPYC) from 17:42 UTC, 2 min 35 s in all."."""
    seconds = [s["seconds"] for s in _stages(run) if isinstance(s.get("seconds"), int | float)]
    machine = machine_of(lock)
    facts = {
        "on": tr(" on {machine}", machine=machine) if machine else "",
        "where": tr(" through {where}", where=run["where"]) if run.get("where") else "",
        "started": tr(", started {time}", time=moment(run["started"])) if run.get("started") else "",
        "took": tr(", {time} in all", time=duration(sum(seconds))) if seconds else "",
    }
    if not (machine or facts["started"] or facts["took"]):
        return ""
    if run.get("kind") == "score":
        return tr("Scored{on}{where}{started}{took}.", **facts)
    return tr("Ran{on}{where}{started}{took}.", **facts)


_USED = (
    ("model", "model", msg("Model")), ("model", "commit", msg("Commit of the model")), ("model", "device", msg("Device")),
    ("model", "dtype", msg("Precision")), ("model", "quantisation", msg("Quantisation")), ("model", "attention", msg("Attention kernel")),
    ("data", "path", msg("Data")), ("data", "revision", msg("Commit of the data")), ("data", "licence", msg("Licence of the data")),
    ("git", "commit", msg("Commit of the working directory")),
)  # fmt: skip


def _used(lock: Mapping[str, Any]) -> list[View]:
    """Return what the run used, as {"label", "value"}; what is not known is left out."""
    facts = []
    for part, key, label in _USED:
        found = lock.get(part)
        value = found.get(key) if isinstance(found, Mapping) else None
        if value:
            facts.append({"label": tr(label), "value": value})
    model = lock.get("model")
    versions = model.get("versions") if isinstance(model, Mapping) else None
    software = [f"Python {lock['python']}"] if lock.get("python") else []
    software += [f"{name} {version}" for name, version in versions.items()] if isinstance(versions, Mapping) else []
    facts += [{"label": tr("Software"), "value": ", ".join(software)}] if software else []
    memory = lock["hardware"].get("memory") if isinstance(lock.get("hardware"), Mapping) else None
    facts += [{"label": tr("Memory of the machine"), "value": size(memory)}] if isinstance(memory, int) else []
    changed = lock.get("environment")
    if isinstance(changed, Mapping) and changed:
        facts.append(
            {"label": tr("Variables that were set"), "value": ", ".join(f"{k}={v}" for k, v in changed.items())}
        )
    return facts


def _data(audit: Mapping[str, Any]) -> list[View]:
    """Return one line for each split: rows and tokens; and what was found in several splits."""
    splits, tokens = (found if isinstance(found := audit.get(key), Mapping) else {} for key in ("splits", "tokens"))
    facts = []
    for name, split in splits.items():
        rows = split.get("rows") if isinstance(split, Mapping) else None
        long = tokens.get(name)
        length = ""
        if (
            isinstance(long, Mapping)
            and isinstance(long.get("max"), int)
            and isinstance(long.get("median"), int | float)
        ):
            text = msg(", {median:g} tokens in the middle, {most:,} at most")
            length = tr(text, median=long["median"], most=long["max"])
        label = tr("{split} rows", split=word(str(name)))
        facts.append(
            {
                "label": f"{label[:1].upper()}{label[1:]}",
                "value": f"{rows:,}{length}" if isinstance(rows, int) else NONE,
            }
        )
    return facts
