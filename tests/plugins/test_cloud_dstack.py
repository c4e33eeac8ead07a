"""`--on runpod` with a stand-in for dstack's command line: every state of a machine, and what goes wrong in each.

The machine is this one, through a real sshd. After every test: no machine is left, and none was asked for twice.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ftkit_cloud import _dstack, _dstack_task
from ftkit_cloud._money import CloudOptions, Ledger, Limit, first_limit, key_of, next_limit, seconds_of

import ftkit
from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.errors import FtkitError, InputError, Interrupted, RecipeError, RunFailed
from ftkit.files import read_json

sys.path.insert(0, str(Path(__file__).parents[1]))
from sshd import Sshd

QUIET = Console(silent=True)
ROOT = Path(__file__).parents[2]
ON = "runpod:A100,max_duration=1h"
needs_sshd = pytest.mark.needs("ssh", "ssh-keygen", "rsync", *([] if shutil.which("sshd") else ["/usr/sbin/sshd"]))
_HOST = """Host NAME
  HostName 127.0.0.1
  Port {port}
  IdentityFile {folder}/key
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""


class FakeDstack:
    """The stand-in's folder: what it is to do wrong, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        program = folder / "dstack"
        here = Path(__file__).with_name("fake_dstack.py")
        program.write_text(f'#!/bin/sh\nFAKE_DSTACK="{folder}" exec {sys.executable} -S -E "{here}" "$@"\n')
        program.chmod(0o755)

    def wrong(self, **faults: Any) -> None:
        (self.folder / "faults.json").write_text(json.dumps(faults))

    def state(self) -> dict[str, Any]:
        path = self.folder / "state.json"
        return read_json(path) if path.exists() else {"runs": [], "calls": []}

    @property
    def machines(self) -> list[dict[str, Any]]:
        return list(self.state()["runs"])

    @property
    def alive(self) -> list[str]:
        return [run["name"] for run in self.machines if run["status"] not in ("terminated", "failed", "done")]


@pytest.fixture
def dstack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDstack:
    fake = FakeDstack(tmp_path / "dstack")
    monkeypatch.setenv("PATH", f"{fake.folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FTKIT_CLOUD_POLL", "0.05")
    monkeypatch.setenv("FTKIT_REMOTE_PATIENCE", "8")
    monkeypatch.setenv("FTKIT_REMOTE_PYTHON", sys.executable)
    monkeypatch.setenv("FTKIT_SSH_COMMAND", f"ssh -F {fake.folder}/ssh_config")
    monkeypatch.setenv("FTKIT_SEND_ENV", "FAKES")
    monkeypatch.setenv("FAKES", "")
    monkeypatch.setattr(_dstack, "FOLDER", str(tmp_path / "there"))
    return fake


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory, fake_site: Path) -> Iterator[Sshd]:
    server = Sshd(tmp_path_factory.mktemp("sshd"), PYTHONPATH=str(fake_site))
    yield server
    server.stop()


@pytest.fixture
def machine(dstack: FakeDstack, sshd: Sshd) -> FakeDstack:
    """The stand-in, with a machine that ssh reaches."""
    (dstack.folder / "host").write_text(_HOST.format(port=sshd.port, folder=sshd.folder))
    return dstack


@pytest.fixture
def start(fakes: ModuleType, recipe: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    def run(where: str = ON, **options: Any) -> Any:
        return ftkit.run(recipe(options), out=tmp_path / "runs", console=QUIET, yes=True, where=where)

    return run


def folder_of(tmp_path: Path) -> Path:
    (found,) = (path.parent for path in tmp_path.glob("runs/*/run.json"))
    return found


# ---------------------------------------------------------------- nothing wrong


@needs_sshd
def test_a_machine_is_rented_and_ended_and_its_price_is_in_the_report(
    machine: FakeDstack, start: Any, fakes: ModuleType, recipe: Any, tmp_path: Path
) -> None:
    run = start()
    here = ftkit.run(recipe(), out=tmp_path / "here", console=QUIET)
    assert run.verdict == here.verdict
    for name in ("baseline", "tuned"):
        there, local = (r.dir / name / "predictions.jsonl" for r in (run, here))
        assert there.read_bytes() == local.read_bytes()
    (rented,) = machine.machines
    assert rented["status"] == "terminated" and not machine.alive
    record = read_json(run.dir / "run.json")
    assert record["rental"]["usd_per_hour"] == 1.19 and 0 < record["rental"]["usd"] < 0.1
    spent = [r for r in read_json(run.dir / "report.json")["costs"]["runs"] if "runpod" in r["run"]]
    assert spent[0]["actual"] == record["rental"]["usd"] and "dstack" in spent[0]["source"]
    assert 1.4 < spent[0]["estimated"] < 2.0  # an hour and a start of 20 minutes, at 1.2 times the cheapest price
    text = machine.state()["yaml"]
    assert "max_price: 1.43" in text and "retry: false" in text and f"ftkit-run: {key_of(run.dir.name)}" in text
    assert not (machine.folder / "ssh_config").exists(), "the connection was closed"
    assert not list((tmp_path / "there").glob("runs/*")), "nothing is left on the machine"


@needs_sshd
def test_a_killed_launch_finds_its_machine_again(
    machine: FakeDstack, fake_site: Path, recipe_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        f"import ftkit_cloud._dstack as d\nd.FOLDER = {str(tmp_path / 'there')!r}\n"
        "from ftkit.cli.main import main\nmain()\n"
    )
    monkeypatch.setenv("FAKES", "slow=0.1")
    environment = {**os.environ, "PYTHONPATH": str(fake_site)}
    line = [sys.executable, str(script), "run"]
    first = subprocess.Popen([*line, str(recipe_file()), "--on", ON, "--yes"], cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 60
    while not any(p.read_text().count('"step"') > 1 for p in tmp_path.glob("runs/*/train/log.jsonl")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.wait()
    assert len(machine.alive) == 1
    again = [*line, "--resume", str(folder_of(tmp_path)), "--json"]
    done = subprocess.run(again, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(machine.machines) == 1 and not machine.alive and "found again" in done.stderr
    assert json.loads(done.stdout)["metrics"]["tuned"]


# ---------------------------------------------------------------- what goes wrong, before the run is on the machine


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        ({"no_capacity": True}, "no machine of this kind is free: A100:1"),
        ({"never_boots": True}, "was not up after"),
        ({"apply_refused": True}, "No backends are configured"),
        ({"apply_gone": True}, "Failed to connect"),
        ({"never_boots": True, "refuses_to_stop": 3}, "was not up after"),
        ({"never_boots": True, "keeps_terminating": True}, "was not up after"),
        ({"never_boots": True, "ps_fails": [3, 4], "gone_at_end": 3}, "was not up after"),
        ({"never_boots": True, "apply_lost": True}, "was not up after"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_a_machine_that_never_runs_is_ended(
    faults: dict[str, Any], says: str, dstack: FakeDstack, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTKIT_CLOUD_BOOT", "0.4")
    dstack.wrong(**faults)
    with pytest.raises(RunFailed, match=says):
        start()
    state = dstack.state()
    assert not dstack.alive and state["calls"].count("apply") == 1 and not state.get("twice")
    folder = folder_of(tmp_path)
    assert read_json(folder / "run.json")["status"] == "failed"
    (entry,) = read_json(folder / "state" / "runpod.json")["machines"].values()
    assert entry["ended"] and entry["usd"] < 0.01


def test_a_machine_that_cannot_be_ended_is_named_and_ended_by_the_next_attempt(
    dstack: FakeDstack, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTKIT_CLOUD_BOOT", "0.3")
    monkeypatch.setenv("FTKIT_REMOTE_PATIENCE", "2")
    dstack.wrong(never_boots=True, refuses_to_stop=10**6)
    with pytest.raises(RunFailed, match=r"MAY STILL RUN, AND COST MONEY[\s\S]*dstack stop --abort ftkit-"):
        start()
    assert len(dstack.alive) == 1
    dstack.wrong(never_boots=True)
    with pytest.raises(RunFailed, match="was not up after"):
        ftkit.resume(folder_of(tmp_path), console=QUIET)
    assert not dstack.alive and dstack.state()["calls"].count("apply") == 1


def test_ctrl_c_while_it_boots_ends_the_machine(dstack: FakeDstack, start: Any, tmp_path: Path) -> None:
    dstack.wrong(never_boots=True, ps_fails=[1])

    def press() -> None:
        while not dstack.alive:
            time.sleep(0.02)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(Interrupted):
        start()
    assert not dstack.alive and read_json(folder_of(tmp_path) / "run.json")["status"] == "interrupted"


def test_a_server_that_is_not_there_stops_the_run_before_it_begins(
    dstack: FakeDstack, start: Any, tmp_path: Path
) -> None:
    for faults, says in (
        ({"offer_gone": True}, r"gives no offers[\s\S]*dstack server"),
        ({"no_offers": True}, "knows no machine that fits"),
    ):
        dstack.wrong(**faults)
        with pytest.raises(InputError, match=says):
            start()
    assert not list(tmp_path.glob("runs/*/run.json")) and not dstack.machines


# ---------------------------------------------------------------- what goes wrong while the run is on the machine


@needs_sshd
@pytest.mark.parametrize(
    ("faults", "fakes_do", "says"),
    [
        ({"no_ssh": True}, "", "ssh does not reach it"),
        ({"apply_lost": True, "gone_while_running": 2}, "", None),
        ({"gone_at_end": 4}, "", None),
        ({"refuses_to_stop": 3}, "", None),
        ({}, "train=crash", "the fake trainer broke"),
    ],
    ids=["no-ssh", "apply-lost+server-gone", "server-gone-at-end", "refuses-to-stop", "run-fails"],
)
def test_a_machine_ends_with_its_run(
    faults: dict[str, Any],
    fakes_do: str,
    says: str | None,
    machine: FakeDstack,
    start: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAKES", fakes_do)
    if "no_ssh" in faults:
        monkeypatch.setenv("FTKIT_REMOTE_PATIENCE", "1")
    machine.wrong(**faults)
    if says is None:
        assert start().metrics["tuned"]
    else:
        with pytest.raises(FtkitError, match=says):
            start()
    assert not machine.alive and len(machine.machines) == 1 and not machine.state().get("twice")


@needs_sshd
def test_a_machine_that_is_taken_back_is_replaced_by_a_resumed_run(
    machine: FakeDstack, sshd: Sshd, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKES", "slow=0.15")
    machine.wrong(taken_back_after=1)

    def take_back() -> None:
        while not any(p.read_text().count('"step"') > 1 for p in tmp_path.glob("runs/*/train/log.jsonl")):
            time.sleep(0.05)
        (machine.folder / "take_back").touch()
        _end_supervisors(tmp_path / "there")
        shutil.rmtree(tmp_path / "there", ignore_errors=True)
        sshd.cut()
        if sshd.process.poll() is not None:  # where its title is like that of a connection
            sshd.start()

    thread = threading.Thread(target=take_back, daemon=True)
    thread.start()
    with pytest.raises(FtkitError, match="the provider took the machine back"):
        start()
    thread.join()
    (machine.folder / "take_back").unlink()
    machine.wrong()
    monkeypatch.setenv("FAKES", "")
    done = ftkit.resume(folder_of(tmp_path), console=QUIET)
    assert done.metrics["tuned"] and len(machine.machines) == 2 and not machine.alive
    assert read_json(done.dir / "run.json")["rental"]["machines"] == 2


def _end_supervisors(folder: Path) -> None:
    """Kill what runs on the "machine", as its end does."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                os.kill(int(path.parent.name), signal.SIGKILL)
        except (OSError, ValueError):
            continue


