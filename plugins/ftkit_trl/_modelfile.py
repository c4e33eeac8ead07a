"""Ollama's Modelfile of a GGUF export: the run's chat template in Ollama's template language, its stops, its settings.

A chat template is a Jinja program, and Ollama's language is Go's. What the template writes around each message is found
by rendering; the Go template is kept only where it writes the same text as the chat template for every chat tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from ftkit.records import GenerationConfig

from ._render import Chat, with_fixed_date

_MARK = "⁂{}⁂"  # stands for a message's text
_Turns = Sequence[tuple[str, str]]
_NO_TEMPLATE = (
    "The run's chat template cannot be written in Ollama's template language: the Modelfile has none, and Ollama then uses "
    "the one in the GGUF file where it knows it. Compare answers before you rely on it."
)


class Parts(NamedTuple):
    """What a chat template writes around each role's text, and in front of an answer; no BOS that the tokenizer adds."""

    default_system: str  # where the chat has no system message
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str


def modelfile(
    tokenizer: PreTrainedTokenizerBase, chat: Chat, generation: GenerationConfig, file: str, context: int | None
) -> tuple[str, list[str]]:
    """Return the text of the Modelfile, and what its reader must know."""
    parts = _parts(tokenizer, chat)
    lines = [f"FROM ./{file}"]
    if parts is not None:
        lines.append(f'TEMPLATE """{_go(parts)}"""')
    ends = [str(tokenizer.convert_ids_to_tokens(i)) for i in sorted(chat.ends)]
    for stop in dict.fromkeys([*ends, *generation.stop]):
        lines.append(f"PARAMETER stop {_quoted(stop)}")
    lines += [f"PARAMETER temperature {generation.temperature:g}", f"PARAMETER num_predict {generation.max_new_tokens}"]
    lines += [f"PARAMETER repeat_penalty {generation.repetition_penalty:g}"]
    if generation.temperature > 0:
        lines += [f"PARAMETER top_p {generation.top_p:g}", f"PARAMETER min_p {generation.min_p:g}"]
        lines += [f"PARAMETER top_k {generation.top_k}"] if generation.top_k else []
    lines += [f"PARAMETER num_ctx {context}"] if context else []
    return "\n".join(lines) + "\n", [] if parts is not None else [_NO_TEMPLATE]


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _parts(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> Parts | None:
    """Find the parts by rendering; None where no such parts write what the template writes."""

    def render(turns: _Turns, asks: bool = True) -> str:
        messages = [{"role": role, "content": text} for role, text in turns]
        template = with_fixed_date(str(tokenizer.get_chat_template()), chat.date)
        return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=asks))  # fmt: skip

    one, two, reply, rule = (_MARK.format(name) for name in ("one", "two", "reply", "rule"))
    try:
        asked, plain = render([("user", one)]), render([("user", one)], asks=False)
        long = render([("user", one), ("assistant", reply), ("user", two)])
        answer = asked[len(plain) :] if asked.startswith(plain) else ""
        head, tail = plain.split(one)
        between = long.split(one)[1].split(two)[0]  # user's end, assistant's start, text, its end, user's start
        before_reply, after_reply = between.split(reply)
        start_of_two = long.split(two)[1]
        if start_of_two != tail + answer or not before_reply.startswith(tail):
            return None
        # A BOS token that the tokenizer adds by itself must not be in the text: it would be there twice.
        bos = str(tokenizer.bos_token or "")
        start = bos if bos and head.startswith(bos) and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id] else ""
        assistant_start = before_reply[len(tail) :]
        assistant_end = render([("user", one), ("assistant", reply)], asks=False).split(reply)[1]
        user_start = after_reply.removeprefix(assistant_end)
        if not after_reply.startswith(assistant_end) or not head[len(start) :].endswith(user_start):
            return None
        default = head[len(start) : len(head) - len(user_start)]
        system = _system(render, rule, one, start, user_start)
        parts = Parts(default, system, (user_start, tail), (assistant_start, assistant_end), answer)  # fmt: skip
        chats: list[_Turns] = [
            [("user", "a")], [("user", "a"), ("assistant", "b"), ("user", "c")],
            [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e\nf")],
        ]  # fmt: skip
        chats += [[("system", "s"), *turns] for turns in chats] if system != ("", "") else []
        if any(_written(parts, turns) != render(turns).removeprefix(start) for turns in chats):
            return None
    except Exception:  # whatever a template or the splitting raises: it is not of this form
        return None
    return None if any('"""' in text or "{{" in text for text in _texts(parts)) else parts


def _system(render: object, rule: str, one: str, start: str, user_start: str) -> tuple[str, str]:
    """Return what stands around a system message; two empty texts where the template takes none."""
    try:
        text = render([("system", rule), ("user", one)])  # type: ignore[operator]
        before, after = text.split(rule)
    except Exception:
        return "", ""
    end = after.split(one)[0]
    if not before.startswith(start) or not end.endswith(user_start):
        return "", ""
    return before[len(start) :], end[: len(end) - len(user_start)]


def _texts(parts: Parts) -> list[str]:
    return [text for part in parts for text in ([part] if isinstance(part, str) else part)]


def _written(parts: Parts, turns: _Turns) -> str:
    """Return what the Go template writes for a chat."""
    system = [text for role, text in turns if role == "system"]
    text = parts.system[0] + system[0] + parts.system[1] if system else parts.default_system
    for role, content in turns:
        if role != "system":
            before, after = parts.user if role == "user" else parts.assistant
            text += before + content + after
    return text + parts.answer


def _go(parts: Parts) -> str:
    """Return the template in Go's language: one line of commands, since their white space would be written too."""
    system = "{{ if .System }}" + "{{ .System }}".join(parts.system) + "{{ else }}" + parts.default_system + "{{ end }}"
    user, assistant = ("{{ .Content }}".join(pair) for pair in (parts.user, parts.assistant))
    turns = '{{ range .Messages }}{{ if eq .Role "user" }}' + user + '{{ else if eq .Role "assistant" }}' + assistant
    return f"{system}{turns}{{{{ end }}}}{{{{ end }}}}{parts.answer}"
