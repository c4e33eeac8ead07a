"""What trackers tell others about a run, written once for all of them.

Everything is picked by allow-lists: keys of the recipe and of lock.json that are named here, numbers of events, metrics.
An absolute path is recorded as its last part, and an address as its host: either may hold what is private.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

from .api import MeasuredRun, Run
from .files import Journal, digest, read_json
from .records import Delta, Metric, Report, RunRecord, StageRecord

RECIPE_KEYS = ("name", "note", "seed", "dataset", "prompt", "backend", "generation", "evaluator", "controls")
LOCK_KEYS = (
    *("python", "platform", "packages", "origins", "plugins", "code", "hardware", "git", "environment"),
    *("data", "model", "seed", "recipe", "generation", "evaluators", "controls", "training", "trained"),
)
_TEXTS = ("name", "note", "prompt", "generation")  # no paths: a prompt may begin with a slash
MAX_TEXT = 10_000  # characters of one text in the configuration


# ---------------------------------------------------------------- what the run was made with


def config(run: Run) -> dict[str, Any]:
    """Return the resolved recipe and the lock: {"recipe": {...}, "lock": {...}}, by the keys that are named above."""
    recipe, lock = run.resolved_recipe(), read_json(run.path("lock.json"))
    return {
        "recipe": {k: recipe[k] if k in _TEXTS else shareable(recipe[k]) for k in RECIPE_KEYS if k in recipe},
        "lock": {key: shareable(lock[key]) for key in LOCK_KEYS if key in lock},
    }


def shareable(value: Any) -> Any:
    """Return plain data in which absolute paths are their last part, and addresses their scheme, host and port."""
    if isinstance(value, Mapping):
        return {str(key): shareable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [shareable(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://\S*", value):
        return _host(value)
    if "\n" not in value and (PurePosixPath(value).is_absolute() or value.startswith("~")):
        return PurePosixPath(value).name or value
    if "\n" not in value and PureWindowsPath(value).is_absolute():
        return PureWindowsPath(value).name or value
    return capped(value, MAX_TEXT)


def _host(address: str) -> str:
    """Return scheme, host and port: user, password, path and query may hold a key."""
    try:
        parts = urlsplit(address)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}"


def capped(text: str, characters: int) -> str:
    """Return text cut to so many characters, with an ellipsis where it was."""
    return text if len(text) <= characters else text[: max(0, characters - 1)] + "…"


# ---------------------------------------------------------------- numbers


def numbers(event: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of an event by name, but for its time and its step."""
    return {
        key: value
        for key, value in event.items()
        if key not in ("time", "step", "max_steps") and isinstance(value, int | float) and not isinstance(value, bool)
        and math.isfinite(value)
    }  # fmt: skip


def stage_numbers(stage: StageRecord) -> dict[str, float]:
    """Return the seconds, dollars and peak memory (bytes) of a stage, as far as they are known."""
    found = {"seconds": stage.seconds, "usd": stage.usd, "peak_memory": stage.meta.get("peak_memory")}
    return {f"stage/{stage.name}/{key}": value for key, value in numbers(found).items()}


