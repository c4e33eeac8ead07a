"""Hugging Face's side of Jobs and buckets on loopback: jobs in the documented states, executed on this machine.

    with JobsHub(tmp_path) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.faults.append(Fault("POST /api/jobs/me$", lost=True, times=1))

Buckets are real ones to the client: their contents travel through hf_xet, with a store of xet's own in a folder. A job is
`SCHEDULING`, then `RUNNING`: its command is executed here, with the bucket as a folder. It ends as `COMPLETED` or `ERROR`
by its exit status, as `CANCELED`, or as `ERROR` with the message of the time limit.
"""

from __future__ import annotations

import contextlib
import datetime
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOKEN = "hf_right"
MICRO = 1_000_000


@dataclass
class Fault:
    """What goes wrong with requests whose "METHOD path" matches: a status, an answer that is lost, or a late one."""

    pattern: str
    status: int | None = None
    lost: bool = False  # the request is done, and the connection closed without an answer
    times: int = 10**9
    seen: int = 0


@dataclass
class FakeJob:
    id: str
    spec: dict[str, Any]
    stage: str = "SCHEDULING"
    message: str | None = None
    created: float = field(default_factory=time.time)
    began: float | None = None
    ended: float | None = None
    process: subprocess.Popen[bytes] | None = None
    mount: Path | None = None
    sent: set[str] = field(default_factory=set)

    @property
    def over(self) -> bool:
        return self.stage in ("COMPLETED", "CANCELED", "ERROR")

    def data(self) -> dict[str, Any]:
        end = self.ended or time.time()
        ran = int(end - self.began) if self.began else None
        return {
            "id": self.id,
            "createdAt": _iso(self.created),
            "startedAt": _iso(self.began),
            "finishedAt": _iso(self.ended),
            "dockerImage": self.spec.get("dockerImage"),
            "command": self.spec.get("command"),
            "flavor": self.spec["flavor"],
            "labels": self.spec.get("labels"),
            "environment": self.spec.get("environment"),
            "secrets": dict.fromkeys(self.spec.get("secrets", {})),
            "status": {"stage": self.stage, "message": self.message},
            "durations": {"schedulingSecs": 1, "runningSecs": ran, "totalSecs": int(end - self.created)},
            "owner": {"id": "1", "name": "me", "type": "user"},
        }


