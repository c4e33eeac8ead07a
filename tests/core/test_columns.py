"""Columns of a template, several files, rows from Python, files that are passed over, values that are no text."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftkit import interface as notebook
from ftkit.console import Console
from ftkit.data.task import load_task
from ftkit.directory import RunDirectory
from ftkit.errors import InputError, RecipeError
from ftkit.run.prepare import preflight, prepare, problems_of

pytestmark = pytest.mark.usefixtures("fakes")

Keys = Callable[..., dict[str, Any]]
ROWS = [{"input": f"question {i}", "target": f"answer {i}"} for i in range(40)]
CUT = {"test": 5, "validation": 5}


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def notes(recipe: dict[str, Any]) -> list[str]:
    return [f.message for f in preflight(notebook.load(recipe)).findings if f.level == "note"]


def errors(recipe: Any, *overrides: str) -> dict[str | None, str]:
    """Return what `ftkit check` says, by key."""
    try:
        loaded = notebook.load(recipe, overrides)
    except RecipeError as error:
        return {p.key: f"{p.message}\n{p.hint}" for p in error.problems}
    return {p.key: f"{p.message}\n{p.hint}" for p in problems_of(loaded, preflight(loaded).errors)}


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}], "a b"),
        ({"ok": True}, '{"ok":true}'),
        ([1, "é"], '[1,"é"]'),
        (7, "7"),
        (0.1, "0.1"),
    ],
)
def test_a_value_is_never_python_source(tmp_path: Path, recipe: Keys, value: Any, text: str) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"input": [value, i], "target": value} for i in range(20)])
    task, _ = load_task(notebook.load(recipe(dataset={"path": str(path), "splits": CUT})))
    assert {e.targets for part in task.splits.values() for e in part} == {(text,)}
    compact = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    assert {e.input for part in task.splits.values() for e in part} == {f"[{compact},{i}]" for i in range(20)}


@pytest.mark.parametrize(("written", "shown"), [("true", "a boolean (true)"), ("NaN", "the number nan")])
@pytest.mark.parametrize("column", ["input", "target", "key"])
def test_what_is_no_text_is_refused_with_its_row(
    tmp_path: Path, recipe: Keys, written: str, shown: str, column: str
) -> None:
    path = tmp_path / "rows.jsonl"
    jsonl(path, [{"input": f"q{i}", "target": "a", "key": f"k{i}"} for i in range(20)])
    lines = path.read_text().splitlines()
    lines[6] = json.dumps({"input": "q6", "target": "a", "key": "k6"} | {column: "@"}).replace('"@"', written)
    path.write_text("\n".join(lines))
    keys = recipe(dataset={"path": str(path), "columns": {"id": "key"}, "splits": CUT})
    found = errors(keys)
    key = {"key": "id"}.get(column, column)
    shown_id = "" if column == "key" else " (id 'k6')"
    assert set(found) == {f"dataset.columns.{key}"}
    assert (
        f"row 7{shown_id}, column '{column}': {shown} is not text" in found[f"dataset.columns.{key}"] or column == "key"
    )


def test_values_of_parquet(tmp_path: Path, recipe: Keys) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    for value, says in ((b"abc", "bytes (b'abc')"), (datetime.datetime(2024, 1, 2), "a time"), (True, "a boolean")):
        rows = [{"input": f"q{i}", "target": value} for i in range(20)]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
        found = errors(recipe(dataset={"path": str(tmp_path / "rows.parquet"), "splits": CUT}))
        assert says in found["dataset.columns.target"], found


# ---------------------------------------------------------------- empty targets


def test_a_split_without_targets_stops_and_so_do_many_empty_ones(tmp_path: Path, recipe: Keys) -> None:
    def of(empty: dict[str, int], **dataset: Any) -> dict[str | None, str]:
        for split, count in (("train", 40), ("val", 20), ("test", 20)):
            rows = [
                {"input": f"{split}{i}", "target": (" \n", None, "")[i % 3] if i < empty.get(split, 0) else "a"}
                for i in range(count)
            ]
            jsonl(tmp_path / f"{split}.jsonl", rows)
        return errors(recipe(dataset={"path": str(tmp_path), **dataset}))

    assert of({"train": 2, "val": 1, "test": 1}) == {}  # 5 % is the most
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        (found,) = of({split: count}).values()
        name = {"val": "validation"}.get(split, split)
        assert f"{name}: {count} of " in found and "dataset.allow_empty_targets=true" in found and f"{name}-0" in found
        assert of({split: count}, allow_empty_targets=True) == {}
    for split, count in (("train", 40), ("val", 20), ("test", 20)):
        (found,) = of({split: count}, allow_empty_targets=True).values()
        assert f"all {count} rows have an empty target" in found and "--set dataset.columns.target=" in found


# ---------------------------------------------------------------- folders


def test_files_that_are_passed_over_are_named(tmp_path: Path, recipe: Keys) -> None:
    folder = tmp_path / "data"
    (folder / "old").mkdir(parents=True)
    for name in ("train.jsonl", "train-2.jsonl", "test.jsonl", "eval.jsonl", "tests.jsonl"):
        jsonl(folder / name, [{**row, "input": f"{name} {row['input']}"} for row in ROWS[:10]])
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden.jsonl").write_text("x")
    keys = recipe(dataset={"path": str(folder), "splits": {"validation": 2}})
    said = notes(keys)
    over = f"not read, because no split has this name: eval.jsonl, notes.txt, old/, tests.jsonl (in {folder})"
    assert over in said and "train: the rows of 2 files: train-2.jsonl, train.jsonl" in said
    assert "validation: 2 rows cut from train" in said


@pytest.mark.parametrize("name", ["test.jsonl.bak", "train.xlsx", "val.txt", "test", "Test.JSONL~"])
def test_a_file_named_like_a_split_that_cannot_be_read(tmp_path: Path, recipe: Keys, name: str) -> None:
    for split in ("train", "test"):
        jsonl(tmp_path / f"{split}.jsonl", ROWS)
    (tmp_path / name).write_text("x")
    found = errors(recipe(dataset={"path": str(tmp_path), "splits": {"validation": 2}}))
    assert f"the name of a split begins {name}, which cannot be read" in found["dataset.path"]


def test_compressed_and_upper_case_splits_are_read(tmp_path: Path, recipe: Keys) -> None:
    import gzip

    jsonl(tmp_path / "TRAIN.JSONL", ROWS[:20])
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(jsonl(tmp_path / "x.jsonl", ROWS[20:]).read_bytes()))
    task, _ = load_task(notebook.load(recipe(dataset={"path": str(tmp_path), "splits": {"validation": 2}})))
    assert (len(task.train), len(task.test)) == (18, 20)


# ---------------------------------------------------------------- columns of a template


def questions(path: Path, count: int = 40) -> Path:
    return jsonl(path, [{"question": f"why {i // 2}?", "my context": f"c{i}", "answer": f"a{i}"} for i in range(count)])


def test_columns_stand_in_the_template(tmp_path: Path, recipe: Keys) -> None:
    path = questions(tmp_path / "rows.jsonl")

    def load(template: str, **columns: str) -> Any:
        dataset = {"path": str(path), "columns": {"target": "answer", **columns}, "splits": CUT}
        return load_task(notebook.load(recipe(dataset=dataset, prompt={"instruction": "Go.", "template": template})))

    task, audit = load("{instruction} {question} [{my context}] {{x}} {3}")
    row = next(e for part in task.splits.values() for e in part if e.targets == ("a7",))
    assert row.messages[-1].content == row.input == "Go. why 3? [c7] {x} {3}"
    assert audit["splits"]["test"]["repeats"] == 0 and audit["leaks"]["test"]["rows"] == 0
    # The words of the prompt change neither which rows are measured nor their fingerprint.
    other, _ = load("{instruction} C: {my context} Q: {question}")
    assert [e.id for e in other.test] != [] and {e.targets for e in other.test} == {e.targets for e in task.test}
    again, _ = load("{instruction} Question: {question} [{my context}]")
    assert again.fingerprints == task.fingerprints and again.prompt_hash != task.prompt_hash
    both, _ = load("{instruction} {input} {my context}", input="question")
    assert "Go. why 3? c7" in {e.input for part in both.splits.values() for e in part}


def test_a_missing_column_of_a_template_is_told_with_its_place(
    tmp_path: Path, recipe_file: Callable[..., Path]
) -> None:
    path = questions(tmp_path / "rows.jsonl")
    dataset = {"path": str(path), "columns": {"target": "answer"}, "splits": CUT}
    file = recipe_file(dataset=dataset, prompt={"template": "{qestion} {my context}"})
    with pytest.raises(RecipeError) as caught:
        notebook.load(file)
    (problem,) = caught.value.problems
    assert (problem.key, problem.line) == ("prompt.template", 1)
    assert "no column 'qestion'" in problem.message and "did you mean {question}?" in str(problem.hint)
    assert "{{qestion}} writes it as text" in str(problem.hint)
    assert errors(file, 'prompt.template="{question} {my context}"') == {}
    found = errors(file, 'prompt.template="{inptu} {question}"')
    assert "did you mean {input}?" in found["prompt.template"]
    assert set(errors(file, 'prompt.template="{input} {question}"')) == {"dataset.columns.input"}
    assert "every prompt would be the same" in errors(file, 'prompt.template="{instruction}"')["prompt.template"]


def test_an_instruction_column_where_the_recipe_has_none(tmp_path: Path, recipe: Keys) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"instruction": f"Do {i}.", **row} for i, row in enumerate(ROWS)])
    keys = recipe(dataset={"path": str(path), "splits": CUT}, prompt={"template": "{instruction} {input}"})
    task, _ = load_task(notebook.load(keys))
    assert {e.input for e in task.test} <= {f"Do {i}. question {i}" for i in range(40)}
    task, _ = load_task(notebook.load(keys, ["prompt.instruction=Sum up."]))
    assert all(e.messages[-1].content == f"Sum up. {e.input}" for e in task.test)


# ---------------------------------------------------------------- several files


def test_several_files(tmp_path: Path, recipe_file: Callable[..., Path]) -> None:
    for name, part in (("a", ROWS[:10]), ("b", ROWS[10:20]), ("c", ROWS[20:30])):
        jsonl(tmp_path / f"{name}.jsonl", part)
    path = {"train": ["a.jsonl", "b.jsonl"], "test": "c.jsonl"}
    file = recipe_file(dataset={"path": path, "splits": {"validation": 2}})
    recipe = notebook.load(file)
    assert recipe.dataset.path == {
        "train": [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")],
        "test": str(tmp_path / "c.jsonl"),
    }
    task, _ = load_task(recipe)
    assert [len(part) for part in (task.train, task.validation, task.test)] == [18, 2, 10]
    written = tmp_path / "again.yaml"
    written.write_text(recipe.to_yaml())
    assert notebook.load(written) == recipe
    task, _ = load_task(
        notebook.load(file, [f'dataset.path=["{tmp_path}/a.jsonl", "{tmp_path}/c.jsonl"]', "dataset.splits.test=4"])
    )
    assert sum(len(part) for part in task.splits.values()) == 20
    task, _ = load_task(
        notebook.load(file, [f"dataset.path.validation={tmp_path}/b.jsonl", f"dataset.path.train={tmp_path}/a.jsonl"])
    )
    assert [len(part) for part in (task.train, task.validation)] == [10, 2]
    child = tmp_path / "child.yaml"
    child.write_text("extends: recipe.yaml\ndataset:\n  path:\n    train: a.jsonl\n    test: tset.jsonl\n")
    with pytest.raises(RecipeError) as caught:
        notebook.load(child)
    (problem,) = caught.value.problems
    assert (problem.key, problem.file, problem.line) == ("dataset.path.test", str(child), 5)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ({"trian": "a.jsonl"}, "there is no split `trian`; did you mean `train`?"),
        ({"val": "a.jsonl"}, "did you mean `validation`?"),
        ({"train": 3}, "must be text or a list of texts, not 3"),
        ({}, "names no file"),
        ([], "must be text or a list of texts"),
        (7, "must be text or a list of texts, not 7"),
        (["https://x.org/a.jsonl"], "a URL is not read"),
    ],
)
def test_a_path_that_names_no_files(recipe: Keys, path: Any, says: str) -> None:
    found = errors(recipe(dataset={"path": path}))
    assert list(found) == ["dataset.path"] and says in found["dataset.path"]


def test_files_named_twice_or_missing(tmp_path: Path, recipe: Keys) -> None:
    jsonl(tmp_path / "a.jsonl", ROWS)
    a = str(tmp_path / "a.jsonl")
    assert "named twice" in errors(recipe(dataset={"path": [a, a], "splits": CUT}))["dataset.path"]
    found = errors(
        recipe(dataset={"path": {"train": a, "test": str(tmp_path / "b.jsonl")}, "splits": {"validation": 2}})
    )
    assert f"did you mean {a}?" in found["dataset.path.test"]
    assert "is a folder" in errors(recipe(dataset={"path": [str(tmp_path)], "splits": CUT}))["dataset.path.0"]


def test_delimiter_and_encoding_are_keys(tmp_path: Path, recipe: Keys) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(("input;target\n" + "".join(f"質問{i}です;答え\n" for i in range(20))).encode("shift_jis"))
    keys = recipe(dataset={"path": str(path), "splits": CUT})
    assert "--set 'dataset.encoding=shift_jis'" in errors(keys)["dataset.path"]
    assert "--set 'dataset.delimiter=;'" in errors(keys, "dataset.encoding=shift_jis")["dataset.path"]
    assert errors(keys, "dataset.encoding=shift_jis", "dataset.delimiter=;") == {}
    assert "did you mean shift_jis?" in errors(keys, "dataset.encoding=shiftjs")["dataset.encoding"]
    assert "a delimiter is one character" in errors(keys, "dataset.delimiter=;;")["dataset.delimiter"]
    other = recipe(dataset={"path": str(jsonl(tmp_path / "rows.jsonl", ROWS)), "splits": CUT, "delimiter": ";"})
    assert "no .csv and no .tsv file" in errors(other)["dataset.delimiter"]


# ---------------------------------------------------------------- rows from Python


def tables() -> dict[str, Any]:
    """Return the same rows as the libraries hold them."""
    pandas, datasets = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    frame = pandas.DataFrame(ROWS)
    whole = datasets.Dataset.from_list(ROWS)
    return {
        "list": ROWS,
        "DataFrame": frame,
        "Dataset": whole,
        "DatasetDict": datasets.DatasetDict(train=whole.select(range(30)), test=whole.select(range(30, 40))),
        "dict": {"train": ROWS[:30], "test": frame[30:]},
    }


@pytest.mark.parametrize("kind", ["list", "DataFrame", "Dataset", "DatasetDict", "dict"])
def test_rows_from_python(tmp_path: Path, recipe: Keys, kind: str) -> None:
    given = tables()[kind]
    splits = CUT if kind in ("list", "DataFrame", "Dataset") else {"validation": 5}
    keys = recipe(dataset={"path": given, "splits": splits})
    run = notebook.run(keys, out=tmp_path / "runs", console=Console(silent=True))
    inputs = {e.input for part in run.directory.task.splits.values() for e in part}
    assert inputs == {row["input"] for row in ROWS}
    file = run.dir / "recipe.yaml"
    assert 'path: "python:' in file.read_text() or "path: python:" in file.read_text()
    for again in (errors(file), errors(str(file))):
        assert "were given from Python" in again["dataset.path"] and "--resume" in again["dataset.path"]


def test_a_run_with_rows_from_python_is_resumed_from_its_directory(tmp_path: Path, recipe: Keys) -> None:
    keys = recipe(dataset={"path": ROWS, "splits": CUT})
    (directory,) = prepare([notebook.load(keys)], tmp_path, Console(silent=True))
    done = notebook.resume(directory.dir, Console(silent=True))
    assert done.metrics["tuned"] and RunDirectory.open(directory.dir).status() == "done"


def test_missing_values_and_mistakes_of_rows_from_python(recipe: Keys) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(ROWS).assign(target=[float("nan"), None, *(f"a{i}" for i in range(38))], n=1.5)
    task, audit = load_task(notebook.load(recipe(dataset={"path": frame, "splits": CUT, "columns": {"meta": ["n"]}})))
    assert sum(len(facts["empty_targets"]) for facts in audit["splits"].values()) == 2
    assert task.test[0].meta == {"n": 1.5}
    double = pandas.DataFrame([[1, 2]], columns=["input", "input"])
    for path, says in (
        (double, "two columns have the name 'input'"),
        ([*ROWS, "x"], "row 41 is not a dict, but a str"),
        ({"train": ROWS, "test": "rows.jsonl"}, "this is a str"),
        ({"train": ROWS, "trian": ROWS}, "no test split"),
        ([{"input": i, "target": True} for i in range(40)], "a boolean (true) is not text"),
    ):
        dataset = {"path": path, "splits": {"validation": 2, "test": "all" if isinstance(path, dict) else 5}}
        with pytest.raises(InputError) as caught:
            load_task(notebook.load(recipe(dataset=dataset)))
        assert says in str(caught.value), says


# ---------------------------------------------------------------- ftkit score


def test_score_reads_the_same_files_and_refuses_the_same_values(tmp_path: Path, command: Callable[..., Any]) -> None:
    import gzip

    rows = [{"prediction": f"質問{i}です", "target": [f"質問{i}です", "x"], "n": i} for i in range(4)]
    text = "prediction;target\n" + "".join(f"{r['prediction']};{r['prediction']}\n" for r in rows)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode("shift_jis")))
    arguments = ["score", "--evaluator", "fake-overlap", "--json", "--predictions"]
    done = command(*arguments, "a.csv.gz")
    assert done.returncode == 2 and "--encoding 'shift_jis'" in done.stderr
    done = command(*arguments, "a.csv.gz", "--encoding", "shift_jis")
    assert done.returncode == 2 and "--delimiter ';'" in done.stderr
    done = command(*arguments, "a.csv.gz", "--encoding", "shift_jis", "--delimiter", ";")
    (first,) = list(json.loads(done.stdout)["metrics"].values())[:1]
    assert done.returncode == 0 and (first["value"], first["n"]) == (1.0, 4)
    done = command(*arguments, "a.csv.gz", "--encoding", "shiftjs")
    assert done.returncode == 2 and "did you mean shift_jis?" in done.stderr
    jsonl(tmp_path / "b.jsonl", [*rows, {"prediction": True, "target": "x"}])
    done = command(*arguments, "b.jsonl")
    assert done.returncode == 2 and "b.jsonl: row 5, column 'prediction': a boolean (true) is not text" in done.stderr
    jsonl(tmp_path / "c.jsonl", [{"prediction": {"ok": True}, "target": [{"type": "text", "text": '{"ok":true}'}]}])
    done = command(*arguments, "c.jsonl")
    (first,) = list(json.loads(done.stdout)["metrics"].values())[:1]
    assert done.returncode == 0 and first["value"] == 1.0
