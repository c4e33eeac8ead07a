"""Rows to a Task: take columns, put the prompt around them, cut splits.

Which rows make up a split depends on the data alone, never on a seed: rows are ordered by the
SHA-256 of their text, so that runs with other seeds stay comparable.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import InputError, Problem, RecipeError
from ..files import digest
from ..records import Example, Message, Task
from ..text import counted, nearest, normalise
from .audit import audit, without_leaked
from .chats import Refused, chat_example, holds_chats, prompt_beside_chats, refuse, refused_rows, row_text
from .rows import Row, read_rows

if TYPE_CHECKING:
    from ..recipe.keys import Columns, DatasetConfig
    from ..recipe.load import Recipe

Wanted = Mapping[str, str | int | float]

SPLITS = ("train", "validation", "test")


# ---------------------------------------------------------------- splits


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
    count = _count(wanted, len(rows))
    if count > len(rows):
        raise InputError(f"{count} rows are wanted and there are only {len(rows)}")
    return sorted(sorted(range(len(rows)), key=lambda i: _order(rows[i]))[:count])


def _count(wanted: str | int | float, rows: int) -> int:
    return int(wanted) if isinstance(wanted, int) else round(float(wanted) * rows)


def cut_splits(
    rows: dict[str, list[Row]], wanted: Wanted, input_of: Any
) -> tuple[dict[str, list[tuple[int, Row]]], list[str], list[Problem]]:
    """Return (index in the source, row) per split, notes on how splits were cut, and what is wrong with `wanted`.

    A split that the source lacks is cut out of train (or of the only table): test first, then
    validation, in hash order of the input, so that rows with one input stay together.
    """
    notes: list[str] = []
    problems = missing_splits(rows, wanted)
    wrong = {problem.key for problem in problems}
    result: dict[str, list[tuple[int, Row]]] = {}
    pool_name = "all" if "all" in rows else "train"
    pool = list(enumerate(rows.get(pool_name, [])))
    for split in ("test", "validation"):
        if split not in wanted or split in rows or f"dataset.splits.{split}" in wrong:
            continue
        count = _count(wanted[split], len(rows.get(pool_name, [])))
        if count >= len(pool):
            message = f"{count} rows are wanted and there are only {len(pool)} to cut from"
            problems.append(_problem(f"dataset.splits.{split}", message))
            continue
        keys = {
            i: hashlib.sha256(normalise(input_of(row)).encode("utf-8", "surrogatepass")).hexdigest() for i, row in pool
        }
        pool.sort(key=lambda item: (keys[item[0]], _order(item[1])))
        taken = {keys[i] for i, _ in pool[:count]}
        result[split] = sorted(pool[:count], key=lambda item: item[0])
        dropped = [item for item in pool[count:] if keys[item[0]] in taken]
        pool = sorted((item for item in pool[count:] if keys[item[0]] not in taken), key=lambda item: item[0])
        notes.append(
            f"{split}: {count} rows cut from {pool_name}"
            + (f"; {counted(len(dropped), 'repeat', 'repeats')} left out" if dropped else "")
        )
    for split in SPLITS:
        if split in result or split not in wanted or (split != "train" and split not in rows):
            continue
        source = pool if split == "train" else list(enumerate(rows[split]))
        try:
            result[split] = [source[i] for i in select([row for _, row in source], wanted[split])]
        except InputError as error:
            cut = " and ".join(s for s in ("validation", "test") if s in result and s not in rows)
            if split == "train" and cut:
                message = f"{wanted[split]} rows are wanted and only {len(source)} are left after {cut} were cut"
                hint = f"write `all` for those that are left, or ask for fewer {cut} rows"
                problems.append(_problem("dataset.splits.train", message, hint))
            else:
                problems.append(_problem(f"dataset.splits.{split}", error.message))
    return {s: result[s] for s in SPLITS if s in result}, notes, problems


# ---------------------------------------------------------------- what a recipe asks for and the data lack


def _problem(key: str, message: str, hint: str | None = None) -> Problem:
    return Problem(f"{key}: {message}", key=key, hint=hint)


def missing_splits(found: Iterable[str], wanted: Wanted) -> list[Problem]:
    """Return a problem for each split that is wanted whole and that the source does not have."""
    has = "it is one table" if set(found) == {"all"} else f"it has {', '.join(sorted(found))}"
    return [
        _problem(f"dataset.splits.{split}", f"the data has no {split} split ({has})",
                 f"say how many: --set dataset.splits.{split}=200")
        for split in ("test", "validation")
        if split not in found and wanted.get(split) == "all"
    ]  # fmt: skip


def named_columns(columns: Columns) -> dict[str, str]:
    """Return the columns that the recipe reads, by key (`dataset.columns.input`, `dataset.columns.meta.0`, ...)."""
    holds = ("messages",) if columns.messages else ("input", "instruction")
    keys = (*holds, "target", "targets", "id", "tools", "system")
    named = {key: getattr(columns, key) for key in keys} | {f"meta.{i}": name for i, name in enumerate(columns.meta)}
    return {f"dataset.columns.{key}": name for key, name in named.items() if name}


def missing_columns(columns: Columns, have: Mapping[str, set[str]]) -> list[Problem]:
    """Return a problem for each column that the rows of some split lack; `have` maps splits to their columns."""
    problems = []
    for key, name in named_columns(columns).items():
        lacking = [split for split in ("all", *SPLITS) if have.get(split) and name not in have[split]]
        if lacking:
            there = sorted(set.union(*(have[split] for split in lacking)))
            rows = "the rows have" if len(lacking) == len(have) else f"the {' and '.join(lacking)} rows have"
            near = nearest(name, there)
            hint = (f"did you mean `{near}`?\n  " if near else "") + f"they have: {', '.join(there)}"
            problems.append(_problem(key, f"{rows} no column {name!r}", hint))
    return problems


# ---------------------------------------------------------------- rows to examples


def load_task(recipe: Recipe) -> tuple[Task, dict[str, Any]]:
    """Read the recipe's data and return the Task and its audit (all but token lengths).

    Raises RecipeError with all that the recipe asks for and the data lack; InputError where there are no data.
    """
    dataset = recipe.dataset
    rows, source = read_rows(dataset)
    wanted = dict(dataset.splits)
    problems = missing_columns(dataset.columns, {s: {str(n) for row in part for n in row} for s, part in rows.items()})
    problems += prompt_beside_chats(recipe)
    cut, notes, unfit = cut_splits(rows, wanted, lambda row: _input_text(dataset, row))
    problems += unfit
    if not cut.get("test") and "dataset.splits.test" not in {p.key for p in unfit}:
        problems.append(_problem("dataset.splits.test", "there are no test rows to measure on"))
    if problems:
        raise RecipeError([_placed(recipe, problem) for problem in problems])
    refused: dict[str, Refused] = {}
    splits = {split: _examples(recipe, split, part, refused) for split, part in cut.items()}
    if refused:
        raise RecipeError([_placed(recipe, problem) for problem in refused_rows(refused)])
    dropped = 0
    if dataset.drop_leaked and "train" in splits:
        kept = without_leaked(splits)
        dropped = len(splits["train"]) - len(kept)
        splits["train"] = kept
        notes.append(
            f"train: {counted(dropped, 'row', 'rows')} left out: in validation or test there is the same input"
        )
    report = (
        audit(splits, dataset.columns.messages is not None)
        | {"notes": notes}
        | ({"dropped_from_train": dropped} if dataset.drop_leaked else {})
    )
    task = Task(
        name=recipe.name,
        splits=splits,
        fingerprints={split: fingerprint(part) for split, part in splits.items()},
        prompt_hash=digest(recipe.prompt.model_dump(mode="json")),
        source={**source, "splits": wanted, "notes": notes},
        generation=recipe.generation,
    )
    return task, report


def _placed(recipe: Recipe, problem: Problem) -> Problem:
    file, line, column = recipe.position(problem.key or "")
    return replace(problem, file=file, line=line, column=column)


def fingerprint(examples: Iterable[Example]) -> str:
    """Return the hash of rows (ids, inputs, targets, in order); the prompt is not in it."""
    return digest([[e.id, e.input, list(e.targets), *_beside(e)] for e in examples])


def _beside(example: Example) -> list[Any]:
    """Return what an example holds beside text, if anything: the tools, and the tool calls of the answer."""
    answer = example.answer.asked() if example.answer is not None else {}
    calls = {key: value for key, value in answer.items() if key not in ("role", "content")}
    return [list(example.tools), calls] if example.tools or calls else []


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else str(value)


def _targets(value: Any, column: str) -> tuple[str, ...]:
    if value is None or isinstance(value, str):
        return (_text(value),)
    if not isinstance(value, list | tuple):
        raise InputError(f"dataset.columns.targets: {column!r} must hold a list of texts, not {value!r:.50}")
    return tuple(map(_text, value))


def _input_text(dataset: DatasetConfig, row: Row) -> str:
    if holds_chats(dataset):
        return row_text(dataset, row)
    return _text(row.get(dataset.columns.input or ""))


def _examples(
    recipe: Recipe, split: str, rows: Sequence[tuple[int, Row]], refused: dict[str, Refused]
) -> tuple[Example, ...]:
    """Return the rows of a split as examples; what is wrong with rows goes to `refused`."""
    columns = recipe.dataset.columns
    seen: Counter[str] = Counter()
    examples = []
    for index, row in rows:
        key = columns.id or ("id" if "id" in row else None)
        name = _text(row.get(key)) if key else ""
        name = name or f"{split}-{index}"
        original = name
        while name in seen:  # ids name predictions: they must be unique ("a#2" may be another row's own)
            seen[original] += 1
            name = f"{original}#{seen[original]}"
        seen[name] = 1
        meta = {column: json.loads(json.dumps(row.get(column), default=str)) for column in columns.meta}
        targets = _row_targets(recipe.dataset, row)
        if holds_chats(recipe.dataset):
            try:
                example = chat_example(recipe, split, row, targets)
            except InputError as error:
                refuse(refused, error, split, index, name)
                continue
            examples.append(replace(example, id=name, meta=meta))
            continue
        text = _input_text(recipe.dataset, row)
        messages = [Message("user", recipe.prompt.render(text))]
        if recipe.prompt.system:
            messages = [Message("system", recipe.prompt.system), *messages]
        examples.append(Example(name, tuple(messages), targets or ("",), text, meta))
    return tuple(examples)


def _row_targets(dataset: DatasetConfig, row: Row) -> tuple[str, ...] | None:
    """Return the right answers that a column holds; None where the chat's last turn is the answer."""
    columns = dataset.columns
    if columns.targets:
        return _targets(row.get(columns.targets), columns.targets) or ("",)
    return (_text(row.get(columns.target)),) if columns.target else None
