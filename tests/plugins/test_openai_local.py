"""The `local` dialect: a server of the run's own, and what survives when both are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ftkit.directory import RunDirectory
from ftkit.files import read_json

ROOT = Path(__file__).parents[2]
SMALL = ["dataset.splits.train=80", "dataset.splits.validation=4", "dataset.splits.test=8"]


def started(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """Start `ftkit ARGUMENTS` without any key in its environment."""
    env = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")}
    env["OMP_NUM_THREADS"] = "1"  # the model is tiny, and other tests run at the same time
    code = "from ftkit.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=folder, env=env, stderr=subprocess.PIPE, text=True
    )


def servers(directory: Path) -> list[str]:
    """Return the processes that serve from this run directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if " serve " in line and str(directory) in line:
            found.append(line)
    return found


def test_a_run_that_is_killed_while_its_own_server_trains_resumes(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("fastapi")
    pytest.importorskip("openai")
    overrides = [part for setting in SMALL for part in ("--set", setting)]
    run = started(tmp_path, "run", ROOT / "recipes" / "quickstart-managed.yaml", *overrides, "--out", tmp_path / "runs")
    deadline = time.monotonic() + 240
    try:
        while not any('"step"' in p.read_text() for p in tmp_path.glob("runs/*/train/log.jsonl")):
            assert run.poll() is None and time.monotonic() < deadline, run.communicate()[1]
            time.sleep(0.1)
    finally:
        run.send_signal(signal.SIGKILL)
        run.communicate()
    (directory,) = (tmp_path / "runs").iterdir()
    while servers(directory) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not servers(directory), "the server ends with the run"

    again = started(tmp_path, "run", "--resume", directory, "--yes")
    try:
        _, said = again.communicate(timeout=300)
    finally:
        again.kill()
    assert again.returncode == 0, said
    context = RunDirectory.open(directory)
    assert context.record().status == "done" and not servers(directory)
    model = context.model()
    assert model is not None and model.meta["hosted_by"] == "this machine" and "shutdown_date" not in model.meta
    jobs = {row["id"] for row in context.log_rows() if row["event"] == "provider"}
    assert len(jobs) >= 5 and context.state("openai-managed")["job"]["phase"] == "created"
    assert read_json(context.path("audit.json"))["estimate"]["usd"] == 0.0
    report = json.loads((directory / "report.json").read_text())
    assert [s["name"] for s in report["systems"]] == ["baseline", "tuned"]
    assert all(s["info"]["hosted_by"] == "this machine" for s in report["systems"])
