"""Messages to tokens: one place decides what the model reads and which tokens it learns.

The prompt is tokenised by itself, as it is when the model generates, so that training and
measuring see the same tokens. Only the answer and its end-of-turn token are learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from ftkit.errors import InputError
from ftkit.records import Example, Message, Rendered

if TYPE_CHECKING:
    from . import TrainOptions


def _text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], options: TrainOptions, prompt: bool) -> str:
    try:
        text = tokenizer.apply_chat_template(
            [m.to_dict() for m in messages],
            tokenize=False,
            add_generation_prompt=prompt,
            strftime_now=lambda _format: options.template_date,  # else the prompt changes from day to day
        )
    except Exception as error:  # a template is a program: it may raise what it likes
        raise InputError(f"the chat template refuses these messages: {error}", "see backend.chat_template") from None
    return str(text)


def prompt_text(tokenizer: PreTrainedTokenizerBase, example: Example, options: TrainOptions) -> str:
    """Return the text that the model continues."""
    return _text(tokenizer, example.messages, options, prompt=True)


def answer_text(tokenizer: PreTrainedTokenizerBase, example: Example, options: TrainOptions) -> str:
    """Return the text that follows the prompt: the first target, and what ends the assistant's turn."""
    prompt = prompt_text(tokenizer, example, options)
    turn = Message("assistant", example.targets[0])
    whole = _text(tokenizer, [*example.messages, turn], options, prompt=False)
    if not whole.startswith(prompt):
        # Some templates put more into the generation prompt than into a past turn (an empty "thinking" part).
        before = _text(tokenizer, example.messages, options, prompt=False)
        if not whole.startswith(before) or example.targets[0] not in whole[len(before) :]:
            raise InputError(
                "the chat template rewrites the prompt once an answer follows it", "see backend.chat_template"
            )
        rest = whole[len(before) :]
        return rest[rest.index(example.targets[0]) :]
    return whole[len(prompt) :]


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return token ids; the template has already written the special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def cut_middle(ids: list[int], limit: int) -> list[int]:
    """Return at most `limit` ids, leaving out the middle: a prompt's frame is at its two ends."""
    if len(ids) <= limit:
        return ids
    head = limit // 2
    return ids[:head] + ids[len(ids) - (limit - head) :]


def render(tokenizer: PreTrainedTokenizerBase, example: Example, options: TrainOptions) -> Rendered:
    """Return one training example: prompt tokens (not learned), then answer tokens (learned)."""
    prompt = encode(tokenizer, prompt_text(tokenizer, example, options))
    answer = encode(tokenizer, answer_text(tokenizer, example, options))
    kept_answer = answer[: options.sequence_len - 1]
    kept_prompt = cut_middle(prompt, options.sequence_len - len(kept_answer))
    ids = kept_prompt + kept_answer
    return Rendered(
        example_id=example.id,
        text=tokenizer.decode(ids),
        ids=tuple(ids),
        tokens=tuple(tokenizer.convert_ids_to_tokens(ids)),
        learned=(False,) * len(kept_prompt) + (True,) * len(kept_answer),
        n_prompt=len(kept_prompt),
        truncated=(len(prompt) - len(kept_prompt), len(answer) - len(kept_answer)),
    )


def end_ids(tokenizer: PreTrainedTokenizerBase, options: TrainOptions) -> set[int]:
    """Return the tokens that end an answer: end of sequence, and what the template puts after a turn."""
    ends = {tokenizer.eos_token_id} - {None}
    probe = Example("probe", (Message("user", "a"),), ("b",))
    specials = set(tokenizer.all_special_ids)
    ends |= {i for i in encode(tokenizer, answer_text(tokenizer, probe, options)) if i in specials} - {
        tokenizer.bos_token_id
    }
    return ends
