"""`model.generate` for a batch, without wasted work.

Prompts are read without padding, and the beginning that they share is read once. The cache is not copied for each
token. Rows that have ended leave the batch.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.generation import GenerateDecoderOnlyOutput

from ._prefix import shared_prefix
from ._stop import StopStrings

Part = TypeVar("Part")
Result = TypeVar("Result")

_NEAR = 16  # tokens by which prompts of one group may differ, or a twentieth of their length
_STEP = 16  # tokens between two looks for finished rows; the cache grows by as many
# transformers 5.24 renamed the argument of `generate`.
_CACHE = "cache" if "cache" in {f.name for f in dataclasses.fields(GenerateDecoderOnlyOutput)} else "past_key_values"


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, (B, heads, T, head size), in buffers with free space for further tokens.

    transformers' own layer copies all of them for each new token: half of a batch's time in a profile on a CPU.
    """

    _buffers: tuple[torch.Tensor, torch.Tensor] | None = None  # `keys` and `values` are views of their beginning

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values, (B, heads, new, head size), of new tokens; return those of all tokens."""
        new = (key_states, value_states)
        have = self.get_seq_length()
        need = have + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._buffers is None or self._buffers[0].shape[-2] < need:
            buffers = tuple(n.new_empty((*n.shape[:-2], need + _STEP, n.shape[-1])) for n in new)
            if have:
                buffers[0][..., :have, :], buffers[1][..., :have, :] = self.keys, self.values
            self._buffers = (buffers[0], buffers[1])
        for buffer, n in zip(self._buffers, new, strict=True):
            buffer[..., have:need, :] = n
        self.keys, self.values = (buffer[..., :need, :] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._buffers = None

    def repeat(self, other: DynamicLayer, rows: int) -> None:
        """Fill the empty layer with the one row of another, for each of its own `rows`."""
        self.update(*(part.expand(rows, -1, -1, -1) for part in (other.keys, other.values)))

    def take(self, rows: int, width: int, chosen: Sequence[int], other: DynamicLayer) -> None:
        """Copy the keys and values of another layer, whose rows are those `chosen` of `rows`, to the end of `width`.

        The first call makes the layer, (rows, heads, width, head size), of zeros.
        """
        if not self.is_initialized:
            self.lazy_initialization(other.keys, other.values)
            made = tuple(v.new_zeros((rows, v.shape[1], width + _STEP, v.shape[3])) for v in (other.keys, other.values))
            self._buffers = (made[0], made[1])
            self.keys, self.values = (buffer[..., :width, :] for buffer in self._buffers)
        for ours, theirs in ((self.keys, other.keys), (self.values, other.values)):
            ours[list(chosen), :, width - theirs.shape[2] :] = theirs


class StopFlag(StoppingCriteria):  # type: ignore[misc]
    """Ends a running generation once its `event` is set, from another thread: no thread reads the result any more.

    `on_tokens` is called with the new tokens of the first row after each of them.
    """

    def __init__(self, on_tokens: Callable[[list[int]], None] | None = None) -> None:
        self.event = threading.Event()
        self.on_tokens = on_tokens
        self.width = 0  # tokens of the prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        if self.on_tokens is not None:
            self.on_tokens(input_ids[0, self.width :].tolist())
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


@torch.no_grad()
def decode(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, new_tokens: int, ends: Sequence[int],
    stop: StopFlag, stops: StopStrings | None = None, **arguments: Any,
) -> list[list[int]]:  # fmt: skip
    """Return the new tokens of each row: up to its first end token and a few beyond, or `new_tokens` of them.

    `ids` and `mask` are left-padded, (B, T). `ends` are the ids of end tokens. A row also ends with one of the
    `stops`. `arguments` are those of `model.generate`. Rows that have ended leave the batch.
    """
    width = stop.width = ids.shape[1]
    criteria = StoppingCriteriaList([stop, *([stops.criteria(width)] if stops else [])])
    cache = _cache(model)
    step = new_tokens if cache is None else _STEP
    rows = list(range(len(ids)))  # the rows of the given batch that are still in it
    generated: list[list[int]] = [[] for _ in rows]
    same = not arguments.get("do_sample") and "repetition_penalty" not in arguments  # whatever the padding
    if cache is not None and same and ids.device.type == "cpu" and (plan := _plan(ids, mask)):
        ids, mask = _first_tokens(model, ids, mask, plan, cache, eos_token_id=list(ends), **arguments)
        generated = ids[:, width:].tolist()
    while ids.shape[1] < width + new_tokens:
        ids = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=min(step, width + new_tokens - ids.shape[1]),
            eos_token_id=list(ends),
            stopping_criteria=criteria,
            **{_CACHE: cache},
            **arguments,
        )  # (rows, T + new)
        for row, tokens in zip(rows, ids[:, width:].tolist(), strict=True):
            generated[row] = tokens
        unfinished = [
            i
            for i, row in enumerate(rows)
            if not set(ends).intersection(generated[row]) and not (stops and stops.cut(generated[row]))
        ]
        if not unfinished or ids.shape[1] == width + new_tokens or stop.event.is_set():
            break
        mask = torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
        if len(unfinished) < len(rows):
            chosen = torch.tensor(unfinished, device=ids.device)
            cache.batch_select_indices(chosen)
            ids, mask, rows = ids[chosen], mask[chosen], [rows[i] for i in unfinished]
    return generated


class _Plan(NamedTuple):
    """How the prompts of a batch are read."""

    prefix: int  # tokens at the beginning of all prompts that are the same, and are read once
    groups: list[list[int]]  # rows that are read together, those with the longest prompt first


def _plan(ids: torch.Tensor, mask: torch.Tensor) -> _Plan | None:
    """Plan to read prompts, left-padded (B, T), in groups of similar length; None where this saves less than a tenth."""
    lengths = mask.sum(1).tolist()
    prompts = [row[len(row) - length :] for row, length in zip(ids.tolist(), lengths, strict=True)]
    prefix = shared_prefix(prompts, min(lengths) - 1)  # the last token of a prompt gives the first of its answer
    groups: list[list[int]] = []
    longest = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if not groups or longest - lengths[row] > max(_NEAR, longest // 20):
            groups.append([])
            longest = lengths[row]
        groups[-1].append(row)
    computed = prefix + sum(len(group) * (lengths[group[0]] - prefix) for group in groups)
    return _Plan(prefix, groups) if computed < 0.9 * ids.numel() else None


def _first_tokens(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, plan: _Plan, cache: Any, **arguments: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read the prompts, left-padded (B, T), as planned into the empty cache.

    Returns the prompts with the first new token of each, and their mask, both (B, T + 1). The padding of a prompt now
    lies between the shared prefix and its other tokens, as in the cache.
    """
    rows, width = ids.shape
    lengths = mask.sum(1).tolist()
    read, prefix = _cache(model), plan.prefix
    if prefix:
        common = ids[:1, width - lengths[0] :][:, :prefix]
        model.generate(
            input_ids=common, attention_mask=torch.ones_like(common), max_new_tokens=1, **{_CACHE: read}, **arguments
        )
    ids, mask = ids.clone(), mask.clone()
    first = ids.new_empty((rows, 1))
    for group in plan.groups:
        longest = max(1, lengths[group[0]])  # an empty prompt is one token of padding
        for row in group:
            begin, rest = width - longest, width - lengths[row] + prefix
            for part in (ids, mask):
                part[row, begin : begin + prefix] = part[row, rest - prefix : rest].clone()
            mask[row, begin + prefix : rest] = 0
        own = _cache(model)
        if prefix:
            for layer, other in zip(own.layers, read.layers, strict=True):
                layer.repeat(other, len(group))
        prompt, shown = (part[group, width - longest :] for part in (ids, mask))
        found = model.generate(input_ids=prompt, attention_mask=shown, max_new_tokens=1, **{_CACHE: own}, **arguments)
        first[group] = found[:, -1:]
        for layer, other in zip(cache.layers, own.layers, strict=True):
            layer.take(rows, width, group, other)
    return torch.cat([ids, first], dim=1), torch.nn.functional.pad(mask, (0, 1), value=1)


