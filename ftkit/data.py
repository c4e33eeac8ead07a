"""Rows to a Task: read them, take columns, put the prompt around them, cut splits, audit.

Which rows make up a split depends on the data alone, never on a seed: rows are ordered by the
SHA-256 of their text, so that runs with other seeds stay comparable.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .hub import explain, prefer_cache_when_unreachable
from .records import Example, Message, Task
from .store import digest

if TYPE_CHECKING:
    from .recipe import DatasetConfig, Recipe

Row = Mapping[str, Any]

SPLITS = ("train", "validation", "test")
_FILE_SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
                "validation": "validation", "dev": "validation", "test": "test"}  # fmt: skip
_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


# ---------------------------------------------------------------- reading


def read_rows(dataset: DatasetConfig) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """Return rows per split and where they came from.

    A source without splits (a single file) comes back as {"all": rows}. Raises InputError with the
    way out where the source cannot be had.
    """
    if dataset.loader is not None:
        loader = dataset.loader.make()
        rows = {split: list(part) for split, part in loader.load().items()}
        return rows, {"path": dataset.path, "loader": dataset.loader.options.model_dump(mode="json"), **loader.about()}
    path = Path(dataset.path).expanduser()
    if path.is_dir():
        return _read_folder(path), {"path": str(path)}
    if path.is_file():
        return {"all": read_file(path)}, {"path": str(path)}
    if path.is_absolute() or path.suffix in _SUFFIXES or dataset.path.startswith((".", "~")):
        raise InputError(f"dataset.path: there is no {path}", "it is resolved against the folder of the recipe")
    return _read_hub(dataset)


def read_file(path: Path) -> list[Row]:
    """Return the rows of one .json (a list of objects), .jsonl, .csv or .parquet file."""
    if path.suffix not in _SUFFIXES:
        raise InputError(f"{path}: cannot read {path.suffix or 'a file without suffix'}", f"use {', '.join(_SUFFIXES)}")
    try:
        if path.suffix == ".parquet":
            rows = _read_parquet(path)
        elif path.suffix == ".csv":
            csv.field_size_limit(1 << 30)
            with open(path, encoding="utf-8-sig", newline="") as file:
                rows = _csv_rows(path, csv.DictReader(file))
        elif path.suffix == ".jsonl":
            with open(path, encoding="utf-8-sig", newline="\n") as file:
                rows = [_json_line(path, n, line) for n, line in enumerate(file, 1) if line.strip()]
        else:
            rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8", "convert it: iconv -t utf-8") from None
    except (ValueError, csv.Error, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: expected a list of objects, one per row")
    return rows


def _csv_rows(path: Path, reader: csv.DictReader[str]) -> list[Any]:
    rows = []
    for row in reader:
        if None in row:  # the fields beyond the header
            raise InputError(f"{path}:{reader.line_num}: more fields than the header names", "quote what holds a comma")
        rows.append(row)
    return rows


def _json_line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}:{number}: not JSON: {error}") from None


def _read_parquet(path: Path) -> list[Any]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{path}: reading .parquet needs pyarrow", "pip install 'ftkit[data]'") from None
    try:
        rows: list[Any] = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return rows


def _read_folder(folder: Path) -> dict[str, list[Row]]:
    files: dict[str, list[Path]] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES):
        split = _FILE_SPLITS.get(re.split(r"[-_.]", path.stem.lower())[0])
        if split:
            files.setdefault(split, []).append(path)
    for split, paths in files.items():
        if len({p.suffix for p in paths}) > 1:  # most likely the same rows twice
            names = ", ".join(p.name for p in paths)
            raise InputError(f"{folder} holds its {split} rows in several formats: {names}", "keep one of them")
    if not files:
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise InputError(f"{folder} holds no train, validation or test file", f"found: {found}")
    return {split: [row for path in paths for row in read_file(path)] for split, paths in files.items()}


def _read_hub(dataset: DatasetConfig) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    prefer_cache_when_unreachable()
    try:
        import datasets
    except ImportError:
        raise InputError(f"dataset {dataset.path!r} is on the hub: reading it needs the `datasets` library",
                         "pip install 'ftkit[data]'") from None  # fmt: skip
    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(dataset.path, dataset.name, revision=dataset.revision)
    except Exception as error:  # the library raises a dozen unrelated types for one failed download
        raise explain("dataset", dataset.path, error) from None
    rows = {_FILE_SPLITS.get(split, split): list(part) for split, part in found.items()}
    info = next(iter(found.values())).info
    urls = list(info.download_checksums or {})
    commit = next((m.group(1) for url in urls if (m := re.search(r"@([0-9a-f]{40})/", url))), None)
    return rows, {"path": dataset.path, "name": dataset.name, "revision": commit or dataset.revision}


# ---------------------------------------------------------------- splits


def normalise(text: str) -> str:
    """Return `text` in Unicode NFC with white space collapsed: what counts as the same input."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _order(row: Row) -> str:
    text = json.dumps(row, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def select(rows: Sequence[Row], wanted: str | int | float) -> list[int]:
    """Return the indices of the wanted rows, ascending: "all", a count, or a fraction of them.

    The first ones in hash order are taken, so that 200 of a split are a part of its 400.
    Raises InputError where there are fewer rows than wanted.
    """
    if wanted == "all":
        return list(range(len(rows)))
    count = int(wanted) if isinstance(wanted, int) else round(float(wanted) * len(rows))
    if count > len(rows):
        raise InputError(f"{count} rows are wanted and there are only {len(rows)}")
    return sorted(sorted(range(len(rows)), key=lambda i: _order(rows[i]))[:count])


def cut_splits(
    rows: dict[str, list[Row]], wanted: Mapping[str, str | int | float], input_of: Any
) -> tuple[dict[str, list[tuple[int, Row]]], list[str]]:
    """Return (index in the source, row) per split, and notes on how splits were cut.

    A split that the source lacks is cut out of train (or of the only table): test first, then
    validation, in hash order of the input, so that rows with one input stay together.
    """
    notes = []
    result: dict[str, list[tuple[int, Row]]] = {}
    pool_name = "all" if "all" in rows else "train"
    pool = list(enumerate(rows.get(pool_name, [])))
    missing = [s for s in ("test", "validation") if s in wanted and s not in rows]
    for split in missing:
        size = wanted[split]
        if size == "all":
            hint = f"say how many: --set dataset.splits.{split}=200"
            raise InputError(
                f"dataset.splits.{split}: the data has no {split} split (it has {', '.join(sorted(rows))})", hint
            )
        count = int(size) if isinstance(size, int) else round(float(size) * len(rows.get(pool_name, [])))
        if count >= len(pool):
            raise InputError(
                f"dataset.splits.{split}: {count} rows are wanted and there are only {len(pool)} to cut from"
            )
        keys = {
            i: hashlib.sha256(normalise(input_of(row)).encode("utf-8", "surrogatepass")).hexdigest() for i, row in pool
        }
        pool.sort(key=lambda item: (keys[item[0]], _order(item[1])))
        taken = {keys[i] for i, _ in pool[:count]}
        result[split] = sorted(pool[:count], key=lambda item: item[0])
        dropped = [item for item in pool[count:] if keys[item[0]] in taken]
        pool = sorted((item for item in pool[count:] if keys[item[0]] not in taken), key=lambda item: item[0])
        notes.append(
            f"{split}: {count} rows cut from {pool_name}" + (f"; {len(dropped)} repeats left out" if dropped else "")
        )
    for split in SPLITS:
        if split in result or split not in wanted:
            continue
        source = pool if split == "train" else list(enumerate(rows[split]))
        try:
            result[split] = [source[i] for i in select([row for _, row in source], wanted[split])]
        except InputError as error:
            raise InputError(f"dataset.splits.{split}: {error.message}") from None
    return {s: result[s] for s in SPLITS if s in result}, notes


# ---------------------------------------------------------------- rows to examples


def load_task(recipe: Recipe) -> tuple[Task, dict[str, Any]]:
    """Read the recipe's data and return the Task and its audit (all but token lengths)."""
    dataset = recipe.dataset
    rows, source = read_rows(dataset)
    wanted = dict(dataset.splits)
    for split, part in rows.items():
        _check_columns(dataset, split, part)
    cut, notes = cut_splits(rows, wanted, lambda row: _input_text(dataset, row))
    splits = {split: _examples(recipe, split, part) for split, part in cut.items()}
    if not splits.get("test"):
        raise InputError("dataset.splits.test: there are no test rows to measure on")
    report = audit(splits)
    report["notes"] = notes
    if dataset.drop_leaked and "train" in splits:
        held = {normalise(e.input) for s in ("validation", "test") for e in splits.get(s, ())}
        kept = tuple(e for e in splits["train"] if normalise(e.input) not in held)
        report["dropped_from_train"] = len(splits["train"]) - len(kept)
        splits["train"] = kept
    task = Task(
        name=recipe.name,
        splits=splits,
        fingerprints={split: fingerprint(part) for split, part in splits.items()},
        prompt_hash=digest(recipe.prompt.model_dump(mode="json")),
        source={**source, "splits": wanted, "notes": notes},
    )
    return task, report


def fingerprint(examples: Iterable[Example]) -> str:
    """Return the hash of rows (ids, inputs, targets, in order); the prompt is not in it."""
    return digest([[e.id, e.input, list(e.targets)] for e in examples])


def _check_columns(dataset: DatasetConfig, split: str, rows: Sequence[Row]) -> None:
    if not rows:
        return
    columns = dataset.columns
    have = sorted({str(name) for row in rows[:100] for name in row})
    named = [columns.messages] if columns.messages else [columns.input]
    named += [columns.id] if columns.id else []
    named += list(columns.meta)
    named += [name for name in (columns.targets, columns.target) if name]
    for name in named:
        if name and name not in have:
            raise InputError(
                f"dataset.columns: the {split} rows have no column {name!r}", f"they have: {', '.join(have)}"
            )


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else str(value)


def _targets(value: Any, column: str) -> tuple[str, ...]:
    if value is None or isinstance(value, str):
        return (_text(value),)
    if not isinstance(value, list | tuple):
        raise InputError(f"dataset.columns.targets: {column!r} must hold a list of texts, not {value!r:.50}")
    return tuple(map(_text, value))


def _input_text(dataset: DatasetConfig, row: Row) -> str:
    columns = dataset.columns
    if not columns.messages:
        return _text(row.get(columns.input or ""))
    turns = _prompt_turns(row, columns.messages)
    return "\n".join(f"{turn.role}: {turn.content}" for turn in turns)


def _turns(row: Row, column: str) -> list[Message]:
    turns = row.get(column) or []
    try:
        return [Message(str(t["role"]), _text(t["content"])) for t in turns]
    except (TypeError, KeyError):
        raise InputError(f"dataset.columns.messages: {column!r} must hold a list of {{role, content}}") from None


def _prompt_turns(row: Row, column: str) -> list[Message]:
    turns = _turns(row, column)
    return turns[:-1] if turns and turns[-1].role == "assistant" else turns


def _examples(recipe: Recipe, split: str, rows: Sequence[tuple[int, Row]]) -> tuple[Example, ...]:
    dataset, columns = recipe.dataset, recipe.dataset.columns
    seen: Counter[str] = Counter()
    examples = []
    for index, row in rows:
        text = _input_text(dataset, row)
        if columns.messages:
            messages = _prompt_turns(row, columns.messages)
            answer = _turns(row, columns.messages)[len(messages) :]
        else:
            messages, answer = [Message("user", recipe.prompt.render(text))], []
        if recipe.prompt.system:
            messages = [Message("system", recipe.prompt.system), *messages]
        if columns.targets:
            targets = _targets(row.get(columns.targets), columns.targets)
        elif columns.target:
            targets = (_text(row.get(columns.target)),)
        else:
            targets = (answer[0].content if answer else "",)
        key = columns.id or ("id" if "id" in row else None)
        name = _text(row.get(key)) if key else ""
        name = name or f"{split}-{index}"
        seen[name] += 1
        if seen[name] > 1:  # ids name predictions: they must be unique
            name = f"{name}#{seen[name]}"
        meta = {column: json.loads(json.dumps(row.get(column), default=str)) for column in columns.meta}
        examples.append(Example(name, tuple(messages), targets or ("",), text, meta))
    return tuple(examples)


# ---------------------------------------------------------------- audit


def audit(splits: Mapping[str, Sequence[Example]]) -> dict[str, Any]:
    """Return what is worth knowing about the data before spending anything on it.

    Per split: rows, ids with empty inputs or targets, rows whose input occurred before in the split.
    `leaks`: rows of test and validation whose input also occurs in train. Inputs are compared in
    NFC with white space collapsed. `scripts`: share of letters per writing system, over a sample.
    """
    inputs = {split: [normalise(e.input) for e in part] for split, part in splits.items()}
    train = set(inputs.get("train", ()))
    report: dict[str, Any] = {"splits": {}, "leaks": {}}
    for split, part in splits.items():
        report["splits"][split] = {
            "rows": len(part),
            "empty_inputs": [e.id for e, text in zip(part, inputs[split], strict=True) if not text],
            "empty_targets": [e.id for e in part if not any(t.strip() for t in e.targets)],
            "repeats": len(part) - len(set(inputs[split])),
            "scripts": scripts(e.input for e in part[:1000]),
        }
        if split != "train" and train:
            leaked = [e.id for e, text in zip(part, inputs[split], strict=True) if text in train and text]
            report["leaks"][split] = {"rows": len(leaked), "ids": leaked[:100]}
    return report


def audit_warnings(report: Mapping[str, Any]) -> list[str]:
    """Return the audit's findings that a reader must see, one sentence each."""
    warnings = []
    for split, facts in report["splits"].items():
        for kind in ("empty_inputs", "empty_targets"):
            if facts[kind]:
                ids = ", ".join(facts[kind][:5]) + (", ..." if len(facts[kind]) > 5 else "")
                warnings.append(f"{split}: {len(facts[kind])} {kind.replace('_', ' ')} (id {ids})")
    if not report.get("dropped_from_train"):
        for split, leak in report["leaks"].items():
            if leak["rows"]:
                warnings.append(f"{split}: {leak['rows']} rows have an input that also occurs in train; "
                                "`dataset.drop_leaked: true` takes them out of train")  # fmt: skip
    return warnings


def scripts(texts: Iterable[str]) -> dict[str, float]:
    """Return the share of each writing system among the letters of `texts`, largest first."""
    counts: Counter[str] = Counter()
    for text in texts:
        for char, n in Counter(text[:2000]).items():
            if char.isalpha():
                counts["LATIN" if char.isascii() else unicodedata.name(char, "UNKNOWN").split()[0].split("-")[0]] += n
    total = sum(counts.values())
    return {name.title(): round(n / total, 4) for name, n in counts.most_common() if n / total >= 0.0005}
