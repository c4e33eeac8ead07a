"""The numbers of a report, from run directories alone: systems, paired deltas, verdict, examples."""

from __future__ import annotations

import importlib.metadata
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..directory import RunDirectory, utc_now
from ..errors import InputError
from ..files import read_json
from ..plugins import installed_plugins
from ..recipe import yaml as yaml_source
from ..records import Curve, Metric, Pair, Report, Section
from .compare import cautions_of, deltas_of, primary_of, verdict_of
from .costs import costs_of, read_prices
from .differences import differences
from .measured import Measured, check_comparable, length_limit_notes, match_examples, read_all, settle_roles, unique
from .seeds import answers_of, group_seeds, notes_on_runs, origins_of, parts, same_recipe, title_of


def build_report(runs: Sequence[RunDirectory], anyway: bool = False, prices: Sequence[str] = ()) -> Report:
    """Return one Report over `runs`. Raises InputError where they must not be compared, unless `anyway`.

    `prices` are texts SYSTEM.KEY=NUMBER: see `costs.read_prices`.
    """
    if not runs:
        raise InputError("no runs to report on", "`ftkit runs` lists what was run")
    notes: list[str] = []
    warnings: list[str] = []
    origins = origins_of(runs)
    measured = unique(read_all(runs), notes, lambda a, b: same_recipe(a, b, origins))
    settle_roles(measured, notes)
    check_comparable([m for m in measured if m.system.role != "extra"], anyway, warnings, notes)
    match_examples(measured, notes)
    measured = group_seeds(measured, origins, notes, warnings)
    systems = [m.system for m in measured]
    set_prices = read_prices(prices, systems, {run.id: run.record().name for run in runs})
    primary = primary_of(measured)
    deltas = deltas_of([m for m in measured if m.system.role != "extra"], primary, warnings)
    for run in runs:
        record = run.record()
        prefix = f"{record.name}: " if len(runs) > 1 else ""
        warnings += [prefix + w for w in record.warnings]
        unfinished = _unfinished(run)
        warnings += [prefix + unfinished] if unfinished else []
    for m in itertools.chain.from_iterable(map(parts, measured)):
        cut = m.run.measurement(m.system.stage).get("cost", {}).get("truncated_prompts")
        if cut:
            warnings.append(f"{m.system.name}: {cut} prompts did not fit into the model's context and were truncated")
    notes += length_limit_notes(measured)
    verdict, detail = verdict_of(measured, deltas, primary, warnings)
    notes += cautions_of(systems, deltas, primary)
    notes += notes_on_runs(deltas, detail)
    sections = _sections(runs, warnings)
    recipe_notes = _recipe_notes(runs, warnings)
    notes += differences(runs)
    return Report(
        title=title_of(runs, measured),
        verdict=verdict,
        verdict_detail=detail,
        primary=primary or "",
        systems=tuple(systems),
        deltas=tuple(deltas),
        pairs=tuple(_pairs(measured, primary)),
        curves=tuple(curve for run in runs for curve in _curves(run)),
        runs=tuple(_provenance(run) for run in runs),
        warnings=tuple(dict.fromkeys(warnings)),
        notes=tuple(dict.fromkeys([*recipe_notes, *notes])),
        sections=tuple(sections),
        costs=costs_of(systems, set_prices, _spent(runs)).to_dict(),
        created=utc_now(),
        version=importlib.metadata.version("ftkit"),
    )


# ---------------------------------------------------------------- the rest of the page


def _unfinished(run: RunDirectory) -> str | None:
    """Return one sentence on a run that is not done: in which stage, why, and how to resume it; else None."""
    record, status = run.record(), run.status()
    if record.kind != "run" or status == "done":
        return None
    stage = next((f" in {s.name}" for s in record.stages if s.status != "done"), "")
    if status == "running":
        return f"this run is still running{stage}"
    if status == "prepared":
        return f"this run was prepared and not started; start it with: ftkit run --resume {_shown_path(run)}"
    lines = [line.strip().rstrip(".") for line in (record.error or "").splitlines() if "--resume" not in line]
    why = f": {'; '.join(lines)}" if lines and lines != [status] else ""
    what = status if status == "failed" else f"was {status}"
    return f"this run {what}{stage}{why}; resume with: ftkit run --resume {_shown_path(run)}"


def _shown_path(run: RunDirectory) -> Path:
    return run.dir.relative_to(Path.cwd()) if run.dir.is_relative_to(Path.cwd()) else run.dir


