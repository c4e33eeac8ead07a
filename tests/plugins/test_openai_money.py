"""What keeps a managed run from paying in vain: all that shows before, or with the first requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from openai_kit import finished, newest, resume, run, stub
from openai_stub import Stub

from ftkit.errors import RunFailed
from ftkit.store import read_json

__all__ = ["stub"]
CHAT = "/v1/chat/completions"
REFUSED = {
    "message": "Unsupported parameter: 'temperature'",
    "type": "invalid_request_error",
    "code": "unsupported_value",
}


def test_requests_that_are_all_refused_stop_the_run_before_it_trains(stub: Stub, tmp_path: Path) -> None:
    stub.fail("POST", CHAT, status=400, error=REFUSED, times=10**6)
    with pytest.raises(RunFailed, match=r"10 times out of 10 \(400\): Unsupported parameter: 'temperature'"):
        run(stub, tmp_path, {"test": 200})
    assert stub.count("POST", CHAT) < 10 + 4 + 1, "of 200, with 4 at once"
    assert not stub.jobs and not stub.files
    stub.faults.clear()
    finished(resume(newest(tmp_path)), stub, rows=200)


def test_few_requests_that_are_all_refused_stop_it_too(stub: Stub, tmp_path: Path) -> None:
    stub.fail("POST", CHAT, status=400, error=REFUSED, times=10**6)
    with pytest.raises(RunFailed, match=r"all 3 requests failed, the first with: .*Unsupported parameter"):
        run(stub, tmp_path, {"test": 3})
    assert not stub.jobs
    stub.faults.clear()
    finished(resume(newest(tmp_path)), stub, rows=3)


def test_rows_that_are_refused_among_good_ones_are_failed_predictions(stub: Stub, tmp_path: Path) -> None:
    def bad(body: dict[str, Any]) -> bool:
        return int(body["messages"][-1]["content"].split()[-1]) < 12

    stub.fail("POST", CHAT, status=400, error=REFUSED, times=10**6, when=bad)
    stub.fail("POST", "/v1/fine_tuning/jobs", status=403, error={"code": "training_not_available"})
    with pytest.raises(RunFailed):
        run(stub, tmp_path, {"test": 24})
    assert read_json(newest(tmp_path) / "baseline" / "cost.json")["n_failed"] == 12
    assert resume(newest(tmp_path)).record().status == "done"


def test_prompts_that_are_too_long_are_the_rows_own_fault(stub: Stub, tmp_path: Path) -> None:
    long = {
        "message": "This model's maximum context length is 8 tokens",
        "code": "context_length_exceeded",
        "type": "x",
    }
    stub.fail("POST", CHAT, status=400, error=long, times=10**6, when=lambda body: len(stub.asked) < 20)
    assert run(stub, tmp_path, {"test": 40}).record().status == "done"
