"""Several processes that end early: killed as a whole, one of them alone, on two machines. What is left resumes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import FSDP, STEPS, ZERO2, ZERO3, alone, assert_loads_in_one_process, end, losses, prepared, wait_for

import ftkit
from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.errors import InputError
from ftkit.files import read_json


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The run of one process that the others must equal."""
    return alone(tmp_path_factory.mktemp("runs"))


def train(directory: Path) -> subprocess.Popen[bytes]:
    """Start the training of a prepared run, without measurements before and after."""
    return subprocess.Popen(
        [sys.executable, "-m", "ftkit.run.worker", str(directory)],
        stdout=subprocess.DEVNULL, stderr=open(directory / "said.txt", "ab"),
    )  # fmt: skip


def finish(process: subprocess.Popen[bytes], directory: Path) -> int:
    status = process.wait(600)
    assert status in (0, 1), (directory / "said.txt").read_text()
    return status


def wait_for_checkpoint(found: RunDirectory, process: subprocess.Popen[bytes]) -> None:
    def there() -> bool:
        assert process.poll() is None, (found.dir / "said.txt").read_text()
        return bool(list(found.dir.glob(".work/checkpoints/*/ftkit-complete")))

    wait_for(there)


def ranks(directory: Path) -> dict[str, int]:
    """Return the process ids of a run's training processes, by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_text().split("\0")
            environment = dict(v.partition("=")[::2] for v in (path / "environ").read_text().split("\0"))
        except OSError:
            continue
        if "ftkit_trl.rank" in command and str(directory) in command and "RANK" in environment:
            found[environment["RANK"]] = int(path.name)
    return found


@pytest.mark.parametrize("launch", [FSDP, ZERO3, {"processes": 2}])
def test_a_killed_run_resumes_and_equals_an_unbroken_one(
    one: RunDirectory, tmp_path: Path, launch: dict[str, Any]
) -> None:
    found = prepared(tmp_path, launch=launch, save_steps=2)
    process = train(found.dir)
    wait_for_checkpoint(found, process)
    process.kill()
    process.wait()
    wait_for(lambda: not ranks(found.dir), 60)  # no process is left behind
    if len(launch) > 1:
        assert_refused_with_three(found, "fsdp" if launch is FSDP else "deepspeed")
        assert finish(train(found.dir), found.dir) == 0, found.path("train", "error.json").read_text()
    else:  # checkpoints of DDP do not depend on the number of processes
        ftkit.resume(found.dir, Console(silent=True), overrides=["backend.launch.processes=1"])
    assert next(row for row in found.log_rows() if row["event"] == "start" and row["resumed"])
    assert losses(found) == pytest.approx(losses(one), rel=1e-4)
    assert end(found)["steps"] == STEPS
    assert_loads_in_one_process(found, one)


def assert_refused_with_three(found: RunDirectory, engine: str) -> None:
    """Another number of processes cannot read the parts of a checkpoint."""
    backend = found.recipe.backend.make()
    three = backend.options.launch.model_copy(update={"processes": 3})
    backend.options = backend.options.model_copy(update={"launch": three})
    with pytest.raises(
        InputError, match=rf"are of 2 processes \({engine}\), and now there are 3 \({engine}\)"
    ) as refused:
        backend.train(found.task.for_training(), found)
    assert "resume with 2 processes" in str(refused.value)


def test_one_process_that_is_killed_ends_the_run_and_is_named(tmp_path: Path) -> None:
    found = prepared(tmp_path, launch=ZERO2, save_steps=2, max_steps=400)
    process = train(found.dir)
    wait_for_checkpoint(found, process)
    os.kill(ranks(found.dir)["1"], signal.SIGKILL)
    assert finish(process, found.dir) == 1
    error = read_json(found.path("train", "error.json"))
    assert error["message"] == "process 1 was ended by signal 9 (SIGKILL)"
    assert error["cause"] == "memory" and not ranks(found.dir)
    assert_refused_with_three(found, "deepspeed")


def test_two_machines_on_one_address(one: RunDirectory, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = prepared(tmp_path, launch={"processes": 1, "nodes": 2, "rendezvous": f"127.0.0.1:{port}"})
    first = train(found.dir)
    note = wait_for(lambda: [r for r in found.journal if "start on each" in str(r.get("message"))])[0]["message"]
    command = note.partition("start on each: ")[2].split()
    other = subprocess.Popen([sys.executable, *command[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert finish(first, found.dir) == 0
    assert other.wait(60) == 0
    assert end(found)["processes"] == 2
    assert losses(found) == pytest.approx(losses(one), rel=1e-4)
