"""Chats of several turns: what a chat template must write of them, and which of their tokens are in the loss mask.

Everything here is found by rendering: nothing is known about any single template.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ftkit.errors import InputError
from ftkit.records import Finding, Message

Tools = tuple[dict[str, Any], ...]
Render = Callable[[Sequence[Message], bool, Tools], str]  # messages, with the generation prompt?, tools -> text

_KEY = "backend.chat_template"
_LOOK = "remove it from the rows, or use a template that writes it: backend.chat_template"
_LAST = (
    "train on the last assistant message only (dataset.train_on: last), or use a template that writes each assistant "
    "message the same way wherever it stands: backend.chat_template"
)


@dataclass(frozen=True)
class Span:
    """Where an earlier assistant turn stands in the text of the prompt: `start:end`; its own text ends at `said`."""

    number: int  # of the message, from 1
    start: int
    said: int
    end: int


def for_template(message: Message, blocks: bool, parsed: bool) -> dict[str, Any]:
    """Return a message as chat templates take it; `parsed` gives the arguments of tool calls as objects, not as text."""
    given: dict[str, Any] = {"role": message.role, "content": message.content}
    if blocks:
        empty = message.tool_calls and not message.content
        given["content"] = [] if empty else [{"type": "text", "text": message.content}]
    if message.name:
        given["name"] = message.name
    if message.tool_calls:
        given["tool_calls"] = [_call(call, parsed) for call in message.tool_calls]
    if message.tool_call_id:
        given["tool_call_id"] = message.tool_call_id
    return given


def _call(call: dict[str, Any], parsed: bool) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    function = {**call["function"], "arguments": json.loads(arguments) if parsed else arguments}
    return {**call, "function": function}


def takes_parsed(render: Callable[[Sequence[Message], bool], str]) -> bool:
    """Return whether the template writes arguments that are given as objects: most do, some want JSON text."""
    call = {"id": "ftkitcall", "type": "function", "function": {"name": "probe", "arguments": '{"ftkit_key": "value"}'}}
    chat = (
        Message("user", "a"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "b", name="probe", tool_call_id="ftkitcall"),
    )
    for parsed in (True, False):
        try:
            text = render(chat, parsed)
        except InputError:
            continue
        if "ftkit_key" in text and '\\"ftkit_key' not in text:
            return parsed
    return True


class Template:
    """Says what a template leaves out of a prompt; `render` gives the text of messages."""

    def __init__(self, render: Render) -> None:
        self.render = render
        self._left_out: dict[Any, dict[int, str]] = {}  # by the shape of a chat

    def fault(self, messages: Sequence[Message], tools: Tools, text: str) -> Finding | None:
        """Return what `text`, the prompt of these messages, leaves out of them; None where it holds everything."""
        return next((Finding("error", said, hint, _KEY) for said, hint in self._faults(messages, tools, text)), None)

    def _faults(self, messages: Sequence[Message], tools: Tools, text: str) -> Iterator[tuple[str, str]]:
        for number, what in self._by_shape(messages, tools).items():
            if not number:
                yield "the chat template leaves out the tools", _LOOK
                continue
            message = messages[number - 1]
            yield f"the chat template leaves out {what} message {number} (role {message.role})", _hint(message)
        for number, message in enumerate(messages, 1):
            where = f"message {number} (role {message.role})"
            if not _holds(text, message):
                yield f"the chat template leaves out or changes the text of {where}", _hint(message)
            for call in message.tool_calls:
                if not holds_call(text, call):
                    yield f"the chat template leaves out a tool call of {where}", _LOOK
        for tool in tools:
            if not _written(tool["function"]["name"], text):
                yield f"the chat template leaves out the tool {tool['function']['name']!r}", _LOOK
        if not _answered_in_order(messages) and not all(m.tool_call_id in text for m in messages if m.tool_call_id):
            yield (
                "the tool messages answer the calls in another order than they are made in, and the chat template "
                "does not write `tool_call_id`",
                "put the tool messages into the order of the calls",
            )

    def _by_shape(self, messages: Sequence[Message], tools: Tools) -> dict[int, str]:
        """Return the messages of which the template leaves something out (0: the tools), found with other texts.

        A text such as "a" is found in any prompt. Chats of one shape are tried once.
        """
        named = _names_of_answers(messages)
        shape = (*((m.role, bool(m.content.strip()), m.name is None, len(m.tool_calls), n in named)
                   for n, m in enumerate(messages)), bool(tools))  # fmt: skip
        if shape in self._left_out:
            return self._left_out[shape]
        marked = [_marked(m, n, n in named, messages) for n, m in enumerate(messages)]
        try:
            text = self.render(marked, True, tools)
        except InputError:
            return {}  # it depends on the text itself: the messages' own texts are looked for
        written = all(_written(tool["function"]["name"], text) for tool in tools)  # the calls have other names here
        found: dict[int, str] = {} if written else {0: "the tools"}
        for n, m in enumerate(marked):
            if m.content.strip() and m.content not in text:
                found[n + 1] = "the text of"
            elif not all(holds_call(text, call) for call in m.tool_calls):
                found[n + 1] = "a tool call of"
            elif m.name and n not in named and m.name not in text:
                found[n + 1] = "the `name` of"
        self._left_out[shape] = found
        return found


def _marked(message: Message, number: int, known: bool, messages: Sequence[Message]) -> Message:
    """Return the message with texts that stand nowhere else; a `known` name is that of the call that it answers."""
    calls = []
    for n, call in enumerate(message.tool_calls):
        some = json.loads(call["function"]["arguments"])
        arguments = json.dumps({f"ftkit{number}key{n}": f"ftkit{number}value{n}"} if some else {})
        calls.append({**call, "function": {"name": f"ftkit{number}call{n}", "arguments": arguments}})
    name = message.name
    if known:
        caller = max(n for n, m in enumerate(messages[:number]) if m.role == "assistant")
        names = [call["function"]["name"] for call in messages[caller].tool_calls]
        ids = [call.get("id") for call in messages[caller].tool_calls]
        which = ids.index(message.tool_call_id) if message.tool_call_id in ids else names.index(name)
        name = f"ftkit{caller}call{which}"
    elif name:
        name = f"ftkit{number}name"
    content = f"ftkit{number}text" if message.content.strip() else message.content
    return Message(message.role, content, name, tuple(calls), message.tool_call_id)


def _hint(message: Message) -> str:
    mapped = "give it another role (dataset.columns.roles: {developer: system}), " * (message.role == "developer")
    return mapped + _LOOK


def _holds(text: str, message: Message) -> bool:
    said = message.content.strip()
    if message.role == "assistant" and message.weight != 1 and "</think>" in said:
        said = said.rpartition("</think>")[2].strip()  # templates leave out the thinking of earlier turns, also in use
    return _written(said, text)


def _written(said: str, text: str) -> bool:
    """Return whether the text holds `said`, as it is or as part of JSON."""
    return said in text or json.dumps(said, ensure_ascii=False)[1:-1] in text


def holds_call(text: str, call: dict[str, Any]) -> bool:
    """Return whether the text has the name of the function, its arguments' names, and those values that are text."""
    function = call["function"]
    arguments = json.loads(function["arguments"])
    values = [value for value in arguments.values() if isinstance(value, str)]
    return function["name"] in text and all(_written(part.strip(), text) for part in (*arguments, *values))


