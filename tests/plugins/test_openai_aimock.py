"""The managed backend against an independent server, @copilotkit/aimock, without and with injected faults.

Opt-in, by `make test-aimock`: it needs node.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from openai_kit import QUICK, ROOT, newest, resume, write_rows
from openai_stub import KEY, MODEL

import ftkit
from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.errors import RunFailed
from ftkit.recipe.load import load_recipe

pytestmark = [pytest.mark.opt_in, pytest.mark.needs("node", "tests/aimock/node_modules")]
SERVER = ROOT / "tests" / "aimock" / "node_modules" / "@copilotkit" / "aimock" / "dist" / "cli.js"


@pytest.fixture
def aimock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Return a function that starts the server with further arguments and returns its address."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    answers = [
        {"match": {"userMessage": "test row", "model": MODEL}, "response": {"content": "untouched"}},
        {"match": {"userMessage": "test row"}, "response": {"content": "TEST ROW 1 DONE"}},
    ]
    (tmp_path / "answers.json").write_text(json.dumps({"fixtures": answers}))
    started: list[subprocess.Popen[bytes]] = []

    def begin(*arguments: str) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        line = [
            "node",
            str(SERVER),
            "-p",
            str(port),
            "-f",
            str(tmp_path / "answers.json"),
            "--strict",
            "--journal-max",
            "0",
        ]
        started.append(subprocess.Popen([*line, *arguments], env={**os.environ, "AIMOCK_API_KEYS": KEY}))
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return f"http://127.0.0.1:{port}/v1"
            time.sleep(0.05)
        raise AssertionError("aimock did not start")

    yield begin
    for process in started:
        process.kill()
        process.wait()


def recipe(url: str, tmp_path: Path) -> object:
    return load_recipe(
        {
            "name": "managed",
            "dataset": {"path": str(write_rows(tmp_path / "rows"))},
            "backend": {"plugin": "openai-managed", "base_model": MODEL, "base_url": url, **QUICK, "patience": 30.0},
            "evaluator": {"plugin": "exact-match"},
        }
    )


def jobs_of(url: str, run: RunDirectory) -> int:
    import openai

    client = openai.OpenAI(api_key=KEY, base_url=url, max_retries=20)
    return sum((job.metadata or {}).get("ftkit_run") == run.id for job in client.fine_tuning.jobs.list(limit=100))


def test_a_run_against_it(aimock: Callable[..., str], tmp_path: Path) -> None:
    url = aimock()
    done = ftkit.run(recipe(url, tmp_path), out=tmp_path / "runs", console=Console(), yes=True).directory
    assert done.record().status == "done" and jobs_of(url, done) == 1
    for name, text in (("baseline", "untouched"), ("tuned", "TEST ROW 1 DONE")):
        assert {p.text for p in done.predictions(name)} == {text}


def test_a_run_with_injected_faults(aimock: Callable[..., str], tmp_path: Path) -> None:
    """A tenth each of errors, malformed answers, cut connections, and rate limits: one job, and every answer."""
    rates = [part for kind in ("drop", "malformed", "disconnect", "ratelimit") for part in (f"--chaos-{kind}", "0.1")]
    url = aimock(*rates)
    directory: Path | None = None
    for _ in range(10):
        try:
            if directory is None:
                done = ftkit.run(recipe(url, tmp_path), out=tmp_path / "runs", console=Console(), yes=True).directory
            else:
                done = resume(directory, create_again=True)
            break
        except RunFailed as error:  # where the outcome is unknown the user decides: this one confirms another job
            if "outcome unknown: a job may exist" not in str(error):
                raise
            directory = newest(tmp_path)
    assert done.record().status == "done" and jobs_of(url, done) == 1
    assert all(p.error is None for name in ("baseline", "tuned") for p in done.predictions(name))
