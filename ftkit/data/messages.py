"""One message of a chat as the data hold it: checked, with all its fields, or refused. Nothing of it is dropped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from ..records import Message
from ..text import nearest, printable, quoted
from .values import text_of

ROLES = ("system", "developer", "user", "assistant", "tool")
CALL = "function_call"  # an assistant turn whose content is the JSON of its tool calls
# What other tools call a role: for the hint of a message about an unknown one.
_ALIASES = {
    **{"human": "user", "prompter": "user", "customer": "user", "student": "user", "instruction": "user"},
    **{"gpt": "assistant", "bot": "assistant", "model": "assistant", "ai": "assistant", "chatbot": "assistant"},
    **{"chatgpt": "assistant", "agent": "assistant", "teacher": "assistant", "output": "assistant"},
    **{"observation": "tool", "function": "tool", "function_response": "tool", "ipython": "tool"},
}
_FIELDS = ("name", "tool_calls", "tool_call_id", "weight")
_INSTEAD = {
    "function_call": 'write it as `tool_calls`: [{"type": "function", "function": {"name", "arguments"}}]',
    "train": "write `weight: 0` on an assistant message that is not to be trained on",
    "training": "write `weight: 0` on an assistant message that is not to be trained on",
}


@dataclass(frozen=True)
class Keys:
    """The keys of a message, and what its roles are called: `roles` maps other names to those of ftkit."""

    role: str = "role"
    content: str = "content"
    roles: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def read_message(item: Any, where: str, keys: Keys) -> Message:
    """Return one message. Raises InputError that starts with `where` for what is not understood."""
    if not isinstance(item, Mapping):
        raise InputError(f"{where} must be a mapping with `{keys.role}` and `{keys.content}`, not {quoted(item)}")
    given = {k: v for k, v in item.items() if k not in keys.ignored and not _nothing(v)}
    role = _role(item, given, where, keys)
    where = f"{where} (role {role})"
    _refuse_unknown(given, where, keys)
    content = _content(item.get(keys.content), f"{where}: `{keys.content}`")
    calls: tuple[dict[str, Any], ...] = ()
    if role == CALL:
        role, calls, content = "assistant", tool_calls_of(_parsed(content, where), where), ""
    if "tool_calls" in given:
        if role != "assistant":
            raise InputError(f"{where} has `tool_calls`: only an assistant message calls tools")
        calls = tool_calls_of(given["tool_calls"], where)
    if item.get(keys.content) is None and not calls:
        raise InputError(f"{where} has no `{keys.content}`", _there(given, keys))
    return Message(
        role,
        content,
        name=_text(given, "name", where),
        tool_calls=calls,
        tool_call_id=_call_id(given, role, where),
        weight=_weight(given, role, where),
    )


def _nothing(value: Any) -> bool:
    """Return whether a field holds nothing: a column of a table has every field of every row, most of them empty."""
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)


def _role(item: Mapping[str, Any], given: Mapping[str, Any], where: str, keys: Keys) -> str:
    if keys.role not in given:
        raise InputError(f"{where} has no `{keys.role}`", _there(given, keys))
    said = item[keys.role]
    known = {**{role: role for role in ROLES}, **keys.roles}
    if isinstance(said, str) and said in known:
        return known[said]
    meant = None
    if isinstance(said, str):
        word = said.strip().lower()
        meant = word if word in ROLES else _ALIASES.get(word) or nearest(said, ROLES)
    shown = printable(str(said))[:40]
    fix = f"map it to a role of ftkit: dataset.columns.roles: {{{shown}: {meant or 'assistant'}}}"
    if not keys.roles and said in ("human", "gpt"):
        fix += "; or dataset.chat_format: sharegpt"
    raise InputError(f"{where} has the unknown role {shown!r} (known: {', '.join(known)})", fix)


def _there(given: Mapping[str, Any], keys: Keys) -> str:
    names = ", ".join(f"`{printable(str(name))[:40]}`" for name in given) or "no keys"
    if keys.role == "role" and {"from", "value"} <= set(given):
        return f"it has {names}: dataset.chat_format: sharegpt reads them"
    return f"it has {names}; dataset.columns.role_key and dataset.columns.content_key name the keys of a message"


def _refuse_unknown(given: Mapping[str, Any], where: str, keys: Keys) -> None:
    for name in given:
        if name not in (keys.role, keys.content, *_FIELDS):
            shown = printable(str(name))[:40]
            instead = _INSTEAD.get(name) or f"to leave it out of every message: dataset.columns.ignored: [{shown}]"
            raise InputError(f"{where} has `{shown}`, which no chat template would be given", instead)


def _content(value: Any, where: str) -> str:
    if hasattr(value, "tolist"):
        value = value.tolist()
    parts = value if isinstance(value, list) else [value]
    for number, part in enumerate(parts, 1):
        if isinstance(part, Mapping) and isinstance(kind := part.get("type"), str) and kind != "text":
            raise InputError(f"{where}: part {number} is of type {kind!r}: ftkit reads text parts only",
                             "remove the row, or replace the part by text")  # fmt: skip
    if value == []:
        return ""
    return text_of(value, where)


def _text(given: Mapping[str, Any], key: str, where: str) -> str | None:
    value = given.get(key)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{where}: `{key}` must be text, not {quoted(value)}")
    return value


def _call_id(given: Mapping[str, Any], role: str, where: str) -> str | None:
    if "tool_call_id" in given and role != "tool":
        raise InputError(f"{where} has `tool_call_id`: only a tool message answers a call")
    return _text(given, "tool_call_id", where)


def _weight(given: Mapping[str, Any], role: str, where: str) -> int | None:
    value = given.get("weight")
    if value is None:
        return None
    if role != "assistant":
        raise InputError(f"{where} has `weight`: only an assistant message has one", "remove it")
    if not isinstance(value, int | float) or value not in (0, 1):
        raise InputError(f"{where}: `weight` must be 0 (not trained on) or 1, not {quoted(value)}")
    return int(value)


# ---------------------------------------------------------------- tools


def tool_calls_of(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    """Return tool calls as {"id", "type", "function": {"name", "arguments": JSON text}}; `id` where they have one.

    A call may also be {"name", "arguments"}, and `arguments` an object. Raises InputError that starts with `where`.
    """
    items = [value] if isinstance(value, Mapping) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, Mapping) for item in items):
        raise InputError(f"{where}: its tool calls must be a list of objects, not {quoted(value)}")
    return tuple(_call(item, f"{where}: tool call {number}") for number, item in enumerate(items, 1))


def _call(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    call = {key: value for key, value in item.items() if value is not None}
    if call.setdefault("type", "function") != "function":
        raise InputError(f"{where} is of type {quoted(call['type'])}: only `function` is known")
    function = call.pop("function", None)
    if function is None:
        function = {key: call.pop(key) for key in ("name", "arguments") if key in call}
    if not isinstance(function, Mapping) or not isinstance(name := function.get("name"), str) or not name:
        raise InputError(f"{where} has no name of a function")
    for key in (*(set(function) - {"name", "arguments"}), *(set(call) - {"id", "type", "index"})):
        raise InputError(
            f"{where} has `{printable(str(key))[:40]}`, which no chat template would be given", "remove it"
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str) and arguments.strip():
        arguments = _parsed(arguments, f"{where}: `arguments`")
    if arguments is None or arguments == "":
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise InputError(f"{where}: `arguments` must be a JSON object, not {quoted(arguments)}")
    text = function["arguments"] if isinstance(function.get("arguments"), str) else _json(arguments, where)
    call_id = {"id": str(call["id"])} if "id" in call else {}
    return {**call_id, "type": "function", "function": {"name": name, "arguments": text or "{}"}}


def tools_of(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    """Return the functions that a model may call, each {"type": "function", "function": {"name", ...}}.

    `value` is a list of them or its JSON text; a function may stand without the mapping around it. Raises InputError
    that starts with `where`.
    """
    if isinstance(value, str) and value.strip():
        value = _parsed(value, where)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or value in ("", [], {}) or (isinstance(value, str) and not value.strip()):
        return ()
    items = [value] if isinstance(value, Mapping) else value
    if not isinstance(items, list | tuple):
        raise InputError(f"{where} must be a list of functions, not {quoted(value)}")
    tools = []
    for number, item in enumerate(items, 1):
        function = item.get("function") if isinstance(item, Mapping) and "function" in item else item
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InputError(f'{where}: tool {number} is no function {{"name", "description", "parameters"}}')
        if function is not item and item.get("type", "function") != "function":
            raise InputError(f"{where}: tool {number} is of type {quoted(item['type'])}: only `function` is known")
        tools.append({"type": "function", "function": dict(function)})
    return tuple(tools)


def check_links(turns: Iterable[Message]) -> None:
    """Raise InputError where a tool turn answers a call that no turn before it makes."""
    calls: set[str] = set()
    for number, turn in enumerate(turns, 1):
        calls |= {call["id"] for call in turn.tool_calls if "id" in call}
        if turn.tool_call_id is not None and turn.tool_call_id not in calls:
            raise InputError(
                f"message {number} (role tool) answers the tool call {turn.tool_call_id[:40]!r}, which no message "
                "before it makes",
                "correct `tool_call_id`, or the `id` of the call",
            )


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from None


def _json(value: Any, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise InputError(f"{where} cannot be written as JSON: {error}") from None
