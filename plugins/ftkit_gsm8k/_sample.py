"""The questions of the probe: chosen by the hash of their text, so that every run has the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from ftkit.records import Example


def fixed_sample(examples: Sequence[Example], n: int) -> tuple[Example, ...]:
    """Return the first `n` in the order of their input's hash: a sample of 50 is a part of the sample of 100."""

    def order(example: Example) -> tuple[str, str]:
        return hashlib.sha256(example.input.encode("utf-8", "surrogatepass")).hexdigest(), example.id

    return tuple(sorted(examples, key=order)[:n])


def few_shot(examples: Sequence[Example], train: Sequence[Example], shots: int) -> tuple[Example, ...]:
    """Return `examples` with the same training examples and their worked solutions in front of each question.

    An instruction that begins all prompts stays at the top, once.
    """
    shown = fixed_sample(train, shots)
    prompts = [e.messages[-1].content for e in (*examples, *train)]
    first, last = min(prompts), max(prompts)  # a beginning that these two share, all share
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    start = first.rfind("\n\n", 0, same) + 2 if "\n\n" in first[:same] else 0
    worked = [f"{e.messages[-1].content[start:]} {e.targets[0]}" for e in shown]
    made = []
    for e in examples:
        *before, question = e.messages
        prompt = question.content[:start] + "\n\n".join([*worked, question.content[start:]])
        made.append(replace(e, messages=(*before, replace(question, content=prompt))))
    return tuple(made)
