"""The estimate of a managed run: prices, tokens, and the facts that are computed once per process."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ftkit_openai import _tokens
from ftkit_openai._check import _check_data, _check_price, findings
from ftkit_openai._estimate import epochs, estimate
from ftkit_openai._prices import prices_for
from ftkit_openai.options import ManagedOptions
from openai_kit import make_task

from ftkit.records import GenerationConfig


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


def test_a_recipe_contains_its_own_prices(tmp_path: Path) -> None:
    own = {"my-model": {"training": 1, "input": 2, "output": 3}}
    (tmp_path / "prices.yaml").write_text("as_of: 2026-11-24\nmy-model: {training: 1, input: 2, output: 3}\n")
    for given in (own, str(tmp_path / "prices.yaml")):
        price = prices_for("nebius", given).of("my-model")
        assert price is not None and (price.training, price.input, price.output) == (1.0, 2.0, 3.0)
    assert prices_for("openai", str(tmp_path / "prices.yaml")).as_of == "2026-11-24"


@pytest.mark.parametrize(
    "wrong", [{"m": 3}, {"m": {"training": 1}}, {"m": {"training": 1, "input": "x", "output": 1}}, {"m": {"train": 1}}, "nowhere.yaml",
              *({"m": {"training": 1, "input": bad, "output": 1}} for bad in (-1, -0.01, math.nan, math.inf, -math.inf, True, None, [], ".nan", "-inf", 10**400))],
)  # fmt: skip
def test_a_wrong_price_table_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"price"):
        prices_for("openai", wrong)


def test_the_estimate_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tokens, "_WAIT", 0.0)
    _tokens.encoding.cache_clear()
    guess = estimate(ManagedOptions(base_model="gpt-4o-mini-2024-07-18", n_epochs=4), make_task())
    _tokens.encoding.cache_clear()
    assert guess["trained_tokens"] % 4 == 0 and guess["n_epochs"] == 4 and guess["predictions"] == 20
    assert guess["usd_training"] == pytest.approx(guess["trained_tokens"] * 3 / 1e6, abs=1e-4)
    assert guess["usd"] == pytest.approx(guess["usd_training"] + guess["usd_predictions"], abs=1e-4)
    assert "estimated at 4 bytes a token" in guess["usd_detail"] and "as of autumn 2026" in guess["usd_detail"]
    nano = estimate(ManagedOptions(base_model="gpt-4.1-nano-2025-04-14"), make_task())
    assert nano["usd"] is None and nano["paid"] and "no price is known for gpt-4.1-nano" in nano["not_estimated"]
    assert estimate(ManagedOptions(base_model="m", dialect="nebius"), make_task())["paid"]
    assert estimate(ManagedOptions(base_model="m", dialect="local"), make_task())["usd"] == 0.0


def test_every_sample_of_an_answer_is_estimated() -> None:
    options = ManagedOptions(base_model="m", prices={"m": {"training": 0, "input": 0, "output": 1000}})
    one = estimate(options, replace(make_task(), generation=GenerationConfig(temperature=1.0)))
    eight = estimate(options, replace(make_task(), generation=GenerationConfig(temperature=1.0, samples=8)))
    assert one["usd"] > 0 and eight["usd"] == pytest.approx(8 * one["usd"])
    assert (one["predictions"], eight["predictions"]) == (20, 160) and "160 answers" in eight["usd_detail"]
    limited = options.model_copy(update={"max_usd": 2 * one["usd"]})
    assert not list(_check_price(limited, replace(make_task(), generation=GenerationConfig())))
    (above,) = _check_price(limited, replace(make_task(), generation=GenerationConfig(temperature=1.0, samples=8)))
    assert above.level == "error" and "above max_usd" in above.message


def test_a_control_pays_only_for_its_answers() -> None:
    price = {"training": 7, "input": 100, "output": 300, "base_input": 50, "base_output": 200}
    options = ManagedOptions(base_model="m", prices={"m": price})
    whole, control = estimate(options, make_task()), estimate(options, make_task(), trains=False)
    assert control["usd_training"] == 0 and control["trained_tokens"] == 0 and "training" not in control["usd_detail"]
    assert control["predictions"] == 10 and 0 < control["usd"] < whole["usd_predictions"] / 2 < whole["usd"]
    few = make_task(3)  # too few to train on, but a control is not trained
    unknown = options.model_copy(update={"base_url": "http://127.0.0.1:9/v1", "max_usd": 1.0})
    said = [f.message for f in findings(unknown, few, trains=False)]
    assert len(said) == 1 and "no connection" in said[0]


@pytest.mark.parametrize(
    ("rows", "passes"),
    [(10, 10), (15, 6), (33, 3), (34, 3), (100, 3), (8333, 3), (8334, 2), (8000, 3), (9000, 2), (30_000, 1), (2, 25)],
)
def test_epochs_of_auto(rows: int, passes: int) -> None:
    assert epochs(ManagedOptions(base_model="m"), rows) == passes
    assert epochs(ManagedOptions(base_model="m", n_epochs=7), rows) == 7


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
@pytest.mark.parametrize("option", ["max_usd", "timeout", "patience", "find_window", "model_wait", "learning_rate"])
def test_no_limit_is_nan_or_infinite_or_negative(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=option):
        ManagedOptions(base_model="m", **{option: value})


# ---------------------------------------------------------------- tokens, counted as OpenAI's cookbook does


def bytes_counter() -> _tokens.Counter:
    """A counter by which each byte is a token: OpenAI's tables are not on every machine."""
    return _tokens.Counter(lambda text: len(text.encode()), "bytes", True)


