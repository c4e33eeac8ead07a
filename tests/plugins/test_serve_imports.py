"""How the modules of ftkit_serve import each other: without cycles, and nothing heavy before the command runs."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "plugins" / "ftkit_serve"
MODULES = {path.stem: path for path in PACKAGE.glob("*.py")}


class Imports(ast.NodeVisitor):
    """Collects the modules of the package that a module imports, also inside functions, not under TYPE_CHECKING."""

    def __init__(self, source: str) -> None:
        self.found: set[str] = set()
        self.visit(ast.parse(source))

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for child in node.orelse:
                self.visit(child)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = f"{PACKAGE.name}.{node.module or ''}".rstrip(".") if node.level else node.module or ""
        for name in (base, *(f"{base}.{alias.name}" for alias in node.names)):
            self._add(name)

    def _add(self, name: str) -> None:
        package, _, module = name.partition(".")
        if package == PACKAGE.name and module in MODULES:
            self.found.add(module)


def graph() -> dict[str, set[str]]:
    return {name: Imports(path.read_text()).found for name, path in MODULES.items()}


def test_imports_inside_functions_count_and_those_for_types_do_not() -> None:
    source = (
        "from typing import TYPE_CHECKING\n"
        "from ftkit.store import RunContext\n"
        "from . import events, finish\n"
        "import ftkit_serve.wire\n"
        "if TYPE_CHECKING:\n    from .jobs import Jobs\n"
        "def f():\n    from .store import Doc\n    from ftkit_serve.chat import chunks\n"
    )
    assert Imports(source).found == {"events", "finish", "wire", "store", "chat"}


def test_no_import_cycle() -> None:
    found = graph()
    assert found["command"] >= {"app", "state"} and found["app"] >= {"routes_files", "state"}  # it sees the imports
    list(graphlib.TopologicalSorter(found).static_order())  # raises CycleError, which names the cycle


@pytest.mark.parametrize("module", ["ftkit_serve", "ftkit_serve.command"])
def test_nothing_heavy_is_imported_before_the_command_runs(module: str) -> None:
    heavy = ("fastapi", "starlette", "uvicorn", "openai", "torch", "transformers", "numpy")
    code = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
