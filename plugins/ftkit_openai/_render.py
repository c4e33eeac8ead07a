"""Training examples as the model sees them: by OpenAI's tokenizer, or by the local server's own backend."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ftkit.api import Backend
from ftkit.errors import InputError
from ftkit.plugins import installed_plugins
from ftkit.records import Example, Rendered

from ._rows import chats
from ._tokens import encoding

if TYPE_CHECKING:
    from .options import ManagedOptions


def render(o: ManagedOptions, examples: Iterable[Example]) -> Iterable[Rendered]:
    """Yield examples as tokens. Raises NotImplementedError where the provider's tokenizer is not available."""
    if o.dialect == "local" and o.base_url is None:
        backend = _local_backend(o.base_model)
        if backend is not None:
            return backend.render(examples)
    found = None if o.dialect in ("local", "nebius") else encoding(o.base_model)
    if found is None:
        raise NotImplementedError(f"the tokenizer of {o.base_model} is not on this machine")
    return _render_chats(found, o.max_example_tokens, examples)


def _local_backend(model: str) -> Backend | None:
    """Return the backend that the run's own server trains `model` with; None if it does not serve `model`.

    `ftkit serve` runs as a child process: this plugin does not import the server.
    """
    line = [sys.executable, "-m", "ftkit", "serve", "--print-models"]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"ftkit serve --print-models failed: {done.stderr.strip()}")
    entry = json.loads(done.stdout).get(model)
    if entry is None:
        return None
    options = dict(entry["backend"])
    cls = installed_plugins().resolve("backend", options.pop("plugin"))
    backend: Backend = cls(cls.Options.model_validate(options))
    return backend


def _render_chats(encoding: Any, limit: int, examples: Iterable[Example]) -> Iterator[Rendered]:
    """Yield chats with the special tokens that OpenAI documents, cut at `limit` tokens.

    The loss mask covers the assistant's messages that are trained on, and their end tokens.
    """
    rows = list(examples)
    for example, chat in zip(rows, chats(rows), strict=True):
        ids: list[int] = []
        loss_mask: list[bool] = []
        text = ""
        n_prompt = 0
        for message in chat["messages"]:
            answer = message["role"] == "assistant" and message.get("weight", 1) != 0
            content = message.get("content") or ""
            if message.get("tool_calls"):
                content += json.dumps(message["tool_calls"], ensure_ascii=False)
            for part, in_loss in (
                (f"<|im_start|>{message['role']}\n", False),
                (f"{content}<|im_end|>", answer),
            ):
                n_prompt = len(ids)
                tokens = encoding.encode(
                    part,
                    allowed_special={"<|im_start|>", "<|im_end|>"} & encoding.special_tokens_set,
                    disallowed_special=(),
                )
                ids += tokens
                loss_mask += [in_loss] * len(tokens)
                text += part
        kept = min(len(ids), limit)
        yield Rendered(
            example.id,
            text,
            tuple(ids[:kept]),
            tuple(encoding.decode_single_token_bytes(i).decode("utf-8", "surrogateescape") for i in ids[:kept]),
            tuple(loss_mask[:kept]),
            min(n_prompt, kept),
            (max(0, n_prompt - kept), len(ids) - kept - max(0, n_prompt - kept)),
        )
