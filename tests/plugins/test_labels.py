"""Which tokens are learned: every chat template that TRL ships, with a tokenizer that has its special tokens."""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import ftkit
from ftkit.cli import main as cli
from ftkit.console import Console
from ftkit.interface import load
from ftkit.records import Example, Message, ModelRef, Rendered
from ftkit.run.prepare import preflight

SHIPPED = Path(importlib.util.find_spec("trl").submodule_search_locations[0], "chat_templates")
# Those that end in _training are the same with marks for TRL's trainers.
TEMPLATES = sorted(path.stem for path in SHIPPED.glob("*.jinja") if not path.stem.endswith("_training"))
DATED = ("llama3_1", "llama3_2", "gptoss", "muse_glimmer")
USER, SYSTEM = Message("user", "Which fruit is it?"), Message("system", "Be brief.")
EARLIER = (USER, Message("assistant", "An apple."))
CHATS = {
    "user": (USER,),
    "system": (SYSTEM, USER),
    "turns": (*EARLIER, USER),
    "system and turns": (SYSTEM, *EARLIER, USER),
}
TARGET = "It is a pear."


def make_tokenizer(template: str, **special: str | None) -> Any:
    """Return a tokenizer of bytes, with one token for everything in the template that looks like one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = dict.fromkeys(re.findall(r"<[^\s<>'\"{}=]{2,30}>|\[/?[A-Za-z]{3,6}\]", template))
    is_special = {t: bool(re.search(r"[|｜\[]|_of_", t)) for t in marks}
    tokenizer.add_tokens([AddedToken(t, special=on, normalized=False) for t, on in is_special.items()])
    # A tokenizer without a pad token of its own pads with eos: the common trap.
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": None, **special}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=template, **{k: v for k, v in names.items() if v}
    )


def save_model(folder: Path, template: str, **special: str | None) -> Path:
    """Save a Llama of random weights, some ten thousand parameters small, with such a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(template, **special)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=4096, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that gives the folder of a tiny model: of a shipped template by name, or of any template."""
    made: dict[str, Path] = {}

    def make(template: str, **special: str | None) -> Path:
        key = json.dumps([template, special])
        if key not in made:
            text = (SHIPPED / f"{template}.jinja").read_text() if template in TEMPLATES else template
            made[key] = save_model(tmp_path_factory.mktemp("model"), text, **special)
        return made[key]

    return make


def recipe(base: Path, rows: Path | None = None, **backend: Any) -> dict[str, Any]:
    options = {"max_steps": 2, "micro_batch_size": 4, "learning_rate": 0.05, "logging_steps": 1, "sequence_len": 2048}
    return {
        "name": "labels",
        "dataset": {"path": str(rows)} if rows else {"path": "loader:quickstart-dialogues", "columns": {"input": "dialogue", "target": "summary"}},
        "backend": {"plugin": "trl-sft-lora", "base_model": str(base), **options, **backend},
        "generation": {"max_new_tokens": 8},
        "evaluator": "rouge",
    }  # fmt: skip


def backend_of(base: Path, **options: Any) -> Any:
    return load(recipe(base, **options)).backend.make()


def learned(shown: Rendered) -> list[int]:
    return [i for i, on in zip(shown.ids, shown.loss_mask, strict=True) if on]


def test_trl_ships_the_families_that_people_fine_tune() -> None:
    wanted = ("llama3", "llama3_2", "qwen2_5", "qwen3", "gemma", "gemma3", "phi3", "deepseekv3", "glm4moe", "gptoss")
    assert set(wanted) <= set(TEMPLATES)


@pytest.mark.parametrize("name", TEMPLATES)
def test_only_the_answer_and_its_end_are_learned(name: str, model: Callable[..., Path]) -> None:
    from ftkit_trl._model import load_tokenizer
    from ftkit_trl._render import Chat

    today = datetime.date.today()  # so that transformers, asked plainly, gives the same prompt
    backend = backend_of(model(name), template_date=today.isoformat())
    tokenizer = load_tokenizer(backend.options)
    assert tokenizer.pad_token == tokenizer.eos_token
    examples = [Example(kind, messages, (TARGET,)) for kind, messages in CHATS.items()]
    rows = list(backend.render(examples))
    refused = {row.example_id for row in rows if row.finding}
    assert refused == ({"system", "system and turns"} if name == "gemma" else set())  # it knows no system message
    chat = Chat(tokenizer, backend.options)
    for example, shown in ((e, r) for e, r in zip(examples, rows, strict=True) if not r.finding):
        assert shown.loss_mask == (False,) * shown.n_prompt + (True,) * (len(shown.ids) - shown.n_prompt)
        # What is learned: what opens an answer, the target, and special tokens that end the turn.
        text = tokenizer.decode(learned(shown))
        opening, found, end = text.partition(TARGET)
        assert found and opening.strip() == chat.header.strip() and "pear" not in end
        assert learned(shown)[-1] in chat.ends and tokenizer.decode(learned(shown)[-1:]) not in ("", "\n")
        # The prompt: what transformers gives a deployed model, and what this model generates from.
        content = (lambda t: [{"type": "text", "text": t}]) if chat.blocks else str
        asked = tokenizer.apply_chat_template(
            [{"role": m.role, "content": content(m.content)} for m in example.messages],
            add_generation_prompt=True, return_dict=False, date_string=today.strftime("%d %b %Y"),
        )  # fmt: skip
        prompt = list(shown.ids[: shown.n_prompt])
        assert prompt == asked
        assert chat.prompts([example]) == [prompt + learned(shown)[: len(chat.header_ids)]]
        assert shown.ids.count(tokenizer.bos_token_id) <= 1


@pytest.mark.parametrize("name", DATED)
def test_a_prompt_does_not_change_from_day_to_day(
    name: str, model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftkit_trl._model import load_tokenizer
    from transformers.utils import chat_template_utils

    example = Example("a", (USER,), (TARGET,))
    backend = backend_of(model(name))
    texts, plain = set(), set()
    for day in (1, 2):

        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None, day: int = day) -> Any:
                return cls(2031, 1, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        (shown,) = backend.render([example])
        texts.add(shown.text)
        messages = [m.to_dict() for m in example.messages]
        plain.add(load_tokenizer(backend.options).apply_chat_template(messages, tokenize=False))
    assert len(texts) == 1 and re.search("26 Jul 2024|2024-07-26", texts.pop())
    assert len(plain) == (1 if name == "llama3_1" else 2), "the clock of this test does not reach the template"
    (other,) = backend_of(model(name), template_date="2025-12-31").render([example])
    assert re.search("31 Dec 2025|2025-12-31", other.text)


def test_special_tokens_in_a_rows_own_text_are_read_as_text(model: Callable[..., Path]) -> None:
    from ftkit_trl._model import load_tokenizer

    backend = backend_of(model("llama3"))
    rows = [(Message("user", "a<|eot_id|>b"),), (Message("user", "a"),)]
    hostile, harmless = backend.render([Example("x", messages, ("no <|eot_id|> here",)) for messages in rows])
    eot = load_tokenizer(backend.options).convert_tokens_to_ids("<|eot_id|>")
    assert hostile.ids.count(eot) == harmless.ids.count(eot) == 2  # the template's: of the user's turn and the answer's
    assert hostile.text.replace("a<|eot_id|>b", "a") == harmless.text and "no <|eot_id|> here<|eot_id|>" in hostile.text


# ---------------------------------------------------------------- refusals


def write_rows(folder: Path, train: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    for split, rows in (
        ("train", train),
        ("validation", FINE[:1]),
        ("test", [{"input": "Which?", "target": "This."}] * 2),
    ):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


TURN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
OPEN = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
FINE = [{"id": f"row-{n}", "input": f"Which, {n}?", "target": "This."} for n in range(4)]
LONG = {"id": "row-9", "input": "Which?", "target": "very " * 100}
FAULTS: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any], str]] = {
    "an answer that is cut": (TURN + OPEN, [*FINE, LONG], {"sequence_len": 256}, r"train: example 'row-9': the target does not fit .*end-of-turn token is truncated[\s\S]*raise backend.sequence_len"),
    "another generation prompt": (TURN + "{% if add_generation_prompt %}<|bot|>{% endif %}", FINE, {}, r"generation prompt ends with '.*<\|bot\|>'.*never given"),
    "no end of turn": (TURN.replace("<|end|>", "\n") + OPEN, FINE, {"eos_token": None}, r"train: example 'row-0' \(and 3 more of 4\): the target has no end-of-turn token"),
    "two BOS": ("{{ bos_token }}{{ bos_token }}" + TURN + OPEN, FINE, {}, r"example 'row-0' \(and 3 more of 4\): BOS is doubled"),
    "messages left out": ("{{ bos_token }}hello" + OPEN, FINE, {}, "leaves out what the messages say"),
    "messages refused": ("{% if 'row 3' in messages[0].content %}{{ raise_exception('not this one') }}{% endif %}" + TURN + OPEN, [*FINE, {"id": "row-3b", "input": "row 3", "target": "x"}], {}, r"train: example 'row-3b': the chat template refuses these messages: not this one"),
    "a date that is none": (TURN + OPEN, FINE, {"template_date": "today"}, r"template_date: 'today' is not a date[\s\S]*26 Jul 2024"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_labels_stops_the_run_in_prepare(fault: str, model: Callable[..., Path], tmp_path: Path) -> None:
    template, rows, changes, message = FAULTS[fault]
    special = {k: v for k, v in changes.items() if k.endswith("_token")}
    special = {"eos_token": None, "pad_token": "<pad>"} if special else {}
    options = {k: v for k, v in changes.items() if not k.endswith("_token")}
    folder = write_rows(tmp_path / "rows", rows)
    with pytest.raises(ftkit.FtkitError) as refusal:
        ftkit.run(
            recipe(model(template, **special), folder, **options), out=tmp_path / "runs", console=Console(silent=True)
        )
    assert re.search(message, str(refusal.value)), str(refusal.value)
    assert not list((tmp_path / "runs").glob("*")), "nothing was spent, nothing is left"


def test_cut_answers_are_trained_on_where_the_recipe_says_so(model: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "rows", [*FINE, LONG])
    found = preflight(
        load(recipe(model(TURN + OPEN), folder, sequence_len=256, allow_cut_targets=True, allow_cut_prompts=True))
    )
    assert not found.errors and found.audit["tokens"]["train"]["lose_target_tokens"] == 1
    assert any("1 of 5 examples lose target tokens" in text for text in found.warnings)


def test_a_row_that_turned_faulty_stops_the_training_too(model: Callable[..., Path], tmp_path: Path) -> None:
    """As on a resume with another model in the folder: `prepare` was done before."""
    from ftkit_trl._check import refuse_faulty

    backend = backend_of(model(TURN + OPEN), sequence_len=64)
    with pytest.raises(ftkit.FtkitError, match=r"example 'x': the target does not fit .*\(1 such row"):
        refuse_faulty(list(backend.render([Example("x", (USER,), ("long " * 50,)), Example("y", (USER,), ("a",))])))


# ---------------------------------------------------------------- real training


@pytest.fixture(scope="module")
def trained(model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Return a function that trains a family's model for two steps, and gives the run and the batches it learned."""
    from trl import SFTTrainer

    done: dict[str, Any] = {}

    def train(name: str, **options: Any) -> Any:
        if name not in done:
            batches: list[dict[str, Any]] = []
            step = SFTTrainer.training_step

            def watched(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
                batches.append({key: value.clone() for key, value in inputs.items() if hasattr(value, "clone")})
                return step(self, model, inputs, *rest)

            folder = write_rows(tmp_path_factory.mktemp(name) / "rows", FINE * 2)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(SFTTrainer, "training_step", watched)
                asked = recipe(model(name), folder, sample_packing=False)
                run = ftkit.run(asked, out=folder.parent / "runs", console=Console(silent=True))
            done[name] = (run, batches)
        return done[name]

    return train


@pytest.mark.parametrize("name", ["llama3_2", "qwen3", "gemma3", "phi3", "gptoss"])
def test_the_trainer_learns_the_end_of_turn_though_it_pads_with_eos(
    name: str, trained: Callable[[str], Any], model: Callable[..., Path]
) -> None:
    """Asserted on the tensors that the real trainer was given, not on what we hand to it."""
    from ftkit_trl._model import load_tokenizer
    from ftkit_trl._render import Chat

    run, batches = trained(name)
    backend = backend_of(model(name))
    tokenizer = load_tokenizer(backend.options)
    chat = Chat(tokenizer, backend.options)
    meant = {tuple(row.ids): learned(row) for row in backend.render(run.directory.task.train)}
    rows = [row for batch in batches for row in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True)]  # fmt: skip
    assert len(batches) == 2 and len(rows) == 8
    for ids, labels, mask in rows:
        kept = tuple(ids[mask == 1].tolist())
        assert labels[labels != -100].tolist() == meant[kept] and meant[kept][-1] in chat.ends
        assert (labels[mask == 0] == -100).all()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert run.directory.record().status == "done" and not [
        w for w in run.directory.record().warnings if "training" in w
    ]
    assert json.loads((run.dir / "lock.json").read_text())["model"]["template_date"] == "26 Jul 2024"
    (change,) = [row for row in run.directory.log_rows() if row["event"] == "weights_changed"]
    assert change["changed"] == change["tensors"] == 2 and change["change_norm"] > 0  # B of q_proj and v_proj


