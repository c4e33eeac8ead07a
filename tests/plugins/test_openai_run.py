"""Whole runs of the managed backend against a server on loopback: its requests, messages, files and prices."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import openai_spec
import pytest
from openai_kit import finished, newest, recipe, resume, run, stub, write_rows
from openai_stub import MODEL, Stub

import ftkit
from ftkit.errors import RunFailed
from ftkit.files import read_json

__all__ = ["stub"]
GOLDEN = Path(__file__).parent / "golden" / "managed"

# ---------------------------------------------------------------- a run


def test_a_run_trains_and_measures(stub: Stub, tmp_path: Path) -> None:
    done = run(stub, tmp_path, suffix="mine", n_epochs=2)
    finished(done, stub)
    model = done.model()
    assert model is not None and model.kind == "remote" and model.base == MODEL
    assert model.meta["shutdown_date"] == "2027-01-14" and model.meta["hosted_by"].startswith("OpenAI (127.0.0.1")
    assert done.measurement("baseline")["model"]["meta"]["shutdown_date"] == "2027-01-14"

    job = next(iter(stub.jobs.values()))
    assert job["metadata"]["ftkit_run"] == done.id and len(job["metadata"]) <= 16
    assert job["suffix"] == "mine" and job["seed"] == done.seed

    steps = [row for row in done.log_rows() if row["event"] == "step"]
    assert [s["step"] for s in steps] == list(range(1, stub.steps + 1))
    assert [row["step"] for row in done.log_rows() if row["event"] == "eval"] == [3, 6]
    ids = [row["id"] for row in done.log_rows() if row["event"] == "provider"]
    assert len(ids) == len(set(ids)) == stub.steps + 1
    assert done.path("train", "results.csv").read_text().startswith("step,train_loss")
    assert [c["step_number"] for c in read_json(done.path("train", "checkpoints.json"))] == [3, 6]
    said = " ".join(row["message"] for row in done.log_rows() if row["event"] == "note")
    assert re.search(r"checkpoints, .*: ft:\S+:ckpt-step-3 \(step 3\), ft:\S+:ckpt-step-6 \(step 6\)", said)

    end = next(row for row in done.log_rows() if row["event"] == "end")
    assert end["usd"] == pytest.approx(job["trained_tokens"] * 3 / 1e6, abs=1e-6)
    tuned = done.predictions("tuned")
    assert all(p.usd == pytest.approx((p.tokens_in * 0.30 + p.tokens_out * 1.20) / 1e6) for p in tuned)  # type: ignore[operator]
    locked = read_json(done.path("lock.json"))["training"]
    assert locked[f"system_fingerprint {MODEL}"] == ["fp_base"]
    assert locked[f"system_fingerprint {model.uri}"] == ["fp_tuned"]
    assert stub.answered == 24 and len(done.recipe.to_yaml()) > 0

    report = read_json(done.path("report.json"))
    curves = {c["name"]: c["points"] for c in report["curves"] if c["axis"] == "loss"}
    assert len(curves["loss"]) == stub.steps and [step for step, _ in curves["validation loss"]] == [3, 6]
    table = next(s for s in report["sections"] if s["title"].startswith("Managed"))["blocks"][0]
    assert table["rows"][0][1] == job["id"] and "not known" not in table["rows"][0]


def test_a_run_says_when_the_job_is_expected_to_finish(
    stub: Stub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stub.job_seconds = 2.4
    run(stub, tmp_path)
    said = capfd.readouterr().err
    assert re.search(r"expects job ftjob-\d+ to finish at .* in 10 min", said)


def test_requests_and_responses_are_as_openai_describes_them(stub: Stub, tmp_path: Path) -> None:
    """Compares them with golden files too; to accept a change: FTKIT_GOLDEN=write pytest -k as_openai_describes"""
    spec = openai_spec.load()
    wandb = {"project": "ftkit", "tags": ["a"]}
    run(
        stub,
        tmp_path,
        n_epochs=2,
        batch_size=4,
        learning_rate_multiplier=0.5,
        suffix="mine",
        wandb=wandb,
        multipart_mb=1,
    )
    sampled = {"generation": {"max_new_tokens": 16, "temperature": 0.7, "samples": 2}}
    from ftkit.console import Console

    again = {**recipe(stub, tmp_path / "rows", use_batch_api=True), **sampled, "name": "managed-batch"}
    ftkit.run(again, out=tmp_path / "runs", console=Console(), yes=True)
    kinds: dict[str, Any] = {}
    for seen in stub.requests:
        spec.validate_request(seen.method, seen.path, seen.body, seen.content_type)
        if seen.status == 200:
            spec.validate_response(seen.method, seen.path, seen.status, seen.answer)
        name = f"{seen.method} {re.sub(r'(file|ftjob|batch|ft:gpt)[-_:][^/?]*', 'ID', seen.path.split('?')[0])}"
        if "/jobs?" in seen.path:
            name += " filtered" if "metadata" in seen.path else " first"
        # Of repeated GET requests the last is the same in each run; of repeated POST requests, the first in the order of their text.
        if name not in kinds or seen.method == "GET" or unbounded(seen.body) < unbounded(kinds[name].body):
            kinds[name] = seen
    kinds = {name: golden(seen) for name, seen in kinds.items()}
    assert len(kinds) >= 13
    for name, content in kinds.items():
        path = GOLDEN / f"{re.sub(r'[^A-Za-z]+', '-', name).strip('-').lower()}.json"
        text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        if os.environ.get("FTKIT_GOLDEN") == "write":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.read_text() == text, name


def unbounded(body: bytes) -> bytes:
    """Return a form without the random line between its parts."""
    return re.sub(rb"--[0-9a-f]{32}", b"--BOUNDARY", body)


def as_json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def golden(seen: Any) -> dict[str, Any]:
    """Return a request and its answer without what differs from run to run."""

    def plain(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: plain(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [plain(v, key) for v in value[:2]]
        if key in ("created", "created_at", "finished_at", "estimated_finish", "bytes", "trained_tokens", "expires_at"):
            return "NUMBER" if value is not None else None
        if isinstance(value, str):
            for pattern, word in _CHANGING:
                value = re.sub(pattern, word, value)
        return value

    body: Any = as_json(seen.body)
    if body is None and seen.body:
        parts = unbounded(seen.body).decode()
        body = re.sub(r'\{"messages.*\}|\{"custom_id.*\}', "LINE", parts).replace("\r", "").split("\n")
        body = list(dict.fromkeys(body))
    answer = as_json(seen.answer)
    return {
        "request": {"method": seen.method, "path": plain(seen.path), "body": plain(body)},
        "response": {"status": seen.status, "body": plain(answer if answer is not None else "(a file)")},
    }


_CHANGING = [
    (r"managed(-batch)?-\d{8}-\d{6}-[0-9a-f]{6}", "RUN"),
    (r"\b[0-9a-f]{64}\b|\b[0-9a-f]{32}\b", "HASH"),
    (r"ft:gpt[^\"/ ]*", "TUNED"),
    (r"(file-|ftjob-|batch_req_|batch_|chatcmpl-|ftckpt_|ftevent-)[0-9_-]+", r"\1ID"),
    (r"127\.0\.0\.1:\d+", "HOST"),
]


def test_the_validator_refuses_what_is_wrong() -> None:
    spec = openai_spec.load()
    good = {"model": MODEL, "training_file": "file-1", "metadata": {"a": "b"}}
    path, kind = "/v1/fine_tuning/jobs", "application/json"
    spec.validate_request("POST", path, json.dumps(good).encode(), kind)
    for wrong in (
        {"hyperparameters": {"n_epochs": 2}},
        {"suffix": "x" * 65},
        {"method": {"type": "magic"}},
        {"nonsense": 1},
    ):
        with pytest.raises(openai_spec.Disagrees):
            spec.validate_request("POST", path, json.dumps({**good, **wrong}).encode(), kind)
    with pytest.raises(openai_spec.Disagrees):
        spec.validate_request("POST", "/v1/chat/completions", b'{"model": "m", "messages": [], "max_tokens": 3}', kind)
    with pytest.raises(openai_spec.Disagrees):
        spec.validate_response("GET", path, 200, b'{"object": "list"}')


def test_bodies_are_the_current_wire_form(stub: Stub, tmp_path: Path) -> None:
    run(stub, tmp_path, n_epochs=2, learning_rate_multiplier=0.5, wandb={"project": "p"})
    job = json.loads(next(s.body for s in stub.requests if s.method == "POST" and s.path == "/v1/fine_tuning/jobs"))
    assert job["method"]["supervised"]["hyperparameters"] == {"n_epochs": 2, "learning_rate_multiplier": 0.5}
    assert "hyperparameters" not in job and job["integrations"] == [{"type": "wandb", "wandb": {"project": "p"}}]
    body = json.loads(next(s.body for s in stub.requests if s.path == "/v1/chat/completions"))
    assert body["max_completion_tokens"] == 16 and "max_tokens" not in body
    uploads = [s for s in stub.requests if s.method == "POST" and s.path == "/v1/files"]
    assert len(uploads) == 2 and b'name="purpose"\r\n\r\nfine-tune' in uploads[0].body


def test_training_sees_no_test_row(stub: Stub, tmp_path: Path) -> None:
    run(stub, tmp_path)
    sent = b"".join(stub.contents.values())
    assert b"train row 3" in sent and b"validation row 1" in sent and b"test row" not in sent


# ---------------------------------------------------------------- files


def test_a_file_that_the_provider_has_is_not_uploaded_again(stub: Stub, tmp_path: Path) -> None:
    run(stub, tmp_path)
    before = stub.count("POST", "/v1/files")
    run(stub, tmp_path)
    assert stub.count("POST", "/v1/files") == before == 2


def test_a_file_that_was_deleted_is_uploaded_again(stub: Stub, tmp_path: Path) -> None:
    stub.fail("POST", "/v1/fine_tuning/jobs", status=400, error={"message": "no", "code": "x", "type": "y"})
    with pytest.raises(RunFailed):
        run(stub, tmp_path)
    stub.files.clear()
    finished(resume(newest(tmp_path)), stub)


def test_a_large_file_is_uploaded_in_parts(stub: Stub, tmp_path: Path) -> None:
    long = {"input": "word " * 30_000, "target": "x"}
    folder = write_rows(tmp_path / "rows")
    (folder / "train.jsonl").write_text("".join(json.dumps({**long, "target": f"x{i}"}) + "\n" for i in range(20)))
    from ftkit.console import Console

    stub.fail("POST", r"/v1/uploads/.*/parts", status=500)
    done = ftkit.run(recipe(stub, folder, multipart_mb=1), out=tmp_path / "runs", console=Console(), yes=True).directory
    assert done.record().status == "done" and stub.count("POST", "/v1/uploads") == 1
    assert stub.count("POST", "/v1/uploads/[^/]+/parts") == 1 + 3
    entry = next(f for f in stub.files.values() if f["filename"].startswith("ftkit-train-"))
    assert stub.contents[entry["id"]] == done.path("train", "files", "train.jsonl").read_bytes()


# ---------------------------------------------------------------- answers


def test_a_request_that_cannot_succeed_is_a_failed_prediction(stub: Stub, tmp_path: Path) -> None:
    error = {"message": "The response was filtered", "code": "content_filter", "type": "x"}
    stub.fail(
        "POST",
        "/v1/chat/completions",
        status=400,
        error=error,
        times=10**6,
        when=lambda b: b["messages"][-1]["content"] == "test row 3",
    )
    done = run(stub, tmp_path)
    failed = [p for p in done.predictions("tuned") if p.error]
    assert [p.example_id for p in failed] == ["test-3"] and "moderation" in str(failed[0].error)
    metric = done.metrics("tuned")["exact_match"]
    assert (metric.n, metric.n_unscored, metric.value) == (11, 1, 1.0)
    assert read_json(done.path("tuned", "cost.json"))["n_failed"] == 1


def test_filtered_empty_and_refused_answers(stub: Stub, tmp_path: Path) -> None:
    from ftkit_openai._errors import Malformed
    from ftkit_openai._requests import predictions_of

    from ftkit.records import Example, GenerationConfig, Message

    example = Example("e", (Message("user", "x"),), ("y",), "x")

    def one(finish: str, **message: Any) -> Any:
        return predictions_of(
            example, {"choices": [{"finish_reason": finish, "message": message}]}, GenerationConfig(), None, True
        )[0]

    assert one("stop", content=" ok ").text == "ok"
    assert one("length", content="cut").finish_reason == "length"
    assert one("content_filter", content="half").error == "blocked by the provider's content filter"
    assert one("stop", content=None).error == "the answer has no text"
    assert one("stop", content=None, refusal="I cannot").text == "I cannot"
    for broken in ({}, {"error": {}}, {"choices": None}, {"choices": []}, {"choices": [{}]}, {"choices": ["x"]}):
        with pytest.raises(Malformed):
            predictions_of(example, broken, GenerationConfig(), None, True)


def test_several_samples_come_in_one_request(stub: Stub, tmp_path: Path) -> None:
    from ftkit.console import Console

    wanted = {
        **recipe(stub, write_rows(tmp_path / "rows")),
        "generation": {"max_new_tokens": 8, "temperature": 0.7, "samples": 3},
    }
    done = ftkit.run(wanted, out=tmp_path / "runs", console=Console(), yes=True).directory
    assert len(done.predictions("tuned")) == 36 and stub.answered == 24
    body = json.loads(next(s.body for s in stub.requests if s.path == "/v1/chat/completions"))
    assert body["n"] == 3 and body["temperature"] == 0.7 and "seed" in body


def test_two_recipes_share_a_baseline(stub: Stub, tmp_path: Path) -> None:
    run(stub, tmp_path, n_epochs=1)
    before = stub.answered
    run(stub, tmp_path, n_epochs=2, concurrency=2)
    assert stub.answered == before + 12  # the tuned model alone


def test_a_new_model_that_does_not_answer_yet(stub: Stub, tmp_path: Path) -> None:
    stub.model_missing_for = 1.0
    finished(run(stub, tmp_path), stub)


def test_a_tuned_model_that_never_answers(stub: Stub, tmp_path: Path) -> None:
    stub.model_missing_for = 1e6
    with pytest.raises(RunFailed, match=r"no model 'ft:gpt"):
        run(stub, tmp_path, model_wait=0.5)
    stub.model_missing_for = 0.0
    finished(resume(newest(tmp_path)), stub)
