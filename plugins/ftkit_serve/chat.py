"""Chat requests become examples, predictions become chat completions."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from ftkit.records import Example, GenerationConfig, Prediction

from .chats import read_message
from .engine import TOO_LONG
from .errors import ApiError
from .store import Doc, new_id, now
from .wire import Chat

_GREEDY_BELOW = 0.01  # temperature; below it, sampling takes the most likely token anyway, or overflows
_DEFAULT_TOKENS = 256  # limit of an answer if the request has none


def example_of(chat: Chat, id: str) -> Example:
    """Return the prompt. Raises a 400 ApiError for a message that is not plain text."""
    messages = []
    for index, message in enumerate(chat.messages):
        try:
            messages.append(read_message(message, f"messages[{index}]"))
        except ValueError as error:
            raise ApiError(400, str(error), "invalid_value", f"messages.[{index}]") from None
    return Example(id, tuple(messages), ("",), messages[-1].content)


def generation_of(chat: Chat, max_tokens: int) -> GenerationConfig:
    """Return the settings of a request. As at OpenAI, the default is temperature 1 and a new seed for each request.

    Raises a 400 ApiError if the request wants more than `max_tokens`, the model's limit.
    """
    param = "max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens"
    tokens = getattr(chat, param) or min(_DEFAULT_TOKENS, max_tokens)
    if tokens > max_tokens:
        message = f"{param} is too large: {tokens}. This model generates at most {max_tokens} tokens."
        raise ApiError(400, message, "invalid_value", param)
    if is_greedy(chat):
        return GenerationConfig(max_new_tokens=tokens)
    temperature = 1.0 if chat.temperature is None else chat.temperature
    top_p = 1.0 if chat.top_p is None else chat.top_p
    seed = secrets.randbelow(2**32) if chat.seed is None else chat.seed % 2**32
    return GenerationConfig(max_new_tokens=tokens, temperature=temperature, top_p=top_p, seed=seed, samples=chat.n or 1)


def is_greedy(chat: Chat) -> bool:
    """Return whether a request gets the most likely answer, which is the same each time."""
    return chat.top_p == 0 or (chat.temperature is not None and chat.temperature < _GREEDY_BELOW)


def completion(chat: Chat, predictions: Sequence[Prediction]) -> Doc:
    """Return the response body. Raises an ApiError if a prediction failed or is missing: a 400 for a long prompt."""
    if failed := [p for p in predictions if p.error is not None]:
        if failed[0].error == TOO_LONG:
            raise ApiError(400, TOO_LONG, "context_length_exceeded", "messages")
        raise ApiError(500, f"The model failed: {failed[0].error}", "server_error", type="server_error")
    ordered = sorted(predictions, key=lambda p: p.sample)
    wanted = chat.n or 1
    if len(ordered) == 1 and is_greedy(chat):
        ordered *= wanted  # all answers are the same
    if len(ordered) != wanted:
        message = f"The model gave {len(ordered)} of {wanted} answers. Send n=1, once for each answer."
        raise ApiError(400, message, "invalid_value", "n")
    stops = [chat.stop] if isinstance(chat.stop, str) else chat.stop or []
    choices = []
    for index, prediction in enumerate(ordered):
        text, finish = _truncated(prediction.text, stops), prediction.finish_reason
        if text != prediction.text or finish not in ("stop", "length"):
            finish = "stop"
        message = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
        choices.append({"index": index, "message": message, "logprobs": None, "finish_reason": finish})
    prompt, answer = ordered[0].tokens_in or 0, sum(p.tokens_out or 0 for p in ordered)
    return {
        "id": new_id("chatcmpl-"),
        "object": "chat.completion",
        "created": now(),
        "model": chat.model,
        "choices": choices,
        "usage": {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer},
        "system_fingerprint": "fp_ftkit",
    }


def _truncated(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first stop sequence."""
    return text[: min((text.index(stop) for stop in stops if stop and stop in text), default=len(text))]


class Chunks:
    """The events of a stream: the role, pieces of text and the finish reason of each choice."""

    def __init__(self, chat: Chat) -> None:
        self.usage = chat.stream_options is not None and chat.stream_options.include_usage
        self.shared: Doc = {
            "id": new_id("chatcmpl-"),
            "created": now(),
            "model": chat.model,
            "system_fingerprint": "fp_ftkit",
            "object": "chat.completion.chunk",
            **({"usage": None} if self.usage else {}),
        }

    def of(self, body: Doc) -> Iterator[str]:
        """Yield a whole completion as a stream."""
        for choice in body["choices"]:
            yield self.start(choice["index"])
            yield from self.pieces(choice["message"]["content"], choice["index"])
            yield self.end(choice["finish_reason"], choice["index"])
        yield from self.last(body["usage"])

    def start(self, index: int = 0) -> str:
        return self._event(index, {"role": "assistant", "content": "", "refusal": None})

    def pieces(self, text: str, index: int = 0) -> Iterator[str]:
        for piece in _pieces(text):
            yield self._event(index, {"content": piece})

    def end(self, finish: str, index: int = 0) -> str:
        return self._event(index, {}, finish)

    def last(self, usage: Doc) -> Iterator[str]:
        if self.usage:
            yield _event({**self.shared, "choices": [], "usage": usage})
        yield "data: [DONE]\n\n"

    def _event(self, index: int, delta: Doc, finish: str | None = None) -> str:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _event({**self.shared, "choices": [choice]})


def _event(data: Doc) -> str:
    return f"data: {json.dumps(data)}\n\n"


def error_event(error: Exception) -> str:
    """Return the event that ends a stream which cannot continue."""
    failed = ApiError(500, f"The model failed: {error}", "server_error", type="server_error")
    return _event((error if isinstance(error, ApiError) else failed).body)


def comes_in_pieces(chat: Chat) -> bool:
    """Return whether a request can be answered while its answer is generated: one answer, which is not cut afterwards."""
    return bool(chat.stream) and (chat.n or 1) == 1 and not chat.stop


def _pieces(text: str) -> list[str]:
    words = text.split(" ")
    return [word if i == 0 else f" {word}" for i, word in enumerate(words) if word or i]


def key_of(chat: Chat, generation: GenerationConfig) -> str:
    """Return a key: lines of a batch job with the same key (model and settings) may share a batch."""
    return hashlib.sha256(json.dumps([chat.model, generation.to_dict()]).encode()).hexdigest()


def read_chat(body: Any) -> Chat:
    """Return the request of a batch job's line. Raises ValueError that names the invalid field."""
    try:
        return Chat.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        said = "the field is not supported" if first["type"] == "extra_forbidden" else first["msg"]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {said}") from None
