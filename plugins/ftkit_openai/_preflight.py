"""What can be known before anything is paid: options, key, model, its last day, the file, its tokens, the price."""

from __future__ import annotations

import datetime
import difflib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ftkit.errors import FtkitError
from ftkit.records import Finding, GenerationConfig, Task
from ftkit.text import dollars

from ._dialects import DIALECTS
from ._lint import Problem, lint
from ._prices import FREE, Price, Prices, prices_for
from ._rows import chats, lines, messages
from ._tokens import ESTIMATE, Counter, counter

if TYPE_CHECKING:
    from . import ManagedOptions
    from ._client import Provider

_PATIENCE = 10.0  # seconds that preflight waits for a provider that does not answer
_IDS = 5  # examples that a problem names
_OWN_SUFFIX = 48  # characters, of 64, where the suffix also tells one run's job from another's
_LAST_TRAINING_DAY = datetime.date(2027, 1, 6)  # of OpenAI


def findings(options: ManagedOptions, task: Task | None, control: bool = False) -> Iterator[Finding]:
    """Yield everything that is wrong or worth knowing. Spends nothing. A `control` is never trained."""
    yield from _options(options, control)
    if task is not None:
        if not control:
            yield from _data(options, task)
        yield from _price(options, task, control)
    yield from _account(options, control)


# ---------------------------------------------------------------- options and data: no network


def _options(o: ManagedOptions, control: bool = False) -> Iterator[Finding]:
    dialect = DIALECTS[o.dialect]
    auto = {
        "n_epochs": "auto",
        "batch_size": "auto",
        "learning_rate_multiplier": "auto",
        "learning_rate": None,
        "lora_r": None,
    }
    for name, default in auto.items():
        if getattr(o, name) != default and name not in dialect.hyperparameters:
            takes = ", ".join(dialect.hyperparameters)
            yield Finding(
                "error",
                f"dialect {o.dialect} has no {name}",
                f"it takes {takes}; null takes an inherited one away",
                f"backend.{name}",
            )
    if o.suffix is not None and not dialect.metadata and len(o.suffix) > _OWN_SUFFIX:
        yield Finding(
            "error",
            f"the suffix may have {_OWN_SUFFIX} characters with dialect {o.dialect}: the run's mark stands beside it",
            "shorten it",
            "backend.suffix",
        )
    if o.wandb is not None and not dialect.wandb:
        yield Finding(
            "error", f"dialect {o.dialect} has no wandb integration", "use `tracking:` of the recipe", "backend.wandb"
        )
    if dialect.deploy == "azure" and o.azure is None and not control:
        yield Finding(
            "error",
            "Azure answers with a tuned model only once it is deployed",
            "give azure: {subscription, resource_group, resource}",
            "backend.azure",
        )
    if dialect.deploy == "azure" and o.azure is not None and not control:
        from ._client import secret
        from ._deploy import no_token

        if not secret(o.azure.token_env):  # it is used when the training is paid for
            yield Finding("error", *no_token(o.azure.token_env), "backend.azure")
    if o.base_deployment is not None and dialect.deploy != "azure":
        yield Finding(
            "error", f"dialect {o.dialect} has no deployments of base models", "remove it", "backend.base_deployment"
        )
    if o.use_batch_api and o.dialect == "nebius":
        yield Finding(
            "error", "the Batch API of nebius was not looked at", "remove use_batch_api", "backend.use_batch_api"
        )
    if o.dialect == "local" and o.base_url is None:
        lacking = [m for m in ("fastapi", "uvicorn") if importlib.util.find_spec(m) is None]
        if lacking:
            yield Finding(
                "error",
                f"the local server needs {' and '.join(lacking)}",
                "pip install 'ftkit[serve]'",
                "backend.dialect",
            )


def _data(o: ManagedOptions, task: Task) -> Iterator[Finding]:
    for split, problem in _facts(o, task).problems:
        ids = [task.splits[split][line - 1].id for line in problem.lines[:_IDS]]
        more = f" and {len(problem.lines) - _IDS} more" if len(problem.lines) > _IDS else ""
        whose = f" (example{'s' if len(problem.lines) > 1 else ''} {', '.join(ids)}{more})" if ids else ""
        yield Finding(problem.level, f"{split}, {problem}{whose}", problem.hint, "dataset.path")


@dataclass(frozen=True)
class Facts:
    """Token counts of a task, and what the lint found: (split, problem)."""

    train_tokens: int  # of one pass
    test_in: int
    answer_tokens: int  # the longest reference answer: what an answer is assumed to take
    counted: str
    problems: tuple[tuple[str, Problem], ...]


_known: dict[tuple[Any, ...], Facts] = {}


