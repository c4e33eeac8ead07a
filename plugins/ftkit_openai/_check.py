"""What can be checked before anything is paid: options, key, model, its shutdown date, the file, its tokens, the price."""

from __future__ import annotations

import datetime
import difflib
import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ftkit.errors import FtkitError
from ftkit.records import Finding, Task
from ftkit.text import dollars

from ._dialects import DIALECTS
from ._estimate import estimate, facts_of
from ._models import shutdown_of

if TYPE_CHECKING:
    from ._client import Provider
    from .options import ManagedOptions

_PATIENCE = 10.0  # seconds that preflight waits for a provider that does not answer
_MOST_IDS = 5  # examples that a problem names
_OWN_SUFFIX = 48  # characters, of 64, where the suffix also carries the run's tag
_LAST_TRAINING_DAY = datetime.date(2027, 1, 6)  # of OpenAI


def findings(options: ManagedOptions, task: Task | None, trains: bool = True) -> Iterator[Finding]:
    """Yield everything that is wrong or worth knowing. Spends nothing. `trains` False looks at the untouched model alone."""
    yield from _check_options(options, trains)
    if task is not None:
        if trains:
            yield from _check_data(options, task)
        yield from _check_price(options, task, trains)
    yield from account_findings(options, trains)


# ---------------------------------------------------------------- options and data: no network


def _check_options(o: ManagedOptions, trains: bool = True) -> Iterator[Finding]:
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
            known = ", ".join(dialect.hyperparameters)
            yield Finding(
                "error",
                f"dialect {o.dialect} has no {name}",
                f"it has {known}; null removes an inherited one",
                f"backend.{name}",
            )
    if o.suffix is not None and not dialect.metadata and len(o.suffix) > _OWN_SUFFIX:
        yield Finding(
            "error",
            f"the suffix may have {_OWN_SUFFIX} characters with dialect {o.dialect}: the run's tag is added to it",
            "shorten it",
            "backend.suffix",
        )
    if o.wandb is not None and not dialect.wandb:
        yield Finding(
            "error", f"dialect {o.dialect} has no wandb integration", "use `tracking:` of the recipe", "backend.wandb"
        )
    if dialect.deploy == "azure" and o.azure is None and trains:
        yield Finding(
            "error",
            "Azure answers with a tuned model only after it is deployed",
            "give azure: {subscription, resource_group, resource}",
            "backend.azure",
        )
    if dialect.deploy == "azure" and o.azure is not None and trains:
        from ._client import secret
        from ._deploy import missing_token

        if not secret(o.azure.token_env):  # it is needed after the training, which is paid for by then
            yield Finding("error", *missing_token(o.azure.token_env), "backend.azure")
    if o.base_deployment is not None and dialect.deploy != "azure":
        yield Finding(
            "error", f"dialect {o.dialect} has no deployments of base models", "remove it", "backend.base_deployment"
        )
    if o.use_batch_api and o.dialect == "nebius":
        yield Finding(
            "error",
            "ftkit does not support the Batch API of nebius",
            "remove use_batch_api",
            "backend.use_batch_api",
        )
    if o.dialect == "local" and o.base_url is None:
        missing = [m for m in ("fastapi", "uvicorn") if importlib.util.find_spec(m) is None]
        if missing:
            yield Finding(
                "error",
                f"the local server needs {' and '.join(missing)}",
                "pip install 'ftkit[serve]'",
                "backend.dialect",
            )


def _check_data(o: ManagedOptions, task: Task) -> Iterator[Finding]:
    for split, problem in facts_of(o, task).problems:
        ids = [task.splits[split][line - 1].id for line in problem.lines[:_MOST_IDS]]
        more = f" and {len(problem.lines) - _MOST_IDS} more" if len(problem.lines) > _MOST_IDS else ""
        examples = f" (example{'s' if len(problem.lines) > 1 else ''} {', '.join(ids)}{more})" if ids else ""
        yield Finding(problem.level, f"{split}, {problem}{examples}", problem.hint, "dataset.path")


