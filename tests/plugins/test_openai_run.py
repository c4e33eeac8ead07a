"""Whole runs of the managed backend against a server on loopback: its requests, messages, files and prices."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import openai_spec
import pytest
from openai_kit import ROOT, finished, newest, recipe, resume, run, state, stub, write_rows
from openai_stub import KEY, MODEL, Stub

import ftkit
from ftkit.directory import RunDirectory
from ftkit.errors import FtkitError, InputError, RunFailed
from ftkit.files import read_json, read_jsonl
from ftkit.recipe.load import load_recipe
from ftkit.records import Finding, ModelRef

__all__ = ["stub"]
GOLDEN = Path(__file__).parent / "golden" / "managed"


def check(stub: Stub, tmp_path: Path, **backend: Any) -> list[Finding]:
    """Return what preflight finds in a recipe."""
    from ftkit.run.prepare import preflight

    return preflight(load_recipe(recipe(stub, write_rows(tmp_path / "rows"), **backend))).findings


def errors(found: list[Finding]) -> list[str]:
    return [f"{f.message} | {f.hint}" for f in found if f.level == "error"]


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


# ---------------------------------------------------------------- preflight


def test_preflight_is_free_and_reports_the_shutdown_date(stub: Stub, tmp_path: Path) -> None:
    found = check(stub, tmp_path)
    assert errors(found) == []
    assert any("is shut down on 2027-01-14" in f.message for f in found)
    assert not [s for s in stub.requests if s.method != "GET"]


@pytest.mark.parametrize("key", [None, "sk-wrong"])
def test_a_missing_or_wrong_key_is_reported_without_the_key(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    if key:
        monkeypatch.setenv("OPENAI_API_KEY", key)
        (said,) = errors(check(stub, tmp_path))
        assert said.startswith("OpenAI does not accept the key in OPENAI_API_KEY (401)") and "sk-wrong" not in said
    else:  # on loopback a key may be missing: the server says whether it needs one
        (said,) = errors(check(stub, tmp_path, base_url="http://provider.invalid/v1"))
        assert said.startswith("no API key: OPENAI_API_KEY is not set") and ".env" in said


def test_the_key_may_stand_in_a_dotenv_file(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    (tmp_path / ".env").write_text(f"MY_KEY={KEY}\n")
    finished(run(stub, tmp_path, api_key_env="MY_KEY"), stub)
    assert "MY_KEY" not in os.environ


def test_an_unknown_model_and_similar_names(stub: Stub, tmp_path: Path) -> None:
    (said,) = errors(
        check(
            stub,
            tmp_path,
            base_model="gpt-4o-mini-2024-07-81",
            prices={"gpt-4o-mini": {"training": 1, "input": 1, "output": 1}},
        )
    )
    assert "no model 'gpt-4o-mini-2024-07-81'" in said and MODEL in said


@pytest.mark.parametrize(("days", "level"), [(-1, "error"), (10, "warning"), (400, "note")])
def test_a_model_that_shuts_down_soon(stub: Stub, tmp_path: Path, days: int, level: str) -> None:
    import datetime

    last = datetime.date.today() + datetime.timedelta(days=days)
    stub.add_model(MODEL, last.isoformat())
    assert [f.level for f in check(stub, tmp_path) if last.isoformat() in f.message] == [level]


def test_training_that_is_not_allowed_is_reported_beforehand_with_the_probe(stub: Stub, tmp_path: Path) -> None:
    assert errors(check(stub, tmp_path, probe_training=True)) == [] and not stub.jobs
    error = {
        "message": "Fine-tuning is not available to your organization",
        "code": "training_not_available",
        "type": "x",
    }
    stub.fail("POST", "/v1/fine_tuning/jobs", status=403, error=error)
    (said,) = errors(check(stub, tmp_path, probe_training=True))
    assert "training_not_available" in said and "2027-01-06" in said and "recipes/samsum.yaml" in said


def test_lint_problems_stop_a_run_with_their_lines(stub: Stub, tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "rows")
    rows = list(read_jsonl(folder / "train.jsonl"))
    rows[4]["input"] += " <|endoftext|>"
    rows[7]["input"] += " <|endoftext|>"
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    from ftkit.run.prepare import preflight

    found = errors(preflight(load_recipe(recipe(stub, folder))).findings)
    assert any("train, lines 5, 8: the text contains the special token <|endoftext|>" in e for e in found)


def test_the_price_is_confirmed_or_refused(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ftkit.console import Console

    made = recipe(stub, write_rows(tmp_path / "rows"))
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(InputError, match="nothing was spent"):
        ftkit.run(made, out=tmp_path / "runs", console=Console())
    assert stub.answered == 0 and not stub.jobs
    (said,) = errors(check(stub, tmp_path, max_usd=0.0001))
    assert "above max_usd" in said and "as of autumn 2026" in said
    (said,) = errors(check(stub, tmp_path, max_usd=1.0, prices={"other": {"training": 1, "input": 1, "output": 1}}))
    assert "the price is not known" in said


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

    import threading

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
    import time

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


# ---------------------------------------------------------------- the key


def everything(folder: Path) -> str:
    return "\n".join(p.read_bytes().decode("utf-8", "replace") for p in folder.rglob("*") if p.is_file())


def test_the_key_is_nowhere(
    stub: Stub, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the provider repeats it, where logs are verbose, or where a traceback is shown."""
    import logging
    import traceback

    monkeypatch.setenv("OPENAI_LOG", "debug")
    for name in ("openai", "httpx2", "httpcore2"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.DEBUG)
    error = {"message": f"Incorrect API key provided: {KEY}. Header Bearer {KEY}", "code": None, "type": "x"}
    shown = []
    for method, path in (
        ("POST", "/v1/files"),
        ("POST", "/v1/fine_tuning/jobs"),
        ("GET", "/v1/fine_tuning/jobs/.*"),
        ("POST", "/v1/chat/completions"),
    ):
        for status in (400, 401, 500):
            stub.fail(method, path, status=status, error=error, times=1)
    directory: Path | None = None
    for _ in range(20):
        try:
            done = resume(directory, create_again=True) if directory else run(stub, tmp_path, patience=0.0)
            break
        except FtkitError as failure:
            shown.append("".join(traceback.format_exception(failure)) + f"{failure} {failure.hint}")
            directory = newest(tmp_path)
    assert done.record().status == "done" and len(shown) >= 3
    captured = capfd.readouterr()
    said = "\n".join([*shown, captured.out, captured.err, everything(tmp_path / "runs")])
    assert "report.html" in {p.name for p in done.dir.iterdir()}
    assert KEY not in said and KEY[:20] not in said and "[key]" in said


