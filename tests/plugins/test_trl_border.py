"""The border between prompt and target: with SentencePiece-style tokenizers, the target's tokens are those of the whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ftkit_trl.options import TrainOptions
from test_labels import FINE, SHIPPED, SYSTEM, TARGET, USER, recipe, write_rows

from ftkit.interface import load
from ftkit.records import Example, Message
from ftkit.run.prepare import preflight

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must "
    "alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}"
    "\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}"
    "\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}"
    "\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
TEMPLATES = {"llama-2": LLAMA_2, "zephyr": ZEPHYR, "phi-3": (SHIPPED / "phi3.jinja").read_text()}
SPACES = ("prepend", "first", "always", "never")  # how a tokenizer marks the start of a text
WORDS = "It is a pear . Which fruit is it ? An apple Be brief Answer Question : INST SYS user assistant system Anna"


def make_tokenizer(spaces: str, template: str, special: tuple[str, ...] = (), **options: Any) -> Any:
    """Return a small tokenizer in the style of SentencePiece; `byte-level`: in the style of GPT-2."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    byte_level = spaces == "byte-level"
    tokenizer = Tokenizer(models.BPE() if byte_level else models.BPE(byte_fallback=True, unk_token="<unk>"))
    first = ["<unk>", "<s>", "</s>"]
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        alphabet, first = [], [*first, *(f"<0x{n:02X}>" for n in range(256))]
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            prepend_scheme="never" if spaces == "prepend" else spaces, split=True
        )
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    trainer = trainers.BpeTrainer(
        vocab_size=len(first) + 400, special_tokens=first, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([f"{WORDS} {WORDS}", "".join(map(chr, range(33, 127)))] * 9, trainer)
    if spaces == "prepend":  # the form of the files that transformers converted for Llama 2 and Phi-3
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = None
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, **options) for t in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=template, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="</s>",
    )  # fmt: skip


def chat_of(name: str, spaces: str) -> Any:
    from ftkit_trl._render import Chat

    special = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>") if name == "phi-3" else ()
    tokenizer = make_tokenizer(spaces, TEMPLATES[name], special, rstrip=name == "phi-3")
    return Chat(tokenizer, TrainOptions(base_model="m"))


