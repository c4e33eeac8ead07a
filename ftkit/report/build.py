"""The numbers of a report, from run directories alone: systems, paired deltas, verdict, examples."""

from __future__ import annotations

import importlib.metadata
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..directory import RunDirectory, utc_now
from ..errors import FtkitError, InputError
from ..files import read_json
from ..lang import joined, keeping, msg, tr
from ..plugins import installed_plugins
from ..recipe import yaml as yaml_source
from ..records import Curve, Delta, Metric, Report, RunRecord, Section, System
from .compare import cautions_of, data_metrics, deltas_of, primary_of, verdict_of
from .costs import costs_of, read_prices
from .diff import diff_sections
from .differences import differences
from .distribution import distribution_of
from .exports import export_deltas
from .headline import headline_of, spoken_of, with_plugins
from .measured import check_comparable, length_limit_notes, match_examples, read_all, settle_roles, unique
from .names import names_of
from .pairs import pairs_of
from .seeds import call_by_difference, group_seeds, notes_on_runs, origins_of, parts, same_recipe, title_of
from .slices import slices_of
from .strip import strip_of

# Sections that whoever writes the report adds, from its systems and its differences, the headline's first.
MoreSections = Callable[[Sequence[System], Sequence[Delta]], Iterable[Section]]


def build_report(
    runs: Sequence[RunDirectory],
    anyway: bool = False,
    prices: Sequence[str] = (),
    more: MoreSections | None = None,
) -> Report:
    """Return one Report over `runs`. Raises InputError where they must not be compared, unless `anyway`.

    `more` adds sections. `prices` are texts SYSTEM.KEY=NUMBER: see `costs.read_prices`. Its texts are English; `texts` has how they are made,
    for `spoken.in_language`.
    """
    with keeping() as texts:
        report = _build(runs, anyway, prices, more)
    return replace(report, texts=texts)


def _build(runs: Sequence[RunDirectory], anyway: bool, prices: Sequence[str], more: MoreSections | None) -> Report:
    if not runs:
        raise InputError("no runs to report on", "`ftkit runs` lists what was run")
    notes: list[str] = []
    warnings: list[str] = []
    origins = origins_of(runs)
    names = names_of(runs, origins)
    measured = unique(
        read_all(runs, names.labels),
        notes,
        lambda a, b: same_recipe(a, b, origins) or b.run.id in names.by_difference,
    )
    call_by_difference(measured, names)
    settle_roles(measured, notes)
    check_comparable([m for m in measured if m.system.role != "extra"], anyway, warnings, notes)
    match_examples(measured, notes)
    measured = group_seeds(measured, origins, names, notes, warnings)
    if len(runs) > 1:
        for m in measured:
            m.system = replace(m.system, differs=names.shared(sorted(m.used_by)))
    systems = [m.system for m in measured]
    set_prices = read_prices(prices, systems, {run.id: run.record().name for run in runs})
    primary = primary_of(measured)
    deltas = deltas_of([m for m in measured if m.system.role != "extra"], primary, warnings)
    of_exports = export_deltas(measured, primary, warnings, notes)
    for run in runs:
        record = run.record()
        unfinished = _unfinished(run)
        warnings += [_of(record, text, len(runs)) for text in (*record.warnings, *([unfinished] if unfinished else []))]
        notes += [_of(record, changed, len(runs)) for changed in _changes(record)]
    for m in itertools.chain.from_iterable(map(parts, measured)):
        cut = m.run.measurement(m.system.stage).get("cost", {}).get("truncated_prompts")
        if cut:
            text = msg("{name}: {n} prompts did not fit into the model's context and were truncated")
            warnings.append(tr(text, name=m.system.name, n=cut))
    notes += length_limit_notes(measured)
    verdict, detail = verdict_of(measured, deltas, primary, warnings)
    notes += cautions_of(systems, deltas, primary)
    notes += notes_on_runs(deltas, detail)
    of_data = data_metrics(measured)
    if of_data:
        text = msg("{names}: a property of the data, the same for every system, so no difference is tested")
        notes.append(tr(text, names=joined(of_data)))
    notes += _on_validation(systems)
    sections = [*(more(systems, deltas) if more else ()), *_sections(runs, warnings)]
    head = spoken_of(measured, deltas, primary)
    spread = distribution_of(measured, head)
    headline = headline_of(measured, deltas, head, verdict, spread, strip_of(runs, systems))
    led = with_plugins(headline, sections)
    if led.source:  # the plugin's finding leads everywhere, and the report's own verdict follows it
        verdict, detail = (
            led.title,
            "\n".join(
                [*led.text[: len(led.text) - len(headline.text)], tr("{title}: {text}", title=verdict, text=detail)]
            ),
        )
    recipe_notes = _recipe_notes(runs, warnings)
    notes += differences(runs)
    return Report(
        title=title_of(runs, measured),
        verdict=verdict,
        verdict_detail=detail,
        primary=primary or "",
        systems=tuple(systems),
        deltas=(*deltas, *of_exports),
        pairs=tuple(pairs_of(measured, primary)),
        curves=tuple(curve for run in runs for curve in curves_of(run, names.labels[run.id])),
        runs=tuple({**_provenance(run), "label": names.labels[run.id]} for run in runs),
        warnings=tuple(dict.fromkeys(warnings)),
        notes=tuple(dict.fromkeys([*recipe_notes, *notes])),
        sections=tuple(sections),
        slices=tuple(slices_of(measured, primary)),
        costs=costs_of(systems, set_prices, _spent(runs)).to_dict(),
        headline=led,
        distribution=spread,
        differing=names.table({m.system.name: m.used_by for m in measured if m.system.role == "tuned"}),
        created=utc_now(),
        version=importlib.metadata.version("ftkit"),
    )


