"""`ftkit runs`, `open`, `rm` and `clean`: what is listed, in what order, and what is never deleted."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftkit import listing, removal, terminal
from ftkit.directory import RunDirectory, _slug
from ftkit.errors import InputError
from ftkit.files import read_json, write_json

Command = Callable[..., Any]
Make = Callable[..., Path]


@pytest.fixture
def four(command: Command, recipe_file: Make, tmp_path: Path) -> dict[str, Path]:
    """Four runs by name: good (4 steps), better (8 steps), weak, and broken, which failed; broken is the newest."""
    path = recipe_file()
    for name, skill, steps in (("good", 0.5, 4), ("better", 0.9, 8), ("weak", 0.1, 4), ("broken", 0.5, 4)):
        changes = [f"name={name}", f"backend.skill={skill}", f"backend.steps={steps}"]
        knobs = {"FAKES": "train=crash"} if name == "broken" else {}
        done = command("run", path, *[part for c in changes for part in ("--set", c)], **knobs)
        assert done.returncode == (1 if name == "broken" else 0), done.stderr
    for n, name in enumerate(("good", "better", "weak", "broken")):  # a day between them
        (folder,) = (tmp_path / "runs").glob(f"{name}-*")
        record = read_json(folder / "run.json")
        write_json(folder / "run.json", {**record, "started": f"2026-01-0{n + 1}T00:00:00+00:00"})
    return {name: next((tmp_path / "runs").glob(f"{name}-*")) for name in ("good", "better", "weak", "broken")}


def names(done: Any) -> list[str]:
    """Return the second column of the table on stdout."""
    assert done.returncode == 0, done.stderr
    table = done.stdout.split("\n\n")[0].splitlines()
    return [line.split()[1] for line in table[1:]]


def test_the_list(command: Command, four: dict[str, Path]) -> None:
    done = command("runs", COLUMNS="80")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["id", "name", "age", "time", "overlap", "change", "status"]
    assert names(done) == ["good", "better", "weak", "broken"] and max(map(terminal.cells, lines)) <= 80
    ident = four["better"].name.rpartition("-")[2]
    row = next(line for line in lines if "better" in line)
    assert row.startswith(ident) and re.search(r"\d+ d .* \d+\.\d\d -> \d+\.\d\d +\+\d+\.\d\d  done$", row)
    assert any(re.fullmatch(r"\w+ failed: RuntimeError: the fake trainer broke", line) for line in lines)
    assert done.stderr.strip().endswith(f"next: ftkit run --resume runs/{four['broken'].name}")


def test_sorted_and_chosen(command: Command, four: dict[str, Path]) -> None:
    assert names(command("runs", "--sort", "tuned")) == ["better", "good", "weak", "broken"]
    assert names(command("runs", "--sort", "change"))[0] == "better"
    assert names(command("runs", "--sort", "name")) == ["better", "broken", "good", "weak"]
    assert names(command("runs", "--sort", "age")) == ["broken", "weak", "better", "good"]
    assert names(command("runs", "--where", "backend.steps=8")) == ["better"]
    assert names(command("runs", "--where", "backend.skill=0.50", "--where", "status=done")) == ["good"]
    assert names(command("runs", "--where", "evaluator.plugin=fake-overlap", "--sort", "name"))[0] == "better"
    done = command("runs", "--where", "backend.stepps=8")
    assert done.returncode == 2 and "did you mean 'backend.steps'?" in done.stderr
    assert "not of the form KEY=VALUE" in command("runs", "--where", "backend.steps").stderr
    assert "did you mean 'change'" in command("runs", "--sort", "chnge").stderr
    none = command("runs", "--where", "backend.steps=99")
    assert none.returncode == 0 and none.stdout == "" and "none of the 4 runs" in none.stderr


def test_csv_and_json(command: Command, four: dict[str, Path]) -> None:
    rows = list(csv.DictReader(io.StringIO(command("runs", "--csv", "--sort", "tuned").stdout)))
    assert [row["name"] for row in rows] == ["better", "good", "weak", "broken"]
    assert float(rows[0]["change"]) == pytest.approx(float(rows[0]["tuned"]) - float(rows[0]["base"]))
    assert rows[3]["tuned"] == "" and rows[3]["why"] == "RuntimeError: the fake trainer broke"
    data = json.loads(command("runs", "--json", "--where", "status=failed").stdout)["runs"]
    assert [row["name"] for row in data] == ["broken"] and data[0]["why"] and data[0]["change"] is None
    assert command("runs", "--json", "--csv").returncode == 2


def test_runs_of_several_metrics_and_scripts(command: Command, recipe_file: Make, tmp_path: Path) -> None:
    command("run", recipe_file(name="会話の要約をする長い名前の実験その一"))
    (tmp_path / "p.jsonl").write_text('{"prediction": "a b", "target": "a"}\n')
    command("score", "--predictions", "p.jsonl", "--evaluator", "fake-overlap", "--name", "scored")
    done = command("runs", COLUMNS="80")
    lines = done.stdout.splitlines()
    assert all(terminal.cells(line) <= 80 for line in lines)
    assert terminal.cells(lines[1].split("  done")[0]) == terminal.cells(lines[2].split("  done")[0]), done.stdout
    assert any(path.name.startswith("会話の要約をする長い名前の実験その一-") for path in (tmp_path / "runs").iterdir())


def test_no_runs(command: Command) -> None:
    done = command("runs")
    assert done.returncode == 0 and done.stdout == "" and "next: ftkit run quickstart" in done.stderr


def test_names_of_folders() -> None:
    assert [_slug(n) for n in ("a b/c", "../evil", "要約 実験", "हिन्दी", "ภาษาไทย", "x" * 300, "...", "🎉")] == [
        "a-b-c", "evil", "要約-実験", "हिन्दी", "ภาษาไทย", "x" * 60, "run", "run",
    ]  # fmt: skip
    for name in ("\U00020000" * 80, "e\u0301" * 80, "要" * 80):
        assert len(os.fsencode(_slug(name))) <= 120
    assert _slug("e\u0301") == "\u00e9", "as NFC: one name on all file systems"


def test_a_file_system_of_ascii(recipe_file: Make, fake_site: Path, tmp_path: Path) -> None:
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(fake_site)}
    line = [sys.executable, "-m", "ftkit", "run", str(recipe_file(name="試験-x"))]
    done = subprocess.run(line, capture_output=True, cwd=tmp_path, env={**os.environ, **variables})
    assert done.returncode == 0, done.stderr
    assert [path.name[:2] for path in (tmp_path / "runs").iterdir()] == ["x-"]


def test_a_run_is_known_by_the_end_of_its_name(command: Command, four: dict[str, Path], tmp_path: Path) -> None:
    ident = four["good"].name.rpartition("-")[2]
    assert command("report", ident).returncode == 0
    assert "is done" in command("run", "--resume", ident).stderr
    shutil.copytree(four["good"], tmp_path / "runs" / f"copy-{ident}")
    done = command("report", ident)
    assert done.returncode == 2 and "2 runs in runs have a name that ends with" in done.stderr
    assert "no such folder" in command("report", "ffffff").stderr


# ---------------------------------------------------------------- open


@pytest.fixture
def browser(tmp_path: Path) -> dict[str, str]:
    """Variables that make a script the browser: it writes its argument to the file `opened`."""
    script = tmp_path / "browser.sh"
    script.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/opened\n')
    script.chmod(0o755)
    return {"BROWSER": str(script)}


def test_open(command: Command, four: dict[str, Path], browser: dict[str, str], tmp_path: Path) -> None:
    def opened(*arguments: str, **variables: str) -> tuple[str, str]:
        (tmp_path / "opened").unlink(missing_ok=True)
        done = command("open", *arguments, **{"DISPLAY": "", "WAYLAND_DISPLAY": "", **variables})
        assert done.returncode == 0, done.stderr
        seen = tmp_path / "opened"
        return done.stdout.strip(), seen.read_text().strip() if seen.exists() else ""

    os.utime(four["better"] / "report.html", (4e9, 4e9))
    page = four["better"] / "report.html"
    assert opened(**browser) == (f"runs/{four['better'].name}/report.html", page.resolve().as_uri())
    assert opened(four["weak"].name.rpartition("-")[2], **browser)[1] == (four["weak"] / "report.html").as_uri()
    assert opened(str(four["weak"]), **browser)[1].endswith("report.html")
    assert opened("--print", **browser)[1] == ""
    where, seen = opened(BROWSER="")
    assert where.endswith("report.html") and seen == ""
    assert "open this file" in command("open", BROWSER="", DISPLAY="", WAYLAND_DISPLAY="").stderr
    both = json.loads(command("report", *four.values(), "--json", "--out", "runs/both", "--anyway").stdout)
    assert opened("runs/both", **browser)[1] == Path(tmp_path, both["report"], "report.html").as_uri()


def test_there_is_nothing_to_open(command: Command, four: dict[str, Path]) -> None:
    (four["broken"] / "report.html").unlink(missing_ok=True)
    done = command("open", four["broken"])
    assert done.returncode == 2 and "has no report yet" in done.stderr and "--resume" in done.stderr
    assert "there is no report in empty/" in command("open", "--out", "empty").stderr


# ---------------------------------------------------------------- rm


def test_rm_asks_and_shows_sizes(command: Command, four: dict[str, Path]) -> None:
    done = command("rm", four["good"])
    assert done.returncode == 2 and "not confirmed" in done.stderr and four["good"].exists()
    assert re.search(rf"{four['good'].name}  done +\d+\.\d [kM]B$", done.stderr, re.MULTILINE), done.stderr
    done = command("rm", four["good"], four["weak"].name.rpartition("-")[2], "--yes")
    assert done.returncode == 0 and "deleted: 2 runs" in done.stderr, done.stderr
    assert not four["good"].exists() and not four["weak"].exists() and four["better"].exists()
    data = json.loads(command("rm", four["better"], "--yes", "--json").stdout)
    assert data["deleted"][0]["bytes"] > 1000 and [p.name for p in four["broken"].parent.iterdir()] == [
        four["broken"].name
    ]


@pytest.mark.parametrize(("answer", "gone"), [("y\n", True), ("n\n", False), ("\n", False), ("j\n", False)])
def test_a_person_answers(fake_site: Path, four: dict[str, Path], tmp_path: Path, answer: str, gone: bool) -> None:
    master, slave = pty.openpty()
    line = [sys.executable, "-m", "ftkit", "rm", str(four["good"])]
    env = {**os.environ, "PYTHONPATH": str(fake_site)}
    process = subprocess.Popen(line, stdin=slave, stdout=slave, stderr=slave, cwd=tmp_path, env=env)
    os.close(slave)
    os.write(master, answer.encode())
    assert process.wait(60) == (0 if gone else 2)
    os.close(master)
    assert four["good"].exists() != gone


def test_a_run_in_progress_is_not_deleted(command: Command, four: dict[str, Path]) -> None:
    with RunDirectory.open(four["good"]).exclusive():
        for arguments in (("rm", four["good"], "--yes"), ("rm", four["better"], four["good"], "--yes")):
            done = command(*arguments)
            assert done.returncode == 2 and "is running" in done.stderr, done.stderr
        assert command("clean", "--older-than", "1d", "--yes").returncode == 0
    assert four["good"].exists() and (four["good"] / "report.html").exists() and not four["better"].exists()


def test_what_is_not_a_run_is_not_deleted(command: Command, four: dict[str, Path], tmp_path: Path) -> None:
    run = four["good"]
    home = tmp_path / "home"
    (home / "photos").mkdir(parents=True)
    (home / "photos" / "one.jpg").write_text("x")
    link = tmp_path / "link"
    link.symlink_to(run)
    for path, says in ((home, "is not a run directory"), (tmp_path, "is not a run directory"), (link, "is a link"),
                       (tmp_path / "runs", "is not a run directory"), ("/", "is not a run directory")):  # fmt: skip
        done = command("rm", path, "--yes")
        assert done.returncode == 2 and says in done.stderr, done.stderr
    shutil.copyfile(run / "run.json", home / "run.json")
    done = command("rm", home, "--yes")
    assert done.returncode == 2 and "what ftkit did not write: photos" in done.stderr
    (run / "mine").symlink_to(home)
    assert "did not write: mine" in command("rm", run, "--yes").stderr
    (run / "mine").unlink()
    write_json(home / "run.json", {"some": "json"})
    assert command("rm", home, "--yes").returncode == 2
    done = command("rm", ".", "--yes", cwd=run)
    assert done.returncode == 2 and "the folder that you are in" in done.stderr
    assert (home / "photos" / "one.jpg").exists() and (run / "report.html").exists()


def test_a_link_inside_a_run_is_not_followed(command: Command, four: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model.bin").write_text("precious")
    (four["good"] / "train" / "link").symlink_to(tmp_path / "elsewhere")
    assert command("rm", four["good"], "--yes").returncode == 0
    assert (tmp_path / "elsewhere" / "model.bin").read_text() == "precious" and not four["good"].exists()


def test_a_stopped_deletion_can_be_finished(four: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory.open(four["good"])
    shutil.rmtree(run.dir / "tuned")
    (run.dir / "recipe.yaml").unlink()
    removal.remove(RunDirectory.open(four["good"]))
    assert not run.dir.exists()


# ---------------------------------------------------------------- clean


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in (tmp_path / "runs").iterdir())


def test_clean(command: Command, four: dict[str, Path], tmp_path: Path) -> None:
    assert command("clean").returncode == 2
    assert "is no length of time" in command("clean", "--older-than", "soon").stderr
    done = command("clean", "--failed")
    assert done.returncode == 2 and "Delete" not in done.stdout and "broken" in done.stderr and len(left(tmp_path)) == 4
    assert "nothing to delete" in command("clean", "--failed", "--older-than", "9999w").stderr
    assert command("clean", "--keep-best", "2", "--yes").returncode == 0
    assert left(tmp_path) == ["better", "broken", "good"]
    assert command("clean", "--failed", "--keep-best", "1", "--older-than", "1d", "--yes").returncode == 0
    assert left(tmp_path) == ["better"]
    assert json.loads(command("clean", "--failed", "--yes", "--json").stdout) == {"deleted": []}
    assert command("clean", "--older-than", "1h", "--yes").returncode == 0 and left(tmp_path) == []


def test_age_does_not_change_which_runs_are_best(four: dict[str, Path], tmp_path: Path) -> None:
    found = listing.summaries(tmp_path / "runs")
    age = next(s.age for s in found if s.record.name == "better")
    assert age is not None
    gone = removal.to_clean(found, failed=False, keep_best=1, older_than=age)
    assert [s.record.name for s in gone] == ["good"], "weak is too young, better is the best"


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 2592000), ("12h", 43200), ("90m", 5400), ("2w", 1209600), ("1.5h", 5400)]
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert removal.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1y", "３０d", "1e9d", "30 days"])
def test_no_lengths_of_time(text: str) -> None:
    with pytest.raises(InputError):
        removal.seconds_of(text)
