"""The model of a finished managed run is used through its provider: rows of a file, texts from Python, a chat."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from openai_kit import run, stub
from openai_stub import KEY, Stub

import ftkit
from ftkit.console import Console
from ftkit.errors import FtkitError, InputError
from ftkit.files import read_jsonl

__all__ = ["stub"]

QUIET = Console(silent=True)


def chat(directory: Path, said: str, *options: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "ftkit", "chat", str(directory), *options]
    return subprocess.run(line, input=said, capture_output=True, text=True, timeout=120)


def test_a_managed_model_answers_rows_texts_and_a_chat(stub: Stub, tmp_path: Path) -> None:
    done = run(stub, tmp_path)
    sealed = {path: path.read_bytes() for path in done.dir.rglob("*") if path.is_file()}

    def rows(name: str, **options: Any) -> list[dict[str, Any]]:
        ftkit.predict(done.dir, done.path("data", "test.jsonl"), tmp_path / name, console=QUIET, yes=True, **options)
        return list(read_jsonl(tmp_path / name))

    for name, measured, options in (("tuned.jsonl", "tuned", {}), ("base.jsonl", "baseline", {"base": True})):
        assert [row["prediction"] for row in rows(name, **options)] == [p.text for p in done.predictions(measured)]
    with pytest.raises(InputError, match="would cost"):  # nothing is spent without a yes
        ftkit.predict(done.dir, done.path("data", "test.jsonl"), tmp_path / "unpaid.jsonl", console=QUIET)
    said = chat(done.dir, "hello\n", "--compare", "--yes")
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines() == ["[base]", "hello", "[tuned]", "HELLO DONE"]
    assert chat(done.dir, "hello\n").returncode == 2, "each answer is paid"
    assert KEY not in said.stdout + said.stderr
    assert {path: path.read_bytes() for path in done.dir.rglob("*") if path.is_file()} == sealed
    opened = ftkit.open_run(done.dir)
    assert opened.generate(["a", "b"], yes=True) == ["A DONE", "B DONE"]
    opened.close()


def test_a_provider_that_refuses_or_has_no_such_model_is_an_error_that_says_so(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(stub, tmp_path)
    source = done.path("data", "test.jsonl")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-key-000000")
    with pytest.raises(FtkitError, match=r"401|key|refused") as refused:
        ftkit.predict(done.dir, source, tmp_path / "out.jsonl", console=QUIET, yes=True)
    assert "sk-wrong-key-000000" not in str(refused.value)
    said = chat(done.dir, "hello\n", "--yes")
    assert said.returncode != 0 and "Traceback" not in said.stderr and "sk-wrong-key-000000" not in said.stderr
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    stub.stop()
    with pytest.raises(FtkitError) as gone:
        ftkit.predict(done.dir, source, tmp_path / "out.jsonl", console=QUIET, yes=True)
    assert "127.0.0.1" in str(gone.value) or "reach" in str(gone.value)