# ---------------------------------------------------------------- the task, the options, the money


def test_the_users_task_gives_the_machine_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "task.yml"
    file.write_text("type: task\nname: mine\nresources: {gpu: {name: [H100, H200], count: 2}}\nbackends: [lambda]\n")
    asked = _dstack_task.file_task(str(file))
    assert "name" not in asked and _dstack_task.offer_arguments(asked)[:2] == ["--gpu", "H100,H200:2"]
    for line, says in (("commands: [true]", "'commands' is not used"), ("region: [EU]", "did you mean 'regions'")):
        file.write_text(f"type: task\n{line}\n")
        with pytest.raises(InputError, match=says):
            _dstack_task.file_task(str(file))
    file.write_text("type: fleet\n")
    with pytest.raises(InputError, match="holds no dstack task: its type is 'fleet'"):
        _dstack_task.file_task(str(file))


def test_options_are_checked_before_anything_is_asked(dstack: FakeDstack, start: Any) -> None:
    for where, says in (
        ("runpod:A100,max_us=5", "max_usd"),
        ("runpod:A100,max_usd=0", "greater than 0"),
        ("runpod:A100,max_duration=forever", "is not a duration such as 90m, 4h or 1d"),
        ("runpod:A100,max_usd=0.05", "buys less than"),
    ):
        with pytest.raises((InputError, RecipeError), match=says):
            start(where)
    assert not dstack.machines


