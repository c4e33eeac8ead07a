"""Rows that hold a whole chat: `dataset.columns.messages`, and the formats of `dataset.chat_format`.

The last assistant turn is the target, what stands before it is the prompt. `dataset.train_on` says which other
assistant turns are in the loss mask.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import InputError, Problem
from ..records import Example, Message
from ..text import counted, printable, quoted
from .messages import Keys, check_links, read_message, tools_of
from .values import text_of

if TYPE_CHECKING:
    from ..recipe.keys import DatasetConfig, Prompt
    from ..recipe.load import Recipe

Row = Mapping[str, Any]
_SHOWN = 8  # kinds of problems in rows that are reported at once
SYSTEM = ("system", "developer")


@dataclass(frozen=True)
class Chat:
    """A row as a chat: the turns before the target, the last assistant turn (None where a column holds the target).

    `text` is the chat as one text, by which rows are compared; "" where nothing is said in it.
    """

    prompt: tuple[Message, ...]
    answer: Message | None
    tools: tuple[dict[str, Any], ...]
    text: str


def holds_chats(dataset: DatasetConfig) -> bool:
    """Return whether rows are read by this module."""
    return dataset.columns.messages is not None or dataset.chat_format == "alpaca"


def read_chat(dataset: DatasetConfig, row: Row, prompt: Prompt | None = None) -> Chat:
    """Return the chat of a row. Raises InputError, without the row's name, for what is not understood.

    `prompt` is put around the question of `chat_format: alpaca`; None leaves it as it is in the data.
    """
    columns = dataset.columns
    keys = Keys(columns.role_key, columns.content_key, columns.roles, tuple(columns.ignored))
    tools = tools_of(*_tools_column(dataset, row))
    if columns.messages is None:
        turns, text = _alpaca(dataset, row, prompt)
        return Chat((*_system_column(dataset, row, turns), *turns), None, tools, text)
    turns = [read_message(item, f"message {n}", keys) for n, item in enumerate(_items(row, columns.messages), 1)]
    check_links(turns)
    turns = [*_system_column(dataset, row, turns), *turns]
    last = turns[-1] if turns and turns[-1].role == "assistant" else None
    before = tuple(turns[:-1] if last else turns)
    return Chat(before, last, tools, chat_text(before))


def chat_text(turns: Sequence[Message]) -> str:
    """Return turns as one text, each with its role and its tool calls; "" where no turn says anything."""
    if not any(turn.content.strip() or turn.tool_calls for turn in turns):
        return ""
    return "\n".join(_turn_text(turn) for turn in turns)


def row_text(dataset: DatasetConfig, row: Row) -> str:
    """Return the text by which rows are compared; of a row that will be refused, its JSON."""
    try:
        return read_chat(dataset, row).text
    except InputError:
        return json.dumps(row, sort_keys=True, default=str)


def _turn_text(turn: Message) -> str:
    named = f"{turn.role} ({turn.name})" if turn.name else turn.role
    calls = [f"{call['function']['name']}({call['function']['arguments']})" for call in turn.tool_calls]
    return f"{named}: " + " ".join([turn.content, *calls] if turn.content or not calls else calls)


def _items(row: Row, column: str) -> Sequence[Any]:
    value: Any = row.get(column)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str) and value.lstrip().startswith("["):  # a table of text holds lists as JSON
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InputError(f"column {column!r} is not JSON: {error}") from None
    if isinstance(value, tuple):
        value = list(value)
    if not isinstance(value, list):
        raise InputError(f"column {column!r} must hold a list of messages, not {quoted(value)}")
    if not value:
        raise InputError(f"column {column!r} holds no messages", "remove the row")
    return value


def _tools_column(dataset: DatasetConfig, row: Row) -> tuple[Any, str]:
    """Return the value of the row's tools, and where it stands: the column `tools` is read where rows have it."""
    name = dataset.columns.tools or "tools"
    if dataset.columns.tools is None and row.get("functions") and not row.get("tools"):
        raise InputError("column 'functions' holds tools that are not read", "dataset.columns.tools: functions")
    return row.get(name), f"column {name!r}"


