"""What prevents useless payments: problems that preflight finds, or that the first requests show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from openai_kit import finished, newest, recipe, resume, run, stub, write_rows
from openai_stub import Stub

from ftkit.errors import FtkitError, RunFailed
from ftkit.files import read_json
from ftkit.recipe.load import load_recipe
from ftkit.records import Finding
from ftkit.run.prepare import preflight

__all__ = ["stub"]


def found(stub: Stub, tmp_path: Path, **backend: Any) -> list[Finding]:
    """Return what preflight finds in a recipe."""
    return preflight(load_recipe(recipe(stub, write_rows(tmp_path / "rows"), **backend))).findings


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


def test_refused_rows_among_answered_ones_are_failed_predictions(stub: Stub, tmp_path: Path) -> None:
    def bad(body: dict[str, Any]) -> bool:
        return int(body["messages"][-1]["content"].split()[-1]) < 12

    stub.fail("POST", CHAT, status=400, error=REFUSED, times=10**6, when=bad)
    stub.fail("POST", "/v1/fine_tuning/jobs", status=403, error={"code": "training_not_available"})
    with pytest.raises(RunFailed):
        run(stub, tmp_path, {"test": 24})
    assert read_json(newest(tmp_path) / "baseline" / "cost.json")["n_failed"] == 12
    assert resume(newest(tmp_path)).record().status == "done"


def test_prompts_that_are_too_long_do_not_stop_the_run(stub: Stub, tmp_path: Path) -> None:
    long = {
        "message": "This model's maximum context length is 8 tokens",
        "code": "context_length_exceeded",
        "type": "x",
    }
    stub.fail("POST", CHAT, status=400, error=long, times=10**6, when=lambda body: len(stub.requests) < 20)
    assert run(stub, tmp_path, {"test": 40}).record().status == "done"


TRAINING_NOT_AVAILABLE = {
    "message": "Fine-tuning is not available to your organization",
    "code": "training_not_available",
    "type": "x",
}
JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
def openai_itself(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> str:
    """The stub under OpenAI's host name, which here resolves to this machine."""
    import socket

    original = socket.getaddrinfo

    def here(host: Any, *rest: Any, **more: Any) -> Any:
        return original("127.0.0.1" if host == "api.openai.com" else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", here)
    monkeypatch.setenv("NO_PROXY", "*")
    return stub.url.replace("127.0.0.1", "api.openai.com")


def test_openai_is_asked_whether_training_is_allowed_before_anything_is_paid(
    stub: Stub, tmp_path: Path, openai_itself: str
) -> None:
    fault = stub.fail("POST", JOBS, status=403, error=TRAINING_NOT_AVAILABLE, times=10**6)
    with pytest.raises(FtkitError, match=r"training_not_available\)[\s\S]*ftkit serve"):
        run(stub, tmp_path, base_url=openai_itself)
    assert stub.answered == 0 and not stub.files and stub.count("POST", JOBS) == 1
    assert not (tmp_path / "runs").exists()
    fault.times = 0
    done = run(stub, tmp_path, base_url=openai_itself)
    finished(done, stub)
    bodies = [s.body for s in stub.requests if s.method == "POST" and s.path == JOBS]
    assert b"file-ftkit-does-not-exist" in bodies[1] and b"does-not-exist" not in bodies[2]


def test_preflight_does_not_ask_where_the_recipe_says_so_nor_other_providers(
    stub: Stub, tmp_path: Path, openai_itself: str
) -> None:
    said = [f.message for f in found(stub, tmp_path, base_url=openai_itself, probe_training=False)]
    assert any("only shows when the job is created" in text for text in said)
    assert found(stub, tmp_path) and stub.count("POST", JOBS) == 0
    control = {
        **recipe(stub, tmp_path / "rows"),
        "controls": [recipe(stub, tmp_path / "rows", base_url=openai_itself)["backend"]],
    }
    assert preflight(load_recipe(control)).findings and stub.count("POST", JOBS) == 0, "a control is not trained"


def test_a_probe_without_an_answer_is_a_warning(stub: Stub, tmp_path: Path) -> None:
    stub.fail("POST", JOBS, status=503, times=1)
    (finding,) = [f for f in found(stub, tmp_path, probe_training=True) if "whether training is allowed" in f.message]
    assert finding.level == "warning"


def test_the_hint_to_resume_names_the_runs_directory_and_only_where_there_is_one(stub: Stub, tmp_path: Path) -> None:
    message = "You exceeded your current quota, please check your plan and billing details."  # as OpenAI words it
    quota = {"message": message, "code": "insufficient_quota", "type": "insufficient_quota"}
    stub.fail("GET", "/v1/models", status=429, error=quota, times=1)
    (error,) = [f for f in found(stub, tmp_path) if f.level == "error"]
    assert error.hint == "buy credit or raise the limit at the provider."
    stub.fail("POST", CHAT, status=429, error=quota, times=10**6)
    with pytest.raises(RunFailed) as caught:
        run(stub, tmp_path)
    assert "the quota is used up (429 insufficient_quota)" in str(caught.value)
    assert f"resume with `ftkit run --resume {newest(tmp_path)}`" in str(caught.value)


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "\N{LEFT DOUBLE QUOTATION MARK}sk-one", "sk one"])
def test_a_key_that_cannot_be_sent_is_one_message(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    (finding,) = [f for f in found(stub, tmp_path) if f.level == "error"]
    assert "the key in OPENAI_API_KEY contains a character that no key has" in finding.message and "sk" not in str(
        finding
    )
    assert not stub.requests


def test_a_server_that_requires_a_key_where_there_is_none(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    (finding,) = [f for f in found(stub, tmp_path) if f.level == "error"]
    assert "requires a key, and OPENAI_API_KEY is not set (401)" in finding.message
    (finding,) = [f for f in found(stub, tmp_path, dialect="local") if f.level == "error"]
    assert "this machine requires a key (401)" in finding.message and "backend.api_key_env: NAME" in str(finding.hint)


def test_the_price_of_1000_answers_leaves_out_failed_requests(stub: Stub, tmp_path: Path) -> None:
    def bad(body: dict[str, Any]) -> bool:
        return int(body["messages"][-1]["content"].split()[-1]) < 6

    stub.answer = lambda body: "x" * 40
    stub.fail("POST", CHAT, status=400, error=REFUSED, times=10**6, when=bad)
    done = run(stub, tmp_path, {"test": 12})
    costs = {c["system"]: c for c in read_json(done.path("report.json"))["costs"]["systems"]}
    for name in ("baseline", "tuned"):
        spent = [p.usd for p in done.predictions(name) if p.usd is not None]
        assert len(spent) == 6
        assert costs[name]["usd_per_1k"] == pytest.approx(sum(spent) / 6 * 1000)