def _check_price(o: ManagedOptions, task: Task, trains: bool = True) -> Iterator[Finding]:
    try:
        found = estimate(o, task, trains)
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


# ---------------------------------------------------------------- the account: requests that cost nothing


def account_findings(o: ManagedOptions, trains: bool = True) -> Iterator[Finding]:
    from ._client import base_url
    from ._connect import connect, connection_problem

    url = base_url(o)
    problem = connection_problem(o, url)
    if problem is not None:
        yield Finding("error", *problem, "backend.api_key_env" if url else "backend.base_url")
        return
    if url is None:
        return  # a server of the run's own: it does not run yet
    try:
        with connect(o, None, _PATIENCE) as provider:
            yield from _check_model(o, provider)
            if trains:
                yield from _check_training_allowed(o, provider)
    except FtkitError as error:
        yield Finding("error", error.message, error.hint, "backend.base_url" if o.base_url else "backend.api_key_env")


def _check_model(o: ManagedOptions, provider: Provider) -> Iterator[Finding]:
    from ._lists import items

    listed = {m.id: m for m in provider.read("listing the models", lambda: list(items(provider.client.models.list())))}
    if o.base_model not in listed:
        near = difflib.get_close_matches(o.base_model, listed, 3)
        hint = f"near: {', '.join(near)}" if near else f"there are {len(listed)}, such as {', '.join(list(listed)[:3])}"
        yield Finding(
            "error", f"{provider.dialect.label} has no model {o.base_model!r} for this key", hint, "backend.base_model"
        )
        return
    date = shutdown_of(o, listed[o.base_model])
    if date is None:
        return
    days = (datetime.date.fromisoformat(date) - datetime.date.today()).days
    if days < 0:
        yield Finding(
            "error", f"{o.base_model} was shut down on {date}", "choose another base_model", "backend.base_model"
        )
    elif days <= o.shutdown_days:
        yield Finding(
            "warning",
            f"{o.base_model}, and every fine-tune of it, is shut down on {date}: in {days} days",
            "choose another base_model, or plan to use it for a short time only",
            "backend.base_model",
        )
    else:
        yield Finding("note", f"{o.base_model}, and every fine-tune of it, is shut down on {date}")


def _check_training_allowed(o: ManagedOptions, provider: Provider) -> Iterator[Finding]:
    from ._errors import TRAINING_NOT_ALLOWED

    jobs = provider.client.fine_tuning.jobs
    provider.read("listing the fine-tuning jobs", lambda: jobs.list(limit=1))
    is_openai = urlsplit(provider.url).hostname == "api.openai.com"
    if is_openai and datetime.date.today() >= _LAST_TRAINING_DAY:
        message = "OpenAI accepts no new fine-tuning job since 2027-01-06"
        yield Finding("error", message, TRAINING_NOT_ALLOWED, "backend.plugin")
    elif is_openai if o.probe_training is None else o.probe_training:
        yield from _probe_training(o, provider)
    elif is_openai:
        yield Finding(
            "warning",
            "OpenAI refuses new fine-tuning jobs of most organisations (403 training_not_available), which "
            "only shows when the job is created, after the baseline was paid for",
            "without backend.probe_training: false, preflight asks OpenAI beforehand, free of charge",
            "backend.plugin",
        )


def _probe_training(o: ManagedOptions, provider: Provider) -> Iterator[Finding]:
    """Request a job on a file that does not exist. The error says "no such file" to who may train, and refuses others."""
    from ._errors import classify

    jobs = provider.client.fine_tuning.jobs
    try:
        created = jobs.create(
            model=o.base_model, training_file="file-ftkit-does-not-exist", metadata={"ftkit": "probe"}
        )
        jobs.cancel(created.id)  # a provider that accepts any file
    except Exception as error:
        failure = classify(error)
        if failure in ("invalid", "not_found", "model"):
            return
        problem = provider.explain(error, "asking whether training is allowed")
        refused = failure in ("unavailable", "forbidden", "key", "quota", "billing")
        yield Finding("error" if refused else "warning", problem.message, problem.hint, "backend.plugin")
