"""A hub of the tests' own on loopback: models and datasets with commits, for the real clients.

    with Hub() as hub:
        repo = hub.add("models", "acme/tiny")
        first = repo.commit({"config.json": b"{}"})
        hub.faults.append(Fault(r"/resolve/", status=503, times=2))
        subprocess.run(..., env={**os.environ, **hub.variables(home)})

`main` of a repository is its newest commit until `repo.main` is set to another.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOKEN = "hf_right"
Files = Mapping[str, bytes]


@dataclass
class Repo:
    """One repository: its commits by SHA, which one `main` is, and who may read it."""

    name: str
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    main: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    renamed: str | None = None  # the new name: requests are redirected there

    def commit(self, files: Files) -> str:
        """Add a commit that holds exactly these files, move `main` to it, and return its SHA."""
        seed = f"{self.name} {len(self.commits)} {sorted((n, hashlib.sha1(b).hexdigest()) for n, b in files.items())}"
        self.main = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[self.main] = dict(files)
        return self.main

    def sha(self, revision: str) -> str | None:
        found = {"main": self.main, **self.tags}.get(revision, revision)
        return found if found in self.commits else None


@dataclass
class Fault:
    """What goes wrong with requests whose "METHOD path" matches `pattern`, `times` times."""

    pattern: str
    status: int | None = None  # answer with this status ...
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None  # ... or send this many bytes of the body, and close the connection
    times: int = 10**9


def folder_files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Hub:
    """The server. `requests` lists what was asked: "METHOD path"."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.uploaded: dict[str, bytes] = {}  # LFS objects by SHA-256
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop answering: the hub cannot be reached from now on."""
        self.server.shutdown()
        self.server.server_close()

    def add(self, kind: str, name: str) -> Repo:
        """Add a repository; kind is "models" or "datasets"."""
        return self.repos.setdefault((kind, name), Repo(name))

    def variables(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Return the environment of a client whose cache is `home`; nothing else can be reached from it."""
        nowhere = "http://127.0.0.1:9"
        return {
            "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": token or "",
            "HF_HUB_DISABLE_XET": "1", "HTTP_PROXY": nowhere, "ALL_PROXY": nowhere,
            "NO_PROXY": "127.0.0.1", "http_proxy": nowhere, "all_proxy": nowhere, "no_proxy": "127.0.0.1",
        }  # fmt: skip

    def asked(self, pattern: str) -> list[str]:
        return [line for line in self.requests if re.search(pattern, line)]


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    cut: int | None = None  # bytes of the body that are sent
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        length = int(self.headers.get("content-length") or 0)
        self.content = self.rfile.read(length).decode() if length else ""
        line = f"{self.command} {path}"
        self.cut = None
        with self.hub.lock:
            self.hub.requests.append(line)
            fault = next((f for f in self.hub.faults if f.times > 0 and re.search(f.pattern, line)), None)
            if fault:
                fault.times -= 1
        if fault and fault.status:
            return self.answer(fault.status, {"error": "a fault of this test"}, **fault.headers)
        if fault:
            self.cut = fault.cut
        parts = path.strip("/").split("/")
        if parts[0] == "api" and len(parts) >= 4 and parts[1] in ("models", "datasets"):
            return self.about(parts[1], "/".join(parts[2:4]), parts[4:])
        if path == "/api/whoami-v2":
            right = self.headers.get("authorization") == f"Bearer {TOKEN}"
            return self.answer(200 if right else 401, {"name": "ann"} if right else {"error": "Invalid credentials"})
        kind, parts = ("datasets", parts[1:]) if parts[0] == "datasets" else ("models", parts)
        if len(parts) > 4 and parts[2] == "resolve":
            return self.file(kind, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        self.answer(404, {"error": "nothing here"})

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        """An LFS object, at the address that the batch endpoint gave."""
        content = self.rfile.read(int(self.headers["content-length"]))
        self.hub.uploaded[hashlib.sha256(content).hexdigest()] = content
        self.answer(200)

    def do_POST(self) -> None:
        """What an upload asks; all else is answered as a GET is (`paths-info`)."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        found = re.fullmatch(
            r"/api/(repos/create|validate-yaml)|/api/models/([^/]+/[^/]+)/(preupload|commit)/\w+|/(.+)\.git/info/lfs/objects/batch",
            path,
        )
        if not found:
            return self.do_GET()
        content = self.rfile.read(int(self.headers.get("content-length") or 0))
        with self.hub.lock:
            self.hub.requests.append(f"POST {path}")
            fault = next((f for f in self.hub.faults if f.times > 0 and re.search(f.pattern, f"POST {path}")), None)
        if fault and fault.status:
            return self.answer(fault.status, {"error": "a fault of this test"}, **fault.headers)
        if self.headers.get("authorization") != f"Bearer {TOKEN}" and found[1] != "validate-yaml":
            return self.answer(401, {"error": "Invalid credentials in Authorization header"})
        if found[1] == "validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if found[3] == "commit":
            return self.commit(found[2], [json.loads(line) for line in content.splitlines()])
        asked = json.loads(content)
        if found[1]:
            name = f"{asked['organization']}/{asked['name']}"
            self.hub.add("models", name).private = asked.get("visibility") == "private" or bool(asked.get("private"))
            return self.answer(200, {"url": f"{self.hub.url}/{name}", "name": name, "id": "x"})
        if found[3] == "preupload":
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith((".safetensors", ".gguf")) else "regular",
                 "shouldIgnore": False}
                for f in asked["files"]
            ]  # fmt: skip
            return self.answer(200, {"files": modes})
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{o['oid']}"}}} for o in asked["objects"]
        ]  # fmt: skip
        self.answer(200, {"transfer": "basic", "objects": objects})

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        repo = self.hub.repos[("models", name)]
        files = dict(repo.commits.get(repo.main, {}))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploaded[value["oid"]]
        sha = repo.commit(files)
        self.answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha, "hookOutput": ""})

    def repo(self, kind: str, name: str) -> Repo | None:
        """Return a repository that this client may know of; else answer, and return None."""
        repo = self.hub.repos.get((kind, name))
        token = self.headers.get("authorization")
        if token not in (None, f"Bearer {TOKEN}"):
            self.answer(401, {"error": "Invalid credentials in Authorization header"})
            return None
        if repo is None or (repo.private and not token):
            # The real hub does not tell a stranger which of the two it is.
            self.answer(404 if token else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        if repo.renamed:
            self.answer(307, {}, Location=self.path.replace(name, repo.renamed))
            return None
        return repo

    def about(self, kind: str, name: str, rest: list[str]) -> None:
        repo = self.repo(kind, name)
        if repo is None:
            return
        revision = rest[1] if len(rest) > 1 else "main"
        sha = repo.sha(revision)
        if sha is None:
            return self.answer(404, {"error": f"Invalid rev id: {revision}"}, X_Error_Code="RevisionNotFound")
        listed = [
            {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": path}
            for path, data in sorted(repo.commits[sha].items())
        ]
        if rest[:1] == ["tree"]:
            inside = "/".join(rest[2:])
            return self.answer(200, [f for f in listed if str(f["path"]).startswith(inside)])
        if rest[:1] == ["paths-info"]:
            form = self.content.startswith("{")
            wanted = json.loads(self.content)["paths"] if form else urllib.parse.parse_qs(self.content).get("paths", [])
            return self.answer(200, [f for f in listed if f["path"] in wanted])
        facts = {
            "_id": "x", "id": name, "sha": sha, "private": repo.private, "gated": "manual" if repo.gated else False,
            "disabled": False, "tags": [], "siblings": [{"rfilename": f["path"]} for f in listed], "downloads": 1,
            "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z", "likes": 0,
        }  # fmt: skip
        self.answer(200, facts)

    def file(self, kind: str, name: str, revision: str, path: str) -> None:
        repo = self.repo(kind, name)
        if repo is None:
            return
        if repo.gated and self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Access to this is restricted"}, X_Error_Code="GatedRepo")
        sha = repo.sha(revision)
        if sha is None:
            return self.answer(404, {"error": f"Invalid rev id: {revision}"}, X_Error_Code="RevisionNotFound")
        data = repo.commits[sha].get(path)
        if data is None:
            return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        facts = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X_Repo_Commit": sha, "Accept_Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or "")
        if wanted and self.command == "GET":
            first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
            part, where = data[first : last + 1], f"bytes {first}-{last}/{len(data)}"
            return self.answer(206, part, "application/octet-stream", Content_Range=where, **facts)
        self.answer(200, data, "application/octet-stream", **facts)

    def answer(self, status: int, body: Any = b"", kind: str = "application/json", **headers: str) -> None:
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: self.cut])
        if self.cut is not None and self.cut < len(body):
            self.wfile.flush()
            time.sleep(0.05)
            self.close_connection = True
            self.connection.close()
