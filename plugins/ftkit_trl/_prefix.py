"""The shared prefix: the tokens with which several prompts begin, where they are made from one template."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, takewhile

SHORTEST = 16  # tokens of a prefix that saves more than its keys and values cost to copy, for each prompt and layer


def shared_prefix(rows: Sequence[list[int]], limit: int) -> int:
    """Return how many tokens, `limit` at most, all rows begin with; 0 for a single row, and for a short prefix."""
    if len(rows) < 2 or limit < SHORTEST:
        return 0
    columns = islice(zip(*rows, strict=False), limit)
    length = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, columns))
    return length if length >= SHORTEST else 0
