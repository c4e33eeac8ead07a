"""A server of one's own for as long as a `with` lasts: how a recipe without any account gets its provider."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ftkit.errors import RunFailed

_COMMAND = "from ftkit.cli.main import main; main()"
_PATIENCE = 20.0  # seconds for an earlier server on this folder to let go of it


@contextlib.contextmanager
def local_server(data_dir: Path, *options: str) -> Iterator[str]:
    """Start `ftkit serve` on `data_dir` and a free port, yield its base URL ("http://127.0.0.1:PORT/v1"), stop it.

    The server ends by itself when this process dies. Jobs and files are in `data_dir`: a later server
    there goes on with them. Raises RunFailed where it does not start.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    line = [sys.executable, "-c", _COMMAND, "serve", "--port", "0", "--data", str(data_dir), "--watch-stdin", *options]
    deadline = time.monotonic() + _PATIENCE
    with open(data_dir / "server.log", "ab") as log:
        while True:
            start = log.tell()
            server = subprocess.Popen(
                line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
            assert server.stdin is not None and server.stdout is not None
            said = server.stdout.readline()  # printed when it answers; empty when it ended
            if said:
                break
            server.wait()
            with open(data_dir / "server.log", "rb") as written:
                written.seek(start)
                why = written.read().decode(errors="replace").strip()
            if "another server uses" not in why or time.monotonic() > deadline:
                raise RunFailed(f"ftkit serve did not start: {why or f'status {server.returncode}'}")
            time.sleep(0.2)  # of a process that was killed a moment ago: it is ending
        try:
            yield said.split()[-1]
        finally:
            server.stdin.close()
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            server.stdout.close()
