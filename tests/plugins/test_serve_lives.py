"""`ftkit serve` over its lifetime: the queue, cancel, pause, resume, kills, restarts, keys, ports and folders."""

from __future__ import annotations

import json
import random
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving import FAKE_MODELS, Serving, ask, batch_ended, disagreements, openai, until, upload, upper_case

SLOW = {"FAKES": "slow=0.1"}  # seconds per training step and per batch of answers


@pytest.fixture
def make(fake_site: Path, tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    """Return a function that prepares a server on one data folder. The servers end with the test."""
    (tmp_path / "models.yaml").write_text(FAKE_MODELS)
    made: list[Serving] = []

    def prepare(*options: str, **env: str) -> Serving:
        made.append(Serving(tmp_path / "data", fake_site, ["--models", str(tmp_path / "models.yaml"), *options], env))
        return made[-1]

    yield prepare
    for serving in made:
        serving.close()


def create(client: Any, steps: int, **more: Any) -> str:
    return client.fine_tuning.jobs.create(
        model="fake-base",
        training_file=upload(client, upper_case()),
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": steps}}},
        **more,
    ).id


def steps_recorded(client: Any, job: str) -> list[int]:
    return [e.data["step"] for e in client.fine_tuning.jobs.list_events(job, limit=100) if e.type == "metrics"][::-1]


def reaches(client: Any, job: str, step: int) -> None:
    end = time.monotonic() + 30
    while len(steps_recorded(client, job)) < step:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_one_job_trains_at_a_time_and_may_be_paused_resumed_and_cancelled(make: Any) -> None:
    server = make(**SLOW).start()
    client = server.client()
    jobs = client.fine_tuning.jobs
    first, second, third = create(client, 30), create(client, 2), create(client, 2)
    running = until(client, first, "running")
    reaches(client, first, 3)
    assert jobs.retrieve(first).estimated_finish >= running.created_at
    assert [jobs.retrieve(job).status for job in (second, third)] == ["queued", "queued"]

    assert jobs.cancel(third).status == "cancelled"  # while it waits
    assert jobs.pause(first).status == "paused"  # while it trains: the next job starts
    until(client, second, "succeeded")
    steps = steps_recorded(client, first)
    assert jobs.retrieve(first).status == "paused" and len(steps) < 30
    with pytest.raises(openai.BadRequestError, match="paused"):
        jobs.pause(first)

    assert jobs.resume(first).status == "queued"
    reaches(client, first, len(steps) + 2)
    steps = steps_recorded(client, first)
    assert steps == list(range(1, len(steps) + 1))  # it resumed, and no step was recorded twice
    assert jobs.cancel(first).status == "cancelled"  # while it trains
    time.sleep(0.5)
    assert steps_recorded(client, first)[: len(steps)] == steps and len(steps_recorded(client, first)) < 30
    for change in (jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(openai.BadRequestError, match="cancelled"):
            change(first)
    assert not (server.data / "jobs" / first / ".work").exists()
    assert [m.id for m in client.models.list() if m.id.endswith(first[-8:])] == []
    assert not disagreements(server.exchanges)


def kept_answers(journal: Path) -> set[str]:
    """Return the ids of the answers that the killed server had written."""
    whole = journal.read_bytes().rpartition(b"\n")[0].splitlines() if journal.exists() else []
    return {row["id"] for line in whole for row in json.loads(line)["rows"].values()}


def test_jobs_and_batches_survive_kills_of_the_server(make: Any) -> None:
    """A server that is killed at random moments resumes each time, with the results of an uninterrupted run."""
    seed = random.randrange(1000)
    print("seed", seed)
    chance = random.Random(seed)
    server = make(**SLOW).start()
    client = server.client()
    job, waiting = create(client, 25, metadata={"k": "v"}), create(client, 2)
    rows = [
        {"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": "fake-base", "temperature": 0, "messages": [{"role": "user", "content": f"line {i}"}]}}
        for i in range(45)
    ]  # fmt: skip
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    batch = client.batches.create(
        input_file_id=upload(client, data, "batch"), endpoint="/v1/chat/completions", completion_window="24h"
    )
    answered: set[str] = set()
    for _ in range(3):
        time.sleep(chance.uniform(0.1, 1.2))
        server.end(signal.SIGKILL)
        answered |= kept_answers(server.data / "batches" / f"{batch.id}.jsonl")
        client = server.start().client()
        assert client.fine_tuning.jobs.retrieve(job).metadata == {"k": "v"}
    done = until(client, job, "succeeded")
    assert steps_recorded(client, job) == list(range(1, 26))
    messages = [e.message for e in client.fine_tuning.jobs.list_events(job, limit=100) if e.type == "message"]
    assert len(messages) == len(set(messages)) == 7
    assert len([m for m in client.models.list() if m.id == done.fine_tuned_model]) == 1
    until(client, waiting, "succeeded")
    ended = batch_ended(client, batch.id)
    assert (ended.status, ended.request_counts.completed) == ("completed", 45)
    answers = [json.loads(line) for line in client.files.content(ended.output_file_id).text.splitlines()]
    assert [a["custom_id"] for a in answers] == [str(i) for i in range(45)]
    assert answered <= {a["id"] for a in answers}  # what was answered before a kill is not generated again
    again = client.batches.create(
        input_file_id=batch.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    uninterrupted = [
        json.loads(line)
        for line in client.files.content(batch_ended(client, again.id).output_file_id).text.splitlines()
    ]
    texts = [[a["response"]["body"]["choices"] for a in found] for found in (answers, uninterrupted)]
    assert texts[0] == texts[1]


def test_a_batch_can_be_cancelled(make: Any) -> None:
    client = make(**SLOW).start().client()
    row = {"method": "POST", "url": "/v1/chat/completions"}
    body = {"model": "fake-base", "temperature": 0, "messages": [{"role": "user", "content": "a"}]}
    data = "".join(json.dumps({"custom_id": str(i), **row, "body": body}) + "\n" for i in range(300)).encode()
    batch = client.batches.create(
        input_file_id=upload(client, data, "batch"), endpoint="/v1/chat/completions", completion_window="24h"
    )
    time.sleep(0.5)
    assert ask(client, "fake-base", "between").choices  # a single request does not wait for the end of the batch job
    assert client.batches.cancel(batch.id).status == "cancelling"
    ended = batch_ended(client, batch.id)
    assert ended.status == "cancelled" and 0 < ended.request_counts.completed < 300
    kept = client.files.content(ended.output_file_id).text.splitlines()
    assert len(kept) == ended.request_counts.completed


def test_answers_do_not_depend_on_other_requests(make: Any) -> None:
    """The fake's text depends on its batch, as a 4-bit model's does. Many requests at once delay only each other."""
    client = make(FAKES="slow=0.02").start().client()

    def answer(i: int) -> str:
        return ask(client, "fake-base", f"question {i % 5}").choices[0].message.content

    alone = [answer(i) for i in range(5)]
    with ThreadPoolExecutor(60) as pool:
        answers = [pool.submit(answer, i) for i in range(60)]
        client.models.list()  # is answered meanwhile
        assert not all(future.done() for future in answers)
        together = [future.result() for future in answers]
    assert together == alone * 12


def test_ctrl_c_stops_it_and_a_running_job_resumes_later(make: Any) -> None:
    server = make(**SLOW).start()
    client = server.client()
    job = create(client, 20)
    reaches(client, job, 2)
    status, stderr = server.end(signal.SIGINT)
    assert status == 0 and "resume when it is started again" in stderr and "Traceback" not in stderr
    client = server.start().client()
    until(client, job, "succeeded")
    assert steps_recorded(client, job) == list(range(1, 21))


def test_a_trainer_that_raises_fails_only_its_own_job(make: Any) -> None:
    server = make(FAKES="train=crash").start()
    client = server.client()
    job = create(client, 5)
    failed = until(client, job, "failed")
    assert failed.error.code == "training_failed" and "the fake trainer broke" in failed.error.message
    server.end()
    server.env["FAKES"] = ""
    client = server.start().client()
    until(client, create(client, 1), "succeeded")


def test_only_the_key_gives_access(make: Any, tmp_path: Path) -> None:
    secret = "sk-test-4f9a-very-secret"
    server = make("--api-key-env", "SERVE_KEY", SERVE_KEY=secret).start()
    server.client(key=secret).models.list()
    for wrong in ("sk-wrong", secret + "x"):
        with pytest.raises(openai.AuthenticationError) as error:
            server.client(key=wrong).models.list()
        assert secret not in str(error.value) and wrong not in str(error.value)
    create(server.client(key=secret), 1)
    assert not disagreements(server.exchanges)
    _, stderr = server.end()
    assert secret not in stderr
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]


def test_mistakes_are_one_message(make: Any, tmp_path: Path) -> None:
    def error_of(serving: Serving, *options: str) -> str:
        process = serving.launch(*options)
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 2 and "Traceback" not in stderr
        return stderr

    server = make().start()
    assert "another server uses" in error_of(server, "--port", "0")
    other = make()
    other.data = tmp_path / "other"
    port = server.url.split(":")[-1].removesuffix("/v1")
    assert f"cannot listen on 127.0.0.1:{port}: another program listens there" in error_of(other, "--port", port)
    assert "NO_SUCH_KEY is not set" in error_of(other, "--api-key-env", "NO_SUCH_KEY")
    (tmp_path / "file").write_text("")
    (tmp_path / "models.yaml").write_text("m: {backend: {plugin: fake, stepz: 3}}")
    assert "m: fake: stepz" in error_of(other, "--port", "0")
    (tmp_path / "models.yaml").write_text("m: {backend: {plugin: fakes}}")
    assert "did you mean 'fake'" in error_of(other, "--port", "0")
    (tmp_path / "models.yaml").write_text("m: {backend: {plugin: fake}}")
    assert "fake has no option 'num_epochs'" in error_of(other, "--port", "0")


def test_the_base_models_are_printed_as_json(make: Any) -> None:
    server = make()
    process = server.launch("--print-models")
    printed, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, "")
    assert json.loads(printed) == {
        "fake-base": {
            "backend": {"plugin": "fake", "skill": 1.0, "batch_size": 3},
            "options": {"n_epochs": "steps"},
            "max_tokens": 512,
            "shutdown_date": "2031-01-31",
        }
    }
    assert not server.data.exists()


