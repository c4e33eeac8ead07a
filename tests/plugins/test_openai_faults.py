"""Faults on a real connection: at most one job exists at any time, exactly one in the end, and answers are kept."""

from __future__ import annotations

import contextlib
import errno
import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from openai_kit import everything, finished, newest, recipe, resume, run, state, stub, write_rows
from openai_stub import KEY, Stub

from ftkit.directory import PluginState, RunDirectory
from ftkit.errors import FtkitError, RunFailed

__all__ = ["stub"]
CREATE = "/v1/fine_tuning/jobs"
CHAT = "/v1/chat/completions"

# ---------------------------------------------------------------- retryable failures


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429, "headers": {"retry-after": "1"}, "times": 1, "error": {"message": "slow down", "code": "rate_limit_exceeded", "type": "x"}},
        {"status": 500, "times": 2},
        {"status": 502, "body": b"<html>Bad Gateway</html>", "times": 1},
        {"status": 503, "error": {}, "times": 1},
        {"body": b'{"id": "chatcmpl-1", "choi', "times": 1},
        {"body": b'{"error": {}}', "times": 1},
        {"body": b"[]", "times": 1},
        {"body": b"", "times": 1},
        {"reset": True, "times": 1},
        {"early": True, "times": 1},
        {"half": True, "after": True, "times": 1},
        {"delay": 3.0, "times": 1},
    ],
    ids=lambda f: "-".join(map(str, f))[:40],
)  # fmt: skip
def test_every_request_survives_a_fault(stub: Stub, tmp_path: Path, fault: dict[str, Any]) -> None:
    """The same fault in reads, uploads and chat requests: the run ends as without the fault."""
    places = [("POST", "/v1/files"), ("GET", r"/v1/fine_tuning/jobs/[^/]+"), ("POST", CHAT), ("GET", "/v1/models")]
    for method, path in places:
        stub.fail(method, path, **fault)
    finished(run(stub, tmp_path, timeout=2.0, patience=20.0), stub)
    assert sum(f.times for f in stub.faults) == 0, "every fault must have occurred"
    sent = [f for f in stub.files.values() if f["purpose"] == "fine-tune"]
    assert len(sent) <= (3 if fault.get("after") or fault.get("delay") else 2)


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 502},
        {"status": 500, "error": {}},
        {"reset": True},
        {"half": True},
        {"body": b"not json"},
        {"body": b'{"error": {}}'},
        {"body": b""},
        {"body": b'{"id": 5, "object": "fine_tuning.job"}'},
        {"status": 408},
        {"status": 409, "error": {"message": "billing is being set up", "type": "x", "code": None}},
        {
            "status": 503,
            "error": {"message": "The billing service did not answer in time", "type": "server_error", "code": None},
        },
        {
            "status": 500,
            "error": {"message": "insufficient_quota of workers for the model", "type": "x", "code": "model_not_found"},
        },
        {"delay": 3.0},
    ],
    ids=lambda f: "-".join(map(str, f.values()))[:40],
)
def test_a_job_whose_answer_was_lost_is_found(stub: Stub, tmp_path: Path, fault: dict[str, Any]) -> None:
    stub.fail("POST", CREATE, after=True, **fault)
    stub.hide_jobs_for = 0.5  # lists are not always up to date
    done = run(stub, tmp_path, timeout=2.0 if "delay" in fault else 5.0, find_window=2.0)
    finished(done, stub)
    assert stub.count("POST", CREATE) == 1
    assert any("although its answer was lost: the run adopts it" in row.get("message", "") for row in done.log_rows())