# ---------------------------------------------------------------- the rest of the page


def _of(record: RunRecord, text: str, runs: int) -> str:
    """Return what is said of one of several runs, with its name."""
    return tr("{title}: {text}", title=record.name, text=text) if runs > 1 else text


def _unfinished(run: RunDirectory) -> str | None:
    """Return one sentence on a run that is not done: in which stage, why, and how to resume it; else None."""
    record, status = run.record(), run.status()
    if record.kind != "run" or status == "done":
        return None
    stage = next((tr(" in {stage}", stage=s.name) for s in record.stages if s.status != "done"), "")
    path = str(_shown_path(run))
    if status == "running":
        return tr("this run is still running{stage}", stage=stage)
    if status == "prepared":
        return tr("this run was prepared and not started; start it with: ftkit run --resume {path}", path=path)
    lines = [line.strip().rstrip(".") for line in (record.error or "").splitlines() if "--resume" not in line]
    why = tr(": {text}", text=joined(lines, "; ")) if lines and lines != [status] else ""
    text = msg("this run was {status}{stage}{why}; resume with: ftkit run --resume {path}")
    if status == "failed":
        text = msg("this run failed{stage}{why}; resume with: ftkit run --resume {path}")
    return tr(text, status=tr(status), stage=stage, why=why, path=path)


def _on_validation(systems: Sequence[System]) -> list[str]:
    """Return what must be known of numbers on rows that training may have chosen its weights by."""
    if not any(s.settings.get("split") == "validation" for s in systems if s.role != "extra"):
        return []
    text = msg("measured on the validation rows, to choose settings: training may choose its weights by these rows, and the test rows are not touched")  # fmt: skip
    return [tr(text)]


def _changes(record: RunRecord) -> Iterable[str]:
    """Yield what was changed when the run was resumed, or by itself: options that change no measured number."""
    for entry in record.changes:
        if entry.get("adapted"):
            text = msg("after a failure in {stage}, the run continued by itself with {key} {to} instead of {from_}")
        else:
            text = msg("resumed with {key} {to} instead of {from_} (in {stage})")
        yield tr(text, key=entry["key"], to=entry["to"], from_=entry["from"], stage=entry["stage"])


def _shown_path(run: RunDirectory) -> Path:
    return run.dir.relative_to(Path.cwd()) if run.dir.is_relative_to(Path.cwd()) else run.dir


def curves_of(run: RunDirectory, label: str | None = None) -> Iterable[Curve]:
    """Draw the loss, and the validation metrics of the primary evaluator, over the training steps.

    The lines carry the run's `label`; without one, the recipe's name.
    """
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
    train = next((stage for stage in run.record().stages if stage.name == "train"), None)
    chosen = train.meta.get("selected_step") if train else None
    return [
        Curve(label or run.record().name, name, axis, tuple(points), chosen) for (axis, name), points in lines.items()
    ]


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
    """Yield the estimated and the actual price of each run that had an estimate, in dollars.

    A machine that was rented for the run has an entry of its own: its limit, what was paid, and where that is from.
    """
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
        limit, rental = written.get("launch_estimate") or {}, run.record().rental
        if limit.get("usd") is not None or rental:
            yield {
                "run": f"{run.record().name}: {limit.get('launcher') or run.record().where}",
                "estimated": limit.get("usd"),
                "actual": rental.get("usd"),
                "prices_as_of": limit.get("prices_as_of"),
                "source": rental.get("source"),
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
                text = msg("{name}: its recipe.yaml cannot be read: {why}")
                warnings.append(tr(text, name=run.record().name, why=error.problem))
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
            text = msg("the report section of plugin {name} failed: {error}")
            warnings.append(tr(text, name=impl.plugin_name, error=f"{type(error).__name__}: {error}"))
    try:
        sections += diff_sections(runs)
    except (FtkitError, OSError, KeyError, TypeError, ValueError) as error:  # a file of an unfinished or damaged run
        text = msg("what differs between the runs cannot be shown: {error}")
        warnings.append(tr(text, error=f"{type(error).__name__}: {error}"))
    return sections
