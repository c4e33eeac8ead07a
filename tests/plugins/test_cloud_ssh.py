"""`--on ssh://...` against a real sshd on loopback: whole runs, kills on either side, cuts, full disks, changed keys."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import re
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
from ftkit_cloud import _bundle
from ftkit_cloud._ssh import DIR, Destination, SshTransport, destination_of

import ftkit
from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.errors import InputError
from ftkit.files import read_json
from ftkit.run.manifest import faults

sys.path.insert(0, str(Path(__file__).parents[1]))
import kill_at
from sshd import Sshd, left_over, program

pytestmark = pytest.mark.needs("ssh", "ssh-keygen", "rsync", *([] if shutil.which("sshd") else ["/usr/sbin/sshd"]))
ROOT = Path(__file__).parents[2]
SLOW = "slow=0.15"  # 16 batches and 6 steps: about 4 s


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory, fake_site: Path) -> Iterator[Sshd]:
    server = Sshd(tmp_path_factory.mktemp("sshd"), PYTHONPATH=str(fake_site))
    yield server
    server.stop()


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """ftkit's folder on the remote side."""
    return tmp_path / "there"


@pytest.fixture
def on(sshd: Sshd, there: Path, command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs `ftkit ARGUMENTS` with what reaches the sshd; `fakes` are what the fakes do there."""

    def start(*arguments: object, fakes: str = "", wait: bool = True, **options: Any) -> Any:
        variables = {
            "FTKIT_SSH_COMMAND": sshd.command,
            "FTKIT_REMOTE_PYTHON": sys.executable,
            "FTKIT_SEND_ENV": "FAKES,FAKE_API_KEY",
            "FAKES": fakes,
            "FAKE_API_KEY": "not-for-any-file-7131",
        }
        process = command(*arguments, wait=False, **{**variables, **options})
        if not wait:
            return process
        out, err = process.communicate(timeout=240)
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return start


@pytest.fixture
def begin(on: Callable[..., Any], sshd: Sshd, there: Path, recipe_file: Callable[..., Path], tmp_path: Path) -> Any:
    """Return a function that starts a run there and returns its process and, once it is there, its directory."""

    def start(fakes: str = SLOW, **options: Any) -> tuple[Any, Path]:
        recipe = recipe_file(**options.pop("recipe", {}))
        process = on("run", recipe, "--on", sshd.where(there), fakes=fakes, wait=False, **options)
        return process, wait_for(lambda: next((p.parent for p in tmp_path.glob("runs/*/run.json")), None))

    return start


def wait_for(look: Callable[[], Any], seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return found


def events(run: Path) -> list[dict[str, Any]]:
    path = run / "train" / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps(run: Path) -> list[int]:
    return [event["step"] for event in events(run) if event["event"] == "step"]


def ended(process: Any, status: int | None = 0) -> str:
    _out, err = process.communicate(timeout=240)
    assert "Traceback" not in err, err
    assert status is None or process.returncode == status, err
    return str(err)


def results(run: Path) -> dict[str, Any]:
    """Return what must be the same wherever the run was executed."""
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for name in ("data/*", "*/predictions.jsonl", "*/scores.jsonl", "*/plan.json", "train/model/*")
        for path in sorted(run.glob(name))
    }


def nothing_is_left(there: Path, tmp_path: Path) -> None:
    assert not list(there.glob("runs/*")), sorted(there.rglob("*"))
    wait_for(lambda: not left_over(there, tmp_path / "runs"), 60)


@pytest.fixture
def here(recipe: Callable[..., dict[str, Any]], fakes: ModuleType, tmp_path: Path) -> dict[str, Any]:
    """The results of the same recipe on this machine."""
    return results(ftkit.run(recipe(), out=tmp_path / "here", console=Console(silent=True)).dir)


def is_whole(run: Path, here: dict[str, Any], there: Path, tmp_path: Path, repeated: int = 0) -> None:
    """Assert that a run ended as it would have here, and left nothing. At most `repeated` steps were executed twice."""
    assert results(run) == here
    record = read_json(run / "run.json")
    assert record["status"] == "done" and record["where"].startswith("ssh:")
    assert sorted(set(steps(run))) == [1, 2, 3, 4, 5, 6] and len(steps(run)) <= 6 + repeated, steps(run)
    assert faults(run) == [] and not (run / ".work").exists()
    nothing_is_left(there, tmp_path)


# ---------------------------------------------------------------- the whole


def test_a_run_elsewhere_ends_as_one_here(
    begin: Any, on: Any, here: dict[str, Any], there: Path, tmp_path: Path
) -> None:
    calls = tmp_path / "calls.jsonl"
    process, run = begin("slow=0.5", recipe={"tracking": [{"plugin": "fake-recorder", "file": str(calls)}]})
    wait_for(lambda: len(steps(run)) >= 2)  # events come while the run works
    assert process.poll() is None and read_json(run / "run.json")["status"] == "running"
    assert (run / "baseline" / "metrics.json").exists()  # a finished stage is here at once
    page = wait_for(lambda: text if (text := (run / "report.html").read_text()).count('<li class="done">') > 1 else "")
    assert "data-written" in page  # prepare and baseline are done on the page of a run that works
    secret = "not-for-any-file-7131"
    assert not [p for p in [*there.rglob("*"), *run.rglob("*")] if p.is_file() and secret in p.read_text("latin-1")]
    err = ended(process)
    assert "travel to" in err and "baseline: done in" in err and "evaluate: done in" in err
    is_whole(run, here, there, tmp_path)
    told = [json.loads(line) for line in calls.read_text().splitlines()]
    assert [what for what, *_ in told if what != "event"].count("finished") == 1
    assert [name for what, name, *_ in told if what == "stage"] == [
        "prepare",
        "baseline",
        "train",
        "evaluate",
        "report",
    ]
    assert [step for what, kind, step in (t for t in told if t[0] == "event") if kind == "step"] == [1, 2, 3, 4, 5, 6]
    lock = read_json(run / "lock.json")
    assert lock["data"]["rows"] and lock["recipe"] and "FTKIT_LAUNCHED" not in lock["environment"]
    assert on("verify", run).returncode == 0
    assert on("report", run, "--out", tmp_path / "again").returncode == 0
    assert "nothing left to do" in on("run", "--resume", run).stderr


def test_two_runs_on_one_machine_at_once(
    begin: Any, on: Any, sshd: Sshd, recipe_file: Any, here: dict[str, Any], there: Path, tmp_path: Path
) -> None:
    process, run = begin()
    other = on("run", recipe_file(), "--on", sshd.where(there), "--out", "others", fakes=SLOW, wait=False)
    wait_for(lambda: len(list(there.glob("runs/*/status.json"))) == 2)
    ended(process)
    ended(other)
    (second,) = (p.parent for p in tmp_path.glob("others/*/run.json"))
    is_whole(second, here, there, tmp_path)
    is_whole(run, here, there, tmp_path)


def test_without_rsync_an_archive_is_read(
    on: Any, sshd: Sshd, recipe_file: Any, here: dict[str, Any], there: Path, tmp_path: Path
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("ssh", "git"):
        (tools / name).symlink_to(str(shutil.which(name)))
    done = on("run", recipe_file(), "--on", sshd.where(there), PATH=str(tools))
    assert done.returncode == 0, done.stderr
    (run,) = (p.parent for p in tmp_path.glob("runs/*/run.json"))
    is_whole(run, here, there, tmp_path)


# ---------------------------------------------------------------- kills and cuts


@pytest.mark.parametrize("moment", [0.0, 0.6])
def test_a_killed_laptop_finds_its_run_again(
    moment: float, begin: Any, on: Any, here: dict[str, Any], there: Path, tmp_path: Path
) -> None:
    process, run = begin()
    if moment:
        wait_for(lambda: list(there.glob("runs/*/status.json")))
    time.sleep(random.Random(moment).random() * (0.5 if not moment else 5 * moment))
    process.kill()
    process.communicate()
    time.sleep(0.5 if moment < 0.6 else 6)  # the run continues, and may have ended
    started = len(list(there.glob("runs/*")))
    done = on("run", "--resume", run, fakes=SLOW)
    assert done.returncode == 0, done.stderr
    assert started <= 1
    is_whole(run, here, there, tmp_path)


def remote_pids(there: Path, what: str) -> list[int]:
    if what == "supervisor":
        return [read_json(p)["supervisor"] for p in there.glob("runs/*/status.json")]
    return [pid for pid, line in left_over(there).items() if "--on here" in line]


@pytest.mark.parametrize("what", ["run", "supervisor"])
def test_a_killed_remote_process_is_one_message_and_resumes(
    what: str, begin: Any, on: Any, here: dict[str, Any], there: Path, tmp_path: Path
) -> None:
    process, run = begin("slow-step=4")  # events may come some seconds late
    wait_for(lambda: len(steps(run)) >= 2)
    os.kill(remote_pids(there, what)[0], signal.SIGKILL)
    err = ended(process, 1)
    assert "was killed on" in err and "its last lines there:" in err and "--resume" in err
    assert ("signal 9" in err) == (what == "run")
    nothing_is_left(there, tmp_path)
    assert on("run", "--resume", run).returncode == 0
    is_whole(run, here, there, tmp_path)


def test_a_cut_connection_is_made_again(
    begin: Any, sshd: Sshd, here: dict[str, Any], there: Path, tmp_path: Path
) -> None:
    process, run = begin()
    wait_for(lambda: list(there.glob("runs/*/status.json")))
    cuts = 0
    while cuts < 4 and process.poll() is None:
        cuts += sshd.cut() > 0
        time.sleep(0.7)
    err = ended(process)
    assert cuts >= 3 and "it is tried again" in err and "again" in err
    is_whole(run, here, there, tmp_path)


def test_a_machine_that_stays_away_is_left_and_found_later(
    begin: Any, on: Any, sshd: Sshd, here: dict[str, Any], there: Path, tmp_path: Path
) -> None:
    process, run = begin("slow-step=2", FTKIT_REMOTE_PATIENCE="2")
    wait_for(lambda: len(steps(run)) >= 2)
    sshd.stop()
    sshd.cut()
    for pid in [pid for pid, line in left_over(tmp_path).items() if "remote.py follow" in line]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    try:
        err = ended(process, 130)
    finally:
        sshd.start()
    assert "cannot be reached" in err and "--resume" in err
    assert read_json(run / "run.json")["status"] == "interrupted"
    assert on("run", "--resume", run).returncode == 0
    is_whole(run, here, there, tmp_path)


# ---------------------------------------------------------------- ends that are asked for


def test_ctrl_c_leaves_the_run_and_cancel_ends_it(
    begin: Any, on: Any, here: dict[str, Any], there: Path, tmp_path: Path
) -> None:
    process, run = begin("slow-step=15")
    wait_for(lambda: steps(run))
    process.send_signal(signal.SIGINT)
    err = ended(process, 130)
    assert "press Ctrl-C again" in err and "where it continues" in err and f"ftkit cancel runs/{run.name}" in err
    assert remote_pids(there, "run")
    for elsewhere in (f"ssh://elsewhere.invalid{there}", "here"):  # never in two places
        other = on("run", "--resume", run, "--on", elsewhere)
        assert other.returncode == 2 and "may still be executed there" in other.stderr
    done = on("cancel", run)
    assert done.returncode == 0 and ": ended" in done.stdout, done.stderr
    nothing_is_left(there, tmp_path)
    assert steps(run) and read_json(run / "run.json")["status"] == "interrupted"
    assert on("run", "--resume", run).returncode == 0
    is_whole(run, here, there, tmp_path)


def test_a_second_ctrl_c_ends_the_run_there(begin: Any, there: Path, tmp_path: Path) -> None:
    process, run = begin("slow-step=15")
    wait_for(lambda: steps(run))
    process.send_signal(signal.SIGINT)
    wait_for(lambda: any("press Ctrl-C again" in str(event.get("message")) for event in events(run)))
    process.send_signal(signal.SIGINT)
    err = ended(process, 130)
    assert "was ended on" in err and "what it had done is here" in err
    nothing_is_left(there, tmp_path)


def test_a_run_that_fails_there_fails_here_with_its_own_words(
    on: Any, begin: Any, here: dict[str, Any], there: Path, tmp_path: Path
) -> None:
    process, run = begin("train=crash")
    err = ended(process, 1)
    assert "on " in err and "the fake trainer broke" in err and f"ftkit run --resume runs/{run.name}" in err
    assert "the fake trainer broke" in (run / "debug.log").read_text()  # with its traceback
    nothing_is_left(there, tmp_path)
    assert on("run", "--resume", run).returncode == 0
    is_whole(run, here, there, tmp_path)


def test_a_limit_of_time_ends_the_run(
    recipe: Any, fakes: ModuleType, sshd: Sshd, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ftkit_cloud._ssh as ssh

    def launch(self: Any, run: Any, where: str) -> None:
        ssh.execute(run, dataclasses.replace(destination_of(where)), max_seconds=3, environment={"FAKES": "slow=1"})

    monkeypatch.setenv("FTKIT_SSH_COMMAND", sshd.command)
    monkeypatch.setenv("FTKIT_REMOTE_PYTHON", sys.executable)
    monkeypatch.setattr("ftkit_cloud.Ssh.launch", launch)
    with pytest.raises(ftkit.FtkitError, match=r"after its limit of 3\.0 s"):
        ftkit.run(recipe(), out=tmp_path / "runs", console=Console(silent=True), where=sshd.where(there))
    nothing_is_left(there, tmp_path)


# ---------------------------------------------------------------- what the other machine lacks


def test_a_full_disk_there(begin: Any, on: Any, there: Path, tmp_path: Path, here: dict[str, Any]) -> None:
    there.mkdir()
    kill_at.mount(["-t", "tmpfs", "-o", "size=600k", "tmpfs", str(there)])
    try:
        process, run = begin("slow-step=5")  # the disk must be full before the run is done
        wait_for(lambda: steps(run))
        with contextlib.suppress(OSError), open(there / "ballast", "wb") as ballast:
            while True:
                ballast.write(b"\0" * 512)
                ballast.flush()
        err = ended(process, 1)
        assert "disk" in err and "full" in err and "--resume" in err
        (there / "ballast").unlink(missing_ok=True)
        nothing_is_left(there, tmp_path)
        assert on("run", "--resume", run).returncode == 0
        is_whole(run, here, there, tmp_path, repeated=1)  # the step whose state the disk had no room for
    finally:
        subprocess.run(["umount", "-l", str(there)], check=True)


def test_a_disk_without_room_is_said_before_anything_starts(on: Any, sshd: Sshd, recipe_file: Any, there: Path) -> None:
    there.mkdir()
    kill_at.mount(["-t", "tmpfs", "-o", "size=40k", "tmpfs", str(there)])
    try:
        done = on("run", recipe_file(), "--on", sshd.where(there))
        assert done.returncode == 1 and "is full" in done.stderr and not list(there.glob("runs/*"))
    finally:
        subprocess.run(["umount", "-l", str(there)], check=True)


def test_host_keys_are_checked(
    on: Any, begin: Any, sshd: Sshd, recipe_file: Any, here: dict[str, Any], there: Path, tmp_path: Path
) -> None:
    known = sshd.folder / "known_hosts"
    text = known.read_text()
    process, run = begin("slow=0.5")
    wait_for(lambda: list(there.glob("runs/*/status.json")))
    process.kill()
    process.communicate()
    try:
        known.write_text("")
        unknown = on("run", "--resume", run)
        other = sshd.folder / "other"
        sshd.make_key("other")
        kind, key, *_ = (sshd.folder / "other.pub").read_text().split()
        known.write_text(f"[127.0.0.1]:{sshd.port} {kind} {key}\n")
        changed = on("run", "--resume", run)
        assert other.exists()
    finally:
        known.write_text(text)
    assert unknown.returncode == 2 and "does not know the host key of 127.0.0.1" in unknown.stderr
    assert changed.returncode == 2 and "is not the one that this machine knows: nothing was sent" in changed.stderr
    assert f"ssh-keygen -R '[127.0.0.1]:{sshd.port}'" in changed.stderr
    assert on("run", "--resume", run).returncode == 0  # the run went on meanwhile
    is_whole(run, here, there, tmp_path)


def test_a_machine_without_python_or_with_other_packages(
    on: Any, sshd: Sshd, recipe_file: Any, there: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\n[ $1 = --version ] && echo Python 3.9.2\nexit 1\n")
    old.chmod(0o755)
    done = on("run", recipe_file(), "--on", sshd.where(there), FTKIT_REMOTE_PYTHON=str(old))
    assert done.returncode == 2 and "has no Python 3.11 or newer (found: Python 3.9.2)" in done.stderr
    bare = getattr(sys, "_base_executable", sys.executable)
    done = on("run", recipe_file(), "--on", sshd.where(there), FTKIT_REMOTE_PYTHON=bare)
    assert done.returncode == 2 and "has other versions than this machine" in done.stderr, done.stderr
    nothing_is_left(there, tmp_path)


def test_packages_that_cannot_be_installed(on: Any, sshd: Sshd, recipe_file: Any, there: Path, tmp_path: Path) -> None:
    done = on(
        *("run", recipe_file(), "--on", sshd.where(there)),
        FTKIT_REMOTE_PYTHON="", FTKIT_SEND_ENV="PIP_NO_INDEX,PIP_CONFIG_FILE", PIP_NO_INDEX="1", PIP_CONFIG_FILE="/dev/null",
    )  # fmt: skip
    assert done.returncode == 1 and "pip could not install the packages" in done.stderr, done.stderr
    assert (
        "its last lines there:" in done.stderr and "ERROR:" in done.stderr and "installing the packages" in done.stderr
    )
    assert not list(there.glob("venvs/*/ready"))
    nothing_is_left(there, tmp_path)


def test_a_variable_that_is_not_set_stops_before_anything_is_sent(
    on: Any, sshd: Sshd, recipe_file: Any, there: Path
) -> None:
    done = on("run", recipe_file(), "--on", sshd.where(there), FTKIT_SEND_ENV="HF_TOKEN, NO_SUCH")
    assert done.returncode == 2 and "NO_SUCH" in done.stderr and not list(there.glob("runs/*"))


# ---------------------------------------------------------------- the parts


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("//gpu", Destination("gpu")),
        ("//me@GPU.example.org:2222", Destination("GPU.example.org", 2222, "me")),
        ("//me@gpu/scratch/me", Destination("gpu", None, "me", "/scratch/me")),
        ("//gpu/~/runs/", Destination("gpu", None, None, "runs")),
        ("//[::1]:22", Destination("::1", 22)),
    ],
)
def test_destinations(where: str, expected: Destination) -> None:
    assert destination_of(where) == expected and expected.dir.rstrip("/") == expected.dir


@pytest.mark.parametrize(
    "where", ["", "gpu", "//", "//:22", "//-oProxyCommand=x", "//gpu:port", "//me:pw@gpu", "//gpu?x"]
)
def test_what_is_no_destination(where: str) -> None:
    with pytest.raises(InputError):
        destination_of(where)


def test_a_destination_decides_how_ssh_is_called() -> None:
    transport = SshTransport(Destination("gpu", 2222, "me", DIR, Path("/k/id"), Path("/k/known")))
    line = " ".join(transport.ssh)
    for part in ("-p 2222", "-l me", "-i /k/id", "UserKnownHostsFile=/k/known", "BatchMode=yes"):
        assert part in line
    assert "StrictHostKeyChecking" not in line  # the user's own policy


def test_a_file_changed_within_the_second_is_brought_again(sshd: Sshd, tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    for folder, text in ((there, "step 6"), (here, "step 5")):  # of equal size and time
        folder.mkdir()
        (folder / "state.json").write_text(text)
        os.utime(folder / "state.json", (1_700_000_000, 1_700_000_000))
    transport = SshTransport(Destination("127.0.0.1", sshd.port))
    transport.ssh[:1] = sshd.command.split()
    assert transport.get(str(there), ["state.json"], here)
    assert (here / "state.json").read_text() == "step 6"


def test_what_travels(recipe: Any, fakes: ModuleType, tmp_path: Path) -> None:
    done = ftkit.run(recipe(), out=tmp_path / "runs", console=Console(silent=True))
    run = RunDirectory.open(done.dir)
    run.state("ssh").update(token="t")
    run.log("note", message="of this side", launcher="ssh")
    (run.scratch("launcher") / "part").write_text("x")
    (run.scratch("checkpoint") / "state").write_text("x")
    bundle = _bundle.build(run, "ssh", tmp_path / "bundle")
    import tarfile

    with tarfile.open(bundle.path) as tar:
        names = tar.getnames()
        log = tar.extractfile(f"{run.id}/train/log.jsonl")
        assert log is not None and b"of this side" not in log.read()
        constraints = tar.extractfile("sources/constraints.txt")
        assert constraints is not None
        pins = constraints.read().decode().splitlines()
    assert f"{run.id}/run.json" in names and f"{run.id}/.work/checkpoint/state" in names
    hidden = ("/.lock", "state/ssh.json", "state/.ssh.lock")
    assert not [n for n in names if f"{run.id}/.work/launcher" in n or n.endswith(hidden)]
    assert "sources/ftkit_fakes-0.1-py3-none-any.whl" in names or "ftkit-fakes" in bundle.requirements
    assert "sources/ftkit/pyproject.toml" in names and "sources/ftkit/ftkit/api.py" in names
    assert "./ftkit" in bundle.requirements and bundle.parts["ftkit"] > 100_000
    assert [p for p in pins if p.startswith("numpy==")] and not [p for p in pins if "+" in p or p.startswith("ftkit==")]
    assert bundle.needed["numpy"] and _bundle.build(run, "ssh", tmp_path / "again").venv == bundle.venv


def test_the_remote_program_needs_the_standard_library_alone() -> None:
    text = (ROOT / "plugins" / "ftkit_cloud" / "_remote.py").read_text()
    modules = set(re.findall(r"^(?:import|from) (\w+)", text, re.M))
    assert modules and modules <= sys.stdlib_module_names
    assert program()


# ---------------------------------------------------------------- real training


@pytest.mark.parametrize("launch", ["", "{processes: 2}", "{processes: 2, deepspeed: zero2}"])
def test_the_quickstart_trains_elsewhere(launch: str, on: Any, sshd: Sshd, there: Path, tmp_path: Path) -> None:
    splits = "{train: all, validation: 4, test: 8}"
    rows = ["dataset.train_rows=64", "dataset.validation_rows=4", "dataset.test_rows=8", f"dataset.splits={splits}"]
    options = [
        "backend.max_steps=4",
        *rows,
        *([f"backend.launch={launch}", "backend.micro_batch_size=8"] if launch else []),
        "backend.global_batch_size=16",
    ]
    line = [*("run", "quickstart", "--on", sshd.where(there)), *(part for o in options for part in ("--set", o))]
    process = on(*line, wait=False)
    _out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    (run,) = (p.parent for p in tmp_path.glob("runs/*/run.json"))
    assert (run / "train" / "model" / "adapter_model.safetensors").exists() and faults(run) == []
    assert "step" in err or steps(run)
    (end,) = (event for event in events(run) if event["event"] == "end")
    engine = {"": None, "{processes: 2}": "DistributedDataParallel"}.get(launch, "DeepSpeedEngine")
    assert (end.get("processes"), end.get("engine")) == (2 if launch else None, engine)
    nothing_is_left(there, tmp_path)
