"""The server of a run's own: `ftkit serve`, started as a child process for the `local` dialect, and stopped with the run."""

from __future__ import annotations

import atexit
import contextlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ftkit.api import Run
from ftkit.errors import RunFailed

# How a child process becomes the command line `ftkit`; `serve` is a command of it. No code of the server is imported here.
_FTKIT = (sys.executable, "-m", "ftkit")
_PATIENCE = 20.0  # seconds for an earlier server on this folder to release it

_running: dict[Path, tuple[contextlib.ExitStack, str]] = {}
_lock = threading.Lock()


@contextlib.contextmanager
def local_server(data_dir: Path, *options: str) -> Iterator[str]:
    """Start `ftkit serve` on `data_dir` and a free port, yield its base URL ("http://127.0.0.1:PORT/v1"), stop it.

    The server ends by itself when this process dies. Jobs and files are in `data_dir`: a later server
    there resumes them. Raises RunFailed where it does not start.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    command = [*_FTKIT, "serve", "--port", "0", "--data", str(data_dir), "--watch-stdin", *options]
    deadline = time.monotonic() + _PATIENCE
    with open(data_dir / "server.log", "ab") as log:
        while True:
            start = log.tell()
            server = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
            assert server.stdin is not None and server.stdout is not None
            line = server.stdout.readline()  # printed when the server is ready; empty when it ended
            if line:
                break
            server.wait()
            with open(data_dir / "server.log", "rb") as written:
                written.seek(start)
                why = written.read().decode(errors="replace").strip()
            if "another server uses" not in why or time.monotonic() > deadline:
                raise RunFailed(f"ftkit serve did not start: {why or f'status {server.returncode}'}")
            time.sleep(0.2)  # the server of a process that was killed a moment ago is still ending
        try:
            yield line.split()[-1]
        finally:
            server.stdin.close()
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            server.stdout.close()


def server_for(run: Run) -> str:
    """Return the address of this run's own server, started on first use; its data are in the run directory.

    A run that is only used stays as it is: its server works on a copy.
    """
    with _lock:
        if run.dir not in _running:
            stack = contextlib.ExitStack()
            data = run.path("train", "server")
            if run.sealed:
                data = shutil.copytree(data, run.scratch("server"), dirs_exist_ok=True)
            _running[run.dir] = (stack, stack.enter_context(local_server(data)))
        return _running[run.dir][1]


def stop(run: Run) -> None:
    """Stop the server of a run, where it has one; its data stay."""
    with _lock:
        stack, _ = _running.pop(run.dir, (None, ""))
    if stack is not None:
        stack.close()


@atexit.register
def _stop_all() -> None:
    for stack, _ in _running.values():
        with contextlib.suppress(Exception):  # the process ends, and the server ends with it anyway
            stack.close()
    _running.clear()
