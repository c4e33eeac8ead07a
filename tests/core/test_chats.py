"""Rows that hold chats: what is carried through, what is refused with its row, and which turns are trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftkit.data.audit import audit_warnings
from ftkit.data.task import load_task
from ftkit.directory import RunDirectory
from ftkit.errors import RecipeError
from ftkit.interface import load
from ftkit.recipe.load import load_recipe
from ftkit.records import Example, Message, Task
from ftkit.run.prepare import preflight

pytestmark = pytest.mark.usefixtures("fakes")

Turn = dict[str, Any]


def turn(role: str, content: Any = None, **fields: Any) -> Turn:
    return {"role": role, "content": content, **fields}


ASK, SAY = turn("user", "What is the weather in Tokyo?"), turn("assistant", "It is sunny.")
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Tokyo"}'}}
CALLING = turn("assistant", None, tool_calls=[CALL])
RESULT = turn("tool", "sunny", tool_call_id="c1")
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
MESSAGES = {"columns": {"messages": "messages"}}


def rows_of(*chats: list[Turn], **columns: Any) -> list[dict[str, Any]]:
    return [{"messages": chat, **columns} for chat in chats]


@pytest.fixture
def task_of(recipe: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Task]:
    """Return a function that reads rows as the train split, beside one whole chat each to validate and test."""

    def read(
        rows: list[dict[str, Any]], dataset: dict[str, Any] = MESSAGES, prompt: dict[str, Any] | None = None,
        split: str = "train", fine: dict[str, Any] | None = None,
    ) -> Task:  # fmt: skip
        for name in ("train", "validation", "test"):
            part = rows if name == split else [fine or {"messages": [turn("user", f"hi from {name}"), SAY]}]
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        keys = recipe(dataset={"path": str(tmp_path), **dataset}, prompt=prompt or {})
        return load_task(load_recipe(keys))[0]

    return read


def refusal(task_of: Callable[..., Task], *arguments: Any, **more: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        task_of(*arguments, **more)
    return str(caught.value)


# ---------------------------------------------------------------- nothing is dropped


def test_tools_calls_ids_and_names_are_carried(task_of: Callable[..., Task]) -> None:
    chat = [turn("developer", "Be brief."), {**ASK, "name": "Anna"}, CALLING, RESULT, SAY]
    (example,) = task_of(rows_of(chat, tools=[TOOL])).train
    developer, ask, calling, result = example.messages
    assert (developer.role, ask.name, result.role, result.tool_call_id) == ("developer", "Anna", "tool", "c1")
    assert calling.tool_calls == (CALL,) and calling.content == ""
    assert example.tools == (TOOL,) and example.targets == ("It is sunny.",)
    assert example.input == (
        "developer: Be brief.\nuser (Anna): What is the weather in Tokyo?\n"
        'assistant: weather({"city": "Tokyo"})\ntool: sunny'
    )


def test_a_last_turn_that_calls_a_tool_is_trained_on_and_not_measured(task_of: Callable[..., Task]) -> None:
    (example,) = task_of(rows_of([ASK, CALLING], tools=[TOOL])).train
    assert example.target_turn == Message("assistant", "", tool_calls=(CALL,)) and example.targets == ("",)
    for split in ("validation", "test"):
        said = refusal(task_of, rows_of([ASK, SAY], [ASK, CALLING]), split=split)
        assert f"{split} row 2 (id '{split}-1'): the last message calls a tool" in said


@pytest.mark.parametrize(
    "call",
    [
        {"name": "weather", "arguments": {"city": "Tokyo"}},
        {"function": {"name": "weather", "arguments": {"city": "Tokyo"}}, "id": None},
        {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Tokyo"}'}},
    ],
)
def test_a_call_has_one_form_however_it_is_written(task_of: Callable[..., Task], call: dict[str, Any]) -> None:
    (example,) = task_of(rows_of([ASK, turn("assistant", tool_calls=[call]), turn("tool", "sunny"), SAY])).train
    function = {"name": "weather", "arguments": '{"city": "Tokyo"}'}
    assert example.messages[1].tool_calls == ({"type": "function", "function": function},)


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [TOOL["function"]], json.dumps(TOOL["function"])])
def test_tools_have_one_form_however_they_are_written(task_of: Callable[..., Task], tools: Any) -> None:
    (example,) = task_of(rows_of([ASK, SAY], tools=tools)).train
    assert example.tools == (TOOL,)
    (example,) = task_of(rows_of([ASK, SAY], x=tools), {"columns": {"messages": "messages", "tools": "x"}}, fine={**rows_of([ASK, SAY])[0], "x": ""}).train  # fmt: skip
    assert example.tools == (TOOL,)


def test_empty_fields_are_nothing(task_of: Callable[..., Task]) -> None:
    """A table has every field in every row; logs of a provider hold fields that are empty."""
    empty = {"tool_calls": None, "tool_call_id": None, "name": "", "weight": None, "annotations": [], "refusal": None}
    (example,) = task_of(rows_of([{**ASK, **empty}, {**SAY, **empty}], tools=None)).train
    assert example.messages == (Message("user", ASK["content"]),) and example.answer is None and example.tools == ()


REFUSED: dict[str, tuple[list[Any], str]] = {
    "role bot": ([ASK, turn("bot", "x")], r"message 2 has the unknown role 'bot'[\s\S]*dataset.columns.roles: {bot: assistant}"),
    "role human": ([turn("human", "x"), SAY], r"message 1 has the unknown role 'human'[\s\S]*roles: {human: user}; or dataset.chat_format: sharegpt"),
    "role User": ([turn("User", "x"), SAY], r"message 1 has the unknown role 'User'[\s\S]*roles: {User: user}"),
    "role gpt": ([ASK, turn("gpt", "x")], r"message 2 has the unknown role 'gpt'[\s\S]*roles: {gpt: assistant}"),
    "role function": ([ASK, turn("function", "x"), SAY], r"unknown role 'function'[\s\S]*{function: tool}"),
    "role asistant": ([ASK, turn("asistant", "x")], r"unknown role 'asistant'[\s\S]*{asistant: assistant}"),
    "role 7": ([turn(7, "x"), SAY], "message 1 has the unknown role '7'"),  # type: ignore[arg-type]
    "no role": ([{"content": "x"}, SAY], "message 1 has no `role`"),
    "from and value": ([{"from": "human", "value": "x"}], r"message 1 has no `role`[\s\S]*dataset.chat_format: sharegpt reads them"),
    "no content": ([{"role": "user"}, SAY], r"message 1 \(role user\) has no `content`"),
    "null content": ([turn("user", None), SAY], r"message 1 \(role user\) has no `content`"),
    "an image": ([turn("user", [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]), SAY], r"message 1 \(role user\): `content`: part 2 is of type 'image_url'"),
    "an image alone": ([turn("user", [{"type": "image"}]), SAY], "part 1 is of type 'image'"),
    "audio": ([turn("user", [{"type": "input_audio", "input_audio": {}}]), SAY], "part 1 is of type 'input_audio'"),
    "a boolean": ([turn("user", True), SAY], "message 1 .*true"),
    "an unknown field": ([{**ASK, "mood": "good"}, SAY], r"message 1 \(role user\) has `mood`[\s\S]*dataset.columns.ignored: \[mood\]"),
    "thinking": ([ASK, {**SAY, "reasoning_content": "hm"}], "has `reasoning_content`"),
    "function_call": ([ASK, turn("assistant", "", function_call={"name": "f", "arguments": "{}"})], r"has `function_call`[\s\S]*write it as `tool_calls`"),
    "train": ([ASK, {**SAY, "train": False}], r"has `train`[\s\S]*`weight: 0`"),
    "a call of the user": ([{**ASK, "tool_calls": [CALL]}, SAY], "only an assistant message calls tools"),
    "arguments": ([ASK, turn("assistant", tool_calls=[{"name": "f", "arguments": "{city"}]), SAY], r"message 2 \(role assistant\): tool call 1: `arguments` is not JSON"),
    "arguments list": ([ASK, turn("assistant", tool_calls=[{"name": "f", "arguments": [1]}]), SAY], "must be a JSON object, not a list"),
    "a call without name": ([ASK, turn("assistant", tool_calls=[{"id": "x"}]), SAY], "tool call 1 has no name"),
    "calls that are text": ([ASK, turn("assistant", tool_calls="f()"), SAY], "tool calls must be a list"),
    "another call": ([ASK, CALLING, turn("tool", "x", tool_call_id="c2"), SAY], "message 3 .* answers the tool call 'c2', which no message before it makes"),
    "an id of the user": ([{**ASK, "tool_call_id": "c1"}, SAY], "only a tool message answers a call"),
    "a weight of the user": ([{**ASK, "weight": 0}, SAY], "only an assistant message has one"),
    "half a weight": ([ASK, {**SAY, "weight": 0.5}], "`weight` must be 0 .* or 1, not 0.5"),
    "a name that is a number": ([{**ASK, "name": 7}, SAY], "`name` must be text, not 7"),
    "text for a message": (["hello", SAY], "message 1 must be a mapping with `role` and `content`, not 'hello'"),
    "an empty chat": ([], "holds no messages"),
    "the end is the user's": ([ASK, SAY, ASK], "ends with a message of the role user: its last message must be the assistant's"),
    "the end is a tool's": ([ASK, CALLING, RESULT], "ends with a message of the role tool"),
    "an empty answer": ([ASK, turn("assistant", " \n")], "the assistant's answer at the end is empty"),
    "an answer alone": ([SAY], "nothing comes before the assistant's answer"),
}  # fmt: skip


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_with_its_row(task_of: Callable[..., Task], name: str, split: str) -> None:
    chat, message = REFUSED[name]
    said = refusal(task_of, rows_of([ASK, SAY], chat, [ASK, SAY], chat), split=split)
    assert f"dataset.columns.messages: {split} row 2 (id '{split}-1') and 1 more row: " in said
    assert re.search(message, said), said


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": "hello"}, "column 'messages' must hold a list of messages, not 'hello'"),
        ({"messages": None}, "column 'messages' must hold a list of messages, not empty"),
        ({"messages": {"role": ["user"], "content": ["x"]}}, "must hold a list of messages, not a mapping"),
        ({"messages": "[{"}, "column 'messages' is not JSON"),
        ({"messages": [ASK, SAY], "tools": "weather"}, "column 'tools' is not JSON"),
        ({"messages": [ASK, SAY], "tools": 5}, "column 'tools' must be a list of functions, not 5"),
        ({"messages": [ASK, SAY], "tools": [{"type": "web_search"}]}, "column 'tools': tool 1 is no function"),
        ({"messages": [ASK, SAY], "functions": [{"name": "f"}]}, "dataset.columns.tools: functions"),
    ],
)
def test_a_row_that_is_no_chat_is_refused(task_of: Callable[..., Task], row: dict[str, Any], message: str) -> None:
    assert message in refusal(task_of, [{"messages": [ASK, SAY]}, row])


def test_all_kinds_of_mistakes_are_told_at_once(task_of: Callable[..., Task]) -> None:
    said = refusal(task_of, rows_of([turn("bot", "x")], [turn("bot", "x"), SAY], [ASK], [ASK, SAY], [SAY]))
    assert "train row 1 (id 'train-0') and 1 more row: message 1 has the unknown role 'bot'" in said
    assert "train row 3 (id 'train-2'): the chat ends" in said and "train row 5" in said


def test_text_parts_are_joined(task_of: Callable[..., Task]) -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "this?"}]
    (example,) = task_of(rows_of([turn("user", parts), turn("assistant", [{"type": "text", "text": "That."}])])).train
    assert example.messages == (Message("user", "What is this?"),) and example.targets == ("That.",)


def test_chats_as_json_text(task_of: Callable[..., Task]) -> None:
    """As a .csv file holds them."""
    (example,) = task_of([{"messages": json.dumps([ASK, SAY])}]).train
    assert example.targets == ("It is sunny.",)


@pytest.mark.parametrize("chat", [[turn("assistant", "Hello!"), ASK, SAY], [ASK, ASK, SAY], [ASK, SAY, SAY]])
def test_unusual_orders_of_turns_are_read(task_of: Callable[..., Task], chat: list[Turn]) -> None:
    """Whether a chat template takes them is a question to the backend."""
    (example,) = task_of(rows_of(chat)).train
    assert [m.role for m in example.messages] == [t["role"] for t in chat[:-1]]


def test_ignored_fields_and_mapped_roles(task_of: Callable[..., Task]) -> None:
    columns = {"messages": "messages", "ignored": ["mood"], "roles": {"bot": "assistant", "human": "user"}}
    (example,) = task_of(rows_of([turn("human", "hi", mood="good"), turn("bot", "yes")]), {"columns": columns}).train
    assert example.messages == (Message("user", "hi"),) and example.targets == ("yes",)


# ---------------------------------------------------------------- formats


def test_sharegpt(task_of: Callable[..., Task]) -> None:
    call = {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"city": "Tokyo"}})}
    chat = [{"from": "human", "value": "Weather?"}, call, {"from": "observation", "value": "sunny"},
            {"from": "gpt", "value": "It is sunny."}]  # fmt: skip
    row = {"conversations": chat, "system": "Be brief.", "tools": json.dumps([TOOL["function"]])}
    (example,) = task_of([row], {"chat_format": "sharegpt"}, fine=row).train
    assert [m.role for m in example.messages] == ["system", "user", "assistant", "tool"]
    assert example.messages[0].content == "Be brief." and example.tools == (TOOL,)
    assert example.messages[2].tool_calls[0]["function"]["arguments"] == '{"city": "Tokyo"}'
    assert example.targets == ("It is sunny.",)
    explicit = {"messages": "conversations", "role_key": "from", "content_key": "value", "system": "system",
                "roles": {"human": "user", "gpt": "assistant", "observation": "tool", "function_call": "function_call"}}  # fmt: skip
    assert task_of([row], {"columns": explicit}, fine=row).train == (example,)
    said = refusal(task_of, [{**row, "conversations": [{"from": "system", "value": "x"}, *chat]}], {"chat_format": "sharegpt"}, fine=row)  # fmt: skip
    assert "column 'system' holds a system message, and message 1 is one as well" in said
    said = refusal(task_of, [{"conversations": [{"from": "alien", "value": "x"}, *chat]}], {"chat_format": "sharegpt"}, fine=row)  # fmt: skip
    assert "train row 1 (id 'train-0'): message 1 has the unknown role 'alien'" in said


def test_alpaca(task_of: Callable[..., Task]) -> None:
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Say hi.", "input": "", "output": "hi", "system": "Be kind.", "history": [["a", "b"]]},
    ]
    alpaca = {"chat_format": "alpaca"}
    first, second = task_of(rows, alpaca, fine=rows[0]).train
    assert (first.messages, first.targets, first.input) == ((Message("user", "Add.\n\n1 2"),), ("3",), "Add.\n\n1 2")
    assert [(m.role, m.content) for m in second.messages] == [("system", "Be kind."), ("user", "a"), ("assistant", "b"), ("user", "Say hi.")]  # fmt: skip
    (first,) = task_of(rows[:1], alpaca, {"template": "### {input}", "system": "S"}, fine=rows[0]).train
    assert first.messages == (Message("system", "S"), Message("user", "### Add.\n\n1 2"))
    assert "train row 2 (id 'train-1'): column 'history'" in refusal(task_of, rows, alpaca, {"template": "# {input}"}, fine=rows[0])  # fmt: skip
    named = {"chat_format": "alpaca", "columns": {"instruction": "q", "target": "a"}}
    (first,) = task_of([{"q": "Why?", "a": "So."}], named, fine={"q": "?", "a": "!"}).train
    assert (first.messages[0].content, first.targets) == ("Why?", ("So.",))


@pytest.mark.parametrize("dataset", [{"chat_format": "alpaca"}, {"chat_format": "sharegpt"}, {"chat_format": "sharegpt", "columns": {"roles": {"me": "user"}}}])  # fmt: skip
def test_a_format_survives_the_run_directory(
    dataset: dict[str, Any], recipe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    keys = recipe(dataset={"path": str(tmp_path / "x.jsonl"), **dataset})
    loaded = load_recipe(keys)
    (tmp_path / "again.yaml").write_text(loaded.to_yaml())
    assert load_recipe(tmp_path / "again.yaml").dataset == loaded.dataset


def test_columns_of_a_format_are_looked_for(recipe: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"dialog": [], "prompt": "x"}) + "\n")
    for chat_format, column in (("sharegpt", "conversations"), ("alpaca", "instruction")):
        dataset = {"path": str(path), "chat_format": chat_format, "splits": {"test": 1, "validation": 0}}
        with pytest.raises(RecipeError, match=f"no column '{column}'"):
            load(recipe(dataset=dataset))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"chat_format": "chatml"}, "must be 'messages', 'sharegpt' or 'alpaca'"),
        ({"chat_format": "messages"}, "needs the column of the chats"),
        ({"chat_format": "alpaca", "columns": {"messages": "m"}}, "remove `columns.messages`"),
        ({"columns": {"instruction": "q"}}, "read with `chat_format: alpaca`"),
        ({"columns": {"messages": "m", "input": "q"}}, "`input` is not read beside `messages`"),
        ({"columns": {"messages": "m", "roles": {"assistant": ["gpt", "bot"]}}}, r"\{gpt: assistant, bot: assistant\}"),
        ({"columns": {"messages": "m", "roles": {"gpt": "asistant"}}}, "did you mean assistant"),
        ({"type": "sharegpt"}, "in ftkit this is `chat_format`"),
        ({"formatting": "sharegpt"}, "in ftkit this is `chat_format`"),
        ({"mask_history": True}, "in ftkit this is `train_on`"),
        ({"train_on": "every"}, "must be 'last' or 'all'"),
        ({"columns": {"messages": "m", "role_tag": "from"}}, "in ftkit this is `role_key`"),
    ],
)
def test_keys_of_the_recipe(
    recipe: Callable[..., dict[str, Any]], dataset: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe(dataset={"path": str(tmp_path / "x.jsonl"), **dataset}))


# ---------------------------------------------------------------- the prompt beside chats


@pytest.mark.parametrize("key", ["instruction", "template"])
def test_a_prompt_beside_chats_is_refused(task_of: Callable[..., Task], key: str) -> None:
    prompt = {"instruction": "Sum up."} if key == "instruction" else {"template": "# {input}"}
    said = refusal(task_of, rows_of([ASK, SAY]), prompt=prompt)
    assert f"prompt.{key} is not put around a chat" in said


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_second_system_message_is_refused(task_of: Callable[..., Task], role: str) -> None:
    rows = rows_of([ASK, SAY], [turn(role, "Be loud."), ASK, SAY])
    said = refusal(task_of, rows, prompt={"system": "Be brief."})
    assert f"train row 2 (id 'train-1'): message 1 is a system message (role {role}), and prompt.system" in said
    (example,) = task_of(rows[:1], prompt={"system": "Be brief."}).train
    assert example.messages[0] == Message("system", "Be brief.")


def test_a_target_beside_the_last_turn(task_of: Callable[..., Task]) -> None:
    columns = {"columns": {"messages": "messages", "target": "gold"}}
    fine = {"messages": [ASK], "gold": "x"}
    ends = [{"messages": [ASK], "gold": "g"}, {"messages": [ASK, SAY], "gold": "It is sunny."}]
    examples = task_of(ends, columns, fine=fine).train
    assert [(e.targets, len(e.messages)) for e in examples] == [(("g",), 1), (("It is sunny.",), 1)]
    said = refusal(task_of, [*ends, {"messages": [ASK, SAY], "gold": "rainy"}], columns, fine=fine)
    assert "train row 3 (id 'train-2'): the chat ends with an assistant message, and the column" in said


# ---------------------------------------------------------------- which turns are trained on

LONG = [ASK, {**SAY, "weight": 0}, ASK, SAY, ASK, SAY]


def test_train_on_last_and_all(task_of: Callable[..., Task]) -> None:
    (example,) = task_of(rows_of(LONG)).train
    assert [m.weight for m in example.messages] == [None, 0, None, 0, None]
    (example,) = task_of(rows_of(LONG), {**MESSAGES, "train_on": "all"}).train
    assert [m.weight for m in example.messages] == [None, 0, None, 1, None] and example.target_turn.weight is None
    chat = example.training_chat()["messages"]
    assert [m.get("weight") for m in chat] == [None, 0, None, None, None, None]
    (measured,) = task_of(rows_of(LONG), {**MESSAGES, "train_on": "all"}, split="test").test
    assert [m.weight for m in measured.messages] == [None] * 5, "nothing of a test row is trained on"


def test_weights_that_leave_nothing_to_train_on(task_of: Callable[..., Task]) -> None:
    silent = {**SAY, "weight": 0}
    (example,) = task_of(rows_of([ASK, SAY, ASK, silent]), {**MESSAGES, "train_on": "all"}).train
    assert example.target_turn.weight == 0 and example.messages[1].weight == 1
    assert [m.get("weight") for m in example.training_chat()["messages"]] == [None, None, None, 0]
    said = refusal(task_of, rows_of([ASK, SAY, ASK, silent]))
    assert "train row 1" in said and "the last assistant message has `weight: 0`" in said and "train_on: all" in said
    said = refusal(task_of, rows_of([ASK, silent, ASK, silent]), {**MESSAGES, "train_on": "all"})
    assert "every assistant message has `weight: 0`" in said
    said = refusal(task_of, rows_of([ASK, {**SAY, "weight": 1}, ASK, SAY]))
    assert "message 2 (role assistant) has `weight: 1`, and dataset.train_on is `last`" in said
    (measured,) = task_of(rows_of([ASK, silent]), split="test").test
    assert measured.targets == ("It is sunny.",) and measured.answer is None


def test_an_empty_turn_is_not_trained_on(task_of: Callable[..., Task]) -> None:
    rows = rows_of([ASK, turn("assistant", ""), ASK, SAY])
    assert [m.weight for m in task_of(rows).train[0].messages] == [None, 0, None]
    said = refusal(task_of, rows, {**MESSAGES, "train_on": "all"})
    assert "message 2 (role assistant) is empty, and dataset.train_on: all trains on it" in said


# ---------------------------------------------------------------- round trips and the audit


def test_chats_survive_the_run_directory(task_of: Callable[..., Task], tmp_path: Path) -> None:
    task = task_of(rows_of([{**ASK, "name": "A"}, CALLING, RESULT, SAY, ASK, CALLING], tools=[TOOL]), {**MESSAGES, "train_on": "all"})  # fmt: skip
    run = RunDirectory.create(tmp_path / "runs", "chats")
    run.save_task(task)
    assert RunDirectory(run.dir).task == task


def test_rows_of_an_older_ftkit_are_read() -> None:
    old = {"id": "a", "messages": [{"role": "user", "content": "q"}], "targets": ["t"], "input": "q", "meta": {}}
    example = Example.from_dict(old)
    assert example == Example("a", (Message("user", "q"),), ("t",), "q")
    assert example.to_dict() == old, "plain text is written as before"
    assert example.target_turn == Message("assistant", "t")


def test_the_audit_of_chats(recipe: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    ask = turn("user", "東京の天気はどうですか")
    train = rows_of([ask, CALLING, RESULT, SAY], [ask, CALLING, RESULT, SAY], [turn("user", " "), SAY], [SAY, turn("user", "echo"), turn("assistant", "echo")])  # fmt: skip
    other = {**CALL, "function": {"name": "weather", "arguments": '{"city": "Osaka"}'}}
    test = rows_of([ask, CALLING, RESULT, SAY], [ask, turn("assistant", tool_calls=[other]), RESULT, SAY])
    for split, rows in (("train", train), ("test", test)):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = {"path": str(tmp_path), **MESSAGES, "splits": {"validation": 0}}
    task, audit = load_task(load_recipe(recipe(dataset=dataset)))
    facts = audit["splits"]["train"]
    assert (facts["repeats"], facts["empty_inputs"], facts["copies"]) == (1, ["train-2"], 1)
    assert audit["leaks"]["test"] == {"rows": 1, "ids": ["test-0"]}, "another call is another chat"
    assert "Latin" not in task.test[0].messages[0].content and audit["splits"]["test"]["scripts"]["Latin"] < 0.4
    assert any("also occurs in train" in text for text in audit_warnings(audit))
    clean, report = load_task(load_recipe(recipe(dataset={**dataset, "drop_leaked": True})))
    assert report["dropped_from_train"] == 2 and len(clean.train) == 2


def test_tools_and_calls_are_part_of_the_fingerprint(task_of: Callable[..., Task]) -> None:
    marks = [
        task_of(rows).fingerprints["train"]
        for rows in (
            rows_of([ASK, SAY]),
            rows_of([ASK, SAY], tools=[TOOL]),
            rows_of([ASK, CALLING]),
            rows_of([ASK, turn("assistant", "", tool_calls=[{**CALL, "id": "c9"}])]),
        )
    ]
    assert len(set(marks)) == 4


def test_one_file_of_chats_is_cut(recipe: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = rows_of(*([turn("user", f"question {n}"), SAY] for n in range(20)))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = {"path": str(path), **MESSAGES, "splits": {"test": 5, "validation": 5}}
    task, _ = load_task(load_recipe(recipe(dataset=dataset)))
    assert [len(part) for part in task.splits.values()] == [10, 5, 5]
    rows[3]["messages"][0]["role"] = "bot"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = preflight(load_recipe(recipe(dataset=dataset)))
    assert [e for e in found.errors if "row 4" in e.message and "'bot'" in e.message]