class JobsHub:
    """The server. `executes` False leaves jobs in SCHEDULING; `variables` are those of a job's machine."""

    def __init__(self, folder: Path, executes: bool = True, variables: dict[str, str] | None = None) -> None:
        self.folder, self.executes, self.variables = folder, executes, dict(variables or {})
        folder.mkdir(parents=True, exist_ok=True)
        self.store = folder / "xet"
        self.buckets: dict[str, dict[str, dict[str, Any]]] = {}
        self.public: set[str] = set()
        self.jobs: list[FakeJob] = []
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.start_with: str | None = None  # a stage in which new jobs end at once
        self.limit: float | None = None  # seconds, in place of what was asked for
        self.lock = threading.RLock()
        self.most = 0  # jobs that were alive at the same time
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True

    def __enter__(self) -> JobsHub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.closing = threading.Event()
        self.keeper = threading.Thread(target=self.keep, daemon=True)
        self.keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.keeper.join(30)
        for job in self.jobs:
            self.end(job, "CANCELED")
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    @property
    def alive(self) -> list[FakeJob]:
        return [job for job in self.jobs if not job.over]

    # ---- jobs

    def create(self, spec: dict[str, Any]) -> FakeJob:
        with self.lock:
            job = FakeJob(f"job{len(self.jobs) + 1:020d}", spec)
            self.jobs.append(job)
            self.most = max(self.most, len(self.alive))
            if self.start_with:
                job.stage, job.message, job.ended = self.start_with, "out of luck", time.time()
            return job

    def keep(self) -> None:
        """Let jobs begin, end, and hand over what they have written."""
        while not self.closing.wait(0.05):
            for job in list(self.jobs):
                try:
                    self.look_after(job)
                except Exception as error:
                    print(f"stub: {type(error).__name__}: {error}", file=sys.stderr)

    def look_after(self, job: FakeJob) -> None:
        if job.stage == "SCHEDULING" and self.executes:
            self.begin(job)
        if job.process is None:
            return
        self.exchange(job)
        code = job.process.poll()
        limit = self.limit or job.spec.get("timeoutSeconds", 1800)
        if code is not None and not job.over:
            self.exchange(job)
            with self.lock:
                job.ended, job.stage = time.time(), "COMPLETED" if code == 0 else "ERROR"
        elif not job.over and job.began and time.time() - job.began > limit:
            self.end(job, "ERROR", "Job timeout")

    def begin(self, job: FakeJob) -> None:
        volume = job.spec["volumes"][0]
        mount = Path(tempfile.mkdtemp(dir=self.folder, prefix="mount-"))
        files = self.files(volume["source"], volume["path"])
        for name, entry in files.items():
            self.fetch(entry["xetHash"], mount / name)
        line = [part.replace(volume["mountPath"], str(mount)) for part in job.spec["command"]]
        line[0] = sys.executable
        log = open(mount / "log", "wb")  # noqa: SIM115  closed with the process
        environment = {**os.environ, **self.variables, **job.spec.get("environment", {}), **job.spec.get("secrets", {})}
        with self.lock:
            if job.over:
                return
            job.mount, job.began, job.stage = mount, time.time(), "RUNNING"
            job.process = subprocess.Popen(line, stdout=log, stderr=log, env=environment, start_new_session=True)

    def end(self, job: FakeJob, stage: str, message: str | None = None) -> None:
        """End a job as Hugging Face does: every process of it is killed."""
        with self.lock:
            if job.over:
                return
            job.stage, job.message, job.ended = stage, message, time.time()
        if job.process is not None:
            for pid in family(job.process.pid):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            job.process.wait()

    def exchange(self, job: FakeJob) -> None:
        """The mount: what the job wrote appears in the bucket, and what was added there appears in the folder."""
        assert job.mount is not None
        volume = job.spec["volumes"][0]
        for path in sorted((job.mount / "out").glob("*")):
            if path.name not in job.sent:
                data = path.read_bytes()
                if path.name.split(".")[0].split("-")[1] != _digest(data):
                    continue  # half written: the mount would show it when it is closed
                entry = {"xetHash": self.put(data), "size": len(data)}
                with self.lock:
                    self.buckets[volume["source"]][f"{volume['path']}/out/{path.name}"] = entry
                job.sent.add(path.name)
        for name, entry in self.files(volume["source"], volume["path"]).items():
            if name.startswith("in/") and not (job.mount / name).exists():
                self.fetch(entry["xetHash"], job.mount / name)

    # ---- buckets

    def files(self, bucket: str, folder: str) -> dict[str, dict[str, Any]]:
        with self.lock:
            found = dict(self.buckets.get(bucket, {}))
        return {path.removeprefix(f"{folder}/"): e for path, e in found.items() if path.startswith(f"{folder}/")}

    def _session(self) -> dict[str, Any]:
        return {
            "token_refresh_url": f"{self.url}/api/buckets/me/any/xet-write-token",
            "token_refresh_headers": {"authorization": f"Bearer {TOKEN}"},
        }

    def put(self, data: bytes) -> str:
        from hf_xet import SKIP_SHA256
        from huggingface_hub.utils._xet import get_xet_session

        with get_xet_session().new_upload_commit(**self._session()) as commit:
            handle = commit.start_upload_bytes(data, sha256=SKIP_SHA256)
        return str(handle.result().xet_info.hash)

    def fetch(self, digest: str, path: Path) -> int:
        from hf_xet import XetFileInfo
        from huggingface_hub.utils._xet import get_xet_session

        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        with get_xet_session().new_file_download_group(**self._session()) as group:
            group.start_download_file(XetFileInfo(digest, None), str(part))
        os.replace(part, path)
        return path.stat().st_size


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: JobsHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def handle_any(self) -> None:
        hub = self.hub
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urllib.parse.urlsplit(self.path)
        asked = f"{self.command} {urllib.parse.unquote(url.path)}"
        fault = None
        with hub.lock:
            hub.requests.append(asked)
            for one in hub.faults:
                if re.search(one.pattern, asked) and one.seen < one.times:
                    one.seen += 1
                    fault = one
                    break
        if fault and fault.status:
            return self.answer({"error": "the stub says no"}, fault.status)
        found = self.respond(asked, urllib.parse.parse_qs(url.query), body)
        if fault and fault.lost:
            self.close_connection = True
            return self.connection.close()
        status, data, headers = found
        return self.answer(data, status, headers)

    do_GET = do_POST = do_HEAD = do_DELETE = handle_any

    def answer(self, data: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = data if isinstance(data, bytes) else b"" if data is None else json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def respond(self, asked: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any, dict[str, str]]:
        hub = self.hub
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}, {}
        if asked == "GET /api/whoami-v2":
            return 200, {"name": "me", "type": "user"}, {}
        if asked == "GET /api/jobs/hardware":
            return 200, HARDWARE, {}
        if asked == "POST /api/jobs/me":
            return 200, hub.create(json.loads(body)).data(), {}
        if asked == "GET /api/jobs/me":
            wanted = dict(text.split("=", 1) for text in query.get("label", ()))
            with hub.lock:
                found = [j for j in hub.jobs if wanted.items() <= (j.spec.get("labels") or {}).items()]
            stages = query.get("stage")
            return 200, [j.data() for j in found if not stages or j.stage in stages], {}
        if match := re.fullmatch(r"(GET|POST) /api/jobs/me/([^/]+)(/cancel|/logs)?", asked):
            job = next((j for j in hub.jobs if j.id == match[2]), None)
            if job is None:
                return 404, {"error": "not found"}, {}
            if match[3] == "/cancel":
                hub.end(job, "CANCELED")
            if match[3] == "/logs":
                text = (job.mount / "log").read_text("utf-8", "replace") if job.mount else ""
                lines = [f"data: {json.dumps({'data': line, 'timestamp': '0'})}\n\n" for line in text.splitlines()]
                return 200, "".join(lines).encode(), {"Content-Type": "text/event-stream"}
            return 200, job.data(), {}
        if match := re.fullmatch(r"\w+ /(?:api/)?buckets/(me/[\w.-]+)(?:/(.*))?", asked):
            return self.bucket(match[1], match[2] or "", body)
        return 404, {"error": f"the stub has no {asked}"}, {}

    def bucket(self, name: str, rest: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        hub = self.hub
        if not rest and self.command == "POST":
            if name in hub.buckets:
                return 409, {"error": "exists", "url": f"{hub.url}/buckets/{name}"}, {}
            with hub.lock:
                hub.buckets[name] = {}
            if json.loads(body).get("visibility") != "private":
                hub.public.add(name)
            return 200, {"url": f"{hub.url}/buckets/{name}"}, {}
        if rest.startswith("xet-"):
            facts = {"casUrl": f"local://{hub.store}", "accessToken": "x", "exp": int(time.time()) + 3600}
            names = {"X-Xet-Cas-Url": "casUrl", "X-Xet-Access-Token": "accessToken", "X-Xet-Token-Expiration": "exp"}
            return 200, facts, {header: str(facts[key]) for header, key in names.items()}
        if name not in hub.buckets:
            return 404, {"error": "no bucket"}, {}
        files = hub.buckets[name]
        if not rest:
            private = name not in hub.public
            about = {
                "id": name,
                "private": private,
                "createdAt": _iso(time.time()),
                "size": 0,
                "totalFiles": len(files),
            }
            return 200, about, {}
        if rest == "batch":
            for line in body.splitlines():
                operation = json.loads(line)
                if operation["type"] == "deleteFile":
                    files.pop(operation["path"], None)
                    continue
                with tempfile.TemporaryDirectory(dir=hub.folder) as folder:
                    size = hub.fetch(operation["xetHash"], Path(folder, "file"))
                files[operation["path"]] = {"xetHash": operation["xetHash"], "size": size}
            return 200, {"success": True, "failed": []}, {}
        if rest.startswith("tree"):
            prefix = rest.removeprefix("tree").strip("/")
            with hub.lock:
                found = {path: e for path, e in files.items() if path.startswith(f"{prefix}/")}
            return 200, [{"type": "file", "path": path, **entry} for path, entry in found.items()], {}
        if rest.startswith("resolve/"):
            entry = files.get(rest.removeprefix("resolve/"))
            if entry is None:
                return 404, {"error": "no file"}, {}
            route = f"{hub.url}/api/buckets/{name}/xet-read-token"
            facts = {"X-Xet-Hash": entry["xetHash"], "X-Xet-Refresh-Route": route, "X-Linked-Size": str(entry["size"])}
            return 200, None, facts
        return 404, {"error": f"the stub has no {rest}"}, {}


def _flavor(name: str, hourly: float, gpu: bool = True) -> dict[str, Any]:
    accelerator = {"type": "gpu", "model": name, "quantity": "1", "vram": "24 GB", "manufacturer": "Nvidia"}
    minute = hourly / 60
    return {
        "name": name,
        "prettyName": f"Nvidia {name}" if gpu else "CPU",
        "cpu": "4 vCPU",
        "ram": "15 GB",
        "accelerator": accelerator if gpu else None,
        "unitCostMicroUSD": round(minute * MICRO),
        "unitCostUSD": minute,
        "unitLabel": "minute",
    }


HARDWARE = [
    _flavor("cpu-basic", 0.01, False),
    _flavor("t4-small", 0.4),
    _flavor("a10g-small", 1.0),
    _flavor("h200", 5.0),
]


def _digest(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()[:16]


def _iso(moment: float | None) -> str | None:
    if moment is None:
        return None
    return (
        datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def family(pid: int) -> list[int]:
    """Return a process and all that it has started, in whatever group they are."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one and child not in found]
    return found
