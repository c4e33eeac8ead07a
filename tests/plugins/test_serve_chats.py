"""Training files of `ftkit serve`: tools are carried, and the trained turns are those of `dataset.train_on: all`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ftkit_serve.chats import InvalidFile, read_examples, read_message

from ftkit.data.task import load_task
from ftkit.recipe.load import load_recipe
from ftkit.records import Example

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Tokyo"}'}}
TOOL = {"type": "function", "function": {"name": "weather"}}
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None},
    {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
    {"role": "assistant", "content": "Sunny.", "weight": 0},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]


def examples(path: Path, *rows: dict[str, Any]) -> list[Example]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_examples(path, "training_file", 1)


def test_tools_and_calls_are_carried(tmp_path: Path) -> None:
    calling, last = examples(tmp_path / "rows", {"messages": TURNS, "tools": [TOOL]})
    assert calling.target_turn.tool_calls == (CALL,) and calling.tools == last.tools == (TOOL,)
    assert [(m.role, m.content, m.tool_call_id) for m in last.messages[1:3]] == [("assistant", "", None), ("tool", "sunny", "c1")]  # fmt: skip
    assert last.messages[1].tool_calls == (CALL,) and last.targets == ("Yes.",)
    assert all(m.weight is None for m in last.messages), "each turn is trained on once"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "tool call 1: `arguments` is not JSON"),
        ({"tool_calls": "f()"}, "tool calls must be a list"),
        ({"mood": "good"}, "has `mood`"),
        ({"function_call": {"name": "f", "arguments": "{}"}}, "has `function_call`"),
        ({"tool_call_id": "c1"}, "only a tool message answers a call"),
        ({"name": 7}, "`name` must be text"),
        ({"weight": 2}, '"weight" must be 0 or 1'),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidFile) as caught:
        examples(tmp_path / "rows", {"messages": TURNS}, {"messages": [*TURNS[:5], {**TURNS[5], **change}]})
    assert "Line 2: message 6" in str(caught.value) and message in str(caught.value)


def test_rows_with_unread_tools_are_refused(tmp_path: Path) -> None:
    for row, message in (
        ({"tools": "weather"}, '"tools" is not JSON'),
        ({"functions": [{"name": "f"}]}, '"functions" is deprecated'),
        ({"messages": [TURNS[0], {**TURNS[2], "tool_call_id": "c9"}, TURNS[5]]}, "answers the tool call 'c9'"),
    ):
        with pytest.raises(InvalidFile) as caught:
            examples(tmp_path / "rows", {"messages": TURNS, **row})
        assert "Line 1: " in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize("field", [{"name": "Anna"}, {"tool_calls": [CALL]}, {"tool_call_id": "c1"}])
def test_a_request_with_tools_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f'messages.0.: "{next(iter(field))}" is not supported'):
        read_message({"role": "assistant", "content": "a", **field}, "messages[0]")


@pytest.mark.parametrize("train_on", ["last", "all"])
def test_a_recipe_and_its_training_file_train_on_the_same_turns(fakes: Any, tmp_path: Path, train_on: str) -> None:
    """What `Example.training_chat` writes is read back with the same turns in the loss mask."""
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"messages": TURNS, "tools": [TOOL]}) + "\n")
    dataset = {"path": str(tmp_path), "columns": {"messages": "messages"}, "train_on": train_on, "splits": {"validation": 0}}  # fmt: skip
    recipe = {"name": "a", "dataset": dataset, "backend": {"plugin": "fake"}, "evaluator": "fake-overlap"}
    (example,) = load_task(load_recipe(recipe))[0].train
    trained = [m for m in (*example.messages, example.target_turn) if m.weight == 1] + [example.target_turn]
    read = examples(tmp_path / "rows", example.training_chat())
    assert [(e.target_turn.content, e.target_turn.tool_calls) for e in read] == [(m.content, m.tool_calls) for m in trained]  # fmt: skip
    assert len(read) == {"last": 1, "all": 2}[train_on]
    assert read[-1].tools == example.tools and [m.asked() for m in read[-1].messages] == [m.asked() for m in example.messages]  # fmt: skip
