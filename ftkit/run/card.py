"""The model card of an export: README.md with the metadata that the hub reads, made from the run's report."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML

from ..data.audit import audit_lines
from ..directory import RunDirectory
from ..files import read_json
from ..recipe import yaml as yaml_source
from ..records import Delta, Exported, Report, System
from ..report.page.text import md_fence, md_text
from ..text import NONE, Scale, duration, p_equals, scale_for
from .export_target import Target
from .lock import read_lock

_RELATION = {"adapter": "adapter", "merged": "finetune", "full": "finetune"}  # any other name is a quantisation
_STATE = "State it here before you publish."


def card_of(
    run: RunDirectory,
    report: Report,
    exported: Exported,
    names: Sequence[str],
    target: Target,
    tried: Mapping[str, Any] | None,
) -> str:
    """Return the text of README.md. `names` are the systems of this export in the report."""
    data = dataset_of(run)
    title = (target.repository or target.folder.name).rpartition("/")[2]
    lines = [
        f"# {md_text(title)}",
        "",
        *_verdict(report),
        *_results(report, names),
        *_tried_lines(tried),
        *_loading(exported, target),
        *_data_lines(run, data),
        *_licences(run, exported, data),
        *_training(run),
        f"Made by [ftkit](https://pypi.org/project/ftkit) {report.version} from the run `{run.id}`.",
        "",
    ]
    return f"---\n{_metadata(run, report, exported, names, title, data)}---\n\n" + "\n".join(lines)


# ---------------------------------------------------------------- metadata


def _metadata(
    run: RunDirectory, report: Report, exported: Exported, names: Sequence[str], title: str, data: Mapping[str, Any]
) -> str:
    """Return the YAML that the hub reads: base_model, datasets, model-index and the like."""
    shown = [s for s in report.systems if s.name in names]
    kind = next(iter(exported.models))
    found: dict[str, Any] = {
        "library_name": exported.library or None,
        "license": exported.licence,
        "pipeline_tag": "text-generation",
        "base_model": exported.base_model,
        "base_model_relation": _RELATION.get(kind.partition("-")[0], "quantized") if exported.base_model else None,
        "datasets": [data["hub"]] if data.get("hub") else None,
        "metrics": _metric_names(shown),
        "tags": ["ftkit", "fine-tuned"],
        "model-index": [{"name": title, "results": [_result(s, report.primary, data) for s in shown]}],
    }
    text = io.StringIO()
    yaml = YAML()
    yaml.width = 1000
    yaml.dump({key: value for key, value in found.items() if value is not None}, text)
    return text.getvalue()


def _metric_names(systems: Sequence[System]) -> list[str] | None:
    found = (m.name for s in systems for m in s.metrics.values() if m.higher_is_better is not None)
    return list(dict.fromkeys(found)) or None


def _result(system: System, primary: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return one entry of `model-index`: values are in the metric's own unit, fractions from 0 to 1."""
    dataset = {"name": data["name"], "type": data.get("hub") or _slug(data["name"]), "split": "test"}
    dataset |= {key: value for key in ("config", "revision") if (value := data.get(key))}
    judged = [m for m in system.metrics.values() if m.name == primary or m.higher_is_better is not None]
    ordered = sorted(judged, key=lambda m: m.name != primary)
    metrics = [
        {"type": m.name, "name": f"{m.name} ({system.name}, n={m.n})", "value": round(m.value, 6)} for m in ordered
    ]
    return {"task": {"type": "text-generation", "name": "Text generation"}, "dataset": dataset, "metrics": metrics}


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-") or "data"


# ---------------------------------------------------------------- what came out


def _verdict(report: Report) -> Iterator[str]:
    yield from (f"**{md_text(report.verdict)}**", "")
    for line in report.verdict_detail.split("\n"):
        if line:
            yield from (md_text(line), "")


def _results(report: Report, names: Sequence[str]) -> Iterator[str]:
    """The table of the systems that answer the question: base, controls, trained model, and this export."""
    systems = [s for s in report.systems if s.role in ("baseline", "control", "tuned") or s.name in names]
    known = list(dict.fromkeys(name for s in systems for name in s.metrics))
    metrics = sorted(known, key=lambda name: name != report.primary)[:4]
    scales = {name: _scale(name, systems) for name in metrics}
    yield from ("## Results", "")
    yield "| system | " + " | ".join(f"{md_text(m)}{_unit(m, scales[m])}" for m in metrics) + " | n |"
    yield "|---|" + "--:|" * (len(metrics) + 1)
    for s in systems:
        mark = "**" if s.name in names else ""
        cells = [_cell(s, name, scales[name]) for name in metrics]
        n = next((str(m.n) for m in s.metrics.values()), NONE)
        yield f"| {mark}{md_text(s.name)}{mark} | " + " | ".join(cells) + f" | {n} |"
    yield from ("", "In brackets: the 95 % interval, over the test rows. All systems answered the same rows.", "")
    by_name = {s.name: s for s in systems}
    for d in report.deltas:
        if d.metric == report.primary and d.from_ in by_name and d.to in by_name:
            yield f"- {_difference(d, scales.get(d.metric) or _scale(d.metric, systems))}"
    yield ""
    worth = [w for w in report.warnings if not any(w.startswith(f"{s.name} ") for s in report.systems if s.role == "export" and s.name not in names)]  # fmt: skip
    if worth:
        yield from ("Read this first:", "", *(f"- {md_text(text)}" for text in worth), "")


