"""What trackers tell others: picked by allow-lists, cut, and free of paths, users and keys in addresses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ftkit
from ftkit import tracking
from ftkit.console import Console
from ftkit.files import read_json, write_json
from ftkit.records import Pair, Report

Make = Callable[..., Any]


@pytest.fixture
def run(recipe: Make, fakes: ModuleType, tmp_path: Path) -> ftkit.RunResult:
    return ftkit.run(recipe(), out=tmp_path / "runs", console=Console(silent=True))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("/Users/alice/data/rows.jsonl", "rows.jsonl"),
        ("/Users/alice/my data/", "my data"),
        ("~/models/llama", "llama"),
        (r"C:\Users\alice\rows.csv", "rows.csv"),
        (r"\\server\share\rows.csv", "rows.csv"),
        ("https://alice:secret@proxy.local:8443/v1?api-key=secret#x", "https://proxy.local:8443"),
        ("postgres://u:p@db/prod", "postgres://db"),
        ("https://[broken", ""),
        ("file:///Users/alice/rows", "file://"),
        ("/", "/"),
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("package:ftkit_quickstart/model", "package:ftkit_quickstart/model"),
        ("data/rows.jsonl", "data/rows.jsonl"),
        (0.5, 0.5),
        (None, None),
        (True, True),
    ],
)
def test_paths_and_addresses_are_told_in_part(value: Any, told: Any) -> None:
    assert tracking.shareable(value) == told
    assert tracking.shareable({"a": [value, {"b": value}]}) == {"a": [told, {"b": told}]}


def test_long_texts_are_cut() -> None:
    assert len(tracking.shareable("x" * 1_000_000)) == tracking.MAX_TEXT


def test_only_known_keys_are_told(run: ftkit.RunResult, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = run.dir / "lock.json"
    write_json(lock, {**read_json(lock), "surprise": "sk-secret"})
    recipe = run.directory.resolved_recipe()
    recipe |= {"surprise": "sk-secret", "tracking": [{"plugin": "wandb", "api_key": "sk-secret"}]}
    recipe["prompt"]["template"] = "/no_think {input}"
    monkeypatch.setattr(run.directory, "resolved_recipe", lambda: recipe)
    config = tracking.config(run.directory)
    assert "sk-secret" not in json.dumps(config)
    assert config["recipe"]["prompt"]["template"] == "/no_think {input}"
    assert config["recipe"]["dataset"]["path"] == "rows" and config["lock"]["python"]


def test_numbers_are_finite_numbers() -> None:
    event = {"event": "step", "time": 1.0, "step": 3, "max_steps": 9, "loss": 2.0, "bad": math.nan, "far": math.inf}
    assert tracking.numbers({**event, "flag": True, "none": None, "text": "9", "list": [1]}) == {"loss": 2.0}


def test_a_repeated_step_is_told_once(run: ftkit.RunResult) -> None:
    def event(step: int, kind: str = "step", **values: Any) -> dict[str, Any]:
        return {"event": kind, "step": step, "time": 4e9, **values}

    fresh = tracking.Fresh(run.directory, resumed=True)
    assert fresh.before == 8, "6 steps, one measurement, the end"
    assert [fresh(event(step)) for step in (5, 6, 7, 8)] == [False, False, True, True]
    assert [fresh(event(6, "eval")), fresh(event(7, "eval"))] == [False, True]
    assert fresh(event(1, name="other")) and fresh({"event": "note", "time": 4e9})
    assert all(tracking.Fresh(run.directory, resumed=False)(event(step)) for step in (1, 6))


def test_a_table_is_cut_in_rows_and_cells() -> None:
    pair = Pair("1", "in" * 500, ("a" * 50, "b"), {"base": {"text": "t" * 100, "score": 0.5, "error": None},
                                                   "tuned": {"text": "", "score": None, "error": "timed out"}})  # fmt: skip
    report = Report("", "", "", "f1", (), (), (pair,) * 30)
    columns, rows = tracking.table(report, 20, 10)
    assert columns == ["id", "input", "target", "base", "base f1", "tuned", "tuned f1", "difference"]
    assert len(rows) == 20
    assert rows[0] == ["1", "inininini…", "aaaaaaaaa…", "ttttttttt…", 0.5, "(failed: …", None, None]
    assert tracking.table(report, 0, 10)[1] == []
