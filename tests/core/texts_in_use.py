"""Finds every text of ftkit that the catalogue must translate: in the code, the templates and the scripts."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import jinja2
from jinja2 import nodes

PACKAGE = Path(__file__).parents[2] / "ftkit"
TEMPLATES = PACKAGE / "report" / "page" / "templates"
ALL = {"tr": 1, "msg": 1, "plural": 3}  # function -> how many of its first arguments are looked at
IN_TEMPLATES = {"_": 1, "_html": 1, "_n": 3}
SCRIPT = re.compile(r'\btr\("([^"]*)"')


def texts_in_use() -> set[str]:
    """Return the English texts that `tr`, `msg`, `plural` and `joined` are given, and those of templates and scripts."""
    found = {text for path in PACKAGE.rglob("*.py") for text in _in_code(path)}
    found |= {text for path in TEMPLATES.glob("*.j2") for text in _in_template(path)}
    found |= {text for path in TEMPLATES.glob("*.js") for text in SCRIPT.findall(path.read_text("utf-8"))}
    return found | {", "}  # what `joined` puts between two parts where it is told nothing else


def _in_code(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        arguments = node.args[: ALL.get(node.func.id, 0)]
        if node.func.id == "joined":
            arguments = [*node.args[1:], *(keyword.value for keyword in node.keywords)]
        for argument in arguments:
            yield from _constants(argument)


def _constants(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from (*_constants(node.body), *_constants(node.orelse))


def _in_template(path: Path) -> Iterator[str]:
    for call in jinja2.Environment().parse(path.read_text("utf-8")).find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name in IN_TEMPLATES:
            for argument in call.args[: IN_TEMPLATES[call.node.name]]:
                yield from (c.value for c in (argument, *argument.find_all(nodes.Const)) if _is_text(c))


def _is_text(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Const) and isinstance(node.value, str)
