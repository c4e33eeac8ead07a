"""Exports with the fake backend: complete or absent, measured, sealed again, described, and pushed only where confirmed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hub import TOKEN, Fault, Hub

import ftkit
from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.errors import FtkitError, InputError
from ftkit.files import read_json
from ftkit.interface import export_and_push
from ftkit.records import ModelRef
from ftkit.run.export_target import listed_files, target_of
from ftkit.run.verify import verify

Make = Callable[..., Any]
QUIET = Console(silent=True)


@pytest.fixture
def run(recipe: Make, fakes: ModuleType, tmp_path: Path) -> RunDirectory:
    return ftkit.run(recipe(), out=tmp_path / "runs", console=QUIET).directory


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- measured, and sealed again


def test_an_export_is_a_further_system_of_a_run_that_stays_sealed(run: RunDirectory, tmp_path: Path) -> None:
    done = ftkit.export(run.dir, tmp_path / "out" / "model", console=QUIET)
    assert entries(tmp_path / "out") == ["model"]
    assert entries(tmp_path / "out" / "model") == ["README.md", "ftkit.json", "rule.json"]
    assert done.systems["export-adapter"]["overlap"].value == run.metrics("tuned")["overlap"].value
    assert [p.text for p in run.predictions("export-adapter")] == [p.text for p in run.predictions("tuned")]
    assert done.compared == ("export-adapter gives the same answers as tuned to all 24 test rows",) and not done.lost
    report = read_json(run.path("report.json"))
    (system,) = [s for s in report["systems"] if s["name"] == "export-adapter"]
    assert system["role"] == "export" and "export-adapter" in run.path("report.md").read_text()
    assert verify(run).ok and not run.path(".work").exists()
    assert run.measurement("export-adapter")["model"]["uri"] == "export:.", "no path of this machine"


def test_an_export_changes_no_verdict_of_the_run(run: RunDirectory, tmp_path: Path) -> None:
    before = read_json(run.path("report.json"))
    ftkit.export(run.dir, tmp_path / "a", merge=True, base="original", console=QUIET)
    after = read_json(run.path("report.json"))
    of_run = [d for d in after["deltas"] if not d["to"].startswith("export-")]
    assert of_run == before["deltas"] and len(after["deltas"]) > len(of_run)
    assert (after["verdict"], after["verdict_detail"]) == (before["verdict"], before["verdict_detail"])


def test_an_export_that_lost_says_so(run: RunDirectory, command: Make, tmp_path: Path) -> None:
    done = command("export", run.dir, "--to", "wrong", "--merge", "--base", "original")
    assert done.returncode == 0
    assert "warning: export-merged is worse than tuned, from which it was made: overlap " in done.stderr
    assert "export-merged is worse than tuned" in run.path("report.md").read_text()
    assert "worse: overlap" in (tmp_path / "wrong" / "README.md").read_text()


def test_the_same_export_again_replaces_its_measurement(run: RunDirectory, tmp_path: Path) -> None:
    ftkit.export(run.dir, tmp_path / "a", merge=True, base="original", console=QUIET)
    bad = run.metrics("export-merged")["overlap"].value
    done = ftkit.export(run.dir, tmp_path / "b", merge=True, console=QUIET)
    assert done.systems["export-merged"]["overlap"].value > bad + 0.2
    assert run.measured().count("export-merged") == 1 and verify(run).ok


def test_a_run_that_was_changed_is_not_sealed_over(run: RunDirectory, command: Make, tmp_path: Path) -> None:
    with open(run.path("debug.log"), "a") as log:
        log.write("changed")
    done = command("export", run.dir, "--to", tmp_path / "out")
    assert done.returncode == 0 and "is not as it was sealed: debug.log" in done.stderr
    assert not verify(run).ok


# ---------------------------------------------------------------- complete or absent


def test_killed_while_it_is_measured_it_leaves_nothing_that_looks_finished(
    run: RunDirectory, command: Make, tmp_path: Path
) -> None:
    started = command("export", run.dir, "--to", "out/model", wait=False, FAKES="slow=0.3")
    journal = run.dir / ".work" / "export" / "export-adapter" / "predictions.journal"
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_text().count("\n") >= 2):
        assert time.monotonic() < deadline and started.poll() is None
        time.sleep(0.02)
    os.kill(started.pid, signal.SIGKILL)
    started.communicate()
    left = entries(tmp_path / "out")
    assert len(left) == 1 and left[0].startswith(".model.") and left[0].endswith(".exporting")
    assert verify(run).ok and "export-adapter" not in run.measured()
    answered = journal.read_text().splitlines()
    done = command("export", run.dir, "--to", "out/model", "--json")
    assert done.returncode == 0 and entries(tmp_path / "out") == ["model"]
    assert verify(run).ok and run.measured()[-1] == "export-adapter"
    first = json.loads(answered[0])["predictions"][0]["latency"]
    timings = [json.loads(line)["latency"] for line in run.path("export-adapter", "timings.jsonl").open()]
    assert first in timings, "what was answered before the kill was not asked again"


def test_ctrl_c_leaves_nothing(run: RunDirectory, command: Make, tmp_path: Path) -> None:
    started = command("export", run.dir, "--to", "out/model", wait=False, FAKES="slow=0.5")
    deadline = time.monotonic() + 60
    while not (tmp_path / "out").exists() or not entries(tmp_path / "out"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 130 and "no export was written" in err and "Traceback" not in err
    assert entries(tmp_path / "out") == [] and verify(run).ok


@pytest.mark.parametrize(
    ("knobs", "status", "message"),
    [
        ("export=full-disk", 1, "the disk is full"),
        ("export=crash", 1, "the export failed: RuntimeError: the fake converter broke"),
        ("export-size=1000000000000000000", 2, "the export needs about 1,000,000,000.00 GB of disk"),
    ],
)
def test_what_stops_an_export_is_one_message(
    knobs: str, status: int, message: str, run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKES", knobs)
    with pytest.raises(FtkitError, match=message) as error:
        ftkit.export(run.dir, tmp_path / "out" / "model", console=QUIET)
    assert error.value.exit_status == status
    assert not (tmp_path / "out").exists() or entries(tmp_path / "out") == []
    assert verify(run).ok


# ---------------------------------------------------------------- refused


def test_a_folder_that_holds_something_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="full is not empty"):
        ftkit.export(run.dir, tmp_path / "full", console=QUIET)
    with pytest.raises(InputError, match="file is a file"):
        ftkit.export(run.dir, tmp_path / "file", console=QUIET)
    ftkit.export(run.dir, tmp_path / "empty", console=QUIET)
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine" and (tmp_path / "empty" / "README.md").exists()


def test_a_backend_without_weights_says_so(recipe: Make, fakes: ModuleType, tmp_path: Path) -> None:
    echo = ftkit.run(recipe(backend={"plugin": "fake-echo"}), out=tmp_path / "runs", console=QUIET)
    with pytest.raises(InputError, match="backend 'fake-echo' cannot export a model"):
        ftkit.export(echo.dir, tmp_path / "out", console=QUIET)


def test_the_weights_of_a_managed_model_stay_with_the_provider(run: RunDirectory, tmp_path: Path) -> None:
    path = run.path("train", "model.json")
    path.write_text(json.dumps(ModelRef("remote", "ft:tiny:acme").to_dict()))
    with pytest.raises(InputError, match="the weights of ft:tiny:acme stay with the provider"):
        ftkit.export(run.dir, tmp_path / "out", console=QUIET)


def test_an_unfinished_run_says_how_to_finish_it(recipe_file: Make, command: Make, tmp_path: Path) -> None:
    command("run", recipe_file(), "--out", "runs", FAKES="train=crash")
    (run,) = (tmp_path / "runs").iterdir()
    done = command("export", run, "--to", "out")
    assert done.returncode == 2 and f"finish it first: ftkit run --resume {run}" in done.stderr


def test_a_model_that_is_gone_says_so(run: RunDirectory, tmp_path: Path) -> None:
    run.path("train", "model").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="the trained model is gone"):
        ftkit.export(run.dir, tmp_path / "out", console=QUIET)


@pytest.mark.parametrize("to", ["hf:", "hf:name", "hf:a/b/c", "hf:../x", "", "."])
def test_a_place_that_cannot_be_one_is_refused(to: str) -> None:
    with pytest.raises(InputError, match="not the name of a"):
        target_of(to)


def test_what_a_recipe_wants_exported_is_checked_before_training(
    recipe: Make, fakes: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(FtkitError, match="there is no converter here"):
        ftkit.run(recipe(export={"gguf": "q8_0"}), out=tmp_path / "runs", console=QUIET)
    assert not list(tmp_path.glob("runs/*"))
    echo = recipe(backend={"plugin": "fake-echo"}, export={"merge": True})
    with pytest.raises(FtkitError, match="cannot export a model"):
        ftkit.run(echo, out=tmp_path / "runs", console=QUIET)
    wanted = ftkit.run(recipe(export={"merge": True}), out=tmp_path / "runs", console=QUIET)
    assert list(ftkit.export(wanted.dir, tmp_path / "out", console=QUIET).systems) == ["export-merged"]


# ---------------------------------------------------------------- the card


def test_the_card_is_read_by_the_hubs_library(run: RunDirectory, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    ftkit.export(run.dir, tmp_path / "out" / "summaries", console=QUIET)
    path = tmp_path / "out" / "summaries" / "README.md"
    card = ModelCard.load(path)
    assert (card.data.base_model, card.data.library_name, card.data.license) == ("acme/base", "fakes", "mit")
    assert card.data.model_name == "summaries" and card.data.base_model_relation == "adapter"
    (result,) = card.data.eval_results
    assert (result.metric_type, result.dataset_split) == ("overlap", "test"), "`words` is no score"
    assert result.metric_value == pytest.approx(run.metrics("export-adapter")["overlap"].value, abs=1e-6)
    text = path.read_text()
    for said in (
        "tuned is better than baseline",
        "| **export-adapter** |",
        "a note",
        "## Licences",
        "leaks",
        'load(".")',
    ):
        assert said in text
    assert str(tmp_path) not in text, "a card names no path of this machine"


def test_the_answers_of_the_program_that_will_use_it_are_compared(run: RunDirectory, command: Make) -> None:
    done = command("export", run.dir, "--to", "out", FAKES="runtime=yes")
    assert "fakes.cpp answers " in done.stdout and "of 5 test rows as the run, " in done.stdout
    assert "fakes.cpp '?'" in done.stdout, "the row that differs is shown"
    tried = read_json(run.dir.parent.parent / "out" / "ftkit.json")["tried"]
    assert tried["rows"] == 5 and tried["same"] < 5 and tried["export"] < tried["run"] + 0.5


# ---------------------------------------------------------------- to the hub


def test_nothing_is_sent_unless_it_is_confirmed_and_then_all_of_it_at_once(
    run: RunDirectory, command: Make, tmp_path: Path
) -> None:
    with Hub() as hub:
        env = hub.variables(tmp_path / "home", TOKEN)
        to = ("export", run.dir, "--to", "hf:acme/summaries")
        for more in ((), ("--push",)):
            done = command(*to, *more, **env)
            assert done.returncode == 0, done.stderr
            assert "nothing was pushed. acme/summaries (private, if it is new) would get:" in done.stdout
            assert "README.md" in done.stdout and "rule.json" in done.stdout
        assert hub.requests == [], "nobody was asked"
        assert "it is not made again" in done.stderr
        done = command(*to, "--push", "--yes", "--json", **env)
        assert done.returncode == 0, done.stderr
        repo = hub.repos[("models", "acme/summaries")]
        folder = tmp_path / "exports" / "acme--summaries"
        assert repo.private and len(repo.commits) == 1 and json.loads(done.stdout)["push"]["commit"] == repo.main
        assert repo.commits[repo.main] == {p.name: p.read_bytes() for p in folder.iterdir()}
        assert b'load("acme/summaries")' in repo.commits[repo.main]["README.md"]


def test_a_push_that_fails_is_one_message_and_keeps_the_export(
    run: RunDirectory, command: Make, tmp_path: Path
) -> None:
    to = ("export", run.dir, "--to", "hf:acme/summaries", "--push", "--yes")
    with Hub() as hub:
        done = command(*to, **hub.variables(tmp_path / "home"))
        assert done.returncode == 1 and "you are not logged in" in done.stderr
        done = command(*to, **hub.variables(tmp_path / "home", "hf_wrong"))
        assert done.returncode == 1 and "does not know the token" in done.stderr
        hub.faults.append(Fault(r"/commit/", status=403))
        done = command(*to, **hub.variables(tmp_path / "home", TOKEN))
        assert done.returncode == 1 and "does not let this account write acme/summaries (status 403)" in done.stderr
        assert not hub.repos[("models", "acme/summaries")].commits
    files = read_json(tmp_path / "exports" / "acme--summaries" / "ftkit.json")["files"]
    assert files == listed_files(tmp_path / "exports" / "acme--summaries")


def test_a_data_set_with_one_task_is_a_benchmark(tmp_path: Path) -> None:
    code = (
        "from ftkit.run.eval_results import task_of; "
        "print([task_of(f'acme/{name}', None) for name in ('rows', 'two', 'bench', 'none')])"
    )
    with Hub() as hub:
        hub.add("datasets", "acme/rows").commit({"README.md": b"rows"})
        hub.add("datasets", "acme/two").commit({"eval.yaml": b"tasks:\n- id: a\n- id: b\n"})
        hub.add("datasets", "acme/bench").commit({"eval.yaml": b"name: Bench\ntasks:\n- id: sums\n"})
        env = {**os.environ, **hub.variables(tmp_path / "home")}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    assert done.stdout.strip() == "[None, None, 'sums', None]", done.stderr


def test_a_score_on_a_benchmark_is_written_as_the_hub_reads_it(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import parse_eval_result_entries
    from ruamel.yaml import YAML

    from ftkit.records import Report
    from ftkit.run import eval_results

    monkeypatch.setattr(eval_results, "task_of", lambda dataset, revision: "sums")
    report = Report.from_dict(read_json(run.path("report.json")))
    text = eval_results.eval_results(run, report, "tuned", "acme/bench", "c0ffee")
    (entry,) = parse_eval_result_entries(YAML(typ="safe").load(text))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == ("acme/bench", "sums", "c0ffee")
    assert entry.value == pytest.approx(100 * run.metrics("tuned")["overlap"].value, abs=0.06)
    assert "overlap (%)" in (entry.notes or "") and "n=24" in (entry.notes or "")


def test_options_that_go_nowhere_are_refused(run: RunDirectory) -> None:
    for to, base, push, yes, message in (
        ("out", None, True, False, "--push needs a repository"),
        ("hf:a/b", None, False, True, "--push is missing"),
        ("out", "original", False, False, "what an adapter is merged into"),
    ):
        with pytest.raises(InputError, match=message):
            export_and_push(run.dir, to, False, base, None, push, yes, True, QUIET)


def test_a_changed_export_is_made_again_only_where_nothing_is_lost(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ftkit.export(run.dir, "hf:acme/x", console=QUIET)
    (tmp_path / "exports" / "acme--x" / "README.md").write_text("my own words")
    with pytest.raises(InputError, match="is not empty"):
        ftkit.export(run.dir, "hf:acme/x", console=QUIET)