def _pairs(measured: Sequence[Measured], primary: str | None) -> Iterable[Pair]:
    shown = [m for m in measured if m.system.role != "extra"]
    if not shown or primary is None:
        return
    values = {m.system.name: m.means(primary) for m in shown}
    answered = [(name, part, part.means(primary)) for m in shown for name, part in answers_of(m)]
    tuned = next((m for m in shown if m.system.role == "tuned"), None)
    base = next((m for m in shown if m.system.role == "baseline"), None)
    for example in shown[0].examples:
        answers = {}
        for name, m, scores in answered:
            p = m.predictions.get(example.id)
            if p is not None:
                answers[name] = {"text": p.text, "score": scores.get(example.id), "error": p.error}
        delta = None
        if tuned and base:
            a, b = (values[m.system.name].get(example.id) for m in (base, tuned))
            delta = b - a if a is not None and b is not None else None
        yield Pair(example.id, example.input, example.targets, answers, delta)


def _curves(run: RunDirectory) -> Iterable[Curve]:
    """Draw the loss, and the validation metrics of the primary evaluator, over the training steps."""
    lines: dict[tuple[str, str], list[list[float]]] = {}
    known: dict[str, Metric] = {}
    primaries: set[str | None] = set()
    for stage in run.measured():
        known.update(run.metrics(stage))
        primaries.add(run.measurement(stage)["settings"].get("primary"))
    for row in run.log_rows():
        if row["event"] == "step" and row.get("loss") is not None:
            lines.setdefault(("loss", "loss"), []).append([row["step"], row["loss"]])
        if row["event"] == "eval" and row.get("loss") is not None:
            lines.setdefault(("loss", "validation loss"), []).append([row["step"], row["loss"]])
        if row["event"] == "eval":
            for name, value in row.items():
                if name in known and isinstance(value, int | float):
                    if known[name].unit == "fraction":
                        lines.setdefault(("validation metrics", name), []).append([row["step"], value])
                    elif name in primaries:  # in its own unit, on its own axis
                        lines.setdefault((name, name), []).append([row["step"], value])
    return [Curve(run.record().name, name, axis, tuple(points)) for (axis, name), points in lines.items()]


def _provenance(run: RunDirectory) -> dict[str, Any]:
    record, status = run.record(), run.status()
    if status == "killed":
        stages = (replace(s, status=status) if s.status == "running" else s for s in record.stages)
        record = replace(record, status=status, stages=tuple(stages))
    recipe, lock, audit = run.path("recipe.yaml"), run.path("lock.json"), run.path("audit.json")
    return {
        **record.to_dict(),
        "recipe": recipe.read_text(encoding="utf-8") if recipe.exists() else None,
        "lock": read_json(lock) if lock.exists() else None,
        "audit": read_json(audit) if audit.exists() else None,
    }


def _spent(runs: Sequence[RunDirectory]) -> Iterable[dict[str, Any]]:
    """Yield the estimated and the actual price of each run that had an estimate, in dollars."""
    for run in runs:
        audit = run.path("audit.json")
        written = read_json(audit) if audit.exists() else {}
        estimate = written.get("estimate") or {}
        controls = sum(e.get("usd") or 0.0 for e in written.get("control_estimates", ()))
        if estimate.get("usd") is not None:
            paid = [stage.usd for stage in run.record().stages if stage.usd is not None]
            yield {
                "run": run.record().name,
                "estimated": estimate["usd"] + controls,
                "actual": sum(paid) if paid else None,
                "prices_as_of": estimate.get("prices_as_of"),
            }


def _recipe_notes(runs: Sequence[RunDirectory], warnings: list[str]) -> list[str]:
    """Return the recipes' notes; read as plain YAML, so that a report needs none of the run's plugins."""
    notes = []
    for run in runs:
        path = run.path("recipe.yaml")
        if path.exists():
            try:
                recipe = yaml_source.read_file(str(path), []).plain()
            except yaml_source.Unreadable as error:
                warnings.append(f"{run.record().name}: its recipe.yaml cannot be read: {error.problem}")
                continue
            note = recipe.get("note") if isinstance(recipe, dict) else None
            notes += [str(note)] if note else []
    return notes


def _sections(runs: Sequence[RunDirectory], warnings: list[str]) -> list[Section]:
    sections: list[Section] = []
    for impl in installed_plugins().manager.hook.ftkit_report_sections.get_hookimpls():
        try:
            found: Any = impl.function(runs=list(runs))
            sections += found
        except Exception as error:  # a section that fails must not cost the reader the report
            warnings.append(f"the report section of plugin {impl.plugin_name} failed: {type(error).__name__}: {error}")
    return sections