def metric_numbers(system: str, metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Return each metric of a system with its interval: "tuned/rouge1", "tuned/rouge1_low", "tuned/rouge1_high"."""
    found: dict[str, float] = {}
    for name, metric in metrics.items():
        key = f"{system}/{name}"
        parts = {key: metric.value, f"{key}_low": metric.low, f"{key}_high": metric.high, f"{key}_n": metric.n}
        found |= numbers(parts) | ({f"{key}_n_unscored": metric.n_unscored} if metric.n_unscored else {})
    return found


def summary(record: RunRecord, report: Report) -> dict[str, Any]:
    """Return what a finished run comes to: metrics with intervals, paired differences, the verdict, costs."""
    found: dict[str, Any] = {
        "verdict": report.verdict,
        "verdict_detail": capped(report.verdict_detail, MAX_TEXT),
        "primary": report.primary,
        "warnings": len(report.warnings),
    }
    for system in report.systems:
        found |= metric_numbers(system.name, system.metrics)
        costs = {key: getattr(system, key) for key in ("usd", "seconds", "peak_memory", "n_predictions", "n_failed")}
        found |= {f"{system.name}/{key}": value for key, value in numbers(costs).items()}
    for delta in report.deltas:
        found |= _delta(delta)
    for stage in record.stages:
        found |= stage_numbers(stage)
    return found


def _delta(delta: Delta) -> dict[str, Any]:
    key = f"delta/{delta.to} vs {delta.from_}/{delta.metric}"
    parts = {
        key: delta.delta,
        f"{key}_low": delta.low,
        f"{key}_high": delta.high,
        f"{key}_p": delta.p_decided,
        f"{key}_confidence": delta.confidence,
    }
    return {**numbers(parts), **({f"{key}_verdict": delta.verdict} if delta.verdict else {})}


class Fresh:
    """Returns for each event whether it is logged for the first time: a resumed run repeats steps after its last checkpoint."""

    def __init__(self, run: Run, resumed: bool) -> None:
        self._run = run
        self._resumed = resumed  # whether an earlier process logged its events
        self._logged: dict[tuple[str, Any], float] | None = None
        #: How many events earlier processes have logged, or more.
        self.before = sum(1 for _ in self._rows()) if resumed else 0

    def __call__(self, event: Mapping[str, Any]) -> bool:
        if self._logged is None:
            self._logged = self._earlier(event.get("time", 0.0))
        step = event.get("step")
        if not isinstance(step, int | float):
            return True
        return step > self._logged.get(_series(event), -1)

    def _earlier(self, time: float) -> dict[tuple[str, Any], float]:
        """Return the highest step of each series that was logged before `time`, the first event of this process."""
        logged: dict[tuple[str, Any], float] = {}
        for row in self._rows() if self._resumed else ():
            if row.get("time", time) < time and isinstance(row.get("step"), int | float):
                logged[_series(row)] = max(row["step"], logged.get(_series(row), -1))
        return logged

    def _rows(self) -> Iterator[dict[str, Any]]:
        return (row for row in Journal(self._run.path("train", "log.jsonl")) if isinstance(row, dict))


def _series(event: Mapping[str, Any]) -> tuple[str, Any]:
    return str(event.get("event")), event.get("name")


# ---------------------------------------------------------------- answers


def table(report: Report, rows: int, characters: int) -> tuple[list[str], list[list[Any]]]:
    """Return columns and the first `rows` test rows, with each system's answer and score; cells are cut."""
    systems = list(dict.fromkeys(name for pair in report.pairs[:rows] for name in pair.answers))
    columns = ["id", "input", "target", *(part for name in systems for part in (name, f"{name} {report.primary}"))]
    found = []
    for pair in report.pairs[:rows]:
        targets = "\n".join(pair.targets)
        row: list[Any] = [capped(text, characters) for text in (pair.example_id, pair.input, targets)]
        for name in systems:
            answer = pair.answers.get(name, {})
            text = f"(failed: {answer['error']})" if answer.get("error") else str(answer.get("text", ""))
            row += [capped(text, characters), answer.get("score")]
        found.append([*row, pair.delta])
    return [*columns, "difference"], found


# ---------------------------------------------------------------- artifacts


@dataclass(frozen=True)
class Artifact:
    """Something that a run used or made: `version` names its content; `files` are paths by the name to send them as.

    `kind` is dataset, model, predictions or report. `content` is a small JSON document that stands for it.
    """

    name: str
    kind: str
    version: str
    metadata: dict[str, Any]
    files: dict[str, Path] = field(default_factory=dict)
    content: dict[str, Any] | None = None


def dataset(run: Run, with_rows: bool) -> Artifact:
    """Return the run's data: the fingerprints of its splits, and its rows only where they are asked for."""
    about = read_json(run.path("data", "task.json"))
    facts = {"fingerprints": about["fingerprints"], "prompt": about["prompt_hash"]}
    files = (
        {f"{split}.jsonl": run.path("data", f"{split}.jsonl") for split in about["fingerprints"]} if with_rows else {}
    )
    source = shareable(run.resolved_recipe()["dataset"]["path"])  # not the recipe's name: other recipes use it too
    name = _name(f"{source}-data" if isinstance(source, str) and source else "data")
    return Artifact(name, "dataset", digest(facts)[:16], facts, files, facts)


def model(run: MeasuredRun, with_weights: bool) -> Artifact | None:
    """Return the tuned model: what it is and the hash of its weights, and its files only where they are asked for."""
    tuned = run.model()
    if tuned is None:
        return None
    key = run.path("tuned", "key.json")
    identity = shareable(read_json(key).get("identity", {})) if key.exists() else {}
    facts = {**shareable(tuned.to_dict()), "identity": identity}
    folder = run.resolve_uri(tuned.uri)
    found = sorted(p for p in folder.rglob("*") if p.is_file()) if with_weights and folder.is_dir() else []
    files = {path.relative_to(folder).as_posix(): path for path in found}
    return Artifact(_name(f"{run.resolved_recipe()['name']}-model"), "model", digest(facts)[:16], facts, files, facts)


def predictions(run: MeasuredRun) -> Artifact:
    """Return the answers and scores of all measurements, whole."""
    names = ("predictions.jsonl", "scores.jsonl", "metrics.json")
    files = {f"{m}/{name}": run.path(m, name) for m in run.measured() for name in names}
    return _of_files(run, "predictions", {name: path for name, path in files.items() if path.exists()})


def report_page(run: MeasuredRun) -> Artifact:
    """Return report.html."""
    return _of_files(run, "report", {"report.html": run.path("report.html")})


def _of_files(run: MeasuredRun, kind: str, files: dict[str, Path]) -> Artifact:
    return Artifact(_name(f"{run.resolved_recipe()['name']}-{kind}"), kind, run.id, {"run": run.id}, files)


def text(content: Mapping[str, Any]) -> str:
    """Return an artifact's content as JSON text: the same content is the same text."""
    return json.dumps(content, sort_keys=True, indent=2) + "\n"


def _name(text: str) -> str:
    """Return a name of the characters that trackers agree on."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:100] or "run"
