"""Trackers with a process of their own: what it is given, and that nothing it does delays or ends a run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftkit.files import read_json

Command = Callable[..., Any]
Make = Callable[..., Any]


@pytest.fixture
def told(tmp_path: Path) -> Callable[[], list[Any]]:
    """Return a function that reads what the tracker wrote down."""

    def read() -> list[Any]:
        path = tmp_path / "told"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return read


def apart(tmp_path: Path, **options: Any) -> list[dict[str, Any]]:
    return [{"plugin": "fake-apart", "file": str(tmp_path / "told"), **options}]


def record_of(tmp_path: Path) -> dict[str, Any]:
    (run,) = tmp_path.glob("runs/*/run.json")
    record: dict[str, Any] = read_json(run)
    return record


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until(true: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_is_told_everything_in_a_process_that_holds_no_keys(
    command: Command, recipe_file: Make, tmp_path: Path, told: Callable[[], list[Any]]
) -> None:
    secrets = {"OPENAI_API_KEY": "sk-secret", "HF_TOKEN": "hf-secret", "AWS_SECRET_ACCESS_KEY": "secret"}
    given = {"FAKE_SETTING": "1", "FAKE_PREFIX_A": "2", "FAKE_OTHER": "3", "https_proxy": "http://127.0.0.1:1"}
    done = command("run", recipe_file(tracking=apart(tmp_path)), **secrets, **given)
    assert done.returncode == 0, done.stderr
    heard = told()
    ((_, pid, parent, names, _torch),) = [t for t in heard if t[0] == "process"]
    assert pid != parent and not is_alive(pid)
    assert {"FAKE_SETTING", "FAKE_PREFIX_A", "https_proxy", "PATH", "HOME"} <= set(names)
    assert not {*secrets, "FAKE_OTHER", "FAKES"} & set(names)
    assert [t[1] for t in heard if t[0] == "stage"] == ["prepare", "baseline", "train", "evaluate", "report"]
    assert [t[2] for t in heard if t[:2] == ["event", "step"]] == [1, 2, 3, 4, 5, 6]
    assert ["finished", "tuned is better than baseline"] in heard
    assert record_of(tmp_path)["warnings"] == []


@pytest.mark.parametrize(
    ("does", "at", "why"),
    [
        ("raise", "started", "raised ConnectionError in started: the tracker's server is down"),
        ("raise", "event", "raised ConnectionError in logged: the tracker's server is down"),
        ("exit", "stage", "raised ChildProcessError in stage_finished: its process ended with status 7"),
        ("hang", "started", "did not finish within 1 s"),
        ("hang", "finished", "did not finish within 1 s"),
    ],
)
def test_what_it_does_ends_no_run(
    command: Command, recipe_file: Make, tmp_path: Path, told: Callable[[], list[Any]], does: str, at: str, why: str
) -> None:
    done = command("run", recipe_file(tracking=apart(tmp_path, does=does, at=at, patience=1.0)))
    assert done.returncode == 0, done.stderr
    record = record_of(tmp_path)
    assert record["status"] == "done"
    assert record["warnings"] == [f"observer 'fake-apart' {why}; it is dropped, the run continues"]
    wait_until(lambda: not is_alive(told()[0][1]))


def test_its_words_reach_the_user_and_its_chatter_does_not(command: Command, recipe_file: Make, tmp_path: Path) -> None:
    done = command("run", recipe_file(tracking=apart(tmp_path, does="print", at="finished")), "--json")
    assert "fake-apart: said\n" in done.stderr and "warning: fake-apart: warned\n" in done.stderr
    assert "chatter" not in done.stderr + done.stdout and json.loads(done.stdout)["status"] == "done"
    assert record_of(tmp_path)["warnings"] == ["fake-apart: warned"]


def test_ctrl_c_ends_the_waiting(
    command: Command, recipe_file: Make, tmp_path: Path, told: Callable[[], list[Any]]
) -> None:
    recipe = recipe_file(tracking=apart(tmp_path, does="hang", at="finished", patience=50.0))
    process: subprocess.Popen[str] = command("run", recipe, wait=False)
    wait_until(lambda: told() and told()[-1][0] == "finished")
    time.sleep(2.5)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 5 and process.returncode == 0
    assert "waiting for fake-apart, at most 50 s; Ctrl-C ends the waiting" in err
    assert "observer 'fake-apart' was not waited for" in err
    assert record_of(tmp_path)["status"] == "done"
    wait_until(lambda: not is_alive(told()[0][1]))


def test_ctrl_c_in_training_is_told(
    command: Command, recipe_file: Make, tmp_path: Path, told: Callable[[], list[Any]]
) -> None:
    process = command("run", recipe_file(tracking=apart(tmp_path)), wait=False, FAKES="slow=0.1")
    wait_until(lambda: any(t[0] == "event" for t in told()))
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130 and told()[-1] == ["failed", "interrupted", "interrupted"]


@pytest.mark.parametrize("hangs", [False, True])
def test_a_killed_run_leaves_no_process_and_the_tracker_hears_of_it(
    command: Command, recipe_file: Make, tmp_path: Path, told: Callable[[], list[Any]], hangs: bool
) -> None:
    options = {"does": "hang", "at": "event", "patience": 1.0} if hangs else {}
    process = command("run", recipe_file(tracking=apart(tmp_path, **options)), wait=False, FAKES="slow=0.1")
    wait_until(lambda: any(t[0] == "event" for t in told()))
    process.kill()
    process.communicate(timeout=30)
    wait_until(lambda: not is_alive(told()[0][1]))
    if not hangs:
        assert told()[-1] == ["failed", "killed", "the process of the run was killed"]


def test_the_runs_of_one_command_share_a_group(
    command: Command, recipe_file: Make, tmp_path: Path, told: Callable[[], list[Any]]
) -> None:
    recipe = recipe_file(tracking=apart(tmp_path))
    assert command("run", recipe).returncode == 0
    assert command("run", recipe, "--seeds", 2).returncode == 0
    assert command("run", recipe, recipe_file("other.yaml", name="other", tracking=apart(tmp_path))).returncode == 0
    groups = [t[1] for t in told() if t[0] == "started"]
    alone, *shared = groups
    assert alone is None and shared[0] == shared[1] != shared[2] == shared[3] and None not in shared
