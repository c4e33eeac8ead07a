"""Answers that are none, other numbers of choices than requested, and waits that a provider asks for."""

from __future__ import annotations

import email.utils
import json
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from ftkit_openai._errors import Malformed, retry_after
from ftkit_openai._requests import predictions_of
from openai_kit import finished, newest, recipe, resume, run, stub, write_rows
from openai_stub import Stub

import ftkit
from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.errors import RunFailed
from ftkit.records import Example, GenerationConfig, Message

__all__ = ["stub"]
CHAT = "/v1/chat/completions"
NO_ANSWERS = [
    b"",
    b"<html>Bad Gateway</html>",
    b'{"id": "x", "choi',
    b'{"id": "x", "choices": []}',
    b'{"id": "x", "choices": null}',
    b'{"id": "x"}',
    b'{"id": "x", "choices": [{"index": 0, "message": null, "finish_reason": "stop"}]}',
    b'{"id": "x", "choices": "text"}',
    b"[" * 100_000,
    b'{"id": "\xff\xfe", "choices": [{}]}',
]


@pytest.mark.parametrize("body", NO_ANSWERS, ids=lambda b: str(b[:60]))
def test_a_provider_that_gives_no_answer_stops_the_run(stub: Stub, tmp_path: Path, body: bytes) -> None:
    stub.fail("POST", CHAT, body=body, times=10**6)
    with pytest.raises(RunFailed, match=r"returned a malformed answer while asking the model, 10 times out of 10"):
        run(stub, tmp_path, {"test": 200}, patience=60.0)
    assert stub.count("POST", CHAT) < 10 + 4 + 1, "of 200 rows, with 4 requests at once"
    assert not stub.jobs
    stub.faults.clear()
    finished(resume(newest(tmp_path)), stub, rows=200)


def test_malformed_answers_are_an_outage_after_good_ones(stub: Stub, tmp_path: Path) -> None:
    stub.fail("POST", CHAT, body=NO_ANSWERS[3], times=10**6, when=lambda body: stub.answered >= 5)
    with pytest.raises(RunFailed, match="returned a malformed answer while asking the model"):
        run(stub, tmp_path, {"test": 200}, patience=2.0)
    assert stub.count("POST", CHAT) < 60, "an outage is waited for, and not paid for"
    stub.faults.clear()
    finished(resume(newest(tmp_path)), stub, rows=200)


def test_one_row_without_an_answer_is_a_failed_prediction(stub: Stub, tmp_path: Path) -> None:
    def bad(body: dict[str, Any]) -> bool:
        return bool(body["messages"][-1]["content"] == "test row 3")

    stub.fail("POST", CHAT, body=NO_ANSWERS[3], times=10**6, when=bad)
    done = run(stub, tmp_path, patience=60.0)
    (failed,) = [p for p in done.predictions("tuned") if p.error]
    assert failed.example_id == "test-3" and "contains no answer" in str(failed.error)
    asked = sum(s.path == CHAT and bad(json.loads(s.body)) for s in stub.requests)
    assert asked <= 12, "three attempts, and once more in the end, for each of two models"


# ---------------------------------------------------------------- numbers of choices


def sampled(stub: Stub, tmp_path: Path, samples: int, **backend: Any) -> RunDirectory:
    made = {
        **recipe(stub, write_rows(tmp_path / "rows"), **backend),
        "generation": {"max_new_tokens": 8, "temperature": 0.7, "samples": samples},
    }
    return ftkit.run(made, out=tmp_path / "runs", console=Console(), yes=True).directory


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("returned", [1, 2, 5])
def test_a_wrong_number_of_choices_is_taken_and_paid_for_once(
    stub: Stub, tmp_path: Path, returned: int, batch: bool
) -> None:
    whole = stub.chat
    stub.chat = lambda query, body: whole(query, {**body, "n": returned})  # type: ignore[method-assign]
    done = sampled(stub, tmp_path, 3, use_batch_api=batch)
    assert stub.answered == 24, "each row once for each model"
    predictions = done.predictions("tuned")
    assert len(predictions) == 36
    missing = [p for p in predictions if p.error]
    assert len(missing) == 12 * max(0, 3 - returned)
    assert {p.error for p in missing} <= {f"the provider returned {returned} of 3 requested choices"}
    assert {p.sample for p in missing} == set(range(returned, 3))
    assert sum(p.usd is not None for p in predictions) == 12
    if not batch:
        warnings = [w for w in done.record().warnings if "it may not support `n`" in w]
        assert len(warnings) == 1, "told once"


def test_what_stands_in_a_completion_may_have_any_shape() -> None:
    example = Example("e", (Message("user", "x"),), ("y",), "x")
    good = {"message": {"role": "assistant", "content": "ok"}}
    for usage in (None, 5, "x", [], {"prompt_tokens": "many"}, {"prompt_tokens": -1}, {"completion_tokens": 1e400}):
        (one,) = predictions_of(example, {"choices": [good], "usage": usage}, GenerationConfig(), None, True)
        assert one.text == "ok" and one.tokens_in is None and one.usd is None
    two = GenerationConfig(samples=2, temperature=1.0)
    first, second = predictions_of(example, {"choices": [{"message": None}, good]}, two, None, True)
    assert first.error == "the provider returned a choice without a message" and second.text == "ok"
    for broken in ([], "x", 5, None, {"choices": {"0": good}}, {"choices": [None]}):
        with pytest.raises(Malformed):
            predictions_of(example, broken, GenerationConfig(), None, True)  # type: ignore[arg-type]


# ---------------------------------------------------------------- waits

ABSURD = ["-5", "1e400", "inf", "nan", "99999999999", "soon", "", "5 minutes", "Thu, 01 Jan 1970 00:00:00 GMT",
          "Fri, 31 Dec 9999 23:59:59 GMT", "Fri, 31 Dec 99999999 23:59:59 GMT", "0", "1;2", "\N{DIGIT ONE}"]  # fmt: skip


@pytest.mark.parametrize("value", ABSURD)
@pytest.mark.parametrize("status", [429, 503])
def test_no_retry_after_stops_a_run_for_longer_than_patience(
    stub: Stub, tmp_path: Path, value: str, status: int
) -> None:
    error = {"message": "slow down", "code": "rate_limit_exceeded", "type": "x"}
    stub.fail("POST", CHAT, status=status, error=error, headers={"retry-after": value}, times=1)
    began = time.monotonic()
    finished(run(stub, tmp_path, patience=1.5), stub)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("header", ["retry-after", "retry-after-ms"])
def test_waits_are_numbers_from_0_or_none(header: str) -> None:
    import openai

    def wait(value: str) -> float | None:
        request = httpx2.Request("POST", "http://provider")
        return retry_after(openai.RateLimitError("x", response=httpx2.Response(429, headers={header: value}, request=request), body=None))  # fmt: skip

    for value in ABSURD:
        seconds = wait(value)
        assert seconds is None or 0 <= seconds < 1e13, value
    assert wait("3000") == (3000 if header == "retry-after" else 3)
    if header == "retry-after":
        later = wait(email.utils.formatdate(time.time() + 100, usegmt=True))
        assert later is not None and 98 < later <= 100
        assert wait("Thu, 01 Jan 1970 00:00:00 GMT") == 0
