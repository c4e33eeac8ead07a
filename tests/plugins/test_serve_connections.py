"""`ftkit serve` and clients that connect and do not send, or do not read: real sockets, few file descriptors."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import FAKE_MODELS, Serving, ask, batch_ended, until, upload, upper_case

FILES = 256  # file descriptors of the server
SLOW = 400  # clients that do not send
HEADER = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
PARTS = {
    "nothing": b"",
    "half a header": HEADER,
    "half a body": HEADER + b'Content-Length: 1000\r\n\r\n{"model": ',
    "half a chunk": HEADER + b'Transfer-Encoding: chunked\r\n\r\n400\r\n{"model": ',
    "half an upload": HEADER.replace(b"chat/completions", b"files").replace(b"application/json", b"multipart/form-data; boundary=b")
    + b'Content-Length: 3000000\r\n\r\n--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + bytes(1_200_000),
}  # fmt: skip


@pytest.fixture
def server(fake_site: Path, tmp_path: Path) -> Iterator[Serving]:
    """A server that may open few files."""
    (tmp_path / "models.yaml").write_text(FAKE_MODELS)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))

    serving = Serving(tmp_path / "data", fake_site, ["--models", str(tmp_path / "models.yaml")], before=limit)
    yield serving.start()
    serving.close()


def address(server: Serving) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    return host, int(port)


def answer(connection: socket.socket, seconds: float) -> bytes:
    """Return all that the server sends until it closes the connection."""
    connection.settimeout(seconds)
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(1 << 16):
            received += data
    return received


def error_in(response: bytes) -> tuple[int, str | None]:
    """Return the status and the code of an error response."""
    head, body = response.split(b"\r\n\r\n", 1)
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize("part", PARTS)
def test_clients_that_do_not_send_do_not_block_the_others(server: Serving, part: str) -> None:
    client = server.client(timeout=10)
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}}
    slow: list[socket.socket] = []
    longest = 0.0
    count = SLOW if len(PARTS[part]) < 1000 else 100
    try:
        for i in range(count):
            slow.append(socket.create_connection(address(server), timeout=10))
            with contextlib.suppress(OSError):  # closed already, for a newer one
                slow[-1].sendall(PARTS[part])
            if i % 40 == 0:
                began = time.monotonic()
                assert client.models.list().data
                longest = max(longest, time.monotonic() - began)
        began = time.monotonic()
        assert ask(client, "fake-base", "hello").choices
        job = client.fine_tuning.jobs.create(
            model="fake-base", training_file=upload(client, upper_case()), method=method
        ).id
        row = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions"}
        row["body"] = {"model": "fake-base", "messages": [{"role": "user", "content": "a"}]}  # type: ignore[assignment]
        batch = client.batches.create(
            input_file_id=upload(client, json.dumps(row).encode(), "batch"),
            endpoint="/v1/chat/completions",
            completion_window="24h",
        )
        longest = max(longest, (time.monotonic() - began) / 5)
        until(client, job, "succeeded")
        assert batch_ended(client, batch.id).status == "completed"
        assert longest < 3
    finally:
        for connection in slow:
            connection.close()
    _, stderr = server.end()
    assert len(stderr) < 20_000 and "Traceback" not in stderr, stderr[:3000]


def test_requests_that_do_not_become_complete_are_closed(server: Serving, monkeypatch: Any) -> None:
    """Also those whose client sends a byte now and then."""
    began = time.monotonic()
    waiting = {part: socket.create_connection(address(server)) for part in PARTS}
    for part, connection in waiting.items():
        connection.sendall(PARTS[part])
    trickling = socket.create_connection(address(server))
    trickling.sendall(HEADER)
    trickle = [b"X-A: b\r\n"] * 13
    for data in trickle:
        with contextlib.suppress(OSError):
            trickling.sendall(data)
        time.sleep(1)
    assert error_in(answer(trickling, 1)) == (408, "request_timeout")
    assert answer(waiting["nothing"], 1) == b""
    assert error_in(answer(waiting["half a header"], 1)) == (408, "request_timeout")
    for part in ("half a body", "half a chunk", "half an upload"):
        assert error_in(answer(waiting[part], 35)) == (408, "request_timeout")
    assert time.monotonic() - began < 40
    server.client().models.list()
    assert "Traceback" not in server.end()[1]


@pytest.mark.parametrize("part", PARTS)
def test_the_server_stops_at_once_beside_clients_that_do_not_send(server: Serving, part: str) -> None:
    with socket.create_connection(address(server)) as connection:
        connection.sendall(PARTS[part])
        time.sleep(0.5)
        began = time.monotonic()
        status, stderr = server.end()
        assert status == 0 and time.monotonic() - began < 3
        assert "Traceback" not in stderr and len(stderr.splitlines()) == 1, stderr
        if "body" in part:
            assert error_in(answer(connection, 1)) == (503, "server_error")


def test_a_client_that_does_not_read_its_responses_is_closed_for_a_new_one(server: Serving) -> None:
    client = server.client(timeout=10)
    large = upload(client, bytes(20 << 20), "user_data", "large")
    get = f"GET /v1/files/{large}/content HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    slow = []
    for _ in range(75):
        slow.append(socket.create_connection(address(server)))
        slow[-1].sendall(get)
    for connection in slow:
        assert connection.recv(1, socket.MSG_PEEK)  # from its response's first byte on, the client does not read
    time.sleep(7)
    for _ in range(60):
        slow.append(socket.create_connection(address(server)))
        slow[-1].sendall(get)
    began = time.monotonic()
    client.models.list()
    ask(client, "fake-base", "hello")
    assert time.monotonic() - began < 5
    for connection in slow:
        connection.close()


def test_connections_that_are_kept_open_are_not_late(server: Serving) -> None:
    """A client that sends a request every few seconds keeps its connection; a slow upload is not cut."""
    connection = socket.create_connection(address(server))
    form = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
    form += (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + b"x" * 100_000 + b"\r\n--b--\r\n"
    )
    head = b"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    for _ in range(2):
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(form))
        for i in range(0, len(form), 10_000):
            connection.sendall(form[i : i + 10_000])
            time.sleep(1.2)
        connection.settimeout(5)
        received = connection.recv(1 << 16)
        assert received.startswith(b"HTTP/1.1 200"), received
        time.sleep(3)


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        HEADER + b"Content-Length: abc\r\n\r\n{}",
        HEADER + b"Content-Length: -1\r\n\r\n{}",
        HEADER + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        HEADER + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        HEADER + b"X: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n\r\n",
        HEADER + b"Content-Length: 100\r\n\r\n{}",
        HEADER + b"Content-Length: 1\r\nConnection: close\r\n\r\n{}",
        HEADER + b"Content-Le",
    ],
)
def test_requests_with_wrong_headers_or_lengths_get_a_400(server: Serving, sent: bytes) -> None:
    connection = socket.create_connection(address(server))
    connection.sendall(sent)
    connection.shutdown(socket.SHUT_WR)
    response = answer(connection, 5)
    assert error_in(response)[0] == 400, response
    assert server.client().models.list().data
    assert "Traceback" not in server.end()[1]
