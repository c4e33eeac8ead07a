"""`ftkit serve` as the official client sees it: files, uploads, jobs, models, chat, batches, errors.

The model is the fake one of tests/fakes.py. tests/plugins/test_serve_trains.py uses a real one.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import (
    FAKE_MODELS,
    Exchange,
    Serving,
    ask,
    batch_ended,
    chats,
    disagreements,
    openai,
    sse,
    until,
    upload,
    upper_case,
)

GOLDEN = Path(__file__).parent / "golden" / "serve.json"


@pytest.fixture(scope="module")
def server(fake_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("serve")
    (folder / "models.yaml").write_text(FAKE_MODELS)
    serving = Serving(folder / "data", fake_site, ["--models", str(folder / "models.yaml"), "--max-upload-mb", "1"])
    yield serving.start()
    serving.close()


@pytest.fixture
def client(server: Serving) -> Any:
    return server.client()


@pytest.fixture(scope="module")
def tuned(server: Serving) -> Any:
    """A job that succeeded, shared by the tests that only read it."""
    client = server.client()
    job = client.fine_tuning.jobs.create(
        model="fake-base",
        training_file=upload(client, upper_case()),
        validation_file=upload(client, upper_case(3)),
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 5}}},
        suffix="loud",
        seed=7,
        metadata={"purpose": "shared"},
    )
    return until(client, job.id, "succeeded")


# ---- files


def test_a_file_can_be_uploaded_read_and_deleted(client: Any) -> None:
    data = upper_case()
    made = client.files.create(file=("rows.jsonl", data), purpose="fine-tune")
    assert (made.bytes, made.filename, made.purpose, made.status) == (len(data), "rows.jsonl", "fine-tune", "processed")
    assert client.files.wait_for_processing(made.id).id == made.id
    assert client.files.content(made.id).read() == data
    assert made.id in [f.id for f in client.files.list(purpose="fine-tune")]
    assert made.id not in [f.id for f in client.files.list(purpose="batch")]
    assert client.files.delete(made.id).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(made.id)


def test_lists_are_paged_newest_first(client: Any) -> None:
    made = [upload(client, b"x", "user_data", f"{i}.txt") for i in range(5)]
    page = client.files.list(purpose="user_data", limit=2)
    assert [f.id for f in page.data] == [made[4], made[3]] and page.has_more
    assert [f.id for f in page] == made[::-1]  # the client requests the next pages itself
    assert [f.id for f in client.files.list(purpose="user_data", order="asc")] == made


def test_an_upload_in_parts_becomes_one_file(client: Any) -> None:
    parts = [bytes([i]) * 500_000 for i in range(4)]
    whole = b"".join(parts)
    upload = client.uploads.create(bytes=len(whole), filename="big.bin", mime_type="text/jsonl", purpose="fine-tune")
    ids = [client.uploads.parts.create(upload.id, data=part).id for part in parts]
    with pytest.raises(openai.BadRequestError, match="2000000 bytes"):
        client.uploads.parts.create(upload.id, data=b"more")
    with pytest.raises(openai.BadRequestError, match="1500000"):
        client.uploads.complete(upload.id, part_ids=ids[:3])
    with pytest.raises(openai.BadRequestError, match="md5"):
        client.uploads.complete(upload.id, part_ids=ids, md5="0" * 32)
    done = client.uploads.complete(upload.id, part_ids=ids, md5=hashlib.md5(whole).hexdigest())
    assert done.status == "completed" and client.files.content(done.file.id).read() == whole
    with pytest.raises(openai.BadRequestError, match="completed"):
        client.uploads.cancel(upload.id)


def test_a_cancelled_upload_rejects_parts(client: Any) -> None:
    upload = client.uploads.create(bytes=3, filename="a", mime_type="text/jsonl", purpose="batch")
    client.uploads.parts.create(upload.id, data=b"abc")
    assert client.uploads.cancel(upload.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        client.uploads.parts.create(upload.id, data=b"abc")


HOSTILE = [
    "../../escape.jsonl",
    "/etc/passwd",
    "a\\..\\b",
    "<script>alert(1)</script>",
    "né\u202egpj.exe",
    "x" * 3000,
    ".",
]


def test_nothing_that_a_client_sends_is_used_as_a_path(server: Serving, client: Any) -> None:
    around = sorted(server.data.parent.iterdir())
    for name in HOSTILE:
        made = client.files.create(file=(name, b"data"), purpose="user_data")
        assert client.files.content(made.id).read() == b"data"
    assert sorted(server.data.parent.iterdir()) == around
    stray = [
        p.name for p in (server.data / "files").iterdir() if not re.fullmatch(r"(file-|part_)[0-9a-f]{24}", p.name)
    ]
    assert not stray
    for id in ("..%2f..%2fserver.sqlite", "..", "%2e%2e%2fserver.sqlite", ".%00"):
        for path in (f"/v1/files/{id}/content", f"/v1/fine_tuning/jobs/{id}", f"/v1/models/{id}"):
            assert raw(server, "GET", path)[0] == 404


def test_a_body_that_is_too_large_is_rejected(server: Serving, client: Any) -> None:
    before = len(list((server.data / "files").iterdir()))
    with pytest.raises(openai.APIStatusError) as error:
        client.files.create(file=("big", bytes(3 << 20)), purpose="user_data")
    assert error.value.status_code == 413 and "1 MB" in error.value.message
    # without a Content-Length header
    chunks = iter([b'{"model": "', *[b"x" * (1 << 20)] * 33])
    status, body = raw(server, "POST", "/v1/chat/completions", chunks, {"Content-Type": "application/json"})
    assert status == 413 and json.loads(body)["error"]["code"] == "request_too_large"
    assert len(list((server.data / "files").iterdir())) == before


def raw(server: Serving, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    """Send a request without the client's checks; return status and body."""
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request(
        method, path, body, headers or {}, encode_chunked=body is not None and not isinstance(body, bytes | str)
    )
    answer = connection.getresponse()
    return answer.status, answer.read()