def test_a_job_that_could_not_be_saved_is_found(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when the answer comes. That is no refusal."""
    save = PluginState.update
    full = [True]

    def no_space(self: PluginState, **values: Any) -> None:
        if (values.get("job") or {}).get("phase") == "created" and full:
            full.clear()
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, **values)

    monkeypatch.setattr(PluginState, "update", no_space)
    with pytest.raises(FtkitError, match="the disk is full"):
        run(stub, tmp_path)
    assert len(stub.jobs) == 1 and state(newest(tmp_path))["job"]["phase"] == "creating"
    finished(resume(newest(tmp_path)), stub)
    assert stub.count("POST", CREATE) == 1


def test_a_job_that_was_created_although_it_was_refused_is_adopted(stub: Stub, tmp_path: Path) -> None:
    stub.fail("POST", CREATE, status=403, after=True)
    with pytest.raises(RunFailed, match="403"):
        run(stub, tmp_path)
    assert state(newest(tmp_path))["job"]["phase"] == "refused"
    finished(resume(newest(tmp_path)), stub)
    assert stub.count("POST", CREATE) == 1


def test_a_job_of_unknown_outcome_is_left_to_the_user(stub: Stub, tmp_path: Path) -> None:
    """The request may have arrived: only the user's confirmation creates another job."""
    fault = stub.fail("POST", CREATE, status=502, times=10)
    with pytest.raises(
        RunFailed, match=r"outcome unknown: a job may exist(.|\n)*--resume(.|\n)*--answer create-again=yes"
    ):
        run(stub, tmp_path)
    directory = newest(tmp_path)
    assert state(directory)["job"]["phase"] == "outcome_unknown" and not stub.jobs
    with pytest.raises(RunFailed, match="outcome unknown: a job may exist"):
        resume(directory)
    assert stub.count("POST", CREATE) == 1 and not stub.jobs
    fault.times = 0
    finished(resume(directory, create_again=True), stub)


def test_a_job_that_appears_late_is_adopted_by_resume(stub: Stub, tmp_path: Path) -> None:
    stub.fail("POST", CREATE, status=502, after=True)
    stub.hide_jobs_for = 3.0
    with pytest.raises(RunFailed, match="outcome unknown: a job may exist"):
        run(stub, tmp_path)
    time.sleep(3.0)
    finished(resume(newest(tmp_path)), stub)
    # A confirmation is needed only where no job is found.
    assert stub.count("POST", CREATE) == 1


def test_a_confirmation_creates_no_second_job_where_there_is_one(stub: Stub, tmp_path: Path) -> None:
    stub.fail("POST", CREATE, status=502, after=True)
    stub.hide_jobs_for = 1.5
    with pytest.raises(RunFailed, match="outcome unknown"):
        run(stub, tmp_path)
    time.sleep(1.5)
    finished(resume(newest(tmp_path), create_again=True), stub)


@pytest.mark.parametrize("dialect", ["openai", "nebius"])
def test_a_job_is_found_on_any_page_and_at_any_time_of_day(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialect: str
) -> None:
    """Many jobs of others are newer, the list is not filtered, and this machine's clock is days ahead."""
    monkeypatch.setenv("NEBIUS_API_KEY", KEY)
    post, listed = stub.post_job, stub.list_jobs

    def post_one_of_many(query: dict[str, str], body: Any) -> Any:
        created = post(query, body)
        stub.jobs[created["id"]]["created_at"] -= 3 * 86_400
        for number in range(250):
            id = f"ftjob-other-{number}"
            stub.jobs[id] = {
                **stub.jobs[created["id"]],
                "id": id,
                "metadata": {"ftkit_run": "other"},
                "suffix": "other",
            }
        return created

    stub.post_job = post_one_of_many  # type: ignore[method-assign]
    stub.list_jobs = lambda query, body: listed({k: v for k, v in query.items() if k in ("limit", "after")}, body)  # type: ignore[method-assign]
    stub.fail("POST", CREATE, status=502, after=True)
    done = run(stub, tmp_path, dialect=dialect)
    assert done.record().status == "done" and stub.count("POST", CREATE) == 1
    assert not stub.jobs[state(done.dir)["job"]["id"]]["id"].startswith("ftjob-other")
    assert sum("after=" in seen.path for seen in stub.requests) >= 2


def test_a_slow_server_on_this_machine_gets_one_job(stub: Stub, tmp_path: Path) -> None:
    """The recipe names the server: it may process a request late, like any other."""
    stub.key = None
    stub.fail("POST", CREATE, delay=2.5)
    with pytest.raises(RunFailed, match="outcome unknown: a job may exist"):
        run(stub, tmp_path, dialect="local", timeout=1.0)
    time.sleep(2.0)
    finished(resume(newest(tmp_path)), stub)
    assert stub.count("POST", CREATE) == 1


def test_with_a_server_of_the_runs_own_the_outcome_is_unknown_only_after_a_timeout(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ftkit_openai._local

    monkeypatch.setattr(ftkit_openai._local, "server_for", lambda run: stub.url)
    stub.key = None
    stub.fail("POST", CREATE, status=500)
    stub.fail("POST", CREATE, delay=2.5)
    with pytest.raises(RunFailed, match="outcome unknown: a job may exist"):  # of the second; the first is retried
        run(stub, tmp_path, dialect="local", base_url=None, timeout=1.0)
    time.sleep(2.0)
    finished(resume(newest(tmp_path)), stub)
    assert stub.count("POST", CREATE) == 2


def test_a_list_that_fails_leaves_the_outcome_unknown(stub: Stub, tmp_path: Path) -> None:
    stub.fail("POST", CREATE, status=502, after=True)
    listing = stub.fail("GET", CREATE + r"\?.*metadata.*", status=500, times=0)
    create = stub.post_job

    def then_fail(query: dict[str, str], body: Any) -> Any:
        listing.times = 100
        return create(query, body)

    stub.post_job = then_fail  # type: ignore[method-assign]
    with pytest.raises(RunFailed, match="outcome unknown"):
        run(stub, tmp_path)
    with pytest.raises(RunFailed, match="failed while searching for what was created"):  # a confirmation is not enough
        resume(newest(tmp_path), create_again=True)
    listing.times = 0
    finished(resume(newest(tmp_path)), stub)


def test_without_a_connection_the_outcome_is_known(stub: Stub, tmp_path: Path) -> None:
    """A request that certainly was not sent may be sent again."""
    original = stub.add_file

    def last_upload(*args: Any) -> Any:
        if len(stub.files) == 1:  # the second file: the next request is the create
            threading.Timer(0.05, stub.stop).start()
            threading.Timer(1.2, stub.start).start()
        return original(*args)

    stub.add_file = last_upload  # type: ignore[method-assign]
    finished(run(stub, tmp_path, patience=10.0), stub)
    assert stub.count("POST", CREATE) == 1


def test_a_server_that_restarts_again_and_again(stub: Stub, tmp_path: Path) -> None:
    stub.job_seconds = 3.0
    over = threading.Event()

    def restart() -> None:
        while not over.wait(0.4):
            stub.stop()
            time.sleep(0.15)
            stub.start()

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        with contextlib.suppress(RunFailed):  # a creation that was cut off: the one request that is not retried
            run(stub, tmp_path, patience=20.0, find_window=3.0)
    finally:
        over.set()
        thread.join()
    directory = newest(tmp_path)
    finished(resume(directory, create_again=True), stub)


# ---------------------------------------------------------------- rate limits


def test_a_rate_limit_is_followed_and_nothing_fails(stub: Stub, tmp_path: Path) -> None:
    stub.per_second = 40.0
    done = run(stub, tmp_path, sizes={"test": 60}, concurrency=16)
    finished(done, stub, 60)
    assert stub.refused < 2 * stub.answered, "without a limiter, sixteen threads would be refused seven times an answer"


def test_the_headers_of_a_rate_limit_are_followed(stub: Stub, tmp_path: Path) -> None:
    stub.rate_headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "300ms"}
    run(stub, tmp_path, sizes={"test": 10}, concurrency=1)
    times = [s.time for s in stub.requests if s.path == CHAT][:10]
    assert min(b - a for a, b in itertools.pairwise(times)) > 0.25


@pytest.mark.parametrize(
    ("error", "says"),
    [({"code": "insufficient_quota", "message": "You exceeded your current quota"}, "the quota is used up"),
     ({"code": "rate_limit_exceeded", "message": "Rate limit reached"}, "its rate limit")],
)  # fmt: skip
def test_quota_and_rate_are_different_and_stop_a_run_that_keeps_its_answers(
    stub: Stub, tmp_path: Path, error: dict[str, str], says: str
) -> None:
    fault = stub.fail(
        "POST", CHAT, status=429, times=10**6, error={**error, "type": "x"}, when=lambda body: stub.answered >= 5
    )
    with pytest.raises(RunFailed, match=says):
        run(stub, tmp_path, concurrency=2, patience=0.5)
    fault.times = 0
    answered = stub.answered
    done = resume(newest(tmp_path))
    finished(done, stub)
    assert answered >= 5 and stub.answered == 24  # no answer was requested twice


# ---------------------------------------------------------------- many


def test_two_thousand_predictions_keep_their_order_and_are_each_requested_once(stub: Stub, tmp_path: Path) -> None:
    from ftkit_openai import OpenAIManaged
    from ftkit_openai.options import ManagedOptions

    from ftkit.recipe.load import load_recipe
    from ftkit.records import Measurement, ModelRef
    from ftkit.run.measure import generate

    context = RunDirectory.create(tmp_path / "runs", "many")
    context.recipe = load_recipe(recipe(stub, write_rows(tmp_path / "rows", test=2000)))
    from ftkit.data.task import load_task

    context.task = load_task(context.recipe)[0]
    stub.keep_bodies = False
    backend = OpenAIManaged(ManagedOptions(base_model="gpt-4o-mini-2024-07-18", base_url=stub.url, concurrency=16))
    model = ModelRef("remote", "gpt-4o-mini-2024-07-18")
    threads: list[int] = []
    with backend.load(model, context) as session:
        generate(
            context,
            backend,
            session,
            Measurement("baseline", model),
            lambda *_: threads.append(threading.active_count()),
        )
    predictions = context.predictions("baseline")
    assert stub.answered == 2000 == len(predictions) and not any(p.error for p in predictions)
    assert [p.example_id for p in predictions] == [e.id for e in context.task.test]
    assert all(p.text == e.input for p, e in zip(predictions, context.task.test, strict=True))


def test_the_key_is_in_every_request_and_in_no_address(stub: Stub, tmp_path: Path) -> None:
    run(stub, tmp_path)
    assert {s.key for s in stub.requests} == {KEY} and not any(KEY in s.path for s in stub.requests)


def test_errors_are_ftkits_own(stub: Stub, tmp_path: Path) -> None:
    stub.fail("GET", r"/v1/fine_tuning/jobs/[^/]+", status=500, times=10**6)
    with pytest.raises(FtkitError, match=r"OpenAI failed while looking at job"):
        run(stub, tmp_path, patience=0.3)


# ---------------------------------------------------------------- the key


def test_the_key_is_nowhere(
    stub: Stub, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the provider repeats it, where logs are verbose, or where a traceback is shown."""
    import logging
    import traceback

    monkeypatch.setenv("OPENAI_LOG", "debug")
    for name in ("openai", "httpx2", "httpcore2"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.DEBUG)
    error = {"message": f"Incorrect API key provided: {KEY}. Header Bearer {KEY}", "code": None, "type": "x"}
    shown = []
    for method, path in (
        ("POST", "/v1/files"),
        ("POST", "/v1/fine_tuning/jobs"),
        ("GET", "/v1/fine_tuning/jobs/.*"),
        ("POST", "/v1/chat/completions"),
    ):
        for status in (400, 401, 500):
            stub.fail(method, path, status=status, error=error, times=1)
    directory: Path | None = None
    for _ in range(20):
        try:
            done = resume(directory, create_again=True) if directory else run(stub, tmp_path, patience=0.0)
            break
        except FtkitError as failure:
            shown.append("".join(traceback.format_exception(failure)) + f"{failure} {failure.hint}")
            directory = newest(tmp_path)
    assert done.record().status == "done" and len(shown) >= 3
    captured = capfd.readouterr()
    said = "\n".join([*shown, captured.out, captured.err, everything(tmp_path / "runs")])
    assert "report.html" in {p.name for p in done.dir.iterdir()}
    assert KEY not in said and KEY[:20] not in said and "[key]" in said