def _answers(messages: Sequence[Message]) -> Iterator[tuple[int, Message, list[dict[str, Any]]]]:
    """Yield each tool message with its index and the calls of the assistant turn before it that are not answered yet."""
    calls: list[dict[str, Any]] = []
    for n, message in enumerate(messages):
        if message.role == "assistant":
            calls = list(message.tool_calls)
        elif message.role == "tool":
            yield n, message, calls
            answered = next((c for c in calls if c.get("id") == message.tool_call_id), calls[0] if calls else None)
            calls = [call for call in calls if call is not answered]


def _names_of_answers(messages: Sequence[Message]) -> set[int]:
    """Return the indices of tool messages whose `name` is that of the function they answer: it is known without it."""
    found = set()
    for n, message, calls in _answers(messages):
        answered = [call for call in calls if message.tool_call_id in (None, call.get("id"))]
        if message.name and answered and answered[0]["function"]["name"] == message.name:
            found.add(n)
    return found


def _answered_in_order(messages: Sequence[Message]) -> bool:
    return all(
        message.tool_call_id is None or (bool(calls) and message.tool_call_id in (None, calls[0].get("id")))
        for _, message, calls in _answers(messages)
    )


# ---------------------------------------------------------------- training on several turns


@dataclass(frozen=True)
class Opening:
    """How the template opens an answer: see `Chat`, whose `cut` and `lead` these are."""

    cut: str
    lead: str


