"""Messages to tokens: the one place that decides what the model reads, and the loss mask.

The prompt has the tokens that it has for generation, so that training and measuring use the same ones (`_border` says
how the target's are found). The loss mask covers only what follows it: what the template puts in front of a target (an empty thinking part, a channel),
the target, and the token that ends the turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import cached_property
from itertools import groupby, islice
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from ftkit.errors import InputError
from ftkit.records import Example, Finding, Message, Rendered

from ._border import Border, Continued, spanned_finding
from ._chats import (
    Opening,
    Span,
    Template,
    Tools,
    for_template,
    holds_call,
    loss_mask,
    special_in_tools,
    takes_parsed,
    trained_turns,
)
from .options import TrainOptions

_CHUNK = 512  # examples that are rendered and tokenised together
_QUESTION, _ANSWER = "⁂question⁂", "⁂answer⁂"  # the messages that a template is tested with
_OPEN, _CLOSE = "\ue000", "\ue001"  # mark special tokens in a row's own text, which are encoded as plain text
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_LOOK = "try --set backend.chat_template=plain, or write the template to a .jinja file and name it there"


@dataclass(frozen=True)
class _Turn:
    """One example as text: the prompt, and the target with the tokens that end it."""

    prompt: str
    target: str
    spans: tuple[Span, ...] = ()  # earlier assistant turns that are trained on
    trained: bool = True  # whether the target is
    finding: Finding | None = None  # why earlier turns must not be trained on


class Chat:
    """A tokenizer with its chat template: turns examples into prompts, and into training examples.

    `ends` are the ids of the tokens that end a target. `header` is what the template puts between the prompt and a
    target: it is part of the prompt for generation, and in the loss mask, so that a deployed model writes it by
    itself. Raises InputError where training with this template would not match its use.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: TrainOptions) -> None:
        self.tokenizer, self.options = tokenizer, options
        self.date = _date(options.template_date)
        self.border = Border(self._encode)
        self.template = with_fixed_date(str(tokenizer.get_chat_template()), self.date)
        self.blocks = False  # messages of vision models are lists of blocks
        self.probe = (Message("user", _QUESTION),)
        prompt, whole = self._probe()
        before, _, after = whole.partition(_ANSWER)
        stem = _common_start(prompt, before)
        self.cut = prompt[len(stem) :]  # in the generation prompt, but not in a past turn
        self.lead = before[len(stem) :].rstrip(" ") if before[len(stem) :].strip() else ""  # in a past turn only
        if self.cut and not prompt.endswith("<think>\n"):
            raise InputError(
                f"the chat template's generation prompt ends with {prompt[-40:]!r}, but in a conversation an answer "
                f"follows {before[-40:]!r}: the model would be trained on a prompt that it is never given",
                _LOOK,
            )
        # A thinking part that only the generation prompt opens is closed: targets contain no thinking.
        self.header = "\n</think>\n\n" if self.cut else self.lead
        (asked,) = self._encode([prompt])
        self.header_ids = self.border.after([prompt], [asked], [self.header])[0].ids if self.header else []

        added = {i for i, token in tokenizer.added_tokens_decoder.items() if not token.content.isspace()}
        added |= set(tokenizer.all_special_ids)
        closing = [i for i in self._encode([after])[0] if i in added and i != tokenizer.bos_token_id] if after else []
        eos = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self.ends = {*closing, *eos}
        self.closing = [] if closing else eos  # where the template ends no turn, the tokenizer's eos does
        specials = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        longest_first = sorted(filter(str.strip, specials), key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @property
    def dated(self) -> bool:
        """Whether the template puts a date into the prompt."""
        return "strftime_now" in self.template or "date_string" in self.template

    @cached_property
    def vocabulary(self) -> list[str]:
        """The text of each token id: a look-up in this list is many times faster than a call of the tokenizer."""
        tokens: list[str] = self.tokenizer.convert_ids_to_tokens(list(range(len(self.tokenizer))))
        if "ByteLevel" in repr(getattr(getattr(self.tokenizer, "backend_tokenizer", None), "decoder", None)):
            letters = _byte_letters()
            return [_spelt(token, letters) for token in tokens]
        return [_of_byte(token) for token in tokens]

    def prompts(self, examples: Sequence[Example]) -> list[list[int]]:
        """Return the token ids that the model continues, one list per example."""
        texts = [
            text
            for tools, rows in _by_tools(examples)
            for text in self._texts([self._plain(e.messages) for e in rows], prompt=True, tools=tools)
        ]
        return [[*ids, *self.header_ids] for ids in self._encode(texts)]

    def render(self, examples: Iterable[Example]) -> Iterator[Rendered]:
        """Yield training examples: prompt tokens, then target tokens, which are in the loss mask.

        So are the earlier assistant turns of weight 1; a target turn of weight 0 is not. An example that must not be
        trained on carries a finding; where the template refuses it, it has no tokens.
        """
        rows = iter(examples)
        while chunk := list(islice(rows, _CHUNK)):
            turns = self._turns(chunk)
            good = [turn for turn in turns if isinstance(turn, _Turn)]
            asked = self._encode([t.prompt for t in good])
            opened = [[*ids, *self.header_ids] for ids in asked]
            targets = self.border.after([t.prompt + self.header for t in good], opened, [t.target for t in good])
            encoded = zip(asked, targets, good, strict=True)
            rendered = [
                self._rendered(example.id, *next(encoded))
                if isinstance(turn, _Turn)
                else Rendered(example.id, "", (), (), (), 0, finding=turn)
                for example, turn in zip(chunk, turns, strict=True)
            ]
            yield from rendered

    def _rendered(self, name: str, prompt: list[int], continued: Continued, turn: _Turn) -> Rendered:
        target = continued.ids
        while target and not self.closing and target[-1] not in self.ends and self.ends.intersection(target):
            target = target[:-1]  # the line break after the end of a turn is not trained
        whole = [*self.header_ids, *target, *self.closing]
        limit = self.options.sequence_len
        kept = whole[: limit - 1]
        earlier, finding = self._earlier(turn, prompt)
        start, start_mask = (truncate_middle(part, limit - len(kept)) for part in (prompt, earlier))
        ids = start + kept
        mask = start_mask + [turn.trained] * len(kept)
        cut = (len(whole) - len(kept)) * turn.trained
        lost = cut + sum(earlier) - sum(start_mask)  # tokens of what is trained on
        return Rendered(
            example_id=name,
            text=self.tokenizer.decode(ids),
            ids=tuple(ids),
            tokens=tuple([self.vocabulary[i] for i in ids]),
            loss_mask=tuple(mask),
            n_prompt=len(start),
            truncated=(len(prompt) + len(whole) - len(ids) - lost, lost),
            finding=finding
            or self._fault(start, kept, lost, cut)
            or self._cut_prompt(len(start), len(prompt))
            or (spanned_finding(turn.prompt + self.header, turn.target) if continued.spanned else None),
        )

    def _earlier(self, turn: _Turn, prompt: list[int]) -> tuple[list[bool], Finding | None]:
        """Return which tokens of the prompt are in the loss mask, and why they must not be trained on."""
        nothing = [False] * len(prompt)
        if not turn.spans:
            return nothing, turn.finding
        offsets = self._offsets(turn.prompt)
        if len(offsets) != len(prompt):
            return nothing, Finding("error", "the tokens of the prompt cannot be matched with its text, as "
                                    "dataset.train_on: all needs", "set dataset.train_on: last")  # fmt: skip
        mask = loss_mask(turn.spans, prompt, offsets, self.ends)
        return (nothing, mask) if isinstance(mask, Finding) else (mask, None)

    def _fault(self, prompt: list[int], target: list[int], lost: int, cut: int) -> Finding | None:
        """Return why these tokens must not be trained on, or None; of `lost` truncated tokens, `cut` are the target's."""
        bos = self.tokenizer.bos_token_id
        if lost and not self.options.allow_cut_targets:
            return Finding(
                "error",
                "the target does not fit into backend.sequence_len, so its end-of-turn token is truncated"
                if cut
                else "earlier assistant messages that are trained on do not fit into backend.sequence_len",
                "raise backend.sequence_len (`ftkit preview` shows how long examples are), shorten or remove the "
                "row, or train on truncated targets all the same: backend.allow_cut_targets: true",
                "backend.sequence_len",
            )
        if not target:
            return Finding("error", "the loss mask is empty: the target has no tokens", "remove the row")
        if not cut and target[-1] not in self.ends:
            return Finding("error", "the target has no end-of-turn token: the chat template writes none and the "
                           "tokenizer has no eos_token", _LOOK, "backend.chat_template")  # fmt: skip
        if bos is not None and prompt[:2] == [bos, bos]:
            return Finding("error", "BOS is doubled: the chat template writes it twice", _LOOK, "backend.chat_template")
        return None

    def _cut_prompt(self, kept: int, whole: int) -> Finding | None:
        """Return an error where truncation leaves `kept` of `whole` tokens of a prompt, less than half of them."""
        if kept * 2 >= whole or self.options.allow_cut_prompts:
            return None
        return Finding(
            "error",
            "backend.sequence_len leaves less than half of the prompt: the target would be trained on a text that "
            "the model cannot see",
            "raise backend.sequence_len (`ftkit preview` shows how long examples are), shorten or remove the row, or "
            "train on such prompts all the same: backend.allow_cut_prompts: true",
            "backend.sequence_len",
        )

    def _turns(self, examples: Sequence[Example]) -> list[_Turn | Finding]:
        return [turn for tools, rows in _by_tools(examples) for turn in self._turns_with(tools, rows)]

    def _turns_with(self, tools: Tools, examples: Sequence[Example]) -> list[_Turn | Finding]:
        """Return the turns of examples that have the same tools."""
        chats = [self._plain(e.messages) for e in examples]
        targets = [self._plain([e.target_turn])[0] for e in examples]
        try:
            prompts = self._texts(chats, prompt=True, tools=tools)
            wholes = self._texts([[*c, t] for c, t in zip(chats, targets, strict=True)], prompt=False, tools=tools)
        except InputError as error:
            if len(examples) > 1:  # find the example that is refused, and render the others
                return [turn for e in examples for turn in self._turns_with(tools, [e])]
            return [Finding("error", error.message, error.hint, "backend.chat_template")]
        return [
            self._chat_fault(chat, target, tools, prompt) or self._whole_turn(chat, target, tools, prompt, whole)
            for chat, target, prompt, whole in zip(chats, targets, prompts, wholes, strict=True)
        ]

    def _chat_fault(self, chat: list[Message], target: Message, tools: Tools, prompt: str) -> Finding | None:
        found = special_in_tools([*chat, target], tools, self.special)
        return found or self.messages.fault(chat, tools, prompt)

    def _whole_turn(
        self, chat: list[Message], target: Message, tools: Tools, prompt: str, whole: str
    ) -> _Turn | Finding:
        turn = self._turn(prompt, whole, target.content)
        if isinstance(turn, Finding):
            return turn
        for what, written in (
            ("tool calls", all(holds_call(turn.target, call) for call in target.tool_calls)),
            ("name", not target.name or target.name in turn.target),
        ):
            if not written:
                return Finding("error", f"the chat template leaves out the {what} of the target", _LOOK,
                               "backend.chat_template")  # fmt: skip
        spans = trained_turns(self._text, chat, tools, prompt, Opening(self.cut, self.lead))
        if isinstance(spans, Finding):
            return replace(turn, finding=spans)
        return replace(turn, spans=spans, trained=target.weight != 0)

    def _turn(self, prompt: str, whole: str, target: str) -> _Turn | Finding:
        stem = prompt[: len(prompt) - len(self.cut)] + self.lead
        answer = whole[len(stem) :]
        if not whole.startswith(stem) or target.strip() not in answer:
            return Finding(
                "error",
                "the chat template changes the prompt or the target in a whole conversation: the model would be "
                "trained on other tokens than it is given",
                f"a target with a thinking part of its own (</think>) is one cause; {_LOOK}",
                "backend.chat_template",
            )
        return _Turn(prompt, answer)

    def _probe(self) -> tuple[str, str]:
        """Return a prompt and a whole conversation as the template writes them; set `blocks` as it needs them."""
        user, assistant = Message("user", _QUESTION), Message("assistant", _ANSWER)
        problem = InputError("the chat template leaves out what the messages say", _LOOK)
        for self.blocks in (False, True):
            try:
                (prompt,), (whole,) = self._texts([[user]], prompt=True), self._texts([[user, assistant]], prompt=False)
            except InputError as error:
                problem = error
                continue
            if _QUESTION in prompt and prompt.partition(_QUESTION)[0] + _QUESTION in whole and _ANSWER in whole:
                return prompt, whole
        raise problem

    def _plain(self, messages: Sequence[Message]) -> list[Message]:
        """Mark special tokens in the messages' own text, so that `_encode` reads them as text."""
        return [
            replace(m, content=self.special.sub(rf"{_OPEN}\g<0>{_CLOSE}", m.content))
            if self.special.search(m.content)
            else m
            for m in messages
        ]

    def _text(self, chat: Sequence[Message], prompt: bool, tools: Tools = ()) -> str:
        return self._texts([chat], prompt, tools)[0]

    def _texts(
        self, chats: Sequence[Sequence[Message]], prompt: bool, tools: Tools = (), parsed: bool | None = None
    ) -> list[str]:
        if parsed is None:
            parsed = self.parsed if any(m.tool_calls for chat in chats for m in chat) else True
        try:
            texts = self.tokenizer.apply_chat_template(
                [[for_template(m, self.blocks, parsed) for m in chat] for chat in chats],
                chat_template=self.template,
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=prompt,
                date_string=self.date.strftime("%d %b %Y"),  # so Llama's templates call it
            )
        except Exception as error:  # a template is a program: it may raise anything
            raise InputError(f"the chat template refuses these messages: {error}", _LOOK) from None
        return [str(text) for text in texts]

    @cached_property
    def parsed(self) -> bool:
        """Whether the arguments of tool calls are given to the template as objects."""
        return takes_parsed(lambda chat, parsed: self._texts([chat], True, parsed=parsed)[0])

    @cached_property
    def messages(self) -> Template:
        """What the template writes of the messages."""
        return Template(self._text)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Return token ids; the template has already written the special tokens."""
        if not texts:
            return []
        texts = [_LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text) for text in texts]  # tokenizers refuse them
        ids: list[list[int]] = self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        for n, text in enumerate(texts):
            if _OPEN in text:
                parts = filter(None, re.split(f"({_OPEN}.*?{_CLOSE})", text))
                ids[n] = [i for place, part in enumerate(parts) for i in self._pieces(part, place > 0)]
        return ids

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        """Return where each token that `_encode` makes of the text stands in it: (start, end), in characters."""
        text = _LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
        offsets: list[tuple[int, int]] = []
        at = 0
        for part in re.split(f"({_OPEN}.*?{_CLOSE})", text):
            marked = part.startswith(_OPEN) and part.endswith(_CLOSE)
            if not part:
                continue
            found = self.tokenizer(
                part[1:-1] if marked else part, add_special_tokens=False, split_special_tokens=marked,
                return_offsets_mapping=True, verbose=False,
            )["offset_mapping"]  # fmt: skip
            offsets += [(at + marked + start, at + marked + end) for start, end in found]
            at += len(part)
        return offsets

    def _pieces(self, text: str, continues: bool) -> list[int]:
        marked = text.startswith(_OPEN) and text.endswith(_CLOSE)

        def encode(texts: list[str]) -> list[list[int]]:
            ids: list[list[int]] = self.tokenizer(
                texts, add_special_tokens=False, split_special_tokens=marked, verbose=False
            )["input_ids"]
            return ids

        bare = text[1:-1] if marked else text
        return self.border.behind(bare, encode) if continues else encode([bare])[0]


def _by_tools(examples: Sequence[Example]) -> Iterator[tuple[Tools, list[Example]]]:
    """Yield neighbours that have the same tools: a template is given one list of tools for all chats of a call."""
    for tools, rows in groupby(examples, key=lambda e: e.tools):
        yield tools, list(rows)


T = TypeVar("T")


def truncate_middle(ids: list[T], limit: int) -> list[T]:
    """Return at most `limit` ids, without the middle: instructions stand at the two ends of a prompt."""
    if len(ids) <= limit:
        return ids
    head = limit // 2
    return ids[:head] + ids[len(ids) - (limit - head) :]


def _byte_letters() -> dict[str, int]:
    """Return which byte each letter of a byte-level vocabulary stands for (the table of GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _spelt(token: str, letters: dict[str, int]) -> str:
    """Return a byte-level token as text; bytes that are part of a longer character become \\xNN."""
    if not all(letter in letters for letter in token):
        return token  # an added token, written as it is
    return bytes(letters[letter] for letter in token).decode("utf-8", "surrogateescape")


def _of_byte(token: str) -> str:
    """Return a token of one byte, as SentencePiece writes it (<0xE4>), as this byte; other tokens as they are."""
    found = re.fullmatch("<0x([0-9A-F]{2})>", token)
    return bytes.fromhex(found[1]).decode("utf-8", "surrogateescape") if found else token


def _common_start(a: str, b: str) -> str:
    return a[: next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))]


def _date(text: str) -> date:
    for form in ("%d %b %Y", "%Y-%m-%d"):
        try:
            return datetime.strptime(text, form).date()
        except ValueError:
            continue
    raise InputError(f"backend.template_date: {text!r} is not a date", "write it like 26 Jul 2024 or 2024-07-26")


def with_fixed_date(template: str, day: date) -> str:
    """Return the template with a `strftime_now` of its own that always returns `day`.

    It cannot be passed as a function: transformers passes only plain data to a template.
    """
    if "strftime_now" not in template:
        return template
    texts = {f"%{c}": day.strftime(f"%{c}") for c in "aAbBcdHIjmMpSuUwWxXyY"}
    texts |= {"%F": day.isoformat(), "%-d": str(day.day), "%-m": str(day.month), "%%": "%"}
    replaced = "".join(f"|replace('{form}', '{text}')" for form, text in texts.items())
    return "{% macro strftime_now(format) %}{{ format" + replaced + " }}{% endmacro %}{{ '' }}" + template
