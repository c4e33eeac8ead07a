"""What a provider would refuse in a file of chats, or what would harm the training: every problem with its lines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# Special tokens of the tokenizer. In ordinary text they are refused, or read as the end of the chat.
SPECIAL = re.compile(
    r"<\|(?:endoftext|fim_prefix|fim_middle|fim_suffix|endofprompt|im_start|im_end|im_sep|start|end|return)\|>"
)
GIGABYTE = 1 << 30


@dataclass(frozen=True)
class Problem:
    """One problem at some lines (from 1; none where it concerns the whole file); `level` is error, warning or note."""

    level: str
    message: str
    lines: tuple[int, ...] = ()
    hint: str | None = None

    def __str__(self) -> str:
        if not self.lines:
            return self.message
        return f"line{'s' if len(self.lines) > 1 else ''} {ranges(self.lines)}: {self.message}"


def ranges(lines: Sequence[int]) -> str:
    """Return line numbers in short form: 3, 7, 9-15."""
    spans: list[list[int]] = []
    for line in sorted(set(lines)):
        if spans and line == spans[-1][1] + 1:
            spans[-1][1] = line
        else:
            spans.append([line, line])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def lint(
    lines: Iterable[str],
    min_examples: int = 10,
    max_tokens: int | None = None,
    count: Callable[[Iterable[Mapping[str, Any]]], int] | None = None,
) -> list[Problem]:
    """Return all problems of a JSON Lines file of chats, the worst first; lines with the same problem share an entry.

    An example of more than `max_tokens` tokens, counted by `count`, is truncated.
    """
    found: dict[tuple[str, str, str | None], list[int]] = {}
    seen: dict[int, int] = {}  # by hash, so that a large file is not kept in memory
    rows = size = 0
    for number, line in enumerate(lines, 1):
        size += len(line.encode("utf-8", "surrogatepass")) + 1
        if not line.strip():
            continue
        rows += 1
        problems = list(_lint_line(line, max_tokens, count))
        first = seen.setdefault(hash(line.strip()), number)
        if first != number:
            problems.append(
                ("warning", f"the same as line {first}", "duplicates have more weight in training; remove them")
            )
        for problem in problems:
            found.setdefault(problem, []).append(number)
    of_file = list(_lint_file(rows, size, min_examples))
    problems_found = of_file + [Problem(level, text, tuple(at), hint) for (level, text, hint), at in found.items()]
    order = ("error", "warning", "note")
    return sorted(problems_found, key=lambda p: (order.index(p.level), p.lines))


def _lint_file(rows: int, size: int, min_examples: int) -> Iterator[Problem]:
    if rows < min_examples:
        yield Problem("error", f"{rows} examples: a provider requires at least {min_examples}", hint="add examples")
    if size > 8 * GIGABYTE:
        yield Problem("error", f"{size / 1e9:.1f} GB: a provider accepts at most 8 GB", hint="train on fewer rows")
    elif size > GIGABYTE // 2:
        yield Problem("note", f"{size / 1e6:.0f} MB: files above 512 MB are uploaded in parts")


def _lint_line(
    line: str, max_tokens: int | None, count: Callable[[Iterable[Mapping[str, Any]]], int] | None
) -> Iterator[tuple[str, str, str | None]]:
    """Yield (level, message, hint) of each problem in one line."""
    try:
        row = json.loads(line)
    except ValueError:
        yield "error", "not JSON", None
        return
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        yield "error", 'no list of messages: {"messages": [{"role": ..., "content": ...}, ...]}', None
        return
    trained = 0  # answers that the model is trained on
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            yield "error", f"unknown role {str(role)[:40]!r}", f"one of {', '.join(ROLES[:4])}"
        if "weight" in message and (message["weight"] not in (0, 1) or role != "assistant"):
            yield "error", "`weight` must be 0 or 1, and on an assistant message", None
        empty = not (content.strip() if isinstance(content, str) else content)
        if empty and not message.get("tool_calls"):
            yield (
                "error" if role == "assistant" else "warning",
                f"the {role} message is empty",
                "remove the row: the model would learn to answer nothing" if role == "assistant" else None,
            )
        if role == "assistant" and message.get("weight", 1) and (not empty or message.get("tool_calls")):
            trained += 1
        for token in sorted(set(SPECIAL.findall(content if isinstance(content, str) else ""))):
            yield "error", f"the text contains the special token {token}", "remove it: it is refused, or ends the chat"
    if not trained:
        yield "error", "no assistant answer to train on", None
    elif messages[-1].get("role") != "assistant":
        yield "error", "the last message is not the assistant's", "an example must end with the answer"
    if max_tokens is not None and count is not None and count(messages) > max_tokens:
        yield (
            "warning",
            f"longer than {max_tokens} tokens: truncated at the end, so that the answer is lost",
            "shorten the prompt, or leave the row out",
        )