def test_the_models_file_of_the_docs_is_read(tmp_path: Path) -> None:
    from ftkit_serve.models import read_models, resolve_hyperparameters, training_backend

    page = (Path(__file__).parents[2] / "docs" / "serve.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "models.yaml").write_text(block)
    model = read_models(tmp_path / "models.yaml")["llama-1b"]
    assert model.max_tokens == 512
    found = resolve_hyperparameters(model, {"learning_rate_multiplier": 0.5}, rows=40)
    assert found == {"n_epochs": 3, "batch_size": 8, "learning_rate_multiplier": 0.5}
    entry = training_backend(model, found, rows=40)
    assert (entry["num_epochs"], entry["micro_batch_size"], entry["learning_rate"]) == (3, 8, 1e-4)
    assert entry["snapshots"] == [5, 10]
    epochs = {rows: resolve_hyperparameters(model, {}, rows)["n_epochs"] for rows in (10, 33, 34, 8333, 8334, 30_000)}
    assert epochs == {10: 10, 33: 4, 34: 3, 8333: 3, 8334: 2, 30_000: 1}


def test_a_server_of_ones_own_ends_with_its_owner(fake_site: Path, tmp_path: Path) -> None:
    from ftkit_openai._local import local_server

    with local_server(tmp_path / "data") as url:
        names = [m.id for m in openai.OpenAI(base_url=url, api_key="x").models.list()]
        assert names == ["ftkit-tiny"]
    port = int(url.split(":")[-1].removesuffix("/v1"))
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        pass
    with local_server(tmp_path / "data") as again:  # the folder is free again
        assert again.startswith("http://127.0.0.1:")


def test_a_local_server_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, time; from pathlib import Path; from ftkit_openai._local import local_server\n"
        "with local_server(Path(sys.argv[1])) as url: print(url, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "data"], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        parent.kill()
    port = int(url.split(":")[-1].removesuffix("/v1"))
    end = time.monotonic() + 15
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            break
        assert time.monotonic() < end, "it outlived its parent"
        time.sleep(0.1)


@pytest.mark.parametrize("slow", [2.0, 6.0])
def test_chats_that_wait_get_one_error_when_the_server_stops(make: Any, slow: float) -> None:
    """With a slow model the server also gives up the chat whose answer is being generated."""
    server = make(FAKES=f"slow={slow}").start()
    client = server.client()

    def chat(number: int) -> str:
        try:
            return str(ask(client, "fake-base", f"row {number}").choices[0].message.content)
        except openai.InternalServerError as error:
            return f"{error.status_code} {error.body['message']}"

    with ThreadPoolExecutor(12) as pool:
        chats = [pool.submit(chat, number) for number in range(12)]
        end = time.monotonic() + 20
        while sum(f.running() for f in chats) < 12 and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(2.0)  # until all of them wait for the model
        status, stderr = server.end(signal.SIGINT)
        answers = [f.result() for f in chats]
    rejected = [a for a in answers if a == "503 The server is stopping: retry when it runs again."]
    assert status == 0 and len(rejected) >= 8
    assert all(a in rejected or a.startswith("row ") for a in answers)
    assert "Traceback" not in stderr and len(stderr.splitlines()) <= 2, stderr
