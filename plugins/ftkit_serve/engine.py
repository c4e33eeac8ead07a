"""Loaded models: one thread generates, the two base models used last stay in memory, with their adapters.

Each chat request is a batch of its own. A prompt over the model's context fails alone. In 4-bit and bf16 the generated text depends on the batch, and a response must
not depend on the requests that arrive at the same time.
"""

from __future__ import annotations

import contextlib
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ftkit.api import Backend, Session
from ftkit.directory import RunDirectory
from ftkit.errors import FtkitError, InputError
from ftkit.records import Example, GenerationConfig, ModelRef, Prediction

from .errors import model_not_found, stopping
from .models import ServedModel, make_backend
from .runs import RunModel
from .store import Database, Doc

_MAX_LOADED = 2  # base models in memory
TOO_LONG = (  # the error of a prompt that does not fit in the model's context
    "This model's maximum context length is shorter than the prompt and the requested answer. "
    "Shorten the messages or lower max_completion_tokens."
)


@dataclass
class _Loaded:
    """A loaded model. `memory` is the name of the model that it shares memory with: its own, or an earlier one's."""

    context: AbstractContextManager[Session]
    session: Session
    memory: str


class Engine:
    """Generates the answers of batches of examples, in the order of the calls."""

    def __init__(
        self,
        data: Path,
        database: Database,
        models: dict[str, ServedModel],
        runs: Mapping[str, RunModel] = MappingProxyType({}),
    ) -> None:
        """`models` are the base models that can be fine-tuned here, `runs` the models of finished runs."""
        self.data, self.database, self.models, self.runs = data, database, models, runs
        self.pool = ThreadPoolExecutor(1, "model")
        self.loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self.chats: set[Future[list[Prediction]]] = set()  # chat requests without a response yet
        self.stopping = False

    def stop(self) -> None:
        """Cancel what waits, wait for the batch that is generated, and unload the models."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        for name in list(self.loaded):
            self._unload(name)

    def find(self, name: str) -> tuple[ServedModel | None, Doc | None]:
        """Return (entry of the models file, None) for a base model, (entry of its base, object) for a tuned model.

        A model of a finished run is shown like a base model. Raises a 404 ApiError for an unknown name. The entry is None if
        the base model is no longer served.
        """
        if name in self.runs:
            return self.runs[name].entry, None
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

    def load_runs(self) -> None:
        """Load each model of a finished run once. Raises InputError for the first one that cannot be loaded."""
        for name in self.runs:
            try:
                self.pool.submit(self._session, name).result()
            except Exception as error:
                why = f"{error}" if isinstance(error, FtkitError) else f"{type(error).__name__}: {error}"
                raise InputError(f"{self.runs[name].run.dir}: the model {name} cannot be served: {why}") from error

    def submit(self, name: str, batch: Sequence[Example], generation: GenerationConfig) -> Future[list[Prediction]]:
        """Queue one batch; the result is `generation.samples` predictions per example."""
        self.find(name)
        return self.pool.submit(self._generate, name, batch, generation)

    def submit_chat(
        self, name: str, example: Example, generation: GenerationConfig, on_piece: Callable[[str], None] | None = None
    ) -> Future[list[Prediction]]:
        """Queue the prompt of a chat request. Raises a 503 ApiError while the server stops.

        `on_piece` is called with the pieces of the answer as they come; what it raises ends the generation.
        """
        if self.stopping:
            raise stopping()
        if on_piece is None:
            chat = self.submit(name, [example], generation)
        else:
            self.find(name)
            chat = self.pool.submit(self._stream, name, example, generation, on_piece)
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
        return self._answer(self._session(name), batch, generation)

    def _stream(
        self, name: str, example: Example, generation: GenerationConfig, on_piece: Callable[[str], None]
    ) -> list[Prediction]:
        session = self._session(name)
        truncated = session.stats().get("truncated_prompts") or 0
        with contextlib.closing(session.stream(example, generation)) as pieces:
            while True:
                try:
                    piece = next(pieces)
                except StopIteration as end:
                    return [end.value]
                if (session.stats().get("truncated_prompts") or 0) != truncated:
                    return [Prediction(example.id, "", finish_reason="error", error=TOO_LONG)]
                on_piece(piece)

    def _answer(self, session: Session, batch: Sequence[Example], generation: GenerationConfig) -> list[Prediction]:
        """Return the predictions of a batch. A prompt that the session truncated gets the error TOO_LONG.

        A session only counts the prompts that it truncated. A batch with such prompts is halved until each of them is
        alone: the other prompts are answered without them.
        """
        truncated = session.stats().get("truncated_prompts") or 0
        (predictions,) = session.generate([batch], generation)
        if (session.stats().get("truncated_prompts") or 0) == truncated:
            return predictions
        if len(batch) == 1:
            return [Prediction(batch[0].id, "", finish_reason="error", error=TOO_LONG)]
        half = len(batch) // 2
        return [p for part in (batch[:half], batch[half:]) for p in self._answer(session, part, generation)]

    def _session(self, name: str) -> Session:
        if name not in self.loaded:
            backend, model, run = self._backend(name)
            self.loaded[name] = self._beside(backend, model, run) or self._alone(name, backend, model, run)
        self.loaded.move_to_end(name)
        return self.loaded[name].session

    def _beside(self, backend: Backend, model: ModelRef, run: RunDirectory) -> _Loaded | None:
        """Load a model into the memory of one that is loaded, such as an adapter of the same base model."""
        for other in reversed(self.loaded.values()):
            context = backend.load_beside(other.session, model, run)
            if context is not None:
                return _Loaded(context, context.__enter__(), other.memory)
        return None

    def _alone(self, name: str, backend: Backend, model: ModelRef, run: RunDirectory) -> _Loaded:
        memories = list(dict.fromkeys(other.memory for other in reversed(self.loaded.values())))  # the last used first
        for memory in memories[_MAX_LOADED - 1 :]:
            for other in [n for n, loaded in self.loaded.items() if loaded.memory == memory]:
                self._unload(other)
        context = backend.load(model, run)
        return _Loaded(context, context.__enter__(), name)

    def _backend(self, name: str) -> tuple[Backend, ModelRef, RunDirectory]:
        if name in self.runs:
            served = self.runs[name]
            return served.backend, served.ref, served.run
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
            self.loaded.pop(name).context.__exit__(None, None, None)
