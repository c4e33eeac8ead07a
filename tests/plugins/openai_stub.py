"""A small real HTTP server on loopback that speaks OpenAI's wire format, and fails where a test says so.

It is as strict as OpenAI with keys and unknown files (openai_spec.py checks the fields). It keeps all requests, so
that a test can count what was paid for.

    with Stub() as stub:
        stub.fail("POST", "/v1/fine_tuning/jobs", status=502, after=True)   # the job is created, its answer lost
        ... stub.url, stub.jobs, stub.answered
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from openai_stub_api import ApiError, Endpoints, Json

KEY = "sk-proj-TESTSECRET0123456789abcdefghijklmnop"
MODEL = "gpt-4o-mini-2024-07-18"


@dataclass
class Seen:
    """One request, and the answer to it."""

    method: str
    path: str  # with its query
    body: bytes
    content_type: str
    time: float
    key: str | None
    status: int = 0
    answer: bytes = b""


@dataclass
class Fault:
    """What happens to matching requests in place of the answer, or after the request was processed (`after`)."""

    method: str
    path: re.Pattern[str]
    times: int = 1
    status: int | None = None
    error: Json | None = None  # the `error` object; None: a plain one
    body: bytes | None = None  # the whole answer, with the status or 200
    headers: Json = field(default_factory=dict)
    reset: bool = False  # cut the connection instead of answering
    half: bool = False  # cut it in the middle of the answer
    early: bool = False  # cut it before the request's body was read
    after: bool = False  # process the request first
    delay: float = 0.0
    when: Callable[[Json], bool] | None = None  # a condition on the JSON body


class Stub(Endpoints):
    """The server. Attributes may be changed while it runs."""

    def __init__(self, latency: float = 0.0, job_seconds: float = 0.15, steps: int = 6, prefix: str = "/v1") -> None:
        super().__init__(job_seconds, steps, prefix)
        self.latency = latency
        self.key: str | None = KEY
        self.add_model(MODEL, "2027-01-14")
        self.add_model("gpt-4.1-2025-04-14", None)
        self.rate_headers: Json = {}
        self.per_second: float | None = None  # requests a second that are answered; the others get 429
        self.requests: list[Seen] = []
        self.refused = 0
        self.keep_bodies = True
        self._allowance = (time.monotonic(), 0.0)
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self._connections: set[socket.socket] = set()

    # ---- running

    def __enter__(self) -> Stub:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        stub = self

        class Handler(_Handler):
            state = stub

        class Server(ThreadingHTTPServer):
            request_queue_size = 256
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Ignore it: the tests disconnect clients on purpose."""

        self._server = Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Stop listening and cut all connections; the data stay."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}{self.prefix}"

    def fail(self, method: str, path: str, **how: Any) -> Fault:
        """Make the next `times` requests to `path`, a regular expression, fail."""
        fault = Fault(method, re.compile(path + r"(?:\?|$)"), **how)
        self.faults.append(fault)
        return fault

    def count(self, method: str, path: str) -> int:
        return sum(s.method == method and re.fullmatch(path, s.path.split("?")[0]) is not None for s in self.requests)

    def too_many(self) -> bool:
        """Say whether a chat request exceeds `per_second`, by a token bucket for a tenth of a second."""
        if self.per_second is None:
            return False
        with self._lock:
            last, left = self._allowance
            now = time.monotonic()
            left = min(max(1.0, self.per_second / 10), left + (now - last) * self.per_second)
            self._allowance = (now, left - 1 if left >= 1 else left)
            return left < 1


