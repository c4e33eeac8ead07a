"""Loaded models that answer: one thread computes, the last two models stay in memory.

A chat request is answered by itself, never together with what happens to arrive beside it: in 4-bit
and bf16, text depends on the batch it is made in, and an answer must not depend on luck.
"""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from ftkit.api import Backend, Session
from ftkit.records import Example, Generation, ModelRef, Prediction
from ftkit.store import RunContext

from .errors import ApiError, model_not_found, stopping
from .models import ServedModel, make_backend
from .store import Doc, Store

_KEPT = 2  # models in memory


class Engine:
    """Answers batches of examples, in the order in which they are asked for."""

    def __init__(self, data: Path, store: Store, models: dict[str, ServedModel]) -> None:
        self.data, self.store, self.models = data, store, models
        self.pool = ThreadPoolExecutor(1, "model")
        self.loaded: OrderedDict[str, tuple[AbstractContextManager[Session], Session]] = OrderedDict()
        self.chats: set[Future[list[Prediction]]] = set()  # those that a client waits for
        self.refusing = False

    def stop(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
        for name in list(self.loaded):
            self._unload(name)

    def find(self, name: str) -> tuple[ServedModel | None, Doc | None]:
        """Return what `name` means: an entry of the models file, or a tuned model and its base's entry."""
        if name in self.models:
            return self.models[name], None
        doc = self.store.get("model", name)
        if doc is None:
            raise model_not_found(name)
        return self.models.get(doc["_base"]), doc

    def most_tokens(self, name: str) -> int:
        """Return how long an answer of the model may be."""
        entry, _ = self.find(name)
        return (entry or ServedModel(backend={})).max_tokens

    def batch_size(self, name: str) -> int:
        """Return how many prompts of a batch job are answered together."""
        return self._backend(name)[0].eval_batch_size

    def ask(self, name: str, batch: Sequence[Example], generation: Generation) -> Future[list[Prediction]]:
        """Return the answers to one batch, when they are there: `generation.samples` per example."""
        self.find(name)
        return self.pool.submit(self._answer, name, batch, generation)

    def chat(self, name: str, example: Example, generation: Generation) -> Future[list[Prediction]]:
        """Return the answer to one prompt that a client waits for. Raises a 503 ApiError when the server stops."""
        if self.refusing:
            raise stopping()
        asked = self.ask(name, [example], generation)
        self.chats.add(asked)
        asked.add_done_callback(self.chats.discard)
        return asked

    def refuse_chats(self) -> None:
        """Cancel every chat that is not being answered yet, and take no other."""
        self.refusing = True
        for asked in list(self.chats):
            asked.cancel()

    def forget(self, model: Doc) -> None:
        """Free a model that was deleted: its memory, and its weights where no checkpoint of the job is left."""

        def work() -> None:
            self._unload(model["id"])
            if not any(other["_job"] == model["_job"] for other in self.store.every("model")):
                shutil.rmtree(self.data / "jobs" / model["_job"] / "train", ignore_errors=True)

        self.pool.submit(work)

    # ---- in the thread

    def _answer(self, name: str, batch: Sequence[Example], generation: Generation) -> list[Prediction]:
        session = self._session(name)
        cut = session.stats().get("truncated_prompts", 0)
        (predictions,) = session.generate([batch], generation)
        if session.stats().get("truncated_prompts", 0) > cut and len(batch) == 1:
            raise ApiError(
                400,
                "This model's maximum context length is shorter than the prompt and the answer asked for. "
                "Shorten the messages or lower max_completion_tokens.",
                "context_length_exceeded",
                "messages",
            )
        return predictions

    def _session(self, name: str) -> Session:
        if name not in self.loaded:
            while len(self.loaded) >= _KEPT:
                self._unload(next(iter(self.loaded)))
            backend, model, run = self._backend(name)
            context = backend.load(model, run)
            self.loaded[name] = (context, context.__enter__())
        self.loaded.move_to_end(name)
        return self.loaded[name][1]

    def _backend(self, name: str) -> tuple[Backend, ModelRef, RunContext]:
        entry, doc = self.find(name)
        if doc is not None:
            run = RunContext.open(self.data / "jobs" / doc["_job"])
            return run.recipe.backend.make(), ModelRef.from_dict(doc["_model"]), run
        assert entry is not None
        backend = make_backend(name, entry.backend)
        directory = self.data / "base"  # a backend gets a run directory; the base model leaves nothing in it
        directory.mkdir(exist_ok=True)
        return backend, backend.base_model(), RunContext(directory)

    def _unload(self, name: str) -> None:
        if name in self.loaded:
            context, _ = self.loaded.pop(name)
            context.__exit__(None, None, None)
