"""What a model is asked for rows that have no answer yet: the recipe's prompt around them, as when it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import InputError, RecipeError
from ..records import Example, Message
from ..text import counted
from .chats import check_chat, holds_chats, read_chat, weighted
from .formats import Row
from .task import fields_of, missing_columns, named_columns, named_rows

if TYPE_CHECKING:
    from ..recipe.load import Recipe

_STORED = ("id", "messages", "targets", "input", "meta")  # keys of the rows in a run's data/SPLIT.jsonl
_ASKED = ("dataset.columns.messages", "dataset.columns.input", "dataset.columns.instruction", "prompt.template")
_SPLIT = "test"  # rows without an id are named as those of a file of test rows: then batches are planned alike


def are_stored(rows: Sequence[Row]) -> bool:
    """Return whether these are rows of a run's data/SPLIT.jsonl: they hold the whole prompt."""
    return all(all(key in row for key in _STORED) and isinstance(row["targets"], list) for row in rows)


def questions(recipe: Recipe, rows: Sequence[Row], source: str) -> list[Example]:
    """Return what is asked for each row, in order. Columns of answers and `dataset.columns.meta` are not needed.

    `source` is what a message calls the rows: a path. Raises InputError with the row, or the column, of a mistake.
    """
    if are_stored(rows):
        return [_stored(row, number, source) for number, row in enumerate(rows, 1)]
    columns, prompt = recipe.dataset.columns, recipe.prompt
    needed = [(key, name) for key, name in named_columns(columns, prompt) if key in _ASKED]
    problems = missing_columns(needed, {"all": {str(name) for row in rows for name in row}})
    if problems:
        raise RecipeError([replace(p, message=f"{source}: {p.message}") for p in problems])
    try:
        found = named_rows(recipe, _SPLIT, "all", enumerate(rows))
        return [_question(recipe, name, index, row) for name, index, row in found]
    except InputError as error:
        raise InputError(f"{source}: {error.message}", error.hint) from None


def _stored(row: Row, number: int, source: str) -> Example:
    try:
        return Example.from_dict(row)
    except (TypeError, AttributeError, KeyError):
        raise InputError(f"{source}: row {number} is not a row of a run's data folder") from None


def _question(recipe: Recipe, name: str, index: int, row: Row) -> Example:
    prompt = recipe.prompt
    target = row.get(recipe.dataset.columns.target or "")
    targets = (target,) if isinstance(target, str) else ("",)
    system = [Message("system", prompt.system)] if prompt.system else []
    if holds_chats(recipe.dataset):
        try:
            chat = replace(read_chat(recipe.dataset, row, prompt), answer=None)
            check_chat(chat, targets, prompt, _SPLIT)
        except InputError as error:
            raise InputError(f"row {index + 1} (id {name!r:.60}): {error.message}", error.hint) from None
        turns = weighted(chat, recipe.dataset.train_on, _SPLIT).prompt
        return Example(name, (*system, *turns), targets, chat.text, tools=chat.tools)
    text, named = fields_of(recipe, "all", index, row)
    message = Message("user", prompt.render(text, named))
    return Example(name, (*system, message), targets, message.content if named else text)


# ---------------------------------------------------------------- what a person types


def typed_fields(recipe: Recipe) -> tuple[str, ...]:
    """Return the columns that a person must give for one question; empty where a question is a turn of a chat."""
    if holds_chats(recipe.dataset):
        return ()
    own = recipe.prompt.columns
    return (recipe.dataset.columns.input or "input", *own) if recipe.prompt.reads_input else own


def typed_question(
    recipe: Recipe, values: Mapping[str, str], history: Sequence[Message] = (), id: str = "typed"
) -> Example:
    """Return what is asked for typed text: `values` by column (`typed_fields`), or {"": text} for a turn of a chat.

    `history` are the earlier turns of a chat.
    """
    prompt = recipe.prompt
    system = [Message("system", prompt.system)] if prompt.system else []
    fields = typed_fields(recipe)
    if not fields:
        text = values[""]
        turn = Message("user", prompt.render(text) if recipe.dataset.columns.messages is None else text)
        return Example(id, (*system, *history, turn), ("",), text)
    name = recipe.dataset.columns.input or "input"
    text = values.get(name, "") if prompt.reads_input else ""
    message = Message("user", prompt.render(text, {key: values[key] for key in prompt.columns if key in values}))
    return Example(id, (*system, message), ("",), text or message.content)


def question_of(recipe: Recipe, asked: Any, id: str) -> Example:
    """Return what is asked for one thing that a program gives: text (the input, or a turn of a chat), or a row.

    Raises InputError for what is neither, or lacks a column.
    """
    if isinstance(asked, Mapping):
        return replace(questions(recipe, [dict(asked)], "the row")[0], id=id)
    if not isinstance(asked, str):
        raise InputError(f"text or a row is asked, not {type(asked).__name__}", 'such as run.generate("...")')
    fields = typed_fields(recipe)
    if len(fields) > 1:
        names = ", ".join(fields)
        raise InputError(
            f"the recipe's prompt reads {counted(len(fields), 'column', 'columns')} ({names}), and one text was given",
            "give a row: run.generate({" + ", ".join(f"{name!r}: ..." for name in fields) + "})",
        )
    return typed_question(recipe, {fields[0] if fields else "": asked}, id=id)
