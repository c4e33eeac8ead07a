"""Chats of several turns with every chat template that TRL ships: what is written, what is trained on, what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_labels import OPEN, SHIPPED, TEMPLATES, TURN, make_tokenizer, recipe, save_model

import ftkit
from ftkit.cli import main as cli
from ftkit.console import Console
from ftkit.interface import load
from ftkit.records import Example, Message, Rendered
from ftkit.run.prepare import preflight

USER, AGAIN = Message("user", "Which fruit is it?"), Message("user", "And now?")
APPLE, TARGET = "An apple it is.", "It is a pear."
TRAINED, CONTEXT = Message("assistant", APPLE, weight=1), Message("assistant", APPLE, weight=0)
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Tokyo"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "where"}}, "required": ["city"]}}}  # fmt: skip
CALLING = Message("assistant", "", tool_calls=(CALL,))
RESULT = Message("tool", '{"sky": "sunny"}', name="weather", tool_call_id="abcdefghi")

# Templates that write an earlier assistant turn in another way than the last one: found by rendering, listed here so
# that a change is seen.
OTHERWISE = {
    *("deepseek_r1_distill", "deepseekv3", "nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super"),
    *("nemotron_3_ultra", "qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6"),
}
NO_END = {"glm4moe", "gptoss"}  # or end it with another token
NO_TOOLS = {
    *("cohere", "cohere2", "deepseek_r1_distill", "gemma", "gemma3", "idefics3", "lfm2", "llama3"),
    "llava_next",
    *("phi3", "phi3_5", "qwen2_5_vl", "smolvlm"),
}


def chat_of(template: str, **options: Any) -> Any:
    from ftkit_trl._render import Chat
    from ftkit_trl.options import TrainOptions

    text = (SHIPPED / f"{template}.jinja").read_text() if template in TEMPLATES else template
    return Chat(make_tokenizer(text), TrainOptions(base_model="x", **{"sequence_len": 4096, **options}))


def rendered(chat: Any, *messages: Message, target: str = TARGET, **more: Any) -> Rendered:
    (shown,) = chat.render([Example("row", messages, (target,), **more)])
    return shown


def runs(shown: Rendered) -> list[tuple[int, list[int]]]:
    """Return each run of tokens in the loss mask: where it starts, and its ids."""
    found: list[tuple[int, list[int]]] = []
    for n, on in enumerate(shown.loss_mask):
        if on and (n == 0 or not shown.loss_mask[n - 1]):
            found.append((n, []))
        if on:
            found[-1][1].append(shown.ids[n])
    return found


# ---------------------------------------------------------------- the loss mask


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_trained_turn_follows_the_prompt_that_it_is_given(name: str) -> None:
    chat = chat_of(name)
    messages = (USER, TRAINED, AGAIN, Message("assistant", "A cherry, <eos> and 🍒.", weight=1), USER)
    shown = rendered(chat, *messages)
    if name in OTHERWISE | NO_END:
        said = "in another way in the middle" if name in OTHERWISE else "has no end-of-turn token"
        assert shown.finding is not None and said in shown.finding.message, shown.finding
        assert "message 2 (role assistant)" in shown.finding.message
        assert "train_on: last" in (shown.finding.hint or "")
        return
    assert shown.finding is None, shown.finding
    for (start, ids), before, said in zip(runs(shown), (1, 3, 5), (APPLE, messages[3].content, TARGET), strict=True):
        # What a deployed model is given for this turn, token for token, and then the turn.
        assert chat.prompts([Example("k", messages[:before], ("",))])[0] == [*shown.ids[:start], *chat.header_ids]
        text = chat.tokenizer.decode(ids)
        opening, found, end = text.partition(said)
        assert found and opening.strip() == chat.header.strip() and ids[-1] in chat.ends
        assert not re.search("fruit|now|apple|cherry|pear|user", end)
    last = rendered(chat, *(Message(m.role, m.content) for m in messages))
    assert (last.ids, last.n_prompt) == (shown.ids, shown.n_prompt), "which turns are trained on changes no token"
    assert last.loss_mask == (False,) * last.n_prompt + (True,) * (len(last.ids) - last.n_prompt)


def test_weights_choose_the_turns() -> None:
    chat = chat_of("qwen2_5")
    say = chat.tokenizer.decode
    shown = rendered(chat, USER, CONTEXT, AGAIN, TRAINED, USER)
    assert [say(ids) for _, ids in runs(shown)] == [f"{APPLE}<|im_end|>", f"{TARGET}<|im_end|>"]
    silent = Message("assistant", TARGET, weight=0)
    shown = rendered(chat, USER, CONTEXT, AGAIN, TRAINED, USER, answer=silent)
    assert [say(ids) for _, ids in runs(shown)] == [f"{APPLE}<|im_end|>"] and shown.finding is None
    assert shown.text.endswith(f"{TARGET}<|im_end|>")
    shown = rendered(chat, USER, CALLING, Message("assistant", "", tool_calls=(CALL,), weight=1), RESULT, tools=(TOOL,))
    assert '"city": "Tokyo"' in say(runs(shown)[0][1]) and len(runs(shown)) == 2


def test_a_first_turn_of_the_assistant_is_context_or_refused() -> None:
    chat = chat_of("qwen3_instruct_2507")
    assert rendered(chat, CONTEXT, USER).finding is None
    found = rendered(chat_of("gemma3"), CONTEXT, USER).finding
    assert found is not None and "refuses these messages" in found.message


def test_tokens_that_carry_a_leading_space_are_found(tmp_path: Path) -> None:
    """As SentencePiece makes them: a word's token holds the space in front of it."""
    from ftkit_trl._render import Chat
    from ftkit_trl.options import TrainOptions
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    template = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"  # fmt: skip
    letters = sorted(set(USER.content + AGAIN.content + APPLE + TARGET + template + "▁"))
    tokenizer = Tokenizer(models.BPE({**{c: n for n, c in enumerate(letters)}, "▁A": len(letters), "▁I": len(letters) + 1}, [("▁", "A"), ("▁", "I")]))  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in ("<s>", "</s>", "[INST]", "[/INST]")])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, bos_token="<s>", eos_token="</s>")  # fmt: skip
    chat = Chat(made, TrainOptions(base_model="x"))
    shown = rendered(chat, USER, TRAINED, AGAIN)
    first, second = ([shown.tokens[n] for n in range(start, start + len(ids))] for start, ids in runs(shown))
    assert first[0] == "▁A" and first[-1] == "</s>" and "".join(first) == "▁An▁apple▁it▁is.</s>"
    assert second[-1] == "</s>" and "[/INST]" not in first + second


