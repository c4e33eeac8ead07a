"""The tracker `wandb` and its server: one that works, and all the ways in which one does not."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tracked import SECRETS, Desk
from wandb_stub import FAILING, Server

KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def desk(tmp_path: Path, fake_site: Path) -> Desk:
    return Desk(tmp_path, fake_site)


def run(desk: Desk, server: Server, **options: Any) -> str:
    tracker = {"plugin": "wandb", "base_url": server.url, "init_timeout": 5, "finish_timeout": 3, **options}
    return desk.ftkit("run", desk.recipe(tracking=[tracker]), WANDB_API_KEY=KEY)


def left_over(desk: Desk) -> list[str]:
    """Return the processes that were given this desk's environment and are still there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(desk.folder).encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def check_no_process_is_left(desk: Desk) -> None:
    deadline = time.monotonic() + 20
    while left_over(desk):
        assert time.monotonic() < deadline, left_over(desk)
        time.sleep(0.1)


def check_no_secret_was_sent(server: Server) -> None:
    everything = b"".join(body + json.dumps(headers).encode() for _, body, headers in server.requests)
    for secret in SECRETS.values():
        assert secret.encode() not in everything
    assert KEY.encode() not in b"".join(body for _, body, _ in server.requests)


@pytest.mark.parametrize("kind", FAILING)
def test_a_server_that_fails_costs_nothing_but_the_connection(desk: Desk, kind: str) -> None:
    with Server(kind) as server:
        said = run(desk, server)
        check_no_secret_was_sent(server)
    record = desk.runs()[0].record()
    assert record.status == "done"
    assert sum(stage.seconds or 0 for stage in record.stages) < 5, "no stage waited for the server"
    assert len(record.warnings) == 1
    assert record.warnings[0].startswith("wandb: recording offline, since the server cannot be used: ")
    assert KEY not in said
    (found,) = desk.wandb()
    assert found.folder.name.startswith("offline-run-") and f"wandb sync --yes runs/wandb/{found.folder.name}" in said
    assert [step for step, _ in found.curve("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert found.summary["verdict"] == "tuned is better than baseline" and set(found.artifacts) >= {"dataset", "model"}
    check_no_process_is_left(desk)


def test_a_server_that_works_has_everything(desk: Desk) -> None:
    with Server("works") as server:
        said = run(desk, server, entity="me", finish_timeout=30)
        check_no_secret_was_sent(server)
    assert "recording offline" not in said and "wandb sync" not in said
    run_id = desk.runs()[0].id
    (first, *_) = server.queries("UpsertBucket")
    assert (first["name"], first["project"], first["displayName"]) == (run_id, "ftkit", "fake-run")
    assert (first["host"], first["program"], first["commit"], first["repo"]) == (None, "ftkit", None, None)
    history = server.streamed("wandb-history.jsonl")
    assert [row["train/step"] for row in history if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert server.streamed("wandb-summary.json")[-1]["verdict"] == "tuned is better than baseline"
    check_the_server_has_all_artifacts(server)
    check_no_process_is_left(desk)


def check_the_server_has_all_artifacts(server: Server) -> None:
    """Each artifact was created, its files were sent, and it was committed; the run used the data and made the model."""
    kinds = {identity: made["artifactTypeName"] for identity, made in server.artifacts.items()}
    assert {"dataset", "model", "predictions", "report"} <= set(kinds.values())
    assert sorted(server.committed) == sorted(server.artifacts)
    (used,) = server.queries("UseArtifact")
    assert kinds[used["input"]["artifactID"]] == "dataset"
    sent = {path.removeprefix("/artifact/").partition("/")[2] for path, _, _ in server.requests if "/artifact/" in path}
    assert {"report.html", "tuned/predictions.jsonl", "baseline/scores.jsonl", "about.json"} <= sent


def test_an_offline_run_is_sent_by_the_printed_command(desk: Desk) -> None:
    said = desk.ftkit("run", desk.recipe(tracking=["wandb"]))
    command = re.search(r"send it to the server with: (wandb sync --yes .*)", said)
    assert command
    with Server("works") as server:
        environment = desk.environment(WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url)
        line = [sys.executable, "-m", *shlex.split(command[1])]
        sync = subprocess.run(line, env=environment, cwd=desk.folder, capture_output=True, text=True, timeout=120)
        assert sync.returncode == 0, sync.stderr
        check_no_secret_was_sent(server)
    assert server.queries("UpsertBucket")[0]["name"] == desk.runs()[0].id
    steps = [row["train/step"] for row in server.streamed("wandb-history.jsonl") if "train/loss" in row]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert server.streamed("wandb-summary.json")[-1]["verdict"] == "tuned is better than baseline"
    check_the_server_has_all_artifacts(server)


def test_a_server_that_stalls_in_the_run_delays_its_end_by_finish_timeout_at_most(desk: Desk) -> None:
    began = time.monotonic()
    with Server("stalls") as server:
        said = run(desk, server)
        seconds = time.monotonic() - began
        check_no_secret_was_sent(server)
    record = desk.runs()[0].record()
    assert record.status == "done" and sum(stage.seconds or 0 for stage in record.stages) < 5
    assert seconds < 30
    assert record.warnings == ("wandb: the server did not take everything within 3 s",)
    (found,) = desk.wandb()
    assert found.folder.name.startswith("run-") and f"wandb sync --yes runs/wandb/{found.folder.name}" in said
    assert found.summary["verdict"] == "tuned is better than baseline", "the transaction log is complete"
    check_no_process_is_left(desk)
