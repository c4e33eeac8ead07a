"""Parts of the managed backend that need no server: the lint of a file, losses, dialects, options, its imports."""

from __future__ import annotations

import ast
import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ftkit_openai import OpenAIManaged
from ftkit_openai._check import _check_data, _check_options
from ftkit_openai._dialects import DIALECTS
from ftkit_openai._lint import lint, ranges
from ftkit_openai._results import parse_results, step_of
from ftkit_openai._tokens import ESTIMATE
from ftkit_openai.options import ManagedOptions
from openai_kit import ROOT, make_task

from ftkit.errors import RecipeError
from ftkit.recipe.load import load_recipe
from ftkit.records import ModelRef, Task


def chat(*contents: str, **more: Any) -> str:
    roles = ("user", "assistant")
    return json.dumps({"messages": [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)], **more})


def found(*lines: str, **how: Any) -> list[str]:
    """Return what the lint finds, with no minimum of rows."""
    return [f"{p.level}: {p}" for p in lint(lines, min_examples=0, **how)]


def test_a_good_file_has_no_problems() -> None:
    assert lint([chat(f"row {i}", "yes") for i in range(10)]) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("not json", "error: line 2: not JSON"),
        ('{"prompt": "x", "completion": "y"}', "error: line 2: no list of messages"),
        (json.dumps({"messages": [{"role": "robot", "content": "x"}, {"role": "assistant", "content": "y"}]}), "error: line 2: unknown role 'robot'"),
        (json.dumps({"messages": [{"role": "user", "content": "x"}]}), "error: line 2: no assistant answer to train on"),
        (chat("x", "y", "z"), "error: line 2: the last message is not the assistant's"),
        (chat("x", "  "), "error: line 2: the assistant message is empty"),
        (chat("", "y"), "warning: line 2: the user message is empty"),
        (json.dumps({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0.5}]}), "error: line 2: `weight` must be 0 or 1"),
        (json.dumps({"messages": [{"role": "user", "content": "x", "weight": 1}, {"role": "assistant", "content": "y"}]}), "error: line 2: `weight` must be 0 or 1"),
        (json.dumps({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0}]}), "error: line 2: no assistant answer to train on"),
        (chat("x <|endoftext|>", "y"), "error: line 2: the text contains the special token <|endoftext|>"),
        (chat("x", "y <|fim_suffix|>"), "error: line 2: the text contains the special token <|fim_suffix|>"),
        (chat("first", "row"), "warning: line 2: the same as line 1"),
    ],
)  # fmt: skip
def test_each_problem_is_named_with_its_line(line: str, says: str) -> None:
    assert [p for p in found(chat("first", "row"), line) if p.startswith(says)]


def test_all_lines_with_the_same_problem_are_reported() -> None:
    problems = found(*["broken" if i in (3, 7, 8, 9) else chat(f"row {i}", "yes") for i in range(1, 12)])
    assert problems[0] == "error: lines 3, 7-9: not JSON"
    assert ranges([9, 3, 10, 11, 3]) == "3, 9-11"


def test_a_problem_names_the_split_and_the_examples() -> None:
    rows = [*make_task().train]
    for i in range(3, 11):
        rows[i] = replace(rows[i], targets=("",))
    broken = Task("t", {"train": tuple(rows), "validation": (rows[3],), "test": ()}, {"train": "broken"}, "p")
    said = {f.message for f in _check_data(ManagedOptions(base_model="m", dialect="local"), broken)}
    assert "train, lines 4-11: the assistant message is empty (examples r3, r4, r5, r6, r7 and 3 more)" in said
    assert "validation, line 1: the assistant message is empty (example r3)" in said


def test_few_rows_and_long_rows() -> None:
    assert "9 examples: a provider requires at least 10" in str(lint([chat(f"row {i}", "yes") for i in range(9)])[0])
    long = found(chat("short", "y"), chat("long " * 50, "y"), max_tokens=40, count=ESTIMATE.chat)
    assert long == ["warning: line 2: longer than 40 tokens: truncated at the end, so that the answer is lost"]


# ---------------------------------------------------------------- losses


def event(message: str, data: Any = None) -> Any:
    return SimpleNamespace(message=message, data=data)


