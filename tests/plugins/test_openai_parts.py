"""The pure parts of the managed backend: the lint of a file, prices, tokens, losses, headers, dialects."""

from __future__ import annotations

import base64
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ftkit_openai import ManagedOptions, OpenAIManaged, _tokens
from ftkit_openai._dialects import DIALECTS
from ftkit_openai._infer import Gate, Stopped, seconds_of
from ftkit_openai._lint import lint, ranges
from ftkit_openai._preflight import _data, _options, _price, epochs, estimate
from ftkit_openai._preflight import findings as _findings
from ftkit_openai._prices import prices_for
from ftkit_openai._results import rows_of_results, step_of

from ftkit.errors import RecipeError
from ftkit.recipe.load import load_recipe
from ftkit.records import Example, GenerationConfig, Message, ModelRef, Task


def chat(*contents: str, **more: Any) -> str:
    roles = ("user", "assistant")
    return json.dumps({"messages": [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)], **more})


def found(*lines: str, **how: Any) -> list[str]:
    """What the lint says beside there being fewer than ten rows."""
    return [f"{p.level}: {p}" for p in lint(lines, min_examples=0, **how)]


def test_a_good_file_has_no_problems() -> None:
    assert lint([chat(f"row {i}", "yes") for i in range(10)]) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("not json", "error: line 2: not JSON"),
        ('{"prompt": "x", "completion": "y"}', "error: line 2: no list of messages"),
        (json.dumps({"messages": [{"role": "robot", "content": "x"}, {"role": "assistant", "content": "y"}]}), "error: line 2: unknown role 'robot'"),
        (json.dumps({"messages": [{"role": "user", "content": "x"}]}), "error: line 2: no assistant answer to learn"),
        (chat("x", "y", "z"), "error: line 2: the last message is not the assistant's"),
        (chat("x", "  "), "error: line 2: the assistant message is empty"),
        (chat("", "y"), "warning: line 2: the user message is empty"),
        (json.dumps({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0.5}]}), "error: line 2: `weight` must be 0 or 1"),
        (json.dumps({"messages": [{"role": "user", "content": "x", "weight": 1}, {"role": "assistant", "content": "y"}]}), "error: line 2: `weight` must be 0 or 1"),
        (json.dumps({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0}]}), "error: line 2: no assistant answer to learn"),
        (chat("x <|endoftext|>", "y"), "error: line 2: the text holds the special token <|endoftext|>"),
        (chat("x", "y <|fim_suffix|>"), "error: line 2: the text holds the special token <|fim_suffix|>"),
        (chat("first", "row"), "warning: line 2: the same as line 1"),
    ],
)  # fmt: skip
def test_each_problem_is_named_with_its_line(line: str, says: str) -> None:
    assert [p for p in found(chat("first", "row"), line) if p.startswith(says)]


def test_all_lines_of_one_kind_of_problem_are_told() -> None:
    problems = found(*["broken" if i in (3, 7, 8, 9) else chat(f"row {i}", "yes") for i in range(1, 12)])
    assert problems[0] == "error: lines 3, 7-9: not JSON"
    assert ranges([9, 3, 10, 11, 3]) == "3, 9-11"


def test_a_problem_names_the_split_and_the_examples() -> None:
    rows = [*task().train]
    for i in range(3, 11):
        rows[i] = replace(rows[i], targets=("",))
    broken = Task("t", {"train": tuple(rows), "validation": (rows[3],), "test": ()}, {"train": "broken"}, "p")
    said = {f.message for f in _data(ManagedOptions(base_model="m", dialect="local"), broken)}
    assert "train, lines 4-11: the assistant message is empty (examples r3, r4, r5, r6, r7 and 3 more)" in said
    assert "validation, line 1: the assistant message is empty (example r3)" in said


def test_few_rows_and_long_rows() -> None:
    assert "9 examples: a provider asks for at least 10" in str(lint([chat(f"row {i}", "yes") for i in range(9)])[0])
    long = found(chat("short", "y"), chat("long " * 50, "y"), max_tokens=40, count=_tokens.ESTIMATE.chat)
    assert long == ["warning: line 2: longer than 40 tokens: cut at the end, so that the answer is lost"]


