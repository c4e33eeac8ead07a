"""Loaded models: one thread generates, the two models used last stay in memory.

Each chat request is a batch of its own. In 4-bit and bf16 the generated text depends on the batch, and a response must
not depend on the requests that arrive at the same time.
"""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from ftkit.api import Backend, Session
from ftkit.directory import RunDirectory
from ftkit.records import Example, GenerationConfig, ModelRef, Prediction

from .errors import ApiError, model_not_found, stopping
from .models import ServedModel, make_backend
from .store import Database, Doc

_MAX_LOADED = 2  # models in memory


class Engine:
    """Generates the answers of batches of examples, in the order of the calls."""

    def __init__(self, data: Path, database: Database, models: dict[str, ServedModel]) -> None:
        self.data, self.database, self.models = data, database, models
        self.pool = ThreadPoolExecutor(1, "model")
        self.loaded: OrderedDict[str, tuple[AbstractContextManager[Session], Session]] = OrderedDict()
        self.chats: set[Future[list[Prediction]]] = set()  # chat requests without a response yet
        self.stopping = False

    def stop(self) -> None:
        """Cancel what waits, wait for the batch that is generated, and unload the models."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        for name in list(self.loaded):
            self._unload(name)

    def find(self, name: str) -> tuple[ServedModel | None, Doc | None]:
        """Return (entry of the models file, None) for a base model, (entry of its base, object) for a tuned model.

        Raises a 404 ApiError for an unknown name. The entry is None if the base model is no longer served.
        """
        if name in self.models:
            return self.models[name], None
        doc = self.database.get("model", name)
        if doc is None:
            raise model_not_found(name)
        return self.models.get(doc["_base"]), doc

    def max_tokens(self, name: str) -> int:
        """Return the limit of tokens that the model generates for one answer."""
        entry, _ = self.find(name)
        return (entry or ServedModel(backend={})).max_tokens

    def batch_size(self, name: str) -> int:
        """Return the number of prompts in one batch of a batch job."""
        return self._backend(name)[0].eval_batch_size

    def submit(self, name: str, batch: Sequence[Example], generation: GenerationConfig) -> Future[list[Prediction]]:
        """Queue one batch; the result is `generation.samples` predictions per example."""
        self.find(name)
        return self.pool.submit(self._generate, name, batch, generation)

    def submit_chat(self, name: str, example: Example, generation: GenerationConfig) -> Future[list[Prediction]]:
        """Queue the prompt of a chat request. Raises a 503 ApiError while the server stops."""
        if self.stopping:
            raise stopping()
        chat = self.submit(name, [example], generation)
        self.chats.add(chat)
        chat.add_done_callback(self.chats.discard)
        return chat

    def reject_chats(self) -> None:
        """Cancel every chat request whose generation has not started, and reject new ones."""
        self.stopping = True
        for chat in list(self.chats):
            chat.cancel()

    def forget(self, model: Doc) -> None:
        """Unload a deleted model. Delete the job's weights when all models of the job are deleted."""

        def unload() -> None:
            self._unload(model["id"])
            if not any(other["_job"] == model["_job"] for other in self.database.all("model")):
                shutil.rmtree(self.data / "jobs" / model["_job"] / "train", ignore_errors=True)

        self.pool.submit(unload)

    # ---- in the thread that generates

    def _generate(self, name: str, batch: Sequence[Example], generation: GenerationConfig) -> list[Prediction]:
        session = self._session(name)
        truncated = session.stats().get("truncated_prompts", 0)
        (predictions,) = session.generate([batch], generation)
        if session.stats().get("truncated_prompts", 0) > truncated and len(batch) == 1:
            raise ApiError(
                400,
                "This model's maximum context length is shorter than the prompt and the requested answer. "
                "Shorten the messages or lower max_completion_tokens.",
                "context_length_exceeded",
                "messages",
            )
        return predictions

    def _session(self, name: str) -> Session:
        if name not in self.loaded:
            while len(self.loaded) >= _MAX_LOADED:
                self._unload(next(iter(self.loaded)))
            backend, model, run = self._backend(name)
            context = backend.load(model, run)
            self.loaded[name] = (context, context.__enter__())
        self.loaded.move_to_end(name)
        return self.loaded[name][1]

    def _backend(self, name: str) -> tuple[Backend, ModelRef, RunDirectory]:
        entry, doc = self.find(name)
        if doc is not None:
            run = RunDirectory.open(self.data / "jobs" / doc["_job"])
            return run.recipe.backend.make(), ModelRef.from_dict(doc["_model"]), run
        assert entry is not None
        backend = make_backend(name, entry.backend)
        directory = self.data / "base"  # `load` needs a run directory; a base model writes nothing into it
        directory.mkdir(exist_ok=True)
        return backend, backend.base_model(), RunDirectory(directory)

    def _unload(self, name: str) -> None:
        if name in self.loaded:
            context, _ = self.loaded.pop(name)
            context.__exit__(None, None, None)
