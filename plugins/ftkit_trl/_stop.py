"""Texts that end an answer (`generation.stop`)."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria

_MARGIN = 8  # tokens in front of the last ones that are decoded with them: a window's first token may lose its space
_BYTES = 4  # tokens that one character takes at most


class StopStrings:
    """Finds the first of several texts in the tokens of an answer.

    The answer is decoded with its special tokens, so that a stop string may name one. Threads may share an object: it
    has a copy of the tokenizer, which is used for decoding only.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> None:
        self.tokenizer, self.stops = copy.deepcopy(tokenizer), stops
        self.window = _MARGIN + _BYTES * max(map(len, stops))
        specials = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special} - {""}
        longest_first = sorted({*specials, *map(str, tokenizer.all_special_tokens)}, key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def cut(self, ids: Sequence[int]) -> tuple[str, int] | None:
        """Return the text in front of the first stop string, and how many tokens it took to write that string.

        None where the answer holds no stop string.
        """
        whole = self._decoded(ids)
        if self._first(whole) is None:
            return None
        low, high = 1, len(ids)  # the fewest tokens that hold a stop string: an earlier one ends with fewer tokens
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._first(self._decoded(ids[:middle])) is not None else (middle + 1, high)
        text = self._decoded(ids[:low])
        return self.special.sub("", text[: self._first(text)]), low

    def ended_by(self, ids: Sequence[int]) -> bool:
        """Return whether the last tokens of an answer hold a stop string."""
        return self._first(self._decoded(ids[-self.window :])) is not None and self.cut(ids) is not None

    def criteria(self, width: int) -> StoppingCriteria:
        """Return the criterion that ends each row whose new tokens, those behind `width`, hold a stop string."""
        return _Criterion(self, width)

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def _first(self, text: str) -> int | None:
        return min((found for stop in self.stops if (found := text.find(stop)) >= 0), default=None)


class _Criterion(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, stops: StopStrings, width: int) -> None:
        self.stops, self.width = stops, width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        ended = [self.stops.ended_by(row) for row in input_ids[:, self.width :].tolist()]
        return torch.tensor(ended, device=input_ids.device)
