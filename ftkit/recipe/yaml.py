"""Read YAML 1.2 into nodes that know their place, and write it.

Everything a user can do wrong becomes a `Problem` in a list, so that all mistakes are shown at once.
Scalars follow the core schema of YAML 1.2 to the letter: `2e-4` is a number; `no`, `1_000` and dates
are text. Tags, merge keys and further documents are refused; nothing ever builds a Python object.
"""

from __future__ import annotations

import codecs
import contextlib
import difflib
import io
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..charsets import conversion, likely
from ..errors import Problem
from ..text import MAX_KEY, printable, quoted

MAX_BYTES = 250_000  # what the parser reads in about a second at its slowest
MAX_NODES = 5_000  # counted with aliases expanded; a long recipe has two hundred
MAX_DEPTH = 40
SET = "--set"  # the "file" that overrides stand in

KeyPath = tuple[str | int, ...]

_INT = re.compile(r"[-+]?[0-9]{1,40}")
_OCTAL_HEX = re.compile(r"0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_CONSTANTS: dict[str, bool | None] = dict.fromkeys(("", "~", "null", "Null", "NULL"))
_CONSTANTS |= dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)
# Three simple classes instead of one: a class that mixes planes takes ten milliseconds to compile.
_UNREADABLE = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x84\\x86-\\x9f]|[\\ud800-\\udfff]|[\\ufffe\\uffff]")


@dataclass(frozen=True, slots=True)
class Node:
    """One value and where its key stands: `value` is a scalar, a dict of nodes or a list of nodes."""

    value: Any
    file: str | None = None
    line: int | None = None  # from 1
    column: int | None = None  # from 1
    size: int = 1  # nodes in it, itself included
    text: str | None = None  # a scalar as it was written
    refused: bool = False  # a problem says already that it cannot stand here

    def plain(self) -> Any:
        """Return the value as nested dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value

    def at(self, path: Iterable[str | int]) -> Node:
        """Return the node at `path`, or the last one on the way to it that exists."""
        node = self
        for part in path:
            below = node.below(part)
            if below is None:
                break
            node = below
        return node

    def below(self, part: str | int) -> Node | None:
        if isinstance(self.value, dict):
            return self.value.get(part)
        inside = isinstance(self.value, list) and isinstance(part, int) and part < len(self.value)
        return self.value[part] if inside else None

    def problem(self, message: str, path: KeyPath = (), hint: str | None = None, level: str = "error") -> Problem:
        """Return a problem that stands where this node does; what came from a file is made printable."""
        key = ".".join(map(str, path)) or None
        hint = hint and printable(hint)
        message = message if len(message) <= 500 else message[:500] + "..."
        return Problem(printable(message), self.file, self.line, self.column, key and printable(key), hint, level)


def scalar(text: str) -> str | int | float | bool | None:
    """Return what an unquoted scalar means in YAML 1.2's core schema.

    Without its infinities and not-a-number: those, and integers of more than 40 digits, stay text.
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _OCTAL_HEX.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text) and abs(float(text)) != float("inf"):
        return float(text)
    return text


# ---------------------------------------------------------------- reading


