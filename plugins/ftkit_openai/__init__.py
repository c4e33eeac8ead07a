"""Managed fine-tuning at a provider that speaks OpenAI's wire format, and `ftkit serve`, which speaks it on this machine.

This file and `options.py` are light. openai is imported in the `_*.py` files only, when they are used. The server is another
plugin, which runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from ftkit.api import Backend, MeasuredRun, Requires, Run, Session
from ftkit.hookspecs import hookimpl
from ftkit.records import Cancelled, Diagnosis, Example, Finding, LengthLimit, ModelRef, Rendered, Section, Task

from ._state import CREATE_AGAIN
from .options import ManagedOptions


class OpenAIManaged(Backend):
    """A model at a provider: a job fine-tunes it there, and requests over HTTP ask it."""

    name = "openai-managed"
    summary = "managed fine-tuning behind OpenAI's wire format: OpenAI, Azure, Nebius, or `ftkit serve` here"
    Options = ManagedOptions
    requires = Requires(("openai", "tiktoken", "dotenv"), "ftkit[openai]")
    questions: ClassVar[Mapping[str, str]] = {CREATE_AGAIN: "yes: create and pay for another job or batch"}

    @classmethod
    def diagnose(cls, options: Any = None) -> Iterator[Diagnosis]:
        for modules in super().diagnose(options):
            yield modules
            if modules.ok is False:
                return
        from ._doctor import diagnoses

        yield from diagnoses(options)

    def check(self, task: Task | None, trains: bool = True) -> Iterable[Finding]:
        from ._check import findings

        return findings(self.options, task, trains)

    def estimate(self, task: Task | None, trains: bool = True) -> dict[str, Any]:
        from ._estimate import estimate

        return estimate(self.options, task, trains)

    def estimate_answers(self, task: Task, model: ModelRef) -> dict[str, Any]:
        from ._estimate import estimate_answers

        return estimate_answers(self.options, task, tuned=model.base is not None)

    def render(self, examples: Iterable[Example]) -> Iterable[Rendered]:
        from ._render import render

        return render(self.options, examples)

    def base_model(self) -> ModelRef:
        from ._models import model_facts

        name = self.options.base_deployment or self.options.base_model
        return ModelRef("remote", name, meta=model_facts(self.options))

    def identity(self, model: ModelRef, run: Run) -> dict[str, Any]:
        """Return what decides an answer: the model and its provider; not its shutdown date, nor the request rate."""
        from ._client import base_url

        o = self.options
        return {
            "version": 1,  # of what the requests contain
            "model": model.uri,
            "job": model.meta.get("job"),
            "dialect": o.dialect,
            "provider": base_url(o) or f"{o.dialect} {run.mark if model.meta.get('job') else ''}".strip(),
        }

    def train(self, task: Task, run: Run) -> ModelRef:
        from ._train import train

        return train(self.options, task, run)

    def load(self, model: ModelRef, run: Run) -> AbstractContextManager[Session]:
        from ._session import open_session

        return open_session(self.options, model, run)

    def cancel(self, run: MeasuredRun, running: bool) -> Cancelled:
        from ._cancel import cancel

        return cancel(self.options, run, running)

    @property
    def length_limit(self) -> LengthLimit:
        return LengthLimit(self.options.example_limit, hint="name a model with a longer limit")

    @property
    def eval_batch_size(self) -> int:
        return 1  # each answer is saved as it arrives


@hookimpl
def ftkit_backends() -> list[type[Backend]]:
    return [OpenAIManaged]


@hookimpl
def ftkit_report_sections(runs: list[MeasuredRun]) -> list[Section]:
    from ._report import sections

    return sections(runs)


@hookimpl
def ftkit_run_finished(run: Run) -> None:
    from ._local import stop

    stop(run)


@hookimpl
def ftkit_run_failed(run: Run) -> None:
    from ._local import stop

    stop(run)