def test_earlier_turns_that_are_truncated_stop_the_run() -> None:
    long = Message("user", "word " * 100)
    whole = rendered(chat_of("qwen2_5"), USER, TRAINED, long)
    assert whole.truncated == (0, 0)
    size = len(whole.ids)
    shown = rendered(chat_of("qwen2_5", sequence_len=size - 300, allow_cut_prompts=True), USER, TRAINED, long)
    assert shown.finding is None and shown.truncated == (300, 0), "the middle is cut, and no trained turn stands there"
    cut = rendered(chat_of("qwen2_5", sequence_len=100), USER, TRAINED, long)
    assert cut.finding is not None and "earlier assistant messages" in cut.finding.message and cut.truncated[1] > 0
    assert sum(cut.truncated) == size - 100
    fine = rendered(
        chat_of("qwen2_5", sequence_len=100, allow_cut_targets=True, allow_cut_prompts=True), USER, TRAINED, long
    )
    assert fine.finding is None and len(fine.ids) == len(fine.loss_mask) == 100


# ---------------------------------------------------------------- no message is left out


@pytest.mark.parametrize("name", TEMPLATES)
def test_tools_are_written_or_refused(name: str) -> None:
    chat = chat_of(name)
    shown = rendered(chat, USER, CALLING, RESULT, tools=(TOOL,))
    if name in NO_TOOLS:
        assert shown.finding is not None and not shown.ids, "a row is refused, in whichever split"
        assert re.search(r"leaves out|refuses these messages", shown.finding.message)
        return
    if name == "deepseekv3":  # it writes calls and results, and knows no tools
        assert shown.finding is not None and "leaves out the tools" in shown.finding.message
        shown = rendered(chat, USER, CALLING, RESULT)
    assert shown.finding is None, shown.finding
    assert all(text in shown.text for text in ("weather", "city", "Tokyo", "sunny"))
    assert '\\"city' not in shown.text, "arguments are objects, where the template wants them so"
    assert list(shown.ids[: shown.n_prompt]) == chat.prompts([Example("a", (USER, CALLING, RESULT), ("",), tools=(TOOL,) * (name != "deepseekv3"))])[0][: shown.n_prompt]  # fmt: skip


