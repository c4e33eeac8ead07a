"""The tracker `trackio` with the real library: what it records, read back from its SQLite file."""

from __future__ import annotations

import http.server
import json
import signal
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import openai_kit
import pytest
from openai_stub import KEY, Stub
from tracked import SECRETS, Desk

import ftkit
from ftkit import tracking
from ftkit.files import read_json

stub = openai_kit.stub


@pytest.fixture
def desk(tmp_path: Path, fake_site: Path) -> Desk:
    return Desk(tmp_path, fake_site)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, fake_site: Path) -> Desk:
    """One finished run with both trackers."""
    desk = Desk(tmp_path_factory.mktemp("trackio"), fake_site)
    trackers = [{"plugin": "trackio", "table_rows": 10, "table_characters": 12}, "wandb"]
    desk.ftkit(
        "run",
        desk.recipe(tracking=trackers),
        TRACKIO_SPACE_ID="someone/space",
        TRACKIO_WEBHOOK_URL="http://127.0.0.1:1",
    )
    return desk


def rows(folder: Path, query: str, project: str = "ftkit") -> list[tuple[Any, ...]]:
    with sqlite3.connect(folder / f"{project}.db") as database:
        return database.execute(query).fetchall()


def logged(folder: Path, project: str = "ftkit") -> list[tuple[str, int, dict[str, Any]]]:
    """Return (run, step, values) of every entry."""
    found = rows(folder, "select run_name, step, metrics from metrics order by id", project)
    return [(name, step, json.loads(values)) for name, step, values in found]


def test_both_trackers_of_a_recipe_are_told(done: Desk) -> None:
    run = done.runs()[0]
    assert run.record().warnings == () and [ref.name for ref in run.record().stages] != []
    assert {name for name, _, _ in logged(done.folder / "trackio")} == {run.id}
    (other,) = done.wandb()
    assert other.run.run_id == run.id and other.summary["verdict"] == "tuned is better than baseline"


def test_the_configuration_is_the_recipe_and_the_lock(done: Desk) -> None:
    ((text,),) = rows(done.folder / "trackio", "select config from configs")
    config = {key: value for key, value in json.loads(text).items() if not key.startswith("_")}
    assert set(config) == {"recipe", "lock"} and set(config["recipe"]) == set(tracking.RECIPE_KEYS)
    assert config["recipe"]["dataset"]["path"] == "rows" and config["lock"]["packages"]["ftkit"]
    assert str(done.folder) not in text.decode() if isinstance(text, bytes) else text


def test_curves_and_the_final_metrics(done: Desk) -> None:
    entries = logged(done.folder / "trackio")
    losses = [(step, values["train/loss"]) for _, step, values in entries if "train/loss" in values]
    assert losses == [(step, pytest.approx(1 / step)) for step in range(1, 7)]
    assert [(s, v["eval/overlap"]) for _, s, v in entries if "eval/overlap" in v] == [(6, 0.5)]
    last = entries[-1][2]
    report = read_json(done.runs()[0].path("report.json"))
    tuned = next(s for s in report["systems"] if s["name"] == "tuned")["metrics"]["overlap"]
    assert [last[f"tuned/overlap{part}"] for part in ("", "_low", "_high")] == pytest.approx(
        [tuned["value"], tuned["low"], tuned["high"]]
    )
    assert last["delta/tuned vs baseline/overlap_verdict"] == "better" and last["verdict"] == report["verdict"]
    assert last["train/peak_memory"] == 1000 and last["stage/train/usd"] == 0.25


def test_the_table_and_the_report(done: Desk) -> None:
    folder = done.folder / "trackio"
    last = logged(folder)[-1][2]
    table = last["predictions"]["_value"]
    assert len(table) == 10 and list(table[0])[:4] == ["id", "input", "target", "baseline"]
    assert max(len(cell) for row in table for cell in row.values() if isinstance(cell, str)) == 12
    page = done.runs()[0].path("report.html").read_bytes()
    assert page in [path.read_bytes() for path in (folder / "media").rglob("*.html")]


