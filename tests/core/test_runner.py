"""A whole run with the fake backend: what it leaves, what it survives, how it ends."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ftkit
from ftkit.console import Console
from ftkit.errors import InputError, Interrupted, RecipeError, RunFailed
from ftkit.files import read_json, read_jsonl
from ftkit.interface import RunResult
from ftkit.run import observers

Make = Callable[..., dict[str, Any]]
QUIET = Console(silent=True)


@pytest.fixture
def go(recipe: Make, tmp_path: Path, fakes: ModuleType) -> Callable[..., RunResult]:
    """RunResult the fake recipe in this process."""

    def start(backend: dict[str, Any] | None = None, out: str = "runs", reuse: bool = True, **keys: Any) -> RunResult:
        return ftkit.run(recipe(backend, **keys), out=tmp_path / out, reuse=reuse, console=QUIET)

    return start


def only(folder: Path) -> Path:
    (run,) = (p.parent for p in folder.glob("*/run.json"))
    return run


def results(run: Path) -> dict[str, bytes]:
    """What must be the same however often a run was interrupted: answers, scores, model, data."""
    files = [
        p
        for p in run.rglob("*")
        if p.name in ("predictions.jsonl", "scores.jsonl", "rule.json", "test.jsonl", "plan.json")
    ]
    found = {str(p.relative_to(run)): p.read_bytes() for p in sorted(files)}
    for path in run.glob("*/metrics.json"):
        found[f"{path.parent.name} metrics"] = json.dumps(read_json(path)["metrics"]).encode()
    return found


# ---------------------------------------------------------------- an unbroken run


def test_a_whole_run(go: Callable[..., RunResult]) -> None:
    run = go(controls=["fake-echo"], backend={"extras": True})
    record = run.directory.record()
    assert record.status == "done" and record.error is None and record.kind == "run"
    assert [s.name for s in record.stages] == ["prepare", "baseline", "train", "evaluate", "report"]
    assert all(s.status == "done" and s.seconds is not None for s in record.stages)
    train = record.stages[2]
    assert train.usd == 0.25 and train.meta["peak_memory"] == 1000
    assert record.systems == ("baseline", "control-fake-echo", "tuned", "tuned-train-rows")

    files = {str(p.relative_to(run.dir)) for p in run.dir.rglob("*") if p.is_file()}
    assert files >= {
        *("run.json", "recipe.yaml", "lock.json", "audit.json", "report.html", "report.md", "report.json"),
        *("data/test.jsonl", "train/log.jsonl", "train/model/rule.json", "debug.log"),
        *(f"{m}/{f}" for m in record.systems for f in ("predictions.jsonl", "metrics.json", "scores.jsonl")),
    }
    assert not [f for f in files if f.endswith((".tmp", ".journal")) or ".work" in f]
    for stage in record.systems:
        ids = [row["example_id"] for row in read_jsonl(run.dir / stage / "predictions.jsonl")]
        rows = run.directory.task.train[:4] if stage == "tuned-train-rows" else run.directory.task.test
        assert ids == [e.id for e in rows]  # sealed in example order

    metrics = read_json(run.dir / "tuned" / "metrics.json")
    assert set(metrics["metrics"]["overlap"]) >= {"value", "low", "high", "n", "n_unscored"}
    assert metrics["metrics"]["overlap"]["n"] == 24
    assert set(metrics["settings"]) == {"rows", "split", "prompt", "generation", "evaluators", "primary"}
    lock = read_json(run.dir / "lock.json")
    assert {"packages", "plugins", "hardware", "git", "data", "model", "seed"} <= set(lock)
    assert {"entry": "fakes", "module": "fakes", "distribution": "ftkit-fakes", "version": "0.1"} in lock["plugins"]
    audit = read_json(run.dir / "audit.json")
    assert audit["splits"]["test"]["rows"] == 24 and audit["tokens"]["train"]["max"] > 5

    report = read_json(run.dir / "report.json")
    assert [s["name"] for s in report["systems"]] == list(record.systems)
    assert {"run", "stage", "metrics", "usd", "seconds"} <= set(report["systems"][0])
    assert {"from", "to", "metric", "delta", "low", "high", "p_value", "n"} <= set(report["deltas"][0])
    found = {(d["from"], d["to"]) for d in report["deltas"]}
    assert found == {("baseline", "tuned"), ("control-fake-echo", "tuned")}  # other rows are not compared
    assert "tuned is better than baseline" in report["verdict"] == run.verdict
    assert len(report["pairs"]) == 24
    assert run.metrics["tuned"]["overlap"].value > run.metrics["baseline"]["overlap"].value + 0.2
    assert "fake-run" in repr(run) and "<iframe" in run._repr_html_()


def test_the_resolved_recipe_is_the_same_run(go: Callable[..., RunResult], tmp_path: Path) -> None:
    first = go(controls=["fake-echo"])
    again = ftkit.run(first.dir / "recipe.yaml", out=tmp_path / "again", console=QUIET)
    assert results(again.dir) == results(first.dir)
    assert (again.dir / "recipe.yaml").read_bytes() == (first.dir / "recipe.yaml").read_bytes()


def test_several_samples_per_example(go: Callable[..., RunResult]) -> None:
    run = go(generation={"samples": 3, "temperature": 0.5})
    assert len(run.directory.predictions("tuned")) == 72 and run.metrics["tuned"]["overlap"].n == 24
    assert [p.sample for p in run.directory.predictions("tuned")[:3]] == [0, 1, 2]


# ---------------------------------------------------------------- baselines are shared


def test_a_second_recipe_with_the_same_key_reuses_the_baseline(go: Callable[..., RunResult]) -> None:
    first = go(controls=["fake-echo"])
    second = go(name="second", backend={"skill": 0.1}, seed=7, controls=["fake-echo"])
    for stage in ("baseline", "control-fake-echo"):
        assert read_json(second.dir / stage / "cost.json")["reused_from"] == first.directory.id
        mine, theirs = (r.dir / stage / "predictions.jsonl" for r in (second, first))
        assert mine.read_bytes() == theirs.read_bytes() and not mine.is_symlink()
    assert "reused_from" not in read_json(second.dir / "tuned" / "cost.json")


@pytest.mark.parametrize(
    "change",
    [
        {"backend": {"base_model": "another"}},
        {"backend": {"batch_size": 4}},
        {"generation": {"max_new_tokens": 17}},
        {"prompt": {"instruction": "Shout."}},
        {"splits": 20},
        {"reuse": False},
    ],
    ids=str,
)
def test_another_key_measures_again(go: Callable[..., RunResult], rows: Path, change: dict[str, Any]) -> None:
    go()
    if "splits" in change:
        change = {"dataset": {"path": str(rows), "splits": {"test": 20}}}
    second = go(name="second", **change)
    assert "reused_from" not in read_json(second.dir / "baseline" / "cost.json")


def test_another_evaluator_reuses_the_answers_and_scores_them_again(go: Callable[..., RunResult]) -> None:
    first = go()
    second = go(name="second", evaluator={"plugin": "fake-overlap", "ignore_case": True})
    assert read_json(second.dir / "baseline" / "cost.json")["reused_from"] == first.directory.id
    assert second.metrics["baseline"]["overlap"].value > first.metrics["baseline"]["overlap"].value


def test_an_unfinished_measurement_is_not_reused(go: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKES", "interrupt=3")
    with pytest.raises(Interrupted):
        go()
    monkeypatch.delenv("FAKES")
    assert "reused_from" not in read_json(go().dir / "baseline" / "cost.json")


# ---------------------------------------------------------------- failed predictions


def test_warnings_of_any_stage_reach_the_run_and_its_report(go: Callable[..., RunResult]) -> None:
    run = go({"session_warning": "the provider answers slowly"})
    expected = ["the provider answers slowly (hub)", "the provider answers slowly (adapter)"]
    assert [w for w in run.directory.record().warnings if "slowly" in w] == expected
    assert all(any(text in w for w in run.report.warnings) for text in expected)


def test_failed_predictions_are_retried(go: Callable[..., RunResult]) -> None:
    run = go({"fail_once": ["test-3", "test-9"]})
    assert not [p for p in run.directory.predictions("baseline") if p.error]
    assert run.metrics["baseline"]["overlap"].n_unscored == 0
    assert results(run.dir) == results(go(out="whole").dir)


def test_failed_predictions_are_counted_and_never_scored(go: Callable[..., RunResult]) -> None:
    run = go({"fail": ["test-3"]})
    metric = run.metrics["baseline"]["overlap"]
    assert (metric.n, metric.n_unscored) == (23, 1)
    scores = {s.example_id: s for s in run.directory.scores("baseline")}
    assert scores["test-3"].values is None and "503" in (scores["test-3"].reason or "")
    others = [s.values["overlap"] for s in scores.values() if s.values is not None]
    assert metric.value == pytest.approx(sum(others) / 23)
    assert read_json(run.dir / "baseline" / "cost.json")["n_failed"] == 1
    assert run.report.systems[0].n_failed == 1
    assert run.verdict.startswith("No verdict")  # one of 24 is more than 2 %
    assert any("1 of 24 answers" in w and "4.2 %" in w for w in run.report.warnings)
    assert next(p for p in run.report.pairs if p.example_id == "test-3").answers["baseline"]["error"]


def test_nothing_answered_at_all(go: Callable[..., RunResult]) -> None:
    run = go({"fail_tuned": 1000})
    assert run.directory.record().status == "done" and run.verdict.startswith("No verdict")
    assert run.metrics["tuned"] == {} or run.metrics["tuned"]["overlap"].n == 0


def test_two_percent_is_the_limit(go: Callable[..., RunResult], rows: Path) -> None:
    lines = [{"id": f"x-{i}", "input": f"row {i}", "target": f"ROW {i}"} for i in range(100)]
    (rows / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert go({"fail_tuned": 2}).verdict.startswith("tuned is better")
    assert go({"fail_tuned": 3}).verdict.startswith("No verdict")


# ---------------------------------------------------------------- interrupted and resumed


@pytest.mark.parametrize(
    "knob",
    [
        "interrupt=0",
        "interrupt=5",
        "crash=7",
        "train=interrupt",
        "train=interrupt-hidden",
        "train=crash",
        "train=input",
    ],
)
def test_resume_ends_like_an_unbroken_run(
    go: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, knob: str
) -> None:
    keys: dict[str, Any] = {"controls": ["fake-echo"], "backend": {"fail_once": ["test-1"]}}
    whole = go(**keys, out="whole")
    monkeypatch.setenv("FAKES", knob)
    expected = Interrupted if "interrupt" in knob else InputError if "input" in knob else RunFailed
    with pytest.raises(expected) as caught:
        go(**keys)
    run = only(tmp_path / "runs")
    record = ftkit.open_run(run).directory.record()
    assert record.status == ("interrupted" if "interrupt" in knob else "failed") and record.error
    assert record.stages[-1].status == record.status
    if "input" not in knob:
        assert f"ftkit run --resume {run}" in str(caught.value)
    assert not (run / "report.json").exists()

    if not knob.startswith("train"):
        # A second interruption, two batches further on.
        monkeypatch.setenv("FAKES", "interrupt=2")
        with pytest.raises(Interrupted):
            ftkit.resume(run, console=QUIET)
    monkeypatch.delenv("FAKES")
    prepared = (run / "audit.json").stat().st_mtime_ns
    resumed = ftkit.resume(run, console=QUIET)
    record = resumed.directory.record()
    assert record.status == "done" and record.error is None and all(s.status == "done" for s in record.stages)
    assert (run / "audit.json").stat().st_mtime_ns == prepared  # finished stages are not repeated
    assert results(run) == results(whole.dir)
    steps = [row["step"] for row in resumed.directory.log_rows() if row["event"] == "step"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert resumed.report.verdict == whole.report.verdict and resumed.report.curves == whole.report.curves


def test_answers_of_finished_batches_are_not_asked_again(
    go: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAKES", "interrupt=5")
    with pytest.raises(Interrupted):
        go()
    run = only(tmp_path / "runs")
    before = list(read_jsonl(run / "baseline" / "predictions.journal"))
    assert len(before) == 5
    with (run / "baseline" / "predictions.journal").open("a") as file:
        file.write('{"batch": 5, "pred')  # torn by a kill
    monkeypatch.setenv("FAKES", "interrupt=3")  # 8 batches of 3: all that is left
    with pytest.raises(Interrupted):  # the tuned model is asked for more than three
        ftkit.resume(run, console=QUIET)
    assert (run / "baseline" / "predictions.jsonl").exists()
    assert len(list(read_jsonl(run / "tuned" / "predictions.journal"))) == 3


def test_a_torn_line_in_the_training_log(
    go: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAKES", "train=interrupt")
    with pytest.raises(Interrupted):
        go()
    run = only(tmp_path / "runs")
    with (run / "train" / "log.jsonl").open("a") as file:
        file.write('{"event": "step", "st')
    (run / "train" / ".state.json.123.tmp").write_text("{")
    monkeypatch.delenv("FAKES")
    resumed = ftkit.resume(run, console=QUIET)
    assert [r["step"] for r in resumed.directory.log_rows() if r["event"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert not list(run.rglob("*.tmp"))


def test_resume_needs_nothing_but_the_directory(
    go: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: Path
) -> None:
    monkeypatch.setenv("FAKES", "interrupt=5")
    with pytest.raises(Interrupted):
        go()
    monkeypatch.delenv("FAKES")
    moved = only(tmp_path / "runs").rename(tmp_path / "elsewhere")
    for path in rows.iterdir():
        path.unlink()
    assert ftkit.resume(moved, console=QUIET).directory.record().status == "done"
    assert ftkit.resume(moved, console=QUIET).directory.record().status == "done"  # and again: nothing to do


def test_what_cannot_be_resumed(tmp_path: Path, fakes: ModuleType) -> None:
    with pytest.raises(InputError, match="not a run directory"):
        ftkit.resume(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prediction": "a", "target": "a"}\n')
    scored = ftkit.score(tmp_path / "p.jsonl", "fake-overlap", tmp_path / "runs")
    with pytest.raises(InputError, match="holds no recipe"):
        ftkit.resume(scored.dir)


# ---------------------------------------------------------------- nothing fails late


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"backend": {"refuse": "this model is gated"}}, "this model is gated"),
        ({"dataset": {"path": "/nowhere/rows.jsonl"}}, "there is no /nowhere/rows.jsonl"),
        ({"tracking": ["fake-recordr"]}, "did you mean 'fake-recorder'"),
        ({"evaluator": "fake-overlop"}, "did you mean 'fake-overlap'"),
    ],
    ids=["refused", "no data", "tracker", "evaluator"],
)
def test_a_failed_preflight_leaves_nothing(
    go: Callable[..., RunResult], tmp_path: Path, keys: dict[str, Any], says: str
) -> None:
    with pytest.raises(RecipeError, match=says):
        go(**keys)
    assert not list(tmp_path.glob("runs/*"))


def test_a_metric_that_is_no_number_is_found_before_the_run(go: Callable[..., RunResult], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'fake-overlap' gave nan for 'overlap'"):
        go(evaluator={"plugin": "fake-overlap", "broken": True})
    assert not (tmp_path / "runs").exists()


def test_several_recipes_are_checked_before_the_first_begins(recipe: Make, tmp_path: Path, fakes: ModuleType) -> None:
    bad = recipe({"refuse": "no memory"}, name="second")
    with pytest.raises(RecipeError, match="no memory"):
        ftkit.run(recipe(), bad, out=tmp_path / "runs", console=QUIET)
    assert not (tmp_path / "runs").exists()
    ftkit.run(recipe(), recipe({"skill": 0.2}, name="second"), out=tmp_path / "runs", console=QUIET)
    (joint,) = (tmp_path / "runs").glob("report-*/report.json")
    assert [s["name"] for s in read_json(joint)["systems"]] == ["fake-run baseline", "fake-run tuned", "second tuned"]


# ---------------------------------------------------------------- observers


def test_a_tracker_is_notified_of_everything_in_order(go: Callable[..., RunResult], tmp_path: Path) -> None:
    run = go(tracking=[{"plugin": "fake-recorder", "file": str(tmp_path / "told")}])
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert told[0] == ["stage", "prepare"] or told[0] == ["started", run.directory.id]
    assert [t[1] for t in told if t[0] == "stage"] == ["prepare", "baseline", "train", "evaluate", "report"]
    assert [t[2] for t in told if t[:2] == ["event", "step"]] == [1, 2, 3, 4, 5, 6]
    assert ["finished", run.verdict] in told


def test_a_tracker_hears_of_a_failure(
    go: Callable[..., RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKES", "train=crash")
    with pytest.raises(RunFailed):
        go(tracking=[{"plugin": "fake-recorder", "file": str(tmp_path / "told")}])
    assert json.loads((tmp_path / "told").read_text().splitlines()[-1]) == [
        "failed",
        "RuntimeError: the fake trainer broke",
    ]


def test_a_tracker_that_raises_or_hangs_is_dropped(go: Callable[..., RunResult], fakes: ModuleType) -> None:
    began = time.monotonic()
    run = go(tracking=["fake-raising", "fake-hanging"])
    assert time.monotonic() - began < 5
    record = run.directory.record()
    assert record.status == "done"
    assert any("'fake-raising' raised ConnectionError in started" in w for w in record.warnings)
    assert any("'fake-hanging' did not finish within 0.5 s" in w for w in record.warnings)
    before = (run.dir / "run.json").read_bytes()
    fakes.Hanging.released.set()
    time.sleep(0.1)
    fakes.Hanging.released.clear()
    assert (run.dir / "run.json").read_bytes() == before


def test_an_observer_far_behind_loses_events_not_the_run(monkeypatch: pytest.MonkeyPatch, fakes: ModuleType) -> None:
    monkeypatch.setattr(observers, "_QUEUE_SIZE", 5)
    warnings: list[str] = []
    observer = observers.Observer("slow", {"logged": fakes.Hanging().logged}, 1.0, warnings.append)
    for n in range(50):
        observer.notify("logged", {"run": None, "event": {"n": n}})
    assert len(warnings) == 1 and "5 events behind" in warnings[0]
    fakes.Hanging.released.set()
    observer.close(time.monotonic())
    fakes.Hanging.released.clear()


# ---------------------------------------------------------------- processes


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing happened within 20 s"
        time.sleep(0.01)


def test_killed_at_random_moments(
    command: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    path = recipe_file(controls=["fake-echo"], backend={"steps": 10, "fail_once": ["test-2"], "extras": True})
    whole = command("run", path, "--json", "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    runs = tmp_path / "runs"
    kills = 0
    arguments: list[object] = ["run", path]
    for _ in range(5):
        process = command(*arguments, wait=False, FAKES="slow=0.05")
        wait_for(lambda: list(runs.glob("*/run.json")), process)
        try:
            process.wait(0.05 + rng.random() * 0.6)
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        err = process.communicate()[1]
        assert "Traceback" not in err, err
        run = only(runs)
        json.loads((run / "run.json").read_text())  # whole at every moment
        arguments = ["run", "--resume", run]
        if process.returncode == 0:
            break
    last = command("run", "--resume", run, "--json")
    assert last.returncode == 0, last.stderr
    assert kills and results(run) == results(only(tmp_path / "whole"))
    data = json.loads(last.stdout)
    assert data["status"] == "done" and data["verdict"] == json.loads(whole.stdout)["verdict"]
    assert not [p for p in run.rglob("*") if p.name.endswith((".tmp", ".journal")) or p.name == ".work"]


def test_two_processes_on_one_directory_and_ctrl_c(
    command: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    process = command("run", recipe_file(), wait=False, FAKES="slow=0.2")
    wait_for(lambda: list(tmp_path.glob("runs/*/baseline/predictions.journal")), process)
    run = only(tmp_path / "runs")
    second = command("run", "--resume", run)
    assert second.returncode == 2 and "another process is writing" in second.stderr
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130 and out == ""
    assert f"ftkit run --resume runs/{run.name}" in err and "Traceback" not in err
    assert read_json(run / "run.json")["status"] == "interrupted"
    process = command("run", "--resume", run, wait=False, FAKES="slow=0.2")
    wait_for(lambda: read_json(run / "run.json")["status"] == "running", process)
    process.terminate()  # as a cluster does
    assert process.wait(20) == 130 and "--resume" in process.communicate()[1]
    done = command("run", "--resume", run)
    assert done.returncode == 0 and "report: " in done.stdout


@pytest.mark.parametrize(
    ("backend", "knobs", "status", "says"),
    [
        ({}, "", 0, "fake-run"),
        ({}, "train=crash", 1, "RuntimeError: the fake trainer broke"),
        ({"hand_over": False}, "", 1, "nothing was learned"),
        ({"refuse": "the model is gated"}, "", 2, "the model is gated\n  mend it"),
        ({}, "interrupt=1", 130, "resume with: ftkit run --resume"),
    ],
)
def test_exit_status(
    command: Callable[..., Any],
    recipe_file: Callable[..., Path],
    backend: dict[str, Any],
    knobs: str,
    status: int,
    says: str,
) -> None:
    done = command("run", recipe_file(backend=backend), FAKES=knobs)
    assert done.returncode == status and says in done.stderr
