"""What a run is expected to cost: the tokens of its rows, and their price. Uses no network but for tiktoken's tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftkit.records import GenerationConfig, Task
from ftkit.text import dollars

from ._dialects import DIALECTS
from ._lint import Problem, lint
from ._prices import FREE, Price, Prices, prices_for
from ._rows import chats, lines, messages
from ._tokens import ESTIMATE, Counter, counter

if TYPE_CHECKING:
    from .options import ManagedOptions


_TARGET_EPOCHS, _MIN_DEFAULT_EPOCHS, _MAX_DEFAULT_EPOCHS = 3, 1, 25
_MIN_TARGET_EXAMPLES, _MAX_TARGET_EXAMPLES = 100, 25_000  # trained on, over all passes


@dataclass(frozen=True)
class Facts:
    """Token counts of a task, and what the lint found: (split, problem)."""

    train_tokens: int  # of one pass, each example up to the length at which it is truncated
    test_in: int
    answer_tokens: int  # the longest reference answer: the assumed length of an answer
    counted: str
    problems: tuple[tuple[str, Problem], ...]


@dataclass(frozen=True)
class _Settings:
    """The options that decide the facts. `_facts_for` sees no other option, so that none is missing in the cache's key."""

    base_model: str
    dialect: str
    example_limit: int
    validation_file: bool


_known: dict[tuple[Any, ...], Facts] = {}


def facts_of(o: ManagedOptions, task: Task) -> Facts:
    """Return the facts of a task, computed once per process: the check and the estimate both need them."""
    settings = _Settings(o.base_model, o.dialect, o.example_limit, o.validation_file)
    key = (settings, task.prompt_hash, *sorted(task.fingerprints.items()))
    if key not in _known:
        _known[key] = _facts_for(settings, task)
    return _known[key]


def _facts_for(settings: _Settings, task: Task) -> Facts:
    tokens: Counter = ESTIMATE if settings.dialect == "local" else counter(settings.base_model)
    minimum, longest = DIALECTS[settings.dialect].min_examples, settings.example_limit
    problems = [("train", p) for p in lint(lines(task.train), minimum, longest, tokens.chat)]
    if task.validation and settings.validation_file:
        problems += [("validation", p) for p in lint(lines(task.validation), 1, longest, tokens.chat)]
    return Facts(
        sum(min(longest, tokens.chat(chat["messages"], chat.get("tools"))) for chat in chats(task.train)),
        sum(tokens.chat(messages(e), e.tools) for e in task.measured),
        max((tokens.count(t) for e in task.measured for t in e.targets[:1]), default=0),
        tokens.label,
        tuple(problems),
    )


def epochs(o: ManagedOptions, rows: int) -> int:
    """Return the passes that are paid for.

    For "auto", by the rule of OpenAI's cookbook ("Data preparation and analysis for chat model fine-tuning"). The API
    chooses by itself when the job is created, and may choose another number.
    """
    if o.n_epochs != "auto":
        return int(o.n_epochs)
    if rows * _TARGET_EPOCHS < _MIN_TARGET_EXAMPLES:
        return min(_MAX_DEFAULT_EPOCHS, _MIN_TARGET_EXAMPLES // max(rows, 1))
    if rows * _TARGET_EPOCHS > _MAX_TARGET_EXAMPLES:
        return max(_MIN_DEFAULT_EPOCHS, _MAX_TARGET_EXAMPLES // rows)
    return _TARGET_EPOCHS


def price_of(o: ManagedOptions, prices: Prices | None = None) -> Price | None:
    """Return the price of the recipe's model; None where it is not known."""
    return FREE if o.dialect == "local" else (prices or prices_for(o.dialect, o.prices)).of(o.base_model)


def estimate(o: ManagedOptions, task: Task | None, trains: bool = True) -> dict[str, Any]:
    """Return `usd`, `usd_detail` and the numbers behind them; `not_estimated` where the price is not known.

    With `trains` False, the untouched model answers each row once.
    """
    if task is None:
        return {"not_estimated": "the data could not be read"}
    if o.dialect == "local":
        return {"usd": 0.0, "usd_detail": "trained and served on this machine"}
    prices = prices_for(o.dialect, o.prices)
    price = price_of(o, prices)
    facts = facts_of(o, task)
    passes = 0 if not trains else epochs(o, len(task.train))
    models = (False,) if not trains else (False, True)  # whether each model that answers is tuned
    samples = (task.generation or GenerationConfig()).samples
    predictions = len(models) * len(task.measured) * samples
    counts = {
        "trained_tokens": facts.train_tokens * passes,
        "n_epochs": passes,
        "predictions": predictions,
        "tokens_counted_by": facts.counted,
    }
    if price is None:
        why = f"no price is known for {o.base_model}: give it with backend.prices"
        return {"usd": None, "paid": True, "not_estimated": why, **counts}
    training = facts.train_tokens * passes * price.training / 1e6
    out = facts.answer_tokens * len(task.measured) * samples  # the prompt is paid for once, however many samples
    answers = sum(price.answer(facts.test_in, out, tuned, o.use_batch_api) for tuned in models)
    chosen = " if the provider chooses as OpenAI's cookbook does" if o.n_epochs == "auto" else ""
    trained = (
        f"training {dollars(training)} ({facts.train_tokens * passes:,} tokens: {facts.train_tokens:,} x {passes} epochs{chosen} at "
        f"{price.training:g} USD/M), "
    )
    detail = (
        f"{'' if not trains else trained}{predictions:,} answers about {dollars(answers)}"
        f"{' by the Batch API' if o.use_batch_api else ''}, each assumed as long as the longest reference; "
        f"tokens: {facts.counted}; prices as of {prices.as_of}"
    )
    return {
        "usd": round(training + answers, 4),
        "usd_training": round(training, 4),
        "usd_predictions": round(answers, 4),
        "usd_detail": detail,
        "prices_as_of": prices.as_of,
        **counts,
    }


def estimate_answers(o: ManagedOptions, task: Task, tuned: bool) -> dict[str, Any]:
    """Return what one model's answers to the test rows cost, as `estimate` does.

    An answer is assumed to be as long as the longest target; where there are no targets, as long as the limit of tokens.
    """
    if o.dialect == "local":
        return {"usd": 0.0, "usd_detail": "served on this machine"}
    prices = prices_for(o.dialect, o.prices)
    price = price_of(o, prices)
    if price is None:
        why = f"no price is known for {o.base_model}: give it with backend.prices"
        return {"usd": None, "paid": True, "not_estimated": why}
    facts, settings = facts_of(o, task), task.generation or GenerationConfig()
    length = facts.answer_tokens or settings.max_new_tokens
    predictions = len(task.test) * settings.samples
    usd = price.answer(facts.test_in, length * predictions, tuned, False)  # never by the Batch API: see `open_session`
    detail = (
        f"{predictions:,} answers, each assumed to have {length:,} tokens; tokens: {facts.counted}; "
        f"prices as of {prices.as_of}"
    )
    return {"usd": round(usd, 6), "usd_detail": detail, "prices_as_of": prices.as_of}