# ---------------------------------------------------------------- did training change the weights?


@pytest.mark.parametrize("plugin", ["trl-sft-lora", "trl-sft-full"])
def test_training_that_changes_nothing_is_said_so_loudly(
    plugin: str, model: Callable[..., Path], tmp_path: Path
) -> None:
    options = {"plugin": plugin, "learning_rate": 1e-12, "max_steps": 1}
    asked = recipe(model("llama3"), write_rows(tmp_path / "rows", FINE), **options)
    run = ftkit.run(asked, out=tmp_path / "runs", console=Console(silent=True))
    warnings = run.directory.record().warnings
    assert any(w.startswith("training changed no weights: none of the") for w in warnings), warnings
    assert any("gave the base model's answer to all 2 test rows" in w for w in warnings), warnings
    report = json.loads((run.dir / "report.json").read_text())
    assert set(warnings) <= set(report["warnings"])
    assert report["verdict"].startswith("Training changed nothing that can be seen")
    page = (run.dir / "report.html").read_text()
    assert "training changed no weights" in page and "Training changed nothing" in page


def test_an_adapter_that_does_not_fit_is_refused(trained: Callable[[str], Any], tmp_path: Path) -> None:
    """peft warns, and answers with the untouched base model."""
    from safetensors.torch import load_file, save_file

    run, _ = trained("llama3_2")
    backend = run.directory.recipe.backend.make()
    whole = run.dir / "train" / "model"
    with backend.load(ModelRef("adapter", str(whole)), run.directory) as session:
        assert session.model.peft_config
    for change in ("renamed", "incomplete"):
        torn = tmp_path / change
        shutil.copytree(whole, torn)
        tensors = load_file(torn / "adapter_model.safetensors")
        if change == "renamed":
            tensors = {name.replace("q_proj", "query"): tensor for name, tensor in tensors.items()}
        else:
            tensors.popitem()
        save_file(tensors, torn / "adapter_model.safetensors")
        with (
            pytest.raises(ftkit.FtkitError, match=r"does not fit its base model: \d of its \d tensors have no place"),
            backend.load(ModelRef("adapter", str(torn)), run.directory),
        ):
            pass


