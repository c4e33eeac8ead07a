"""Rows to a Task: reading, splits that depend on the data alone, columns, the audit."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ftkit.data.audit import audit_notes, audit_warnings
from ftkit.data.formats import column_names, read_file
from ftkit.data.task import load_task
from ftkit.directory import RunDirectory
from ftkit.errors import InputError, RecipeError
from ftkit.recipe.load import load_recipe
from ftkit.records import Message, Task

pytestmark = pytest.mark.usefixtures("fakes")

ROWS = [{"input": f"dialogue {i}", "target": f"summary {i}"} for i in range(40)]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def task_of(recipe: Callable[..., dict[str, Any]]) -> Callable[..., tuple[Task, dict[str, Any]]]:
    def load(path: Path, prompt: dict[str, Any] | None = None, seed: int = 42, **dataset: Any) -> Any:
        keys = recipe(dataset={"path": str(path), **dataset}, prompt=prompt or {}, seed=seed)
        return load_task(load_recipe(keys))

    return load


# ---------------------------------------------------------------- reading


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        jsonl(path, rows)
    elif path.suffix == ".csv":
        path.write_text("input,target\n" + "".join(f'"{r["input"]}","{r["target"]}"\n' for r in rows))
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows = [{"input": "a\nb, c 'd'", "target": "é 結衣 😀"}, {"input": "", "target": "x"}]
    assert read_file(write(tmp_path / f"rows{suffix}", rows)) == rows


@pytest.mark.parametrize("name", ["val", "validation", "valid", "dev"])
def test_a_folder_of_splits(tmp_path: Path, task_of: Any, name: str) -> None:
    write(tmp_path / "train.csv", ROWS[:10])
    write(tmp_path / f"{name}.json", ROWS[10:13])
    write(tmp_path / "test-00000-of-00002.parquet", ROWS[13:15])
    write(tmp_path / "test-00001-of-00002.parquet", ROWS[15:20])
    (tmp_path / "README.md").write_text("not data")
    task, _ = task_of(tmp_path)
    assert [len(part) for part in (task.train, task.validation, task.test)] == [10, 3, 7]
    assert [e.input for e in task.test] == [r["input"] for r in ROWS[13:20]]
    assert task.test[0].targets == ("summary 13",)


def test_one_split_in_two_formats_is_not_read_twice(tmp_path: Path, task_of: Any) -> None:
    write(tmp_path / "test.csv", ROWS)
    write(tmp_path / "test.json", ROWS)
    with pytest.raises(InputError, match=r"test rows in several formats: test\.csv, test\.json"):
        task_of(tmp_path)


def test_crlf_and_bom(tmp_path: Path) -> None:
    text = "input,target\r\nhello,world\r\n"
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "a.csv").write_text(text, encoding=encoding, newline="")
        assert read_file(tmp_path / "a.csv") == [{"input": "hello", "target": "world"}]
        (tmp_path / "a.jsonl").write_text('{"input": "a\\r\\nb"}\r\n\r\n{"input": "c"}', encoding=encoding, newline="")
        assert read_file(tmp_path / "a.jsonl") == [{"input": "a\r\nb"}, {"input": "c"}]
        (tmp_path / "a.json").write_text('[\r\n{"input": "x"}]\r\n', encoding=encoding, newline="")
        assert read_file(tmp_path / "a.json") == [{"input": "x"}]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"input": "a"}\n{"input": "caf\xe9"}\n', "not UTF-8"),
        ("a.csv", b"input,target\ncaf\xe9,x\n", "not UTF-8"),
        ("a.json", '[{"input": "x"}]'.encode("utf-16-le"), "not UTF-8: it looks like UTF-16"),
        ("a.jsonl", b'{"input": 1}\n{"input": \n', "a.jsonl:2: not JSON"),
        ("a.json", b'{"input": "x"}', "expected a list of objects"),
        ("a.jsonl", b"[1]\n", "expected a list of objects"),
        ("a.json", b"[", "cannot be read"),
        ("a.json", b"[" + b"9" * 5000 + b"]", "cannot be read"),
        ("a.json", b"[" * 200_000, "cannot be read"),
        ("a.parquet", b"PAR1 not really", "cannot be read"),
        ("a.csv", b"input,target\na,b,c\n", "a.csv:2: more fields than the header"),
        ("a.txt", b"x", "cannot read .txt"),
    ],
)
def test_unreadable_files_say_why(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_file(tmp_path / name)
    assert says in str(caught.value) and str(tmp_path / name) in str(caught.value)


def test_all_that_the_data_lack_at_once(tmp_path: Path, task_of: Any) -> None:
    path = jsonl(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(RecipeError) as caught:
        task_of(path, columns={"input": "inputs", "meta": ["who"]}, splits={"test": 500, "validation": "all"})
    found = {p.key: p for p in caught.value.problems}
    assert set(found) == {
        "dataset.columns.input",
        "dataset.columns.meta.0",
        "dataset.splits.test",
        "dataset.splits.validation",
    }
    assert found["dataset.columns.input"].hint == "did you mean `input`?\n  they have: input, target"
    assert "500 rows are wanted and there are only 40" in found["dataset.splits.test"].message
    assert "no validation split (it is one table)" in found["dataset.splits.validation"].message


def test_a_column_that_only_late_rows_have_is_no_mistake(tmp_path: Path, task_of: Any) -> None:
    rows = [{**row, "who": "x"} if i > 150 else row for i, row in enumerate(ROWS * 5)]
    for suffix in (".jsonl", ".json"):
        path = write(tmp_path / f"rows{suffix}", rows)
        assert column_names(path, ["who"]) == {"input", "target", "who"}
        assert column_names(path, ["nobody"]) == {"input", "target"}
        task, _ = task_of(path, columns={"meta": ["who"]}, splits={"test": 5, "validation": 5})
        assert {e.meta["who"] for e in task.test} <= {None, "x"}


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_columns_are_known_without_reading_all_rows(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", ROWS)
    assert column_names(path, ["input"]) == {"input", "target"}
    path.write_bytes(b"\xff broken")
    with pytest.raises(InputError, match=str(path)):
        column_names(path, ["input"])


def test_a_missing_column_names_those_there_are(tmp_path: Path, task_of: Any) -> None:
    path = jsonl(tmp_path / "rows.jsonl", ROWS)
    splits = {"test": 5, "validation": 5}
    with pytest.raises(InputError, match=r"no column 'dialogue'.*\n.*input, target"):
        task_of(path, columns={"input": "dialogue"}, splits=splits)
    with pytest.raises(InputError, match="no column 'answers'"):
        task_of(path, columns={"targets": "answers"}, splits=splits)
    with pytest.raises(InputError, match="no column 'who'"):
        task_of(path, columns={"meta": ["who"]}, splits=splits)


def test_a_vanished_source(tmp_path: Path, task_of: Any) -> None:
    with pytest.raises(InputError, match="there is no"):
        task_of(tmp_path / "gone.jsonl")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "stuff.json").write_text("[]")
    with pytest.raises(InputError, match=r"no train, validation or test file(\n|.)*stuff\.json"):
        task_of(tmp_path / "folder")
    jsonl(tmp_path / "folder" / "train.jsonl", ROWS)
    with pytest.raises(InputError, match="no test split"):
        task_of(tmp_path / "folder", splits={"validation": 3})


# ---------------------------------------------------------------- splits


def cut(task: Task) -> dict[str, set[str]]:
    return {split: {e.input for e in part} for split, part in task.splits.items()}


def test_a_single_file_is_cut_without_sharing_an_input(tmp_path: Path, task_of: Any) -> None:
    rng = random.Random(3)
    rows = [{"input": f"dialogue {rng.randrange(60)}" + " " * rng.randrange(3), "target": str(i)} for i in range(200)]
    splits = {"test": 30, "validation": 0.1}
    task, audit = task_of(jsonl(tmp_path / "rows.jsonl", rows), splits=splits)
    assert len(task.test) == 30 and len(task.validation) == 20 and len(task.train) > 80
    parts = [{e.input.strip() for e in task.splits[s]} for s in ("train", "validation", "test")]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert audit["leaks"] == {"validation": {"rows": 0, "ids": []}, "test": {"rows": 0, "ids": []}}
    again, _ = task_of(tmp_path / "rows.jsonl", splits=splits)
    assert again == task
    rng.shuffle(rows)
    shuffled, _ = task_of(jsonl(tmp_path / "shuffled.jsonl", rows), splits=splits)
    for split in ("train", "validation", "test"):
        pairs = [sorted((e.input, e.targets) for e in t.splits[split]) for t in (task, shuffled)]
        assert pairs[0] == pairs[1]


def test_which_rows_are_measured_does_not_depend_on_the_seed(tmp_path: Path, task_of: Any) -> None:
    for split, part in {"train": ROWS[:10], "val": ROWS[10:15], "test": ROWS[15:]}.items():
        jsonl(tmp_path / f"{split}.jsonl", part)
    tasks = [task_of(tmp_path, splits={"test": 12}, seed=seed)[0] for seed in (1, 2, 99)]
    assert len(tasks[0].test) == 12
    assert len({t.fingerprints["test"] for t in tasks}) == 1 and len({tuple(e.id for e in t.test) for t in tasks}) == 1
    assert cut(task_of(tmp_path, splits={"test": 5})[0])["test"] < cut(tasks[0])["test"]  # fewer are a part of more
    half, _ = task_of(tmp_path, splits={"test": 0.2})
    assert cut(half)["test"] == cut(task_of(tmp_path, splits={"test": 5})[0])["test"]
    with pytest.raises(InputError, match=r"dataset\.splits\.test: 26 rows are wanted and there are only 25"):
        task_of(tmp_path, splits={"test": 26})


def test_too_much_cut_from_one_file(tmp_path: Path, task_of: Any) -> None:
    path = jsonl(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(InputError, match="40 rows are wanted and there are only 40"):
        task_of(path, splits={"test": 40, "validation": 1})
    with pytest.raises(InputError, match="only 20 to cut from"):
        task_of(path, splits={"test": 20, "validation": 20})
    with pytest.raises(RecipeError) as caught:
        task_of(path, splits={"train": 38, "test": 10, "validation": 14})
    (problem,) = caught.value.problems
    assert problem.message.startswith("dataset.splits.train: 38 rows are wanted and only 16 are left")
    assert problem.hint is not None and "write `all`" in problem.hint and "validation and test" in problem.message


# ---------------------------------------------------------------- columns


def test_prompt_and_system(tmp_path: Path, task_of: Any) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"input": f"{{a}} {{instruction}} {i}", "target": i} for i in range(3)])
    prompt = {"instruction": "Sum up.", "template": "{instruction}\n# {input}", "system": "Be kind."}
    task, _ = task_of(path, prompt, splits={"test": 1, "validation": 0})
    assert task.test[0].messages == (Message("system", "Be kind."), Message("user", f"Sum up.\n# {task.test[0].input}"))
    assert task.test[0].input == "{a} {instruction} " + task.test[0].targets[0]


def test_messages(tmp_path: Path, task_of: Any) -> None:
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "bye"},
    ]
    rows = [{"chat": [*chat, {"role": "assistant", "content": f"bye {i}"}]} for i in range(2)]
    path = jsonl(tmp_path / "test.jsonl", rows)
    jsonl(tmp_path / "train.jsonl", [{"chat": [{"role": "user", "content": "other"}, *chat[1:2]], "gold": "g"}])
    task, _ = task_of(path.parent, columns={"messages": "chat"}, splits={"validation": 0})
    assert [(m.role, m.content) for m in task.test[1].messages] == [(t["role"], t["content"]) for t in chat]
    assert task.test[1].targets == ("bye 1",) and "user: hi" in task.test[1].input
    jsonl(path, [{"chat": [{"content": "no role"}]}])
    with pytest.raises(RecipeError, match=r"test row 1 \(id 'test-0'\): message 1 has no `role`"):
        task_of(path.parent, columns={"messages": "chat"}, splits={"validation": 0})


def test_several_targets_ids_and_meta(tmp_path: Path, task_of: Any) -> None:
    rows = [
        {"key": "k", "input": f"q{i}", "gold": gold, "who": {"a": [1]}}
        for i, gold in enumerate([["a", "b"], [], "text", None])
    ]
    for split in ("train", "test"):
        jsonl(tmp_path / f"{split}.jsonl", rows)
    columns = {"targets": "gold", "id": "key", "meta": ["who"]}
    task, audit = task_of(tmp_path, columns=columns, splits={"validation": 0})
    assert [e.targets for e in task.test] == [("a", "b"), ("",), ("text",), ("",)]
    assert [e.id for e in task.test] == ["k", "k#2", "k#3", "k#4"]  # ids name predictions: unique whatever the data say
    assert task.test[0].meta == {"who": {"a": [1]}}
    assert audit["splits"]["test"]["empty_targets"] == ["k#2", "k#4"]
    jsonl(tmp_path / "test.jsonl", [{**rows[0], "gold": 7}])
    with pytest.raises(
        InputError, match=r"dataset.columns.targets: test row 1 \(id 'k'\), column 'gold' must hold a list"
    ):
        task_of(tmp_path, columns=columns, splits={"validation": 0})


def test_parquet_types_survive_in_the_run_directory(tmp_path: Path, task_of: Any) -> None:
    pytest.importorskip("pyarrow")
    rows = [{"input": f"q{i}", "target": i, "when": datetime(2024, 1, 2, i)} for i in range(4)]
    path = write(tmp_path / "rows.parquet", rows)
    task, _ = task_of(path, columns={"meta": ["when"]}, splits={"test": 2, "validation": 0})
    run = RunDirectory.create(tmp_path / "runs", "typed")
    run.save_task(task)
    assert RunDirectory(run.dir).task == task


def test_hostile_text_survives_the_run_directory(tmp_path: Path, task_of: Any) -> None:
    hostile = (
        "\ud800 <script>alert(1)</script> \x1b[31m \x00 \u2028 \x85 ../../etc/passwd {input} <|eot_id|> \r\n "
        + "x" * 100_000
    )
    rows = [{"id": f"../{i}\ud801\x00", "input": f"{i} {hostile}", "target": hostile} for i in range(6)]
    task, _ = task_of(jsonl(tmp_path / "rows.jsonl", rows), splits={"test": 2, "validation": 1})
    run = RunDirectory.create(tmp_path / "runs", "hostile")
    run.save_task(task)
    assert RunDirectory(run.dir).task == task
    assert task.test[0].input.endswith(hostile)


# ---------------------------------------------------------------- audit


def test_audit_counts(tmp_path: Path, task_of: Any) -> None:
    nfc, nfd = unicodedata.normalize("NFC", "café au  lait"), unicodedata.normalize("NFD", "café au lait")
    train = ["a", "a ", nfc, "", "only train", "b"]
    jsonl(tmp_path / "train.jsonl", [{"input": t, "target": "x"} for t in train])
    jsonl(tmp_path / "val.jsonl", [{"input": t, "target": "x"} for t in ("b", "c", "c")])
    test = [(nfd + "\n", "x"), ("Привет", " \n"), ("  ", "x"), ("\tonly\ntrain", "x"), ("A", None)]
    jsonl(tmp_path / "test.jsonl", [{"input": t, "target": y} for t, y in test])
    task, audit = task_of(tmp_path)
    splits = audit["splits"]
    assert [splits[s]["rows"] for s in ("train", "validation", "test")] == [6, 3, 5]
    assert splits["train"]["empty_inputs"] == ["train-3"] and splits["test"]["empty_inputs"] == ["test-2"]
    assert splits["test"]["empty_targets"] == ["test-1", "test-4"]
    assert [splits[s]["repeats"] for s in ("train", "validation", "test")] == [1, 1, 0]
    assert audit["leaks"]["test"] == {"rows": 2, "ids": ["test-0", "test-3"]}  # an empty input is no leak
    assert audit["leaks"]["validation"] == {"rows": 1, "ids": ["validation-0"]}
    assert set(splits["test"]["scripts"]) == {"Latin", "Cyrillic"}
    told = "\n".join(audit_warnings(audit))
    assert "test: 2 rows have an input that also occurs in train" in told and "drop_leaked" in told
    assert "test: 2 empty targets (id test-1, test-4)" in told and "test: 1 empty input (id test-2)" in told
    assert "validation: 1 row has an input that also occurs in train" in told

    assert "as the target" not in told
    assert audit_notes(audit) == [
        "train: 1 row has the input of an earlier row, of 6",
        "validation: 1 row has the input of an earlier row, of 3",
    ]

    clean, audit = task_of(tmp_path, drop_leaked=True)
    assert [e.input for e in clean.train] == ["a", "a ", ""]  # an empty input is no leak
    assert audit["dropped_from_train"] == 3 and audit["splits"]["train"]["rows"] == 3
    assert clean.test == task.test and clean.validation == task.validation
    assert (
        clean.fingerprints["test"] == task.fingerprints["test"]
        and clean.fingerprints["train"] != task.fingerprints["train"]
    )
    assert not [w for w in audit_warnings(audit) if "also occurs" in w]


def test_rows_whose_target_is_their_input(tmp_path: Path, task_of: Any) -> None:
    rows = [{"input": f"row  {i}", "target": f"row {i} " if i < 5 else "b"} for i in range(10)]
    jsonl(tmp_path / "train.jsonl", rows)
    jsonl(tmp_path / "val.jsonl", rows[1:])
    jsonl(tmp_path / "test.jsonl", rows[5:])
    _, audit = task_of(tmp_path)
    assert [audit["splits"][split]["copies"] for split in ("train", "validation", "test")] == [5, 4, 0]
    told = [text for text in audit_warnings(audit) if "as the target" in text]
    assert len(told) == 1 and told[0].startswith("train: 5 of 10 rows have their input as the target")
