"""Plan the batches of a generation: from the whole split, before it starts.

The text that a model in 4-bit or bf16 gives depends on the batch it was made in, so the planned batch is the
unit of resume and of retry.
"""

from __future__ import annotations

from collections.abc import Sequence

from .records import Example


def plan(examples: Sequence[Example], batch_size: int) -> list[list[str]]:
    """Return the batches of a generation as lists of example ids: longest prompts first.

    Examples of like length share a batch, which saves padding; the longest come first, so that a
    batch that does not fit in memory fails at once.
    """
    ordered = sorted(examples, key=lambda e: (-sum(len(m.content) for m in e.messages), e.id))
    return [[e.id for e in ordered[i : i + batch_size]] for i in range(0, len(ordered), batch_size)]