def _scale(name: str, systems: Sequence[System]) -> Scale:
    found = [s.metrics[name] for s in systems if name in s.metrics]
    widths = [m.high - m.low for m in found if m.low is not None and m.high is not None]
    return scale_for(found[0].unit, [m.value for m in found], widths)


def _unit(name: str, scale: Scale) -> str:
    return f" ({scale.unit})" if scale.unit and not name.endswith(scale.unit) else ""


def _cell(system: System, name: str, scale: Scale) -> str:
    m = system.metrics.get(name)
    if m is None:
        return NONE
    interval = scale.interval(m.low, m.high)
    return scale.value(m.value) + (f" [{interval}]" if interval else "")


def _difference(d: Delta, scale: Scale) -> str:
    interval = scale.signed_interval(d.low, d.high)
    said = f"{100 * d.confidence:.3g} % interval {interval}" if interval else "no interval"
    verdict = f": {d.verdict}" if d.verdict else ""
    return (
        f"{md_text(d.from_)} → {md_text(d.to)}{verdict}: {md_text(d.metric)} {scale.signed(d.delta)} {scale.delta_unit}, "
        f"{said}, {p_equals(d.p_decided)}, n={d.n}"
    )


def _tried_lines(tried: Mapping[str, Any] | None) -> Iterator[str]:
    if tried:
        yield f"{md_text(tried['program'])} answered {tried['same']} of {tried['rows']} test rows as the run did, and {tried['same_as_measured']} as the export that was measured."
        yield ""


# ---------------------------------------------------------------- how to use it


def _loading(exported: Exported, target: Target) -> Iterator[str]:
    place = target.repository or "."
    yield from ("## How to load it", "")
    for note in exported.notes:
        yield from (md_text(note), "")
    for use in exported.usage:
        yield from (f"{md_text(use['title'])}:", "")
        yield from (_code(use["code"].replace("{folder}", place), use["language"]), "")


def _code(text: str, language: str) -> str:
    fence, _, rest = str(md_fence(text)).partition("\n")
    return f"{fence}{language}\n{rest}"


# ---------------------------------------------------------------- data, licences, training


def dataset_of(run: RunDirectory) -> dict[str, Any]:
    """Return what is known of the data: `name`, and `hub`, `config` and `revision` where it is a data set of the hub."""
    source = read_json(run.path("data", "task.json")).get("source") or {}
    path = run.recipe.dataset.path
    on_hub = isinstance(path, str) and not os.path.isabs(path) and not path.startswith(("loader:", "./", "../", "~"))
    hub = path if on_hub and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(path)) and not re.search(r"\.(jsonl?|csv|tsv|parquet|gz)$", str(path)) else None  # fmt: skip
    name = hub or (
        str(path).removeprefix("loader:") if isinstance(path, str) and path.startswith("loader:") else run.recipe.name
    )
    return {
        "name": str(name),
        "hub": hub,
        "config": run.recipe.dataset.name,
        "revision": (read_lock(run).get("data") or {}).get("revision") if hub else None,
        "licence": _licence(source),
    }


def _licence(source: Any) -> str | None:
    """Return the licence that a loader states of its rows, wherever it stands in the source's facts."""
    if not isinstance(source, dict):
        return None
    for key in ("licence", "license"):
        if isinstance(source.get(key), str):
            return str(source[key])
    return next((found for value in source.values() if (found := _licence(value))), None)


def _data_lines(run: RunDirectory, data: Mapping[str, Any]) -> Iterator[str]:
    audit = read_json(run.path("audit.json"))
    at = f" at {data['revision']}" if data.get("revision") else ""
    yield from ("## Data", "", f"- source: {md_text(data['name'])}{md_text(at)}")
    for line in audit_lines(audit):
        yield f"- {md_text(line)}"
    leaks = {pair: leak["rows"] for pair, leak in audit.get("leaks", {}).items() if leak["rows"]}
    found = ", ".join(f"{pair}: {n} rows" for pair, n in leaks.items())
    yield f"- leaks (test or validation inputs that training saw): {md_text(found) if found else 'none'}"
    yield from ("- the test rows were not used for training", "")


def _licences(run: RunDirectory, exported: Exported, data: Mapping[str, Any]) -> Iterator[str]:
    base = exported.base_model or str((read_lock(run).get("model") or {}).get("model") or "the base model")
    yield from ("## Licences", "")
    own = (
        f"{md_text(exported.licence)}, as its publisher states" if exported.licence else f"not known to ftkit. {_STATE}"
    )
    yield f"- base model {md_text(base)}: {own}"
    known = (
        f"{md_text(data['licence'])}, as its source states" if data.get("licence") else f"not known to ftkit. {_STATE}"
    )
    yield from (f"- data {md_text(data['name'])}: {known}", "")


def _training(run: RunDirectory) -> Iterator[str]:
    stage = next((s for s in run.record().stages if s.name == "train"), None)
    yield from ("## Training", "")
    if stage is not None:
        yield from (f"Trained in {duration(stage.seconds)}. The recipe, with every default written out:", "")
    plain = yaml_source.read_file(str(run.path("recipe.yaml")), []).plain()
    yield from (_code(yaml_source.write(_without_paths(plain)), "yaml"), "")


def _without_paths(value: Any) -> Any:
    """Return plain data in which a path of this machine is only its last part: a card is read by others."""
    if isinstance(value, dict):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    return os.path.basename(value.rstrip("/")) if isinstance(value, str) and os.path.isabs(value) else value