# ---------------------------------------------------------------- prices


def test_the_table_is_the_published_one() -> None:
    prices = prices_for("openai", None)
    listed = {m: (p.training, p.input, p.output) for m, p in prices.table.items()}
    assert listed == {
        "gpt-4.1": (25, 3, 12),
        "gpt-4.1-mini": (5, 0.80, 3.20),
        "gpt-4o": (25, 3.75, 15),
        "gpt-4o-mini": (3, 0.30, 1.20),
    }
    assert prices.as_of == "autumn 2026"
    mini = prices.of("ft:gpt-4o-mini-2024-07-18:org::abc")
    assert mini is not None and mini is prices.of("gpt-4o-mini-2024-07-18")
    assert mini.answer(1_000_000, 1_000_000, tuned=True) == pytest.approx(1.5)
    assert mini.answer(1_000_000, 1_000_000, tuned=True, batch=True) == pytest.approx(0.75)
    assert mini.answer(1_000_000, 1_000_000, tuned=False) == pytest.approx(0.75)
    assert prices.of("gpt-4o-mini-audio-preview") is None


def test_a_recipe_brings_its_own_prices(tmp_path: Path) -> None:
    own = {"my-model": {"training": 1, "input": 2, "output": 3}}
    (tmp_path / "prices.yaml").write_text("as_of: 2026-11-24\nmy-model: {training: 1, input: 2, output: 3}\n")
    for given in (own, str(tmp_path / "prices.yaml")):
        price = prices_for("nebius", given).of("my-model")
        assert price is not None and (price.training, price.input, price.output) == (1.0, 2.0, 3.0)
    assert prices_for("openai", str(tmp_path / "prices.yaml")).as_of == "2026-11-24"


@pytest.mark.parametrize(
    "wrong", [{"m": 3}, {"m": {"training": 1}}, {"m": {"training": 1, "input": "x", "output": 1}}, {"m": {"train": 1}}, "nowhere.yaml",
              {"m": {"training": -1, "input": 1, "output": 1}}],
)  # fmt: skip
def test_what_is_no_price_is_said(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"price"):
        prices_for("openai", wrong)


def task(rows: int = 20, text: str = "word " * 40) -> Task:
    examples = tuple(
        Example(f"r{i}", (Message("user", f"{i} {text}"),), ("a short answer",), text) for i in range(rows)
    )
    return Task("t", {"train": examples, "test": examples[:10]}, {"train": f"{rows}{text}", "test": "t"}, "p")


def test_the_estimate_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tokens, "_WAIT", 0.0)
    _tokens.encoding.cache_clear()
    guess = estimate(ManagedOptions(base_model="gpt-4o-mini-2024-07-18", n_epochs=4), task())
    _tokens.encoding.cache_clear()
    assert guess["trained_tokens"] % 4 == 0 and guess["n_epochs"] == 4 and guess["predictions"] == 20
    assert guess["usd_training"] == pytest.approx(guess["trained_tokens"] * 3 / 1e6, abs=1e-4)
    assert guess["usd"] == pytest.approx(guess["usd_training"] + guess["usd_predictions"], abs=1e-4)
    assert "estimated at 4 bytes a token" in guess["usd_detail"] and "as of autumn 2026" in guess["usd_detail"]
    nano = estimate(ManagedOptions(base_model="gpt-4.1-nano-2025-04-14"), task())
    assert nano["usd"] is None and nano["paid"] and "no price is known for gpt-4.1-nano" in nano["not_estimated"]
    assert estimate(ManagedOptions(base_model="m", dialect="nebius"), task())["paid"]
    assert estimate(ManagedOptions(base_model="m", dialect="local"), task())["usd"] == 0.0


