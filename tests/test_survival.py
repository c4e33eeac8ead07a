"""Runs that survive: stopped at every step they take in the file system, on full and broken disks, by every signal.

What is compared at the end is what a run is for: answers, scores, metrics, the model and the report's numbers,
byte for byte those of a run that nothing disturbed. The fake backend makes a run short enough to stop it often.
"""

from __future__ import annotations

import datetime
import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kill_at import Ended, Stopper, mount, results, unfinished

from ftkit.files import read_json, read_jsonl, write_json, write_jsonl

POINTS = 16  # of about 200: tests/soak.py takes them all


@dataclass
class Place:
    """A folder with data and a recipe, a process that runs ftkit in it, and the results of an undisturbed run."""

    dir: Path
    stopper: Stopper
    whole: dict[str, Any]
    steps: list[str]
    count: int = 0

    def start(self, at: int | str | None = None, how: str = "kill") -> tuple[Path | None, Ended]:
        """Run the recipe in a folder of its own, stopped at a step; return the run directory (if there is one)."""
        shutil.rmtree(self.dir / f"runs-{self.count}", ignore_errors=True)  # memory is small
        self.count += 1
        out = self.dir / f"runs-{self.count}"
        ended = self.stopper.run("run", "recipe.yaml", "--out", out.name, at=at, how=how)
        found = list(out.glob("*/run.json"))
        assert len(found) < 2
        return (found[0].parent if found else None), ended

    def resume(self, run: Path, at: int | str | None = None, how: str = "kill") -> Ended:
        return self.stopper.run("run", "--resume", run, at=at, how=how)

    def points(self, steps: int, count: int = POINTS) -> list[int]:
        """Return about `count` steps, spread over the run; which, is chance (the seed is printed)."""
        seed = random.randrange(10**6)
        print(f"seed {seed}")
        rng, width = random.Random(seed), steps / count
        return sorted({int(i * width + rng.random() * width) for i in range(count)})

    def ended_well(self, run: Path) -> str | None:
        """Return what is wrong with a run that was stopped and resumed, or None."""
        left = unfinished(run)
        if left:
            return f"left behind: {left}"
        found = results(run)
        return None if found == self.whole else f"differs in {[k for k in self.whole if found.get(k) != self.whole[k]]}"


def write_recipe(folder: Path, **keys: Any) -> None:
    """Write a small recipe for the fakes that takes every path: failed requests, a control, further measurements."""
    rows = folder / "rows"
    rows.mkdir()
    for split, count in (("train", 5), ("validation", 2), ("test", 8)):
        lines = [{"input": f"{split} row {i} says {'so ' * (i % 5)}", "target": f"ROW {i}"} for i in range(count)]
        (rows / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = {"steps": 3, "batch_size": 3, "fail_once": ["test-1"], "extras": True, "context": 6}
    recipe = {
        "name": "fake-run",
        "dataset": {"path": str(rows)},
        "backend": {"plugin": "fake", **options},
        "controls": ["fake-echo"],
        "generation": {"max_new_tokens": 16},
        "evaluator": {"plugin": "fake-overlap"},
        **keys,
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))


@pytest.fixture
def small_disk(place: Place) -> Iterator[Callable[[str], Path]]:
    """Return a function that makes a disk of a size, or makes it larger; root alone may."""
    disk = place.dir / "disk"
    disk.mkdir()

    def mounted(options: str) -> Path:
        mount(["-t", "tmpfs", "-o", options, "tmpfs", str(disk)])
        return disk

    yield mounted
    while os.path.ismount(disk):
        subprocess.run(["umount", disk], check=True)
    disk.rmdir()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, fake_site: Path) -> Iterator[Place]:
    # In memory where that can be had: a kill does not lose what was written, and fsync costs most of the time.
    memory = Path("/dev/shm")
    base = memory if os.access(memory, os.W_OK) else tmp_path_factory.getbasetemp()
    with tempfile.TemporaryDirectory(dir=base) as name, Stopper(Path(name), PYTHONPATH=str(fake_site)) as stopper:
        place = Place(Path(name), stopper, {}, [])
        write_recipe(place.dir)
        run, ended = place.start()
        assert run and ended.status == 0, ended.said
        assert unfinished(run) == []
        place.whole, place.steps = results(run), ended.steps
        yield place


# ---------------------------------------------------------------- stopped anywhere


@pytest.mark.parametrize("how", ["kill", "torn"])
def test_killed_at_any_step_a_run_resumes_to_the_same_end(place: Place, how: str) -> None:
    wrong = []
    for number, at in enumerate(place.points(len(place.steps))):
        run, killed = place.start(at, how)
        assert killed.status == -signal.SIGKILL, killed.said
        if run is None:  # nothing was spent
            continue
        assert (run / "recipe.yaml").exists(), "a run that can be listed can be resumed"
        if number % 2:  # killed a second time, somewhere in what was left to do
            again = place.resume(run, random.Random(at).randrange(len(place.steps)), how)
            assert again.status in (0, -signal.SIGKILL), again.said
        resumed = place.resume(run)
        bad = resumed.said if resumed.status else place.ended_well(run)
        if bad:
            wrong.append(f"step {at}, {killed.steps[-1]}: {bad}")
    assert not wrong, "\n".join(wrong)