@pytest.mark.parametrize(
    ("messages", "tools", "tokens"),
    [
        ([], None, 3),
        ([{"role": "user", "content": "ab"}], None, 3 + 3 + 1 + 2),
        ([{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c", "weight": 0}], None, 3 + 2 * 4 + 3),
        ([{"role": "user", "content": "ab", "name": "Eva"}], None, 3 + 3 + 1 + 2 + 3 + 1),
        ([{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}], None, 3 + 3 + 1 + len('[{"id": "1"}]')),
        ([{"role": "user", "content": "ab"}], [{"a": 1}], 9 + len('[{"a": 1}]')),
    ],
)
def test_a_chat_is_counted(messages: Any, tools: Any, tokens: int) -> None:
    assert bytes_counter().chat(messages, tools) == tokens


@pytest.mark.parametrize(
    ("options", "limit"),
    [({"base_model": "gpt-4o-mini-2024-07-18"}, 65_536), ({"base_model": "gpt-3.5-turbo-0125"}, 16_385),
     ({"base_model": "gpt-3.5-turbo-0613"}, 4_096), ({"base_model": "gpt-35-turbo-1106", "dialect": "azure"}, 16_385),
     ({"base_model": "gpt-3.5-turbo-0125", "max_example_tokens": 100}, 100), ({"base_model": "m"}, 65_536)],
)  # fmt: skip
def test_an_example_is_paid_for_up_to_its_limit(
    options: dict[str, Any], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftkit_openai import _estimate

    monkeypatch.setattr(_estimate, "counter", lambda model: bytes_counter())
    o = ManagedOptions(**options, n_epochs=1)
    assert o.example_limit == limit
    task = make_task(10, text="x" * 70_000 + str(options))
    short = "s" * 10 + str(options)
    task = replace(task, splits={**task.splits, "train": (*task.train, *make_task(1, short).train)})
    chat = task.train[-1].training_chat()["messages"]
    assert estimate(o, task)["trained_tokens"] == 10 * limit + min(limit, bytes_counter().chat(chat))


# ---------------------------------------------------------------- facts, computed once per process


def test_the_facts_depend_on_every_option_that_decides_them() -> None:
    """Each option is changed after the facts are known: the next check must not repeat the old facts."""
    task = make_task(text="unlike any other test's rows")
    empty = replace(task.train[0], targets=("",))
    task = replace(
        task, splits={**task.splits, "validation": (empty,)}, fingerprints={**task.fingerprints, "validation": "v"}
    )
    options = ManagedOptions(base_model="m", dialect="local", validation_file=False)

    def check(**changed: Any) -> list[str]:
        return [f.message for f in _check_data(options.model_copy(update=changed), task)]

    assert check() == []
    with_validation = check(validation_file=True)
    assert "validation, line 1: the assistant message is empty (example r0)" in with_validation
    assert check() == []
    (truncated,) = check(max_example_tokens=3)
    assert "longer than 3 tokens" in truncated
    few = replace(
        task, splits={**task.splits, "train": task.train[:5]}, fingerprints={**task.fingerprints, "train": "few"}
    )
    (minimum,) = [f.message for f in _check_data(options, few)]
    assert "5 examples" in minimum


def test_offline_tokens_are_a_labelled_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken

    def offline(*_: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(tiktoken, "encoding_for_model", offline)
    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    _tokens.encoding.cache_clear()
    found = _tokens.counter("gpt-4o-mini")
    _tokens.encoding.cache_clear()
    assert not found.exact and "estimated" in found.label
    assert found.count("a b c d") == 2 and found.count("日本語") == 3
