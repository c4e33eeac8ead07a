"""What the docs show is what the tests run."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import pytest

from ftkit import hookspecs

ROOT = Path(__file__).parents[1]
PLUGINS = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|toml|yaml)\n(.*?)^```$", PLUGINS, re.MULTILINE | re.DOTALL)
HOOKS = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("ftkit_")}


@pytest.mark.parametrize("block", [block for _, block in BLOCKS], ids=lambda block: block.splitlines()[0])
def test_code_about_plugins_is_in_the_tested_package(block: str) -> None:
    files = (path for path in (ROOT / "tests" / "third_party_plugin").iterdir() if path.is_file())
    assert any(block in path.read_text(encoding="utf-8") for path in files)


def test_every_block_is_looked_at() -> None:
    assert len(BLOCKS) * 2 == PLUGINS.count("```")


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_in_the_table(name: str) -> None:
    arguments = ", ".join(inspect.signature(HOOKS[name]).parameters)
    assert f"\n| `{name}({arguments})` | " in PLUGINS


def test_the_table_has_no_other_hooks() -> None:
    assert set(re.findall(r"ftkit_[a-z_]+(?=\()", PLUGINS)) == set(HOOKS)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", PLUGINS):
        assert (ROOT / "docs" / target).exists()


def commands() -> list[tuple[str, str]]:
    """Return (page, command) of every line in a block of the docs that calls ftkit."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = []
    for page in pages:
        for block in re.findall(r"^```[a-z]*\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            whole = block.replace("\\\n", " ")  # a command over several lines
            found += [(page.name, line) for line in re.findall(r"^(?:\$ )?(ftkit .*)$", whole, re.MULTILINE)]
    return found


@pytest.mark.parametrize(("page", "line"), commands(), ids=lambda text: text[:60])
def test_commands_in_the_docs_exist_with_their_options(page: str, line: str) -> None:
    import click

    from ftkit.cli.main import ftkit

    words = shlex.split(line, comments=True)[1:]
    command = ftkit.get_command(click.Context(ftkit), words[0])
    assert command is not None, f"{page}: {words[0]}"
    if isinstance(command, click.Group):  # of a plugin, such as `ftkit cloud stop`
        command = command.get_command(click.Context(command), words[1])
        assert command is not None, f"{page}: {words[:2]}"
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= options, f"{page}: {line}"