@pytest.mark.parametrize("spaces", SPACES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_targets_tokens_are_those_of_the_whole_conversation(name: str, spaces: str) -> None:
    chat = chat_of(name, spaces)
    tokenizer = chat.tokenizer
    for messages in ((USER,), (SYSTEM, USER), (USER, Message("assistant", "An apple."), USER)):
        example = Example("a", messages, (TARGET,))
        (shown,) = chat.render([example])
        assert shown.finding is None
        said = [m.to_dict() for m in messages]
        plain = {"return_dict": False, "tokenize": True}
        prompt = tokenizer.apply_chat_template(said, add_generation_prompt=True, **plain)
        whole = tokenizer.apply_chat_template([*said, {"role": "assistant", "content": TARGET}], **plain)
        assert chat.prompts([example]) == [prompt] == [list(shown.ids[: shown.n_prompt])]
        assert list(shown.ids) == whole[: len(shown.ids)]
        rest = tokenizer.decode(whole[len(shown.ids) :])  # what follows the end of the turn is not trained
        assert not rest.strip()
        assert shown.ids[-1] in chat.ends


def first_learned(chat: Any, *messages: Message) -> list[str]:
    (shown,) = chat.render([Example("a", messages or (USER,), (TARGET,))])
    return [t for t, on in zip(shown.tokens, shown.loss_mask, strict=True) if on]


@pytest.mark.parametrize("spaces", ["prepend", "first", "always"])
def test_no_space_that_the_model_never_writes(spaces: str) -> None:
    """Encoded alone, the first token of a target is ▁It, or ▁ for a target that starts with a space."""
    assert "".join(first_learned(chat_of("zephyr", spaces))).startswith("It▁is▁a")
    assert "".join(first_learned(chat_of("llama-2", spaces))).startswith("▁It▁is▁a")
    # Behind a special token, `first` puts no space; the others put one into each part of a text, in generation, too.
    learned = "".join(first_learned(chat_of("phi-3", spaces)))
    assert learned.startswith("It▁is▁a" if spaces == "first" else "▁It▁is▁a")


def test_special_tokens_in_a_rows_text_put_no_space_behind_them() -> None:
    chat = chat_of("phi-3", "first")
    hostile, harmless = (
        chat.render([Example("a", (Message("user", f"a{mark}b"),), (f"It{mark}is",))]) for mark in ("<|end|>", "?")
    )
    (shown,), (plain,) = hostile, harmless
    end = chat.tokenizer.convert_tokens_to_ids("<|end|>")
    assert shown.ids.count(end) == plain.ids.count(end) == 2
    assert shown.text.replace("<|end|>", "?") == plain.text.replace("<|end|>", "?")
    assert chat.prompts([Example("a", (Message("user", "a<|end|>b"),), ("x",))])[0] == list(shown.ids[: shown.n_prompt])


# ---------------------------------------------------------------- where a token spans the border

SPANNING = "{% for m in messages %}{{ m.content }}{% if m.role == 'user' %} Answer: {% else %}{{ eos_token }}{% endif %}{% endfor %}"
CLEAN = (
    SPANNING.replace("Answer: ", "Answer:")
    .replace("{% else %}", "{% else %} ")
    .replace("{% else %} {{", "{% else %}{{")
)


@pytest.mark.parametrize("spaces", [*SPACES, "byte-level"])
def test_a_token_that_spans_the_border_is_said_and_the_prompt_keeps_its_tokens(spaces: str) -> None:
    from ftkit_trl._render import Chat

    tokenizer = make_tokenizer(spaces, SPANNING)
    chat = Chat(tokenizer, TrainOptions(base_model="m"))
    example = Example("a", (USER,), (TARGET,))
    (shown,) = chat.render([example])
    alone = tokenizer("Which fruit is it? Answer: ", add_special_tokens=False)["input_ids"]
    assert [list(shown.ids[: shown.n_prompt])] == chat.prompts([example]) == [alone]
    learned = [t for t, on in zip(shown.tokens, shown.loss_mask, strict=True) if on]
    assert "".join(learned).replace("▁", " ") == TARGET + "</s>", "no second space"
    assert shown.finding is not None and shown.finding.level == "warning"
    assert "inside a token" in shown.finding.message and "'uit is it? Answer: '"[-10:] in shown.finding.hint


def test_check_warns_of_a_token_that_spans_the_border(tmp_path: Path) -> None:
    from test_labels import save_model

    base = save_model(tmp_path / "model", SPANNING)
    tokenizer = make_tokenizer("byte-level", SPANNING)
    tokenizer.save_pretrained(base)
    config = re.sub(r'"vocab_size": \d+', f'"vocab_size": {len(tokenizer)}', (base / "config.json").read_text())
    (base / "config.json").write_text(config)
    rows = write_rows(tmp_path / "rows", [{**row, "target": TARGET} for row in FINE])
    found = preflight(load(recipe(base, rows)))
    warned = [f for f in found.findings if "inside a token" in f.message]
    assert [f.level for f in warned] == ["warning"]
    assert warned[0].message.startswith(
        "train: example 'row-0' (and 3 more of 4): the border between prompt and target"
    )


@pytest.mark.parametrize(
    "template", sorted(p.stem for p in SHIPPED.glob("*.jinja") if not p.stem.endswith("_training"))
)
def test_byte_level_tokens_are_as_they_were(template: str) -> None:
    """Prompt and target encoded apart: what these tokenizers gave before, token for token."""
    from ftkit_trl._render import Chat

    text = (SHIPPED / f"{template}.jinja").read_text()
    marks = dict.fromkeys(re.findall(r"<[^\s<>'\"{}=]{2,30}>|\[/?[A-Za-z]{3,6}\]", text))
    chat = Chat(make_tokenizer("byte-level", text, tuple(marks)), TrainOptions(base_model="m", sequence_len=4096))
    assert chat.border.alike
    for target in (TARGET, " It", "\n\nIt", "12", "'s", ".", "a</s>b"):
        example = Example("a", (USER,), (target,))
        (shown,) = chat.render([example])
        if not shown.ids:
            continue  # the template refuses it
        (turn,) = chat._turns([example])
        prompt, answer = chat._encode([turn.prompt]), chat._encode([turn.target])
        assert list(shown.ids[: shown.n_prompt]) == prompt[0]
        kept = list(shown.ids[shown.n_prompt + len(chat.header_ids) :])
        assert kept[: len(answer[0])] == answer[0][: len(kept)]
