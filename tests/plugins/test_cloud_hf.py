"""`--on hf-jobs` against Hugging Face's side on loopback: jobs in every state, faults at each call, never two, none left."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hf_jobs_stub import TOKEN, Fault, JobsHub

import ftkit
from ftkit.console import Console
from ftkit.errors import FtkitError, InputError, Interrupted, RunFailed
from ftkit.files import file_digest, read_json

QUIET = Console(silent=True)
ON = "hf-jobs:a10g-small,max_duration=1h"
JOBS, ONE_JOB = r"POST /api/jobs/me$", r"GET /api/jobs/me/"
LIST, TREE, BATCH = r"GET /api/jobs/me$", r"GET .*/tree", r"POST .*/batch"


@pytest.fixture
def hub(tmp_path: Path, fake_site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobsHub]:
    """Hugging Face on loopback; jobs have this environment with the fake plugins."""
    with JobsHub(tmp_path / "hub", variables={"PYTHONPATH": str(fake_site)}) as hub:
        for name, value in {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "FTKIT_REMOTE_PYTHON": sys.executable,
            "FTKIT_CLOUD_POLL": "0.1",
            "FTKIT_REMOTE_PATIENCE": "6",
        }.items():
            monkeypatch.setenv(name, value)
        yield hub


@pytest.fixture
def start(hub: JobsHub, fakes: Any, recipe: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    def run(where: str = ON, **options: Any) -> Any:
        return ftkit.run(recipe(options), out=tmp_path / "runs", console=QUIET, yes=True, where=where)

    return run


def folder_of(tmp_path: Path) -> Path:
    (found,) = (path.parent for path in tmp_path.glob("runs/*/run.json"))
    return found


def later(when: Callable[[], Any], do: Callable[[], Any]) -> threading.Thread:
    """Do something as soon as a condition holds."""

    def work() -> None:
        deadline = time.monotonic() + 60
        while not when():
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
        do()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def steps(tmp_path: Path) -> int:
    return sum(path.read_text().count('"event": "step"') for path in tmp_path.glob("runs/*/train/log.jsonl"))


# ---------------------------------------------------------------- nothing wrong


def test_a_job_executes_the_run_and_it_ends_here(
    hub: JobsHub, start: Any, fakes: Any, recipe: Any, tmp_path: Path
) -> None:
    run = start()
    here = ftkit.run(recipe(), out=tmp_path / "here", console=QUIET)
    assert run.verdict == here.verdict
    for name in ("baseline", "tuned"):
        there, local = (r.dir / name / "predictions.jsonl" for r in (run, here))
        assert there.read_bytes() == local.read_bytes()
    (job,) = hub.jobs
    assert not hub.alive and job.spec["timeoutSeconds"] == 3600 and job.spec["flavor"] == "a10g-small"
    assert TOKEN not in json.dumps({**job.spec, "secrets": None}) and job.spec["secrets"] == {"HF_TOKEN": TOKEN}
    assert hub.buckets == {"me/ftkit-runs": {}} and not hub.public, "nothing is left in the bucket, and it is private"
    record = read_json(run.dir / "run.json")
    assert record["rental"]["usd_per_hour"] == pytest.approx(1.0) and record["rental"]["usd"] >= 0
    assert not (run.dir / ".work").exists()


def test_nothing_starts_before_the_limit_was_confirmed(
    hub: JobsHub, fakes: Any, recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"at most \$2\.00 for machines[\s\S]*--yes"):
        ftkit.run(recipe(), out=tmp_path / "runs", console=Console(), where="hf-jobs:a10g-small,max_usd=2")
    said = capsys.readouterr().err
    assert "price limit: hf-jobs, at most $2.00" in said and "$1.00 an hour" in said and "2 h 00 min" in said
    assert not hub.jobs and not hub.buckets and not (tmp_path / "runs").exists()
    with pytest.raises(InputError, match=r"no machine 'a10g-smal'[\s\S]*did you mean 'a10g-small'"):
        ftkit.run(recipe(), out=tmp_path / "runs", console=QUIET, yes=True, where="hf-jobs:a10g-smal")


def test_a_token_that_is_missing_or_refused_is_said_first(
    hub: JobsHub, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(InputError, match=r"does not accept the token[\s\S]*hf auth login"):
        start()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("ftkit_cloud._hf_jobs.get_token", lambda: None)
    with pytest.raises(InputError, match="not logged in"):
        start()
    assert not hub.jobs


def test_a_public_bucket_gets_no_rows(hub: JobsHub, start: Any) -> None:
    hub.buckets["me/ftkit-runs"] = {}
    hub.public.add("me/ftkit-runs")
    with pytest.raises(InputError, match="is public: the rows of the run would be, too"):
        start()
    assert not hub.jobs and not hub.buckets["me/ftkit-runs"]


# ---------------------------------------------------------------- faults at each call: never two jobs, none left


@pytest.mark.parametrize(
    "faults",
    [
        [Fault(JOBS, lost=True, times=1)],
        [Fault(LIST, status=503, times=2), Fault(r"hardware", status=503, times=0)],
        [Fault(BATCH, status=503, times=1), Fault(TREE, status=500, times=2), Fault(TREE, lost=True, times=1)],
        [Fault(ONE_JOB, status=502, times=2), Fault(r"xet-", status=503, times=1)],
    ],
    ids=["answer-lost", "list", "bucket", "inspect+xet"],
)
def test_a_fault_makes_no_second_job(faults: list[Fault], hub: JobsHub, start: Any) -> None:
    hub.faults += faults
    assert start().metrics["tuned"]
    assert len(hub.jobs) == hub.most == 1 and not hub.alive and hub.buckets == {"me/ftkit-runs": {}}


def test_a_request_that_never_arrives_is_repeated_by_the_next_attempt_alone(
    hub: JobsHub, start: Any, tmp_path: Path
) -> None:
    hub.faults.append(Fault(JOBS, status=503))
    with pytest.raises(RunFailed, match="no job is there"):
        start()
    assert not hub.jobs and hub.requests.count("POST /api/jobs/me") == 1
    hub.faults.clear()
    assert ftkit.resume(folder_of(tmp_path), console=QUIET).metrics["tuned"]
    assert len(hub.jobs) == 1 and not hub.alive


def test_a_second_job_of_a_run_is_ended(hub: JobsHub, start: Any, tmp_path: Path) -> None:
    def double() -> None:
        hub.executes = True
        hub.create({**hub.jobs[0].spec})

    hub.executes = False
    thread = later(lambda: hub.jobs, double)
    assert start().metrics["tuned"]
    thread.join()
    assert len(hub.jobs) == 2 and not hub.alive and hub.jobs[1].stage == "CANCELED"


@pytest.mark.parametrize("stage", ["ERROR", "CANCELED"])
def test_a_job_that_ends_before_it_runs(stage: str, hub: JobsHub, start: Any, tmp_path: Path) -> None:
    hub.start_with = stage
    with pytest.raises(RunFailed, match=rf"ended with {stage} \(out of luck\) before the run did"):
        start()
    assert not hub.alive and len(hub.jobs) == 1 and hub.buckets == {"me/ftkit-runs": {}}
    hub.start_with = None
    assert ftkit.resume(folder_of(tmp_path), console=QUIET).metrics["tuned"]
    assert len(hub.jobs) == 2 and not hub.alive


def test_a_job_that_gets_no_machine_is_ended(hub: JobsHub, start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTKIT_CLOUD_BOOT", "0.5")
    hub.executes = False
    with pytest.raises(RunFailed, match=r"no machine a10g-small was free[\s\S]*cost nothing"):
        start()
    assert not hub.alive and len(hub.jobs) == 1


def test_the_time_limit_of_the_provider_ends_a_job_and_what_was_sent_is_here(
    hub: JobsHub, start: Any, tmp_path: Path
) -> None:
    hub.variables["FAKES"] = "slow=0.3"
    thread = later(lambda: steps(tmp_path) >= 2, lambda: hub.end(hub.jobs[0], "ERROR", "Job timeout"))
    with pytest.raises(RunFailed, match="Job timeout"):
        start()
    thread.join()
    folder = folder_of(tmp_path)
    assert (folder / "baseline" / "metrics.json").exists(), "the files of a finished stage came before"
    assert not hub.alive
    hub.variables["FAKES"] = ""
    run = ftkit.resume(folder, console=QUIET)
    assert run.metrics["tuned"] and len(hub.jobs) == 2 and read_json(folder / "run.json")["rental"]["machines"] == 2


def test_what_is_listed_is_what_was_sent(tmp_path: Path) -> None:
    """Files grow, vanish and appear between the listing and the sending; the job may be killed after any archive."""
    from ftkit_cloud import _worker
    from ftkit_cloud._hf_box import Box

    job = tmp_path / "mount" / "in"
    (tmp_path / "mount" / "in" / "work" / "r1").mkdir(parents=True)
    (job / "job.json").write_text(json.dumps({"run": "r1", "token": "t"}))
    real = Path(_worker.__file__).with_name("_remote.py")
    (job / "remote.py").write_text(
        "import pathlib, runpy, sys\n"
        f"real = runpy.run_path({str(real)!r}, run_name='remote')\n"
        "root = pathlib.Path(sys.argv[2], 'work', 'r1')\n"
        "real['listing'](real['Job'](sys.argv[2]))\n"
        "(root / 'log.jsonl').open('a').write('more\\n')\n"
        "(root / 'gone').unlink(missing_ok=True)\n"
    )
    worker = _worker.Worker(str(tmp_path / "mount"))
    root = Path(worker.root)
    (root / "gone").write_text("soon")
    (root / "same").write_text("same")
    box = Box("there")
    box.use(tmp_path / "box")
    for lines in (2, 4):
        with (root / "log.jsonl").open("a") as log:
            log.write("more\n")
        worker.snapshot()
        (archive,) = (tmp_path / "mount" / "out").glob("*.tar")
        box.take(archive)
        listed = box.listing()
        assert listed is not None and set(listed) == {"log.jsonl", "same"}
        for path, entry in listed.items():
            assert (box.mirror / path).stat().st_size == entry["size"]
            assert file_digest(box.mirror / path) == entry["sha256"]
        assert len((box.mirror / "log.jsonl").read_text().splitlines()) == lines


# ---------------------------------------------------------------- who goes away


def test_a_left_run_is_found_again_and_a_second_ctrl_c_ends_it(
    hub: JobsHub, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftkit_cloud._engine._SECOND", 0.5)
    hub.variables["FAKES"] = "slow=0.3"
    press = lambda: os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
    thread = later(lambda: steps(tmp_path) >= 1, press)
    with pytest.raises(Interrupted, match="it continues"):
        start()
    thread.join()
    assert len(hub.alive) == 1, "it continues without this process"
    folder = folder_of(tmp_path)
    monkeypatch.setattr("ftkit_cloud._engine._SECOND", 20)
    thread = later(lambda: steps(tmp_path) >= 3, lambda: (press(), time.sleep(0.5), press()))
    with pytest.raises(Interrupted):
        ftkit.resume(folder, console=QUIET)
    thread.join()
    assert not hub.alive and len(hub.jobs) == 1
    hub.variables["FAKES"] = ""
    assert ftkit.resume(folder, console=QUIET).metrics["tuned"] and len(hub.jobs) == 2 and not hub.alive


def test_a_run_that_fails_there_fails_here(hub: JobsHub, start: Any, tmp_path: Path) -> None:
    hub.variables["FAKES"] = "train=crash"
    with pytest.raises(FtkitError, match="the fake trainer broke"):
        start()
    assert not hub.alive and hub.buckets == {"me/ftkit-runs": {}}


def test_what_runs_is_listed_and_ended_by_its_label(
    hub: JobsHub, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftkit_cloud.command import cloud

    monkeypatch.setattr("ftkit_cloud._engine._SECOND", 0.3)
    monkeypatch.setenv("FTKIT_DSTACK", "no-such-dstack")
    hub.variables["FAKES"] = "slow=0.5"
    later(lambda: steps(tmp_path) >= 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        start()
    hub.create({"flavor": "t4-small", "labels": {"somebody": "else"}, "volumes": []}).stage = "RUNNING"
    folder = folder_of(tmp_path)
    shell = CliRunner()
    (listed,) = json.loads(shell.invoke(cloud, ["ls", "--json"]).stdout)["machines"]
    assert (
        listed["launcher"] == "hf-jobs" and listed["status"] == "running" and listed["usd_per_hour"] == pytest.approx(1)
    )
    with pytest.raises(InputError, match=r"no machine of 'nothing' runs"):
        shell.invoke(cloud, ["stop", "nothing"], catch_exceptions=False)
    told = shell.invoke(cloud, ["stop", str(folder)]).stdout
    assert "canceled; it has cost $" in told
    assert [job.stage for job in hub.jobs] == ["CANCELED", "RUNNING"], "jobs of others are left alone"
    hub.faults.append(Fault(LIST, status=403))  # what may succeed later is asked for again by the client
    with pytest.raises(RunFailed, match="gave no answer"):
        shell.invoke(cloud, ["ls"], catch_exceptions=False)