class Unreadable(Exception):
    """A source cannot be read any further; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def read_file(path: str, problems: list[Problem]) -> Node:
    """Read a YAML file. Raises Unreadable where nothing can be made of it; other mistakes are added to `problems`."""
    here = Node(None, path)
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            inside = sorted(n for n in os.listdir(path) if n.endswith((".yaml", ".yml")))
            hint = f"recipes in it: {', '.join(inside[:8])}" if inside else "name a .yaml file"
            raise Unreadable(here.problem("this is a directory, not a recipe", hint=hint))
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable(here.problem("this is not a regular file"))
        if status.st_size > MAX_BYTES:
            size = f"{status.st_size / 1e6:,.1f} MB"
            raise Unreadable(here.problem(f"{size} is too large for a recipe (limit {MAX_BYTES / 1e6} MB)"))
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES)
    except FileNotFoundError:
        raise Unreadable(here.problem("no such file", hint=nearest_file(path))) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = getattr(error, "strerror", None) or str(error)
        raise Unreadable(here.problem(f"cannot be read: {why}")) from None
    return read_text(_decode(data, here), path, problems)


def read_lines(path: str) -> list[str]:
    """Return the lines of a recipe as the parser counts them; none where the file cannot be read."""
    try:
        if not os.path.isfile(path) or os.path.getsize(path) > MAX_BYTES:
            return []
        with open(path, "rb") as file:
            text = _decode(file.read(MAX_BYTES), Node(None, path))
    except (OSError, ValueError, Unreadable):
        return []
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def nearest_file(path: str) -> str | None:
    folder = os.path.dirname(path) or "."
    with contextlib.suppress(OSError, ValueError):
        names = [n for n in os.listdir(folder) if n.endswith((".yaml", ".yml"))]
        stems = {os.path.splitext(n)[0]: n for n in names}  # what all names end in makes none of them nearer
        near = difflib.get_close_matches(os.path.splitext(os.path.basename(path))[0], stems, 1, 0.8)
        return f"did you mean {os.path.join(os.path.dirname(path), stems[near[0]])}?" if near else None
    return None


def _decode(data: bytes, here: Node) -> str:
    boms = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    encoding = next((name for bom, name in boms.items() if data.startswith(bom)), "utf-8")
    try:
        return data.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        place = replace(here, line=data.count(b"\n", 0, error.start) + 1)
        message = f"not {encoding.upper()} text: byte 0x{data[error.start]:02x} cannot be read"
        found = likely(data)
        looks = f"it looks like {found}; " if found else ""
        hint = f"{looks}save the file as UTF-8: {conversion(str(here.file), found)}"
        raise Unreadable(place.problem(message, hint=hint)) from None


def read_text(text: str, file: str | None, problems: list[Problem]) -> Node:
    """Read one YAML document; raises Unreadable where its syntax is broken."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    bad = _UNREADABLE.search(text)
    if bad:
        line = text.count("\n", 0, bad.start()) + 1
        column = bad.start() - text.rfind("\n", 0, bad.start())
        hint = "save the file as UTF-8" if bad.group() in "\0\x1b" else None
        message = f"the character U+{ord(bad.group()):04X} cannot stand in a recipe"
        raise Unreadable(Node(None, file, line, column).problem(message, hint=hint))
    return _Builder(text, file, problems).document()


