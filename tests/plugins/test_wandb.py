"""The tracker `wandb` with the real client: what it records, read back from its files, and servers that fail."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import time
from pathlib import Path
from types import ModuleType
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
    """One finished run, offline since there is no key."""
    desk = Desk(tmp_path_factory.mktemp("wandb"), fake_site)
    tracking = [{"plugin": "wandb", "table_rows": 10, "table_characters": 12, "tags": ["first"]}]
    said = desk.ftkit("run", desk.recipe(tracking=tracking))
    (desk.folder / "said").write_text(said)
    return desk


# ---------------------------------------------------------------- what is recorded


def test_without_a_key_it_records_offline_and_says_how_to_send_it(done: Desk) -> None:
    said = (done.folder / "said").read_text()
    assert "wandb: recording offline: No API key configured." in said
    (found,) = done.wandb()
    assert found.folder.name.startswith("offline-run-")
    assert f"wandb: send it to the server with: wandb sync --yes runs/wandb/{found.folder.name}\n" in said
    assert found.exit_code == 0 and found.run.run_id == done.runs()[0].id
    assert found.run.project == "ftkit" and list(found.run.tags) == ["first"] and found.run.run_group == ""
    assert done.runs()[0].record().warnings == ()


def test_the_configuration_is_the_recipe_and_the_lock(done: Desk) -> None:
    (found,) = done.wandb()
    config, run = found.config, done.runs()[0]
    assert set(config) == {"recipe", "lock", "_wandb"}
    assert set(config["recipe"]) == set(tracking.RECIPE_KEYS)
    assert set(config["lock"]) <= set(tracking.LOCK_KEYS)
    lock = read_json(run.path("lock.json"))
    assert config["lock"]["packages"] == lock["packages"] and config["lock"]["code"] == lock["code"]
    assert config["lock"]["data"]["fingerprints"] == lock["data"]["fingerprints"]
    assert config["recipe"]["backend"]["steps"] == 6 and config["recipe"]["seed"] == 42
    assert config["recipe"]["dataset"]["path"] == "rows", "not the path on this machine"
    assert str(done.folder) not in json.dumps(config)


def test_nothing_else_is_captured(done: Desk) -> None:
    (found,) = done.wandb()
    everything = found.text + "".join(
        path.read_text(errors="replace") for path in found.folder.rglob("*") if path.is_file()
    )
    for name, secret in SECRETS.items():
        assert secret not in everything, name
    assert not {"output", "output_raw", "stats", "environment", "alert"} & set(found.kinds)
    assert (found.run.host, found.run.git.commit, found.run.git.remote_url) == ("", "", "")
    sent = {path.relative_to(found.folder / "files").parts[0] for path in (found.folder / "files").rglob("*")}
    assert sent == {"media"}, "no requirements.txt, no wandb-metadata.json, no code, no output.log"


def test_curves_have_their_own_axes(done: Desk) -> None:
    (found,) = done.wandb()
    assert found.axes == {"train/*": "train/step", "eval/*": "eval/step"}
    assert found.curve("train/loss") == [(step, pytest.approx(1 / step)) for step in range(1, 7)]
    assert found.curve("eval/overlap") == [(6, 0.5)]
    assert found.summary["train/peak_memory"] == 1000


def test_the_summary_holds_intervals_differences_and_the_verdict(done: Desk) -> None:
    (found,) = done.wandb()
    report = read_json(done.runs()[0].path("report.json"))
    summary = found.summary
    assert (summary["verdict"], summary["primary"]) == (report["verdict"], "overlap")
    for system in report["systems"]:
        metric = system["metrics"]["overlap"]
        key = f"{system['name']}/overlap"
        assert [summary[key], summary[f"{key}_low"], summary[f"{key}_high"], summary[f"{key}_n"]] == pytest.approx(
            [metric["value"], metric["low"], metric["high"], metric["n"]]
        )
    (delta,) = (d for d in report["deltas"] if d["metric"] == "overlap")
    key = "delta/tuned vs baseline/overlap"
    assert [summary[key], summary[f"{key}_low"], summary[f"{key}_high"], summary[f"{key}_p"]] == pytest.approx(
        [delta["delta"], delta["low"], delta["high"], delta["p_value"]]
    )
    assert summary[f"{key}_verdict"] == "better" and summary["stage/train/usd"] == 0.25


def test_the_table_is_cut_and_the_files_are_whole(done: Desk) -> None:
    (found,) = done.wandb()
    run = done.runs()[0]
    table = found.table("predictions")
    assert table["columns"] == [
        *("id", "input", "target", "baseline", "baseline overlap", "tuned", "tuned overlap", "difference")
    ]
    assert len(table["data"]) == 10
    assert max(len(cell) for row in table["data"] for cell in row if isinstance(cell, str)) == 12
    assert table["data"][0][1] == "test row 0 …"
    assert found.media("report") == run.path("report.html").read_text(encoding="utf-8")
    sent = {entry.path: Path(entry.local_path) for entry in found.artifacts["predictions"].manifest.contents}
    for name in ("baseline/predictions.jsonl", "tuned/predictions.jsonl", "tuned/scores.jsonl", "tuned/metrics.json"):
        assert sent[name].is_absolute() and sent[name].read_bytes() == run.path(name).read_bytes()
    (page,) = found.artifacts["report"].manifest.contents
    assert page.path == "report.html"


def test_lineage_leads_from_the_data_to_the_model(done: Desk, fakes: ModuleType) -> None:
    (found,) = done.wandb()
    run = done.runs()[0]
    data, model = found.artifacts["dataset"], found.artifacts["model"]
    assert data.use_after_commit and not model.use_after_commit
    fingerprints = read_json(run.path("data", "task.json"))["fingerprints"]
    assert json.loads(data.metadata)["fingerprints"] == fingerprints
    assert (data.name, model.name) == ("rows-data", "fake-run-model")
    assert tracking.dataset(run, False).version in data.aliases
    assert [entry.path for entry in data.manifest.contents] == ["about.json"], "not the rows"
    assert json.loads(model.metadata)["base"] == "fake-base"
    assert [entry.path for entry in model.manifest.contents] == ["about.json"], "not the weights"


def test_the_same_data_is_the_same_version_and_other_rows_are_another(desk: Desk) -> None:
    offline = [{"plugin": "wandb", "mode": "offline"}]
    desk.ftkit("run", desk.recipe("one", tracking=offline))
    desk.ftkit("run", desk.recipe("two", seed=7, tracking=offline))
    desk.ftkit("run", desk.recipe("three", rows=23, tracking=offline))
    one, two, three = (found.artifacts["dataset"] for found in desk.wandb())
    assert (one.digest, one.name) == (two.digest, two.name) and set(one.aliases) == set(two.aliases)
    assert three.name == one.name and three.digest != one.digest and set(three.aliases) != set(one.aliases)


def test_what_is_sent_can_be_chosen(desk: Desk) -> None:
    desk.ftkit("run", desk.recipe(tracking=[{"plugin": "wandb", "send_answers": False}]))
    desk.ftkit("run", desk.recipe("all", tracking=[{"plugin": "wandb", "send_data": True, "send_model": True}]))
    less, more = desk.wandb()
    assert set(less.artifacts) == {"dataset", "model"} and less.summary["tuned/overlap"] > 0
    assert "test row" not in less.text and not (less.folder / "files" / "media").exists()
    data = {entry.path for entry in more.artifacts["dataset"].manifest.contents}
    assert data == {"about.json", "train.jsonl", "validation.jsonl", "test.jsonl"}
    assert {entry.path for entry in more.artifacts["model"].manifest.contents} == {"about.json", "rule.json"}


def test_recipes_and_seeds_of_one_command_share_a_group(desk: Desk) -> None:
    one = desk.recipe("one", tracking=["wandb"])
    desk.ftkit("run", one, desk.recipe("two", tracking=[{"plugin": "wandb", "group": "mine"}]))
    desk.ftkit("run", one, "--seeds", 2)
    first, named, *seeds = (found.run.run_group for found in desk.wandb())
    assert first.startswith("group-") and named == "mine"
    assert len(set(seeds)) == 1 and seeds[0] not in ("", first)


def test_variables_of_wandb_are_followed_but_not_into_more_capture_or_another_run(desk: Desk) -> None:
    capture = {"WANDB_CONSOLE": "wrap", "WANDB_SAVE_CODE": "true", "WANDB_DISABLE_GIT": "false"}
    other = {"WANDB_RUN_ID": "other", "WANDB_RESUME": "must", "WANDB_SERVICE": "3-1-unix-/nowhere"}
    said = desk.ftkit("run", desk.recipe(tracking=["wandb"]), WANDB_MODE="offline", **capture, **other)
    (found,) = desk.wandb()
    assert "recording offline" not in said, "it was asked for"
    assert found.run.run_id == desk.runs()[0].id and not {"output", "output_raw"} & set(found.kinds)
    assert not (found.folder / "files" / "code").exists()
    said = desk.ftkit("run", desk.recipe(tracking=["wandb"]), WANDB_MODE="disabled")
    assert "wandb: WANDB_MODE is disabled: nothing is recorded\n" in said and len(desk.wandb()) == 1
    assert desk.runs()[-1].record().warnings == ()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_resumed_run_keeps_its_id_and_repeats_no_step(desk: Desk, end: signal.Signals) -> None:
    process = desk.start("run", desk.recipe(tracking=["wandb"]), FAKES="slow-step=2")
    log = "runs/*/train/log.jsonl"
    until(lambda: any(path.read_text().count("\n") >= 2 for path in desk.folder.glob(log)))
    until(lambda: desk.wandb_folders())
    process.send_signal(end)
    process.communicate(timeout=60)
    (run,) = desk.runs()
    until(lambda: desk.wandb()[0].exit_code == 1)
    said = desk.ftkit("run", "--resume", run.dir)
    first, second = desk.wandb()
    assert first.run.run_id == second.run.run_id == run.id
    assert first.summary["status"] == ("interrupted" if end == signal.SIGINT else "killed")
    assert [step for step, _ in first.curve("train/loss") + second.curve("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert max(row["_step"] for row in first.history) < min(row["_step"] for row in second.history)
    for found in (first, second):
        assert re.search(rf"wandb sync --yes \S*/{found.folder.name}\n", said)


def until(true: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(ValueError):  # a file that is being written
            if true():
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_managed_job_is_tracked_like_any_other(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))
    recipe = openai_kit.recipe(stub, openai_kit.write_rows(tmp_path / "rows"))
    done = ftkit.run({**recipe, "tracking": [{"plugin": "wandb", "mode": "offline"}]}, out=tmp_path / "runs", yes=True)
    (found,) = Desk(tmp_path, tmp_path).wandb()
    steps = [(row["step"], row["loss"]) for row in done.directory.log_rows() if row["event"] == "step"]
    assert found.curve("train/loss") == steps and len(steps) == stub.steps
    assert found.summary["verdict"] == done.verdict and found.summary["stage/train/usd"] > 0
    model = json.loads(found.artifacts["model"].metadata)
    assert model["kind"] == "remote" and model["uri"].startswith("ft:")
    everything = found.text + "".join(p.read_text(errors="replace") for p in found.folder.rglob("*") if p.is_file())
    assert KEY not in everything
