"""How a run ends when the machine does not play along: full and broken disks, signals, directories that vanish."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from kill_at import mount, unfinished

import ftkit
from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.errors import InputError, Interrupted, RunFailed
from ftkit.files import read_json, write_json
from ftkit.run import signals
from ftkit.run.signals import explained

Command = Callable[..., Any]
Make = Callable[..., Path]
QUIET = Console(silent=True)


def only(folder: Path) -> Path:
    (run,) = (p.parent for p in folder.glob("*/run.json"))
    return run


def wait_for(condition: Callable[[], object], process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing happened within 30 s"
        time.sleep(0.01)


@pytest.fixture
def interrupted(recipe_file: Make, fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was interrupted in its baseline."""
    monkeypatch.setenv("FAKES", "interrupt=2")
    with pytest.raises(Interrupted):
        ftkit.run(recipe_file(), out=tmp_path / "runs", console=QUIET)
    monkeypatch.delenv("FAKES")
    return only(tmp_path / "runs")


# ---------------------------------------------------------------- disks


def test_a_file_that_may_not_grow(command: Command, recipe_file: Make, tmp_path: Path) -> None:
    """A quota, or a file system's largest file: unlike a full disk, small files can still be written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    recipe = recipe_file()
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))  # the report is larger
    try:
        ended = command("run", recipe)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ended.returncode == 1 and "File too large" in ended.stderr and "--resume" in ended.stderr
    run = only(tmp_path / "runs")
    assert read_json(run / "run.json")["status"] == "failed" and unfinished(run, working=True) == []
    assert command("run", "--resume", run).returncode == 0 and unfinished(run) == []


def test_an_error_on_a_full_disk_keeps_its_own_message(interrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory.open(interrupted)
    wrong, full = ValueError("the template is wrong"), OSError(errno.ENOSPC, "No space left on device")
    assert explained(wrong, run).message == "ValueError: the template is wrong"
    assert explained(full, run).message == f"the disk is full: {run.dir}"
    monkeypatch.setattr(signals, "_ROOM", sys.maxsize)  # less than this is free on every disk
    assert explained(wrong, run).message == "ValueError: the template is wrong (and the disk is nearly full)"
    assert explained(full, run).message == f"the disk is full: {run.dir}"


@contextlib.contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """Make a folder read-only, for root too where this test runs as root."""
    if os.geteuid() == 0:
        mount(["--bind", str(folder), str(folder)])
        mount(["-o", "remount,bind,ro", str(folder)])
    else:
        folder.chmod(0o500)
    try:
        yield
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", folder], check=True)
        folder.chmod(0o700)


def test_an_unwritable_folder(command: Command, recipe_file: Make, interrupted: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir()
    with unwritable(tmp_path / "locked"):
        ended = command("run", recipe_file(), "--out", tmp_path / "locked")
        assert ended.returncode == 2 and "cannot make a run directory in" in ended.stderr
    before = {p: p.read_bytes() for p in interrupted.rglob("*") if p.is_file()}
    with unwritable(interrupted):
        ended = command("run", "--resume", interrupted)
        assert ended.returncode == 2 and "cannot write in" in ended.stderr and "defect" not in ended.stderr
    assert {p: p.read_bytes() for p in interrupted.rglob("*") if p.is_file()} == before
    assert command("run", "--resume", interrupted).returncode == 0


# ---------------------------------------------------------------- what vanishes


@pytest.mark.parametrize("stage", ["baseline/predictions.journal", "train/log.jsonl", "tuned/predictions.journal"])
def test_a_run_directory_that_is_deleted_while_the_run_is_at_work(
    command: Command, recipe_file: Make, tmp_path: Path, stage: str
) -> None:
    process = command("run", recipe_file(backend={"steps": 20}), wait=False, FAKES="slow=0.1")
    wait_for(lambda: list(tmp_path.glob(f"runs/*/{stage}")), process)
    run = only(tmp_path / "runs")
    run.rename(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1 and "was deleted or moved" in err and "--resume" not in err, err
    assert err.count("error: ") == 1 and not list((tmp_path / "runs").iterdir()), "nothing may be left of it"


def test_data_that_vanished_from_the_run_directory(interrupted: Path, fakes: ModuleType) -> None:
    (interrupted / "data" / "test.jsonl").unlink()
    with pytest.raises(RunFailed, match=r"data/test\.jsonl is missing"):
        ftkit.resume(interrupted, console=QUIET)


def test_a_dataset_that_vanishes_before_it_is_read(command: Command, recipe_file: Make, tmp_path: Path) -> None:
    recipe = recipe_file()
    shutil.rmtree(tmp_path / "rows")
    ended = command("run", recipe)
    assert ended.returncode == 2 and "rows" in ended.stderr and not list(tmp_path.glob("runs/*"))


# ---------------------------------------------------------------- signals and terminals


def test_impatient_ctrl_c(fake_site: Path, recipe_file: Make, tmp_path: Path) -> None:
    """Several Ctrl-C in a row end with the same message, and the record is written."""
    recipe = recipe_file(tracking=["fake-hanging"])  # its thread delays the end of the run by its patience
    env = {**os.environ, "PYTHONPATH": str(fake_site), "FAKES": "slow=0.1"}
    line = [sys.executable, "-m", "ftkit", "run", str(recipe)]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=env)
    wait_for(lambda: list(tmp_path.glob("runs/*/train/log.jsonl")), process)
    for _ in range(8):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    _, err = process.communicate(timeout=30)
    run = only(tmp_path / "runs")
    assert process.returncode == 130 and f"ftkit run --resume runs/{run.name}" in err, err
    assert read_json(run / "run.json")["status"] == "interrupted"


def test_the_terminal_is_closed(fake_site: Path, recipe_file: Make, command: Command, tmp_path: Path) -> None:
    recipe, run = recipe_file(), tmp_path / "runs"

    def start(*line: str) -> tuple[subprocess.Popen[bytes], int]:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [*line, "run", str(recipe)], stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path,
            start_new_session=True, preexec_fn=_controlling_terminal,
            env={**os.environ, "PYTHONPATH": str(fake_site), "FAKES": "slow=0.1"},
        )  # fmt: skip
        os.close(theirs)
        wait_for(lambda: list(run.glob("*/baseline/predictions.journal")), process)
        return process, ours

    ftkit_command = [sys.executable, "-c", "from ftkit.cli.main import main; main()"]
    process, terminal = start(*ftkit_command)
    os.close(terminal)  # SIGHUP, and every line that is printed is an error from now on
    assert process.wait(30) == 130
    stopped = only(run)
    assert read_json(stopped / "run.json")["status"] == "interrupted"
    assert command("run", "--resume", stopped).returncode == 0
    shutil.rmtree(run)

    process, terminal = start("nohup", *ftkit_command)  # asked not to be disturbed
    os.close(terminal)
    assert process.wait(60) == 0
    assert read_json(only(run) / "run.json")["status"] == "done"


def _controlling_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_nobody_reads_what_is_printed(command: Command, recipe_file: Make, tmp_path: Path) -> None:
    process = command("run", recipe_file(), wait=False, FAKES="slow=0.02")
    process.stderr.close()  # as `2>&1 | head -1` does
    process.stdout.close()
    process.wait(30)
    assert read_json(only(tmp_path / "runs") / "run.json")["status"] == "done"


# ---------------------------------------------------------------- what can be resumed, and what cannot


def test_resuming_a_run_that_is_done(command: Command, recipe_file: Make, tmp_path: Path) -> None:
    assert command("run", recipe_file()).returncode == 0
    run = only(tmp_path / "runs")
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    again = command("run", "--resume", run)
    assert again.returncode == 0 and "is done" in again.stderr and "report: " in again.stdout
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before
    (run / "report.json").unlink()
    again = command("run", "--resume", run)  # what is missing of a finished run is made again
    assert again.returncode == 0 and (run / "report.json").exists()


def test_what_is_no_run(command: Command, interrupted: Path, tmp_path: Path) -> None:
    def says(what: str, run: Path = interrupted) -> None:
        ended = command("run", "--resume", run)
        assert ended.returncode == 2 and what in ended.stderr and "defect" not in ended.stderr, ended.stderr

    says("no such folder", tmp_path / "nowhere")
    says("not a run directory", tmp_path)
    for text in ("", "{", "[]", "null", '{"a": 1}', '{"id": 3}'):
        (interrupted / "run.json").write_text(text)
        says("run.json")
    (interrupted / "run.json").unlink()
    says(f"ftkit run {interrupted / 'recipe.yaml'}")
    assert command("run", interrupted / "recipe.yaml").returncode == 0


def test_a_run_of_a_newer_ftkit(interrupted: Path, fakes: ModuleType) -> None:
    lock = read_json(interrupted / "lock.json")
    lock["packages"]["ftkit"] = "99.1"
    write_json(interrupted / "lock.json", lock)
    with pytest.raises(InputError, match=r"ftkit 99\.1[\s\S]*pip install"):
        ftkit.resume(interrupted, console=QUIET)


def test_what_changed_since_a_run_began_is_one_warning(interrupted: Path, fakes: ModuleType) -> None:
    lock = read_json(interrupted / "lock.json")
    lock["packages"]["numpy"] = "1.0"
    lock["packages"]["left-pad"] = "2.0"
    lock["python"] = "3.1.0"
    write_json(interrupted / "lock.json", lock)
    text = (interrupted / "recipe.yaml").read_text()
    (interrupted / "recipe.yaml").write_text(text + "# by hand\n")
    warnings = ftkit.resume(interrupted, console=QUIET).directory.record().warnings
    (warning,) = [w for w in warnings if "since this run began" in w]
    for part in ("numpy 1.0 ->", "left-pad 2.0 -> none", "python 3.1.0 ->", "recipe.yaml"):
        assert part in warning
    assert "click" not in warning


def test_nothing_changed_nothing_is_said(interrupted: Path, fakes: ModuleType) -> None:
    assert ftkit.resume(interrupted, console=QUIET).directory.record().warnings == ()


def test_links_out_of_the_run_directory_are_not_followed(interrupted: Path, fakes: ModuleType, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "checkpoint-4"
    elsewhere.mkdir(parents=True)
    for name in (".work/checkpoints", ".work/checkpoints/checkpoint-4", ".work", "tuned"):
        link = interrupted / name
        if link.exists():
            link.rename(tmp_path / "aside")
        link.parent.mkdir(exist_ok=True, parents=True)
        link.symlink_to(elsewhere)
        with pytest.raises(InputError, match=r"is a link to .*elsewhere"):
            ftkit.resume(interrupted, console=QUIET)
        link.unlink()
        if (tmp_path / "aside").exists():
            (tmp_path / "aside").rename(link)
    assert list(elsewhere.iterdir()) == []
    assert ftkit.resume(interrupted, console=QUIET).directory.record().status == "done"


def test_a_run_that_may_not_reuse_does_not_when_it_is_resumed(
    recipe_file: Make, fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_file()
    first = ftkit.run(recipe, out=tmp_path / "runs", console=QUIET)
    monkeypatch.setenv("FAKES", "interrupt=0")
    with pytest.raises(Interrupted):
        ftkit.run(recipe, out=tmp_path / "runs", reuse=False, console=QUIET)
    monkeypatch.delenv("FAKES")
    (run,) = [p for p in (tmp_path / "runs").iterdir() if p.name != first.dir.name]
    shutil.rmtree(run / "baseline")  # as if it had been killed a moment earlier
    assert "reused_from" not in read_json(ftkit.resume(run, console=QUIET).dir / "baseline" / "cost.json")


def test_looking_at_a_run_at_work_does_not_touch_it(interrupted: Path) -> None:
    log = interrupted / "train" / "log.jsonl"
    log.parent.mkdir(exist_ok=True)
    log.write_text('{"event": "step", "step": 1}\n{"event": "st')  # another process is writing this line
    assert [row["step"] for row in RunDirectory.open(interrupted).log_rows()] == [1]
    assert log.read_text().endswith('"st')
    json.loads((interrupted / "run.json").read_text())


def test_of_several_recipes_it_is_said_what_is_left(command: Any, recipe_file: Any, tmp_path: Path) -> None:
    first, second = recipe_file("a.yaml", name="a"), recipe_file("b.yaml", name="b")
    third = recipe_file("c.yaml", name="c", backend={"steps": 7})
    stopped = command("run", first, second, third, FAKES="train=interrupt")
    assert stopped.returncode == 130
    a, b, c = (f"runs/{path.name}" for path in sorted((tmp_path / "runs").iterdir()))
    assert f"resume with: ftkit run --resume {a}" in stopped.stderr
    assert f"prepared and not started; start each with ftkit run --resume: {b}, {c}" in stopped.stderr
    assert f"ftkit report {a} {b} {c}" in stopped.stderr
    assert [read_json(tmp_path / run / "run.json")["status"] for run in (a, b, c)] == [
        "interrupted",
        "prepared",
        "prepared",
    ]
    listed = json.loads(command("runs", "--json").stdout)["runs"]
    assert [row["status"] for row in listed] == ["interrupted", "prepared", "prepared"]
    assert "this run was prepared" in command("report", b).stdout + (tmp_path / b / "report.md").read_text()
    for run in (a, b, c):
        assert command("run", "--resume", run).returncode == 0
    assert command("report", a, b, c).returncode == 0