def _cache(model: PreTrainedModel) -> Any:
    """Return an empty cache from which rows can be removed, or None: the model makes its own (sliding windows, say)."""
    if not model._supports_default_dynamic_cache():
        return None
    cache = DynamicCache(config=model.config)
    if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [PreallocatedLayer() for _ in cache.layers]
    return cache


def in_parallel(
    work: Callable[[Part], Result], groups: Iterable[Sequence[Part]], stop: Callable[[], None], max_parallel: int = 4
) -> Iterator[tuple[Sequence[Part], list[Result]]]:
    """Yield each group of parts with the results of `work`, in order; at most `max_parallel` parts run at once.

    The parts share PyTorch's threads. The next group starts while the last parts of a group are running. A group of
    one part gets all threads. So the number of threads of a part, and its rounding, depend on its own group alone.
    At the end, `stop` is called, and parts that are still running (after an error, or Ctrl-C) are waited for.
    """
    threads = torch.get_num_threads()
    workers = min(threads, max_parallel)
    running: deque[tuple[Sequence[Part], list[Future[Result]]]] = deque()

    def finished(ahead: int) -> Iterator[tuple[Sequence[Part], list[Result]]]:
        """Yield the oldest groups until at most `ahead` parts are running or waiting."""
        while sum(len(futures) for _, futures in running) > ahead:
            parts, futures = running.popleft()
            yield parts, [future.result() for future in futures]

    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,))
    try:
        for group in groups:
            if workers == 1 or len(group) == 1:
                yield from finished(0)
                yield group, [work(part) for part in group]
            else:
                running.append((group, [pool.submit(work, part) for part in group]))
                yield from finished(max(workers, len(group)))
        yield from finished(0)
    finally:
        stop()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # for threads that start later, too
