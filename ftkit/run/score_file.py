"""`ftkit score`: metrics for predictions that were made anywhere, kept as a run of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..api import Evaluator
from ..data.formats import Reading, read_file
from ..data.task import fingerprint
from ..data.values import Cell, kept, text_of, texts_of
from ..directory import RunDirectory, utc_now
from ..errors import InputError
from ..files import file_digest, read_jsonl, write_jsonl
from ..recipe.keys import as_delimiter, as_encoding
from ..records import Example, Message, Prediction, RunRecord, StageRecord, Task
from ..score import score_all, settings_of
from .manifest import seal

# Column names that other people's files use, the likeliest first.
_USUAL = {
    "prediction": ("prediction", "predicted", "generated", "output", "response", "completion", "text", "answer"),
    "target": ("target", "targets", "reference", "references", "summary", "gold", "label", "expected", "answer"),
    "input": ("input", "dialogue", "question", "prompt", "document", "source", "text"),
    "id": ("id", "example_id", "idx"),
}
_MEASUREMENT = "predictions"


def score_file(
    path: Path,
    evaluators: Sequence[Evaluator],
    out: Path,
    name: str | None = None,
    columns: dict[str, str | None] | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> RunDirectory:
    """Score a .jsonl, .json, .csv, .tsv (also .gz) or .parquet file of predictions and return the new run directory.

    `columns` names the prediction, target, input and id columns; those left out are looked for by their
    usual names. A missing prediction (null) is a failed one: counted, never scored as an empty answer.
    `delimiter` and `encoding` are as in a recipe's `dataset`. Raises InputError with the row or line of a mistake.
    """
    rows = read_file(path, _reading(delimiter, encoding))
    if not rows:
        raise InputError(f"{path} holds no rows")
    have = sorted({str(key) for row in rows for key in row})
    found = _columns(path, have, columns or {})
    targets = None
    if found["target"] is None:
        targets = _targets_of_run(path)
        if targets is None:
            raise InputError(
                f"{path}: which column holds the reference?", f"name it with --target; there are: {', '.join(have)}"
            )
    examples, predictions = [], []
    for number, row in enumerate(rows):

        def cell(role: str, number: int = number) -> Cell:
            return Cell(str(path), "all", number + 1, found[role] or role)

        example_id = text_of(row.get(found["id"] or ""), cell("id")) or f"row-{number}"
        if targets is not None:
            example = targets.get(example_id)
            if example is None:
                raise InputError(
                    f"{path}: row {number + 1} speaks of example {example_id!r}, which data/test.jsonl lacks"
                )
        else:
            value = row.get(found["target"] or "")
            several = isinstance(value, list) and not any(isinstance(item, dict) for item in value)
            answers = (texts_of if several else _one)(value, cell("target"))
            text = text_of(row.get(found["input"] or ""), cell("input"))
            others = [key for key in row if key not in found.values()]
            meta = {key: kept(row[key], Cell(str(path), "all", number + 1, key)) for key in others}
            example = Example(example_id, (Message("user", text),), answers, text, meta)
        answer = row.get(found["prediction"] or "")
        sample = row.get("sample") if str(row.get("sample")).isdecimal() else 0
        error = row.get("error") if isinstance(row.get("error"), str) else None
        error = error or ("missing" if answer is None else None)
        examples.append(example)
        predictions.append(Prediction(example_id, text_of(answer, cell("prediction")), int(sample or 0), error=error))
    _check_ids(path, examples, predictions)
    source = {"path": path.name, "ids": "column" if found["id"] else "made up"}
    return _store(examples, predictions, evaluators, out, name or path.stem, source)


def _one(value: Any, where: Cell) -> tuple[str, ...]:
    return (text_of(value, where),)


def _reading(delimiter: str | None, encoding: str | None) -> Reading:
    """Return how the file is read. Raises InputError for a delimiter or an encoding that there is not."""
    checked = {}
    for name, value, check in (("delimiter", delimiter, as_delimiter), ("encoding", encoding, as_encoding)):
        try:
            checked[name] = check(value)
        except ValueError as error:
            raise InputError(f"--{name} {value}: {error}") from None
    return Reading(**checked, option="--{} '{}'")


def _columns(path: Path, have: Sequence[str], named: dict[str, str | None]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    taken = {column for column in named.values() if column}
    for role, usual in _USUAL.items():
        column = named.get(role)
        if column is not None and column not in have:
            raise InputError(f"{path} has no column {column!r}", f"there are: {', '.join(have)}")
        free = [c for c in usual if c in have and c not in found.values() and c not in taken]
        found[role] = column or (free[0] if free else None)
    if found["prediction"] is None:
        raise InputError(
            f"{path}: which column holds the prediction?", f"name it with --prediction; there are: {', '.join(have)}"
        )
    return found


def _targets_of_run(path: Path) -> dict[str, Example] | None:
    """Return the rows that a run directory keeps beside its predictions, if `path` is in one."""
    folder = path.resolve().parent
    data = folder / "examples.jsonl"  # rows of this measurement's own
    if not data.exists():
        data = folder.parent / "data" / "test.jsonl"
    if not data.exists():
        return None
    return {e.id: e for e in map(Example.from_dict, read_jsonl(data))}


def _check_ids(path: Path, examples: Sequence[Example], predictions: Sequence[Prediction]) -> None:
    seen = set()
    for p in predictions:
        if (p.example_id, p.sample) in seen:
            raise InputError(
                f"{path}: example {p.example_id!r} occurs twice", "ids must be unique; name another column with --id"
            )
        seen.add((p.example_id, p.sample))


def _store(
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    evaluators: Sequence[Evaluator],
    out: Path,
    name: str,
    source: dict[str, Any],
) -> RunDirectory:
    unique = tuple({e.id: e for e in examples}.values())
    scores, metrics = score_all(evaluators, unique, predictions)  # first: what cannot be scored leaves nothing behind
    run = RunDirectory.create(out, name)
    run.save_task(Task(name, {"test": unique}, {"test": fingerprint(unique)}, prompt_hash="", source=source))
    write_jsonl(run.path(_MEASUREMENT, "predictions.jsonl"), (p.to_dict() for p in predictions))
    write_jsonl(run.path(_MEASUREMENT, "scores.jsonl"), (s.to_dict() for s in scores))
    settings: dict[str, Any] = {
        "rows": fingerprint(unique),
        "split": "test",
        "prompt": None,
        "generation": None,
        "evaluators": settings_of(evaluators),
        "primary": evaluators[0].primary,
    }
    failed = sum(p.error is not None for p in predictions)
    sha256 = {file: file_digest(run.path(_MEASUREMENT, file)) for file in ("predictions.jsonl", "scores.jsonl")}
    cost = {"n_failed": failed}
    run.write_metrics(_MEASUREMENT, metrics, settings=settings, role="external", cost=cost, sha256=sha256)
    stage = StageRecord("score", "done", utc_now())
    warnings = tuple(f.message for e in evaluators for f in e.check() if f.level == "warning")
    record = RunRecord(run.id, name, "done", stage.started, kind="score", stages=(stage,), systems=(_MEASUREMENT,))
    run.save_record(replace(record, warnings=warnings))
    seal(run)
    return run