# ---------------------------------------------------------------- cancel


UNAUTHORISED = {"status": 401, "error": {"message": "no", "code": "x", "type": "x"}}


def stopped_with_a_job(stub: Stub, tmp_path: Path) -> Path:
    """Return a run that stopped while its job is running."""
    stub.job_seconds = 60
    stub.fail("GET", "/v1/fine_tuning/jobs/[^/]+", **UNAUTHORISED)
    with pytest.raises(RunFailed, match="401"):
        run(stub, tmp_path)
    return newest(tmp_path)


def cancelled(directory: Path, *options: str) -> str:
    from click.testing import CliRunner

    from ftkit.cli.run import cancel

    return CliRunner().invoke(cancel, [str(directory), *options], catch_exceptions=False).output


def test_cancel_cancels_the_job_and_changes_nothing_else(stub: Stub, tmp_path: Path) -> None:
    directory = stopped_with_a_job(stub, tmp_path)
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    (job,) = stub.jobs
    said = json.loads(cancelled(directory, "--json"))
    assert said["cancelled"] == [{"what": "job", "id": job, "status": "cancelled"}] and said["outcome_unknown"] == []
    assert stub.jobs[job]["status"] == "cancelled"
    assert state(directory)["cancelled"] > 0
    after = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert {path.name for path in changed} == {"openai-managed.json"}
    assert "nothing to cancel" in cancelled(directory)
    with pytest.raises(RunFailed, match="was cancelled"):
        resume(directory)
    stub.job_seconds = 0.1
    done = resume(directory, create_again=True)
    assert done.record().status == "done" and len(stub.jobs) == 2 and state(directory)["cancelled"] is None


def test_a_cancelled_run_creates_nothing_without_a_confirmation(stub: Stub, tmp_path: Path) -> None:
    stub.fail("POST", "/v1/files", status=400)
    with pytest.raises(RunFailed):
        run(stub, tmp_path)
    directory = newest(tmp_path)
    assert "nothing to cancel" in cancelled(directory)
    for _ in range(2):
        with pytest.raises(
            RunFailed, match=r"this run was cancelled: it does not create a job(.|\n)*--answer create-again=yes"
        ):
            resume(directory)
    assert stub.count("POST", "/v1/fine_tuning/jobs") == 0
    finished(resume(directory, create_again=True), stub)


