"""Sweeps of the fake backend, each trial in a process of its own: searched, killed, resumed, pruned, and chosen fairly."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftkit.errors import InputError, RecipeError
from ftkit.sweep import processes, prune, space
from ftkit.sweep.choose import simultaneous
from ftkit.sweep.directory import SweepDirectory

Start = Callable[..., Any]
_PATIENCE = 300  # seconds for one command: the machine may be busy


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe for the fakes: 30 validation and 40 test rows."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "rows").mkdir()
    for split, count in (("train", 20), ("validation", 30), ("test", 40)):
        lines = [{"input": f"{split} row {i} says", "target": f"{split} row {i} SAYS".upper()} for i in range(count)]
        (folder / "rows" / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = {
        "name": "fake-run",
        "dataset": {"path": "rows"},
        "backend": {"plugin": "fake"},
        "evaluator": {"plugin": "fake-overlap"},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return folder


@pytest.fixture(scope="module")
def start(place: Path, fake_site: Path) -> Start:
    """Start `ftkit ARGUMENTS` in that folder; the rest is as `command` of conftest.py."""

    def start(*arguments: object, wait: bool = True, **variables: str) -> Any:
        path = os.pathsep.join(filter(None, [str(fake_site), os.environ.get("PYTHONPATH", "")]))
        env = {**os.environ, "PYTHONPATH": path, "COLUMNS": "160", **variables}
        line = [sys.executable, "-m", "ftkit", *map(str, arguments)]
        process = subprocess.Popen(line, stdout=-1, stderr=-1, text=True, cwd=place, env=env)
        if not wait:
            return process
        out, err = process.communicate(timeout=_PATIENCE)
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(line, process.returncode, out, err)

    return start


GRID = ("recipe.yaml", "--vary", "backend.skill=0.1,0.9", "--vary", "backend.batch_size=3,5")


@pytest.fixture(scope="module")
def grid(start: Start) -> dict[str, Any]:
    """The result of one unbroken grid of four trials, as `--json` prints it."""
    done = start("sweep", *GRID, "--out", "grid", "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """Return what must be the same however often a sweep was stopped."""
    lines = [{k: v for k, v in line.items() if k not in ("runs", "seconds", "why")} for line in result["leaderboard"]]
    runs = [run["metrics"] for run in result["winner"]["runs"]]
    return {"lines": lines, "winner": result["winner"]["values"], "runs": runs, "effects": result["effects"]}


def answered(run: str | Path) -> set[str]:
    """Return the ids of all rows that a run has answered."""
    return {
        json.loads(line)["example_id"]
        for path in Path(run).glob("*/predictions.jsonl")
        for line in path.read_text().splitlines()
    }


# ---------------------------------------------------------------- a grid


def test_the_best_setting_wins_and_is_measured_on_the_test_rows(grid: dict[str, Any]) -> None:
    assert grid["leaderboard"][0]["trial"] == grid["winner"]["trial"]
    assert grid["winner"]["values"]["backend.skill"] == "0.9" and len(grid["leaderboard"]) == 4
    assert all(line["status"] == "done" and line["low"] < line["delta"] < line["high"] for line in grid["leaderboard"])
    values = [line["value"] for line in grid["leaderboard"]]
    assert values == sorted(values, reverse=True)
    (run,) = grid["winner"]["runs"]
    assert run["metrics"]["tuned"]["overlap"]["n"] == 40
    assert grid["verdict"].startswith("Best of 4 settings, skill=0.9 batch_size=")
    assert "better than the base model, overlap" in grid["verdict"]


def test_no_trial_can_see_a_test_row(grid: dict[str, Any]) -> None:
    runs = [run for line in grid["leaderboard"] for run in line["runs"]]
    assert len(runs) == 4
    for run in runs:
        assert {i.partition("-")[0] for i in answered(run)} == {"validation"}
        assert sorted(p.name for p in Path(run, "data").glob("*.jsonl")) == ["train.jsonl", "validation.jsonl"]
        assert not re.search(r"\d test row", Path(run, "report.md").read_text())
        settings = json.loads(Path(run, "tuned", "metrics.json").read_text())["settings"]
        assert settings["split"] == "validation"
        report = json.loads(Path(run, "report.json").read_text())
        assert any(note.startswith("measured on the validation rows") for note in report["notes"])
    (winner,) = (run["run"] for run in grid["winner"]["runs"])
    assert {i.partition("-")[0] for i in answered(winner)} == {"test"}


def test_trials_share_one_baseline(grid: dict[str, Any]) -> None:
    costs = [
        json.loads(Path(run, "baseline", "cost.json").read_text())
        for line in grid["leaderboard"]
        for run in line["runs"]
        if line["values"]["backend.batch_size"] == "3"
    ]
    assert sorted("reused_from" in cost for cost in costs) == [False, True]


def test_the_winner_has_the_model_of_its_trial_and_is_a_whole_run(grid: dict[str, Any], start: Start) -> None:
    trial, winner = Path(grid["leaderboard"][0]["runs"][0]), Path(grid["winner"]["runs"][0]["run"])
    assert (trial / "train/model/rule.json").read_bytes() == (winner / "train/model/rule.json").read_bytes()
    stages = {s["name"]: s for s in json.loads((winner / "run.json").read_text())["stages"]}
    assert stages["train"]["meta"]["reused_from"] == trial.name and stages["train"]["usd"] == 0.25
    verified = start("verify", winner)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_the_winner_is_used_handed_on_and_made_again_like_any_run(
    grid: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    winner = shutil.copytree(grid["winner"]["runs"][0]["run"], tmp_path / "winner")
    for line in (
        ("predict", winner, winner / "data" / "test.jsonl", "--out", tmp_path / "out.jsonl"),
        ("export", winner, "--to", tmp_path / "model"),
        ("verify", winner),
        ("pack", winner, "--out", tmp_path / "winner.tar.gz"),
        ("rerun", tmp_path / "winner.tar.gz", "--out", tmp_path / "again", "--json"),
    ):
        done = start(*line)
        assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["verdict"] == "identical", "without the trial that trained it"
    predicted = [json.loads(row)["prediction"] for row in (tmp_path / "out.jsonl").read_text().splitlines()]
    measured = (winner / "tuned" / "predictions.jsonl").read_text().splitlines()
    assert predicted == [json.loads(row)["text"] for row in measured]


def test_the_report_of_a_sweep(grid: dict[str, Any], place: Path) -> None:
    report = json.loads(Path(grid["report_json"]).read_text())
    section = next(s for s in report["sections"] if s["title"] == "The search")
    board, effects = (b for b in section["blocks"] if b["kind"] == "table")
    assert board["header"][:4] == ["#", "skill", "batch_size", "overlap %"] and len(board["rows"]) == 4
    assert "chosen" in board["rows"][0][-1] and board["rows"][1][-1] == "done"
    assert [row[:3] for row in effects["rows"]][:2] == [["skill", "0.1", "2"], ["skill", "0.9", "2"]]
    assert any("took" in b.get("text", "") and "cost $" in b["text"] for b in section["blocks"] if b["kind"] == "text")
    assert any(b["kind"] == "curves" for b in section["blocks"])
    page = Path(grid["report_html"]).read_text()
    assert "Best of 4 settings" in page and "30 validation rows" in page


def test_the_effect_of_a_key_is_the_mean_of_its_trials(grid: dict[str, Any]) -> None:
    of_skill = [e for e in grid["effects"] if e["key"] == "backend.skill"]
    for effect in of_skill:
        own = [x["value"] for x in grid["leaderboard"] if x["values"]["backend.skill"] == effect["value"]]
        rest = [x["value"] for x in grid["leaderboard"] if x["values"]["backend.skill"] != effect["value"]]
        assert effect["mean"] == pytest.approx(statistics.mean(own))
        assert effect["delta"] == pytest.approx(statistics.mean(own) - statistics.mean(rest))
        assert effect["low"] < effect["delta"] < effect["high"]
    assert of_skill[1]["low"] > 0 > of_skill[0]["high"]


def test_a_finished_sweep_is_not_repeated(grid: dict[str, Any], start: Start) -> None:
    before = {p: p.stat().st_mtime_ns for p in Path(grid["sweep"]).rglob("predictions.jsonl")}
    again = start("sweep", "--resume", grid["sweep"])
    assert again.returncode == 0 and "Best of 4 settings" in again.stdout and "#" in again.stdout
    assert before == {p: p.stat().st_mtime_ns for p in Path(grid["sweep"]).rglob("predictions.jsonl")}


# ---------------------------------------------------------------- killed and interrupted


def until(condition: Callable[[], Any], process: Any) -> None:
    """Wait for a condition while a process runs."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def test_interrupted_and_killed_it_ends_as_an_unbroken_one(grid: dict[str, Any], start: Start, place: Path) -> None:
    process = start("sweep", *GRID, "--out", "killed", "--parallel", 2, wait=False, FAKES="slow=0.1")
    until(lambda: len(list(place.glob("killed/*/trials/*/train/log.jsonl"))) == 2, process)
    (folder,) = place.glob("killed/*")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=_PATIENCE)
    assert process.returncode == 130 and f"resume with: ftkit sweep --resume {folder}" in err
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(folder) not in left
    statuses = [json.loads(path.read_text())["status"] for path in sorted(folder.glob("trials/*/run.json"))]
    assert "interrupted" in statuses and set(statuses) <= {"done", "interrupted", "prepared"}
    chance, kills = random.Random(7), 0
    for _ in range(3):
        process = start("sweep", "--resume", folder, wait=False, FAKES="slow=0.02")
        time.sleep(chance.uniform(1.0, 4.0))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    done = start("sweep", "--resume", folder, "--json")
    assert done.returncode == 0, done.stderr
    assert kills and numbers(json.loads(done.stdout)) == numbers(grid)
    assert len(list((folder / "trials").iterdir())) == 4 and len(list((folder / "winner").iterdir())) == 1


