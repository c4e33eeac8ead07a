"""Check nodes of a recipe against pydantic models, and say in a recipe's words what is wrong with them."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..errors import Problem
from ..text import nearest, quoted
from .yaml import SET, KeyPath, Node, scalar

M = TypeVar("M", bound=BaseModel)

# pydantic's error type -> what the value must be, for "must be X, not Y"
_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "a mapping of keys",
    "mapping_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "dataclass_type": "a mapping of keys",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "none_required": "empty (null)",
}
_SCALAR_TYPES = {"int_type", "int_from_float", "float_type", "bool_type", "string_type"}
_BOOL_WORDS = {"yes": "true", "y": "true", "on": "true", "no": "false", "n": "false", "off": "false"}


def validate(
    model: type[M], node: Node, path: KeyPath, problems: list[Problem], also: Iterable[str] = (), who: str = ""
) -> M | None:
    """Build `model` from a mapping node; each mistake becomes a problem at its own place.

    `path` leads from the recipe's top to `node`; `also` are keys that are right beside the model's
    own (for suggestions); `who` names the plugin whose model it is.
    """
    data = node.plain()
    built, errors = _try(model, data, strict=False, node=node, path=path, who=who)
    # A second, strict look only for scalars: pydantic would read "5" as a number and "no" as false.
    _, strict = _try(model, data, strict=True, node=node, path=path, who=who)
    for place, group in strict.items():
        if any(isinstance(e, dict) and e["type"] in _SCALAR_TYPES for e in group):
            errors[place] = group
    for place, group in errors.items():
        if not any(len(other) > len(place) and other[: len(place)] == place for other in errors) or not place:
            problems += _translate(model, node, path, place, group, also)
    return built if not errors else None


def _try(
    model: type[M], data: Any, strict: bool, node: Node, path: KeyPath, who: str
) -> tuple[M | None, dict[KeyPath, list[Any]]]:
    """Return the built model, and pydantic's errors by the key they speak of."""
    grouped: dict[KeyPath, list[Any]] = {}
    try:
        return model.model_validate(data, strict=strict), {}
    except ValidationError as error:
        for item in error.errors(include_url=False):
            grouped.setdefault(_place_of(item, node), []).append(item)
    except Exception as error:  # a validator of a plugin may raise anything: that is the plugin's mistake
        message = f"the options of {who or 'this section'} cannot be checked: {type(error).__name__}: {error}"
        grouped[()] = [message]
    return None, grouped


def _place_of(error: Any, node: Node) -> KeyPath:
    """Return the error's path without the tags of unions, which name no key of the recipe."""
    place: list[str | int] = []
    for part in error["loc"]:
        below = node.below(part)
        if below is not None:
            node, place = below, [*place, part]
    return (*place, error["loc"][-1]) if error["type"] == "missing" else tuple(place)


def _translate(
    model: type[BaseModel], node: Node, path: KeyPath, place: KeyPath, errors: list[Any], also: Iterable[str]
) -> Iterator[Problem]:
    """Yield what pydantic's errors about one key mean, in a recipe's terms."""
    where, key = node.at(place), (*path, *place)
    if where.refused:
        return
    name = ".".join(map(str, key)) or "the recipe"
    wanted: list[str] = []
    for error in errors:
        if isinstance(error, str):
            yield where.problem(error, key)
        elif error["type"] == "missing":
            yield where.problem(f"`{name}` is required", key)
        elif error["type"] == "extra_forbidden":
            yield _unknown_key(_model_at(model, place[:-1]), where, key, also if len(place) == 1 else ())
        elif error["type"] in ("value_error", "assertion_error"):
            yield where.problem(f"`{name}`: {error['ctx']['error']}", key)
        elif error["type"] in _WANTED:
            wanted.append(_WANTED[error["type"]].format(**error.get("ctx", {})))
        elif match := re.match(r"\w+ should be (.*)", error["msg"]):
            wanted.append(match[1])
        else:
            yield where.problem(f"`{name}`: {error['msg']}", key)
    if wanted:
        message = f"`{name}` must be {' or '.join(dict.fromkeys(wanted))}, not {quoted(where.value)}"
        yield where.problem(message, key, _value_hint(where, errors))


def _value_hint(node: Node, errors: list[Any]) -> str | None:
    """Return how the value must be written to be what is wanted, where that can be guessed."""
    kinds = {e["type"].split("_")[0] for e in errors if isinstance(e, dict)}
    value, text = node.value, node.text or ""
    for error in errors:
        near = nearest(str(value), re.findall(r"'([^']*)'", str(error.get("ctx", {}).get("expected", ""))))
        if near and near != value:
            return f"did you mean {near}?"
    if "bool" in kinds and isinstance(value, str) and value.lower() in _BOOL_WORDS:
        return f"YAML 1.2 reads {value} as text: write {_BOOL_WORDS[value.lower()]}"
    if kinds & {"int", "float"} and isinstance(value, str):
        bare = value.strip().replace("_", "").replace(",", "")
        if isinstance(scalar(bare), int | float):
            why = "in quotes it is text" if bare == value else "YAML 1.2 reads this as text"
            return f"{why}: write {bare}"
    if "int" in kinds and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    if "string" in kinds and isinstance(value, int | float):
        return f'to mean text, put it in quotes: "{text}"'
    return None


def _unknown_key(model: type[BaseModel] | None, node: Node, path: KeyPath, also: Iterable[str]) -> Problem:
    key = str(path[-1])
    renamed: Mapping[str, str] = getattr(model, "renamed", {})
    # On the command line a key is written whole, and so is the one that was meant.
    above = "".join(f"{part}." for part in path[:-1]) if node.file == SET else ""
    refused: Mapping[str, tuple[str, str]] = getattr(model, "refused", {})
    if key in refused:
        why, fix = refused[key]
        return node.problem(f"`{key}`: {why}", path, fix)
    if key in renamed:
        return node.problem(f"`{key}`: in ftkit this is `{above}{renamed[key]}`", path)
    known = [*(field_names(model) if model else ()), *also]
    near = nearest(key, known) or renamed.get(nearest(key, renamed) or "")
    hint = f"did you mean `{above}{near}`?" if near else f"known here: {', '.join(known) or 'no keys'}"
    return node.problem(f"unknown key `{key}`", path, hint)


def field_names(model: type[BaseModel]) -> list[str]:
    """Return the keys that a recipe may write for `model`."""
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_at(model: type[BaseModel] | None, path: KeyPath) -> type[BaseModel] | None:
    """Return the model that describes the mapping at `path`, looking through lists, unions and dicts."""
    for part in path:
        fields = model.model_fields if model else {}
        found = [f for name, f in fields.items() if part in (name, f.alias)]
        if found:
            model = _model_in(found[0].annotation)
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for m in map(_model_in, typing.get_args(annotation)) if m), None)
