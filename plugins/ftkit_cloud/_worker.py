"""What a Hugging Face Job executes: one file of the standard library alone, read from the mounted bucket.

    python worker.py MOUNT

MOUNT/in holds what travels (bundle.tar, job.json, remote.py). The run is executed on the job's own disk by remote.py. What
it says, and its files, go to MOUNT/out as files that are written once, whole, and never changed:

    NNNNNN-DIGEST.lines   what `remote.py follow` printed
    NNNNNN-DIGEST.tar     run/PATH: the files of the run directory that are new or have changed;
                          list.json: every file of the run directory, with size and SHA-256, as it was sent

DIGEST is the beginning of the file's SHA-256: a reader that sees a part of a file knows it. The last line of the last
`.lines` file is the end of the run. A file MOUNT/in/stop ends it early.
"""

import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

MARK = b"@ftkit "
_WAIT = 0.5  # seconds between two looks


class Box:
    """MOUNT/out: numbered files, each written once."""

    def __init__(self, folder, scratch):
        self.folder, self.scratch = folder, scratch
        os.makedirs(folder, exist_ok=True)
        self.number = 0

    def add(self, path, kind):
        """Copy a file there under its number and digest."""
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.number += 1
        shutil.copyfile(path, os.path.join(self.folder, f"{self.number:06d}-{digest[:16]}.{kind}"))

    def write(self, data, kind):
        path = os.path.join(self.scratch, "out")
        with open(path, "wb") as file:
            file.write(data)
        self.add(path, kind)
        os.unlink(path)


def tells_of_a_stage(line):
    """Return whether the run's log grew by the end of a stage."""
    if b"log.jsonl" in line:
        with contextlib.suppress(ValueError, KeyError):
            data = base64.b64decode(json.loads(line[len(MARK) :])["data"])
            return b'"stage"' in data and b'"done"' in data
    return False


class Worker:
    def __init__(self, mount):
        self.mount = mount
        self.base = tempfile.mkdtemp(prefix="ftkit-")
        self.job = os.path.join(self.base, "job")
        shutil.copytree(os.path.join(mount, "in"), self.job)
        with open(os.path.join(self.job, "job.json"), encoding="utf-8") as file:
            self.spec = json.load(file)
        self.root = os.path.join(self.job, "work", self.spec["run"])
        self.box = Box(os.path.join(mount, "out"), self.base)
        self.sent = {}  # path -> size and digest of what was sent
        self.lines, self.lock = [], threading.Lock()
        self.stopping = False

    def remote(self, verb):
        return [sys.executable, "-B", os.path.join(self.job, "remote.py"), verb, self.job]

    def go(self):
        signal.signal(signal.SIGTERM, lambda *_: self.stop())
        supervisor = subprocess.Popen(self.remote("run"), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        status = os.path.join(self.job, "status.json")
        while not os.path.exists(status) and supervisor.poll() is None:
            time.sleep(0.05)
        follower = subprocess.Popen(self.remote("follow"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        follower.stdin.write(json.dumps({"offsets": self.spec.get("offsets", {})}).encode() + b"\n")
        follower.stdin.flush()
        reader = threading.Thread(target=self.read, args=(follower.stdout,), daemon=True)
        reader.start()
        flushed = snapped = time.monotonic()
        while reader.is_alive():
            reader.join(_WAIT)
            now = time.monotonic()
            if os.path.exists(os.path.join(self.mount, "in", "stop")):
                self.stop()
            if now - snapped > self.spec.get("snapshot_seconds", 600):
                self.snapshot()
                snapped = time.monotonic()
            if now - flushed > self.spec.get("flush_seconds", 5):
                self.flush(end=False)
                flushed = now
        supervisor.wait()
        follower.wait()
        return 0 if b'"why": "done"' in self.flush(end=True) else 1

    def read(self, stream):
        for line in stream:
            if line.startswith(MARK):
                with self.lock:
                    self.lines.append(line)

    def flush(self, end):
        """Send the lines that wait, behind the files that they speak of; return the last one."""
        with self.lock:
            # The end is the last word: what is missing then never comes.
            lines = [line for line in self.lines if end or not line.startswith(MARK + b'{"end"')]
            self.lines = self.lines[len(lines) :]
        if end or any(map(tells_of_a_stage, lines)):
            self.snapshot()
        if lines:
            self.box.write(b"".join(lines), "lines")
        return lines[-1] if lines else b""

    def snapshot(self):
        """Send the files that are new or have changed, with a list of all.

        Both are one archive: a job can be killed at any moment, and a list must never speak of other files than came with it.
        """
        if not os.path.isdir(self.root):
            return
        done = subprocess.run(self.remote("list"), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        found = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
        if not found:
            return
        files = json.loads(found[-1][len(MARK) :])["files"]
        path, copy = os.path.join(self.base, "snapshot.tar"), os.path.join(self.base, "copy")
        with tarfile.open(path, "w") as tar:
            for name in [name for name, entry in files.items() if self.sent.get(name) != entry]:
                # The file may have grown since it was listed: its copy is what is sent and listed.
                try:
                    shutil.copyfile(os.path.join(self.root, name), copy)
                except OSError:  # removed since it was listed
                    del files[name]
                    continue
                tar.add(copy, f"run/{name}")
                with open(copy, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                files[name] = {"size": os.path.getsize(copy), "sha256": digest}
                os.unlink(copy)
            with open(copy, "w", encoding="utf-8") as file:
                json.dump(files, file)
            tar.add(copy, "list.json")
            os.unlink(copy)
        self.box.add(path, "tar")
        os.unlink(path)
        self.sent = files

    def stop(self):
        """Let the run end early, in order: what it has done is sent."""
        if not self.stopping:
            self.stopping = True
            with open(os.path.join(self.job, "stop"), "w"):
                pass


if __name__ == "__main__":
    print("ftkit: this job executes a run; ftkit follows it from the machine that started it", flush=True)
    worker = Worker(sys.argv[1])
    code = worker.go()
    with contextlib.suppress(OSError), open(os.path.join(worker.job, "output.log"), "rb") as log:
        sys.stdout.write(log.read()[-4000:].decode("utf-8", "replace") + "\n")
    shutil.rmtree(worker.base, ignore_errors=True)
    sys.exit(code)
