"""Answers through the Batch API: half the price, each batch created once, each answer saved."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from openai_kit import Forks, finished, newest, recipe, resume, run, stub, write_rows
from openai_stub import Stub

from ftkit.directory import RunDirectory
from ftkit.errors import RunFailed

__all__ = ["stub"]


def test_batches_cost_half_and_give_the_same_answers(stub: Stub, tmp_path: Path) -> None:
    whole = run(stub, tmp_path)
    stub.jobs.clear()
    half = run(stub, tmp_path, use_batch_api=True)
    finished(half, stub)
    assert len(stub.batches) == 1, "the baseline has the same model and requests: it is reused"
    for a, b in zip(whole.predictions("tuned"), half.predictions("tuned"), strict=True):
        assert (a.example_id, a.text) == (b.example_id, b.text) and b.usd == pytest.approx(a.usd / 2)  # type: ignore[operator]
    assert "ftkit_batch" in next(iter(stub.batches.values()))["metadata"]


@pytest.mark.parametrize("fault", [{"status": 502}, {"reset": True}, {"body": b"{}"}], ids=str)
def test_a_batch_whose_answer_was_lost_is_found(stub: Stub, tmp_path: Path, fault: dict[str, object]) -> None:
    stub.fail("POST", "/v1/batches", after=True, **fault)
    finished(run(stub, tmp_path, use_batch_api=True), stub)
    assert len(stub.batches) == 2 and stub.answered == 24


def test_a_batch_of_unknown_outcome_is_left_to_the_user(stub: Stub, tmp_path: Path) -> None:
    fault = stub.fail("POST", "/v1/batches", status=502, times=10)
    with pytest.raises(RunFailed, match="outcome unknown: a batch of requests may exist"):
        run(stub, tmp_path, use_batch_api=True)
    fault.times = 0
    finished(resume(newest(tmp_path), create_again=True), stub)
    assert stub.answered == 24


def cancelled(directory: Path) -> str:
    from click.testing import CliRunner

    from ftkit.cli.run import cancel

    return CliRunner().invoke(cancel, [str(directory)], catch_exceptions=False).output


def test_cancel_finds_a_batch_of_unknown_outcome(stub: Stub, tmp_path: Path) -> None:
    stub.batch_seconds = 60
    stub.fail("POST", "/v1/batches", status=502, after=True)
    shown = stub.list_batches
    stub.list_batches = lambda query, body: {"object": "list", "data": [], "has_more": False}  # type: ignore[method-assign]
    with pytest.raises(RunFailed, match="outcome unknown: a batch of requests may exist"):
        run(stub, tmp_path, use_batch_api=True)
    assert "outcome unknown: a batch may exist" in cancelled(newest(tmp_path))
    stub.list_batches = shown  # type: ignore[method-assign]
    (batch,) = stub.batches
    assert f"batch {batch}: cancelling" in cancelled(newest(tmp_path))
    with pytest.raises(RunFailed, match=f"{batch} was cancelled"):
        resume(newest(tmp_path))
    assert len(stub.batches) == 1


def test_cancel_ends_the_spending_of_a_running_run(stub: Stub, tmp_path: Path) -> None:
    stub.batch_seconds = 60
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe(stub, write_rows(tmp_path / "rows"), use_batch_api=True)))
    forks = Forks(tmp_path)
    try:
        forks.start("run", path, "--out", "runs", "--yes")
        while not stub.count("GET", "/v1/batches/[^/]+"):
            time.sleep(0.01)
        directory = newest(tmp_path)
        assert "the run itself is still running" in cancelled(directory)
        assert forks.wait() == 1
        assert "was cancelled; what it answered is kept" in forks.log.read_text()
    finally:
        forks.close()
    assert len(stub.batches) == 1 and not stub.jobs
    with pytest.raises(RunFailed, match="was cancelled"):
        resume(directory)
    assert len(stub.batches) == 1 and stub.answered == 6
    stub.batch_seconds = 0.1
    finished(resume(directory, create_again=True), stub)
    assert len(stub.batches) == 3
    assert stub.answered == 24, "what the cancelled one had answered is not paid for again"


def test_batches_that_were_cancelled_again_and_again_are_replaced_for_the_rest(stub: Stub, tmp_path: Path) -> None:
    """Each confirmation counts, also for the batch that replaced a cancelled one."""
    create = stub.post_batch

    def create_cancelled(query: dict[str, str], body: Any) -> Any:
        created = create(query, body)
        stub.batches[created["id"]]["status"] = "cancelling"  # half of its requests are answered
        return created

    stub.post_batch = create_cancelled  # type: ignore[method-assign]
    with pytest.raises(RunFailed, match="was cancelled"):
        run(stub, tmp_path, use_batch_api=True)
    for answered in (6, 9):
        assert stub.answered == answered
        with pytest.raises(RunFailed, match="was cancelled"):
            resume(newest(tmp_path), create_again=True)
    assert [len(batch["_lines"]) for batch in stub.batches.values()] == [12, 6, 3]
    stub.post_batch = create  # type: ignore[method-assign]
    with pytest.raises(RunFailed, match="was cancelled"):
        resume(newest(tmp_path))  # without a confirmation
    finished(resume(newest(tmp_path), create_again=True), stub)
    assert stub.answered == 24 and len(stub.batches) == 5


def test_a_batch_that_the_provider_lost_can_be_replaced(stub: Stub, tmp_path: Path) -> None:
    stub.fail("GET", "/v1/batches/[^/]+", status=401, error={"message": "no", "code": "x", "type": "x"})
    with pytest.raises(RunFailed, match="401"):
        run(stub, tmp_path, use_batch_api=True)
    stub.batches.clear()
    missing = {"status": 404, "error": {"message": "No batch found", "code": None, "type": "x"}}
    stub.fail("GET", "/v1/batches/[^/]+", **missing)
    with pytest.raises(
        RunFailed, match=r"has no batch batch_\d+ \(404\)(.|\n)*another batch(.|\n)*--answer create-again=yes"
    ):
        resume(newest(tmp_path))
    assert not stub.batches
    stub.fail("GET", "/v1/batches/[^/]+", **missing)
    done = resume(newest(tmp_path), create_again=True)
    finished(done, stub)
    assert any("another is created, as the user confirmed" in row.get("message", "") for row in done.log_rows())


@pytest.mark.parametrize(
    ("place", "says"),
    [("/v1/files", "interrupted before a batch was created"), ("/v1/batches", "outcome unknown: a batch may exist")],
)
def test_ctrl_c_before_a_batch_exists_does_not_say_that_it_keeps_running(
    stub: Stub, tmp_path: Path, place: str, says: str
) -> None:
    stub.fail("POST", place, delay=3.0, reset=True)
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe(stub, write_rows(tmp_path / "rows"), use_batch_api=True)))
    forks = Forks(tmp_path)
    try:
        pid = forks.start("run", path, "--out", "runs", "--yes")
        while not stub.count("POST", place):
            time.sleep(0.01)
        os.kill(pid, signal.SIGINT)
        assert forks.wait() == 130
        said = forks.log.read_text()
        assert says in said and "keeps running at the provider" not in said
    finally:
        forks.close()


KILLS = int(os.environ.get("FTKIT_KILLS", "5"))


def test_kill_at_random_moments_creates_each_batch_once(stub: Stub, tmp_path: Path) -> None:
    """The seed is printed; FTKIT_SEED repeats it."""
    seed = int(os.environ.get("FTKIT_SEED") or random.randrange(10**6))
    print(f"FTKIT_SEED={seed}")
    moments = random.Random(seed)
    create = stub.post_batch
    stub.post_batch = lambda *a: (time.sleep(0.1), create(*a), time.sleep(0.1))[1]  # type: ignore[method-assign,func-returns-value]
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe(stub, write_rows(tmp_path / "rows"), use_batch_api=True, find_window=0.3)))
    forks = Forks(tmp_path)
    try:
        for number in range(KILLS):
            stub.jobs.clear()
            stub.batches.clear()
            answered, requests, out = stub.answered, len(stub.requests), tmp_path / "kills" / str(number)
            pid = forks.start("run", path, "--out", out, "--yes", "--no-reuse")
            while len(stub.requests) == requests:
                time.sleep(0.005)
            time.sleep(moments.uniform(0.0, 2.5))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            forks.wait()
            time.sleep(0.25)  # the server finishes the requests that it has received
            directories = list(out.glob("*/run.json"))
            if not directories:  # the run had not begun
                continue
            status, said = forks.run("run", "--resume", directories[0].parent, "--yes")
            if status == 1 and "outcome unknown: a" in said:
                status, said = forks.run(
                    "run", "--resume", directories[0].parent, "--answer", "create-again=yes", "--yes"
                )
            assert status == 0, said
            finished(RunDirectory.open(directories[0].parent), stub)
            assert len(stub.batches) == 2 and stub.answered - answered == 24, f"kill {number}"
    finally:
        forks.close()


def test_lines_that_fail_are_retried_once_and_then_failed_predictions(stub: Stub, tmp_path: Path) -> None:
    stub.fail("POST", "/nowhere", times=10**6, when=lambda body: body["messages"][-1]["content"] == "test row 3")
    done = run(stub, tmp_path, use_batch_api=True)
    (failed,) = [p for p in done.predictions("tuned") if p.error]
    assert failed.example_id == "test-3" and failed.error == "this line is refused"
    assert sorted(b["request_counts"]["total"] for b in stub.batches.values()) == [1, 1, 12, 12]


def test_an_interrupted_batch_keeps_running_and_the_run_resumes_with_it(stub: Stub, tmp_path: Path) -> None:
    stub.batch_seconds = 60
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe(stub, write_rows(tmp_path / "rows"), use_batch_api=True)))
    forks = Forks(tmp_path)
    try:
        pid = forks.start("run", path, "--out", "runs", "--yes")
        while not stub.count("GET", "/v1/batches/[^/]+"):
            time.sleep(0.01)
        os.kill(pid, signal.SIGINT)
        (batch,) = stub.batches
        assert forks.wait() == 130 and f"batch {batch} keeps running at the provider" in forks.log.read_text()
        for how in (signal.SIGKILL, signal.SIGKILL):
            pid = forks.start("run", "--resume", newest(tmp_path))
            time.sleep(0.4)
            os.kill(pid, how)
            forks.wait()
        stub.batch_seconds = 0.1
        assert forks.run("run", "--resume", newest(tmp_path))[0] == 0
    finally:
        forks.close()
    finished(RunDirectory.open(newest(tmp_path)), stub)
    assert len(stub.batches) == 2 and stub.answered == 24