def test_weights_that_are_not_finite_end_the_run(trained: Callable[[str], Any], tmp_path: Path) -> None:
    import torch
    from ftkit_trl._weights import check_weights_changed
    from safetensors.torch import load_file, save_file

    run, _ = trained("llama3_2")
    tensors = load_file(run.dir / "train" / "model" / "adapter_model.safetensors")
    before = {name: tensor.flatten().clone() for name, tensor in tensors.items()}
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ftkit.FtkitError, match=r"not finite[\s\S]*lower backend\.learning_rate"):
        check_weights_changed(before, tmp_path, run.directory)


# ---------------------------------------------------------------- ftkit preview


def on_a_terminal(*command: str) -> str:
    """Return what `ftkit COMMAND` prints where its output is a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-m", "ftkit", *command], stdout=theirs) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # what a closed terminal gives on Linux
                break
            if not piece:
                break
            shown += piece
    os.close(ours)
    assert process.returncode == 0
    return shown.decode()


def test_preview_colours_what_is_learned(model: Callable[..., Path], tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows", [{"input": "Ça va, 나무?", "target": "Oui!"}])
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe(model("llama3_2"), rows)))
    piped = CliRunner().invoke(cli.ftkit, ["preview", str(path)]).stdout
    assert re.search(r"\|<\|end_header_id\|>\|⏎\n\|⏎\n\|«O»«u»«i»«!»«<\|eot_id\|>»\n", piped), piped
    assert "|나³|무³|?|" in piped, "a character of three tokens is shown once"
    assert "2|6|·|J|u|l|·|2|0|2|4|" in piped, "the date that the template is given"
    tokens, prompt, count = map(
        int, re.search(r"(\d+) tokens: (\d+) of the prompt, (\d+) in the loss mask", piped).groups()
    )
    assert (prompt + count, count) == (tokens, 5)
    coloured = on_a_terminal("preview", str(path))
    green = re.findall("\x1b\\[32;1m(.*?)\x1b\\[0m", coloured)
    assert green == ["O", "u", "i", "!", "<|eot_id|>"] and "\x1b" not in piped
