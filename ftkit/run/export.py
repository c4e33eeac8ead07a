"""Export a finished run's model: its backend writes the files, the core measures them, describes them, and seals the run again.

The export's folder appears as the last step, whole. What a killed export leaves is hidden, and the next one removes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..api import Backend
from ..console import Console
from ..directory import RunDirectory, utc_now
from ..errors import FtkitError, InputError, Interrupted, RunFailed
from ..files import publish, read_json, write_atomic, write_json
from ..lang import word
from ..records import Exported, ExportRequest, Measurement, Metric, ModelRef, Prediction, Record, Report
from ..report import write_report
from ..text import counted, size
from .card import card_of, dataset_of
from .eval_results import FOLDER as EVAL_RESULTS
from .eval_results import eval_results
from .export_target import (
    MANIFEST,
    PREFIX,
    Target,
    listed_files,
    made_before,
    refuse_small_disk,
    refuse_taken,
    staged,
    target_of,
)
from .exportable import export_findings
from .lock import is_done, what_changed
from .manifest import REPORT_FILES, resealing
from .measure import measure_all
from .signals import StopSignals, what_is

TRIED = 5  # test rows that the program answers which will use the export
_URI = "export:"  # begins the uri of an exported model: a path within the export's folder
_FACTS = "export.json"  # in the measurement's folder: what was exported


@dataclasses.dataclass(frozen=True)
class ExportDone(Record):
    """What an export came to. `systems` maps the report's names to metrics by name.

    `compared` are sentences on each against the trained model; those that are worse are in `lost`, too.

    `files` maps each path in `folder` to its size in bytes. `usage` are {"title", "language", "code"}. `tried` is
    {"program", "rows", "same", ...}: the answers of the program that will use the export; None where there is none here.
    """

    run: str
    folder: str
    systems: dict[str, dict[str, Metric]]
    compared: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    files: dict[str, int] = dataclasses.field(default_factory=dict)
    usage: tuple[dict[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    tried: dict[str, Any] | None = None
    repository: str | None = None


class _Exporting(RunDirectory):
    """The run while its export is measured: the new measurements lie in a hidden folder, so that the run stays sealed."""

    def __init__(self, directory: Path, folder: Path) -> None:
        super().__init__(directory)
        self.folder = folder

    def path(self, *parts: str) -> Path:
        is_new = bool(parts) and parts[0].startswith(PREFIX)
        return super().path(*((".work", "export") if is_new else ()), *parts)

    def resolve_uri(self, uri: str) -> Path:
        if uri.startswith(_URI):
            path = self.folder / uri.removeprefix(_URI)
            if not path.resolve().is_relative_to(self.folder.resolve()):
                raise ValueError(f"{path} is outside the export's folder")
            return path
        return super().resolve_uri(uri)


def request_of(run: RunDirectory, merge: bool, base: str | None, gguf: str | None) -> ExportRequest:
    """Return what is asked for: the options given, else those of the recipe's `export` section."""
    asked = run.recipe.export
    if asked is not None and not (merge or base or gguf):
        return asked
    return ExportRequest(merge or base == "original", base or "trained", gguf)


def export(run: RunDirectory, to: str, request: ExportRequest, console: Console) -> ExportDone:
    """Write the run's model to `to` (a folder, or hf:ORG/NAME), measured on its test rows. Nothing is sent anywhere.

    Raises InputError where the run or the place does not allow it, RunFailed where it did not work, Interrupted after
    Ctrl-C. The run then has the measurements of the export, and its report shows them.
    """
    target = target_of(to)
    model = _model(run)
    backend: Backend = run.recipe.backend.make()
    about = {"run": run.id, "request": request.to_dict(), "model": run.portable(model.to_dict())}
    if made_before(target, about):
        console.say(f"{target.folder} holds this export already: it is not made again")
        return _known(run, target)
    refuse_taken(target)
    changed = what_changed(run, backend)  # first: libraries set variables when they are imported
    _check(backend, request, run, console)
    if changed:
        console.warn(f"{changed}; the export is measured here, and compared with what was measured then")
    refuse_small_disk(target, backend.export_size(request, run))
    with StopSignals() as signals:
        try:
            with run.exclusive():
                return _export(run, target, backend, request, about, console)
        except KeyboardInterrupt:
            signals.winding_down = True
            raise Interrupted("interrupted: no export was written", "export again") from None


