"""The run's mark: its job and batches are found by it, whatever was renamed, lost, refused or redirected."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from openai_kit import finished, newest, resume, run, state, stub
from openai_stub import KEY, Stub

from ftkit.directory import RunDirectory
from ftkit.errors import FtkitError, RunFailed
from ftkit.files import read_json, write_json

__all__ = ["stub"]
CREATE, CHAT, BATCHES = "/v1/fine_tuning/jobs", "/v1/chat/completions", "/v1/batches"
RATE = {"message": "slow down", "code": "rate_limit_exceeded", "type": "x"}


def stopped(stub: Stub, tmp_path: Path, **backend: Any) -> Path:
    """Return the directory of a run that stopped while its job was running."""
    fault = stub.fail("GET", r"/v1/fine_tuning/jobs/ftjob-[^/]+", status=401, times=10**6)
    with pytest.raises(RunFailed, match="401"):
        run(stub, tmp_path, **backend)
    fault.times = 0
    return newest(tmp_path)


def test_a_renamed_run_finds_its_job(stub: Stub, tmp_path: Path) -> None:
    stub.fail("POST", CREATE, status=502, after=True)
    stub.hide_jobs_for = 1e6
    with pytest.raises(RunFailed, match="outcome unknown"):
        run(stub, tmp_path)
    stub.hide_jobs_for = 0.0
    before = newest(tmp_path)
    mark = read_json(before / "run.json")["mark"]
    assert mark == before.name
    renamed = before.rename(before.with_name("managed-renamed"))
    done = resume(renamed)
    finished(done, stub)
    assert stub.count("POST", CREATE) == 1 and done.mark == mark != done.id
    (job,) = stub.jobs.values()
    assert job["metadata"]["ftkit_run"] == mark


def test_a_record_of_an_older_version_has_its_id_as_its_mark(stub: Stub, tmp_path: Path) -> None:
    directory = stopped(stub, tmp_path)
    record = read_json(directory / "run.json")
    assert record.pop("mark") == record["id"]
    write_json(directory / "run.json", record)
    shutil.rmtree(directory / "state")
    finished(resume(directory.rename(directory.with_name("managed-renamed"))), stub)


@pytest.mark.parametrize("dialect", ["openai", "nebius"])
def test_a_run_without_its_state_finds_its_job(
    stub: Stub, tmp_path: Path, dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEBIUS_API_KEY", KEY)
    directory = stopped(stub, tmp_path, dialect=dialect)
    shutil.rmtree(directory / "state")
    done = resume(directory.rename(directory.with_name("managed-renamed")))
    assert done.record().status == "done" and len(stub.jobs) == 1 == stub.count("POST", CREATE)
    assert any("with this run's metadata tag exists already" in row.get("message", "") for row in done.log_rows())


def test_a_run_without_its_state_finds_its_batches(stub: Stub, tmp_path: Path) -> None:
    fault = stub.fail("GET", "/v1/batches/[^/]+", status=401, times=10**6)
    with pytest.raises(RunFailed, match="401"):
        run(stub, tmp_path, use_batch_api=True)
    fault.times = 0
    shutil.rmtree(newest(tmp_path) / "state")
    finished(resume(newest(tmp_path).rename(tmp_path / "runs" / "managed-renamed")), stub)
    assert len(stub.batches) == 2 and stub.answered == 24


@pytest.mark.parametrize(
    "body", [b'{"object": "list"}', b'{"object": "list", "data": {}}', b'{"data": "none"}'], ids=str
)
def test_a_list_without_entries_is_no_empty_list(stub: Stub, tmp_path: Path, body: bytes) -> None:
    directory = stopped(stub, tmp_path)
    shutil.rmtree(directory / "state")
    fault = stub.fail("GET", CREATE, body=body, times=10**6)
    with pytest.raises(RunFailed, match="malformed answer while searching for what was created"):
        resume(directory)
    assert len(stub.jobs) == 1
    fault.times = 0
    finished(resume(directory), stub)


def test_no_job_is_created_where_the_provider_cannot_be_searched(stub: Stub, tmp_path: Path) -> None:
    fault = stub.fail("GET", CREATE + r"\?.*metadata.*", status=500, times=10**6)
    with pytest.raises(RunFailed, match="failed while searching for what was created"):
        run(stub, tmp_path, patience=0.5)
    assert not stub.count("POST", CREATE)
    fault.times = 0
    finished(resume(newest(tmp_path)), stub)


def test_two_runs_of_one_recipe_have_a_job_each(stub: Stub, tmp_path: Path) -> None:
    run(stub, tmp_path)
    run(stub, tmp_path)
    assert len(stub.jobs) == 2 == len({job["metadata"]["ftkit_run"] for job in stub.jobs.values()})


# ---------------------------------------------------------------- refusals that came after the acceptance


@pytest.mark.parametrize("path", [CREATE, BATCHES])
@pytest.mark.parametrize("wait", ["0", "1"])
def test_a_refusal_for_the_rate_after_acceptance_repeats_nothing(
    stub: Stub, tmp_path: Path, path: str, wait: str
) -> None:
    stub.fail("POST", path, status=429, error=RATE, headers={"retry-after": wait}, after=True)
    finished(run(stub, tmp_path, use_batch_api=path == BATCHES), stub)
    assert stub.count("POST", CREATE) == 1
    if path == BATCHES:
        assert len(stub.batches) == 2 == stub.count("POST", BATCHES)


@pytest.mark.parametrize("fault", [{"status": 429}, {"status": 503}, {"reset": True}, {"body": b"{}"}], ids=str)
@pytest.mark.parametrize("parts", [False, True])
def test_an_uploaded_file_is_not_uploaded_again(stub: Stub, tmp_path: Path, fault: dict[str, Any], parts: bool) -> None:
    path = "/v1/uploads/[^/]+/complete" if parts else "/v1/files"
    stub.fail("POST", path, after=True, **fault)
    sizes = {"train": 12_000} if parts else None
    done = run(stub, tmp_path, sizes, multipart_mb=1)
    finished(done, stub)
    assert sum(f["purpose"] == "fine-tune" for f in stub.files.values()) == 2


def test_an_adapter_is_deployed_once(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEBIUS_API_KEY", KEY)
    for fault in ({"status": 503}, {"status": 429}):
        stub.fail("POST", "/v0/models", after=True, **fault)
        run(stub, tmp_path, dialect="nebius", n_epochs=1 + len(stub.jobs))
    assert stub.count("POST", "/v0/models") == 2 == len(stub.deployments)


# ---------------------------------------------------------------- redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("path", [CREATE, CHAT, "/v1/files", BATCHES])
def test_no_paid_request_follows_a_redirect(stub: Stub, tmp_path: Path, status: int, path: str) -> None:
    with Stub() as other:
        fault = stub.fail(
            "POST", path, status=status, headers={"location": f"{other.url}/x?key={KEY}"}, times=10**6, body=b""
        )
        with pytest.raises(FtkitError, match=r"answered with a redirect|outcome unknown") as caught:
            run(stub, tmp_path, use_batch_api=path == BATCHES)
        assert not other.requests and KEY not in str(caught.value)
        assert stub.count("POST", path) <= 4
        fault.times = 0
        finished(resume(newest(tmp_path), create_again=True), stub)


# ---------------------------------------------------------------- a batch whose answers are gone


@pytest.mark.parametrize("renewed", [True, False])
def test_a_batch_whose_output_is_gone_can_be_sent_again(stub: Stub, tmp_path: Path, renewed: bool) -> None:
    fault = stub.fail("GET", "/v1/files/[^/]+/content", status=404, times=10**6)
    with pytest.raises(RunFailed, match=r"are gone(.|\n)*\(404\)(.|\n)*--answer create-again=yes"):
        run(stub, tmp_path, use_batch_api=True)
    with pytest.raises(RunFailed, match="are gone"):
        resume(newest(tmp_path))
    assert len(stub.batches) == 1, "nothing is paid for again without a confirmation"
    if not renewed:
        fault.times = 0
        finished(resume(newest(tmp_path)), stub)
        assert len(stub.batches) == 2
        return
    (old,) = stub.batches.values()
    fault.times = 0
    del stub.files[old["output_file_id"]]
    finished(resume(newest(tmp_path), create_again=True), stub)
    assert len(stub.batches) == 3 and stub.answered == 36


def test_a_batch_whose_output_is_there_is_not_sent_again(stub: Stub, tmp_path: Path) -> None:
    fault = stub.fail("GET", "/v1/files/[^/]+/content", status=404, times=1)
    with pytest.raises(RunFailed, match="are gone"):
        run(stub, tmp_path, use_batch_api=True)
    assert fault.times == 0
    done = resume(newest(tmp_path), create_again=True)
    finished(done, stub)
    assert len(stub.batches) == 2
    assert any("creates no second one" in w for w in done.record().warnings)


# ---------------------------------------------------------------- the state of a run


def test_the_state_is_for_its_owner_alone(stub: Stub, tmp_path: Path) -> None:
    directory = stopped(stub, tmp_path)
    path = directory / "state" / "openai-managed.json"
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)  # of an older version
    finished(resume(directory), stub)
    path.chmod(0o644)
    RunDirectory.open(directory).state("openai-managed").update(cancelled=None)
    assert path.stat().st_mode & 0o777 == 0o600 and state(directory)["job"]["id"]
    threads = [threading.Thread(target=RunDirectory.open(directory).state("x").update, kwargs={f"k{i}": i}) for i in range(8)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads((directory / "state" / "x.json").read_text()) == {f"k{i}": i for i in range(8)}
