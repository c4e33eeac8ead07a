"""`ftkit serve` with a real model: a job trains the embedded model, and the tuned model answers."""

from __future__ import annotations

import base64
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Serving, ask, batch_ended, chats, disagreements, openai, until, upload

pytest.importorskip("trl", reason="trl is not installed")

QUESTION = "Which colour is the sky over {}?"
PLACES = ("Rome", "Paris", "Oslo", "Bern", "Cairo", "Lima", "Quito", "Tunis", "Delhi", "Seoul", "Hanoi", "Accra")


@pytest.fixture(scope="module")
def server(fake_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    serving = Serving(tmp_path_factory.mktemp("serve") / "data", fake_site)
    yield serving.start()
    serving.close()


@pytest.fixture(scope="module")
def tuned(server: Serving) -> Any:
    """A short job whose server is killed while it trains. The job resumes from its checkpoint."""
    client = server.client()
    rows = chats([(QUESTION.format(place), "The sky is green.") for place in PLACES])
    job = client.fine_tuning.jobs.create(
        model="ftkit-tiny",
        training_file=upload(client, rows),
        validation_file=upload(client, chats([(QUESTION.format("Sofia"), "The sky is green.")])),
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 10, "batch_size": 2, "learning_rate_multiplier": 1}},
        },
        seed=3,
    )
    until(client, job.id, "running")
    checkpoints = server.data / "jobs" / job.id / ".work" / "checkpoints"
    end = time.monotonic() + 120
    while not list(checkpoints.glob("checkpoint-25/ftkit-complete")):
        assert time.monotonic() < end and client.fine_tuning.jobs.retrieve(job.id).status == "running"
        time.sleep(0.1)
    server.end(signal.SIGKILL)
    client = server.start().client()
    return until(client, job.id, "succeeded", seconds=120)


def test_a_killed_server_resumes_from_the_checkpoint(server: Serving, tuned: Any) -> None:
    client = server.client()
    events = list(client.fine_tuning.jobs.list_events(tuned.id, limit=100))[::-1]
    steps = [e.data["step"] for e in events if e.type == "metrics"]
    assert steps == list(range(1, 61))
    losses = [e.data["train_loss"] for e in events if e.type == "metrics"]
    assert losses[-1] < losses[0] / 4
    table = base64.b64decode(client.files.content(tuned.result_files[0]).read()).decode().splitlines()
    assert [row.split(",")[0] for row in table[1:]] == [str(i) for i in range(1, 61)]
    assert 0 < float(table[-1].split(",")[3]) < losses[0] / 4  # the validation loss has fallen too
    assert not (server.data / "jobs" / tuned.id / ".work" / "checkpoints").exists()
    assert tuned.trained_tokens > 10 * len(PLACES) * 10


def test_the_tuned_model_gives_the_trained_answer(server: Serving, tuned: Any) -> None:
    client = server.client()
    question = QUESTION.format("Madrid")
    before, after = (
        ask(client, name, question, max_completion_tokens=16) for name in ("ftkit-tiny", tuned.fine_tuned_model)
    )
    assert after.choices[0].message.content == "The sky is green." and after.choices[0].finish_reason == "stop"
    assert before.choices[0].message.content != after.choices[0].message.content
    assert 0 < after.usage.completion_tokens < 16 and after.usage.prompt_tokens == before.usage.prompt_tokens
    cut = ask(client, tuned.fine_tuned_model, question, max_tokens=2)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 2


def test_sampling_repeats_with_its_seed(server: Serving, tuned: Any) -> None:
    client = server.client()

    def sample(seed: int) -> list[str]:
        answer = ask(client, "ftkit-tiny", "hi", temperature=1.2, seed=seed, n=2, max_completion_tokens=12)
        return [choice.message.content for choice in answer.choices]

    assert sample(1) == sample(1) != sample(2)


def test_checkpoints_of_earlier_epochs_can_be_used(server: Serving, tuned: Any) -> None:
    client = server.client()
    found = {c.step_number: c for c in client.fine_tuning.jobs.checkpoints.list(tuned.id)}
    assert list(found) == [60, 54, 48]
    assert found[60].fine_tuned_model_checkpoint == tuned.fine_tuned_model
    assert found[48].fine_tuned_model_checkpoint == f"{tuned.fine_tuned_model}:ckpt-step-48"
    answer = ask(client, found[48].fine_tuned_model_checkpoint, QUESTION.format("Madrid"), max_completion_tokens=16)
    assert "sky" in answer.choices[0].message.content


def test_a_prompt_that_is_too_long_is_rejected(server: Serving, tuned: Any) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        ask(server.client(), tuned.fine_tuned_model, "word " * 3000, max_completion_tokens=8)
    assert error.value.code == "context_length_exceeded"


def test_a_batch_gives_the_answers_of_single_requests(server: Serving, tuned: Any) -> None:
    client = server.client()
    bodies = [
        {"model": tuned.fine_tuned_model, "temperature": 0, "max_completion_tokens": 16,
         "messages": [{"role": "user", "content": QUESTION.format(place)}]}
        for place in PLACES
    ]  # fmt: skip
    rows = [{"custom_id": p, "method": "POST", "url": "/v1/chat/completions", "body": b} for p, b in zip(PLACES, bodies, strict=True)]  # fmt: skip
    file = upload(client, "".join(json.dumps(row) + "\n" for row in rows).encode(), "batch")
    batch = client.batches.create(input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h")
    ended = batch_ended(client, batch.id)
    answers = [json.loads(line) for line in client.files.content(ended.output_file_id).text.splitlines()]
    texts = [a["response"]["body"]["choices"][0]["message"]["content"] for a in answers]
    singly = [client.chat.completions.create(**body).choices[0].message.content for body in bodies]
    assert texts == singly


def test_a_batch_line_that_is_too_long_fails_alone(server: Serving, tuned: Any) -> None:
    client = server.client()
    texts = [QUESTION.format(PLACES[0]), "word " * 3000, QUESTION.format(PLACES[1]), QUESTION.format(PLACES[2])]
    rows = [
        {"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": tuned.fine_tuned_model, "temperature": 0, "max_completion_tokens": 8,
                  "messages": [{"role": "user", "content": text}]}}
        for i, text in enumerate(texts)
    ]  # fmt: skip
    file = upload(client, "".join(json.dumps(row) + "\n" for row in rows).encode(), "batch")
    batch = client.batches.create(input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h")
    ended = batch_ended(client, batch.id)
    answers = [json.loads(line) for line in client.files.content(ended.output_file_id).text.splitlines()]
    assert [row["custom_id"] for row in answers] == ["0", "2", "3"]
    for row in answers:
        single = client.chat.completions.create(**rows[int(row["custom_id"])]["body"])  # type: ignore[arg-type]
        assert row["response"]["body"]["choices"][0]["message"]["content"] == single.choices[0].message.content
    (failed,) = [json.loads(line) for line in client.files.content(ended.error_file_id).text.splitlines()]
    assert failed["custom_id"] == "1"
    assert failed["response"]["body"]["error"]["code"] == "context_length_exceeded"


def test_only_the_user_of_the_server_can_read_what_training_wrote(server: Serving, tuned: Any) -> None:
    found = list(server.data.rglob("*"))
    assert len(found) > 40 and not [path for path in found if path.stat().st_mode & 0o077]


def test_every_response_agrees_with_the_api_description(server: Serving, tuned: Any) -> None:
    """Runs last: checks all responses that the other tests of this file got."""
    assert server.exchanges
    assert not disagreements(server.exchanges)