def _facts(o: ManagedOptions, task: Task) -> Facts:
    """Return the facts of a task, computed once per process: check and estimate both ask."""
    key = (o.base_model, o.dialect, o.max_example_tokens, task.prompt_hash, *sorted(task.fingerprints.items()))
    if key not in _known:
        tokens: Counter = ESTIMATE if o.dialect == "local" else counter(o.base_model)
        minimum = DIALECTS[o.dialect].min_examples
        problems = [("train", p) for p in lint(lines(task.train), minimum, o.max_example_tokens, tokens.chat)]
        if task.validation and o.validation_file:
            problems += [("validation", p) for p in lint(lines(task.validation), 1, o.max_example_tokens, tokens.chat)]
        _known[key] = Facts(
            sum(tokens.chat(chat["messages"]) for chat in chats(task.train)),
            sum(tokens.chat(messages(e)) for e in task.test),
            max((tokens.count(t) for e in task.test for t in e.targets[:1]), default=0),
            tokens.label,
            tuple(problems),
        )
    return _known[key]


# ---------------------------------------------------------------- the price


def epochs(o: ManagedOptions, rows: int) -> int:
    """Return the passes that are paid for; for "auto", by the rule of OpenAI's cookbook (its own choice may differ)."""
    if o.n_epochs != "auto":
        return int(o.n_epochs)
    if rows * 3 < 100:
        return min(25, -(-100 // max(rows, 1)))
    return max(1, 25_000 // rows) if rows * 3 > 25_000 else 3


def price_of(o: ManagedOptions, prices: Prices | None = None) -> Price | None:
    return FREE if o.dialect == "local" else (prices or prices_for(o.dialect, o.prices)).of(o.base_model)


def estimate(o: ManagedOptions, task: Task | None, control: bool = False) -> dict[str, Any]:
    """Return `usd`, `usd_detail` and the numbers behind them; `not_estimated` where the price is not known.

    A `control` is not trained, and answers once.
    """
    if task is None:
        return {"not_estimated": "the data could not be read"}
    if o.dialect == "local":
        return {"usd": 0.0, "usd_detail": "trained and served on this machine"}
    prices = prices_for(o.dialect, o.prices)
    price = price_of(o, prices)
    facts = _facts(o, task)
    passes = 0 if control else epochs(o, len(task.train))
    asked = (False,) if control else (False, True)  # is it tuned
    samples = (task.generation or GenerationConfig()).samples
    predictions = len(asked) * len(task.test) * samples
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
    out = facts.answer_tokens * len(task.test) * samples  # the prompt is paid for once, however many samples
    answers = sum(price.answer(facts.test_in, out, tuned, o.use_batch_api) for tuned in asked)
    trained = (
        f"training {dollars(training)} ({facts.train_tokens * passes:,} tokens: {facts.train_tokens:,} x {passes} epochs at "
        f"{price.training:g} USD/M), "
    )
    detail = (
        f"{'' if control else trained}{predictions:,} answers about {dollars(answers)}"
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


def _price(o: ManagedOptions, task: Task, control: bool = False) -> Iterator[Finding]:
    try:
        found = estimate(o, task, control)
    except ValueError as error:
        yield Finding(
            "error", str(error), "`prices` is {MODEL: {training, input, output}} or a file of that", "backend.prices"
        )
        return
    usd = found.get("usd")
    if o.max_usd is None or o.dialect == "local":
        if usd is None:
            yield Finding("warning", f"the price is not known: {found['not_estimated']}", None, "backend.base_model")
        return
    if usd is None:
        yield Finding(
            "error",
            f"max_usd is {o.max_usd:g} and the price is not known: {found['not_estimated']}",
            "give `prices`, or remove max_usd",
            "backend.max_usd",
        )
    elif usd > o.max_usd:
        yield Finding(
            "error",
            f"the estimate is {dollars(usd)}, above max_usd {o.max_usd:g}: {found['usd_detail']}",
            "fewer rows or epochs, or a higher max_usd",
            "backend.max_usd",
        )


# ---------------------------------------------------------------- the account: reads alone


def _account(o: ManagedOptions, control: bool = False) -> Iterator[Finding]:
    from ._client import base_url
    from ._connect import connected, missing

    url = base_url(o)
    lack = missing(o, url)
    if lack is not None:
        yield Finding("error", *lack, "backend.api_key_env" if url else "backend.base_url")
        return
    if url is None:
        return  # a server of the run's own: it does not run yet
    try:
        with connected(o, None, _PATIENCE) as provider:
            yield from _model(o, provider)
            if not control:
                yield from _right_to_train(o, provider)
    except FtkitError as error:
        yield Finding("error", error.message, error.hint, "backend.base_url" if o.base_url else "backend.api_key_env")


def _model(o: ManagedOptions, provider: Provider) -> Iterator[Finding]:
    listed = {m.id: m for m in provider.read("listing the models", lambda: list(provider.client.models.list()))}
    if o.base_model not in listed:
        near = difflib.get_close_matches(o.base_model, listed, 3)
        hint = f"near: {', '.join(near)}" if near else f"there are {len(listed)}, such as {', '.join(list(listed)[:3])}"
        yield Finding(
            "error", f"{provider.dialect.where} has no model {o.base_model!r} for this key", hint, "backend.base_model"
        )
        return
    until = shutdown_of(o, listed[o.base_model])
    if until is None:
        return
    days = (datetime.date.fromisoformat(until) - datetime.date.today()).days
    if days < 0:
        yield Finding(
            "error", f"{o.base_model} was shut down on {until}", "choose another base_model", "backend.base_model"
        )
    elif days <= o.shutdown_days:
        yield Finding(
            "warning",
            f"{o.base_model}, and every fine-tune of it, is shut down on {until}: in {days} days",
            "choose another base_model, or keep it short",
            "backend.base_model",
        )
    else:
        yield Finding("note", f"{o.base_model}, and every fine-tune of it, is shut down on {until}")


def shutdown_of(o: ManagedOptions, model: Any) -> str | None:
    """Return a model's last day as YYYY-MM-DD: as the provider says, or as it is known of its family."""
    said = getattr(model, "shutdown_date", None)
    if said:
        return str(said)[:10]
    name = o.base_model
    known = {f: day for f, day in DIALECTS[o.dialect].shutdown.items() if name == f or name.startswith(f"{f}-20")}
    return next(iter(known.values()), None)


def _right_to_train(o: ManagedOptions, provider: Provider) -> Iterator[Finding]:
    from ._client import BARRED

    jobs = provider.client.fine_tuning.jobs
    provider.read("listing the fine-tuning jobs", lambda: jobs.list(limit=1))
    own_host = urlsplit(provider.url).hostname == "api.openai.com"
    if own_host and datetime.date.today() >= _LAST_TRAINING_DAY:
        yield Finding("error", "OpenAI takes no new fine-tuning job since 2027-01-06", BARRED, "backend.plugin")
    elif own_host if o.probe_training is None else o.probe_training:
        yield from _probed(o, provider)
    elif own_host:
        yield Finding(
            "warning",
            "OpenAI refuses new fine-tuning jobs of most organisations (403 training_not_available), which "
            "only shows when the job is made, after the baseline was paid for",
            "without backend.probe_training: false it is asked beforehand, free of charge",
            "backend.plugin",
        )


def _probed(o: ManagedOptions, provider: Provider) -> Iterator[Finding]:
    """Ask for a job on a file that does not exist: who may train is told that it is missing, others are refused."""
    from ._client import kind

    jobs = provider.client.fine_tuning.jobs
    try:
        made = jobs.create(model=o.base_model, training_file="file-ftkit-does-not-exist", metadata={"ftkit": "probe"})
        jobs.cancel(made.id)  # a provider that takes any file in
    except Exception as error:
        failure = kind(error)
        if failure in ("invalid", "not_found", "model"):
            return
        problem = provider.explain(error, "asking whether training is allowed")
        barred = failure in ("unavailable", "forbidden", "key", "quota", "billing")
        yield Finding("error" if barred else "warning", problem.message, problem.hint, "backend.plugin")


_until: dict[tuple[str, str, str], str | None] = {}


def model_facts(o: ManagedOptions) -> dict[str, Any]:
    """Return what the report says of the base model: `lives` and, where it is known, `until` (its last day)."""
    from ._client import Provider, base_url
    from ._connect import missing

    url = base_url(o)
    if url is None or o.dialect == "local":
        return {"lives": DIALECTS[o.dialect].where}
    if missing(o, url):
        until = shutdown_of(o, None)
        return {"lives": DIALECTS[o.dialect].where, **({"until": until} if until else {})}
    provider = Provider(o, url, 0.0)
    try:
        key = (o.dialect, url, o.base_model)
        if key not in _until:
            _until[key] = last_day(provider, o.base_model)
        until = _until[key]
        return {"lives": provider.lives, **({"until": until} if until else {})}
    finally:
        provider.close()


def last_day(provider: Provider, model: str) -> str | None:
    """Ask for the last day of a model; None where nobody knows, or cannot be asked: it is a line of the report."""
    try:
        found = provider.client.models.retrieve(model, timeout=10.0)
    except Exception:
        found = None
    return shutdown_of(provider.options, found)