def test_every_sample_of_an_answer_is_estimated() -> None:
    options = ManagedOptions(base_model="m", prices={"m": {"training": 0, "input": 0, "output": 1000}})
    one = estimate(options, replace(task(), generation=GenerationConfig(temperature=1.0)))
    eight = estimate(options, replace(task(), generation=GenerationConfig(temperature=1.0, samples=8)))
    assert one["usd"] > 0 and eight["usd"] == pytest.approx(8 * one["usd"])
    assert (one["predictions"], eight["predictions"]) == (20, 160) and "160 answers" in eight["usd_detail"]
    limited = options.model_copy(update={"max_usd": 2 * one["usd"]})
    assert not list(_price(limited, replace(task(), generation=GenerationConfig())))
    (above,) = _price(limited, replace(task(), generation=GenerationConfig(samples=8)))
    assert above.level == "error" and "above max_usd" in above.message


def test_a_control_pays_for_its_answers_alone() -> None:
    price = {"training": 7, "input": 100, "output": 300, "base_input": 50, "base_output": 200}
    options = ManagedOptions(base_model="m", prices={"m": price})
    whole, control = estimate(options, task()), estimate(options, task(), compared=False)
    assert control["usd_training"] == 0 and control["trained_tokens"] == 0 and "training" not in control["usd_detail"]
    assert control["predictions"] == 10 and 0 < control["usd"] < whole["usd_predictions"] / 2 < whole["usd"]
    few = task(3)  # too few to train on, but nobody trains
    unknown = options.model_copy(update={"base_url": "http://127.0.0.1:9/v1", "max_usd": 1.0})
    said = [f.message for f in _findings(unknown, few, True)]
    assert len(said) == 1 and "no connection" in said[0]


@pytest.mark.parametrize(("rows", "passes"), [(10, 10), (33, 4), (100, 3), (8000, 3), (9000, 2), (30_000, 1), (2, 25)])
def test_epochs_of_auto(rows: int, passes: int) -> None:
    assert epochs(ManagedOptions(base_model="m"), rows) == passes
    assert epochs(ManagedOptions(base_model="m", n_epochs=7), rows) == 7


# ---------------------------------------------------------------- losses


def event(message: str, data: Any = None) -> Any:
    return SimpleNamespace(message=message, data=data)


def test_steps_come_from_events() -> None:
    data = {"step": 88, "train_loss": 0.47, "total_steps": 100, "train_mean_token_accuracy": 0.92, "valid_loss": None}
    assert step_of(event("", data)) == {"step": 88, "loss": 0.47, "token_accuracy": 0.92, "max_steps": 100}
    assert step_of(event("Step 10/90: training loss=0.52")) == {"step": 10, "loss": 0.52, "max_steps": 90}
    assert step_of(event("Step 10: training loss=1.5e-2, validation loss=0.3")) == {"step": 10, "loss": 0.015}
    assert step_of(event("Files validated, moving job to queued state", {})) is None


@pytest.mark.parametrize("encode", [bytes, base64.b64encode, base64.encodebytes])
def test_a_result_file_is_read_plain_or_in_base64(encode: Any) -> None:
    csv = b"step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,2.5,0.1,,\n2,1.5,0.2,1.9,0.3\n3,nan,,,\n"
    text, rows = rows_of_results(encode(csv))
    assert text.startswith("step,train_loss")
    assert rows == [
        {"step": 1, "loss": 2.5, "token_accuracy": 0.1},
        {"step": 2, "loss": 1.5, "token_accuracy": 0.2, "valid_loss": 1.9, "valid_token_accuracy": 0.3},
    ]


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"<html>sorry</html>", b"bm90IGEgdGFibGU="])
def test_what_is_no_result_file_has_no_rows(data: bytes) -> None:
    assert rows_of_results(data)[1] == []


# ---------------------------------------------------------------- holding back


@pytest.mark.parametrize(
    ("text", "seconds"), [("1.5s", 1.5), ("6m0s", 360), ("20ms", 0.02), ("1h2m3s", 3723), (None, 0), ("x", 0)]
)
def test_reset_times_are_read(text: str | None, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds)


