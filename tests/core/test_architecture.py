"""What the design forbids: import cycles, arrows that lead up, a core that names a provider, plugins that reach into it."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from ftkit import hookspecs

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "ftkit").rglob("*.py"))
PLUGINS = sorted(p.parent for p in (ROOT / "plugins").glob("*/__init__.py"))
NAMED = re.compile(r"\b(torch|transformers|trl|peft|deepspeed|openai|wandb|runpod|dstack|rouge|gsm8k)\b", re.I)
HEAVY = (
    *("torch", "transformers", "datasets", "trl", "peft", "evaluate", "bitsandbytes", "accelerate"),
    *("openai", "wandb", "rouge_score", "huggingface_hub", "numpy", "scipy", "pandas", "pyarrow", "jinja2"),
    *("fastapi", "starlette", "uvicorn", "trackio", "optuna"),
)
BUILDS_ON = {("ftkit_gsm8k", "ftkit_trl")}  # a plugin that openly builds on another

# What a plugin may import of the core. `hub` is there because models and datasets come from the same place.
PUBLIC = (
    "api",
    "causes",
    "records",
    "hookspecs",
    "errors",
    "files",
    "stats",
    "text",
    "batches",
    "score",
    "hub",
    "versions",
    "tracking",
    "probing",
)
ALLOWED = {f"ftkit.{name}" for name in PUBLIC}
# A server prepares run directories and executes them, as the command line does, and reads chats as the core reads them.
# With the dialect `local`, tokens are shown by the backend that the run's own server names.
ALSO_ALLOWED = {
    "ftkit_trl": {"ftkit.run.worker"},  # one process of a training with several is ftkit's worker
    "ftkit_openai": {"ftkit.plugins"},
    "ftkit_cloud": {"ftkit.plugins"},  # it asks which distributions hold the plugins of a recipe: they travel
    "ftkit_serve": {
        *("ftkit.directory", "ftkit.plugins", "ftkit.recipe.load", "ftkit.run.worker", "ftkit.data.messages"),
        "ftkit.use.models",  # it answers for finished runs, as `ftkit chat` does
    },
}

# The arrows go down only: what stands later here may import what stands earlier, and nothing after itself.
LEVELS = (
    {"lang"},
    {"charsets", "errors", "masking", "text"},
    {"causes", "commands", "probing", "terminal"},
    {"files", "hub", "versions"},
    {"records", "locked"},
    {"intervals", "machines"},
    {"batches", "stats"},
    {"api"},
    {"hookspecs", "score", "tracking"},
    {"plugins"},
    {"recipe"},
    {"directory", "console"},
    {"listing", "tokens"},
    {"data", "removal", "report"},
    {"frames", "run"},
    {"use"},
    {"doctor", "looking", "results"},
    {"sweep"},
    {"interface", "reproduce"},
    {"cli"},
    {"__main__", "__init__"},
)


# ---------------------------------------------------------------- imports


def module_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def type_only(tree: ast.AST) -> set[ast.AST]:
    """Return the imports under `if TYPE_CHECKING:`."""
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            found |= {inner for part in node.body for inner in ast.walk(part)}
    return found


def imported(path: Path, root: Path, modules: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yield (line, module) of every import of `modules` in a file: in functions too, by any spelling."""
    known = set(modules)
    module, tree = module_of(path, root), ast.parse(path.read_text())
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    skipped = type_only(tree)
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            start = ".".join(filter(None, [base, node.module]))
            names = [f"{start}.{alias.name}" if f"{start}.{alias.name}" in known else start for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name in known)


def graph(root: Path, files: Iterable[Path]) -> dict[str, set[str]]:
    files = list(files)
    modules = {module_of(path, root) for path in files}
    # `from ..text import x` in a package's own file is an import of the file, not of the package around it.
    return {
        module_of(path, root): {name for _, name in imported(path, root, modules)} - {module_of(path, root)}
        for path in files
    }


