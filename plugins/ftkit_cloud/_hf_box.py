"""The engine without a connection: a bucket holds what goes to the machine and what comes back (see `_worker.py`)."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.api import Run
from ftkit.errors import FtkitError, InputError, RunFailed
from ftkit.files import file_digest, write_json
from ftkit.records import Cancelled
from ftkit.text import dollars

from . import _bundle, _pull
from ._engine import PYTHON, REMOTE, Engine
from ._follow import LOG, MARK, Follower, remote_lines
from ._transport import Answer, Lost, Transport

if TYPE_CHECKING:
    from huggingface_hub import JobInfo

    from ._hf_jobs import Account

BUCKET = "ftkit-runs"
MOUNT = "/ftkit"
WORKER = Path(__file__).with_name("_worker.py")
_POLL = "FTKIT_CLOUD_POLL"  # seconds between two looks; the tests have no time
_TRANSFER = 3600.0  # seconds for one file
_LATE = 3  # looks at the bucket after the job has ended: its last files may come late
_TO_END = 60.0  # seconds that a run has to end when it is asked to; then its job is ended
_NAME = re.compile(r"(\d{6})-([0-9a-f]{16})\.(lines|tar)")


class Box(Transport):
    """What has come out of the job, kept below this run's scratch folder."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.folder = self.mirror = Path()

    def use(self, folder: Path) -> None:
        """Keep what comes in this folder."""
        self.folder, self.mirror = folder, folder / "run"
        self.mirror.mkdir(parents=True, exist_ok=True)

    def run(self, command: Sequence[str], input: bytes = b"", seconds: float | None = 60) -> Answer:
        raise NotImplementedError("no command can be run in a job")

    def open(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        raise NotImplementedError("no command can be run in a job")

    def lost(self, status: int, err: str) -> Exception | None:
        return None

    def put(self, source: Path, target: str) -> None:
        raise NotImplementedError("files are put with the job")

    def get(self, folder: str, paths: Sequence[str], into: Path) -> bool:
        for path in paths:
            with contextlib.suppress(OSError):  # the checksums say what is missing
                shutil.copyfile(self.mirror / path, into / path)
        return True

    # ---- what came

    def listing(self) -> dict[str, Any] | None:
        """Return the files of the run directory there, as the last list says; None before the first."""
        path = self.folder / "list.json"
        return dict(json.loads(path.read_text("utf-8"))) if path.exists() else None

    def take(self, path: Path) -> None:
        """Keep the files and the list of an archive that has come."""
        with tarfile.open(path) as tar:
            listed = tar.extractfile("list.json")
            assert listed is not None
            files = json.load(listed)
            tar.extractall(self.folder, [m for m in tar if m.name.startswith("run/")], filter="data")
        write_json(self.folder / "list.json", files)
        path.unlink()


class HubEngine(Engine):
    """Executes a run in a job: `Job` says how it is asked for, looked at and ended."""

    def __init__(self, run: Run, account: Account, name: str, key: str, place: str) -> None:
        self.account = account
        self.box = Box(place)
        self.bucket = f"{account.namespace}/{BUCKET}"
        self.base_of_run = key
        self.mount = MOUNT
        self.poll = float(os.environ.get(_POLL) or 10.0)
        super().__init__(run, self.box, name, "/tmp/ftkit")
        self.follower: Follower | None = None

    @property
    def base(self) -> str:
        """The folder of this attempt in the bucket."""
        return f"{self.base_of_run}/{self.state['token']}"

    # ---- what `Job` adds

    @abstractmethod
    def ask(self) -> None: ...

    @abstractmethod
    def found(self) -> JobInfo | None: ...

    @abstractmethod
    def check_start(self, job: JobInfo) -> None: ...

    @abstractmethod
    def died(self, job: JobInfo) -> dict[str, Any]: ...

    @abstractmethod
    def end_job(self) -> JobInfo | None: ...

    @abstractmethod
    def settle(self) -> float | None: ...

    # ---- the engine's steps, over the bucket

    def _where(self) -> str:
        return f"{self.bucket}/{self.base_of_run}"

    def _job(self) -> str:
        return f"{self.bucket}/{self.base}"

    def _begin_and_follow(self) -> dict[str, Any]:
        self._patiently(self.ask, 30.0 if self.state["phase"] == "new" else None)
        return self._patiently(self._follow)

    def upload(self, seconds: float) -> None:
        """Put the bundle and the programs into the bucket. `seconds` is the time that the run has there."""
        own_python = os.environ.get(PYTHON)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            bundle = _bundle.build(self.run, self.name, folder, with_sources=not own_python)
            for line in bundle.summary_lines():
                self._note(line.format(place=self.place))
            spec = {
                "token": self.state["token"],
                "run": self.run.id,
                "python": own_python,
                "venvs": f"{self.folder}/venvs",
                "venv": bundle.venv,
                "requirements": list(bundle.requirements),
                "max_seconds": seconds,
                "bundle": {"name": bundle.name, "size": bundle.size, "sha256": bundle.sha256},
                "offsets": self._follower()._offsets(),
                "flush_seconds": min(5.0, self.poll),
            }
            write_json(folder / "job.json", spec)
            sources = {
                bundle.name: bundle.path,
                "job.json": folder / "job.json",
                "remote.py": REMOTE,
                "worker.py": WORKER,
            }
            self._private_bucket()
            add: Any = [(str(path), f"{self.base}/in/{name}") for name, path in sources.items()]
            self.account.call(lambda: self.account.api.batch_bucket_files(self.bucket, add=add), _TRANSFER)

    def _private_bucket(self) -> None:
        """Make the bucket where there is none. Raises InputError for one that others can read."""
        if not self.account.bucket(self.bucket).private:
            raise InputError(
                f"the bucket {self.bucket} is public: the rows of the run would be, too",
                f"make it private, or remove it: https://huggingface.co/buckets/{self.bucket}",
            )

    def _follower(self) -> Follower:
        if self.follower is None:
            self.follower = Follower(self.run, self.name, self._note, self._stage_done)
        return self.follower

    def _stage_done(self) -> None:
        _pull.finished(self, self.run)

    def _follow(self) -> dict[str, Any]:
        """Take what comes until the run has ended. Raises Lost."""
        late = 0
        while True:
            job = self.found()
            if job is None:
                raise RunFailed("Hugging Face no longer knows the job of this run", f"resume: {self._again()}")
            self.check_start(job)
            end = self._take_new()
            if end is not None:
                return end
            if is_over(job):
                late += 1
                if late > _LATE:
                    return self.died(job)
            time.sleep(self.poll)

    def _take_new(self) -> dict[str, Any] | None:
        """Take the files that have come, in order; return the run's last status where it is among them."""
        self.box.use(_pull.scratch(self.run) / "box" / self.state["token"])
        prefix = f"{self.base}/out/"
        api = self.account.api
        listed = self.account.files(self.bucket, f"{self.base}/out")
        found = {file.path.removeprefix(prefix): file for file in listed}
        end = None
        for name in sorted(found):
            match = _NAME.fullmatch(name)
            done = self.box.folder / f"{name}.done"
            if match is None or done.exists():
                continue
            if int(match[1]) != self._taken() + 1:
                break  # an earlier one is not to be seen yet
            path = self.box.folder / name
            self.account.call(
                lambda file=found[name], path=path: api.download_bucket_files(self.bucket, [(file, path)]), _TRANSFER
            )
            if not path.exists() or file_digest(path)[:16] != match[2]:
                break  # not whole yet
            if match[3] == "lines":
                end = self._take_lines(path.read_bytes()) or end
                path.unlink()
            else:
                self.box.take(path)
            if end is None:  # the end is read again by a process that was killed before it acted on it
                done.touch()
        return end

    def _taken(self) -> int:
        return sum(1 for _ in self.box.folder.glob("*.done"))

    def _take_lines(self, data: bytes) -> dict[str, Any] | None:
        follower = self._follower()
        for line in data.splitlines():
            if not line.startswith(MARK):
                continue
            message = json.loads(line[len(MARK) :])
            if "status" in message:
                follower.show_phase(message["status"], self.place)
            elif "file" in message:
                content, offset = base64.b64decode(message["data"]), message["offset"]
                if message["file"] == LOG:  # what a process that was killed has taken before is passed over
                    have = sum(map(len, remote_lines(self.run.path(LOG)))) + len(follower._rest)
                    content = content[max(0, have - offset) :]
                follower._grew(message["file"], offset, content)
            elif "end" in message:
                return dict(message["end"])
        return None

    def has_files(self) -> bool:
        return self.box.listing() is not None

    def _verb(self, verb: str, input: bytes = b"", seconds: float | None = 60) -> dict[str, Any]:
        if verb == "list":
            files = self.box.listing()
            if files is None:
                raise RunFailed(f"nothing has come from {self.place} yet", f"resume: {self._again()}")
            return {"files": files}
        if verb == "clean":
            self.forget()
            return {"removed": True}
        raise NotImplementedError(verb)

    def forget(self) -> None:
        """Remove this attempt's files from the bucket."""
        paths = [file.path for file in self.account.files(self.bucket, self.base)]
        if paths:
            self.account.call(lambda: self.account.api.batch_bucket_files(self.bucket, delete=paths), _TRANSFER)

    def _stop(self) -> dict[str, Any]:
        """Let the run end in order, and end the job."""
        job = self.found()
        if job is None:
            return {"why": "cancelled", "ran": False}
        if not is_over(job):
            deadline = time.monotonic() + _TO_END
            with contextlib.suppress(Lost, FtkitError):
                self._ask_to_stop()
                running = getattr(job.status.stage, "value", job.status.stage) == "RUNNING"
                while running and time.monotonic() < deadline:
                    if end := self._take_new():
                        return end
                    if (now := self.found()) is None or is_over(now):
                        break
                    time.sleep(min(self.poll, 3.0))
            self.end_job()
        for _ in range(_LATE):
            if end := self._take_new():
                return end
            time.sleep(min(self.poll, 3.0))
        return {"why": "cancelled", "ran": self.has_files()}

    def _ask_to_stop(self) -> None:
        stop: Any = [(b"stop", f"{self.base}/in/stop")]
        self.account.call(lambda: self.account.api.batch_bucket_files(self.bucket, add=stop), _TO_END)

    def cancel(self, running: bool) -> Cancelled:
        if running and self.state.get("phase") in ("starting", "started"):
            self._ask_to_stop()  # the process that follows the run takes what comes, and ends the job
            return Cancelled(({"what": "run", "id": self._job(), "status": "asked to end"},))
        done = super().cancel(running)
        usd = self.settle()
        note = (f"the job has cost {dollars(usd)}",) if usd is not None else ()
        return Cancelled(done.ended, done.unknown, (*done.notes, *note))

    def _leave(self) -> None:
        self.end_job()  # its program has ended, or should have
        self.settle()
        super()._leave()

    def _again(self) -> str:
        return f"ftkit run --resume {self.run.dir}"


def is_over(job: JobInfo) -> bool:
    stage = job.status.stage
    return str(getattr(stage, "value", stage)) in ("COMPLETED", "CANCELED", "ERROR", "DELETED")