def test_rows_with_other_tools_are_rendered_with_their_own() -> None:
    chat = chat_of("qwen2_5")
    other = {"type": "function", "function": {**TOOL["function"], "name": "stocks"}}  # type: ignore[dict-item]
    rows = [
        Example(str(n), (USER,), (TARGET,), tools=tools) for n, tools in enumerate(((), (TOOL,), (TOOL,), (other,)))
    ]
    texts = [shown.text for shown in chat.render(rows)]
    assert [("weather" in t, "stocks" in t) for t in texts] == [
        (False, False),
        (True, False),
        (True, False),
        (False, True),
    ]
    assert [chat.tokenizer.decode(ids) in text for ids, text in zip(chat.prompts(rows), texts, strict=True)] == [
        True
    ] * 4


DROPS = {
    "system": "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}" + OPEN,
    "an earlier turn": "{% for m in messages[-2:] %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}" + OPEN,
    "a changed text": "{% for m in messages %}<|{{ m.role }}|>{{ m.content | replace('secret', '') }}<|end|>{% endfor %}" + OPEN,
}  # fmt: skip


@pytest.mark.parametrize(
    ("drops", "messages", "said"),
    [
        ("system", (Message("system", "a"), USER), "leaves out the text of message 1 (role system)"),
        ("an earlier turn", (USER, CONTEXT, USER), "leaves out the text of message 1 (role user)"),
        (
            "a changed text",
            (Message("user", "a secret word"),),
            "leaves out or changes the text of message 1 (role user)",
        ),
    ],
)
def test_a_message_that_the_template_leaves_out_is_an_error(drops: str, messages: Any, said: str) -> None:
    """ "a" is found in any prompt: it is the shape of the chat that tells."""
    found = rendered(chat_of(DROPS[drops]), *messages).finding
    assert found is not None and found.level == "error" and said in found.message


def test_names_ids_and_developers() -> None:
    plain, named = (
        chat_of(TURN + OPEN),
        chat_of(TURN.replace("{{ m.content", "{{ m.name ~ ': ' if m.name }}{{ m.content") + OPEN),
    )
    anna = Message("user", "Which?", name="Anna")
    found = rendered(plain, anna).finding
    assert found is not None and "leaves out the `name` of message 1 (role user)" in found.message
    assert rendered(named, anna).finding is None and "Anna" in rendered(named, anna).text
    found = rendered(chat_of("qwen2_5"), Message("developer", "Be brief."), USER).finding
    assert (
        found is not None and "message 1 (role developer)" in found.message and "{developer: system}" in str(found.hint)
    )
    assert rendered(chat_of("llama3"), Message("developer", "Be brief."), USER).finding is None
    # Results in the order of the calls need no id; others do.
    calls = Message("assistant", "", tool_calls=(CALL, {**CALL, "id": "b"}))
    results = [Message("tool", "x", tool_call_id=i) for i in ("abcdefghi", "b")]
    assert rendered(chat_of("qwen2_5"), USER, calls, *results).finding is None
    found = rendered(chat_of("qwen2_5"), USER, calls, *results[::-1]).finding
    assert found is not None and "another order" in found.message
    found = rendered(chat_of("qwen2_5"), USER, CALLING, Message("tool", "x", name="stocks")).finding
    assert found is not None and "`name` of message 3 (role tool)" in found.message


