"""What a run costs: asked for before anything is spent, counted per answer, and shown."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ftkit
from ftkit.console import Console
from ftkit.errors import InputError, RecipeError, RunFailed
from ftkit.files import read_json, read_jsonl
from ftkit.records import GenerationConfig

QUIET = Console(silent=True)


def test_nothing_is_spent_before_someone_confirmed(fakes: Any, recipe: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"about \$4\.20[\s\S]*--yes"):
        ftkit.run(recipe({"usd": 4.2}), out=tmp_path / "runs", console=QUIET)
    assert not (tmp_path / "runs").exists(), "nothing was spent, nothing is left"
    assert ftkit.run(recipe({"usd": 4.2}), out=tmp_path / "runs", console=QUIET, yes=True).metrics["tuned"]


def test_several_recipes_are_confirmed_once_and_before_the_first(
    fakes: Any, recipe: Callable[..., Any], tmp_path: Path
) -> None:
    two = [recipe({"usd": 4.2}), recipe({"usd": 0.8}, name="second")]
    with pytest.raises(InputError, match=r"about \$5\.00"):
        ftkit.run(*two, out=tmp_path / "runs", console=QUIET)
    assert not (tmp_path / "runs").exists()


def test_a_price_that_nobody_knows_is_confirmed_too(
    fakes: Any, recipe: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown, priced = recipe({"usd": None}), recipe({"usd": 0.0053}, name="second")
    with pytest.raises(InputError, match=r"would cost an amount that is not known[\s\S]*--yes"):
        ftkit.run(unknown, out=tmp_path / "runs", console=QUIET)
    with pytest.raises(InputError, match=r"about \$0\.0053 and an amount that is not known"):
        ftkit.run(unknown, priced, out=tmp_path / "runs")
    said = capsys.readouterr().err
    assert "the price is not known: no price list" in said and "estimated price: $0.0053" in said
    assert not (tmp_path / "runs").exists()
    assert ftkit.run(unknown, out=tmp_path / "runs", console=QUIET, yes=True).metrics["tuned"]


def test_controls_are_estimated_confirmed_and_counted(
    fakes: Any, recipe: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paid = recipe({"usd": 4.2}, controls=[{"plugin": "fake-echo", "usd": 0.8}])
    with pytest.raises(InputError, match=r"about \$5\.00"):
        ftkit.run(paid, out=tmp_path / "runs")
    assert "estimated price: control fake-echo, $0.80" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"about \$10\.00"):
        ftkit.run(paid, {**paid, "name": "second"}, out=tmp_path / "runs", console=QUIET)
    run = ftkit.run(paid, out=tmp_path / "runs", console=QUIET, yes=True)
    stages = {s.name: s for s in run.directory.record().stages}
    assert stages["baseline"].usd == pytest.approx(0.8)
    (spent,) = run.report.costs["runs"]
    assert spent["estimated"] == pytest.approx(5.0) and spent["actual"] == pytest.approx(0.8 + 0.25)


def test_nothing_is_trained_where_the_base_model_gives_no_answer(
    command: Any, recipe_file: Any, tmp_path: Path
) -> None:
    stopped = command("run", recipe_file(), FAKES="answers=none")
    assert stopped.returncode == 1
    assert "no answer: all 24 requests failed, the first with: the fake server said 503" in stopped.stderr
    (directory,) = (tmp_path / "runs").iterdir()
    assert not (directory / "train" / "log.jsonl").exists()
    stages = {s["name"]: s["status"] for s in read_json(directory / "run.json")["stages"]}
    assert stages == {"prepare": "done", "baseline": "failed"}
    assert command("run", "--resume", directory).returncode == 0, "it asks again"


def test_a_backend_that_estimates_knows_how_the_rows_are_asked(
    fakes: Any, recipe: Callable[..., Any], tmp_path: Path
) -> None:
    asked = {"max_new_tokens": 16, "temperature": 0.5, "samples": 3}
    run = ftkit.run(recipe(generation=asked), out=tmp_path, console=QUIET)
    assert run.directory.task.generation == GenerationConfig(**asked), "and so it is read back"


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("n", 2)])
def test_a_person_at_a_terminal_is_asked(
    fake_site: Path, recipe_file: Callable[..., Path], tmp_path: Path, answer: str, status: int
) -> None:
    parent, child = pty.openpty()
    os.write(parent, f"{answer}\n".encode())
    line = [sys.executable, "-m", "ftkit", "run", str(recipe_file(backend={"usd": 1.5}))]
    env = {**os.environ, "PYTHONPATH": str(fake_site)}
    asked = subprocess.Popen(line, stdin=child, stderr=child, stdout=subprocess.DEVNULL, cwd=tmp_path, env=env)
    os.close(child)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal is gone when the process is
        while part := os.read(parent, 4096):
            shown += part
    os.close(parent)
    assert asked.wait(60) == status
    assert b"estimated price: $1.50" in shown and b"Spend about $1.50? [y/N]" in shown


def test_each_measurement_costs_what_its_own_answers_cost(
    fakes: Any, recipe: Callable[..., Any], tmp_path: Path
) -> None:
    run = ftkit.run(recipe({"usd_per_answer": 0.001, "extras": True}), out=tmp_path, console=QUIET)
    costs = {name: read_json(run.dir / name / "cost.json") for name in run.metrics}
    assert {name: round(c["usd"], 6) for name, c in costs.items()} == {
        "baseline": 0.024, "tuned": 0.024, "tuned-train-rows": 0.004,
    }  # fmt: skip
    stages = {s.name: s for s in run.directory.record().stages}
    assert stages["evaluate"].usd == pytest.approx(0.028) and stages["train"].usd == 0.25
    tuned = next(s for s in run.report.systems if s.stage == "tuned")
    assert tuned.usd == pytest.approx(0.274) and tuned.train_usd == 0.25 and tuned.n_predictions == 24


def test_predictions_hold_nothing_that_differs_between_equal_runs(
    fakes: Any, recipe: Callable[..., Any], tmp_path: Path
) -> None:
    runs = [ftkit.run(recipe(), out=tmp_path / str(i), console=QUIET) for i in (1, 2)]
    first, second = ((r.dir / "tuned" / "predictions.jsonl").read_bytes() for r in runs)
    assert first == second
    timings = list(read_jsonl(runs[0].dir / "tuned" / "timings.jsonl"))
    assert len(timings) == 24 and all(row["latency"] > 0 for row in timings)


def test_a_measurement_may_ask_for_the_loss(fakes: Any, recipe: Callable[..., Any], tmp_path: Path) -> None:
    run = ftkit.run(recipe({"extras": True, "losses": True}), out=tmp_path, console=QUIET)
    losses = list(read_jsonl(run.dir / "tuned-train-rows" / "losses.jsonl"))
    targets = {e.id: e.targets[0] for e in run.directory.task.train[:4]}
    assert losses == [{"example_id": i, "loss": len(t) / 100} for i, t in targets.items()]
    metric = run.metrics["tuned-train-rows"]["loss"]
    assert metric.value == pytest.approx(sum(row["loss"] for row in losses) / 4)
    assert metric.unit == "nats/token" and metric.higher_is_better is False
    assert "loss" not in run.metrics["tuned"]


def test_a_backend_may_leave_a_remote_job(command: Any, recipe_file: Any, tmp_path: Path) -> None:
    left = command("run", recipe_file(), FAKES="train=detach")
    assert left.returncode == 130
    assert "left the job job-1\n  look again later" in left.stderr and "the remote job continues" in left.stderr
    (directory,) = (tmp_path / "runs").iterdir()
    assert json.loads((directory / "run.json").read_text())["status"] == "interrupted"
    refused = command("run", recipe_file(), "--answer", "create-again=yes")
    assert refused.returncode == 2 and "--resume" in refused.stderr
    again = command("run", "--resume", directory, "--answer", "create-again=yes", FAKES="train=detach")
    assert again.returncode == 0, again.stderr


# ---------------------------------------------------------------- machines


def test_what_a_machine_may_cost_is_confirmed_and_what_it_cost_is_reported(
    fakes: Any,
    recipe: Callable[..., Any],
    fake_site: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    limit = {"usd": 6.0, "usd_per_hour": 3.0, "seconds": 7200, "usd_detail": "3 dollars an hour, for 2 hours."}
    paid = {"usd": 1.25, "seconds": 1500.0, "usd_per_hour": 3.0, "source": "a list"}
    launch = fakes.Elsewhere.launch
    monkeypatch.setattr(fakes.Elsewhere, "estimate", lambda self, where, estimates: limit if where != "free" else {})
    monkeypatch.setattr(fakes.Elsewhere, "launch", lambda self, run, where: launch(self, run, "") or paid)
    monkeypatch.setenv("PYTHONPATH", str(fake_site))
    with pytest.raises(InputError, match=r"about \$4\.20 and at most \$6\.00 for machines[\s\S]*--yes"):
        ftkit.run(recipe({"usd": 4.2}), out=tmp_path / "runs", where="fake-elsewhere")
    assert "price limit: fake-elsewhere, at most $6.00. 3 dollars an hour" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    run = ftkit.run(recipe(), out=tmp_path / "runs", console=QUIET, yes=True, where="fake-elsewhere")
    assert read_json(run.dir / "run.json")["rental"] == paid
    assert read_json(run.dir / "audit.json")["launch_estimate"]["usd"] == 6.0
    (spent,) = (r for r in read_json(run.dir / "report.json")["costs"]["runs"] if "elsewhere" in r["run"])
    assert (spent["estimated"], spent["actual"], spent["source"]) == (6.0, 1.25, "a list")
    assert "$1.25 (a list)" in (run.dir / "report.md").read_text("utf-8")


def test_a_rented_hour_prices_what_has_no_price_of_its_own() -> None:
    from ftkit.records import System
    from ftkit.report.costs import system_cost

    system = System("tuned", "run", "tuned", "tuned", {}, seconds=36.0, train_seconds=360.0, n_predictions=10)
    rented = replace(system, info={"rented_usd_per_hour": 10.0})
    cost = system_cost(rented, {})
    assert (cost.train_usd, cost.usd_per_1k, cost.usd_per_hour) == (1.0, pytest.approx(10.0), 10.0)
    assert set(cost.sources.values()) == {"rented machine"} and system_cost(system, {}).usd_per_hour is None
    api = system_cost(replace(rented, measure_usd=0.5), {})
    assert api.usd_per_hour is None and api.usd_per_1k == 50.0, "an API is not paid by the hour"


def test_a_run_that_moves_to_a_place_that_costs_is_confirmed(
    fakes: Any, recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fakes.Elsewhere, "estimate", lambda self, where, estimates: {"usd": 6.0})
    monkeypatch.setenv("FAKES", "train=crash")
    with pytest.raises(RunFailed):
        ftkit.run(recipe(), out=tmp_path, console=QUIET)
    (folder,) = (path.parent for path in tmp_path.glob("*/run.json"))
    with pytest.raises(InputError, match=r"at most \$6\.00 for machines"):
        ftkit.resume(folder, console=QUIET, where="fake-elsewhere")
    assert read_json(folder / "run.json")["where"] is None


def test_options_of_a_launcher_and_findings_of_this_machine(
    fakes: Any, recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftkit.records import Finding
    from ftkit.run.elsewhere import launcher_at

    with pytest.raises(RecipeError, match="--on: unknown key `max_usd`"):
        launcher_at("fake-elsewhere:x,max_usd=3")
    assert launcher_at("fake-elsewhere:a=b")[1] == "a=b", "options stand behind a comma"
    finding = Finding("error", "there is no GPU", here=True)
    monkeypatch.setattr(fakes.FakeBackend, "check", lambda self, task, trains=True: [finding])
    monkeypatch.setattr(fakes.Elsewhere, "launch", lambda self, run, where: None)
    with pytest.raises(RecipeError, match="there is no GPU"):
        ftkit.run(recipe(), out=tmp_path / "here", console=QUIET)
    with pytest.raises(RunFailed, match="before baseline"):  # it was prepared, and launched
        ftkit.run(recipe(), out=tmp_path / "there", console=QUIET, where="fake-elsewhere")