def test_the_limit_is_price_times_time_and_a_second_machine_gets_what_is_left(tmp_path: Path) -> None:
    assert (seconds_of("90m"), seconds_of("1d"), seconds_of("1.5h")) == (5400, 86400, 5400)
    assert first_limit(CloudOptions(max_duration="2h"), 3.0) == Limit(6.0, 3.0, 7200.0)
    assert first_limit(CloudOptions(max_duration="2h", max_usd=3.0), 3.0) == Limit(3.0, 3.0, 3600.0)
    assert first_limit(CloudOptions(max_usd=3.0), 3.0, start=600).seconds == 3000
    run = RunDirectory.create(tmp_path, "run")
    (run.dir / "audit.json").write_text('{"launch_estimate": {"usd": 6.0}}')
    ledger, options = Ledger(run, "runpod"), CloudOptions(max_duration="2h")
    ledger.begin("one", Limit(6.0, 3.0, 7200.0), "a list")
    with pytest.raises(RunFailed, match=r"the price limit of \$6\.00 does not buy another"):
        next_limit(run, options, 3.0)  # until it has ended, the first may cost all
    ledger.end("one", None, 3600.0)
    assert next_limit(run, options, 3.0) == Limit(3.0, 3.0, 3600.0)
    assert next_limit(run, CloudOptions(max_duration="2h", max_usd=9.0), 3.0).seconds == 7200
    assert ledger.rental() == {"usd": 3.0, "seconds": 3600.0, "usd_per_hour": 3.0, "source": "a list", "machines": 1}


