"""A server on loopback that stands in for W&B: one that works as far as a run needs it, and ones that fail in many ways."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from typing import Any

FAILING = ("refuses", "hangs", "raises", "denies", "babbles", "crawls")
_ANSWERS = {
    "raises": (500, b"<html>oh no"),
    "denies": (401, b'{"errors":[{"message":"no such key"}]}'),
    "babbles": (200, b"<html>"),
}


@dataclass
class Server:
    """`kind` is "works", one of FAILING, or "stalls" (it works until the run has begun, and then answers nothing)."""

    kind: str
    requests: list[tuple[str, bytes, dict[str, str]]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    began: bool = False  # the run is known to the server
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)  # by id: what they were created with
    committed: list[str] = field(default_factory=list)  # ids of the artifacts that are complete

    def __enter__(self) -> Server:
        if self.kind == "refuses":
            with socket.socket() as unused:
                unused.bind(("127.0.0.1", 0))
                self.url = f"http://127.0.0.1:{unused.getsockname()[1]}"
            return self
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        if self.kind != "refuses":
            self._server.shutdown()
            self._server.server_close()

    def queries(self, name: str) -> list[dict[str, Any]]:
        """Return the variables of each GraphQL query or mutation of that name."""
        bodies = [json.loads(body) for path, body, _ in self.requests if path == "/graphql"]
        return [body.get("variables") or {} for body in bodies if re.search(rf"\b{name}\b", body["query"])]

    def streamed(self, file: str) -> list[Any]:
        """Return the JSON lines that were streamed to a file of the run."""
        bodies = [json.loads(body) for path, body, _ in self.requests if path.endswith("/file_stream")]
        files = [body.get("files", {}).get(file, {}) for body in bodies]
        return [json.loads(line) for part in files for line in part.get("content", [])]

    def answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        if self.kind in _ANSWERS:
            return _ANSWERS[self.kind]
        if self.kind == "hangs" or (self.kind == "stalls" and self.began):
            self.released.wait(600)
        if self.kind == "crawls":
            self.released.wait(20)
        if path != "/graphql":
            return 200, b"{}"
        query = json.loads(body)
        found = self._graphql(
            re.findall(r"(?:query|mutation)\s+(\w+)", query["query"])[0], query.get("variables") or {}
        )
        answer = {"data": found} if found else {"data": None, "errors": [{"message": "this stub does not have it"}]}
        return (200 if found else 400), json.dumps(answer).encode()

    def _graphql(self, name: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}}
        if name == "Viewer":
            return {"viewer": {"id": "me"}}
        if name == "RunResumeStatus":
            return {"model": {**project, "bucket": None}}
        if name == "UpsertBucket":
            self.began = True
            bucket = {"id": "b", "name": variables["name"], "config": "{}", "project": project, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/upload"} for file in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return self._artifacts(name, variables)

    def _artifacts(self, name: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """Answer what the client asks to send an artifact: create it, its manifest, its files, and commit it."""
        given = variables.get("input", variables)
        if name == "FetchArtifactDigestAlgorithm":
            return {"project": {"artifactType": None}}
        if name == "CreateArtifact":
            identity = f"artifact-{len(self.artifacts)}"
            self.artifacts[identity] = given
            artifact = {"id": identity, "state": "PENDING", "artifactSequence": {"id": "s", "latestArtifact": None}}
            return {"createArtifact": {"artifact": {**artifact, "digest": given["digest"]}}}
        if name in ("CreateArtifactManifest", "UpdateArtifactManifest"):
            file = {"id": "f", "uploadUrl": f"{self.url}/manifest", "uploadHeaders": []}
            short = name[0].lower() + name[1:]
            return {short: {"artifactManifest": {"id": "m", "file": file}}}
        if name == "CreateArtifactFiles":
            nodes = [
                {
                    "storagePath": "", "uploadUrl": f"{self.url}/artifact/{file['artifactID']}/{file['name']}",
                    "uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]},
                }
                for file in given["artifactFiles"]
            ]  # fmt: skip
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        if name == "CommitArtifact":
            self.committed.append(variables["artifactID"])
            return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": "d"}}}
        if name == "UseArtifact":
            return {"useArtifact": {"artifact": {"id": given["artifactID"]}}}
        return None

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                server.requests.append((self.path, body, dict(self.headers)))
                status, answer = server.answer(self.path, body)
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            do_GET = do_PUT = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