def _system_column(dataset: DatasetConfig, row: Row, turns: Sequence[Message]) -> list[Message]:
    """Return the row's own system message, from a column: the formats of other tools call it `system`."""
    name = dataset.columns.system or ("system" if dataset.chat_format in ("sharegpt", "alpaca") else None)
    text = text_of(row.get(name), f"column {name!r}") if name else ""
    if not text:
        return []
    for number, turn in enumerate(turns, 1):
        if turn.role in SYSTEM:
            raise InputError(
                f"column {name!r} holds a system message, and message {number} is one as well (role {turn.role})",
                "keep one of them",
            )
    return [Message("system", text)]


def _alpaca(dataset: DatasetConfig, row: Row, prompt: Prompt | None) -> tuple[list[Message], str]:
    """Return the turns of {instruction, input, history} and their text; `history` is a list of [question, answer]."""
    columns = dataset.columns
    name, beside = columns.instruction or "instruction", columns.input or "input"
    parts = [text_of(row.get(column), f"column {column!r}") for column in (name, beside)]
    question = "\n\n".join(part for part in parts if part)
    turns: list[Message] = []
    history: Any = row.get("history")
    if hasattr(history, "tolist"):
        history = history.tolist()
    for number, pair in enumerate(history if history is not None else [], 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise InputError(f"column 'history', item {number} must be [question, answer], not {quoted(pair)}")
        texts = [text_of(text, f"column 'history', item {number}") for text in pair]
        turns += [Message("user", texts[0]), Message("assistant", texts[1])]
    if turns and prompt is not None and prompt.render("x") != "x":
        raise InputError(
            "column 'history' holds earlier turns, and the recipe's prompt would be put around the last one only",
            "remove prompt.instruction and prompt.template, or the column `history`",
        )
    asked = Message("user", prompt.render(question) if prompt else question)
    return [*turns, asked], chat_text([*turns, Message("user", question)]) if turns else question


# ---------------------------------------------------------------- what is trained on


def check_chat(chat: Chat, targets: tuple[str, ...] | None, prompt: Prompt, split: str) -> None:
    """Raise InputError where the chat cannot be measured or trained on. `targets` are those of a column, or None."""
    if prompt.system:
        for number, turn in enumerate(chat.prompt, 1):
            if turn.role in SYSTEM:
                raise InputError(
                    f"message {number} is a system message (role {turn.role}), and prompt.system would be a second one",
                    "remove prompt.system, or the messages from the data",
                )
    if not chat.prompt:
        raise InputError("nothing comes before the assistant's answer: there is no prompt", "remove the row")
    answer = chat.answer
    if targets is not None:
        if answer is not None and (answer.tool_calls or answer.content not in targets):
            raise InputError(
                "the chat ends with an assistant message, and the column of the target holds another answer",
                "remove the last message, or dataset.columns.target",
            )
        return
    if answer is None:
        raise InputError(
            f"the chat ends with a message of the role {chat.prompt[-1].role}: its last message must be the "
            "assistant's answer",
            "remove the row, or name the column of the right answer: dataset.columns.target",
        )
    if not answer.content.strip() and not answer.tool_calls:
        raise InputError("the assistant's answer at the end is empty", "remove the row")
    if answer.tool_calls and split != "train":
        raise InputError(
            "the last message calls a tool: a measurement compares text",
            "end the row in text, or leave such rows to the train split",
        )


def weighted(chat: Chat, train_on: str, split: str) -> Chat:
    """Return the chat with a weight of 0 or 1 on every earlier assistant turn, as `dataset.train_on` says.

    Test rows lose their weights: nothing of them is trained on. Raises InputError where nothing is left to train on.
    """
    if split == "test":
        answer = chat.answer and replace(chat.answer, weight=None)
        return replace(chat, prompt=tuple(replace(turn, weight=None) for turn in chat.prompt), answer=answer)
    turns = []
    for number, turn in enumerate(chat.prompt, 1):
        if turn.role == "assistant":
            if train_on == "last" and turn.weight == 1:
                raise InputError(
                    f"message {number} (role assistant) has `weight: 1`, and dataset.train_on is `last`",
                    "dataset.train_on: all trains on every assistant message whose weight is not 0",
                )
            weight = int(train_on == "all" and turn.weight != 0)
            if weight and not turn.content.strip() and not turn.tool_calls:
                raise InputError(
                    f"message {number} (role assistant) is empty, and dataset.train_on: all trains on it",
                    "remove the row, or give the message `weight: 0`",
                )
            turn = replace(turn, weight=weight)
        turns.append(turn)
    trained = chat.answer is None or chat.answer.weight != 0
    if split == "train" and not trained and not any(turn.weight for turn in turns):
        fix = "remove the row" if train_on == "all" else "remove the row, or set dataset.train_on: all"
        which = "every assistant message has" if train_on == "all" else "the last assistant message has"
        raise InputError(f"{which} `weight: 0`: nothing is left to train on", fix)
    return replace(chat, prompt=tuple(turns))


def answer_of(chat: Chat) -> Message | None:
    """Return the last assistant turn where it holds more than text, for `Example.answer`."""
    answer = chat.answer
    if answer is None or not (answer.tool_calls or answer.name or answer.weight == 0):
        return None
    return replace(answer, weight=0 if answer.weight == 0 else None)


# ---------------------------------------------------------------- rows to examples


def chat_example(recipe: Recipe, split: str, row: Row, targets: tuple[str, ...] | None) -> Example:
    """Return the example of a row (without id and meta). Raises InputError, without the row's name.

    `targets` are the right answers that a column holds; None where the last assistant turn is the answer.
    """
    dataset = recipe.dataset
    chat = read_chat(dataset, row, recipe.prompt)
    check_chat(chat, targets, recipe.prompt, split)
    if targets is not None:  # the last turn says the same as the column
        chat = replace(chat, answer=None)
    chat = weighted(chat, dataset.train_on, split)
    system = [Message("system", recipe.prompt.system)] if recipe.prompt.system else []
    text = chat.answer.content if chat.answer else ""
    return Example("", (*system, *chat.prompt), targets or (text,), chat.text, tools=chat.tools, answer=answer_of(chat))


def prompt_beside_chats(recipe: Recipe) -> list[Problem]:
    """Return a problem for each key of the prompt that is put around an input: a whole chat has none."""
    if recipe.dataset.columns.messages is None or recipe.prompt.render("x") == "x":
        return []
    written = recipe.root.at(("prompt",)).value
    keys = [key for key in ("instruction", "template") if isinstance(written, Mapping) and key in written]
    return [
        Problem(
            f"prompt.{key} is not put around a chat: dataset.columns.messages holds the whole prompt",
            key=f"prompt.{key}",
            hint="remove it; prompt.system can be used, where the chats have no system message",
        )
        for key in keys
    ]


@dataclass
class Refused:
    """Rows that are refused for one reason: the first of them, and how many there are."""

    problem: Problem
    first: str
    count: int = 1


def refuse(found: dict[str, Refused], error: InputError, split: str, index: int, name: str) -> None:
    """Add a row to those refused; `index` is its place in the source, from 0, `name` its id."""
    reason = re.sub(r"\d+|'[^']*'", "#", error.message)
    if reason in found:
        found[reason].count += 1
        return
    row = f"{split} row {index + 1} (id {printable(name)!r:.60})"
    found[reason] = Refused(Problem(error.message, key="dataset.columns.messages", hint=error.hint), row)


def refused_rows(found: Mapping[str, Refused]) -> list[Problem]:
    """Return a problem for each reason, which names the first row and counts the others."""
    problems = []
    for one in list(found.values())[:_SHOWN]:
        more = f" and {counted(one.count - 1, 'more row', 'more rows')}" if one.count > 1 else ""
        message = f"dataset.columns.messages: {one.first}{more}: {one.problem.message}"
        problems.append(replace(one.problem, message=message))
    return problems