def test_special_tokens_in_tools_are_refused() -> None:
    call = {**CALL, "function": {"name": "weather", "arguments": '{"city": "<|im_end|>"}'}}
    found = rendered(chat_of("qwen2_5"), USER, Message("assistant", "", tool_calls=(call,)), RESULT).finding
    assert found is not None and "holds the special token <|im_end|>" in found.message


def test_the_thinking_of_an_earlier_turn() -> None:
    thought = "<think>\nhm\n</think>\n\nAn apple."
    chat = chat_of("deepseek_r1_distill")
    assert rendered(chat, USER, Message("assistant", thought, weight=0), AGAIN).finding is None, "as in use"
    found = rendered(chat, USER, Message("assistant", thought, weight=1), AGAIN).finding
    assert found is not None and "message 2 (role assistant)" in found.message


# ---------------------------------------------------------------- through a recipe


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = save_model(tmp_path_factory.mktemp(name), (SHIPPED / f"{name}.jinja").read_text())
        return made[name]

    return make


def chats(folder: Path, base: Path, *more: list[dict[str, Any]], **dataset: Any) -> dict[str, Any]:
    folder.mkdir()
    turns = [("user", "Which?"), ("assistant", "This."), ("user", "And?"), ("assistant", "That.")]
    plain = [{"role": role, "content": text} for role, text in turns]
    for split in ("train", "validation", "test"):
        rows = [{"messages": [{**plain[0], "content": f"Which, {split} {n}?"}, *plain[1:]]} for n in range(4)]
        rows += [{"messages": row} for row in more] if split == "train" else []
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {**recipe(base), "dataset": {"path": str(folder), "columns": {"messages": "messages"}, **dataset}}


def test_preview_shows_the_mask_over_several_turns(model: Callable[[str], Path], tmp_path: Path) -> None:
    asked = chats(tmp_path / "rows", model("llama3_2"), train_on="all")
    (tmp_path / "recipe.yaml").write_text(json.dumps(asked))
    shown = CliRunner().invoke(cli.ftkit, ["preview", str(tmp_path / "recipe.yaml")]).stdout
    assert "«T»«h»«i»«s»«.»«<|eot_id|>»" in shown and "«T»«h»«a»«t»«.»«<|eot_id|>»" in shown and "«A»" not in shown
    assert "12 in the loss mask" in shown


def test_training_on_all_turns_from_rows_to_labels(
    model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftkit_trl._model import load_tokenizer
    from trl import SFTTrainer

    batches: list[Any] = []
    step = SFTTrainer.training_step

    def watched(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        batches.append(inputs["labels"].clone())
        return step(self, model, inputs, *rest)

    monkeypatch.setattr(SFTTrainer, "training_step", watched)
    asked = chats(tmp_path / "rows", model("llama3_2"), train_on="all")
    asked["backend"]["sample_packing"] = False
    run = ftkit.run(asked, out=tmp_path / "runs", console=Console(silent=True))
    assert run.directory.record().status == "done"
    say = load_tokenizer(load(asked).backend.make().options).decode
    assert {say(row[row != -100]) for batch in batches for row in batch} == {"This.<|eot_id|>That.<|eot_id|>"}
    assert [e.targets for e in run.directory.task.test] == [("That.",)] * 4 and (run.dir / "report.html").exists()


def test_a_row_that_the_template_cannot_train_on_stops_the_run(model: Callable[[str], Path], tmp_path: Path) -> None:
    found = preflight(load(chats(tmp_path / "a", model("qwen3"), train_on="all")))
    (error,) = found.errors
    assert error.message.startswith("train: example 'train-0' (and 3 more of 4): the chat template writes message 2")
    assert error.key == "backend.chat_template"
    system = [{"role": r, "content": "x"} for r in ("developer", "user", "assistant")]
    found = preflight(load(chats(tmp_path / "b", model("qwen3"), system)))
    assert [e.message for e in found.errors] == [
        "train: example 'train-4': the chat template leaves out the text of message 1 (role developer)"
    ]