def test_names_that_providers_take() -> None:
    for mark in ("quickstart-20261129-223009-a1b2c3", "質問-1", "x" * 200, "--", "A" * 30 + "_b"):
        key = key_of(mark)
        assert len(key) <= 34 and key == key_of(mark) != key_of(f"{mark}2")
        name = _dstack.run_name(mark)
        assert len(name) <= 41 and name.replace("-", "").isalnum() and name.islower()


@pytest.mark.opt_in
def test_dstack_itself_reads_the_task_and_writes_what_the_stand_in_writes(dstack: FakeDstack, tmp_path: Path) -> None:
    """FTKIT_DSTACK_PYTHON names a Python with dstack 0.22.5."""
    tasks = [
        _dstack_task.task_of("ftkit-a-1", "a-1", _dstack_task.runpod_task(gpu, image), 3600.0, 1.43)
        for gpu, image in (("A100", None), ("", None), ("H100:2:80GB", "pytorch/pytorch:latest"))
    ]
    files = []
    for number, task in enumerate(tasks):
        files.append(tmp_path / f"{number}.dstack.yml")
        files[-1].write_text(_dstack_task.as_yaml(task))
    subprocess.run([dstack.folder / "dstack", "apply", "--file", files[0], "--yes", "--detach"], check=True)
    for _ in range(3):
        shown = subprocess.run([dstack.folder / "dstack", "ps", "--json"], check=True, capture_output=True, text=True)
    offers = subprocess.run([dstack.folder / "dstack", "offer", "--json"], check=True, capture_output=True, text=True)
    script = """
import sys, yaml
from dstack._internal.cli.models.offers import OfferCommandOutput
from dstack._internal.cli.models.runs import PsCommandOutput
from dstack._internal.core.models.configurations import parse_apply_configuration
for file in sys.argv[3:]:
    task = parse_apply_configuration(yaml.safe_load(open(file)))
    assert task.type == "task" and task.max_price == 1.43 and task.max_duration == 3840 and task.retry is False
    assert task.tags == {"ftkit-run": "a-1"} and task.backends == ["runpod"] and task.idle_duration == 0, task
(run,) = PsCommandOutput.model_validate_json(sys.argv[1]).runs
assert run.status == "running" and run.latest_job_submission.job_provisioning_data.price == 1.19
assert len(OfferCommandOutput.model_validate_json(sys.argv[2]).offers) == 2
"""
    python = os.environ["FTKIT_DSTACK_PYTHON"]
    subprocess.run([python, "-c", script, shown.stdout, offers.stdout, *map(str, files)], check=True, timeout=120)
