"""Rows to a Task: take columns, put the prompt around them, cut splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import InputError, Problem, RecipeError
from ..files import digest
from ..records import Example, Message, Task
from ..text import counted, nearest
from .audit import audit, without_leaked
from .chats import Refused, chat_example, holds_chats, prompt_beside_chats, refuse, refused_rows, row_text
from .formats import Row
from .rows import read_rows
from .splits import SPLITS, cut_splits, source_of, split_problem
from .values import Cell, kept, text_of, texts_of

if TYPE_CHECKING:
    from ..recipe.keys import Columns, Prompt
    from ..recipe.load import Recipe

# ---------------------------------------------------------------- what a recipe asks for and the data lack


def _problem(key: str, message: str, hint: str | None = None) -> Problem:
    return Problem(f"{key}: {message}", key=key, hint=hint)


def named_columns(columns: Columns, prompt: Prompt | None) -> list[tuple[str, str]]:
    """Return (key, column) of each column that the recipe reads: ("dataset.columns.input", "question"), ...

    `prompt` None: it is not known whether its template reads the input.
    """
    reads_input = columns.instruction is not None or (prompt is not None and prompt.reads_input)
    keys = ["messages"] if columns.messages else ["input"] if reads_input else []
    named = [
        (key, getattr(columns, key)) for key in (*keys, "instruction", "target", "targets", "id", "tools", "system")
    ]
    named += [(f"meta.{i}", name) for i, name in enumerate(columns.meta)]
    own = prompt.columns if prompt is not None and not columns.messages else ()
    return [(f"dataset.columns.{key}", name) for key, name in named if name] + [("prompt.template", n) for n in own]


def missing_columns(named: Sequence[tuple[str, str]], have: Mapping[str, set[str]]) -> list[Problem]:
    """Return a problem for each of the `named_columns` that the rows of some split lack; `have`: columns by split."""
    problems = []
    for key, name in named:
        lacking = [split for split in ("all", *SPLITS) if have.get(split) and name not in have[split]]
        if lacking:
            there = sorted(set.union(*(have[split] for split in lacking)))
            rows = "the rows have" if len(lacking) == len(have) else f"the {' and '.join(lacking)} rows have"
            in_template = key == "prompt.template"
            near = nearest(name, [*there, *(("input", "instruction") if in_template else ())])
            form = "{{{}}}" if in_template else "`{}`"
            hint = (f"did you mean {form.format(near)}?\n  " if near else "") + f"they have: {', '.join(there)}"
            hint += f"\n  {{{{{name}}}}} writes it as text" if in_template else ""
            problems.append(_problem(key, f"{rows} no column {name!r}", hint))
    return problems


# ---------------------------------------------------------------- rows to examples


class StoredRows(NamedTuple):
    """The rows of an earlier run with their audit, in place of a recipe's source of rows (`dataset.given`)."""

    task: Task
    audit: dict[str, Any]


def load_task(recipe: Recipe) -> tuple[Task, dict[str, Any]]:
    """Read the recipe's data and return the Task and its audit (all but token lengths).

    Raises RecipeError with all that the recipe asks for and the data lack; InputError where there are no data.
    """
    dataset = recipe.dataset
    if isinstance(dataset.given, StoredRows):
        return dataset.given.task, dict(dataset.given.audit)
    rows, source, notes = read_rows(dataset)
    wanted = dict(dataset.splits)
    have = {split: {str(name) for row in part for name in row} for split, part in rows.items()}
    problems = missing_columns(named_columns(dataset.columns, recipe.prompt), have)
    # Where a column is missing there is no input to cut by: only the counts are looked at.
    cut, how, unfit = cut_splits(
        rows, wanted, partial(_data_text, recipe) if not problems else lambda _, i, row: str(i)
    )
    notes += how
    problems += prompt_beside_chats(recipe)
    problems += unfit
    if not problems and not cut.get("test"):
        problems.append(split_problem("test", "there are no test rows to measure on"))
    if not problems and not cut.get(recipe.measure):
        hint = "set dataset.splits.validation to a number of rows, such as 200"
        problems.append(Problem("measure: there are no validation rows to measure on", key="measure", hint=hint))
    if problems:
        raise RecipeError([_placed(recipe, problem) for problem in problems])
    refused: dict[str, Refused] = {}
    splits = {split: _examples(recipe, split, source_of(split, rows), part, refused) for split, part in cut.items()}
    if refused:
        raise RecipeError([_placed(recipe, problem) for problem in refused_rows(refused)])
    # Where the template names columns, `Example.input` holds its words; a fingerprint is one of the data alone.
    named = recipe.prompt.columns_of({"instruction": ""}) and not holds_chats(dataset)
    inputs = {
        split: {
            example.id: _data_text(recipe, source_of(split, rows), index, row)
            for example, (index, row) in zip(splits[split], part, strict=True)
        }
        for split, part in cut.items()
        if named
    }
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
    if recipe.measure != "test":  # audited with the rest, and then out of reach
        del splits["test"]
    task = Task(
        name=recipe.name,
        splits=splits,
        fingerprints={split: fingerprint(part, inputs.get(split)) for split, part in splits.items()},
        prompt_hash=digest(recipe.prompt.model_dump(mode="json")),
        source={**source, "splits": wanted, "notes": notes},
        generation=recipe.generation,
        measured_split=recipe.measure,
    )
    return task, report