def test_a_gate_halves_on_refusal_once_a_burst_and_grows_again() -> None:
    gate = Gate(16)
    sent = time.monotonic()
    for _ in range(5):
        gate.refused(0.0, sent)
    assert gate.limit == 8
    for _ in range(8 + 9):
        gate.answered({})
    assert gate.limit == 10
    for _ in range(1000):
        gate.answered({})
    assert gate.limit == 16


def test_a_gate_lets_no_more_through_than_its_limit() -> None:
    gate, stop = Gate(2), threading.Event()
    inside: list[int] = []
    most = []

    def ask() -> None:
        with gate.passed(stop):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 2 and len(most) == 8
    stop.set()
    with pytest.raises(Stopped), gate.passed(stop):
        pass


def test_a_gate_holds_back_when_the_headers_say_so() -> None:
    gate = Gate(4)
    gate.answered({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "30s"})
    assert 29 < gate.opens - time.monotonic() <= 30


# ---------------------------------------------------------------- which failure it is

QUOTA = (
    "You exceeded your current quota, please check your plan and billing details. For more information on this error, "
    "read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors."
)


@pytest.mark.parametrize(
    ("status", "error", "which"),
    [
        (429, {"message": QUOTA, "type": "insufficient_quota", "param": None, "code": "insufficient_quota"}, "quota"),
        (429, {"message": QUOTA, "type": None, "code": None}, "quota"),
        (429, {"message": "Your account is not active, please check your billing details on our website.", "type": "billing_not_active", "code": "billing_not_active"}, "billing"),
        (429, {"message": "Rate limit reached for gpt-4o-mini. Add a payment method in your billing settings.", "type": "requests", "code": "rate_limit_exceeded"}, "rate"),
        (400, {"message": "Billing hard limit has been reached", "type": "invalid_request_error", "code": "billing_hard_limit_reached"}, "billing"),
        (400, {"message": "Billing hard limit has been reached", "type": "invalid_request_error", "code": None}, "billing"),
        (400, {"message": "the row speaks of billing", "type": "invalid_request_error", "code": None}, "invalid"),
        (403, {"message": "see your billing page", "type": "x", "code": "training_not_available"}, "unavailable"),
        (503, {"message": "the billing service is overloaded", "type": "server_error", "code": None}, "server"),
    ],
)  # fmt: skip
def test_a_failure_is_known_by_its_code_before_its_words(status: int, error: dict[str, Any], which: str) -> None:
    import httpx2
    import openai
    from ftkit_openai._client import kind

    answer = httpx2.Response(status, json={"error": error}, request=httpx2.Request("POST", "http://provider"))
    assert kind(openai.APIStatusError("refused", response=answer, body=error)) == which


# ---------------------------------------------------------------- dialects and options


def test_dialects_take_their_own_hyperparameters() -> None:
    def wrong(**options: Any) -> list[str]:
        return [f.message for f in _options(ManagedOptions(base_model="m", **options))]

    assert wrong() == []
    assert wrong(learning_rate=1e-4, lora_r=8) == [
        "dialect openai has no learning_rate",
        "dialect openai has no lora_r",
    ]
    assert wrong(dialect="nebius", learning_rate=1e-4, lora_r=8) == []
    assert wrong(dialect="nebius", learning_rate_multiplier=2.0) == ["dialect nebius has no learning_rate_multiplier"]
    assert wrong(suffix="s" * 64) == wrong(suffix="s" * 48, dialect="nebius") == []
    assert "48 characters" in wrong(suffix="s" * 49, dialect="nebius")[0]
    with pytest.raises(ValueError, match="at most 64"):
        wrong(suffix="s" * 65)
    assert "deployed" in wrong(dialect="azure")[0]
    assert DIALECTS["nebius"].base_url == "https://api.tokenfactory.nebius.com/v1/"


HEX = "deadbeef" * 4


