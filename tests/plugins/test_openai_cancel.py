"""`ftkit cancel`, and `--create-again`, which lifts a cancellation and replaces what failed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from openai_kit import ROOT, finished, newest, resume, run, state, stub
from openai_stub import Stub

from ftkit.directory import RunDirectory
from ftkit.errors import RunFailed

__all__ = ["stub"]

UNAUTHORISED = {"status": 401, "error": {"message": "no", "code": "x", "type": "x"}}


def stopped_with_a_job(stub: Stub, tmp_path: Path) -> Path:
    """Return a run that stopped while its job is running."""
    stub.job_seconds = 60
    stub.fail("GET", "/v1/fine_tuning/jobs/[^/]+", **UNAUTHORISED)
    with pytest.raises(RunFailed, match="401"):
        run(stub, tmp_path)
    return newest(tmp_path)


def cancelled(directory: Path, *options: str) -> str:
    from click.testing import CliRunner

    from ftkit.cli.run import cancel

    return CliRunner().invoke(cancel, [str(directory), *options], catch_exceptions=False).output


def test_cancel_cancels_the_job_and_changes_nothing_else(stub: Stub, tmp_path: Path) -> None:
    directory = stopped_with_a_job(stub, tmp_path)
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    (job,) = stub.jobs
    said = json.loads(cancelled(directory, "--json"))
    assert said["cancelled"] == [{"what": "job", "id": job, "status": "cancelled"}] and said["outcome_unknown"] == []
    assert stub.jobs[job]["status"] == "cancelled"
    assert state(directory)["cancelled"] > 0
    after = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert {path.name for path in changed} == {"openai-managed.json"}
    assert "nothing to cancel" in cancelled(directory)
    with pytest.raises(RunFailed, match="was cancelled"):
        resume(directory)
    stub.job_seconds = 0.1
    done = resume(directory, create_again=True)
    assert done.record().status == "done" and len(stub.jobs) == 2 and state(directory)["cancelled"] is None


def test_a_cancelled_run_creates_nothing_without_a_confirmation(stub: Stub, tmp_path: Path) -> None:
    stub.fail("POST", "/v1/files", status=400)
    with pytest.raises(RunFailed):
        run(stub, tmp_path)
    directory = newest(tmp_path)
    assert "nothing to cancel" in cancelled(directory)
    for _ in range(2):
        with pytest.raises(
            RunFailed, match=r"this run was cancelled: it does not create a job(.|\n)*--answer create-again=yes"
        ):
            resume(directory)
    assert stub.count("POST", "/v1/fine_tuning/jobs") == 0
    finished(resume(directory, create_again=True), stub)


def test_cancel_reports_an_unknown_outcome(stub: Stub, tmp_path: Path) -> None:
    stub.job_seconds, stub.hide_jobs_for = 60, 1e6
    stub.fail("POST", "/v1/fine_tuning/jobs", status=502, after=True)
    with pytest.raises(RunFailed, match="outcome unknown"):
        run(stub, tmp_path)
    directory = newest(tmp_path)
    said = cancelled(directory)
    assert "outcome unknown: a job may exist" in said and "nothing to cancel" not in said
    assert json.loads(cancelled(directory, "--json"))["outcome_unknown"] == ["job"]
    stub.hide_jobs_for = 0.0
    assert re.search(r"^job ftjob-\d+: cancelled", cancelled(directory))
    assert [job["status"] for job in stub.jobs.values()] == ["cancelled"]
    with pytest.raises(RunFailed, match="was cancelled"):
        resume(directory)
    assert len(stub.jobs) == 1


def test_a_job_that_appears_after_another_was_created_is_reported_and_can_be_cancelled(
    stub: Stub, tmp_path: Path
) -> None:
    """The user's confirmation was wrong: there are two jobs. The run says so when it resumes and at its end."""
    stub.job_seconds, stub.hide_jobs_for = 60, 1e6
    stub.fail("POST", "/v1/fine_tuning/jobs", status=502, after=True)
    with pytest.raises(RunFailed, match="outcome unknown"):
        run(stub, tmp_path)
    directory = newest(tmp_path)
    stub.fail("GET", "/v1/fine_tuning/jobs/[^/]+", **UNAUTHORISED)
    with pytest.raises(RunFailed, match="401"):
        resume(directory, create_again=True)
    first, second = stub.jobs
    assert [job["metadata"]["ftkit_attempt"] for job in stub.jobs.values()] == ["1", "2"]
    assert state(directory)["job"]["id"] == second
    stub.hide_jobs_for = 0.0
    refusal = stub.fail("GET", "/v1/fine_tuning/jobs/[^/]+", **{**UNAUTHORISED, "times": 0})
    events = stub.list_events

    def then_refuse(query: dict[str, str], body: Any, id: str) -> Any:
        refusal.times = 1  # of the next look at the job, which the run follows by then
        return events(query, body, id)

    stub.list_events = then_refuse  # type: ignore[method-assign]
    with pytest.raises(RunFailed, match="401"):
        resume(directory)
    stub.list_events = events  # type: ignore[method-assign]
    both = rf"2 jobs carry this run's metadata tag: {first}, {second}; `ftkit cancel \S+` cancels "
    assert any(re.search(both + "all", warning) for warning in RunDirectory.open(directory).record().warnings)
    stub.jobs[second]["status"], stub.ending = "running", "succeeded"
    stub.end(stub.jobs[second])
    done = resume(directory)
    assert done.record().status == "done"
    assert any(re.search(both + "the others", warning) for warning in done.record().warnings)
    assert cancelled(directory).splitlines()[0] == f"job {first}: cancelled"


def test_a_job_that_the_provider_lost_can_be_replaced(stub: Stub, tmp_path: Path) -> None:
    directory = stopped_with_a_job(stub, tmp_path)
    stub.jobs.clear()
    stub.job_seconds = 0.1
    with pytest.raises(RunFailed, match=r"has no job ftjob-\d+ \(404\)(.|\n)*--answer create-again=yes"):
        resume(directory)
    assert not stub.jobs
    finished(resume(directory, create_again=True), stub)


@pytest.mark.parametrize("status", ["running", "succeeded"])
def test_create_again_where_there_is_a_job_creates_none_and_says_so(stub: Stub, tmp_path: Path, status: str) -> None:
    directory = stopped_with_a_job(stub, tmp_path)
    (job,) = stub.jobs
    if status == "running":
        stub.plan = ["running"]
        stub.jobs[job]["_plan"], stub.job_seconds = ["running"], 1.5
    else:
        stub.end(stub.jobs[job])
    done = resume(directory, create_again=True)
    finished(done, stub)
    assert any(
        f"job {job} is {status}: --answer create-again=yes creates no second one" in w for w in done.record().warnings
    )


def test_state_names_the_job(stub: Stub, tmp_path: Path) -> None:
    done = run(stub, tmp_path)
    assert state(done.dir)["job"]["phase"] == "created" and state(done.dir)["job"]["id"] in stub.jobs
    assert ROOT.exists()
