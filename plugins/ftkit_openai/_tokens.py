"""How many tokens a chat has: by OpenAI's tokenizer where its tables are available, or by a labelled estimate."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_PER_MESSAGE = 3  # tokens around each message
_PER_ROLE = 1  # tokens of the role's name
_PER_NAME = 1
_PER_CHAT = 3  # the tokens that open the answer
_WAIT = 10.0  # seconds that the first download of the tables may take


@dataclass(frozen=True)
class Counter:
    """Counts tokens. `label` says how, for the user; `exact` is False for an estimate."""

    count: Callable[[str], int]
    label: str
    exact: bool

    def chat(self, messages: Iterable[Mapping[str, Any]], tools: Any = None) -> int:
        """Return the number of tokens of a whole chat, counted as OpenAI's cookbook does.

        Each message has 3 tokens and those of its fields, a name one more; the reply has 3. Fields that are no text, and
        the tools, are counted as JSON, which is an estimate.
        """
        return _PER_CHAT + sum(map(self._message, messages)) + (self._field(list(tools)) if tools else 0)

    def _message(self, message: Mapping[str, Any]) -> int:
        fields = {key: value for key, value in message.items() if key not in ("role", "weight") and value is not None}
        return (
            _PER_MESSAGE + _PER_ROLE + sum(map(self._field, fields.values())) + (_PER_NAME if "name" in fields else 0)
        )

    def _field(self, value: Any) -> int:
        return self.count(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _estimate(text: str) -> int:
    """Return an estimate: one token per four bytes. Scripts with more bytes a letter also have more tokens a letter."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // 4)


ESTIMATE = Counter(_estimate, "estimated at 4 bytes a token: the tokenizer's tables are not available", False)


def counter(model: str) -> Counter:
    """Return the counter for a model: OpenAI's tokenizer, or the estimate where it is not available."""
    found = encoding(model)
    if found is None:
        return ESTIMATE
    return Counter(lambda text: len(found.encode_ordinary(text)), f"tiktoken, {found.name}", True)


@functools.cache
def encoding(model: str) -> Any:
    """Return tiktoken's encoding for a model; None where its tables, downloaded on first use, are not available."""
    found: list[Any] = []

    def load() -> None:
        try:
            import tiktoken

            try:
                found.append(tiktoken.encoding_for_model(model))
            except KeyError:
                found.append(tiktoken.get_encoding("o200k_base"))
        except Exception:  # no tiktoken, no network, a proxy's web page instead of tables: use the estimate
            return

    thread = threading.Thread(target=load, daemon=True)  # its download has no time limit
    thread.start()
    thread.join(_WAIT)
    return found[0] if found else None
