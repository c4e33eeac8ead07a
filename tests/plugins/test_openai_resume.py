"""Interrupting and killing a run, and resuming it: no job and no answer is paid for twice, and almost none is lost."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai_kit import Forks, finished, newest, recipe, state, stub, write_rows
from openai_stub import Stub

from ftkit.directory import RunDirectory
from ftkit.files import read_jsonl

__all__ = ["stub"]
CREATE = "/v1/fine_tuning/jobs"
CHAT = "/v1/chat/completions"


@pytest.fixture
def forks(stub: Stub, tmp_path: Path) -> Iterator[Forks]:
    started = Forks(tmp_path)
    yield started
    started.close()


def recipe_file(stub: Stub, tmp_path: Path, rows: int = 12, **backend: Any) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe(stub, write_rows(tmp_path / "rows", test=rows), **backend)))
    return path


def kept(directory: Path) -> int:
    """Count the answers in a run directory, whether their measurement is finished or not."""
    count = 0
    for name in ("baseline", "tuned"):
        done, journal = directory / name / "predictions.jsonl", directory / name / "predictions.journal"
        if done.exists():
            count += len(list(read_jsonl(done)))
        elif journal.exists():
            count += sum(line.endswith(b"\n") for line in journal.read_bytes().splitlines(keepends=True))
    for late in directory.glob(".work/answers/*.jsonl"):
        count += len(late.read_bytes().splitlines())
    return count


def until(condition: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never became true"
        time.sleep(0.005)


def test_ctrl_c_detaches_from_a_job_and_says_how_to_resume(stub: Stub, tmp_path: Path, forks: Forks) -> None:
    stub.job_seconds = 60
    pid = forks.start("run", recipe_file(stub, tmp_path), "--out", "runs", "--yes")
    until(lambda: stub.count("GET", r"/v1/fine_tuning/jobs/[^/]+/events") > 1)
    os.kill(pid, signal.SIGINT)
    assert forks.wait() == 130
    said = forks.log.read_text()
    assert "keeps running at the provider" in said and "ftkit run --resume" in said and "ftkit cancel" in said
    directory = newest(tmp_path)
    assert RunDirectory.open(directory).record().status == "interrupted"
    assert [job["status"] for job in stub.jobs.values()] == ["running"] or next(iter(stub.jobs.values()))[
        "status"
    ] != "cancelled"
    stub.job_seconds = 0.1
    status, _ = forks.run("run", "--resume", directory, "--yes")
    assert status == 0
    finished(RunDirectory.open(directory), stub)


def test_ctrl_c_while_a_job_is_searched_for_does_not_say_that_there_is_none(
    stub: Stub, tmp_path: Path, forks: Forks
) -> None:
    stub.fail("POST", CREATE, status=502)

    def looks() -> int:
        return sum(seen.path.startswith(CREATE + "?") and "metadata" in seen.path for seen in stub.requests)

    for how in (["run", recipe_file(stub, tmp_path, find_window=30.0), "--out", "runs", "--yes"], None):
        before = looks()
        pid = forks.start(*(how or ["run", "--resume", newest(tmp_path)]))
        until(
            lambda before=before: stub.count("POST", CREATE) and looks() > before + 1
        )  # the first is before the request
        os.kill(pid, signal.SIGINT)
        assert forks.wait() == 130
        said = forks.log.read_text()
        assert "outcome unknown: a job may exist" in said and "before a job was created" not in said


def test_ctrl_c_keeps_the_answers_in_flight(stub: Stub, tmp_path: Path, forks: Forks) -> None:
    stub.latency = 0.3
    pid = forks.start("run", recipe_file(stub, tmp_path), "--out", "runs", "--yes")
    until(lambda: stub.count("POST", CHAT) >= 6)
    os.kill(pid, signal.SIGINT)
    assert forks.wait() == 130
    # One may be saved twice: it was just being saved when the key was pressed.
    assert stub.answered <= kept(newest(tmp_path)) <= stub.answered + 1 and stub.answered > 4
    stub.latency = 0.0
    assert forks.run("run", "--resume", newest(tmp_path))[0] == 0
    finished(RunDirectory.open(newest(tmp_path)), stub)
    assert stub.answered == 24


KILLS = int(os.environ.get("FTKIT_KILLS", "30"))


def test_kill_at_random_moments(stub: Stub, tmp_path: Path, forks: Forks) -> None:
    """kill -9 anywhere in a run: at most one job at any time, exactly one after resuming, and no answer is lost
    except those in flight. The seed is printed; FTKIT_SEED repeats it."""
    seed = int(os.environ.get("FTKIT_SEED") or random.randrange(10**6))
    print(f"FTKIT_SEED={seed}")
    moments = random.Random(seed)
    concurrency = 4
    path = recipe_file(stub, tmp_path, concurrency=concurrency, find_window=0.3)
    # The request takes long both before and after the moment when the job is created.
    create = stub.post_job
    stub.post_job = lambda *a: (time.sleep(0.1), create(*a), time.sleep(0.1))[1]  # type: ignore[method-assign,func-returns-value]

    def begun(after: int) -> float:
        """Wait for the first request of a run: before it, Python starts and reads the data. Return its moment."""
        until(lambda: len(stub.requests) > after)
        return time.monotonic()

    whole = 60.0  # seconds from the first request to the end
    for _ in range(3):
        before = len(stub.requests)
        forks.start("run", path, "--out", tmp_path / "unbroken", "--yes", "--no-reuse")
        began = begun(before)
        assert forks.wait() == 0
        whole = min(whole, time.monotonic() - began)
    unknown = during = 0
    for number in range(KILLS):
        stub.jobs.clear()
        out = tmp_path / "kills" / str(number)
        before, requests = stub.answered, len(stub.requests)
        pid = forks.start("run", path, "--out", out, "--yes", "--no-reuse")
        begun(requests)
        time.sleep(moments.uniform(0.0, whole))
        with contextlib.suppress(ProcessLookupError):  # it ended before
            os.kill(pid, signal.SIGKILL)
        forks.wait()
        time.sleep(0.15)  # the server finishes the requests that it has received
        assert len(stub.jobs) <= 1, f"kill {number}"
        directories = list(out.glob("*/run.json"))
        if not directories:  # the run had not begun
            continue
        directory = directories[0].parent
        lost = stub.answered - before - kept(directory)
        assert 0 <= lost <= concurrency, f"kill {number}: {lost} answers were lost"
        during += not (directory / "report.json").exists()
        status, said = forks.run("run", "--resume", directory, "--yes")
        if status == 1 and "outcome unknown: a job may exist" in said:
            assert len(stub.jobs) == 0 and state(directory)["job"]["phase"] == "outcome_unknown"
            unknown += 1
            status, said = forks.run("run", "--resume", directory, "--answer", "create-again=yes", "--yes")
        assert status == 0, said
        finished(RunDirectory.open(directory), stub)  # exactly one job
        assert stub.answered - before <= 24 + lost, f"kill {number}: an answer that was kept was requested again"
    print(f"{KILLS} kills, {during} before the run was done, {unknown} left the outcome unknown")
    assert during >= KILLS / 5, "the kills hardly ever hit a run before its end"
