"""`ftkit serve` when the machine lacks something, when a prompt is too long, and when a client leaves."""

from __future__ import annotations

import json
import os
import resource
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kill_at import mount
from serving import FAKE_MODELS, Serving, ask, batch_ended, openai, until, upload, upper_case

from ftkit.records import Prediction

WAITS = "The job waits because "


@pytest.fixture
def make(fake_site: Path, tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    """Return a function that prepares a server. The servers end with the test."""
    (tmp_path / "models.yaml").write_text(FAKE_MODELS)
    made: list[Serving] = []

    def prepare(data: Path = tmp_path / "data", **env: str) -> Serving:
        made.append(Serving(data, fake_site, ["--models", str(tmp_path / "models.yaml")], env))
        return made[-1]

    yield prepare
    for serving in made:
        serving.close()


def create_job(client: Any, data: bytes = upper_case(), **more: Any) -> str:
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 20}}}
    return client.fine_tuning.jobs.create(
        model="fake-base", training_file=upload(client, data), **{"method": method, **more}
    ).id


def lines(texts: list[str], **more: Any) -> bytes:
    rows = []
    for i, text in enumerate(texts):
        body = {"model": "fake-base", "temperature": 0, "messages": [{"role": "user", "content": text}]}
        rows.append({"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions", "body": body, **more})
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def create_batch(client: Any, data: bytes) -> str:
    return client.batches.create(
        input_file_id=upload(client, data, "batch"), endpoint="/v1/chat/completions", completion_window="24h"
    ).id


def messages(client: Any, job: str) -> list[str]:
    return [e.message for e in client.fine_tuning.jobs.list_events(job, limit=1000) if e.type == "message"][::-1]


# ---- shortages


class FileSizes:
    """No file of a process and of its children may grow: as on a full disk, and root is not needed."""

    def __init__(self, pid: int) -> None:
        self.pid, self.before = pid, resource.prlimit(pid, resource.RLIMIT_FSIZE)

    def fill(self) -> None:
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (1, self.before[1]))

    def free(self) -> None:
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, self.before)
        children = subprocess.run(["pgrep", "-P", str(self.pid)], capture_output=True, text=True).stdout.split()
        for child in map(int, children):
            resource.prlimit(child, resource.RLIMIT_FSIZE, self.before)


