"""What the tests of the managed backend share: rows, recipes, runs in this process and in processes that can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai_stub import KEY, MODEL, Stub

import ftkit
from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.files import read_json
from ftkit.records import Example, Message, Task

ROOT = Path(__file__).parents[2]
QUICK = {"find_window": 0.4, "patience": 5.0, "timeout": 5.0, "poll_seconds": 0.1, "model_wait": 5.0, "concurrency": 4}


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stub]:
    """A provider on loopback, and the key to it in the environment; the working directory is empty."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    with Stub() as running:
        yield running


def write_rows(folder: Path, train: int = 12, test: int = 12, validation: int = 4) -> Path:
    """Write splits whose right answer is the input in upper case and the word DONE: the answer of the stub's tuned model."""
    folder.mkdir(exist_ok=True)
    for split, count in (("train", train), ("validation", validation), ("test", test)):
        lines = [{"input": f"{split} row {i}", "target": f"{split} row {i} done".upper()} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def answer_of(body: dict[str, Any]) -> str:
    """The stub's answers: the tuned model's are right, the base model's are not."""
    text: str = body["messages"][-1]["content"]
    return f"{text.upper()} DONE" if body["model"].startswith("ft:") else text


def recipe(stub: Stub, folder: Path, **backend: Any) -> dict[str, Any]:
    stub.answer = stub.answer or answer_of
    return {
        "name": "managed",
        "dataset": {"path": str(folder)},
        "backend": {"plugin": "openai-managed", "base_model": MODEL, "base_url": stub.url, **QUICK, **backend},
        "generation": {"max_new_tokens": 16},
        "evaluator": {"plugin": "exact-match"},
    }


def run(stub: Stub, tmp_path: Path, sizes: dict[str, int] | None = None, **backend: Any) -> RunDirectory:
    """Run a recipe against the stub in this process. Raises FtkitError; the directory is then the newest in runs/."""
    made = recipe(stub, write_rows(tmp_path / "rows", **(sizes or {})), **backend)
    return ftkit.run(made, out=tmp_path / "runs", console=Console(), yes=True).directory


def make_task(rows: int = 20, text: str = "word " * 40) -> Task:
    """Return a task without files: its training rows, the first ten of which are its test rows."""
    examples = tuple(
        Example(f"r{i}", (Message("user", f"{i} {text}"),), ("a short answer",), text) for i in range(rows)
    )
    return Task("t", {"train": examples, "test": examples[:10]}, {"train": f"{rows}{text}", "test": "t"}, "p")


def resume(directory: Path, create_again: bool = False) -> RunDirectory:
    return ftkit.resume(directory, Console(), {"create-again": "yes"} if create_again else None).directory


def everything(folder: Path) -> str:
    """Return the content of all files below a folder as one text."""
    return "\n".join(p.read_bytes().decode("utf-8", "replace") for p in folder.rglob("*") if p.is_file())


def newest(tmp_path: Path) -> Path:
    return max((tmp_path / "runs").glob("managed-*"), key=lambda p: p.stat().st_mtime_ns)


def state(directory: Path) -> dict[str, Any]:
    path = directory / "state" / "openai-managed.json"
    data: dict[str, Any] = read_json(path) if path.exists() else {}
    return data


def finished(context: RunDirectory, stub: Stub, rows: int = 12) -> None:
    """Assert that a run ended well: one job, all answers, the tuned model right."""
    assert context.record().status == "done"
    assert len(stub.jobs) == 1
    for name, right in (("baseline", 0.0), ("tuned", 1.0)):
        predictions = context.predictions(name)
        assert len(predictions) == rows and all(p.error is None for p in predictions)
        assert context.metrics(name)["exact_match"].value == right


class Forks:
    """`ftkit ARGUMENTS` in processes that start quickly: a parent that has imported everything forks them.

    The parent has no second thread, so that a child is like a process that was just started.
    """

    def __init__(self, cwd: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd,
            env={**os.environ, "COLUMNS": "120"},
        )  # fmt: skip
        self.log = cwd / "forks.log"

    def start(self, *arguments: object) -> int:
        """Start a command; return its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([str(self.log), *map(str, arguments)]) + "\n")
        self.process.stdin.flush()
        return int(self._line()["pid"])

    def wait(self) -> int:
        """Return the exit status of the command that was started last; -9 for a killed one."""
        return int(self._line()["status"])

    def run(self, *arguments: object) -> tuple[int, str]:
        """Run a command to its end; return its exit status and what it printed."""
        before = self.log.stat().st_size if self.log.exists() else 0
        self.start(*arguments)
        status = self.wait()
        return status, self.log.read_bytes()[before:].decode()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line: dict[str, Any] = json.loads(self.process.stdout.readline())
        return line

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


def _parent() -> None:
    """Fork one child after the other, each with the arguments of a line of standard input."""
    sys.path.insert(0, str(ROOT))
    import ftkit_metrics._text  # noqa: F401
    import ftkit_openai._cancel
    import ftkit_openai._session
    import ftkit_openai._train  # noqa: F401

    from ftkit.cli.main import main
    from ftkit.plugins import installed_plugins

    installed_plugins()
    for line in sys.stdin:
        log, *arguments = json.loads(line)
        pid = os.fork()
        if pid == 0:
            with open(log, "ab") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            os.close(0)
            code: Any = 1
            with contextlib.suppress(BaseException):
                sys.argv = ["ftkit", *arguments]
                try:
                    main()
                    code = 0
                except SystemExit as done:
                    code = done.code or 0
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(json.dumps({"pid": pid}), flush=True)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps({"status": status}), flush=True)


if __name__ == "__main__":
    _parent()