def _model(run: RunDirectory) -> ModelRef:
    """Return the trained model of a finished run. Raises InputError where there is none that could be written."""
    record = run.record()
    if record.kind != "run":
        raise InputError(f"{run.dir} holds scored predictions: there is no model to export")
    if not is_done(record):
        raise InputError(f"{run.dir} is not done ({run.status()}): an export is measured against the finished run",
                         f"finish it first: ftkit run --resume {run.dir}")  # fmt: skip
    model = run.model()
    if model is None:
        raise InputError(f"{run.dir} has no trained model: train/model.json is missing", f"see: ftkit verify {run.dir}")
    if model.kind == "remote":
        raise InputError(f"the weights of {model.uri} stay with the provider: there is nothing to export",
                         "use it there by this name; a backend that trains on your machine leaves weights")  # fmt: skip
    place = run.resolve_uri(model.uri)
    if model.kind in ("adapter", "path") and not place.exists():
        raise InputError(f"the trained model is gone: {place}", "take it from a copy of the run directory")
    return model


def _check(backend: Backend, request: ExportRequest, run: RunDirectory, console: Console) -> None:
    findings = list(export_findings(backend, request, run))
    for finding in findings:
        if finding.level != "error":
            console.warn(finding.message) if finding.level == "warning" else console.say(f"  note: {finding.message}")
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        raise InputError("; ".join(e.message for e in errors), "\n  ".join(e.hint for e in errors if e.hint) or None)


# ---------------------------------------------------------------- the steps


def _export(
    run: RunDirectory, target: Target, backend: Backend, request: ExportRequest, about: dict[str, Any], console: Console
) -> ExportDone:
    with staged(target) as folder, tempfile.TemporaryDirectory() as logs:
        shadow = _Exporting(run.dir, folder)
        with console.quiet(Path(logs, "export.log")), console.working(word("export")):
            exported = _written(backend, request, shadow, folder, run, Path(logs, "export.log"))
            names = _measured(shadow, backend, exported, folder, about, console)
            tried = _tried(shadow, backend, exported, names[0], folder, console)
        report = _added(run, shadow, names, console)
        lost, said = (_about(names, texts) for texts in (report.warnings, report.notes))
        text = card_of(run, report, exported, names, target, tried)
        write_atomic(folder / "README.md", text)
        data = dataset_of(run)
        if target.repository and data["hub"]:
            for name in names[:1]:  # a model has one score on a benchmark
                found = eval_results(run, report, name, data["hub"], data["revision"])
                if found:
                    write_atomic(folder / EVAL_RESULTS / f"{data['hub'].rpartition('/')[2]}.yaml", found)
        files = listed_files(folder)
        facts = {"usage": list(exported.usage), "notes": list(exported.notes), "tried": tried}
        facts |= {"compared": [*lost, *said], "lost": list(lost)}
        write_json(folder / MANIFEST, {**about, "systems": names, "made": utc_now(), **facts, "files": files})
    return _done(run, target, names, facts)