def _placed(recipe: Recipe, problem: Problem) -> Problem:
    file, line, column = recipe.position(problem.key or "")
    return replace(problem, file=file, line=line, column=column)


def fingerprint(examples: Iterable[Example], inputs: Mapping[str, str] | None = None) -> str:
    """Return the hash of rows (ids, inputs, targets, in order); the prompt is not in it.

    `inputs`: by id, those of rows whose `Example.input` holds words of the prompt.
    """
    return digest([[e.id, inputs[e.id] if inputs else e.input, list(e.targets), *_beside(e)] for e in examples])


def _beside(example: Example) -> list[Any]:
    """Return what an example holds beside text, if anything: the tools, and the tool calls of the answer."""
    answer = example.answer.asked() if example.answer is not None else {}
    calls = {key: value for key, value in answer.items() if key not in ("role", "content")}
    return [list(example.tools), calls] if example.tools or calls else []


def fields_of(recipe: Recipe, source: str, index: int, row: Row) -> tuple[str, dict[str, str]]:
    """Return a row's input, and the columns that the prompt's template names, as text.

    Raises InputError for a value that is no text, with its place.
    """
    columns, prompt = recipe.dataset.columns, recipe.prompt
    name = _name(recipe, row)

    def text(column: str, key: str) -> str:
        return text_of(row.get(column), Cell(key, source, index + 1, column, name))

    input = text(columns.input, "dataset.columns.input") if columns.input and prompt.reads_input else ""
    return input, {column: text(column, "prompt.template") for column in prompt.columns_of(row)}


def _name(recipe: Recipe, row: Row) -> str:
    """Return the id of a row for a message."""
    value = row.get(recipe.dataset.columns.id or "id")
    return "" if value is None else str(value)


def named_rows(
    recipe: Recipe, split: str, source: str, rows: Iterable[tuple[int, Row]]
) -> Iterator[tuple[str, int, Row]]:
    """Yield each row with its id and its place in `source`: ids name predictions, so that each is there once."""
    columns = recipe.dataset.columns
    seen: Counter[str] = Counter()
    for index, row in rows:
        key = columns.id or ("id" if "id" in row else None)
        cell = Cell("dataset.columns.id", source, index + 1, key or "", _name(recipe, row))
        name = text_of(row.get(key), cell) if key else ""
        name = name or f"{split}-{index}"
        original = name
        while name in seen:  # ("a#2" may be another row's own)
            seen[original] += 1
            name = f"{original}#{seen[original]}"
        seen[name] = 1
        yield name, index, row


def _data_text(recipe: Recipe, source: str, index: int, row: Row) -> str:
    """Return what counts as a row's input, whatever words the prompt puts around it, and in whatever order."""
    if holds_chats(recipe.dataset):
        return row_text(recipe.dataset, row)
    input, named = fields_of(recipe, source, index, row)
    columns = recipe.dataset.columns
    if columns.input and recipe.prompt.reads_input:
        named[columns.input] = input
    return "\n".join(named[column] for column in sorted(named))


def _examples(
    recipe: Recipe, split: str, source: str, rows: Sequence[tuple[int, Row]], refused: dict[str, Refused]
) -> tuple[Example, ...]:
    """Return the examples of a split, whose rows are some of those of `source`; faulty chats go to `refused`."""
    columns, prompt = recipe.dataset.columns, recipe.prompt
    examples = []
    for name, index, row in named_rows(recipe, split, source, rows):

        def cell(key: str, column: str, index: int = index, row: Row = row) -> Cell:
            return Cell(f"dataset.columns.{key}", source, index + 1, column, _name(recipe, row))

        meta = {column: kept(row.get(column), cell(f"meta.{i}", column)) for i, column in enumerate(columns.meta)}
        targets: tuple[str, ...] | None = None  # of a chat: its last turn
        if columns.targets:
            targets = texts_of(row.get(columns.targets), cell("targets", columns.targets))
        elif columns.target:
            targets = (text_of(row.get(columns.target), cell("target", columns.target)),)
        if holds_chats(recipe.dataset):
            try:
                example = chat_example(recipe, split, row, targets)
            except InputError as error:
                refuse(refused, error, split, index, name)
                continue
            examples.append(replace(example, id=name, meta=meta))
            continue
        text, named = fields_of(recipe, source, index, row)
        messages = [Message("user", prompt.render(text, named))]
        text = messages[0].content if named else text
        if prompt.system:
            messages = [Message("system", prompt.system), *messages]
        examples.append(Example(name, tuple(messages), targets or ("",), text, meta))
    return tuple(examples)
