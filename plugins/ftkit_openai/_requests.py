"""Chat requests and their answers, for both APIs: the request body, the predictions, and answers that came late."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ftkit.api import Run
from ftkit.files import Journal, digest
from ftkit.records import Example, GenerationConfig, ModelRef, Prediction

from ._errors import Malformed
from ._lists import mapping_of
from ._prices import Price
from ._results import tokens_of
from ._rows import messages

if TYPE_CHECKING:
    from ._client import Provider


def chat_body(provider: Provider, model: ModelRef, example: Example, generation: GenerationConfig) -> dict[str, Any]:
    """Return the request for one example. It asks for all samples at once, since the prompt is then paid for once."""
    body: dict[str, Any] = {
        "model": model.uri,
        "messages": messages(example),
        provider.dialect.tokens_field: generation.max_new_tokens,
        "temperature": generation.temperature,
    }
    if example.tools:
        body["tools"] = list(example.tools)
    if generation.temperature > 0:
        body |= {"top_p": generation.top_p, "seed": generation.seed}
    if generation.samples > 1:
        body["n"] = generation.samples
    return body


def predictions_of(
    example: Example,
    data: Mapping[str, Any],
    generation: GenerationConfig,
    price: Price | None,
    tuned: bool,
    batch: bool = False,
) -> list[Prediction]:
    """Return the predictions in a chat completion, one per sample. Raises Malformed where it contains no answer at all.

    The first sample carries the request's input tokens and price. Where there are several samples, it carries the output
    tokens of all of them, and the others carry none. Samples that the provider did not return are failed predictions;
    choices beyond the requested number are left out.
    """
    choices = data.get("choices") if isinstance(data, Mapping) else None
    if not isinstance(choices, list) or not any(_message_in(choice) is not None for choice in choices):
        raise Malformed(f"{json.dumps(data)[:200]} contains no answer")
    usage = mapping_of(data.get("usage"))
    tokens_in, tokens_out = tokens_of(usage.get("prompt_tokens")), tokens_of(usage.get("completion_tokens"))
    usd = None
    if price is not None and tokens_in is not None and tokens_out is not None:
        usd = round(price.answer(tokens_in, tokens_out, tuned, batch), 9)
    missing = f"the provider returned {len(choices)} of {generation.samples} requested choices"
    predictions = []
    for sample in range(generation.samples):
        text, finish, error = _read(choices[sample]) if sample < len(choices) else ("", "error", missing)
        first = sample == 0
        predictions.append(
            Prediction(
                example.id,
                text,
                sample,
                finish,
                tokens_in if first else None,
                (tokens_out if first else None) if generation.samples > 1 else tokens_out,
                error=error,
                usd=usd if first else None,
            )
        )
    return predictions


def _message_in(choice: Any) -> Mapping[str, Any] | None:
    message = choice.get("message") if isinstance(choice, Mapping) else None
    return message if isinstance(message, Mapping) else None


def _read(choice: Any) -> tuple[str, str, str | None]:
    """Return a choice's text, why it ends, and why it is no answer."""
    message = _message_in(choice)
    if message is None:
        return "", "error", "the provider returned a choice without a message"
    finish = str(choice.get("finish_reason") or "stop")
    if finish == "content_filter":
        return "", "error", "blocked by the provider's content filter"
    text = message.get("content") if message.get("content") is not None else message.get("refusal")
    if not isinstance(text, str):
        return "", "error", "the answer has no text"
    return text.strip(), finish, None


def failed_predictions(example: Example, generation: GenerationConfig, error: str) -> list[Prediction]:
    """Return a failed prediction for each sample of an example."""
    return [Prediction(example.id, "", sample, "error", error=error) for sample in range(generation.samples)]


class LateAnswers:
    """Answers that came after their session had to end. They are paid for; the next session yields them."""

    def __init__(self, run: Run, model: ModelRef, generation: GenerationConfig) -> None:
        name = digest([model.uri, generation.to_dict()])[:16]
        self.journal = Journal(run.scratch("answers") / f"{name}.jsonl")
        self.marker = run.scratch("answers") / f"{name}.answered"
        self.any_answered = self.marker.exists()  # whether a request of this kind was ever answered
        self.kept: dict[str, list[Prediction]] = {}
        for row in self.journal.read():
            self.kept[row["key"]] = [Prediction.from_dict(p) for p in row["predictions"]]

    def note_answer(self) -> None:
        """Note that a request of this kind was answered; later sessions know it too."""
        self.any_answered = True
        self.marker.touch()

    def take(self, batch: Sequence[Example]) -> list[Prediction] | None:
        """Return the answers to a batch that an earlier session saved, and forget them; None where there are none."""
        return self.kept.pop(_key(batch), None) if self.kept else None

    def keep(self, batch: Sequence[Example], predictions: Sequence[Prediction]) -> None:
        """Save the answers to a batch, unless all of them failed."""
        if any(p.error is None for p in predictions):
            self.journal.append({"key": _key(batch), "predictions": [p.to_dict() for p in predictions]})


def _key(batch: Sequence[Example]) -> str:
    return digest([[e.id, messages(e), *([list(e.tools)] if e.tools else [])] for e in batch])
