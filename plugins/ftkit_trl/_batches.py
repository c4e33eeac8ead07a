"""Which training examples share a forward pass, and how they are laid out in it.

- padded: random order; each example of a pass is padded to the length of the longest.
- grouped: examples of similar length share a pass, and the passes come in random order.
- packed: random order; the examples of a pass are concatenated in one row, without padding. A step has the same
  examples as with padding, and each example attends to itself alone.

The order is a function of lengths, seed and epoch: a resumed run continues with the same batches, and padding is
counted before training instead of in every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from .options import TrainOptions

_MIN_PAD_SHARE = 0.05  # batches with a smaller share of padding are padded
_POOL = 50  # passes whose examples are sorted together: a larger pool leaves less padding, and is less random


class Order(Sampler[int]):
    """The indices of the examples, epoch by epoch; `batch` consecutive ones share a forward pass.

    `lengths` are in tokens, one per example. `first_batch` is the batch that training began with, where a resumed run
    has another one: the order of the examples stays that of the beginning.
    """

    def __init__(
        self, lengths: Sequence[int], batch: int, seed: int, grouped: bool = False, first_batch: int | None = None
    ) -> None:
        self.lengths, self.batch, self.seed, self.grouped = lengths, batch, seed, grouped
        self.first_batch = first_batch or batch
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
        order = [i for batch in self._first_batches(epoch) for i in batch]
        return [order[i : i + self.batch] for i in range(0, len(order), self.batch)]

    def _first_batches(self, epoch: int) -> list[list[int]]:
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order: list[int] = torch.randperm(len(self.lengths), generator=random).tolist()
        if not self.grouped:
            return [order[i : i + self.first_batch] for i in range(0, len(order), self.first_batch)]
        pool = self.first_batch * _POOL
        by_length: list[int] = []
        for i in range(0, len(order), pool):
            by_length += sorted(order[i : i + pool], key=lambda n: self.lengths[n])
        batches = [by_length[i : i + self.first_batch] for i in range(0, len(by_length), self.first_batch)]
        *whole, last = batches
        shuffled = [whole[i] for i in torch.randperm(len(whole), generator=random).tolist()]
        return [*shuffled, last]  # a short pass must be the last: the Trainer splits the flat order into passes

    def padded_tokens(self, batches: Sequence[Sequence[int]]) -> int:
        """Return the number of tokens of these passes, padding included."""
        return sum(len(b) * max(self.lengths[i] for i in b) for b in batches)

    def pad_share(self, epoch: int = 0) -> float:
        """Return the share of padding (0..1) among the tokens of an epoch whose passes are padded."""
        return 1 - sum(self.lengths) / self.padded_tokens(self.batches(epoch))


class TokenCounter:
    """Counts tokens, and tokens with padding, of the first optimizer steps."""

    def __init__(self, order: Order, passes_per_step: int, packed: bool) -> None:
        self.order, self.passes, self.packed = order, passes_per_step, packed
        self.counts = [(0, 0)]  # after each step

    def after(self, step: int) -> tuple[int, int]:
        """Return (tokens, tokens with padding) of all steps up to this one."""
        while len(self.counts) <= step:
            self._count_epoch((len(self.counts) - 1) // self._steps_per_epoch)
        return self.counts[step]

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(math.ceil(len(self.order) / self.order.batch) / self.passes)

    def _count_epoch(self, epoch: int) -> None:
        batches = self.order.batches(epoch)
        tokens, with_padding = self.counts[-1]
        for i in range(0, len(batches), self.passes):
            step = batches[i : i + self.passes]
            without_padding = sum(self.order.lengths[n] for b in step for n in b)
            tokens += without_padding
            with_padding += without_padding if self.packed else self.order.padded_tokens(step)
            self.counts.append((tokens, with_padding))


@dataclass(frozen=True)
class Layout:
    """The layout that was chosen (padded, grouped or packed), why, and its share of padding in an epoch (0..1)."""

    name: str
    why: str
    pad_share: float


def choose_layout(
    options: TrainOptions, lengths: Sequence[int], seed: int, obstacle: str | None, batch: int | None = None
) -> Layout:
    """Choose the layout from the lengths (in tokens); `obstacle` says why this model cannot be packed, or is None.

    `batch` is the number of examples of a forward pass at the beginning of training, where a resumed run has another.

    What the recipe sets is done, except that grouping replaces packing where packing is not possible. With "auto",
    random passes are padded where less than 5 % of their tokens would be padding; otherwise they are packed, where
    the model allows it; otherwise they are grouped, where that halves the padding.
    """
    random, sorted_ = (Order(lengths, batch or options.micro_batch_size, seed, grouped) for grouped in (False, True))
    share, grouped_share = random.pad_share(), sorted_.pad_share()
    padding = f"{share:.0%} of the tokens in random batches would be padding"
    if options.sample_packing is True and obstacle is None:
        return Layout("packed", "the recipe asks for it", 0.0)
    if options.sample_packing is True:
        return Layout("grouped", f"the recipe asks for packing, which is not possible: {obstacle}", grouped_share)
    if options.group_by_length is True:
        return Layout("grouped", "the recipe asks for it", grouped_share)
    if share < _MIN_PAD_SHARE:
        return Layout("padded", f"only {padding}", share)
    if options.sample_packing == "auto" and obstacle is None:
        return Layout("packed", padding, 0.0)
    if options.group_by_length == "auto" and grouped_share <= share / 2:
        return Layout("grouped", padding + (f"; {obstacle}" if obstacle else ""), grouped_share)
    return Layout("padded", padding + (f"; {obstacle}" if obstacle else ""), share)