def test_cancel_reports_an_unknown_outcome(stub: Stub, tmp_path: Path) -> None:
    stub.job_seconds, stub.hide_jobs_for = 60, 1e6
    stub.fail("POST", "/v1/fine_tuning/jobs", status=502, after=True)
    with pytest.raises(RunFailed, match="outcome unknown"):
        run(stub, tmp_path)
    directory = newest(tmp_path)
    said = cancelled(directory)
    assert "outcome unknown: a job may exist" in said and "nothing to cancel" not in said
    assert json.loads(cancelled(directory, "--json"))["outcome_unknown"] == ["job"]
    stub.hide_jobs_for = 0.0
    assert re.search(r"^job ftjob-\d+: cancelled", cancelled(directory))
    assert [job["status"] for job in stub.jobs.values()] == ["cancelled"]
    with pytest.raises(RunFailed, match="was cancelled"):
        resume(directory)
    assert len(stub.jobs) == 1


def test_a_job_that_appears_after_another_was_created_is_reported_and_can_be_cancelled(
    stub: Stub, tmp_path: Path
) -> None:
    """The user's confirmation was wrong: there are two jobs. The run says so when it resumes and at its end."""
    stub.job_seconds, stub.hide_jobs_for = 60, 1e6
    stub.fail("POST", "/v1/fine_tuning/jobs", status=502, after=True)
    with pytest.raises(RunFailed, match="outcome unknown"):
        run(stub, tmp_path)
    directory = newest(tmp_path)
    stub.fail("GET", "/v1/fine_tuning/jobs/[^/]+", **UNAUTHORISED)
    with pytest.raises(RunFailed, match="401"):
        resume(directory, create_again=True)
    first, second = stub.jobs
    assert [job["metadata"]["ftkit_attempt"] for job in stub.jobs.values()] == ["1", "2"]
    assert state(directory)["job"]["id"] == second
    stub.hide_jobs_for = 0.0
    stub.fail("GET", "/v1/fine_tuning/jobs/[^/]+/events", **UNAUTHORISED)
    with pytest.raises(RunFailed, match="401"):
        resume(directory)
    both = rf"2 jobs carry this run's metadata tag: {first}, {second}; `ftkit cancel \S+` cancels "
    assert any(re.search(both + "all", warning) for warning in RunDirectory.open(directory).record().warnings)
    stub.jobs[second]["status"], stub.ending = "running", "succeeded"
    stub.end(stub.jobs[second])
    done = resume(directory)
    assert done.record().status == "done"
    assert any(re.search(both + "the others", warning) for warning in done.record().warnings)
    assert cancelled(directory).splitlines()[0] == f"job {first}: cancelled"


def test_a_job_that_the_provider_lost_can_be_replaced(stub: Stub, tmp_path: Path) -> None:
    directory = stopped_with_a_job(stub, tmp_path)
    stub.jobs.clear()
    stub.job_seconds = 0.1
    with pytest.raises(RunFailed, match=r"has no job ftjob-\d+ \(404\)(.|\n)*--answer create-again=yes"):
        resume(directory)
    assert not stub.jobs
    finished(resume(directory, create_again=True), stub)


@pytest.mark.parametrize("status", ["running", "succeeded"])
def test_create_again_where_there_is_a_job_creates_none_and_says_so(stub: Stub, tmp_path: Path, status: str) -> None:
    directory = stopped_with_a_job(stub, tmp_path)
    (job,) = stub.jobs
    if status == "running":
        stub.plan = ["running"]
        stub.jobs[job]["_plan"], stub.job_seconds = ["running"], 1.5
    else:
        stub.end(stub.jobs[job])
    done = resume(directory, create_again=True)
    finished(done, stub)
    assert any(
        f"job {job} is {status}: --answer create-again=yes creates no second one" in w for w in done.record().warnings
    )


def test_state_names_the_job(stub: Stub, tmp_path: Path) -> None:
    done = run(stub, tmp_path)
    assert state(done.dir)["job"]["phase"] == "created" and state(done.dir)["job"]["id"] in stub.jobs
    assert ROOT.exists()
