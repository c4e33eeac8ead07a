"""A job that is paid for and done is measured, whatever its events, result files and checkpoints look like."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from ftkit_openai._results import parse_results
from openai_kit import finished, run, stub
from openai_stub import Stub

from ftkit.directory import RunDirectory

__all__ = ["stub"]
CHECKPOINTS, EVENTS, CONTENT = (
    r"/v1/fine_tuning/jobs/[^/]+/checkpoints",
    r"/v1/fine_tuning/jobs/[^/]+/events",
    r"/v1/files/[^/]+/content",
)
QUICK = {"patience": 0.5}


def warned(done: RunDirectory) -> str:
    return "\n".join(done.record().warnings)


# ---------------------------------------------------------------- requests that fail


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 404},
        {"status": 500},
        {"status": 403},
        {"status": 307, "headers": {"location": "/nowhere"}},
        {"body": b'{"object": "list", "data": [{"id": '},
        {"body": b"<html>sorry</html>"},
        {"body": b""},
        {"body": b'{"object": "list"}'},
        {"body": b'{"object": "list", "data": 5}'},
        {"body": b'{"object": "list", "data": "text"}'},
        {"body": b"[" * 100_000},
    ],
    ids=lambda f: str(f)[:40],
)
def test_extras_that_cannot_be_read_are_warnings(stub: Stub, tmp_path: Path, fault: dict[str, Any]) -> None:
    for path in (EVENTS, CHECKPOINTS, CONTENT):
        stub.fail("GET", path, times=10**6, **fault)
    done = run(stub, tmp_path, **QUICK)
    finished(done, stub)
    said = warned(done)
    assert "reading the job's events failed" in said
    assert ("reading the result file" if "status" in fault else "results.csv holds no losses") in said
    assert len(done.record().warnings) <= 5, "each failure is told once"
    model = done.model()
    assert model is not None and model.uri.startswith("ft:")


# ---------------------------------------------------------------- answers of another shape

LISTS = [
    [None, 5, "text", [], {}],
    [{"id": None, "step_number": None, "created_at": None, "message": None, "level": None, "data": None}],
    [{"id": "a", "step_number": "7", "created_at": "now", "message": 5, "level": 3, "data": "text"}],
    [
        {
            "id": "b",
            "fine_tuned_model_checkpoint": "ft:x:ckpt",
            "metrics": None,
            "data": {"step": "two", "train_loss": "x"},
        }
    ],
    [{"id": "c", "step_number": {"a": 1}, "data": {"step": 1e300, "train_loss": 1}, "message": "Step 9/3: loss=1.2.3"}],
    [{"id": "d", "step_number": -3, "data": {"step": None, "train_loss": None, "total_steps": "x"}, "message": ["x"]}],
]


@pytest.mark.parametrize("listed", LISTS, ids=lambda v: json.dumps(v)[:40])
def test_checkpoints_and_events_of_any_shape(stub: Stub, tmp_path: Path, listed: list[Any]) -> None:
    page = {"object": "list", "data": listed, "has_more": True}  # a provider that never says that a list ends
    stub.list_checkpoints = stub.list_events = lambda query, body, id: page  # type: ignore[method-assign]
    done = run(stub, tmp_path, **QUICK)
    finished(done, stub)
    assert done.path("report.html").exists()


def test_a_checkpoint_without_a_step_is_listed_with_the_others(stub: Stub, tmp_path: Path) -> None:
    whole = stub.list_checkpoints

    def without_step(query: dict[str, str], body: Any, id: str) -> Any:
        page = whole(query, body, id)
        del page["data"][0]["step_number"]
        return page

    stub.list_checkpoints = without_step  # type: ignore[method-assign]
    done = run(stub, tmp_path)
    finished(done, stub)
    said = " ".join(row["message"] for row in done.log_rows() if row["event"] == "note")
    assert "ckpt-step-6 (its step is not known)" in said and "ckpt-step-3 (step 3)" in said
    assert len(json.loads(done.path("train", "checkpoints.json").read_text())) == 2


@pytest.mark.parametrize("value", [None, "1234", "many", -5, 1e400, "NaN", [], {}, True, 10**30])
def test_numbers_of_a_job_of_any_shape(stub: Stub, tmp_path: Path, value: Any) -> None:
    shown = stub.shown

    def changed(id: str) -> Any:
        job = dict(shown(id))
        return job | dict.fromkeys(("trained_tokens", "estimated_finish", "created_at", "finished_at", "seed"), value)

    stub.shown = changed  # type: ignore[method-assign]
    finished(run(stub, tmp_path), stub)


@pytest.mark.parametrize("files", [None, "file-1", [None, 5, {}], [""], ["file-that-is-gone"]])
def test_result_files_of_any_shape(stub: Stub, tmp_path: Path, files: Any) -> None:
    shown = stub.shown
    stub.shown = lambda id: {**shown(id), "result_files": files}  # type: ignore[method-assign]
    done = run(stub, tmp_path, **QUICK)
    finished(done, stub)
    assert ("reading the result file file-that-is-gone failed" in warned(done)) == (files == ["file-that-is-gone"])


def test_events_are_read_again_when_they_can_be(stub: Stub, tmp_path: Path) -> None:
    stub.fail("GET", EVENTS, status=404, times=1)
    done = run(stub, tmp_path)
    finished(done, stub)
    assert sum(row["event"] == "step" for row in done.log_rows()) == stub.steps


# ---------------------------------------------------------------- result files

TABLE = "step,train_loss,valid_loss\n1,2.5,\n2,1.5,1.9\n"
ROWS = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 1.5, "valid_loss": 1.9}]


@pytest.mark.parametrize("encode", [bytes, base64.b64encode])
@pytest.mark.parametrize(
    "data",
    [
        TABLE.encode(),
        TABLE.replace("\n", "\r").encode(),
        TABLE.replace("\n", "\r\n").encode(),
        TABLE.replace("\n", "\r\r\n").encode(),
        TABLE.replace("\n", "\n\n").encode(),
        TABLE.strip().encode(),
        TABLE.encode("utf-8-sig"),
        TABLE.encode("utf-16"),
        TABLE.replace("step,train_loss", " Step , Train_Loss ").encode(),
        TABLE.replace("valid_loss", "valid_loss,note").replace("1.9", "1.9,caf\u00e9").encode("latin-1"),
        TABLE.replace("2.5", "2.5\0").encode(),
        TABLE.replace("2,1.5,1.9", "x,1,1\n,,\n2,1.5,1.9,and,more\n3").encode(),
    ],
    ids=range(12),
)
def test_a_result_file_is_read_in_any_form(data: bytes, encode: Any) -> None:
    assert parse_results(encode(data))[1] == ROWS


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe", b"\xff\xff\xff", b"loss\n1\n", b"step\n1\n", b"step,train_loss\n", b"step,train_loss\n1,nan\n",
     b'step,train_loss\n1,"' + b"9" * 200_000, b"\0" * 1000],
    ids=lambda d: str(d)[:30],
)  # fmt: skip
def test_a_result_file_without_losses_is_a_warning(stub: Stub, tmp_path: Path, data: bytes) -> None:
    assert parse_results(data)[1] == []
    stub.fail("GET", CONTENT, body=data, times=10)
    done = run(stub, tmp_path)
    finished(done, stub)
    assert "results.csv holds no losses" in warned(done)
