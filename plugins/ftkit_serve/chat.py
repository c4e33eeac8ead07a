"""Chat requests become examples, predictions become chat completions."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from ftkit.records import Example, GenerationConfig, Prediction

from .chats import read_message
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
    temperature = 1.0 if chat.temperature is None else chat.temperature
    top_p = 1.0 if chat.top_p is None else chat.top_p
    if temperature < _GREEDY_BELOW or top_p == 0:
        return GenerationConfig(max_new_tokens=tokens)
    seed = secrets.randbelow(2**32) if chat.seed is None else chat.seed % 2**32
    return GenerationConfig(max_new_tokens=tokens, temperature=temperature, top_p=top_p, seed=seed, samples=chat.n or 1)


def completion(chat: Chat, predictions: Sequence[Prediction]) -> Doc:
    """Return the response body. Raises a 500 ApiError if a prediction failed."""
    if failed := [p for p in predictions if p.error is not None]:
        raise ApiError(500, f"The model failed: {failed[0].error}", "server_error", type="server_error")
    ordered = sorted(predictions, key=lambda p: p.sample)
    if len(ordered) == 1:
        ordered *= chat.n or 1  # greedy: all answers are the same
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


def chunks(body: Doc, include_usage: bool) -> list[str]:
    """Return a completion as the events of a stream: the role, pieces of text and the finish reason of each choice."""
    shared = {key: body[key] for key in ("id", "created", "model", "system_fingerprint")}
    shared["object"] = "chat.completion.chunk"
    if include_usage:
        shared["usage"] = None
    events: list[Any] = []

    def add(index: int, delta: dict[str, Any], finish: str | None = None) -> None:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        events.append({**shared, "choices": [choice]})

    for choice in body["choices"]:
        index, text = choice["index"], choice["message"]["content"]
        add(index, {"role": "assistant", "content": "", "refusal": None})
        for piece in _pieces(text):
            add(index, {"content": piece})
        add(index, {}, choice["finish_reason"])
    if include_usage:
        events.append({**shared, "choices": [], "usage": body["usage"]})
    return [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"]


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
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