def test_steps_come_from_events() -> None:
    data = {"step": 88, "train_loss": 0.47, "total_steps": 100, "train_mean_token_accuracy": 0.92, "valid_loss": None}
    assert step_of(event("", data)) == {"step": 88, "loss": 0.47, "token_accuracy": 0.92, "max_steps": 100}
    assert step_of(event("Step 10/90: training loss=0.52")) == {"step": 10, "loss": 0.52, "max_steps": 90}
    assert step_of(event("Step 10: training loss=1.5e-2, validation loss=0.3")) == {"step": 10, "loss": 0.015}
    assert step_of(event("Files validated, moving job to queued state", {})) is None


@pytest.mark.parametrize("encode", [bytes, base64.b64encode, base64.encodebytes])
def test_a_result_file_is_read_plain_or_in_base64(encode: Any) -> None:
    csv = b"step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,2.5,0.1,,\n2,1.5,0.2,1.9,0.3\n3,nan,,,\n"
    text, rows = parse_results(encode(csv))
    assert text.startswith("step,train_loss")
    assert rows == [
        {"step": 1, "loss": 2.5, "token_accuracy": 0.1},
        {"step": 2, "loss": 1.5, "token_accuracy": 0.2, "valid_loss": 1.9, "valid_token_accuracy": 0.3},
    ]


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"<html>sorry</html>", b"bm90IGEgdGFibGU="])
def test_other_content_than_a_result_file_has_no_rows(data: bytes) -> None:
    assert parse_results(data)[1] == []


# ---------------------------------------------------------------- dialects and options


def test_dialects_take_their_own_hyperparameters() -> None:
    def wrong(**options: Any) -> list[str]:
        return [f.message for f in _check_options(ManagedOptions(base_model="m", **options))]

    assert wrong() == []
    assert wrong(learning_rate=1e-4, lora_r=8) == [
        "dialect openai has no learning_rate",
        "dialect openai has no lora_r",
    ]
    assert wrong(dialect="nebius", learning_rate=1e-4, lora_r=8) == []
    assert wrong(dialect="nebius", learning_rate_multiplier=2.0) == ["dialect nebius has no learning_rate_multiplier"]
    assert wrong(suffix="s" * 64) == wrong(suffix="s" * 48, dialect="nebius") == []
    assert "48 characters" in wrong(suffix="s" * 49, dialect="nebius")[0]
    with pytest.raises(ValueError, match="at most 64"):
        wrong(suffix="s" * 65)
    assert "deployed" in wrong(dialect="azure")[0]
    assert DIALECTS["nebius"].base_url == "https://api.tokenfactory.nebius.com/v1/"


HEX = "deadbeef" * 4


def test_azure_needs_its_token_before_anything_is_paid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    azure = {"subscription": "s", "resource_group": "g", "resource": "r"}
    options = ManagedOptions(base_model="m", dialect="azure", azure=azure)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AZURE_TOKEN", raising=False)
    (finding,) = _check_options(options)
    assert (
        finding.level == "error" and "AZURE_TOKEN is not set" in finding.message and "az account" in str(finding.hint)
    )
    assert not list(_check_options(options, trains=False))
    (tmp_path / ".env").write_text("AZURE_TOKEN=token\n")
    assert not list(_check_options(options))


def test_azures_base_model_answers_by_its_deployment() -> None:
    def base_model(**options: Any) -> ModelRef:
        backend = OpenAIManaged(ManagedOptions(base_model="gpt-4o-mini-2024-07-18", **options))
        return backend.base_model()

    assert base_model(dialect="azure", base_deployment="mini").uri == "mini"
    assert base_model(dialect="azure").uri == "gpt-4o-mini-2024-07-18"
    (finding,) = _check_options(ManagedOptions(base_model="m", base_deployment="mini"))
    assert finding.key == "backend.base_deployment"


@pytest.mark.parametrize("key", ["sk-proj-abcdef", HEX, HEX.upper(), "a" + HEX, 12345678, "my_key"])
def test_a_key_is_refused_as_the_name_of_a_variable(key: Any) -> None:
    with pytest.raises(ValueError, match=r"api_key_env[\s\S]*name of an environment variable") as caught:
        ManagedOptions(base_model="m", api_key_env=key)
    assert str(key) not in str(caught.value)
    with pytest.raises(RecipeError, match="name of an environment variable") as refused:
        load_recipe(
            {"dataset": {"path": "x"}, "backend": {"plugin": "openai-managed", "base_model": "m", "api_key_env": key}}
        )
    assert str(key) not in str(refused.value) and str(key) not in str([p.to_dict() for p in refused.value.problems])
    assert ManagedOptions(base_model="m", api_key_env="AZURE_OPENAI_API_KEY_2").api_key_env