def test_a_run_killed_while_it_is_sealed_leaves_nothing_half_written(place: Place) -> None:
    last = next(i for i, step in enumerate(place.steps) if re.search(r"/\.report\.json\.", step))
    wrong = []
    for at in range(last, len(place.steps)):
        run, killed = place.start(at)
        assert run and killed.status == -signal.SIGKILL, killed.said
        resumed = place.resume(run)
        bad = resumed.said if resumed.status else place.ended_well(run)
        if bad:
            wrong.append(f"{killed.steps[-1]}: {bad}")
    assert not wrong, "\n".join(wrong)


def test_finished_stages_are_not_repeated(place: Place) -> None:
    run, _ = place.start(r"open .*/tuned/predictions.journal")
    assert run
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.parent.name in ("baseline", "data")}
    assert len(before) > 6
    trained = (run / "train" / "log.jsonl").read_bytes()
    resumed = place.resume(run)
    assert resumed.status == 0 and "baseline ..." not in resumed.err and "train ..." not in resumed.err
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert (run / "train" / "log.jsonl").read_bytes() == trained


def test_interrupted_in_its_very_last_write(place: Place) -> None:
    last = max(n for n, step in enumerate(place.steps) if step.startswith("os.rename") and "/.run.json" in step)
    run, ended = place.start(last, "interrupt")
    assert run and ended.status == 130, ended.said
    assert place.resume(run).status == 0 and place.ended_well(run) is None


def test_the_seconds_of_a_killed_attempt_are_counted(place: Place) -> None:
    run, _ = place.start(r"open .*/train/model/")
    assert run
    record = read_json(run / "run.json")
    record["stages"][-1]["started"] = "2020-01-01T00:00:00+00:00"
    write_json(run / "run.json", record)
    log = run / "train" / "log.jsonl"
    began = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC).timestamp()
    rows = [{**row, "time": began + 30 * (n + 1)} for n, row in enumerate(read_jsonl(log))]
    write_jsonl(log, rows)
    assert place.resume(run).status == 0
    train = next(s for s in read_json(run / "run.json")["stages"] if s["name"] == "train")
    assert 30 * len(rows) <= train["seconds"] < 30 * len(rows) + 20


@pytest.mark.parametrize("how", ["interrupt", "terminate", "hang-up"])
def test_interrupted_at_any_step_a_run_says_how_to_go_on(place: Place, how: str) -> None:
    wrong = []
    for at in place.points(len(place.steps), POINTS // 2):
        run, ended = place.start(at, how)
        if ended.status == 0:  # it was already over
            assert at > len(place.steps) - 12, ended.said
            continue
        if run is None:
            good = ended.status == 130 and "nothing was spent" in ended.err and not list(ended_dirs(place))
        else:
            good = ended.status == 130 and f"ftkit run --resume {run.relative_to(place.dir)}" in ended.err
            status = read_json(run / "run.json")["status"]  # "prepared": it was interrupted before its first stage
            good = good and status in ("prepared", "interrupted", "done")
            good = good and (status != "prepared" or not (run / "baseline").exists())
        if not good or "Traceback" in ended.err:
            wrong.append(f"step {at}: {ended.said}")
        elif run:
            resumed = place.resume(run)
            bad = resumed.said if resumed.status else place.ended_well(run)
            wrong += [f"step {at}: {bad}"] if bad else []
    assert not wrong, "\n".join(wrong)


def ended_dirs(place: Place) -> Iterator[Path]:
    return (place.dir / f"runs-{place.count}").glob("*")


def test_a_disk_that_is_full_at_any_step(place: Place) -> None:
    wrong = []
    for at in place.points(len(place.steps)):
        run, ended = place.start(at, "full")
        if ended.status == 0:  # nothing was written after this step
            assert at > len(place.steps) - 12, ended.said
            continue
        if ended.status not in (1, 2) or ("full" not in ended.err.lower() and "No space left" not in ended.err):
            wrong.append(f"step {at}: {ended.said}")
            continue
        if run is None:
            continue
        torn = unfinished(run, working=True)
        resumed = place.resume(run)
        bad = f"half-written: {torn}" if torn else resumed.said if resumed.status else place.ended_well(run)
        if bad or "defect" in ended.err or len(ended.err) > 1500:
            wrong.append(f"step {at}, {ended.steps[at]}: {bad}\n{ended.err}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("size", [4, 16, 40, 80, 120, 160])
def test_a_real_disk_too_small_for_the_run(place: Place, small_disk: Callable[[str], Path], size: int) -> None:
    disk = small_disk(f"size={size}k")
    ended = place.stopper.run("run", "recipe.yaml", "--out", disk / "runs")
    assert ended.status in (1, 2), f"{size} kB are enough, or too little in the wrong way: {ended.said}"
    assert "disk is full" in ended.err or "No space left" in ended.err
    assert ended.err.count("error: ") == 1 and "defect" not in ended.err
    runs = list(disk.glob("runs/*/run.json"))
    small_disk("remount,size=64m")
    if not runs:
        assert size < 40
        return
    run = runs[0].parent
    assert unfinished(run, working=True) == []
    resumed = place.resume(run)
    assert resumed.status == 0 and place.ended_well(run) is None, resumed.said