class _Builder:
    """Builds nodes from the parser's events, which carry places and explicit tags."""

    def __init__(self, text: str, file: str | None, problems: list[Problem]) -> None:
        self.file, self.problems = file, problems
        self.anchors: dict[str, Node] = {}
        self.events = self._parse(text)
        self.last = Node(None, file, 1, 1)
        self.count = 0

    def _parse(self, text: str) -> Iterator[Any]:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError

        try:
            yield from YAML(typ="safe", pure=True).parse(text)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = self._place(mark) if mark else self.last
            problem, context = error.problem or error.context or "broken syntax", error.context or ""
            opened = error.context_mark.line + 1 if error.context_mark else place.line
            raise Unreadable(place.problem(*_syntax(problem, context, opened, place.line))) from None
        except (RecursionError, ArithmeticError, LookupError, ValueError, TypeError, AttributeError, AssertionError):
            # the parser stumbles on some broken input (an escape beyond Unicode, say) instead of reporting it
            raise Unreadable(self.last.problem("not valid YAML, soon after this place")) from None

    def _place(self, mark: Any) -> Node:
        return Node(None, self.file, mark.line + 1, mark.column + 1)

    def _next(self) -> tuple[str, Any]:
        event = next(self.events)
        self.last = self._place(event.start_mark)
        return type(event).__name__, event

    def _stop(self, message: str, hint: str | None = None) -> Unreadable:
        return Unreadable(self.last.problem(message, hint=hint))

    def document(self) -> Node:
        self._next()  # the stream's start
        kind, _ = self._next()
        if kind == "StreamEndEvent":
            raise self._stop("the file is empty", "`ftkit recipes` lists recipes to start from")
        root = self._node(*self._next(), depth=0)
        self._next()  # the document's end
        kind, _ = self._next()
        if kind != "StreamEndEvent":
            raise self._stop("a second document starts here: a recipe is one document", "remove the `---` line")
        return root

    def _node(self, kind: str, event: Any, depth: int) -> Node:
        place = self.last
        self.count += 1
        if depth > MAX_DEPTH:
            raise self._stop(f"nested deeper than {MAX_DEPTH} levels")
        if self.count > MAX_NODES:
            raise self._stop(f"more than {MAX_NODES} values: this is not a recipe")
        if kind == "AliasEvent":
            if event.anchor not in self.anchors:
                raise self._stop(f"the alias *{event.anchor} has no anchor &{event.anchor} before it")
            return replace(self.anchors[event.anchor], file=place.file, line=place.line, column=place.column)
        if event.ctag is not None:
            tag = f"the tag `{event.ctag}` is not allowed"
            self.problems.append(place.problem(tag, hint="write the plain value; quotes make it text"))
            place = replace(place, refused=True)
        if kind == "ScalarEvent":
            node = self._scalar(place, event)
        elif kind == "SequenceStartEvent":
            items = []
            while (step := self._next())[0] != "SequenceEndEvent":
                items.append(self._node(*step, depth + 1))
            node = replace(place, value=items, size=1 + sum(n.size for n in items))
        else:
            entries = self._mapping(depth)
            node = replace(place, value=entries, size=1 + sum(n.size for n in entries.values()))
        if node.size > MAX_NODES:  # no alias is ever followed further than this
            raise self._stop(f"more than {MAX_NODES} values once its aliases are expanded: this is not a recipe")
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def _scalar(self, place: Node, event: Any) -> Node:
        text = _text(event.value, place, self.problems)
        return replace(place, value=text if event.style else scalar(text), text=text)

    def _mapping(self, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while (step := self._next())[0] != "MappingEndEvent":
            place = self.last
            key = self._node(*step, depth + 1).text
            value = self._node(*self._next(), depth + 1)
            if key is None or len(key) > MAX_KEY:
                self.problems.append(place.problem("this key is not a short word"))
            elif key in entries:
                first = entries[key]
                message = f"`{key}` is written twice; the first is on line {first.line}"
                self.problems.append(place.problem(message, (key,), "keep one of the two"))
            else:
                entries[key] = replace(value, line=place.line, column=place.column)
        return entries


def _text(text: str, place: Node, problems: list[Problem]) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # "\\ud800" is legal YAML, and yet no text
        with contextlib.suppress(UnicodeError):  # JSON writes one character of a higher plane as two of them
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        problems.append(place.problem("a lone surrogate is not text", hint="write the character itself"))
        return ""
    return text


_BESIDE = {  # what the parser finds where a section should continue or end -> message and hint
    "-": ("a list item stands among keys", "a list stands under a key of its own"),
    "?": ("a key stands among list items", "indent it like the list's key, or like the item's text"),
    "<block mapping start>": ("this line is indented unlike those above it", "keys of one section start in one column"),
}


def _syntax(problem: str, context: str, opened: int | None, line: int | None) -> tuple[str, KeyPath, str | None]:
    """Return message, path and hint for one of the parser's complaints, about `line` of what was `opened` before."""
    if "'\\t'" in problem:
        return "a tab cannot indent or separate here", (), "use spaces"
    if "mapping values are not allowed" in problem:
        return "not valid YAML: a second `: ` on this line", (), "put text that contains `: ` in quotes"
    if "parsing a flow" in context and problem.startswith("expected ',' or"):
        bracket, end = "{}" if "mapping" in context else "[]"
        where = (
            f" of the `{bracket}` that was opened on line {opened}" if opened != line or "stream end" in problem else ""
        )
        return f"not valid YAML: a `,` or the `{end}`{where} is missing before this", (), None
    if "quoted scalar" in context and "end of stream" in problem:
        return f"not valid YAML: the text in quotes that starts on line {opened} does not end", (), "close the quotes"
    for found, (message, way_out) in _BESIDE.items():
        if problem == f"expected <block end>, but found '{found}'":
            return f"not valid YAML: {message}", (), way_out
    hint = "write the value in quotes" if "cannot start any token" in problem else None
    return f"not valid YAML: {problem}", (), hint


def read_value(value: Any, problems: list[Problem], place: Node, depth: int = 0) -> Node:
    """Make a node of a Python value (a notebook's mapping), every part of it standing at `place`."""
    if depth > MAX_DEPTH:
        raise Unreadable(place.problem(f"nested deeper than {MAX_DEPTH} levels"))
    if isinstance(value, os.PathLike):
        value = str(os.fspath(value))
    if isinstance(value, Mapping):
        entries = {str(k): read_value(v, problems, place, depth + 1) for k, v in value.items()}
        node = replace(place, value=entries, size=1 + sum(n.size for n in entries.values()))
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        items = [read_value(v, problems, place, depth + 1) for v in value]
        node = replace(place, value=items, size=1 + sum(n.size for n in items))
    else:
        if isinstance(value, float) and not abs(value) < float("inf"):
            value = str(value)
        if not isinstance(value, str | int | float | bool | None):
            problems.append(place.problem(f"a value of type {type(value).__name__} cannot stand in a recipe"))
            value = None
        if isinstance(value, str):
            value = _text(value, place, problems)
        node = replace(place, value=value, text=str(value))
    if node.size > MAX_NODES:
        raise Unreadable(place.problem(f"more than {MAX_NODES} values: this is not a recipe"))
    return node


def read_override(text: str, problems: list[Problem]) -> tuple[list[str], Node]:
    """Read `a.b=value`: the keys and the value, which is a YAML scalar or starts with one of [ { " '."""
    place = Node(None, SET)
    keys, equals, value = text.partition("=")
    if not equals or not all(keys.split(".")):
        message = f"{quoted(text)} is not KEY=VALUE"
        hint = (
            "write the ASCII `=`, not a full-width `＝`" if "＝" in text else "such as --set backend.learning_rate=2e-4"
        )
        raise Unreadable(place.problem(message, hint=hint))
    value = value.strip()
    if not value.startswith(("[", "{", '"', "'")):
        if _UNREADABLE.search(value):
            raise Unreadable(place.problem(f"{quoted(text)} contains a character that cannot stand in a recipe"))
        return keys.strip().split("."), replace(place, value=scalar(value), text=value)
    try:
        return keys.strip().split("."), _without_lines(read_text(value, SET, problems))
    except Unreadable as error:
        hint = f"text that starts with {value[0]} needs quotes: --set '{keys}=\"...\"'"
        raise Unreadable(place.problem(f"`{keys}`: {error.problem.message}", hint=hint)) from None


def _without_lines(node: Node) -> Node:
    value = node.value
    if isinstance(value, dict):
        value = {k: _without_lines(n) for k, n in value.items()}
    elif isinstance(value, list):
        value = [_without_lines(n) for n in value]
    return replace(node, value=value, line=None, column=None)


# ---------------------------------------------------------------- writing


def write(data: Mapping[str, Any]) -> str:
    """Return YAML that this module reads back as the same data."""
    from ruamel.yaml import YAML
    from ruamel.yaml.representer import SafeRepresenter

    class Representer(SafeRepresenter):
        def text(self, value: str) -> Any:
            style = "|" if "\n" in value.strip("\n") else None
            if _UNREADABLE.search(value) or not isinstance(scalar(value), str):
                style = '"'  # the writer's idea of what needs quotes is wider, but not quite the same
            return self.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Representer.add_representer(str, Representer.text)
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 120
    out = io.StringIO()
    yaml.dump(dict(data), out)
    return out.getvalue()
