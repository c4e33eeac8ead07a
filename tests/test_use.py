"""The models of a finished run: asked from a terminal, from Python, for the rows of a file; and a run trained further."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ftkit
from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.errors import InputError, RecipeError, RunFailed
from ftkit.files import read_json, read_jsonl
from ftkit.run.extend import INTENT

QUIET = Console(silent=True)


@pytest.fixture
def done(fakes: ModuleType, recipe: Callable[..., dict[str, Any]], tmp_path: Path) -> ftkit.RunResult:
    """A finished run of the fake backend, whose answers depend on the batch they are made in."""
    return ftkit.run(recipe(), out=tmp_path / "runs", console=QUIET)


def texts(run: ftkit.RunResult, name: str) -> list[str]:
    return [p.text for p in run.directory.predictions(name)]


def asked(run: ftkit.RunResult, source: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    ftkit.predict(run.dir, source, out, console=QUIET, **options)
    return list(read_jsonl(out))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---------------------------------------------------------------- predict


def test_answers_equal_those_of_the_measurement_and_the_run_stays_as_it_was(
    done: ftkit.RunResult, rows: Path, tmp_path: Path
) -> None:
    before = files_of(done.dir)
    stored = asked(done, done.dir / "data" / "test.jsonl", tmp_path / "stored.jsonl")
    assert [row["prediction"] for row in stored] == texts(done, "tuned")
    assert [{k: v for k, v in row.items() if k != "prediction"} for row in stored] == list(
        read_jsonl(done.dir / "data" / "test.jsonl")
    )
    base = asked(done, done.dir / "data" / "test.jsonl", tmp_path / "base.jsonl", base=True)
    assert [row["prediction"] for row in base] == texts(done, "baseline") != texts(done, "tuned")
    # The file that the test rows came from: ids, and so the batches, are those of the measurement.
    own = asked(done, rows / "test.jsonl", tmp_path / "own.jsonl")
    assert [row["prediction"] for row in own] == texts(done, "tuned")
    assert files_of(done.dir) == before and ftkit.verify(done.dir).ok
    assert sorted(p.name for p in tmp_path.glob("*.jsonl*")) == ["base.jsonl", "own.jsonl", "stored.jsonl"]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".json", ".parquet"])
def test_rows_come_back_whole_in_each_format(done: ftkit.RunResult, tmp_path: Path, ending: str) -> None:
    rows = [{"input": f'a "b", {i}\nc', "more": f"x{i}"} for i in range(5)]
    source, out = tmp_path / "new.csv", tmp_path / f"out{ending}"
    with open(source, "w", newline="") as file:
        table = csv.DictWriter(file, ["input", "more"])
        table.writeheader()
        table.writerows(rows)
    ftkit.predict(done.dir, source, out, console=QUIET)
    from ftkit.data.formats import read_file

    found = read_file(out)
    assert [{k: v for k, v in row.items() if k != "prediction"} for row in found] == rows
    assert all(row["prediction"] for row in found)
    again = tmp_path / f"again{ending}"
    ftkit.predict(done.dir, out, again, column="second", console=QUIET)  # each format is read as well
    assert [row["second"] for row in read_file(again)] == [row["prediction"] for row in found]


def test_a_parquet_file_keeps_its_types(done: ftkit.RunResult, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"input": ["a", "b"], "n": pyarrow.array([1, 2], pyarrow.int8())})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    ftkit.predict(done.dir, tmp_path / "in.parquet", tmp_path / "out.parquet", console=QUIET)
    found = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert found.schema.field("n").type == pyarrow.int8() and found.column_names == ["input", "n", "prediction"]


def test_a_killed_call_goes_on_with_its_own_batches(
    done: ftkit.RunResult, command: Callable[..., Any], tmp_path: Path
) -> None:
    source, out = done.dir / "data" / "test.jsonl", tmp_path / "out.jsonl"
    line = ("predict", done.dir, source, "--out", out)
    process = command(*line, wait=False, FAKES="slow=0.3")
    journal = tmp_path / "out.jsonl.unfinished" / "predictions.journal"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 2):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert not out.exists()
    answered = journal.read_bytes().count(b"\n")
    other = command("predict", done.dir, source, "--out", out, "--base")
    assert other.returncode == 2 and "differs in the model that is asked" in other.stderr and "rm -r" in other.stderr
    shorter = tmp_path / "shorter.jsonl"
    shorter.write_text("".join(source.read_text().splitlines(True)[:5]))
    other = command("predict", done.dir, shorter, "--out", out)
    assert other.returncode == 2 and "differs in the rows of shorter.jsonl" in other.stderr
    stopped = command(*line, FAKES=f"interrupt={2}")
    assert stopped.returncode == 130 and "the same command continues" in stopped.stderr
    ended = command(*line, "--json")
    assert ended.returncode == 0, ended.stderr
    assert f"{3 * (answered + 2)} rows have an answer already" in ended.stderr
    assert json.loads(ended.stdout)["rows"] == 24
    assert [row["prediction"] for row in read_jsonl(out)] == texts(done, "tuned")
    assert not journal.parent.exists()
    again = command(*line)
    assert again.returncode == 2 and "exists already" in again.stderr


def test_mistakes_name_the_file_and_the_row(done: ftkit.RunResult, tmp_path: Path) -> None:
    def refused(content: str, name: str = "new.jsonl", **options: Any) -> str:
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError) as error:
            asked(done, tmp_path / name, tmp_path / "out.jsonl", **options)
        assert not list(tmp_path.glob("out.jsonl*"))
        return str(error.value)

    assert "new.jsonl holds no rows" in refused("\n")
    assert "new.jsonl:2: not JSON" in refused('{"input": "a"}\n{oops\n')
    assert "new.jsonl: dataset.columns.input: row 2, column 'input'" in refused('{"input": "a"}\n{"input": true}\n')
    assert "new.jsonl: dataset.columns.input: the rows have no column 'input'" in refused('{"inputs": "a"}\n')
    said = refused('{"input": "a", "prediction": 1}\n')
    assert "has a column 'prediction' already" in said and "--column prediction_2" in said
    with pytest.raises(InputError, match=r"cannot write \.txt"):
        asked(done, tmp_path / "new.jsonl", tmp_path / "out.txt")
    with pytest.raises(InputError, match="there is no folder"):
        asked(done, tmp_path / "new.jsonl", tmp_path / "no" / "out.jsonl")
    with pytest.raises(InputError, match="is the file that is read"):
        asked(done, tmp_path / "new.jsonl", tmp_path / "new.jsonl")


def test_a_failed_request_leaves_no_empty_answer(
    fakes: ModuleType, recipe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    run = ftkit.run(recipe(backend={"fail": ["test-3"]}), out=tmp_path / "runs", console=QUIET)
    found = asked(run, run.dir / "data" / "test.jsonl", tmp_path / "out.jsonl")
    assert found[3]["prediction"] is None and found[3]["prediction_error"] == "the fake server said 503"
    assert found[4]["prediction"] and found[4]["prediction_error"] is None
    os.environ["FAKES"] = "answers=none"
    try:
        with pytest.raises(RunFailed, match="all 24 requests failed"):
            asked(run, run.dir / "data" / "test.jsonl", tmp_path / "none.jsonl")
    finally:
        del os.environ["FAKES"]
    assert not (tmp_path / "none.jsonl").exists()
    # The failed answers are kept, and asked for again.
    assert len(asked(run, run.dir / "data" / "test.jsonl", tmp_path / "none.jsonl")) == 24


def test_what_costs_something_is_confirmed(
    fakes: ModuleType, recipe: Callable[..., dict[str, Any]], command: Callable[..., Any], tmp_path: Path
) -> None:
    run = ftkit.run(
        recipe(backend={"usd": 0.5, "usd_per_answer": 0.01}), out=tmp_path / "runs", console=QUIET, yes=True
    )
    source, out = run.dir / "data" / "test.jsonl", tmp_path / "out.jsonl"
    refused = command("predict", run.dir, source, "--out", out)
    assert refused.returncode == 2 and "not started: it would cost about $0.50" in refused.stderr
    assert not list(tmp_path.glob("out*"))
    paid = command("predict", run.dir, source, "--out", out, "--yes", "--json")
    assert json.loads(paid.stdout)["usd"] == pytest.approx(0.24)
    talk = subprocess.run(
        [sys.executable, "-m", "ftkit", "chat", str(run.dir)], input="hello\n", capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(_site(command))},
    )  # fmt: skip
    assert talk.returncode == 2 and "each answer is paid" in talk.stderr and "--yes" in talk.stderr
    with pytest.raises(InputError, match="would cost"):
        run.generate("hello")
    assert run.generate("hello", yes=True).startswith("hello") or run.generate("hello", yes=True).startswith("HELLO")
    run.close()


def _site(command: Callable[..., Any]) -> str:
    """Return the folder with the fake plugins that `command` uses."""
    cells = dict(zip(command.__code__.co_freevars, (c.cell_contents for c in command.__closure__ or ()), strict=True))  # type: ignore[attr-defined]
    return str(cells["fake_site"])


# ---------------------------------------------------------------- runs that cannot be used


def test_a_run_without_a_model_says_why_and_what_helps(
    fakes: ModuleType, recipe: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKES", "train=crash")
    with pytest.raises(RunFailed):
        ftkit.run(recipe(), out=tmp_path / "runs", console=QUIET)
    monkeypatch.delenv("FAKES")
    (folder,) = (tmp_path / "runs").iterdir()
    run = ftkit.open_run(folder)
    with pytest.raises(InputError) as error:
        run.generate("hello")
    assert "has no tuned model: the run failed in train" in str(error.value)
    assert f"ftkit run --resume {folder}" in str(error.value) and "--base" in str(error.value)
    assert run.generate("hello", base=True).startswith("hello")
    run.close()
    record = read_json(folder / "run.json")
    for status, said in (("interrupted", "the run was interrupted in train"), ("prepared", "was prepared and not started"),
                         ("running", "the run was killed in train")):  # fmt: skip
        (folder / "run.json").write_text(json.dumps({**record, "status": status}))
        with pytest.raises(InputError, match=said):
            run.generate("hello")
    with RunDirectory.open(folder).exclusive(), pytest.raises(InputError, match="the run is in progress in train"):
        run.generate("hello")


def test_a_model_that_changed_is_not_asked(done: ftkit.RunResult, tmp_path: Path) -> None:
    file = done.dir / "train" / "model" / "rule.json"
    whole = file.read_text()
    file.write_text(whole.replace("0.8", "0.9"))
    with pytest.raises(InputError, match=r"rule\.json was changed after training"):
        done.generate("hello")
    file.unlink()
    with pytest.raises(InputError, match=r"rule\.json is missing"):
        done.generate("hello")
    shutil.rmtree(file.parent)
    with pytest.raises(InputError, match="the tuned model is missing"):
        done.generate("hello")
    predictions = tmp_path / "p.jsonl"
    predictions.write_text('{"prediction": "a", "target": "a"}\n')
    scored = ftkit.score(predictions, "fake-overlap", out=tmp_path / "scored")
    with pytest.raises(InputError, match="holds scored predictions"):
        scored.generate("hello")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk")
def test_a_full_disk_keeps_the_answers_so_far(
    done: ftkit.RunResult, command: Callable[..., Any], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine mounts nothing")
    try:
        rows = tmp_path / "rows.jsonl"
        rows.write_text("".join(json.dumps({"input": f"row {i} " + "so " * 100}) + "\n" for i in range(40)))
        full = command("predict", done.dir, rows, "--out", disk / "out.jsonl")
        assert (
            full.returncode == 1 and "the disk is full" in full.stderr and "the same command continues" in full.stderr
        )
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        ended = command("predict", done.dir, rows, "--out", disk / "out.jsonl")
        assert ended.returncode == 0, ended.stderr
        assert len(list(read_jsonl(disk / "out.jsonl"))) == 40
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ---------------------------------------------------------------- Python


def test_generate_takes_texts_and_rows(
    done: ftkit.RunResult, fakes: ModuleType, recipe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    assert done.generate("hello there").lower().startswith("hello there")
    assert [text.lower()[:1] for text in done.generate(["a", {"input": "b"}, "c"])] == ["a", "b", "c"]
    assert done.generate([]) == []
    assert done.generate("hello", base=True).startswith("hello")
    assert len(done.generate("hello", overrides=["generation.samples=3", "generation.temperature=1"])) == 3
    with pytest.raises(InputError, match="text or a row is asked, not int"):
        done.generate([1])  # type: ignore[list-item]
    with pytest.raises(InputError, match="the rows have no column 'input'"):
        done.generate({"other": "x"})
    done.close()
    named = recipe(prompt={"template": "{input} and {other}"})
    rows = tmp_path / "named.jsonl"
    rows.write_text("".join(json.dumps({"input": f"i{n}", "other": f"o{n}", "target": "x"}) + "\n" for n in range(20)))
    named["dataset"] = {"path": str(rows), "splits": {"train": 10, "validation": 2, "test": 4}}
    run = ftkit.run(named, out=tmp_path / "named", console=QUIET)
    with pytest.raises(InputError, match=r"reads 2 columns \(input, other\)"):
        run.generate("hello")
    assert run.generate({"input": "here", "other": "there"}).lower().startswith("here and there")
    run.close()


# ---------------------------------------------------------------- chat


def talk(run: Path, site: str, said: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ftkit", "chat", str(run), *options], input=said, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": site},
    )  # fmt: skip


def test_chat_over_a_pipe_gives_answers_alone_on_stdout(done: ftkit.RunResult, fake_site: Path) -> None:
    ended = talk(done.dir, str(fake_site), 'hello\n"""two\nlines"""\n/base\nhello\n/nothing\n')
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert [line.rstrip(" .").lower() for line in lines] == ["hello", "two", "lines", "hello", "/nothing"]
    assert "What you type (input) is the input of the recipe's prompt" in ended.stderr
    both = talk(done.dir, str(fake_site), "hello\n/quit\nnever\n", "--compare")
    assert [line for line in both.stdout.splitlines() if line.startswith("[")] == ["[base]", "[tuned]"]
    assert "never" not in both.stdout
    assert talk(done.dir, str(fake_site), "", "--base", "--compare").returncode == 2


def test_a_chat_recipe_keeps_the_conversation(
    fakes: ModuleType, recipe: Callable[..., dict[str, Any]], fake_site: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "chats.jsonl"
    turns = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "A"}]} for i in range(20)
    ]
    rows.write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    splits = {"train": 10, "validation": 2, "test": 4}
    chats = {"path": str(rows), "columns": {"messages": "messages"}, "splits": splits}
    run = ftkit.run(recipe(dataset=chats), out=tmp_path / "runs", console=QUIET)
    ended = talk(run.dir, str(fake_site), "one\ntwo\n/reset\nthree\n")
    assert ended.returncode == 0 and "one turn of a conversation" in ended.stderr and "forgotten" in ended.stderr
    from ftkit.data.asking import questions, typed_question
    from ftkit.records import Message

    history = [Message("user", "one"), Message("assistant", "A")]
    example = typed_question(run.directory.recipe, {"": "two"}, history)
    assert [m.content for m in example.messages] == ["one", "A", "two"]
    # A row may end with the user's turn, or with the answer that is to be given.
    asked_rows = [{"messages": turns[0]["messages"][:1]}, turns[1]]
    assert [[m.content for m in e.messages] for e in questions(run.directory.recipe, asked_rows, "f")] == [
        ["q0"],
        ["q1"],
    ]
    with pytest.raises(InputError, match=r"f: row 1 \(id 'test-0'\): .*must hold a list"):
        questions(run.directory.recipe, [{"messages": "text"}], "f")


class Terminal:
    """`ftkit chat` in a pseudo-terminal."""

    def __init__(self, run: Path, site: str, *options: str, **variables: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            env = {**os.environ, "PYTHONPATH": site, "TERM": "xterm", **variables}
            os.execve(sys.executable, [sys.executable, "-m", "ftkit", "chat", str(run), *options], env)
        self.seen = ""

    def until(self, pattern: str, seconds: float = 120) -> str:
        """Read until a pattern was shown; return what was shown since the last call."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < deadline, self.seen
            if select.select([self.fd], [], [], 0.5)[0]:
                try:
                    self.seen += os.read(self.fd, 65536).decode()
                except OSError:  # it has ended
                    found = re.search(pattern, self.seen)
                    assert found, self.seen
                    break
        shown, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return shown

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def ended(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def terminal(done: ftkit.RunResult, fake_site: Path) -> Iterator[Terminal]:
    opened = Terminal(done.dir, str(fake_site), FAKES="slow=1.5")
    yield opened
    try:
        os.kill(opened.pid, signal.SIGKILL)
        os.waitpid(opened.pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def test_chat_in_a_terminal(terminal: Terminal) -> None:
    opening = terminal.until("input> ")
    assert "tuned model, greedy" in opening and "/help" in opening
    terminal.type("good morning\n")
    assert re.search("good morning", terminal.until("input> ").split("\n", 1)[1], re.I)
    terminal.type("/compare\n")
    assert "now: base and tuned model" in terminal.until("input> ")
    terminal.type("twice\n")
    shown = terminal.until("input> ")
    assert shown.index("[base]") < shown.index("[tuned]")
    terminal.type("/bas\n")
    assert "did you mean /base?" in terminal.until("input> ")
    terminal.type("ended\n")
    terminal.until("ended")  # its echo: from here on the answer is made
    time.sleep(0.7)
    terminal.type("\x03")  # Ctrl-C ends the answer, not the chat
    assert "(ended)" in terminal.until("input> ")
    terminal.type("half a line")
    terminal.until("half a line")  # Python's input() can miss a Ctrl-C between its prompt and its first read
    time.sleep(0.2)
    terminal.type("\x03")
    assert "/quit leaves" in terminal.until("input> ")
    terminal.type("\x04")
    assert terminal.ended() == 0


# ---------------------------------------------------------------- a run that is trained further


def test_more_steps_are_a_new_system_and_the_earlier_measurement_is_kept(done: ftkit.RunResult, tmp_path: Path) -> None:
    before = files_of(done.dir / "tuned")
    longer = ftkit.resume(done.dir, console=QUIET, overrides=["backend.steps=9"])
    assert longer.status == "done" and ftkit.verify(done.dir).ok, ftkit.verify(done.dir)
    report = longer.report
    systems = {s.name: s for s in report.systems}
    assert list(systems) == ["baseline", "tuned-6", "tuned"]
    assert systems["tuned-6"].role == "further" and systems["tuned"].role == "tuned"
    assert systems["tuned-6"].train_seconds is not None and systems["tuned-6"].train_usd == 0.25
    assert (systems["tuned"].train_seconds or 0) >= systems["tuned-6"].train_seconds
    assert {(d.from_, d.to) for d in report.deltas} >= {("baseline", "tuned"), ("baseline", "tuned-6")}
    kept = files_of(done.dir / "tuned-6")
    assert kept.keys() == before.keys() and kept["predictions.jsonl"] == before["predictions.jsonl"]
    assert read_json(done.dir / "train" / "model" / "rule.json")["after"] == 6
    assert read_json(done.dir / "train" / "earlier" / "6" / "rule.json")["steps"] == 6
    assert any("backend.steps 9 instead of 6" in note for note in report.notes)
    steps = [row["step"] for row in longer.directory.log_rows() if row["event"] == "step"]
    assert steps == list(range(1, 10))
    again = ftkit.resume(done.dir, console=QUIET, overrides=["backend.steps=12"])
    assert [s.name for s in again.report.systems] == ["baseline", "tuned-6", "tuned-9", "tuned"]
    assert ftkit.verify(done.dir).ok
    with pytest.raises(InputError, match="was trained further after it was done"):
        ftkit.rerun(done.dir, out=tmp_path / "again", console=QUIET)


def test_a_finished_run_takes_nothing_else(done: ftkit.RunResult) -> None:
    def refused(*overrides: str) -> str:
        with pytest.raises((RecipeError, InputError)) as error:
            ftkit.resume(done.dir, console=QUIET, overrides=overrides)
        return str(error.value)

    before = files_of(done.dir)
    assert "is 6 in this run: what was trained is not taken back" in refused("backend.steps=5")
    assert "continues with more of: backend.steps" in refused("backend.skill=0.9")
    assert "--set would change nothing" in refused("backend.batch_size=1")
    assert files_of(done.dir) == before
    (done.dir / "tuned" / "scores.jsonl").write_text("")
    assert "is not as it was sealed" in refused("backend.steps=9")


def test_an_extension_that_is_killed_anywhere_goes_on(
    done: ftkit.RunResult, recipe: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop it at each change in the file system before training; resume without --set; compare with an undisturbed one."""
    whole = tmp_path / "whole"
    shutil.copytree(done.dir, whole)
    ftkit.resume(whole, console=QUIET, overrides=["backend.steps=9"])
    expected = {k: v for k, v in files_of(whole).items() if k.startswith(("tuned", "train/model", "train/earlier"))}
    expected = {k: v for k, v in expected.items() if k.endswith(("predictions.jsonl", "scores.jsonl", "rule.json"))}

    class Killed(BaseException):
        pass

    real = {name: getattr(os, name) for name in ("replace", "unlink")}
    at, stopped = 0, True
    while stopped:
        run, count = tmp_path / f"killed-{at}", 0
        shutil.copytree(done.dir, run)

        def change(name: str, limit: int = at) -> Callable[..., Any]:
            def act(*args: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                if count > limit:
                    raise Killed
                return real[name](*args, **options)

            return act

        from ftkit.run import extend

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, change(name))
            stopped = False
            try:
                with RunDirectory.open(run).exclusive():
                    extend.extend(RunDirectory.open(run), ["backend.steps=9"])
            except Killed:
                stopped = True
        begun = (run / INTENT).exists() or not stopped or read_json(run / "run.json")["status"] != "done"
        ftkit.resume(run, console=QUIET, overrides=[] if begun else ["backend.steps=9"])
        found = files_of(run)
        assert {k: found.get(k) for k in expected} == expected, at
        assert ftkit.verify(run).ok and not (run / INTENT).exists(), at
        shutil.rmtree(run)
        at += 1
    assert at > 8
