"""Answers through the Batch API: half the price, made once, and each kept."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from openai_kit import Forks, finished, newest, recipe, resume, run, stub, write_rows
from openai_stub import Stub

from ftkit.errors import RunFailed
from ftkit.store import RunContext

__all__ = ["stub"]


def test_batches_cost_half_and_give_the_same_answers(stub: Stub, tmp_path: Path) -> None:
    whole = run(stub, tmp_path)
    stub.jobs.clear()
    half = run(stub, tmp_path, use_batch_api=True)
    finished(half, stub)
    assert len(stub.batches) == 1, "the baseline is the same model asked the same: it is reused"
    for a, b in zip(whole.predictions("tuned"), half.predictions("tuned"), strict=True):
        assert (a.example_id, a.text) == (b.example_id, b.text) and b.usd == pytest.approx(a.usd / 2)  # type: ignore[operator]
    assert "ftkit_batch" in next(iter(stub.batches.values()))["metadata"]


@pytest.mark.parametrize("fault", [{"status": 502}, {"reset": True}, {"body": b"{}"}], ids=str)
def test_a_batch_whose_answer_was_lost_is_found(stub: Stub, tmp_path: Path, fault: dict[str, object]) -> None:
    stub.fail("POST", "/v1/batches", after=True, **fault)
    finished(run(stub, tmp_path, use_batch_api=True), stub)
    assert len(stub.batches) == 2 and stub.answered == 24


def test_a_batch_in_doubt_is_left_to_the_user(stub: Stub, tmp_path: Path) -> None:
    fault = stub.fail("POST", "/v1/batches", status=502, times=10)
    with pytest.raises(RunFailed, match="unknown whether a batch of requests exists"):
        run(stub, tmp_path, use_batch_api=True)
    fault.times = 0
    finished(resume(newest(tmp_path), create_again=True), stub)
    assert stub.answered == 24


def test_lines_that_fail_are_asked_again_once_then_failed_predictions(stub: Stub, tmp_path: Path) -> None:
    stub.fail("POST", "/nowhere", times=10**6, when=lambda body: body["messages"][-1]["content"] == "test row 3")
    done = run(stub, tmp_path, use_batch_api=True)
    (failed,) = [p for p in done.predictions("tuned") if p.error]
    assert failed.example_id == "test-3" and failed.error == "this line is refused"
    assert sorted(b["request_counts"]["total"] for b in stub.batches.values()) == [1, 1, 12, 12]


def test_an_interrupted_batch_goes_on_and_is_come_back_to(stub: Stub, tmp_path: Path) -> None:
    import json

    stub.batch_seconds = 60
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe(stub, write_rows(tmp_path / "rows"), use_batch_api=True)))
    forks = Forks(tmp_path)
    try:
        pid = forks.start("run", path, "--out", "runs", "--yes")
        while not stub.count("GET", "/v1/batches/[^/]+"):
            time.sleep(0.01)
        os.kill(pid, signal.SIGINT)
        assert forks.wait() == 130 and "the batch goes on at the provider" in forks.log.read_text()
        for how in (signal.SIGKILL, signal.SIGKILL):
            pid = forks.start("run", "--resume", newest(tmp_path))
            time.sleep(0.4)
            os.kill(pid, how)
            forks.wait()
        stub.batch_seconds = 0.1
        assert forks.run("run", "--resume", newest(tmp_path))[0] == 0
    finally:
        forks.close()
    finished(RunContext.open(newest(tmp_path)), stub)
    assert len(stub.batches) == 2 and stub.answered == 24
