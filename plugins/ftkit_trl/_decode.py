"""`model.generate` for a batch, without the work that nobody reads: the cache's copying, and rows that have ended."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicCache, DynamicLayer

Part = TypeVar("Part")
Answer = TypeVar("Answer")

_STRETCH = 16  # tokens until it is looked again which rows have ended; the cache grows by as many, too


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, (B, heads, T, head size), with room behind them.

    transformers' own layer copies all of them for each new token: half of a batch's time in a profile on a CPU.
    """

    _room: tuple[torch.Tensor, torch.Tensor] | None = None  # what `keys` and `values` are the beginning of

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        new = (key_states, value_states)
        have = self.get_seq_length()
        need = have + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._room is None or self._room[0].shape[-2] < need:
            room = tuple(n.new_empty((*n.shape[:-2], need + _STRETCH, n.shape[-1])) for n in new)
            if have:
                room[0][..., :have, :], room[1][..., :have, :] = self.keys, self.values
            self._room = (room[0], room[1])
        for kept, n in zip(self._room, new, strict=True):
            kept[..., have:need, :] = n
        self.keys, self.values = (kept[..., :need, :] for kept in self._room)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._room = None


class Stopped(StoppingCriteria):  # type: ignore[misc]
    """Ends a generation whose answers nobody waits for any more."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


@torch.inference_mode()
def decode(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, new_tokens: int, ends: Sequence[int],
    stopped: Stopped, **arguments: Any,
) -> list[list[int]]:  # fmt: skip
    """Return the new tokens of each row of `ids`, left-padded (B, T): up to its end, if it has one, or a few beyond.

    `arguments` are those of `model.generate`. Rows that have ended leave the batch.
    """
    width = ids.shape[1]
    cache = _cache(model)
    stretch = new_tokens if cache is None else _STRETCH
    rows = list(range(len(ids)))  # of the batch that was asked for, those still in it
    answers: list[list[int]] = [[] for _ in rows]
    while True:
        ids = model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=min(stretch, width + new_tokens - ids.shape[1]),
            eos_token_id=list(ends),
            stopping_criteria=StoppingCriteriaList([stopped]),
            **arguments,
        )  # (rows, T + new)
        for row, tokens in zip(rows, ids[:, width:].tolist(), strict=True):
            answers[row] = tokens
        going = [i for i, row in enumerate(rows) if not set(ends).intersection(answers[row])]
        if not going or ids.shape[1] == width + new_tokens or stopped.event.is_set():
            return answers
        mask = torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
        if len(going) < len(rows):
            chosen = torch.tensor(going, device=ids.device)
            cache.batch_select_indices(chosen)
            ids, mask, rows = ids[chosen], mask[chosen], [rows[i] for i in going]


def _cache(model: PreTrainedModel) -> Any:
    """Return an empty cache whose rows can be chosen among, or None: the model makes its own (sliding windows, say)."""
    if not model._supports_default_dynamic_cache():
        return None
    cache = DynamicCache(config=model.config)
    if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [RoomyLayer() for _ in cache.layers]
    return cache


def side_by_side(
    work: Callable[[Part], Answer], groups: Iterable[Sequence[Part]], stop: Callable[[], None], most: int = 4
) -> Iterator[tuple[Sequence[Part], list[Answer]]]:
    """Yield each group of parts with what `work` makes of them, in order; at most `most` parts are at work at once.

    They share PyTorch's threads; a group ahead is begun while the last one ends. A group of one part has all threads
    to itself. So the threads that a part computes with (and the rounding) hang on its own group alone. `stop` is
    called in the end, and what is still at work then (after an error, or Ctrl-C) is waited for.
    """
    threads = torch.get_num_threads()
    workers = min(threads, most)
    begun: deque[tuple[Sequence[Part], list[Future[Answer]]]] = deque()

    def ended(ahead: int) -> Iterator[tuple[Sequence[Part], list[Answer]]]:
        while sum(len(asked) for _, asked in begun) > ahead:
            parts, asked = begun.popleft()
            yield parts, [future.result() for future in asked]

    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,))
    try:
        for group in groups:
            if workers == 1 or len(group) == 1:
                yield from ended(0)
                yield group, [work(part) for part in group]
            else:
                begun.append((group, [pool.submit(work, part) for part in group]))
                yield from ended(max(workers, len(group)))
        yield from ended(0)
    finally:
        stop()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # of threads still to come, too