def trained_turns(
    render: Render, messages: Sequence[Message], tools: Tools, text: str, opening: Opening
) -> tuple[Span, ...] | Finding:
    """Return where the assistant turns of weight 1 stand in `text`, the prompt of the messages.

    A turn must be written in the conversation as it is where it is the last one: otherwise the model would be
    trained on other tokens than it is given, and a Finding says so.
    """
    spans = []
    for n, message in enumerate(messages):
        if message.role != "assistant" or message.weight != 1:
            continue
        where = f"message {n + 1} (role assistant)"
        try:
            prompt = render(messages[:n], True, tools)
            alone = render(messages[: n + 1], False, tools)
        except InputError as error:
            return Finding("error", f"{where} cannot be trained on: {error.message}", _LAST, _KEY)
        stem = prompt + opening.lead
        written = _common(alone, text)[len(stem) :]
        said = message.content.strip()
        at = written.find(said)
        if opening.cut or not (text.startswith(stem) and alone.startswith(stem)) or at < 0 or not all(
            holds_call(written, call) for call in message.tool_calls
        ):  # fmt: skip
            return Finding(
                "error",
                f"the chat template writes {where} in another way in the middle of a conversation than at its end: "
                "the model would be trained on other tokens than it is given",
                _LAST,
                _KEY,
            )
        spans.append(Span(n + 1, len(prompt), len(stem) + at + len(said), len(stem) + len(written)))
    return tuple(spans)


def loss_mask(
    spans: Sequence[Span], ids: Sequence[int], offsets: Sequence[tuple[int, int]], ends: set[int]
) -> list[bool] | Finding:
    """Return which tokens of the prompt are in the loss mask: those of each span up to its end-of-turn token.

    `offsets` are the (start, end) of each token in the text of the prompt, in characters.
    """
    mask = [False] * len(ids)
    for span in spans:
        tokens = [
            i for i, (start, end) in enumerate(offsets) if span.start <= start and end <= span.end and start < span.end
        ]
        closing = [i for i in tokens if offsets[i][0] >= span.said and ids[i] in ends]
        if not closing:
            return Finding(
                "error",
                f"message {span.number} (role assistant) has no end-of-turn token: the chat template writes none, or "
                "another than at the end of the conversation",
                _LAST,
                _KEY,
            )
        for i in tokens:
            mask[i] = i <= closing[-1]
    return mask


def special_in_tools(messages: Sequence[Message], tools: Tools, special: Any) -> Finding | None:
    """Return a Finding where a tool or its call holds a special token: in a message's text it is encoded as text."""
    for text in itertools.chain(
        (json.dumps([m.tool_calls, m.name], ensure_ascii=False) for m in messages if m.tool_calls or m.name),
        [json.dumps(tools, ensure_ascii=False)] if tools else [],
    ):
        if found := special.search(text):
            return Finding(
                "error", f"a tool, a tool call or a name holds the special token {found.group()}", "remove the row"
            )
    return None


def _common(a: str, b: str) -> str:
    return a[: next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))]
