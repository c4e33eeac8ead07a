"""How jobs end, with all their messages, and the providers that differ from OpenAI."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from openai_kit import everything, finished, newest, resume, run, stub
from openai_stub import KEY, MODEL, Stub

from ftkit.errors import RunFailed
from ftkit.records import ModelRef

__all__ = ["stub"]

# ---------------------------------------------------------------- messages of failures


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"status": 401, "error": {"message": f"Incorrect API key provided: {KEY}", "code": "invalid_api_key", "type": "x"}}, "does not accept the key in OPENAI_API_KEY"),
        ({"status": 403, "error": {"message": "no", "code": "training_not_available", "type": "x"}}, "does not let this organisation train"),
        ({"status": 403, "error": {"message": "missing scope api.fine_tuning", "code": "x", "type": "x"}}, "forbids this .*missing scope"),
        ({"status": 404, "error": {"message": "The model does not exist", "code": "model_not_found", "type": "x"}}, f"has no model '{MODEL}'"),
        ({"status": 429, "error": {"message": "You exceeded your current quota", "code": "insufficient_quota", "type": "insufficient_quota"}}, "the quota is used up"),
        ({"status": 429, "error": {"message": "slow down", "code": "rate_limit_exceeded", "type": "x"}, "times": 99}, "kept refusing requests for its rate limit"),
        ({"status": 400, "error": {"message": "Billing hard limit has been reached", "code": "billing_hard_limit_reached", "type": "x"}}, "billing stops the request"),
        ({"status": 400, "error": {"message": "flagged", "code": "content_policy_violation", "type": "x"}}, "blocked the request by moderation"),
        ({"status": 400, "error": {"message": "n_epochs must be at most 50", "code": "x", "type": "x"}}, "refused the request .*n_epochs must be"),
    ],
)  # fmt: skip
def test_each_refusal_of_a_job_has_its_own_message(
    stub: Stub, tmp_path: Path, fault: dict[str, Any], says: str
) -> None:
    stub.fail("POST", "/v1/fine_tuning/jobs", **fault)
    with pytest.raises(RunFailed, match=says) as caught:
        run(stub, tmp_path, patience=0.5)
    assert caught.value.hint and KEY not in str(caught.value)
    assert len(stub.jobs) == 0
    stub.faults.clear()
    finished(resume(newest(tmp_path)), stub)  # after a refusal the outcome is known: the request is retried


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ({"code": "invalid_training_file", "message": "Line 17: missing assistant", "param": "training_file"}, r"did not pass validation: Line 17(.|\n)*train\.jsonl"),
        ({"code": "unsafe_file", "message": "blocked by our moderation system", "param": None}, "blocked by moderation"),
        ({"code": "server_error", "message": "internal", "param": None}, r"failed \(server_error\): internal"),
        ({}, r"failed: the provider gives no reason"),
    ],
)  # fmt: skip
def test_each_end_of_a_job_has_its_own_message(stub: Stub, tmp_path: Path, error: dict[str, Any], says: str) -> None:
    stub.ending, stub.job_error = "failed", error or None
    if not error:
        stub.end_with_empty_error = True
    with pytest.raises(RunFailed, match=says):
        run(stub, tmp_path)
    with pytest.raises(RunFailed, match=says):  # resuming creates no second job
        resume(newest(tmp_path))
    assert len(stub.jobs) == 1
    stub.ending = "succeeded"
    done = resume(newest(tmp_path), create_again=True)  # the user's confirmation does
    assert done.record().status == "done" and len(stub.jobs) == 2


def test_a_cancelled_job(stub: Stub, tmp_path: Path) -> None:
    stub.ending = "cancelled"
    with pytest.raises(RunFailed, match="was cancelled"):
        run(stub, tmp_path)


def test_no_network_in_the_end(stub: Stub, tmp_path: Path) -> None:
    stub.job_seconds = 60
    stub.fail("POST", "/v1/fine_tuning/jobs", delay=0.0, after=True, times=1, headers={"x-tag": "1"})

    def cut() -> None:
        while not stub.jobs:
            stub_wait(0.02)
        stub.stop()

    threading.Thread(target=cut, daemon=True).start()
    with pytest.raises(RunFailed, match=r"no connection to 127\.0\.0\.1:\d+ while"):
        run(stub, tmp_path, patience=1.0)
    stub.job_seconds = 0.2
    stub.start()
    finished(resume(newest(tmp_path)), stub)


def stub_wait(seconds: float) -> None:

    time.sleep(seconds)


def test_a_status_that_is_not_known_is_not_final(stub: Stub, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stub.plan = ["validating_files", "queued", "paused", "teleporting", "running"]
    stub.job_seconds = 3.0
    finished(run(stub, tmp_path), stub)
    said = capfd.readouterr().err
    assert "paused: the job waits at the provider" in said and "teleporting" in said


def test_a_result_file_in_plain_text_and_one_that_is_broken(stub: Stub, tmp_path: Path) -> None:
    stub.results_base64 = False
    finished(run(stub, tmp_path), stub)
    stub.fail("GET", r"/v1/files/.*/content", body=b"\xff\xfe\x00", times=1)
    assert run(stub, tmp_path).record().status == "done"


# ---------------------------------------------------------------- other dialects


def test_azure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    monkeypatch.setenv("AZURE_TOKEN", "secret-token")
    with Stub(prefix="/openai/v1") as stub:
        stub.plan = ["pending", "notRunning", "running"]
        stub.answer = lambda body: body["messages"][-1]["content"]
        azure = {
            "subscription": "s",
            "resource_group": "g",
            "resource": "r",
            "management_url": stub.url.removesuffix("/openai/v1"),
        }
        done = run(
            stub,
            tmp_path,
            dialect="azure",
            azure=azure,
            prices={"gpt-4o-mini": {"training": 1, "input": 1, "output": 1}},
        )
        assert done.record().status == "done"
        job = json.loads(
            next(s.body for s in stub.requests if s.path.endswith("/fine_tuning/jobs") and s.method == "POST")
        )
        assert job["trainingType"] == "Standard"
        assert all(
            c.startswith(b"\xef\xbb\xbf") for i, c in stub.contents.items() if stub.files[i]["purpose"] == "fine-tune"
        )
        (deployment,) = stub.deployments.values()
        tuned = next(iter(stub.jobs.values()))["fine_tuned_model"]
        assert deployment["request"]["properties"]["model"] == {"format": "OpenAI", "name": tuned, "version": "1"}
        assert done.model() == ModelRef("remote", deployment["name"], MODEL, done.model().meta)  # type: ignore[union-attr]
        assert any("billed by the hour" in w for w in done.record().warnings)
        assert "secret-token" not in everything(done.dir)


def test_nebius(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEBIUS_API_KEY", KEY)
    with Stub() as stub:
        done = run(stub, tmp_path, dialect="nebius", learning_rate=1e-4, lora_r=16, n_epochs=3, suffix="s")
        assert done.record().status == "done"
        job = json.loads(next(s.body for s in stub.requests if s.path == "/v1/fine_tuning/jobs" and s.method == "POST"))
        assert job["hyperparameters"] == {"n_epochs": 3, "learning_rate": 1e-4, "lora_r": 16, "lora": True}
        assert "method" not in job and job["suffix"] == f"s-{done.id[-6:]}-1"
        body = json.loads(next(s.body for s in stub.requests if s.path == "/v1/chat/completions"))
        assert body["max_tokens"] == 16
        assert done.model().uri.startswith(f"{MODEL}-LoRa:")  # type: ignore[union-attr]


def test_nebius_finds_its_job_by_the_suffix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEBIUS_API_KEY", KEY)
    with Stub() as stub:
        stub.fail("POST", "/v1/fine_tuning/jobs", status=502, after=True)
        assert run(stub, tmp_path, dialect="nebius").record().status == "done" and len(stub.jobs) == 1