def cycles(edges: dict[str, set[str]]) -> list[set[str]]:
    """Return the groups of modules that import each other, directly or through others."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        stack = list(edges[start])
        while stack:
            name = stack.pop()
            if name not in seen:
                seen.add(name)
                stack += edges[name]
        return seen

    reach = {name: reachable(name) for name in edges}
    groups = [{other for other in reach[name] if name in reach[other]} for name in edges if name in reach[name]]
    return [group for i, group in enumerate(groups) if group not in groups[:i]]


def test_a_cycle_is_seen(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    files = {"__init__": "", "a": "from . import b", "b": "def f():\n    import p.c", "c": "from p.a import x", "d": ""}
    files["d"] = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .e import y"
    files["e"] = "from p import d"
    for name, text in files.items():
        (tmp_path / "p" / f"{name}.py").write_text(text)
    found = graph(tmp_path, (tmp_path / "p").glob("*.py"))
    assert cycles(found) == [{"p.a", "p.b", "p.c"}] and found["p.e"] == {"p.d"} and found["p.d"] == set()


def test_the_core_has_no_import_cycle() -> None:
    assert cycles(graph(ROOT, CORE)) == []


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda p: p.name)
def test_no_plugin_has_an_import_cycle(folder: Path) -> None:
    assert cycles(graph(ROOT / "plugins", folder.rglob("*.py"))) == []


def test_the_arrows_go_down() -> None:
    level = {name: number for number, names in enumerate(LEVELS) for name in names}
    edges = graph(ROOT, CORE)
    parts = {module: module.removeprefix("ftkit").strip(".").split(".")[0] or "__init__" for module in edges}
    assert set(parts.values()) == set(level), "every part of the core has its level"
    wrong = [
        f"{module} imports {other}"
        for module, others in edges.items()
        for other in others
        if parts[module] != parts[other] and level[parts[other]] >= level[parts[module]]
    ]
    assert not wrong


# ---------------------------------------------------------------- the core and its plugins


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


def test_the_tokeniser_sees_code_and_passes_over_prose() -> None:
    source = '"""Like torch."""\nx = 1  # as in trl\n\ndef f():\n    """rouge"""\n    return "peft", wandb\n'
    assert [NAMED.search(text)[0] for _, text in code(source) if NAMED.search(text)] == ["peft", "wandb"]  # type: ignore[index]


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_names_no_provider(path: Path) -> None:
    found = [f"{line}: {text}" for line, text in code(path.read_text()) if NAMED.search(text)]
    assert not found


def test_the_core_names_no_plugin_and_no_option_of_one() -> None:
    names = {p.name for p in PLUGINS}
    assert len(names) >= 3
    options = {"sequence_len", "lora_r", "micro_batch_size", "eval_batch_size", "find_window", "quantised"}
    for path in CORE:
        words = {word for _, text in code(path.read_text()) for word in re.findall(r"\w+", text)}
        allowed = {"eval_batch_size"}  # a property of every backend
        # The help of --set and --where shows an example of an option.
        allowed |= {"lora_r"} if path.parent.name == "cli" or path.name == "listing.py" else set()
        assert not words & ((names | options) - allowed), path


def test_plugins_do_not_import_each_other() -> None:
    modules = {p.name: list(p.rglob("*.py")) for p in PLUGINS}
    names = {module_of(path, ROOT / "plugins") for paths in modules.values() for path in paths}
    for folder, paths in modules.items():
        for path in paths:
            for line, name in imported(path, ROOT / "plugins", names):
                other = name.split(".")[0]
                assert other == folder or (folder, other) in BUILDS_ON, f"{path}:{line} imports {name}"


def reaches_into_the_core(path: Path, root: Path, allowed: set[str]) -> list[str]:
    core = {module_of(p, ROOT) for p in CORE}
    return [f"{path.name}:{line}: {name}" for line, name in imported(path, root, core) if name not in allowed]


def test_plugins_import_only_what_is_public(tmp_path: Path) -> None:
    """What a third party's plugin can use is enough for ours."""
    for folder in PLUGINS:
        allowed = ALLOWED | ALSO_ALLOWED.get(folder.name, set())
        for path in folder.rglob("*.py"):
            assert not reaches_into_the_core(path, ROOT / "plugins", allowed), folder.name
    spellings = ("from ftkit.run import stages", "import ftkit.run.stages", "def f():\n    from ftkit import interface",
                 "from ftkit.recipe.load import load_recipe", "import ftkit.plugins as p")  # fmt: skip
    for text in spellings:  # the test sees all of them
        (tmp_path / "sly.py").write_text(text)
        assert reaches_into_the_core(tmp_path / "sly.py", tmp_path, ALLOWED), text


def test_every_plugin_folder_is_declared_and_light() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["ftkit"]
    assert {p.name for p in PLUGINS} == set(declared.values())
    for module in declared.values():
        check = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n", module


# ---------------------------------------------------------------- hooks


HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("ftkit_"))


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_tested_and_called(hook: str) -> None:
    assert f"`{hook}(" in (ROOT / "docs" / "plugins.md").read_text(), "documented"
    tests = [p for p in (ROOT / "tests").rglob("*.py") if p != Path(__file__)]
    assert any(hook in p.read_text() for p in tests), "tested"
    calls = [p for p in CORE if p.name != "hookspecs.py" and hook in " ".join(text for _, text in code(p.read_text()))]
    assert calls, "called"