class _Handler(BaseHTTPRequestHandler):
    state: Stub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def setup(self) -> None:
        super().setup()
        self.state._connections.add(self.connection)

    def finish(self) -> None:
        self.state._connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def serve(self) -> None:
        stub = self.state
        fault = self.fault(lambda f: f.when is None)
        if fault and fault.early:
            return self.cut()
        body = self.rfile.read(int(self.headers.get("content-length") or 0)) if "chunked" not in (
            self.headers.get("transfer-encoding") or "") else b"".join(self.chunks())  # fmt: skip
        content_type = self.headers.get("content-type") or ""
        key = (self.headers.get("authorization") or "").removeprefix("Bearer ") or None
        seen = Seen(self.command, self.path, body if stub.keep_bodies else b"", content_type, time.time(), key)
        stub.requests.append(seen)
        parsed = self.parsed(body, content_type)
        fault = fault or self.fault(lambda f: f.when is not None and isinstance(parsed, dict) and f.when(parsed))
        if fault:
            time.sleep(fault.delay)
            answers = fault.status is not None or fault.body is not None or fault.reset or fault.half
            status, answer = 200, b""
            if fault.after or not answers:
                status, answer = self.done(parsed, key)
            if fault.reset:
                return self.cut()
            if fault.half:
                return self.send(200, answer or b'{"id": "half", "object": ' + b" " * 200, seen, cut=True)
            if answers:
                status = fault.status or 200
                error = (
                    {"message": "a fault of the test", "type": "server_error", "param": None, "code": None}
                    if fault.error is None
                    else fault.error
                )
                answer = fault.body if fault.body is not None else json.dumps({"error": error}).encode()
            return self.send(status, answer, seen, fault.headers)
        is_chat = self.path.split("?")[0].endswith("/chat/completions")
        if is_chat and stub.too_many():
            stub.refused += 1
            error = {"message": "Rate limit reached", "type": "requests", "param": None, "code": "rate_limit_exceeded"}
            return self.send(429, json.dumps({"error": error}).encode(), seen, {"retry-after-ms": "50"})
        if is_chat:
            time.sleep(stub.latency)
        status, answer = self.done(parsed, key)
        self.send(status, answer, seen, stub.rate_headers if is_chat else {})

    do_GET = do_POST = do_PUT = serve

    def fault(self, fits: Callable[[Fault], bool]) -> Fault | None:
        with self.state._lock:
            for fault in self.state.faults:
                if fault.times > 0 and fault.method == self.command and fault.path.match(self.path) and fits(fault):
                    fault.times -= 1
                    return fault
        return None

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def parsed(self, body: bytes, content_type: str) -> Any:
        if content_type.startswith("multipart/form-data"):
            return _multipart(body, content_type)
        return json.loads(body) if body else None

    def done(self, parsed: Any, key: str | None) -> tuple[int, bytes]:
        stub = self.state
        try:
            if stub.key is not None and key != stub.key and "/deployments/" not in self.path:
                # OpenAI repeats a part of the key in this message; the stub repeats all of it.
                raise ApiError(
                    401, f"Incorrect API key provided: {key}. You can find your API key at ...", "invalid_api_key"
                )
            parts = urlsplit(self.path)
            answer = stub.route(self.command, parts.path, dict(parse_qsl(parts.query)), parsed)
            return 200, answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        except ApiError as error:
            return error.status, json.dumps({"error": error.error}).encode()

    def send(self, status: int, answer: bytes, seen: Seen, headers: Json | None = None, cut: bool = False) -> None:
        seen.status = status
        seen.answer = answer if self.state.keep_bodies else b""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("x-request-id", "req_stub")
        for name, value in (headers or {}).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(answer[: len(answer) // 2] if cut else answer)
        self.wfile.flush()
        if cut:
            self.cut()

    def cut(self) -> None:
        """Reset the connection: the client sees it break."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


def _multipart(body: bytes, content_type: str) -> dict[str, tuple[str, bytes]]:
    """Return the parts of a form by name: (filename, content)."""
    from werkzeug.formparser import parse_form_data

    environ = {
        "wsgi.input": io.BytesIO(body),
        "CONTENT_LENGTH": str(len(body)),
        "CONTENT_TYPE": content_type,
        "REQUEST_METHOD": "POST",
    }
    _, form, files = parse_form_data(environ)
    found = {name: ("", value.encode()) for name, value in form.items()}
    return found | {name: (f.filename or "", f.read()) for name, f in files.items()}


def main() -> None:
    """Serve in a process of its own until its standard input closes (for measurements): `openai_stub.py LATENCY`."""
    import sys

    with Stub(latency=float(sys.argv[1])) as stub:
        stub.keep_bodies = False
        print(stub.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