# ---------------------------------------------------------------- other searches


def test_one_at_a_time_with_several_processes(start: Start) -> None:
    varied = ("--vary", "backend.skill=0.8,0.95", "--vary", "backend.steps=6,9")  # 0.8 and 6 are the fakes' own
    done = start("sweep", "recipe.yaml", *varied, "--one-at-a-time", "--parallel", 3, "--out", "single", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    by_trial = sorted(result["leaderboard"], key=lambda line: line["trial"])
    assert [line["values"] for line in by_trial] == [{}, {"backend.skill": "0.95"}, {"backend.steps": "9"}]
    own = by_trial[0]["value"]
    effects = {(e["key"], e["value"]): e for e in result["effects"]}
    assert effects["backend.skill", "0.95"]["delta"] == pytest.approx(by_trial[1]["value"] - own)
    assert effects["backend.skill", "0.8"]["delta"] is None  # it is what the others are compared with
    assert [line for line in done.stderr.splitlines() if line.startswith("[2/3] ")]  # lines of several are told apart
    costs = [json.loads(Path(line["runs"][0], "baseline", "cost.json").read_text()) for line in by_trial]
    assert sorted("reused_from" in cost for cost in costs) == [False, True, True]


def test_parallel_runs_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    share = str(max(1, (os.cpu_count() or 1) // 2))
    assert processes._environment(2)["OMP_NUM_THREADS"] == share and "OMP_NUM_THREADS" not in processes._environment(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert processes._environment(2)["OMP_NUM_THREADS"] == "7", "the user's own number"


def test_a_failed_trial_is_recorded_and_the_seeds_of_the_others_count(start: Start) -> None:
    varied = ("--vary", "backend.hand_over=true,false", "--set", "backend.seed_noise=0.2", "--set", "backend.skill=0.5")
    done = start("sweep", "recipe.yaml", *varied, "--seeds", 2, "--parallel", 2, "--out", "seeds", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    states = [line["status"] for line in sorted(result["leaderboard"], key=lambda line: line["trial"])]
    assert states == ["done", "failed"]
    failed = next(line for line in result["leaderboard"] if line["status"] == "failed")
    assert "nothing was learned" in failed["why"] and failed["value"] is None
    assert "failed, and the sweep continues: " in done.stderr
    best = result["leaderboard"][0]
    values = [
        json.loads(Path(run, "tuned", "metrics.json").read_text())["metrics"]["overlap"]["value"]
        for run in best["runs"]
    ]
    assert len(values) == 2 and values[0] != values[1] and best["value"] == pytest.approx(statistics.mean(values))
    assert len(result["winner"]["runs"]) == 2
    report = json.loads(Path(result["report_json"]).read_text())
    (tuned,) = (s for s in report["systems"] if s["role"] == "tuned")
    assert [entry["seed"] for entry in tuned["seeds"]] == [42, 43]


def test_all_trials_failed(start: Start) -> None:
    done = start(
        "sweep", "recipe.yaml", "--vary", "backend.steps=2,3", "--set", "backend.hand_over=false", "--out", "none"
    )
    assert done.returncode == 1
    assert "error: no trial could be measured: RuntimeError: nothing was learned" in done.stderr


PRUNED = ("--vary", "backend.skill=0.9,0.8,0.85,0.95,0.1", "--set", "backend.eval_every=2", "--set", "backend.steps=24")


def test_a_trial_that_falls_behind_is_pruned(start: Start) -> None:
    done = start("sweep", "recipe.yaml", *PRUNED, "--prune", "--out", "pruned", "--json", FAKES="slow=0.04")
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout)["leaderboard"][-1]
    assert (last["trial"], last["status"], last["value"]) == (5, "pruned", None)
    assert last["why"].startswith("at step ") and "trial 5 of 5: pruned at step" in done.stderr
    assert json.loads(Path(last["runs"][0], "run.json").read_text())["status"] == "interrupted"
    assert "tuned" not in [p.name for p in Path(last["runs"][0]).iterdir()]


def test_a_search_resumed_chooses_as_an_unbroken_one(start: Start, place: Path) -> None:
    pytest.importorskip("optuna")
    search = (
        "--vary",
        "backend.skill=0.05..0.95",
        "--vary",
        "backend.batch_size=3,5",
        "--search",
        "tpe",
        "--trials",
        3,
    )
    whole = start("sweep", "recipe.yaml", *search, "--out", "tpe", "--json")
    assert whole.returncode == 0, whole.stderr
    process = start("sweep", "recipe.yaml", *search, "--out", "tpe-killed", wait=False)
    until(lambda: len(list(place.glob("tpe-killed/*/trials/*/tuned"))) == 2, process)
    process.kill()
    process.communicate()
    (folder,) = place.glob("tpe-killed/*")
    resumed = start("sweep", "--resume", folder, "--json")
    assert resumed.returncode == 0, resumed.stderr
    first, second = json.loads(whole.stdout), json.loads(resumed.stdout)
    assert numbers(first) == numbers(second) and len(first["leaderboard"]) == 3
    tried = {line["values"]["backend.skill"] for line in first["leaderboard"]}
    assert len(tried) == 3 and all(0.05 <= float(value) <= 0.95 for value in tried)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--vary", "backend.skil=0.1,0.2"], "did you mean `backend.skill`"),
        (["--vary", "backend.skill=0.1,high"], "--vary backend.skill=high"),
        (["--vary", "backend.skill=0.1"], "--vary backend.skill: one value is no choice"),
        (["--vary", "backend.skill=0.1..0.5"], "a range needs a search that chooses from it"),
        (["--vary", "backend.skill=0.5,0.50"], "the value 0.50 is there twice"),
        (["--vary", "evaluator.ignore_case=true,false"], "trials that are scored differently cannot be compared"),
        (["--vary", "skill"], "not of the form KEY=VALUE"),
        (["--vary", "seed=1,2", "--seeds", "2"], "exclude each other"),
        (["--vary", "backend.skill=0.1,0.2", "--trials", "3"], "--trials goes with --search tpe"),
        ([], "there is nothing to vary"),
        (["--vary", "dataset.splits.validation=10,20"], "the settings have different validation rows"),
        (["--vary", "backend.skill=0.1,0.2", "--set", "dataset.splits.validation=0"], "this recipe has none"),
        (["--vary", "backend.refuse=,no"], "a value between two commas is missing"),
        (["--vary", "backend.usd=0,5"], "it would cost about $10"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_starts(
    fakes: Any, place: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from ftkit.cli.main import main

    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["ftkit", "sweep", "recipe.yaml", *arguments, "--out", "refused"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and said in capsys.readouterr().err
    assert not list(place.glob("refused/*"))


def test_every_setting_is_checked_before_the_first_trial(fakes: Any, place: Path) -> None:
    import ftkit

    with pytest.raises(RecipeError, match="a mistake of one setting"):
        ftkit.sweep(place / "recipe.yaml", {"backend.refuse": ["", "a mistake of one setting"]}, out=place / "refused")
    assert not list(place.glob("refused/*"))


def test_without_optuna_the_message_says_what_to_install(
    fakes: Any, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    import ftkit

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'ftkit\[sweep\]'"):
        ftkit.sweep(place / "recipe.yaml", {"backend.skill": "0.1..0.9"}, search="tpe", out=place / "refused")


def test_the_directory_of_a_run_is_no_sweep(grid: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="ftkit run --resume"):
        SweepDirectory.open(grid["winner"]["runs"][0]["run"])


def test_a_sweep_that_was_killed_while_it_was_planned_says_so(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    with pytest.raises(InputError, match="nothing was spent\n  delete the folder"):
        SweepDirectory.open(tmp_path)


# ---------------------------------------------------------------- its parts


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a=1,2", ("1", "2")),
        ("a=[q, v],[q, k]", ("[q, v]", "[q, k]")),
        ('a="x,y",z', ('"x,y"', "z")),
        ("a=true , false", ("true", "false")),
    ],
)
def test_values_are_read(text: str, values: tuple[str, ...]) -> None:
    assert space.parameters([text])[0].values == values


def test_ranges_are_read() -> None:
    rate, rank = space.parameters(["a=1e-5..1e-3:log", "b=4..64"])
    assert (rate.low, rate.high, rate.log, rate.whole) == (1e-5, 1e-3, True, False)
    assert (rank.low, rank.high, rank.log, rank.whole) == (4, 64, False, True)
    assert rate.written(0.000123456) == "0.0001235" and rate.written(2.0) == "0.001" and rank.written(7.6) == "8"


def test_values_from_python() -> None:
    assert space.parameters({"a": [1, True, None, "x", "1", [1, 2]]})[0].values == (
        "1",
        "true",
        "null",
        "x",
        '"1"',
        "[1, 2]",
    )


def test_a_grid_and_one_at_a_time() -> None:
    varied = space.parameters(["a=1,2", "b=3,4"])
    assert space.grid(varied)[1] == {"a": "1", "b": "4"} and len(space.grid(varied)) == 4
    assert space.one_at_a_time(varied)[:2] == [{}, {"a": "1"}] and len(space.one_at_a_time(varied)) == 5


def test_the_median_rule_is_that_of_optuna() -> None:
    optuna = pytest.importorskip("optuna")
    chance, pruned = random.Random(3), 0
    states = optuna.trial.TrialState
    for higher in (True, False):
        for _ in range(60):
            done = [{s: chance.random() for s in (1, 2, 3)} for _ in range(chance.randint(3, 7))]
            values = {s: chance.random() for s in (1, 2, 3)[: chance.randint(1, 3)]}
            pruner = optuna.pruners.MedianPruner(n_startup_trials=prune.AFTER, n_min_trials=prune.AFTER)
            study = optuna.create_study(direction="maximize" if higher else "minimize", pruner=pruner)
            for seen in done:
                study.add_trial(optuna.trial.create_trial(value=0.0, intermediate_values=seen))
            trial = optuna.trial.create_trial(state=states.RUNNING, intermediate_values=values)
            last = max(values)
            ours = prune.verdict({last: (max if higher else min)(values.values())}, done, "m", higher)
            assert (ours is not None) == pruner.prune(study, trial)
            pruned += ours is not None
    assert 20 < pruned < 100


def test_intervals_hold_for_all_trials_at_once() -> None:
    assert simultaneous(1) == pytest.approx(0.95) and simultaneous(20) == pytest.approx(0.9975)


def test_a_run_may_be_measured_on_the_validation_rows_by_itself(fakes: Any, place: Path, tmp_path: Path) -> None:
    import ftkit

    result = ftkit.run(place / "recipe.yaml", overrides=["measure=validation"], out=tmp_path)
    assert result.metrics["tuned"]["overlap"].n == 30 and not (result.dir / "data" / "test.jsonl").exists()
    assert "30 validation rows" in (result.dir / "report.md").read_text()
    shutil.rmtree(result.dir)
