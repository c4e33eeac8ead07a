"""A YAML mistake names its section of docs/troubleshooting.md; another mistake does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
NAMED = 'see: docs/troubleshooting.md, "YAML mistake"'


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda text: text.replace("name:", "name: a: b", 1), True),  # two `: ` on a line
        (lambda text: text + "\nnote: [a, b", True),  # a bracket that does not end
        (lambda text: text.replace("name:", "\tname:", 1), True),
        (lambda text: text + "\nnotes: x", False),  # an unknown key: nothing is wrong with its YAML
    ],
)
def test_the_message_names_the_section(
    command: Callable[..., Any], tmp_path: Path, change: Callable[[str], str], named: bool
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(change("name: x\ndataset:\n  path: rows.jsonl\nbackend: fake\nevaluator: rouge\n"))
    for words in (("check", path), ("run", path)):
        ended = command(*words)
        assert ended.returncode == 2
        assert (NAMED in ended.stderr) is named, ended.stderr
    assert "\n## YAML mistake\n" in PAGE.read_text("utf-8")
