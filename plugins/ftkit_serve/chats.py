"""Training files of chats: every line is checked before the training, and becomes training examples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftkit.records import Example, Message

MIN_EXAMPLES = 10  # as at OpenAI
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MAX_SHOWN = 10  # problems that a message lists; it counts the others


class InvalidFile(Exception):
    """A file that cannot be trained on. `code`: the kind of error. `param`: the job's field that names the file."""

    def __init__(self, code: str, message: str, param: str) -> None:
        super().__init__(message)
        self.code, self.param = code, param


def read_examples(path: Path, param: str, minimum: int) -> list[Example]:
    """Return the examples of a JSON Lines file of chats. `param` is the job's field that names the file.

    Each assistant message whose weight is not 0 becomes one example: the messages before it are the prompt, its content
    is the target. Raises InvalidFile with the line number of each problem, and for fewer than `minimum` lines.
    """
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
                    examples += _examples(json.loads(line), number)
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
    return examples


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}."
    return "nested too deeply." if isinstance(error, RecursionError) else str(error)


def _examples(row: Any, number: int) -> Iterator[Example]:
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
        raise ValueError('expected an object with a list "messages".')
    turns: list[Message] = []
    targets = 0
    for index, message in enumerate(row["messages"], 1):
        turn = read_message(message, f"message {index}")
        weight = message.get("weight", 1)
        if weight not in (0, 1) or (weight != 1 and turn.role != "assistant"):
            raise ValueError(f'message {index}: "weight" must be 0 or 1, and only an assistant message has one.')
        if turn.role == "assistant" and weight == 1:
            if not turn.content.strip():
                raise ValueError(f"message {index}: the assistant's answer is empty.")
            if not turns:
                raise ValueError(f"message {index}: nothing comes before the assistant's answer.")
            targets += 1
            yield Example(f"{number}.{index}", tuple(turns), (turn.content,), turns[-1].content)
        turns.append(turn)
    if not targets:
        raise ValueError("example must have at least one message from the assistant.")


def read_message(message: Any, where: str) -> Message:
    """Return one message, whose content is text or a list of text parts. Raises ValueError that starts with `where`."""
    if not isinstance(message, dict):
        raise ValueError(f"{where}: expected an object.")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise ValueError(f'{where}: "role" must be one of {", ".join(_ROLES)}, not {json.dumps(role)[:40]}.')
    content = message.get("content")
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content
    ):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ValueError(f'{where}: "content" must be text.')
    encodable = content.encode("utf-8", "replace").decode()  # a lone surrogate becomes "?"
    return Message(_ROLES[role], encodable)
