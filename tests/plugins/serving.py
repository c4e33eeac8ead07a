"""`ftkit serve` in a separate process, the official client, and a record of requests and responses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai_spec
import pytest

openai = pytest.importorskip("openai", reason="the openai client is not installed")
pytest.importorskip("fastapi", reason="fastapi is not installed")

# The fake backend of tests/fakes.py as a model: an "epoch" is one of its steps, the tuned model answers in upper case.
FAKE_MODELS = """
fake-base:
  backend: {plugin: fake, skill: 1.0, batch_size: 3}
  options: {n_epochs: steps}
  shutdown_date: 2031-01-31
"""


@dataclass
class Exchange:
    """One request and its response."""

    method: str
    path: str  # with the query; starts with /v1
    sent: bytes
    sent_type: str
    status: int
    received: bytes
    received_type: str
    headers: dict[str, str]


@dataclass
class Serving:
    """One server with its data folder. It can be stopped, killed and started again."""

    data: Path
    site: Path  # the fake plugins as an installed distribution
    options: Sequence[str] = ()
    env: dict[str, str] = field(default_factory=dict)
    before: Callable[[], None] | None = None  # called in the new process: sets its limits
    exchanges: list[Exchange] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None
    url: str = ""

    def launch(self, *options: str) -> subprocess.Popen[str]:
        """Start the command and return at once."""
        line = [sys.executable, "-c", "from ftkit.cli.main import main; main()", "serve", "--data", str(self.data)]
        return subprocess.Popen(
            [*line, *self.options, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=self.before,
            env={**os.environ, "PYTHONPATH": str(self.site), "COLUMNS": "120", **self.env},
        )

    def launch_runs(self, *arguments: object) -> subprocess.Popen[str]:
        """Start the command for finished runs, without a data folder, and return at once."""
        line = [sys.executable, "-c", "from ftkit.cli.main import main; main()", "serve", "--port", "0"]
        return subprocess.Popen(
            [*line, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(self.site), "COLUMNS": "120", **self.env},
        )

    def start(self, *options: str) -> Serving:
        self.process = self.launch("--port", "0", *options)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        self.url = line.split()[-1]
        return self

    def end(self, how: int = signal.SIGINT) -> tuple[int, str]:
        """Send a signal, wait, and return the exit status and the text on standard error."""
        assert self.process is not None
        self.process.send_signal(how)
        _, stderr = self.process.communicate(timeout=20)
        status, self.process = self.process.returncode, None
        return status, stderr

    def close(self) -> None:
        if self.process is not None:
            self.end(signal.SIGKILL)

    def client(self, key: str = "any", **options: Any) -> Any:
        """Return the official client. Its requests and responses are recorded."""

        def record(response: Any) -> None:
            request = response.request
            self.exchanges.append(
                Exchange(
                    request.method,
                    request.url.raw_path.decode(),
                    request.read(),
                    request.headers.get("content-type", ""),
                    response.status_code,
                    response.read(),
                    response.headers.get("content-type", ""),
                    dict(response.headers),
                )
            )

        http = openai.DefaultHttpxClient(event_hooks={"response": [record]})
        return openai.OpenAI(base_url=self.url, api_key=key, http_client=http, **{"max_retries": 0, **options})


def disagreements(exchanges: Sequence[Exchange]) -> list[str]:
    """Return how responses differ from OpenAI's API description. Skips the test if there is no description."""
    spec = openai_spec.load()
    found = []
    for e in exchanges:
        try:
            if e.received_type.startswith("text/event-stream"):
                for event in sse(e.received):
                    spec.validate_schema("CreateChatCompletionStreamResponse", event)
            else:
                spec.validate_response(e.method, e.path, e.status, e.received, e.received_type)
        except openai_spec.Disagrees as error:
            found.append(str(error))
        if not e.headers.get("x-request-id", "").startswith("req_"):
            found.append(f"{e.method} {e.path}: no request id")
    return found


def sse(body: bytes) -> list[Any]:
    """Return the events of a stream. The stream must end with [DONE]."""
    parts = body.decode().split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""], parts[-2:]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


def chats(pairs: Sequence[tuple[str, str]]) -> bytes:
    """Return a training file of one-turn chats."""
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def upper_case(count: int = 12) -> bytes:
    return chats([(f"row {i} says hello", f"ROW {i} SAYS HELLO") for i in range(count)])


def upload(client: Any, data: bytes, purpose: str = "fine-tune", name: str = "rows.jsonl") -> str:
    return client.files.create(file=(name, data), purpose=purpose).id


def until(client: Any, job: str, *statuses: str, seconds: float = 60) -> Any:
    """Wait until a job has one of these statuses. The requests are not recorded."""
    plain = openai.OpenAI(base_url=client.base_url, api_key=client.api_key)
    end = time.monotonic() + seconds
    while True:
        found = plain.fine_tuning.jobs.retrieve(job)
        if found.status in statuses:
            return found
        assert found.status not in ("failed", "succeeded", "cancelled"), (found.status, found.error)
        assert time.monotonic() < end, f"the job is still {found.status}"
        time.sleep(0.05)


def batch_ended(client: Any, batch: str, seconds: float = 60) -> Any:
    """Wait until a batch job ended. The requests are not recorded."""
    plain = openai.OpenAI(base_url=client.base_url, api_key=client.api_key)
    end = time.monotonic() + seconds
    while True:
        found = plain.batches.retrieve(batch)
        if found.status in ("completed", "failed", "cancelled"):
            return found
        assert time.monotonic() < end, f"the batch is still {found.status}"
        time.sleep(0.05)


def ask(client: Any, model: str, text: str, **options: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model=model, messages=messages, **{"temperature": 0, **options})
