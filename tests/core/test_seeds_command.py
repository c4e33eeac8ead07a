"""`ftkit run --seeds N` as scripts and people meet it, also when it is killed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from kill_at import Stopper, results

from ftkit.files import read_json

NOISY = {"skill": 0.7, "seed_noise": 0.2}


def test_the_command(command: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    path = recipe_file(backend=NOISY)
    done = command("run", path, "--seeds", 3, "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert [Path(r["run"]).name.rsplit("-", 3)[0] for r in data["runs"]] == [f"fake-run-seed{s}" for s in (42, 43, 44)]
    written = read_json(tmp_path / data["report"] / "report.json")
    assert [len(s["seeds"]) for s in written["systems"]] == [0, 3]
    again = json.loads(command("report", *(r["run"] for r in data["runs"]), "--out", "again", "--json").stdout)
    assert again["systems"] == written["systems"] and again["deltas"] == written["deltas"]
    listed = json.loads(command("runs", "--json").stdout)["runs"]
    assert len(listed) == 3
    people = command("run", path, "--seeds", "2", "--out", "shown")
    assert people.returncode == 0 and "2 training seeds" in people.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--seeds", "0"), "0 is not in the range"),
        (("--seeds", "many"), "'many' is not a valid integer"),
        (("--seeds", "2", "--resume", "x"), "--resume"),
        (("--seeds", "2", "--set", f"seed={2**32 - 1}"), "too large for a seed"),
    ],
)
def test_wrong_seeds_end_with_status_2(
    command: Callable[..., Any], recipe_file: Callable[..., Path], arguments: Sequence[str], says: str
) -> None:
    recipes = [] if "--resume" in arguments else [recipe_file()]
    done = command("run", *recipes, *arguments)
    assert done.returncode == 2 and says in done.stderr


def test_dry_run_says_what_the_estimates_are_of(command: Callable[..., Any], recipe_file: Callable[..., Path]) -> None:
    done = command("run", recipe_file(), "--seeds", 3, "--dry-run", "--json")
    assert done.returncode == 0 and "each recipe is trained 3 times" in done.stderr and json.loads(done.stdout)["ok"]


def test_killed_in_the_second_of_three_and_resumed(
    fake_site: Path, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = recipe_file(backend={**NOISY, "steps": 3})
    with Stopper(tmp_path, PYTHONPATH=str(fake_site)) as stopper:
        whole = stopper.run("run", path, "--seeds", 3, "--out", "whole", "--json")
        assert whole.status == 0, whole.said
        killed = stopper.run("run", path, "--seeds", 3, at=r"rename .*seed43.*tuned/\.predictions\.jsonl")
        assert killed.status == -9, killed.said
        found = sorted((tmp_path / "runs").iterdir())
        statuses = [read_json(run / "run.json")["status"] for run in found]
        assert statuses == ["done", "running", "prepared"]
        half = stopper.run("report", *found, "--out", "half", "--json")
        data = json.loads(half.out)
        assert [len(s["seeds"]) for s in data["systems"]] == [0, 1] and len(data["warnings"]) == 2, data["systems"]
        for run in found[1:]:
            assert (done := stopper.run("run", "--resume", run)).status == 0, done.said
        assert stopper.run("report", *found, "--out", "joint").status == 0
    for run, unbroken in zip(found, sorted(p for p in (tmp_path / "whole").iterdir() if "seed" in p.name), strict=True):
        assert results(run) == results(unbroken)
    first = read_json(tmp_path / "joint" / "report.json")
    second = read_json(tmp_path / json.loads(whole.out)["report"] / "report.json")
    assert first["deltas"] == second["deltas"]
    assert [s["spread"] for s in first["systems"]] == [s["spread"] for s in second["systems"]]
