"""Training files of chats: every line is checked before the training, and becomes training examples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ftkit.data.messages import Keys, check_links, tools_of
from ftkit.data.messages import read_message as read_any_message
from ftkit.errors import InputError
from ftkit.records import Example, Message

MIN_EXAMPLES = 10  # as at OpenAI
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TOOLS = ("tool_calls", "tool_call_id", "name")
_ROW = ("messages", "tools", "functions")
_MAX_SHOWN = 10  # problems that a message lists; it counts the others


class InvalidFile(Exception):
    """A file that cannot be trained on. `code`: the kind of error. `param`: the job's field that names the file."""

    def __init__(self, code: str, message: str, param: str) -> None:
        super().__init__(message)
        self.code, self.param = code, param


def read_examples(path: Path, param: str, minimum: int, warnings: list[str] | None = None) -> list[Example]:
    """Return the examples of a JSON Lines file of chats. `param` is the job's field that names the file.

    Each assistant message whose weight is not 0 becomes one example: the messages before it are the prompt, its content
    is the target. Tools and tool calls are carried to the chat template. Raises InvalidFile with the line number of
    each problem, and for fewer than `minimum` lines. Adds to `warnings` which fields of rows were not read.
    """
    unread: dict[str, list[int]] = {}  # field -> [first line, rows]
    name = param.replace("_", " ")
    examples: list[Example] = []
    problems: list[str] = []
    lines = 0
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                lines += 1
                try:
                    row = json.loads(line)
                    examples += _examples(row, number)
                    for field in _unread(row):
                        unread.setdefault(field, [number, 0])[1] += 1
                except (ValueError, RecursionError) as error:
                    problems.append(f"Line {number}: {_reason(error)}")
    except UnicodeDecodeError:
        raise InvalidFile("invalid_file_format", f"The {name} is not UTF-8.", param) from None
    except FileNotFoundError:
        raise InvalidFile("file_not_found", f"The {name} was deleted.", param) from None
    if problems:
        rest = f" (and {len(problems) - _MAX_SHOWN} more lines)" if len(problems) > _MAX_SHOWN else ""
        message = f"The job failed due to a file format error in the {name}. {' '.join(problems[:_MAX_SHOWN])}{rest}"
        raise InvalidFile("invalid_file_format", message, param)
    if lines < minimum:
        message = f"The {name} has {lines} example(s), but must have at least {minimum} examples."
        raise InvalidFile("invalid_n_examples", message, param)
    if warnings is not None:
        for field, (first, rows) in unread.items():
            count = f"{rows} row{'s' if rows > 1 else ''}"
            warnings.append(
                f"The {name} has the field {field} in {count}, first in line {first}: it is not read. "
                "Fields that are read: messages, tools."
            )
    return examples


def _unread(row: dict[str, Any]) -> Iterator[str]:
    """Yield the quoted names of fields that hold something and are not read."""
    for field, value in row.items():
        if field not in _ROW and value not in (None, "", [], {}):
            yield json.dumps(field)[:60]


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}."
    return "nested too deeply." if isinstance(error, RecursionError) else str(error)


def _examples(row: Any, number: int) -> Iterator[Example]:
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
        raise ValueError('expected an object with a list "messages".')
    turns: list[Message] = []
    targets = 0
    try:
        tools = tools_of(row.get("tools"), '"tools"')
        found = [_training_message(message, f"message {index}") for index, message in enumerate(row["messages"], 1)]
        check_links(found)
    except InputError as error:
        raise ValueError(f"{error.message}.") from None
    if row.get("functions"):
        raise ValueError('"functions" is deprecated and not read: use "tools".')
    for index, turn in enumerate(found, 1):
        context = replace(turn, weight=None)  # each answer is trained on in an example of its own
        if turn.role == "assistant" and turn.weight != 0:
            if not turn.content.strip() and not turn.tool_calls:
                raise ValueError(f"message {index}: the assistant's answer is empty.")
            if not turns:
                raise ValueError(f"message {index}: nothing comes before the assistant's answer.")
            targets += 1
            answer = context if turn.tool_calls or turn.name else None
            yield Example(
                f"{number}.{index}", tuple(turns), (turn.content,), turns[-1].content, tools=tools, answer=answer
            )
        turns.append(context)
    if not targets:
        raise ValueError("example must have at least one message from the assistant.")


def _training_message(message: Any, where: str) -> Message:
    """Return a message of a training file, with its tool calls, name and weight. Raises ValueError or InputError."""
    tool = isinstance(message, dict) and message.get("role") == "tool"
    calls = isinstance(message, dict) and bool(message.get("tool_calls"))
    fields = {key: value for key, value in message.items() if key != "weight"} if isinstance(message, dict) else message
    if calls and fields.get("content") is None:
        fields = {**fields, "content": ""}
    plain = _read({**fields, "role": "user"} if tool else fields, where)
    weight = message.get("weight", 1)
    if weight not in (0, 1) or (weight != 1 and plain.role != "assistant"):
        raise ValueError(f'{where}: "weight" must be 0 or 1, and only an assistant message has one.')
    role = "tool" if tool else plain.role
    turn = read_any_message({**fields, "role": role, "content": plain.content}, where, Keys())
    return replace(turn, weight=int(weight) if role == "assistant" else None)


def read_message(message: Any, where: str) -> Message:
    """Return one message of a request, whose content is text or a list of text parts.

    Raises ValueError that starts with `where`, also for tool calls, names and unknown fields, which this server would
    not give the model.
    """
    turn = _read(message, where)
    for field, value in message.items():
        if field not in ("role", "content", *_TOOLS) and value not in (None, "", [], {}):
            raise ValueError(f"{where}: the field {json.dumps(field)[:60]} is not supported.")
    for field in _TOOLS:
        if message.get(field):
            raise ValueError(f'{where}: "{field}" is not supported.')
    return turn


def _read(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise ValueError(f"{where}: expected an object.")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        said = json.dumps(role[:40]) if isinstance(role, str) else type(role).__name__
        raise ValueError(f'{where}: "role" must be one of {", ".join(_ROLES)}, not {said}.')
    content = message.get("content")
    if isinstance(content, list) and all(_is_text(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ValueError(f'{where}: "content" must be text, or a list of {{"type": "text", "text": ...}}.')
    encodable = content.encode("utf-8", "replace").decode()  # a lone surrogate becomes "?"
    return Message(_ROLES[role], encodable)


def _is_text(part: Any) -> bool:
    """Return whether a part of a message is text, and holds nothing else."""
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        return False
    return all(key in ("type", "text") or value in (None, [], {}) for key, value in part.items())