def test_azure_wants_its_token_before_anything_is_paid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    azure = {"subscription": "s", "resource_group": "g", "resource": "r"}
    options = ManagedOptions(base_model="m", dialect="azure", azure=azure)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AZURE_TOKEN", raising=False)
    (told,) = _options(options)
    assert told.level == "error" and "AZURE_TOKEN is not set" in told.message and "az account" in str(told.hint)
    assert not list(_options(options, compared=False))
    (tmp_path / ".env").write_text("AZURE_TOKEN=token\n")
    assert not list(_options(options))


def test_azures_base_model_is_asked_by_its_deployment() -> None:
    def asked(**options: Any) -> ModelRef:
        backend = OpenAIManaged(ManagedOptions(base_model="gpt-4o-mini-2024-07-18", **options))
        return backend.base_model()

    assert asked(dialect="azure", base_deployment="mini").uri == "mini"
    assert asked(dialect="azure").uri == "gpt-4o-mini-2024-07-18"
    (told,) = _options(ManagedOptions(base_model="m", base_deployment="mini"))
    assert told.key == "backend.base_deployment"


@pytest.mark.parametrize("key", ["sk-proj-abcdef", HEX, HEX.upper(), "a" + HEX, 12345678, "my_key"])
def test_a_key_is_not_taken_for_the_name_of_a_variable(key: Any) -> None:
    with pytest.raises(ValueError, match=r"api_key_env[\s\S]*name of an environment variable") as caught:
        ManagedOptions(base_model="m", api_key_env=key)
    assert str(key) not in str(caught.value)
    with pytest.raises(RecipeError, match="name of an environment variable") as told:
        load_recipe(
            {"dataset": {"path": "x"}, "backend": {"plugin": "openai-managed", "base_model": "m", "api_key_env": key}}
        )
    assert str(key) not in str(told.value) and str(key) not in str([p.to_dict() for p in told.value.problems])
    assert ManagedOptions(base_model="m", api_key_env="AZURE_OPENAI_API_KEY_2").api_key_env


def test_an_address_holds_no_password() -> None:
    with pytest.raises(ValueError, match="no user and password") as caught:
        ManagedOptions(base_model="m", base_url="http://user:secret@host/v1")
    assert "secret" not in str(caught.value)
    assert ManagedOptions(base_model="m", base_url="http://127.0.0.1:1/v1?x=a@b").base_url


def test_offline_tokens_are_a_labelled_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken

    def gone(*_: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(tiktoken, "encoding_for_model", gone)
    monkeypatch.setattr(tiktoken, "get_encoding", gone)
    _tokens.encoding.cache_clear()
    found = _tokens.counter("gpt-4o-mini")
    _tokens.encoding.cache_clear()
    assert not found.exact and "estimated" in found.label
    assert found.count("a b c d") == 2 and found.count("日本語") == 3


def test_examples_are_shown_as_tokens_where_the_tokenizer_is_known() -> None:
    """By an encoding of single bytes: the tables of OpenAI's are not on every machine."""
    import tiktoken
    from ftkit_openai._render import _by_tiktoken

    marks = {"<|im_start|>": 256, "<|im_end|>": 257}
    own = tiktoken.Encoding(
        "bytes", pat_str=r"[\s\S]", mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens=marks
    )
    (shown,) = _by_tiktoken(own, 10**6, task(1, "hi").train[:1])
    assert shown.text == "<|im_start|>user\n0 hi<|im_end|><|im_start|>assistant\na short answer<|im_end|>"
    assert (
        "".join(t for t, learned in zip(shown.tokens, shown.loss_mask, strict=True) if learned)
        == "a short answer<|im_end|>"
    )
    assert len(shown.ids) == len(shown.loss_mask) == shown.n_prompt + len("a short answer") + 1
    (cut,) = _by_tiktoken(own, shown.n_prompt + 5, task(1, "hi").train[:1])
    assert cut.truncated == (0, 10) and len(cut.ids) == shown.n_prompt + 5


def test_the_plugin_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = "import sys, ftkit_openai; print([m for m in ('openai', 'httpx2', 'torch', 'fastapi', 'tiktoken') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
    assert OpenAIManaged.requires.install == "ftkit[openai]"
