"""`ftkit serve` and requests, training files and batch files that it does not understand."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import FAKE_MODELS, Serving, ask, batch_ended, openai, until, upload, upper_case

CHAT = "/v1/chat/completions"
FORM = "multipart/form-data; boundary=b"


@pytest.fixture(scope="module")
def server(fake_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("serve")
    (folder / "models.yaml").write_text(FAKE_MODELS)
    serving = Serving(folder / "data", fake_site, ["--models", str(folder / "models.yaml")])
    yield serving.start()
    serving.close()


def post(server: Serving, path: str, body: bytes, kind: str | None = "application/json") -> tuple[int, dict[str, Any]]:
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request("POST", path, body, {"Content-Type": kind} if kind else {})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "fake-base", "temperature": 0, "messages": [{"role": "user", "content": "a"}], **more}


def part(name: str, value: bytes, more: str = "") -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


BODIES = [
    # body, content type, text of the message
    (json.dumps(chat()).encode(), "application/x-www-form-urlencoded", "Content-Type must be application/json, not 'application/x-www"),
    (json.dumps(chat()).encode(), None, "Content-Type must be application/json, but it is missing"),
    (json.dumps(chat()).encode(), "text/plain", "Content-Type must be application/json"),
    (json.dumps(chat()).encode(), FORM, "Content-Type must be application/json"),
    (b"", "application/json", "no body"),
    (b"", None, "Content-Type must be application/json"),
    (b"{", "application/json", "not valid JSON"),
    (b"{} {}", "application/json", "not valid JSON"),
    (b"null", "application/json", ""),
    (b"7", "application/json", ""),
    (b'"text"', "application/json", ""),
    (b"[{}]", "application/json", ""),
    (b'{"model": "\xff"}', "application/json", "not UTF-8"),
    (b"\xff\xfe\x00", "application/json", "not "),
    (b"[" * 100_000, "application/json", "nested too deeply"),
    (b"\x00", "application/json", "not valid JSON"),
]  # fmt: skip


@pytest.mark.parametrize("path", [CHAT, "/v1/fine_tuning/jobs", "/v1/batches", "/v1/uploads"])
@pytest.mark.parametrize(("body", "kind", "message"), BODIES)
def test_a_body_that_is_no_json_object_gets_a_400(
    server: Serving, path: str, body: bytes, kind: str | None, message: str
) -> None:
    status, answer = post(server, path, body, kind)
    assert status == 400 and message in answer["error"]["message"], answer


@pytest.mark.parametrize("field", ["temperature", "top_p", "seed", "n", "frequency_penalty", "user", "metadata", "stop", "nothing"])  # fmt: skip
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "[" * 300 + "]" * 300, "9" * 4000])
def test_values_that_no_field_has_get_a_400(server: Serving, field: str, value: str) -> None:
    body = json.dumps(chat())[:-1] + f', "{field}": {value}}}'
    status, answer = post(server, CHAT, body.encode())
    if (field, value[:1]) != ("seed", "9"):
        assert status == 400 and answer["error"]["param"] in (field, None), answer
    method = f'{{"type": "supervised", "supervised": {{"hyperparameters": {{"learning_rate_multiplier": {value}}}}}}}'
    job = f'{{"model": "fake-base", "training_file": "f", "method": {method}}}'
    assert post(server, "/v1/fine_tuning/jobs", job.encode())[0] in (400, 404)


@pytest.mark.parametrize("depth", [*range(100, 1000, 90), *range(930, 1000, 6)])
def test_every_depth_of_nesting_is_answered(server: Serving, depth: int) -> None:
    nested = "[" * depth + "]" * depth
    for body in (
        f'{{"model": "fake-base", "messages": {nested}}}',
        f'{{"model": "fake-base", "messages": [{{"role": {nested}, "content": "a"}}]}}',
        f'{{"model": "fake-base", "messages": [{{"role": "user", "content": {nested}}}]}}',
        f'{{"model": "fake-base", "messages": [{{"role": "user", "content": "a", "x": {nested}}}]}}',
        nested,
    ):
        status, answer = post(server, CHAT, body.encode())
        assert status == 400, answer


def test_uploads_with_wrong_forms_get_a_400(server: Serving) -> None:
    file = part("file", b"data", '; filename="f"')
    purpose, end = part("purpose", b"user_data"), b"--b--\r\n"
    assert post(server, "/v1/files", file + purpose + end, FORM)[0] == 200
    for body, kind, message in (
        (json.dumps({"file": "a", "purpose": "batch"}).encode(), "application/json", "Content-Type must be multipart/form-data"),
        (b"purpose=batch", "application/x-www-form-urlencoded", "Content-Type must be multipart/form-data"),
        (file + purpose + end, None, "with the file as a part of the form, but it is missing"),
        (file + purpose + end, "multipart/form-data", "boundary"),
        (file + end, FORM, "'purpose'"),
        (purpose + end, FORM, "'file'"),
        (part("file", b"text") + purpose + end, FORM, "'file'"),
        (file + purpose + part("colour", b"red") + end, FORM, "colour"),
        (file + part("purpose", b"\xff\xff") + end, FORM, "is not one of"),
        (b"nonsense", FORM, ""),
        (b"", FORM, ""),
    ):  # fmt: skip
        status, answer = post(server, "/v1/files", body, kind)
        assert status == 400 and message in answer["error"]["message"], (answer, message)


HARMLESS = {
    "user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "prompt_cache_retention": "24h", "store": True,
    "metadata": {"a": "b"}, "service_tier": "auto", "seed": 3, "frequency_penalty": 0, "presence_penalty": 0.0,
    "logprobs": False, "top_logprobs": 0, "logit_bias": {}, "tool_choice": "none", "parallel_tool_calls": True,
    "modalities": ["text"], "response_format": {"type": "text"}, "stream": False, "n": 1, "stop": None,
    "tools": None, "functions": None, "reasoning_effort": None, "audio": None, "prediction": None,
}  # fmt: skip
UNKNOWN = {
    "tools": [{"type": "function", "function": {"name": "f"}}], "functions": [], "reasoning_effort": "low", "top_k": 3,
    "max_token": 3, "logit_bias": {"1": 2}, "tool_choice": "auto", "modalities": ["audio"], "top_logprobs": 2,
    "logprobs": True, "response_format": {"type": "json_object"}, "verbosity": "low", "temprature": 0.0,
}  # fmt: skip


def test_fields_that_change_nothing_are_accepted(server: Serving) -> None:
    client = server.client()
    plain = ask(client, "fake-base", "a").choices[0].message.content
    for field, value in HARMLESS.items():
        assert ask(client, "fake-base", "a", extra_body={field: value}).choices[0].message.content == plain, field
    message = plain_message(client)
    again = client.chat.completions.create(
        model="fake-base", messages=[{"role": "user", "content": "a"}, message, {"role": "user", "content": "a"}]
    )
    assert again.choices  # an answer can be sent back as it came


def plain_message(client: Any) -> dict[str, Any]:
    message: dict[str, Any] = ask(client, "fake-base", "a").choices[0].message.model_dump()
    return message


@pytest.mark.parametrize("field", UNKNOWN)
def test_fields_that_are_not_supported_are_named(server: Serving, field: str) -> None:
    client = server.client()
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, "fake-base", "a", extra_body={field: UNKNOWN[field]})
    assert field in error.value.message
    line = {"custom_id": "a", "method": "POST", "url": CHAT, "body": chat(**{field: UNKNOWN[field]})}
    good = {**line, "custom_id": "b", "body": chat()}
    done = batch_ended(client, batch(client, line, good))
    assert (done.request_counts.completed, done.request_counts.failed) == (1, 1)
    assert field in client.files.content(done.error_file_id).text


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "a", "mood": "good"},
        {"role": "user", "content": "a", "weight": 1},
        {"role": "robot", "content": "a"},
        {"role": "function", "content": "a"},
        {"content": "a"},
        {"role": "user"},
        {"role": "user", "content": [{"type": "text", "text": "a", "colour": "red"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]},
        {"role": "assistant", "content": "a", "refusal": "no"},
        "text",
        None,
    ],
)
def test_messages_that_are_not_understood_are_refused(server: Serving, message: Any) -> None:
    status, answer = post(server, CHAT, json.dumps(chat(messages=[message])).encode())
    assert status == 400 and answer["error"]["param"] == "messages.[0]", answer


def batch(client: Any, *rows: dict[str, Any], **more: Any) -> str:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return client.batches.create(
        input_file_id=upload(client, data, "batch"), endpoint=CHAT, completion_window="24h", **more
    ).id


def test_unknown_fields_of_batch_lines_are_named(server: Serving) -> None:
    client = server.client()
    row = {"custom_id": "a", "method": "POST", "url": CHAT, "body": chat()}
    failed = batch_ended(client, batch(client, row, {**row, "custom_id": "b", "priority": 1}))
    (error,) = failed.errors.data
    assert (failed.status, error.line, error.param) == ("failed", 2, "priority")
    assert error.message == "priority: is an unknown field"


def test_outputs_of_a_batch_expire_when_asked(server: Serving) -> None:
    client = server.client()
    row = {"custom_id": "a", "method": "POST", "url": CHAT, "body": chat()}
    expires = {"anchor": "created_at", "seconds": 3600}
    done = batch_ended(client, batch(client, row, extra_body={"output_expires_after": expires}))
    file = client.files.retrieve(done.output_file_id)
    assert file.expires_at == file.created_at + 3600


def job_of(client: Any, data: bytes, **more: Any) -> Any:
    return client.fine_tuning.jobs.create(model="fake-base", training_file=upload(client, data), **more)


def test_fields_of_training_rows_that_are_not_read_are_told(server: Serving) -> None:
    client = server.client()
    rows = [json.loads(line) for line in upper_case().splitlines()]
    for i, row in enumerate(rows):
        row["source"] = "wiki" if i > 1 else ""
        row["tools"] = []
    rows[4]["parallel_tool_calls"] = False
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    job = job_of(client, data, validation_file=upload(client, data))
    until(client, job.id, "succeeded")
    warned = [e.message for e in client.fine_tuning.jobs.list_events(job.id, limit=100) if e.level == "warn"][::-1]
    assert [re.sub(r" Fields that are read.*", "", text) for text in warned] == [
        f"The {name} file has the field {field} in {rows} row{'s' if rows > 1 else ''}, first in line {line}: it is not read."
        for name in ("training", "validation")
        for field, rows, line in (('"source"', 10, 3), ('"parallel_tool_calls"', 1, 5))
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "user", "content": "a"}, {"role": "robot", "content": "b"}]}, '"role" must be one of'),
        ({"messages": [{"role": "user", "content": "a", "mood": 1}, {"role": "assistant", "content": "b"}]}, "has `mood`"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}, {"role": "assistant", "content": "b"}]}, '"content" must be text'),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "refusal": "no"}]}, "has `refusal`"),
        ({"prompt": "a", "completion": "b"}, 'expected an object with a list "messages"'),
        ({"messages": [[[[]]]]}, "message 1"),
    ],
)  # fmt: skip
def test_training_rows_that_are_not_understood_are_refused(server: Serving, row: dict[str, Any], message: str) -> None:
    client = server.client()
    failed = until(client, job_of(client, upper_case() + json.dumps(row).encode()).id, "failed")
    assert failed.error.code == "invalid_file_format"
    assert "Line 13" in failed.error.message and message in failed.error.message


@pytest.mark.parametrize(
    "more",
    [
        {"epochs": 3},
        {"hyperparameters": {"epochs": 3}},
        {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epoch": 3}}}},
        {"method": {"type": "supervised", "supervised": {"lora_rank": 3}}},
        {"method": {"type": "dpo", "dpo": {}}},
        {"integrations": [{"type": "wandb", "wandb": {"project": "p", "colour": "red"}}]},
    ],
)
def test_unknown_fields_of_a_job_are_refused(server: Serving, more: dict[str, Any]) -> None:
    client = server.client()
    with pytest.raises(openai.BadRequestError):
        job_of(client, upper_case(), extra_body=more)


def test_nothing_of_this_was_an_error_of_the_server(server: Serving) -> None:
    """Runs last: it ends the server."""
    assert "Traceback" not in server.end()[1]
