"""Which questions the probe asks: chosen by the hash of their text, so that every run asks the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from ftkit.records import Example


def fixed_sample(examples: Sequence[Example], n: int) -> tuple[Example, ...]:
    """Return the first `n` in the order of their input's hash: 50 are a part of 100."""

    def order(example: Example) -> tuple[str, str]:
        return hashlib.sha256(example.input.encode("utf-8", "surrogatepass")).hexdigest(), example.id

    return tuple(sorted(examples, key=order)[:n])


def few_shot(examples: Sequence[Example], train: Sequence[Example], shots: int) -> tuple[Example, ...]:
    """Return `examples` with the same training examples and their worked solutions in front of each question."""
    shown = [f"{e.messages[-1].content} {e.targets[0]}" for e in fixed_sample(train, shots)]
    made = []
    for e in examples:
        *before, question = e.messages
        asked = replace(question, content="\n\n".join([*shown, question.content]))
        made.append(replace(e, messages=(*before, asked)))
    return tuple(made)