def test_an_address_with_a_password_is_refused() -> None:
    with pytest.raises(ValueError, match="no user and password") as caught:
        ManagedOptions(base_model="m", base_url="http://user:secret@host/v1")
    assert "secret" not in str(caught.value)
    assert ManagedOptions(base_model="m", base_url="http://127.0.0.1:1/v1?x=a@b").base_url


def test_examples_are_shown_as_tokens_where_the_tokenizer_is_known() -> None:
    """With an encoding of single bytes: OpenAI's tables are not on every machine."""
    import tiktoken
    from ftkit_openai._render import _render_chats

    special = {"<|im_start|>": 256, "<|im_end|>": 257}
    own = tiktoken.Encoding(
        "bytes", pat_str=r"[\s\S]", mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens=special
    )
    (shown,) = _render_chats(own, 10**6, make_task(1, "hi").train[:1])
    assert shown.text == "<|im_start|>user\n0 hi<|im_end|><|im_start|>assistant\na short answer<|im_end|>"
    assert (
        "".join(t for t, in_loss in zip(shown.tokens, shown.loss_mask, strict=True) if in_loss)
        == "a short answer<|im_end|>"
    )
    assert len(shown.ids) == len(shown.loss_mask) == shown.n_prompt + len("a short answer") + 1
    (cut,) = _render_chats(own, shown.n_prompt + 5, make_task(1, "hi").train[:1])
    assert cut.truncated == (0, 10) and len(cut.ids) == shown.n_prompt + 5


def test_the_plugin_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = "import sys, ftkit_openai; print([m for m in ('openai', 'httpx2', 'torch', 'fastapi', 'tiktoken') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
    assert OpenAIManaged.requires.install == "ftkit[openai]"


# ---------------------------------------------------------------- imports between the modules of the plugin


def runtime_imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield every import of a module, those inside functions too, except under `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for other in node.orelse:
                yield from runtime_imports(other)
        else:
            yield from runtime_imports(node)


def import_graph(package: Path) -> dict[str, set[str]]:
    """Return which module of a package's folder (without its subfolders) imports which."""
    modules = {path.stem: path for path in package.glob("*.py")}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        found: set[str] = set()
        for node in runtime_imports(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif node.module and node.module != package.name:
                names = [f"{package.name}.{node.module}" if node.level else node.module]
            else:  # from . import NAME, from PACKAGE import NAME
                names = [f"{package.name}.{alias.name}" for alias in node.names]
            for imported in names:
                top, module = [*imported.split("."), ""][:2]
                if top == package.name and not (module and (package / module).is_dir()):
                    found.add(module if module in modules else "__init__")
        graph[name] = found
    return graph


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """Return one cycle of a graph as the names on it; an empty list where there is none."""
    done: set[str] = set()

    def visit(name: str, above: list[str]) -> list[str]:
        if name in above:
            return [*above[above.index(name) :], name]
        if name not in done:
            for other in sorted(graph[name]):
                cycle = visit(other, [*above, name])
                if cycle:
                    return cycle
            done.add(name)
        return []

    return next((cycle for name in sorted(graph) if (cycle := visit(name, []))), [])


def test_the_plugin_has_no_import_cycle() -> None:
    graph = import_graph(ROOT / "plugins" / "ftkit_openai")
    assert graph["_session"] >= {"_infer", "_batch"} and graph["__init__"] >= {"options", "_session", "_train"}
    assert cycle_in(graph) == []


def test_an_import_cycle_is_found_inside_functions_too(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("def f():\n    from .b import g\n")
    (package / "b.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import f\n")
    assert cycle_in(import_graph(package)) == []
    for line in ("from .a import f", "from . import a", "import package.a", "def g():\n    from package import a"):
        (package / "b.py").write_text(f"{line}\n")
        assert cycle_in(import_graph(package)) == ["a", "b", "a"], line
    (package / "b.py").write_text("from . import NAME\n")
    (package / "__init__.py").write_text("def f():\n    from .b import g\n")
    assert cycle_in(import_graph(package)) == ["__init__", "b", "__init__"]
