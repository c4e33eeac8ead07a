"""Which training examples share a forward pass, and how they are laid out in it.

- padded: random order; each example of a pass is filled up to the longest.
- grouped: examples of like length share a pass, and the passes come in random order.
- packed: random order; the examples of a pass stand one behind the other in one row, without padding. The
  same examples make up a step as when padded, and each sees itself alone: only the arithmetic is laid out anew.

The order is a function of lengths, seed and epoch, so that a resumed run goes on with the same batches,
and padding is counted beforehand instead of in every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Sampler

if TYPE_CHECKING:
    from . import TrainOptions

_PAYS = 0.05  # share of padding from which something is done about it
_POOL = 50  # passes whose examples are sorted together: larger is less padding, and less random


class Order(Sampler[int]):
    """The indices of the examples, epoch by epoch; consecutive `batch` of them share a forward pass."""

    def __init__(self, lengths: Sequence[int], batch: int, seed: int, grouped: bool = False) -> None:
        self.lengths, self.batch, self.seed, self.grouped = lengths, batch, seed, grouped
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        for batch in self.batches(self.epoch):
            yield from batch

    def batches(self, epoch: int) -> list[list[int]]:
        """Return the forward passes of an epoch as lists of indices; the last may be short."""
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order: list[int] = torch.randperm(len(self.lengths), generator=random).tolist()
        if not self.grouped:
            return [order[i : i + self.batch] for i in range(0, len(order), self.batch)]
        pool = self.batch * _POOL
        by_length: list[int] = []
        for i in range(0, len(order), pool):
            by_length += sorted(order[i : i + pool], key=lambda n: self.lengths[n])
        batches = [by_length[i : i + self.batch] for i in range(0, len(by_length), self.batch)]
        *whole, last = batches
        shuffled = [whole[i] for i in torch.randperm(len(whole), generator=random).tolist()]
        return [*shuffled, last]  # a short pass must be the last: passes are cut from the flat order

    def slots(self, batches: Sequence[Sequence[int]]) -> int:
        """Return the tokens of these passes, padding included."""
        return sum(len(b) * max(self.lengths[i] for i in b) for b in batches)

    def pad_share(self, epoch: int = 0) -> float:
        """Return the share of padding among the tokens of an epoch, were its passes padded."""
        return 1 - sum(self.lengths) / self.slots(self.batches(epoch))


class Counter:
    """Tokens and token slots (padding included) of the first so many optimizer steps."""

    def __init__(self, order: Order, passes_per_step: int, packed: bool) -> None:
        self.order, self.passes, self.packed = order, passes_per_step, packed
        self.counts = [(0, 0)]  # after each step

    def after(self, step: int) -> tuple[int, int]:
        while len(self.counts) <= step:
            self._count_epoch((len(self.counts) - 1) // self._steps_per_epoch)
        return self.counts[step]

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(math.ceil(len(self.order) / self.order.batch) / self.passes)

    def _count_epoch(self, epoch: int) -> None:
        batches = self.order.batches(epoch)
        tokens, slots = self.counts[-1]
        for i in range(0, len(batches), self.passes):
            step = batches[i : i + self.passes]
            without_padding = sum(self.order.lengths[n] for b in step for n in b)
            tokens += without_padding
            slots += without_padding if self.packed else self.order.slots(step)
            self.counts.append((tokens, slots))


@dataclass(frozen=True)
class Layout:
    """What was chosen (padded, grouped or packed), why, and the share of padding in an epoch of it."""

    name: str
    why: str
    pad_share: float


def choose(options: TrainOptions, lengths: Sequence[int], seed: int, obstacle: str | None) -> Layout:
    """Decide the layout from the lengths (in tokens); `obstacle` says why this model cannot be packed, if so.

    What the recipe asks for is done; where packing is not possible, grouping is the next best. Left to "auto":
    where random passes would hold less than 5 % padding, they are padded; else packed, where the model keeps
    neighbours apart; else grouped, where that halves the padding.
    """
    random, sorted_ = (Order(lengths, options.micro_batch_size, seed, grouped) for grouped in (False, True))
    waste, grouped_waste = random.pad_share(), sorted_.pad_share()
    padding = f"{waste:.0%} of the tokens in random batches would be padding"
    if options.sample_packing is True and obstacle is None:
        return Layout("packed", "the recipe asks for it", 0.0)
    if options.sample_packing is True:
        return Layout("grouped", f"the recipe asks for packing, which is not possible: {obstacle}", grouped_waste)
    if options.group_by_length is True:
        return Layout("grouped", "the recipe asks for it", grouped_waste)
    if waste < _PAYS:
        return Layout("padded", f"only {padding}", waste)
    if options.sample_packing == "auto" and obstacle is None:
        return Layout("packed", padding, 0.0)
    if options.group_by_length == "auto" and grouped_waste <= waste / 2:
        return Layout("grouped", padding + (f"; {obstacle}" if obstacle else ""), grouped_waste)
    return Layout("padded", padding + (f"; {obstacle}" if obstacle else ""), waste)