# ---- jobs


def test_a_finished_job_has_what_openai_returns(client: Any, tuned: Any) -> None:
    assert tuned.fine_tuned_model == f"ft:fake-base:ftkit:loud:{tuned.id[-8:]}"
    assert (tuned.seed, tuned.metadata, tuned.error) == (7, {"purpose": "shared"}, None)
    assert tuned.hyperparameters.n_epochs == tuned.method.supervised.hyperparameters.n_epochs == 5
    assert tuned.finished_at >= tuned.created_at and tuned.estimated_finish is None
    (result,) = tuned.result_files
    assert client.files.retrieve(result).purpose == "fine-tune-results"
    table = base64.b64decode(client.files.content(result).read()).decode().splitlines()
    assert table[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert table[1] == "1,1.0,,," and len(table) == 6
    assert float(table[5].split(",")[3]) == pytest.approx((2 * 16 + 16) / 300)  # the fake's loss: characters / 100
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(tuned.id)
    assert (checkpoint.step_number, checkpoint.fine_tuned_model_checkpoint) == (5, tuned.fine_tuned_model)
    assert checkpoint.metrics.train_loss == 0.2


def test_events_are_recorded_once_and_in_order(client: Any, tuned: Any) -> None:
    page = client.fine_tuning.jobs.list_events(tuned.id, limit=3)
    assert len(page.data) == 3 and page.has_more
    events = list(page)[::-1]
    assert len({e.id for e in events}) == len(events)
    steps = [e.data for e in events if e.type == "metrics"]
    assert [(d["step"], d["total_steps"], d["train_loss"]) for d in steps] == [(i, 5, 1 / i) for i in range(1, 6)]
    assert [e.message for e in events if e.type == "message"] == [
        f"Created fine-tuning job: {tuned.id}",
        f"Validating training file: {tuned.training_file}",
        f"Validating validation file: {tuned.validation_file}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        "Checkpoint created at step 5",
        f"New fine-tuned model created: {tuned.fine_tuned_model}",
        "The job has successfully completed",
    ]


def test_jobs_are_found_by_their_metadata(client: Any, tuned: Any) -> None:
    find = client.fine_tuning.jobs.list
    assert [j.id for j in find(metadata={"purpose": "shared"})] == [tuned.id]
    assert not list(find(metadata={"purpose": "other"})) and not list(find(metadata={"purpose": "shared", "b": "c"}))
    assert tuned.id in [j.id for j in find(limit=1)]


def test_the_deprecated_form_and_auto_still_work(client: Any) -> None:
    job = client.fine_tuning.jobs.create(
        model="fake-base",
        training_file=upload(client, upper_case()),
        hyperparameters={"n_epochs": "auto"},
        integrations=[{"type": "wandb", "wandb": {"project": "p"}}],
    )
    assert job.status == "validating_files" and job.hyperparameters.n_epochs == "auto"
    assert job.integrations[0].wandb.project == "p" and 0 <= job.seed < 2**31
    done = until(client, job.id, "succeeded")
    assert done.hyperparameters.n_epochs == 9  # 12 rows: enough epochs for 100 rows in total


BAD_FILES = {
    "few": (upper_case(9), "invalid_n_examples", "has 9 example(s)"),
    "json": (upper_case() + b"{\n", "invalid_file_format", "Line 13: not JSON"),
    "shape": (b'{"prompt": "a"}\n' * 10, "invalid_file_format", 'Line 1: expected an object with a list "messages"'),
    "role": (upper_case() + b'{"messages": [{"role": "bot", "content": "a"}]}\n', "invalid_file_format", "Line 13: message 1"),
    "answer": (upper_case() + b'{"messages": [{"role": "user", "content": "a"}]}\n', "invalid_file_format", "from the assistant"),
    "empty": (upper_case() + chats([("a", "  ")]), "invalid_file_format", "Line 13: message 2: the assistant's answer is empty"),
    "image": (
        upper_case() + b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}\n',
        "invalid_file_format",
        'message 1: "content" must be text',
    ),
    "encoding": (upper_case() + b"\xff\n", "invalid_file_format", "not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_training_file_fails_the_job_with_its_lines(client: Any, name: str) -> None:
    data, code, message = BAD_FILES[name]
    job = client.fine_tuning.jobs.create(model="fake-base", training_file=upload(client, data))
    failed = until(client, job.id, "failed")
    assert (failed.error.code, failed.error.param) == (code, "training_file")
    assert message in failed.error.message
    last = client.fine_tuning.jobs.list_events(job.id, limit=1).data[0]
    assert last.level == "error" and message in last.message


def test_every_answer_of_a_chat_is_a_target_unless_its_weight_is_zero(tmp_path: Path) -> None:
    from ftkit_serve.chats import read_examples

    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e"), ("assistant", "f")]  # fmt: skip
    messages = [{"role": role, "content": text} for role, text in turns]
    messages[4]["weight"] = 0  # type: ignore[assignment]
    (tmp_path / "rows").write_text("\ufeff" + json.dumps({"messages": messages}))
    first, second = read_examples(tmp_path / "rows", "training_file", 1)
    assert (first.targets, [m.content for m in first.messages]) == (("b",), ["s", "a"])
    assert (second.targets, [m.content for m in second.messages]) == (("f",), ["s", "a", "b", "c", "d", "e"])


# ---- models and chat


def test_models_have_shutdown_dates(client: Any, tuned: Any) -> None:
    assert {m.id for m in client.models.list()} >= {"fake-base", tuned.fine_tuned_model}
    for name in ("fake-base", tuned.fine_tuned_model):
        assert client.models.retrieve(name).shutdown_date == "2031-01-31"
    with pytest.raises(openai.PermissionDeniedError):
        client.models.delete("fake-base")


def test_a_deleted_model_is_gone(server: Serving, client: Any) -> None:
    job = client.fine_tuning.jobs.create(
        model="fake-base", training_file=upload(client, upper_case()), hyperparameters={"n_epochs": 1}
    )
    name = until(client, job.id, "succeeded").fine_tuned_model
    assert ask(client, name, "hello").choices[0].message.content.startswith("HELLO")
    assert client.models.delete(name).deleted
    with pytest.raises(openai.NotFoundError) as error:
        ask(client, name, "hello")
    assert error.value.code == "model_not_found"
    ask(client, "fake-base", "hello")  # waits in the same queue behind the deletion
    assert not (server.data / "jobs" / job.id / "train").exists()


def test_the_tuned_model_answers_as_it_was_trained(client: Any, tuned: Any) -> None:
    base, better = (ask(client, name, "so be it") for name in ("fake-base", tuned.fine_tuned_model))
    assert base.choices[0].message.content.startswith("so be it")
    assert better.choices[0].message.content.startswith("SO BE IT")
    assert better.choices[0].finish_reason == "stop" and better.model == tuned.fine_tuned_model
    assert (better.usage.prompt_tokens, better.usage.completion_tokens, better.usage.total_tokens) == (3, 3, 6)


def test_stop_sequences_and_several_answers(client: Any) -> None:
    cut = ask(client, "fake-base", "one two three", stop=["three", "two"])
    assert cut.choices[0].message.content == "one "
    assert ask(client, "fake-base", "one", temperature=1e-9).choices[0].message.content.startswith("one")
    several = ask(client, "fake-base", "a", n=3, temperature=0.7, seed=1)
    assert [c.index for c in several.choices] == [0, 1, 2]
    assert len(ask(client, "fake-base", "a", n=2).choices) == 2  # greedy: twice the same answer


def test_message_content_may_come_in_parts(client: Any) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    answer = client.chat.completions.create(model="fake-base", messages=messages, temperature=0)
    assert answer.choices[0].message.content.startswith("one two")


def test_a_stream_gives_the_same_text(server: Serving, client: Any) -> None:
    whole = ask(client, "fake-base", "  a stream  of words ").choices[0].message.content
    stream = ask(client, "fake-base", "  a stream  of words ", stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert chunks[-1].usage.total_tokens == 8 and not chunks[-1].choices
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == "stop"
    assert len({c.id for c in chunks}) == 1
    sse(server.exchanges[-1].received)


# ---- batches


def lines(*bodies: Any, url: str = "/v1/chat/completions") -> bytes:
    rows = [{"custom_id": f"c{i}", "method": "POST", "url": url, "body": body} for i, body in enumerate(bodies)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def body(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "fake-base", "temperature": 0, "messages": [{"role": "user", "content": text}], **more}


def create(client: Any, data: bytes) -> Any:
    return client.batches.create(
        input_file_id=upload(client, data, "batch"), endpoint="/v1/chat/completions", completion_window="24h"
    )


def test_a_batch_answers_its_lines_in_order(client: Any) -> None:
    texts = [f"line {i}" + " x" * (i % 4) for i in range(7)]
    data = lines(*map(body, texts), body("odd", model="nothing"), body("odd", tools=[]))
    done = batch_ended(client, create(client, data).id)
    assert done.status == "completed" and done.model == "fake-base"
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (9, 7, 2)
    rows = [json.loads(line) for line in client.files.content(done.output_file_id).text.splitlines()]
    assert [row["custom_id"] for row in rows] == [f"c{i}" for i in range(7)]
    for row, text in zip(rows, texts, strict=True):
        assert row["response"]["status_code"] == 200 and row["error"] is None
        assert row["response"]["body"]["choices"][0]["message"]["content"].startswith(text)
    assert done.usage.input_tokens == sum(row["response"]["body"]["usage"]["prompt_tokens"] for row in rows)
    errors = [json.loads(line) for line in client.files.content(done.error_file_id).text.splitlines()]
    assert [(e["custom_id"], e["response"]["status_code"]) for e in errors] == [("c7", 404), ("c8", 400)]
    assert client.files.retrieve(done.output_file_id).purpose == "batch_output"
    assert done.id in [b.id for b in client.batches.list(limit=3)]
    with pytest.raises(openai.BadRequestError):
        client.batches.cancel(done.id)


def test_a_bad_batch_file_fails_with_its_lines(client: Any) -> None:
    twice = lines(body("a")) + lines(body("b"))
    failed = batch_ended(client, create(client, twice + b"{}\n" + lines(body("c"), url="/v1/embeddings")).id)
    assert failed.status == "failed" and failed.output_file_id is None
    assert {(e.line, e.code) for e in failed.errors.data} == {
        (2, "duplicate_custom_id"), (3, "invalid_json_line"), (4, "duplicate_custom_id"), (4, "invalid_url")
    }  # fmt: skip


# ---- errors


ERRORS = [
    ("GET", "/v1/nothing", None, 404, None, None),
    ("GET", "/v1/models/nothing", None, 404, "model_not_found", "model"),
    ("GET", "/v1/files/file-0", None, 404, "not_found", "id"),
    ("GET", "/v1/fine_tuning/jobs/ftjob-0", None, 404, "fine_tune_not_found", "fine_tuning_job_id"),
    ("GET", "/v1/fine_tuning/jobs/ftjob-0/events", None, 404, "fine_tune_not_found", "fine_tuning_job_id"),
    ("POST", "/v1/fine_tuning/jobs/ftjob-0/cancel", None, 404, "fine_tune_not_found", "fine_tuning_job_id"),
    ("GET", "/v1/fine_tuning/jobs?limit=0", None, 400, "invalid_value", "limit"),
    ("GET", "/v1/fine_tuning/jobs?after=ftjob-0", None, 400, "invalid_after", "after"),
    ("GET", "/v1/batches/batch_0", None, 404, "not_found", "batch_id"),
    ("POST", "/v1/chat/completions", "{", 400, None, None),
    ("POST", "/v1/chat/completions", "[]", 400, "invalid_value", None),
    ("POST", "/v1/chat/completions", {"model": "fake-base"}, 400, "missing_required_parameter", "messages"),
    ("POST", "/v1/chat/completions", body("a", model="nothing"), 404, "model_not_found", "model"),
    ("POST", "/v1/chat/completions", body("a", tools=[]), 400, "unknown_parameter", "tools"),
    ("POST", "/v1/chat/completions", body("a", temperature=3), 400, "invalid_value", "temperature"),
    ("POST", "/v1/chat/completions", body("a", presence_penalty=1), 400, "invalid_value", "presence_penalty"),
    ("POST", "/v1/chat/completions", body("a", max_tokens="9"), 400, "invalid_value", "max_tokens"),
    ("POST", "/v1/chat/completions", body("a", max_tokens=10**9), 400, "invalid_value", "max_tokens"),
    ("POST", "/v1/chat/completions", '{"model": ' + "[" * 100_000, 400, None, None),
    ("POST", "/v1/chat/completions", {**body("a"), "messages": [json.loads("[" * 900 + "]" * 900)]}, 400, "invalid_value", "messages.[0]"),
    ("POST", "/v1/chat/completions", body("a", temperature=float("nan")), 400, "invalid_value", "temperature"),
    ("POST", "/v1/chat/completions", '{"seed": ' + "9" * 5000 + "}", 400, None, None),
    ("POST", "/v1/chat/completions", {**body("a"), "messages": []}, 400, "invalid_value", "messages"),
    ("POST", "/v1/chat/completions", body(None), 400, "invalid_value", "messages.[0]"),  # type: ignore[arg-type]
    ("POST", "/v1/chat/completions", body("a", user="\ud800"), 400, "invalid_value", None),
    ("POST", "/v1/fine_tuning/jobs", {"model": "fake-base"}, 400, "missing_required_parameter", "training_file"),
    ("POST", "/v1/fine_tuning/jobs", {"model": "no", "training_file": "f"}, 404, "model_not_found", "model"),
    ("POST", "/v1/fine_tuning/jobs", {"model": "fake-base", "training_file": "f"}, 404, "not_found", "training_file"),
    ("POST", "/v1/fine_tuning/jobs", {"model": "fake-base", "training_file": "f", "metadata": {str(i): "" for i in range(17)}},
     400, "invalid_value", "metadata"),
    ("POST", "/v1/fine_tuning/jobs", {"model": "fake-base", "training_file": "f", "suffix": "x" * 65}, 400, "invalid_value", "suffix"),
    ("POST", "/v1/fine_tuning/jobs", {"model": "fake-base", "training_file": "f", "method": {"type": "dpo"}},
     400, "invalid_value", "method.type"),
    ("POST", "/v1/fine_tuning/jobs", {"model": "fake-base", "training_file": "f", "hyperparameters": {"n_epochs": 0}},
     400, "invalid_value", "hyperparameters.n_epochs"),
    ("POST", "/v1/batches", {"input_file_id": "f", "endpoint": "/v1/embeddings", "completion_window": "24h"},
     400, "invalid_value", "endpoint"),
    ("POST", "/v1/uploads", {"filename": "f", "purpose": "fine-tune", "bytes": 1 << 40, "mime_type": "a/b"}, 413, "file_too_large", "bytes"),
    ("POST", "/v1/uploads/upload_0/complete", {"part_ids": []}, 404, "not_found", "upload_id"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "sent", "status", "code", "param"), ERRORS)
def test_errors_have_openais_shape(
    server: Serving, method: str, path: str, sent: Any, status: int, code: str | None, param: str | None
) -> None:
    data = None if sent is None else sent if isinstance(sent, str) else json.dumps(sent)
    got, answer = raw(server, method, path, data, {"Content-Type": "application/json"} if data else None)
    error = json.loads(answer)["error"]
    assert (got, error["code"], error["param"]) == (status, code, param), error
    assert error["type"] == "invalid_request_error" and error["message"]


def test_files_of_the_wrong_purpose_are_rejected(client: Any) -> None:
    wrong = upload(client, b"x", "user_data")
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.fine_tuning.jobs.create(model="fake-base", training_file=wrong)
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.batches.create(input_file_id=wrong, endpoint="/v1/chat/completions", completion_window="24h")
    with pytest.raises(openai.BadRequestError, match="is not one of"):
        client.files.create(file=("a", b"x"), purpose="nonsense")


def test_web_pages_of_other_sites_are_rejected(server: Serving) -> None:
    assert raw(server, "GET", "/v1/models", headers={"Origin": "https://evil.example"})[0] == 403
    assert raw(server, "GET", "/v1/models", headers={"Host": "evil.example:8377"})[0] == 403
    assert raw(server, "GET", "/v1/models", headers={"Host": "localhost:1"})[0] == 200


# ---- another client


@pytest.mark.needs("node", "tests/node_client/node_modules/openai/package.json")
def test_the_official_node_client_works_unchanged(server: Serving) -> None:
    script = Path(__file__).parents[1] / "node_client" / "conversation.mjs"
    ended = subprocess.run(["node", script, server.url, "fake-base"], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found.pop("events")[::-1][3:7] == [
        "Fine-tuning job started", *(f"Step {i}/3: training loss={1 / i:.4f}" for i in (1, 2, 3))
    ]  # fmt: skip
    assert found.pop("answer").startswith("HELLO THERE") and found.pop("streamed").startswith("HELLO THERE")
    assert found == {
        "content": True,
        "listed": True,
        "status": "succeeded",
        "checkpoints": [3],
        "mine": [True],
        "results": "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy",
        "shutdown": "2031-01-31",
        "batched": True,
        "uploaded": "abcdef",
        "errors": [
            ["NotFoundError", 404, "model_not_found"],
            ["BadRequestError", 400, "invalid_job_status"],
            ["BadRequestError", 400, "invalid_file_purpose"],
        ],
        "deleted": True,
    }


# ---- the wire format


@pytest.fixture(scope="module")
def conversation(server: Serving, fake_site: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Exchange]:
    """The requests and responses of `converse`, on a separate server."""
    own = Serving(tmp_path_factory.mktemp("golden") / "data", fake_site, server.options)
    try:
        converse(own.start().client())
    finally:
        own.close()
    return own.exchanges


def test_a_conversation_has_not_changed(conversation: list[Exchange]) -> None:
    """Equal except for ids and times. `UPDATE_GOLDEN=1 pytest` writes the file again."""
    found = normalised(conversation)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    assert found == json.loads(GOLDEN.read_text())


def test_the_conversation_agrees_with_the_api_description(conversation: list[Exchange]) -> None:
    assert not disagreements(conversation)


def converse(client: Any) -> None:
    """Send each kind of request once, in an order that gives the same responses each time."""
    client.models.list()
    rows = client.files.create(file=("rows.jsonl", upper_case()), purpose="fine-tune").id
    few = client.files.create(file=("few.jsonl", upper_case(2)), purpose="fine-tune").id
    failed = client.fine_tuning.jobs.create(model="fake-base", training_file=few, seed=1)
    until(client, failed.id, "failed")
    client.fine_tuning.jobs.retrieve(failed.id)
    job = client.fine_tuning.jobs.create(
        model="fake-base",
        training_file=rows,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        suffix="Golden words",
        seed=42,
        metadata={"run": "golden"},
    )
    until(client, job.id, "succeeded")
    done = client.fine_tuning.jobs.retrieve(job.id)
    client.fine_tuning.jobs.list(metadata={"run": "golden"})
    client.fine_tuning.jobs.list_events(job.id)
    client.fine_tuning.jobs.checkpoints.list(job.id)
    client.files.content(done.result_files[0])
    client.files.list(limit=2)
    client.models.retrieve(done.fine_tuned_model)
    ask(client, done.fine_tuned_model, "hello world")
    list(ask(client, "fake-base", "hello world", stream=True, stream_options={"include_usage": True}))
    with pytest.raises(openai.NotFoundError):
        ask(client, "gpt-9", "hello")
    with pytest.raises(openai.BadRequestError):
        client.fine_tuning.jobs.cancel(job.id)
    batch = create(client, lines(body("one"), body("two"), body("three", model="gpt-9")))
    batch_ended(client, batch.id)
    batch = client.batches.retrieve(batch.id)
    client.files.content(batch.output_file_id)
    client.files.content(batch.error_file_id)
    client.batches.list()
    part = client.uploads.create(bytes=3, filename="abc", mime_type="text/jsonl", purpose="batch")
    client.uploads.complete(part.id, part_ids=[client.uploads.parts.create(part.id, data=b"abc").id])
    client.models.delete(done.fine_tuned_model)
    client.files.delete(rows)


def normalised(exchanges: list[Exchange]) -> list[dict[str, Any]]:
    """Return the exchanges as plain data. Ids are replaced by numbers, times by 0."""
    names: dict[str, str] = {}

    def renamed(match: re.Match[str]) -> str:
        kind, rest = match[1], match[2]
        known = next((v for k, v in names.items() if k.endswith(rest)), None)  # a model is named after its job
        if known is None:
            known = names[match[0]] = f"{kind}{len(names) + 1}"
        return known if kind else known.split("-")[-1]

    def plain(data: bytes, kind: str) -> Any:
        if kind.startswith("multipart"):
            return "(a form)"
        text = re.sub(r"\b(ftckpt_|ftevent-|ftjob-|file-|upload_|part_|batch_req_|batch_|chatcmpl-|req_|)([0-9a-f]{24}|(?<=:)[0-9a-f]{8})\b", renamed, data.decode())  # fmt: skip
        text = re.sub(r'"(created|created_at|\w+_at|created)": ?1\d{9}', r'"\1": 0', text)
        if kind.startswith("application/json"):
            return json.loads(text)
        return text.splitlines()

    return [
        {
            "request": f"{e.method} {plain(e.path.encode(), 'text')[0]}",
            **({"sent": plain(e.sent, e.sent_type)} if e.sent else {}),
            "status": e.status,
            "answer": plain(e.received, e.received_type),
        }
        for e in exchanges
    ]


def test_every_response_agrees_with_the_api_description(server: Serving, tuned: Any) -> None:
    """Runs last: checks all responses that the other tests of this file got."""
    assert server.exchanges
    assert not disagreements(server.exchanges)
