"""What the design forbids: the core names no provider and imports no plugin; plugins stay light and apart."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "ftkit").rglob("*.py"))
PLUGINS = sorted(p.parent for p in (ROOT / "plugins").glob("*/__init__.py"))
NAMED = re.compile(r"\b(torch|transformers|trl|peft|deepspeed|openai|wandb|runpod|dstack|rouge|gsm8k)\b", re.I)
HEAVY = (
    *("torch", "transformers", "datasets", "trl", "peft", "evaluate", "bitsandbytes", "accelerate"),
    *("openai", "wandb", "rouge_score", "huggingface_hub", "numpy", "scipy", "pandas", "pyarrow", "jinja2"),
    *("fastapi", "starlette", "uvicorn"),
)
BUILDS_ON = {("ftkit_gsm8k", "ftkit_trl")}


def docstrings(tree: ast.AST) -> set[tuple[int, int]]:
    """Return where the docstrings of a module begin: (line, column), as tokenize gives them."""
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, holders) and ast.get_docstring(node, clean=False) is not None:
            found.add((node.body[0].lineno, node.body[0].col_offset))
    return found


def code(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every token that is neither a comment nor a docstring."""
    skipped = docstrings(ast.parse(source))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT and token.start not in skipped:
            yield token.start[0], token.string


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, top-level package) of every import anywhere in a module, in functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.split(".")[0]


def test_the_tokeniser_sees_code_and_passes_over_prose() -> None:
    source = '"""Like torch."""\nx = 1  # as in trl\n\ndef f():\n    """rouge"""\n    return "peft", wandb\n'
    assert [NAMED.search(text)[0] for _, text in code(source) if NAMED.search(text)] == ["peft", "wandb"]  # type: ignore[index]


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_names_no_provider(path: Path) -> None:
    found = [f"{line}: {text}" for line, text in code(path.read_text()) if NAMED.search(text)]
    assert not found


def test_the_core_imports_no_plugin_and_names_none() -> None:
    names = {p.name for p in PLUGINS}
    assert len(names) >= 3
    for path in CORE:
        source = path.read_text()
        assert not [found for found in imports(source) if found[1] in names], path
        assert not [text for _, text in code(source) if re.search(rf"\b({'|'.join(names)})\b", text)], path


def test_plugins_do_not_import_each_other() -> None:
    names = {p.name for p in PLUGINS}
    for folder in PLUGINS:
        for path in folder.rglob("*.py"):
            for line, package in imports(path.read_text()):
                other = package in names and package != folder.name and (folder.name, package) not in BUILDS_ON
                assert not other, f"{path}:{line} imports {package}"


def test_plugins_use_only_what_the_core_makes_public() -> None:
    """No plugin reaches into the running of runs: what a stranger's plugin can use is enough for ours."""
    private = {
        "ftkit.runner",
        "ftkit.cli",
        "ftkit.preflight",
        "ftkit.observers",
        "ftkit.validation",
        "ftkit.report.build",
    }
    for folder in PLUGINS:
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom):
                    assert node.module not in private, f"{path}:{node.lineno}"


def test_every_plugin_folder_is_declared_and_light() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["ftkit"]
    assert {p.name for p in PLUGINS} == set(declared.values())
    for module in declared.values():
        check = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n", module


def test_the_interfaces_know_nothing_of_runs() -> None:
    """The arrows point one way: api and records are below the runner and the command line."""
    above = {"runner", "cli", "notebook", "preflight", "report", "console", "measure"}
    for name in ("records", "errors", "api", "hookspecs", "stats", "plugins", "recipe", "data"):
        tree = ast.parse((ROOT / "ftkit" / f"{name}.py").read_text())
        found = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level == 1}
        assert not found & above, name