def _about(names: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Return the sentences of a report that compare one of these exports with the trained model (`report.exports`)."""
    begins = tuple(
        f"{name} {what} " for name in names for what in ("is worse than", "gives the same answers as", "answers")
    )
    return [text for text in texts if text.startswith(begins)]


def _written(
    backend: Backend, request: ExportRequest, shadow: _Exporting, folder: Path, run: RunDirectory, log: Path
) -> Exported:
    try:
        exported = backend.export(request, shadow, folder)
    except (FtkitError, OSError):
        raise
    except NotImplementedError as error:
        raise InputError(str(error)) from None
    except Exception as error:
        kept = run.scratch("export") / "export.log"
        with contextlib.suppress(OSError):
            shutil.copyfile(log, kept)
        raise RunFailed(f"the export failed: {what_is(error)}", f"what the libraries printed: {kept}") from error
    odd = [name for name in exported.models if not name or not name.replace("-", "").replace("_", "").isalnum()]
    if not exported.models or odd:
        raise RunFailed(f"backend {backend.name!r} exported no model that can be measured ({odd or 'no name'})")
    return exported


def _measured(
    shadow: _Exporting, backend: Backend, exported: Exported, folder: Path, about: dict[str, Any], console: Console
) -> list[str]:
    """Measure each exported model on the test rows, in the hidden folder; return the names of the measurements.

    An export that was killed continues where its measuring stopped, if it wrote the same files.
    """
    measurements = [
        Measurement(f"{PREFIX}{name}", dataclasses.replace(model, uri=f"{_URI}{model.uri}"))
        for name, model in exported.models.items()
    ]
    facts = {**about, "files": listed_files(folder)}
    for measurement in measurements:
        path = shadow.path(measurement.name, _FACTS)
        if not path.exists() or read_json(path) != facts:
            shutil.rmtree(path.parent, ignore_errors=True)
            write_json(path, facts)
    measure_all(shadow, backend, measurements, console.progress, "export")
    return [measurement.name for measurement in measurements]


def _tried(
    shadow: _Exporting, backend: Backend, exported: Exported, measured: str, folder: Path, console: Console
) -> dict[str, Any] | None:
    """Compare the answers of the program that will use the export with the run's own, and with those that were measured.

    The weights may change an answer against the run; a wrong template changes it against what was measured, too. None
    where there is no such program here.
    """
    examples = shadow.task.test[:TRIED]
    console.phase("trying the export")
    found = backend.answer_exported(exported, examples, shadow, folder)
    if found is None:
        return None
    program, answers = found
    own = {p.example_id: p for p in shadow.predictions("tuned") if p.sample == 0}
    ours = [own[e.id] for e in examples]
    exports = {p.example_id: p for p in shadow.predictions(measured) if p.sample == 0}
    rows = [_row(p, own[p.example_id]) for p in answers]
    as_measured = sum(_row(p, exports[p.example_id])["same"] for p in answers)
    metric = shadow.primary
    values = [_value(shadow.evaluate(examples, side), metric) for side in (ours, answers)]
    return {"program": program, "rows": len(answers), "same": sum(row["same"] for row in rows), "same_as_measured": as_measured,
            "answers": rows,
            "metric": metric, "run": values[0], "export": values[1]}  # fmt: skip


def _row(answer: Prediction, own: Prediction) -> dict[str, Any]:
    same = answer.error is None and answer.text.strip() == own.text.strip()
    return {
        "example_id": answer.example_id,
        "run": own.text,
        "export": answer.text,
        "error": answer.error,
        "same": same,
    }


def _value(metrics: Sequence[Metric], name: str) -> float | None:
    return next((m.value for m in metrics if m.name == name), None)


def _added(run: RunDirectory, shadow: _Exporting, names: Sequence[str], console: Console) -> Report:
    """Move the measurements into the run, write its report with them, and seal it again."""
    files = [f"{name}/{file.name}" for name in names for file in shadow.path(name).iterdir()]
    older = [f"{name}/{file.name}" for name in names if run.path(name).is_dir() for file in run.path(name).iterdir()]
    with resealing(run.dir, ["run.json", *REPORT_FILES, *files, *older]) as wrong:
        for name in names:
            publish(shadow.path(name), run.path(name))
        record = run.record()
        run.save_record(dataclasses.replace(record, systems=tuple(dict.fromkeys([*record.systems, *names]))))
        report = write_report([run], run.dir, brief=run.path("brief.html").exists())
    shutil.rmtree(run.path(".work"), ignore_errors=True)
    if wrong:
        console.warn(f"{run.dir} is not as it was sealed: {wrong[0]}; its seal stays as it is: ftkit verify {run.dir}")
    return report


# ---------------------------------------------------------------- the lines for the terminal


def _done(run: RunDirectory, target: Target, names: Sequence[str], facts: Mapping[str, Any]) -> ExportDone:
    place = target.repository or str(target.folder)
    files = {name: entry["size"] for name, entry in listed_files(target.folder).items()}
    files[MANIFEST] = os.path.getsize(target.folder / MANIFEST)
    return ExportDone(
        run=str(run.dir),
        folder=str(target.folder),
        systems={name: run.metrics(name) for name in names},
        compared=tuple(facts["compared"]),
        lost=tuple(facts["lost"]),
        files=files,
        usage=tuple({**use, "code": use["code"].replace("{folder}", place)} for use in facts["usage"]),
        notes=tuple(facts["notes"]),
        tried=facts["tried"],
        repository=target.repository,
    )


def _known(run: RunDirectory, target: Target) -> ExportDone:
    """Return what is known of an export that was made before."""
    facts = read_json(target.folder / MANIFEST)
    names = [name for name in facts["systems"] if run.path(name, "metrics.json").exists()]
    return _done(run, target, names, facts)


def summary_lines(done: ExportDone) -> Iterator[str]:
    """Yield what the terminal says of an export, one line each."""
    total = sum(done.files.values())
    yield f"{done.folder}: {counted(len(done.files), 'file', 'files')}, {size(total)}"
    yield from (text for text in done.compared if text not in done.lost)
    yield from (f"note: {note}" for note in done.notes)
    if done.tried:
        t = done.tried
        yield f"{t['program']} answers {t['same']} of {t['rows']} test rows as the run, {t['same_as_measured']} as the measured export"
        for row in (row for row in t["answers"] if not row["same"]):
            yield f"  {row['example_id']}: the run {row['run']!r}; {t['program']} {row['error'] or row['export']!r}"


__all__ = ["ExportDone", "export", "request_of", "summary_lines"]
