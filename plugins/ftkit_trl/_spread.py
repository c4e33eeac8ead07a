"""Generate with several processes: each has the model on its own GPU, and answers whole planned batches.

A batch is answered as one process would answer it, so that the answers do not depend on the number of processes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

from ftkit.api import Run, Session
from ftkit.causes import MEMORY
from ftkit.errors import ProcessFailed
from ftkit.records import Example, GenerationConfig, ModelRef, Prediction

from ._continued import Start
from ._device import visible_gpus
from .options import TrainOptions

if TYPE_CHECKING:
    from . import TrlSftLora

Answers = tuple[list[Prediction], dict[str, Any]]  # of one batch, and what the session's `stats` say after it

_session: Session  # of this process, if it is one of the pool's


class SpreadSession(Session):
    """Answers batches with a pool of processes, in the order in which they end."""

    def __init__(self, pool: ProcessPoolExecutor, options: TrainOptions) -> None:
        self.pool, self.options = pool, options
        self.truncated_prompts = 0
        self.seen: dict[str, Any] = {}

    def generate(
        self, batches: Iterable[Sequence[Example]], generation: GenerationConfig
    ) -> Iterator[list[Prediction]]:
        futures: list[Future[Answers]] = []
        try:
            futures = [self.pool.submit(_answer, list(batch), generation) for batch in batches]
            for future in as_completed(futures):
                predictions, stats = future.result()
                self.truncated_prompts += stats.pop("truncated_prompts")
                stats["peak_memory"] = max(stats["peak_memory"], self.seen.get("peak_memory", 0))
                self.seen |= stats
                yield predictions
        except BrokenProcessPool:
            raise ProcessFailed(
                "a process that generates answers was ended",
                "if no person ended it, the machine probably ran out of memory: lower backend.launch.processes or "
                "backend.eval_batch_size",
                MEMORY.name,
            ) from None
        finally:
            for future in futures:
                future.cancel()

    def loss(self, batch: Sequence[Example]) -> list[float]:
        return self.pool.submit(_loss, list(batch)).result()

    def stats(self) -> dict[str, Any]:
        """Return facts as `TrlSession.stats` does; `peak_memory` is that of the largest process."""
        return {**self.seen, "truncated_prompts": self.truncated_prompts, "usd_per_hour": self.options.usd_per_hour}


@contextlib.contextmanager
def open_spread(backend: TrlSftLora, ref: ModelRef, run: Run, count: int) -> Iterator[SpreadSession]:
    """Load `ref` in `count` processes; they end with the context, and with this process."""
    context = multiprocessing.get_context("spawn")  # a forked process could not start CUDA
    places = context.Queue()
    for place in range(count):
        places.put(place)
    started = (type(backend), backend.options, backend.start, ref, type(run), run.dir, places, visible_gpus(), count)
    pool = ProcessPoolExecutor(count, context, _start, started)
    try:
        yield SpreadSession(pool, backend.options)
    finally:
        pool.shutdown(cancel_futures=True)


# ---------------------------------------------------------------- in a process of the pool


def _start(
    kind: type[TrlSftLora], options: TrainOptions, start: Start | None, ref: ModelRef, run: Any, folder: Any, places: Any,
    gpus: list[str], count: int,
) -> None:  # fmt: skip
    """Load the model on this process's GPU, or with its share of the CPU's cores."""
    global _session
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    place = places.get()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]

    import torch

    from ._generate import TrlSession
    from ._model import load_model, load_tokenizer

    if not gpus:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    backend = kind(options)
    backend.start = start
    _session = TrlSession(load_model(backend, ref, run(folder)).eval(), load_tokenizer(options), options)


def _answer(batch: list[Example], generation: GenerationConfig) -> Answers:
    before = _session.stats()["truncated_prompts"]
    (predictions,) = _session.generate([batch], generation)
    stats = _session.stats()
    return predictions, {**stats, "truncated_prompts": stats["truncated_prompts"] - before}


def _loss(batch: list[Example]) -> list[float]:
    return _session.loss(batch)