class FullDisk:
    """A file that takes all that is free on a disk."""

    def __init__(self, disk: Path) -> None:
        self.file = disk / "other"

    def fill(self) -> None:
        with open(self.file, "wb", buffering=0) as file:
            for size in (1 << 16, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    pass

    def free(self) -> None:
        self.file.unlink()


@pytest.mark.parametrize("kind", ["disk", "file sizes"])
def test_a_full_disk_delays_jobs_and_batches_and_fails_none(make: Any, tmp_path: Path, kind: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if kind == "disk":
        mount(["-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)])
    server = make(disk / "data", FAKES="slow=0.1").start()
    try:
        client = server.client()
        full = FullDisk(disk) if kind == "disk" else FileSizes(server.process.pid)
        large = upload(client, bytes(4 << 20), "user_data")
        job, waiting = create_job(client), create_job(client)
        batch = create_batch(client, lines([f"line {i}" for i in range(60)]))
        until(client, job, "running")
        time.sleep(0.5)
        full.fill()
        for call in (
            lambda: upload(client, upper_case()),
            lambda: upload(client, bytes(3 << 20)),  # kept in a temporary file while it is received
            lambda: client.uploads.create(bytes=3, filename="a", mime_type="text/jsonl", purpose="batch"),
            lambda: client.fine_tuning.jobs.cancel(waiting),
        ):
            with pytest.raises(openai.InternalServerError) as error:
                call()
            assert (error.value.status_code, error.value.code) == (507, "insufficient_storage")
            assert "Retry later" in error.value.message and error.value.type == "server_error"
        time.sleep(7)  # some attempts, also to start the training process again
        assert [client.fine_tuning.jobs.retrieve(id).status for id in (job, waiting)] == ["running", "queued"]
        assert client.batches.retrieve(batch).status == "in_progress"
        if kind == "disk":
            assert client.files.delete(large).deleted  # this makes room
        else:
            full.free()
        assert batch_ended(client, batch).request_counts.completed == 60
        until(client, job, "succeeded")
        until(client, waiting, "succeeded")
        steps = [e.data["step"] for e in client.fine_tuning.jobs.list_events(job, limit=100) if e.type == "metrics"]
        assert steps == list(range(20, 0, -1))
        told = messages(client, job)
        assert any(m.startswith(WAITS) for m in told), told
        assert told[-1] == "The job has successfully completed"
        known = {f.id for f in client.files.list()}
        assert {p.name for p in (server.data / "files").iterdir()} == known  # failed attempts left no files
        _, stderr = server.end()
        assert "Traceback" not in stderr and len(stderr) < 20_000, stderr
    finally:
        server.close()
        if kind == "disk":
            subprocess.run(["umount", disk], check=True)


def test_too_many_open_files_delay_jobs_and_fail_none(make: Any) -> None:
    server = make(FAKES="slow=0.1").start()
    client = server.client()
    first, second = create_job(client), create_job(client)
    until(client, first, "running")
    time.sleep(0.5)
    pid = server.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))  # no file can be opened, whatever is open already
    time.sleep(7)  # the job's log cannot be read, nor can its results be stored
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    until(client, first, "succeeded")
    until(client, second, "succeeded")
    assert any(m.startswith(f"{WAITS}this process has too many open files") for m in messages(client, first))
    _, stderr = server.end()
    assert "Traceback" not in stderr and len(stderr) < 20_000, stderr


def test_a_server_on_a_full_disk_does_not_start(make: Any, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount(["-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)])
    try:
        FullDisk(disk).fill()
        process = make(disk / "data").launch("--port", "0")
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 2 and "Traceback" not in stderr
        assert "the disk is full" in stderr or "No space left" in stderr or "cannot read or write" in stderr
    finally:
        subprocess.run(["umount", disk], check=True)


def test_errors_that_nobody_foresaw_do_not_end_the_threads(tmp_path: Path) -> None:
    from ftkit_serve.batches import Batches
    from ftkit_serve.files import Files
    from ftkit_serve.jobs import Jobs
    from ftkit_serve.store import Database

    class Failing(Database):
        calls = 0

        def with_status(self, kind: str, *statuses: str) -> Any:
            self.calls += kind in ("job", "batch")
            if 0 < self.calls <= 2:
                raise KeyError("what nobody foresaw")
            return super().with_status(kind, *statuses)

    database = Failing(tmp_path / "server.sqlite")
    files = Files(tmp_path, database)
    for thread in (Jobs(tmp_path, database, files, {}), Batches(tmp_path, database, files, None)):  # type: ignore[arg-type]
        database.calls = 0
        thread.start()
        end = time.monotonic() + 30
        while database.calls < 3:
            assert thread._thread.is_alive() and time.monotonic() < end
            thread.wake.set()
            time.sleep(0.05)
        thread.stop()
    database.close()


def test_a_shortage_is_found_behind_other_errors() -> None:
    import errno
    import sqlite3

    from ftkit_serve.shortage import concerns_disk, shortage_of

    def wrapped(cause: Exception, by: Exception, hidden: bool) -> Exception:
        try:
            try:
                raise cause
            except Exception:
                if hidden:
                    raise by from None
                raise by  # noqa: B904
        except Exception as error:
            return error

    for number in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        error = OSError(number, os.strerror(number))
        assert shortage_of(error) and concerns_disk(error) == (number in (errno.ENOSPC, errno.EDQUOT))
        assert shortage_of(wrapped(error, ValueError("x"), True)) == shortage_of(error)
        assert shortage_of(wrapped(error, ValueError("x"), False)) == shortage_of(error)
    assert shortage_of(MemoryError())
    for error in (OSError(errno.ENOENT, "x"), PermissionError(errno.EACCES, "x"), ValueError("disk is full"),
                  sqlite3.IntegrityError("x"), wrapped(BlockingIOError(errno.EAGAIN, "x"), ValueError("held"), True)):  # fmt: skip
        assert shortage_of(error) is None
    with pytest.raises(sqlite3.OperationalError) as cannot_open:
        sqlite3.connect("/nothing/here")
    assert shortage_of(cannot_open.value) and concerns_disk(cannot_open.value)


def test_a_transaction_that_cannot_be_stored_leaves_the_database_usable(tmp_path: Path) -> None:
    import sqlite3

    from ftkit_serve.store import Database

    database = Database(tmp_path / "server.sqlite")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        with pytest.raises(sqlite3.OperationalError), database.transaction():
            database.add("job", {"id": "a", "status": "queued", "text": "x" * 100_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with database.transaction():
        database.add("job", {"id": "b", "status": "queued"})
    assert [doc["id"] for doc in database.all("job")] == ["b"]
    database.close()


# ---- prompts over the context, clients that leave, answers


def test_a_line_over_the_context_fails_alone(make: Any, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(FAKE_MODELS.replace("batch_size: 3", "batch_size: 4, context: 20"))
    client = make().start().client()
    long = [0, 5, 6, 11]  # also two of one group, and the last
    texts = ["word " * 30 if i in long else f"line {i}" for i in range(12)]
    done = batch_ended(client, create_batch(client, lines(texts)))
    assert (done.request_counts.completed, done.request_counts.failed) == (8, 4)
    good = [json.loads(line) for line in client.files.content(done.output_file_id).text.splitlines()]
    bad = [json.loads(line) for line in client.files.content(done.error_file_id).text.splitlines()]
    assert [int(row["custom_id"]) for row in bad] == long
    for row in bad:
        error = row["response"]["body"]["error"]
        assert (row["response"]["status_code"], error["code"]) == (400, "context_length_exceeded")
    for row in good:
        text = row["response"]["body"]["choices"][0]["message"]["content"]
        assert text.startswith(texts[int(row["custom_id"])])
    for options in ({}, {"temperature": 1, "n": 2}, {"stream": True}):
        with pytest.raises(openai.BadRequestError) as error:
            ask(client, "fake-base", "word " * 30, **options)
        assert error.value.code == "context_length_exceeded" and error.value.param == "messages"


def test_chats_of_clients_that_left_are_not_answered(make: Any) -> None:
    server = make(FAKES="slow=1").start()
    client = server.client()
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    body = json.dumps({"model": "fake-base", "messages": [{"role": "user", "content": "left"}]})
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, client, "fake-base", "stays")
        time.sleep(0.3)
        sockets = [socket.create_connection((host, int(port))) for _ in range(15)]
        for connection in sockets:
            connection.sendall(request)
        time.sleep(0.3)
        for connection in sockets:
            connection.close()
        began = time.monotonic()
        assert ask(client, "fake-base", "later").choices
        assert time.monotonic() - began < 6  # with the others before it: 15 seconds more
        assert first.result().choices
    assert "Traceback" not in server.end()[1]


def test_fewer_answers_than_n_are_an_error_that_says_how() -> None:
    from ftkit_serve.chat import completion
    from ftkit_serve.errors import ApiError
    from ftkit_serve.wire import Chat

    def chat(**more: Any) -> Chat:
        return Chat.model_validate({"model": "m", "messages": [{"role": "user", "content": "a"}], **more})

    one = [Prediction("prompt", "text")]
    assert len(completion(chat(temperature=0, n=3), one)["choices"]) == 3
    with pytest.raises(ApiError, match="Send n=1") as error:
        completion(chat(n=3), one)
    assert error.value.status == 400 and error.value.body["error"]["param"] == "n"


# ---- what is stored


def test_only_the_user_of_the_server_can_read_its_files(make: Any, tmp_path: Path) -> None:
    old = tmp_path / "data" / "files"
    old.mkdir(parents=True)
    (tmp_path / "data" / "server.sqlite").touch(0o644)
    old.chmod(0o755)
    mask = os.umask(0o000)
    try:
        server = make().start()
    finally:
        os.umask(mask)
    client = server.client()
    job = create_job(client)
    until(client, job, "running", "succeeded")
    open_to_others = []
    for path in server.data.rglob("*"):  # while the training process writes
        if path.lstat().st_mode & 0o077:
            open_to_others.append(path)
    until(client, job, "succeeded")
    batch_ended(client, create_batch(client, lines(["a", "b"])))
    part = client.uploads.create(bytes=6, filename="a", mime_type="text/jsonl", purpose="batch")
    client.uploads.parts.create(part.id, data=b"abc")
    found = list(server.data.rglob("*"))
    assert len(found) > 15
    open_to_others += [
        path for path in found if stat.S_IMODE(path.stat().st_mode) != (0o700 if path.is_dir() else 0o600)
    ]
    assert not open_to_others