def test_lineage(done: Desk) -> None:
    folder, run = done.folder / "trackio", done.runs()[0]
    links = rows(
        folder,
        "select a.name, a.type, l.direction from run_artifact_links l join artifact_versions v "
        "on v.id = l.artifact_version_id join artifacts a on a.id = v.artifact_id",
    )
    assert ("rows-data", "dataset", "input") in links and ("fake-run-model", "model", "output") in links
    assert {kind for _, kind, _ in links} == {"dataset", "model", "predictions", "report"}
    aliases = rows(folder, "select a.name, l.alias from artifact_aliases l join artifacts a on a.id = l.artifact_id")
    fingerprints = read_json(run.path("data", "task.json"))["fingerprints"]
    ((metadata,),) = rows(folder, "select metadata from artifact_versions v where v.artifact_id = 1")
    assert json.loads(metadata)["fingerprints"] == fingerprints
    assert any(name == "rows-data" and alias != "latest" for name, alias in aliases)


def test_no_secret_is_recorded_and_nothing_of_the_machine(done: Desk) -> None:
    folder = done.folder / "trackio"
    everything = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    for name, secret in SECRETS.items():
        assert secret.encode() not in everything, name
    assert rows(folder, "select count(*) from system_metrics") == [(0,)]
    assert rows(folder, "select count(*) from alerts") == [(0,)]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_resumed_run_is_the_same_run_and_repeats_no_step(desk: Desk, end: signal.Signals) -> None:
    process = desk.start("run", desk.recipe(tracking=["trackio"]), FAKES="slow-step=2")
    deadline = time.monotonic() + 60
    while not (desk.folder / "trackio" / "ftkit.db").exists() or not any(
        path.read_text().count("\n") >= 2 for path in desk.folder.glob("runs/*/train/log.jsonl")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(end)
    process.communicate(timeout=60)
    status = "interrupted" if end == signal.SIGINT else "killed"
    while not any(values.get("status") == status for _, _, values in logged(desk.folder / "trackio")):
        assert time.monotonic() < deadline + 60
        time.sleep(0.1)
    (run,) = desk.runs()
    desk.ftkit("run", "--resume", run.dir)
    entries = logged(desk.folder / "trackio")
    assert {name for name, _, _ in entries} == {run.id}
    assert len(set(rows(desk.folder / "trackio", "select run_id from metrics"))) == 1
    assert [step for _, step, values in entries if "train/loss" in values] == [1, 2, 3, 4, 5, 6]
    assert entries[-1][2]["verdict"] == "tuned is better than baseline"


def test_seeds_share_a_group(desk: Desk) -> None:
    tracker = {"plugin": "trackio", "project": "seeds", "dir": str(desk.folder / "own")}
    desk.ftkit("run", desk.recipe(tracking=[tracker]), "--seeds", 2)
    configs = [json.loads(text) for (text,) in rows(desk.folder / "own", "select config from configs", "seeds")]
    groups = {config["_Group"] for config in configs}
    assert len(configs) == 2 and len(groups) == 1 and groups.pop().startswith("group-")
    assert not (desk.folder / "trackio").exists()


def test_a_folder_that_cannot_be_written_costs_no_run(desk: Desk) -> None:
    (desk.folder / "trackio").write_text("a file")
    desk.ftkit("run", desk.recipe(tracking=["trackio"]))
    record = desk.runs()[0].record()
    assert record.status == "done" and any("trackio" in warning for warning in record.warnings)


def test_a_managed_job_is_tracked_like_any_other(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    recipe = {**openai_kit.recipe(stub, openai_kit.write_rows(tmp_path / "rows")), "tracking": "trackio"}
    done = ftkit.run(recipe, out=tmp_path / "runs", yes=True)
    entries = logged(tmp_path / "trackio")
    steps = [(row["step"], row["loss"]) for row in done.directory.log_rows() if row["event"] == "step"]
    assert [(step, values["train/loss"]) for _, step, values in entries if "train/loss" in values] == steps
    assert entries[-1][2]["verdict"] == done.verdict
    assert KEY.encode() not in b"".join(p.read_bytes() for p in (tmp_path / "trackio").rglob("*") if p.is_file())


def test_a_space_that_the_recipe_names_is_private(desk: Desk) -> None:
    """The hub, on loopback: what trackio asks it to make."""
    asked: list[tuple[str, bytes]] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.path, self.rfile.read(int(self.headers.get("Content-Length", 0)))))
            self.send_response(503 if self.path == "/api/repos/create" else 404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    hub = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        recipe = desk.recipe(tracking=[{"plugin": "trackio", "space": "someone/runs"}])
        desk.ftkit("run", recipe, HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}")
    finally:
        hub.shutdown()
        hub.server_close()
    created = [json.loads(body) for path, body in asked if path == "/api/repos/create"]
    assert created and all(request["visibility"] == "private" for request in created), created
    assert desk.runs()[0].record().status == "done"
