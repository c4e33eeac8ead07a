"""The run directory: nothing half-written, one writer, and what goes in comes out."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import os
import resource
import subprocess
import sys
import threading
import tracemalloc
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit import records
from ftkit.directory import RunDirectory, list_runs, utc_now
from ftkit.errors import InputError
from ftkit.files import Journal, digest, dump_json, read_json, read_jsonl, write_atomic, write_json, write_jsonl
from ftkit.records import Example, GenerationConfig, Message, Metric, ModelRef, Record, RunRecord, Task


def made(out: Path, name: str) -> RunDirectory:
    run = RunDirectory.create(out, name)
    run.save_record(RunRecord(run.id, name, "running", utc_now()))
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return made(tmp_path / "runs", "a run: ../with odd / name")


# ---------------------------------------------------------------- files


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file.json"
    write_json(path, {"a": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write_atomic(path, "half")
    assert read_json(path) == {"a": 1} and [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_a_write_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), replace(a, b))[1])
    write_atomic(tmp_path / "x", "text")
    assert order == ["fsync", "rename", "fsync"], "the file, its name, and the folder that holds the name"
    assert (tmp_path / "x").read_text() == "text"


def test_a_failing_row_writes_no_file(tmp_path: Path) -> None:
    def rows() -> Any:
        yield {"a": 1}
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        write_jsonl(tmp_path / "rows.jsonl", rows())
    assert list(tmp_path.iterdir()) == []


def test_dump_json_is_always_json_and_encodable() -> None:
    data = {"nan": math.nan, "more": [math.inf, (-math.inf, 1.5)], "text": "é \ud800 \x00\x1b", "whole": 3}
    text = dump_json(data)
    text.encode()
    assert json.loads(text) == {"nan": None, "more": [None, [None, 1.5]], "text": "é \ud800 \x00\x1b", "whole": 3}
    assert "NaN" not in text and "Infinity" not in text
    assert dump_json({"text": "é"}) == '{"text": "é"}'
    assert digest({"a": 1, "b": math.nan}) == digest({"b": math.inf, "a": 1})
    assert digest("\ud800") != digest("\ud801")


def test_bad_json_names_the_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"a"\n')
    with pytest.raises(InputError, match=r"x\.jsonl:2: not JSON"):
        list(read_jsonl(tmp_path / "x.jsonl"))
    with pytest.raises(InputError, match=r"x\.jsonl is not JSON"):
        read_json(tmp_path / "x.jsonl")


# ---------------------------------------------------------------- journals


@pytest.mark.parametrize("torn", [b'{"n": 3', b'{"n": 3, "t": "\xc3', b"{"])
def test_a_torn_last_line_is_passed_over_and_cut_by_who_writes_next(tmp_path: Path, torn: bytes) -> None:
    journal = Journal(tmp_path / "deep" / "j.jsonl")
    assert journal.read() == [] and not journal.path.parent.exists()
    for n in range(3):
        journal.append({"n": n, "t": "line\nbreak \r \u2028 \x85 \ud800"})
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + torn)
    assert [row["n"] for row in journal.read()] == [0, 1, 2]
    assert journal.path.read_bytes() == whole + torn, "another process may be writing that line"
    journal.append({"n": 3})
    assert journal.path.read_bytes() == whole + b'{"n": 3}\n'
    journal.path.write_bytes(whole + torn)
    journal.repair()
    assert journal.path.read_bytes() == whole
    journal.append({"n": 3})
    assert [row["n"] for row in Journal(journal.path).read()] == [0, 1, 2, 3]


@given(st.lists(st.text(), min_size=1, max_size=5), st.data())
@settings(max_examples=50, deadline=None)
def test_a_journal_cut_anywhere_keeps_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject
) -> None:
    journal = Journal(tmp_path_factory.mktemp("journal") / "j")
    ends = []
    for text in texts:
        journal.append({"t": text})
        ends.append(journal.path.stat().st_size)
    at = data.draw(st.integers(0, ends[-1]))
    os.truncate(journal.path, at)
    left = [t for t, end in zip(texts, ends, strict=True) if end <= at]
    assert [row["t"] for row in journal.read()] == left
    journal.append({"t": "more"})
    assert [row["t"] for row in journal] == [*left, "more"]


def test_a_line_that_does_not_fit_is_not_there_at_all(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.append({"n": 1})
    whole, limits = journal.path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError):
            journal.append({"n": "x" * 100_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert journal.path.read_bytes() == whole


def test_two_processes_append_to_one_journal(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom ftkit.files import Journal\n"
        "for n in range(100): Journal(Path(sys.argv[1])).append({'who': sys.argv[2], 'n': n, 'text': 'x' * 9000})"
    )
    path = tmp_path / "j"
    path.write_text('{"who"')  # torn by a process before them
    both = [subprocess.Popen([sys.executable, "-c", code, path, who]) for who in "ab"]
    assert [process.wait(60) for process in both] == [0, 0]
    rows = Journal(path).read()
    assert sorted((row["who"], row["n"]) for row in rows) == [(who, n) for who in "ab" for n in range(100)]


def test_memory_stays_flat_while_rows_stream(tmp_path: Path) -> None:
    path, text = tmp_path / "rows.jsonl", "x" * 10_000
    tracemalloc.start()
    try:
        write_jsonl(path, ({"n": n, "text": text} for n in range(2000)))
        assert sum(row["n"] for row in read_jsonl(path)) == sum(row["n"] for row in Journal(path)) == 1999 * 1000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 20e6 and peak < 1e6


def test_the_log_of_a_resumed_run_counts_a_step_once(run: RunDirectory) -> None:
    for step, loss in ((1, 3.0), (2, 2.0), (2, 1.0), (3, 0.5)):
        run.log("step", step=step, loss=loss)
    run.log("eval", step=2, overlap=0.1)
    assert [(r["event"], r["step"]) for r in run.log_rows()] == [("step", 1), ("step", 2), ("step", 3), ("eval", 2)]
    assert [r["loss"] for r in run.log_rows() if r["event"] == "step"] == [3.0, 1.0, 0.5]


def test_no_change_of_a_state_is_lost_between_threads_and_processes(run: RunDirectory) -> None:
    """A tracker that stores its id must never cost the id of a paid job."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom ftkit.directory import RunDirectory\n"
        "state = RunDirectory(Path(sys.argv[1])).state('both')\n"
        "for n in range(50): state.update(**{f'{sys.argv[2]}{n}': n})"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, run.dir, who]) for who in "ab"]

    def change(who: str) -> None:
        for n in range(50):
            run.state("both").update(**{f"{who}{n}": n})

    threads = [threading.Thread(target=change, args=(who,)) for who in "cd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(60) for process in processes] == [0, 0]
    assert set(run.state("both")) == {f"{who}{n}" for who in "abcd" for n in range(50)}


# ---------------------------------------------------------------- the directory


def test_names_become_safe_folders(tmp_path: Path) -> None:
    for name in ("../../evil", "a/b", ".hidden", "x" * 500, "\x00\n", "ünï", "-rf"):
        run = made(tmp_path / "runs", name)
        assert run.dir.parent == tmp_path / "runs" and not run.id.startswith((".", "-"))
        assert run.record().name == name
    assert {p.name for p in tmp_path.iterdir()} == {"runs"}


def test_no_path_leaves_the_directory(run: RunDirectory) -> None:
    assert run.path("train", "model") == run.dir / "train" / "model"
    (run.dir / "link").symlink_to("/tmp")
    for parts in (("..",), ("a", "../../x"), ("/etc/passwd",), ("link", "x"), ("..", run.id + "x")):
        with pytest.raises(ValueError, match="outside the run directory"):
            run.path(*parts)


def test_a_second_process_is_refused(run: RunDirectory) -> None:
    code = (
        "import sys\nfrom ftkit.directory import RunDirectory\nfrom ftkit.errors import InputError\n"
        "try:\n    with RunDirectory.open(sys.argv[1]).exclusive(): print('mine')\n"
        "except InputError as error: print(error)"
    )

    def other() -> str:
        return subprocess.run([sys.executable, "-c", code, run.dir], capture_output=True, text=True, check=True).stdout

    with run.exclusive():
        assert "another process is writing" in other()
        with pytest.raises(InputError, match="another process"), RunDirectory.open(run.dir).exclusive():
            pass
    assert other() == "mine\n"


def test_a_run_nobody_holds_was_killed(run: RunDirectory) -> None:
    assert run.status() == "killed"  # its record says running
    with run.exclusive():
        assert RunDirectory.open(run.dir).is_held() and run.status() == "running"
    assert not run.is_held() and run.status() == "killed"
    run.save_record(dataclasses.replace(run.record(), status="interrupted"))
    assert run.status() == "interrupted"


def test_who_only_looks_does_not_keep_a_writer_out(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    with run.exclusive():
        pass
    with open(run.dir / ".lock") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr("ftkit.directory.time.sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
        with run.exclusive():
            assert run.is_held()


def test_opening_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run\.json"):
        RunDirectory.open(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with pytest.raises(InputError, match="cannot make a run directory"):
        RunDirectory.create(blocked, "x")


def test_list_runs_passes_over_rubbish(tmp_path: Path) -> None:
    run = made(tmp_path, "good")
    for name, text in (("torn", '{"id": '), ("empty", ""), ("list", "[]"), ("other", '{"a": 1}'), ("null", "null")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    (tmp_path / "stray.txt").write_text("x")
    assert [found.id for found in list_runs(tmp_path)] == [run.id]
    assert list_runs(tmp_path / "missing") == []


def test_task_state_and_model_come_back(run: RunDirectory) -> None:
    example = Example("1", (Message("system", "s"), Message("user", "u")), ("a", "b"), "u", {"k": [1, None]})
    task = Task("t", {"train": (example,), "test": ()}, {"train": "f", "test": "g"}, "p", {"path": "x"})
    run.save_task(task)
    run.state("provider").update(job="j-1")
    run.state("provider").update(step=3)
    run.state("../tracker").update(job="its own")
    reopened = RunDirectory.open(run.dir)
    assert reopened.task == task and reopened.state("provider") == {"job": "j-1", "step": 3}
    assert reopened.state("../tracker") == {"job": "its own"} and reopened.state("nobody") == {}
    assert reopened.model() is None
    write_json(run.path("train", "model.json"), ModelRef("adapter", "train/model", "b").to_dict())
    assert reopened.model() == ModelRef("adapter", "train/model", "b")
    assert reopened.resolve_uri("train/model") == run.dir.resolve() / "train/model"
    write_json(run.path("m", "metrics.json"), {"metrics": {"x": {"value": 0.5, "n": 3}}, "settings": {}})
    assert reopened.metrics("m") == {"x": Metric("x", 0.5, n=3)}


# ---------------------------------------------------------------- records

_NUMBER = st.floats(allow_nan=False, allow_infinity=False)
_TEXT = st.text(st.characters(), max_size=20)  # lone surrogates included
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | _NUMBER | _TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_TEXT, inner, max_size=2),
    max_leaves=4,
)


def _values(hint: Any) -> st.SearchStrategy[Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return _JSON
    if args and type(None) in args:
        return st.none() | _values(next(a for a in args if a is not type(None)))
    if origin is tuple:
        return st.lists(_values(args[0]), max_size=2).map(tuple)
    if origin is list:
        return st.lists(_values(args[0]), max_size=2)
    if origin is dict:
        return st.dictionaries(_TEXT, _values(args[1]), max_size=2)
    if isinstance(hint, type) and issubclass(hint, Record):
        return _records(hint)
    if hint is GenerationConfig:
        return st.builds(GenerationConfig, max_new_tokens=st.integers(1, 99), temperature=st.floats(0.1, 10))
    return {str: _TEXT, int: st.integers(), float: _NUMBER, bool: st.booleans()}[hint]


def _records(cls: type[Record]) -> st.SearchStrategy[Record]:
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{f.name: _values(hints[f.name]) for f in dataclasses.fields(cls)})


ALL = [c for c in vars(records).values() if isinstance(c, type) and issubclass(c, Record) and c is not Record]


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.__name__)
def test_every_record_survives_json(cls: type[Record]) -> None:
    @given(_records(cls))
    @settings(max_examples=15, deadline=None, database=None)
    def survives(record: Record) -> None:
        data = json.loads(dump_json(record.to_dict()))
        assert cls.from_dict(data) == record
        assert cls.from_dict({**data, "from a newer ftkit": 1}) == record

    survives()
    assert typing.cast(Any, cls).__dataclass_params__.frozen
