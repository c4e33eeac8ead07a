"""Generation of the TRL backends: random state, the recipe's settings and no others, stop strings."""

from __future__ import annotations

import collections
import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_trl import recipe

import ftkit
from ftkit.console import Console
from ftkit.data.task import load_task
from ftkit.directory import RunDirectory
from ftkit.recipe.load import load_recipe
from ftkit.records import GenerationConfig, Measurement
from ftkit.run.measure import key_of
from ftkit.run.prepare import prepare

# ---------------------------------------------------------------- random state


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_measurements_during_training_do_not_change_the_training(temperature: float, tmp_path: Path) -> None:
    losses = []
    for name, options in (("without", {}), ("every step", {"eval_steps": 1}), ("every third", {"eval_steps": 3})):
        asked: dict[str, Any] = recipe("trl-sft-lora", lora_dropout=0.4, max_steps=6, **options)
        asked["generation"] = {"max_new_tokens": 6, "temperature": temperature}
        run = ftkit.run(asked, out=tmp_path / name, console=Console(silent=True))
        rows = run.directory.log_rows()
        assert len([r for r in rows if r["event"] == "eval"]) == {"without": 0, "every step": 7, "every third": 3}[name]
        losses.append([row["loss"] for row in rows if row["event"] == "step"])
    assert len(losses[0]) == 6 and losses[1] == losses[0] and losses[2] == losses[0]


def test_every_generator_is_as_it_was_after_a_measurement() -> None:
    import torch
    from ftkit_trl._random import preserved_random_state

    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), torch.rand(1).item()]

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)

    def measure() -> None:
        with preserved_random_state():
            draw()
            torch.manual_seed(5), random.seed(5), np.random.seed(5)
            raise KeyError

    with pytest.raises(KeyError):
        measure()
    assert draw() == expected


# ---------------------------------------------------------------- the parts of a batch


@pytest.mark.parametrize(
    ("work", "sizes"),
    [
        ([], []),
        ([5], [1]),
        ([9] * 7, [7]),  # too few to share
        ([9] * 8, [4, 4]),
        ([9] * 9, [5, 4]),
        ([60, 10, 10, 10, 10, 10, 5, 5], [1, 7]),  # one long prompt takes as long as all others
        ([9] * 64, [32, 32]),
        ([9] * 65, [16, 16, 17, 16]),  # an even number of parts: no thread waits for the last
        ([1000] + [1] * 63, [32, 32]),  # no part is larger than the cache is to be
        ([1000] + [1] * 39, [8, 32]),
    ],
)
def test_a_batch_is_split_into_parts_of_equal_work(work: list[int], sizes: list[int]) -> None:
    from ftkit_trl._generate import _balanced

    prompts: Any = list(range(len(work)))
    parts = _balanced(prompts, work)
    assert [i for part in parts for i in part] == prompts
    assert [len(part) for part in parts] == sizes


# ---------------------------------------------------------------- the model's own generation_config.json

TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
OWN: dict[str, dict[str, Any]] = {
    "penalty": {"repetition_penalty": 1.9},
    "sampling": {"do_sample": True, "temperature": 3.0, "top_p": 0.9, "top_k": 9, "min_p": 0.1},
    "other sampling": {"do_sample": True, "typical_p": 0.2, "epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "top_h": 0.4},
    "sampling flags alone": {"temperature": 0.9, "top_p": 0.6},
    "beams": {"num_beams": 3, "length_penalty": 3.0, "early_stopping": True},
    "beam groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    "several answers": {"num_return_sequences": 4},
    "forced tokens": {"forced_bos_token_id": 9, "forced_eos_token_id": 11},
    "static cache": {"cache_implementation": "static"},
    "paged cache": {"cache_implementation": "paged"},
    "unknown cache": {"cache_implementation": "no such cache"},
    "no cache": {"use_cache": False},
    "guidance": {"guidance_scale": 3.0},
    "bad words": {"bad_words_ids": [[5], [9]], "sequence_bias": [[[7], 9.0]]},
    "suppressed": {"suppress_tokens": [5, 6, 7, 8, 9], "begin_suppress_tokens": [10, 11, 12]},
    "suppressed and forced": {"suppress_tokens": [2], "forced_eos_token_id": 2},
    "lengths": {"min_new_tokens": 6, "min_length": 100, "max_length": 3, "max_new_tokens": 2, "max_time": 0.0001},
    "n-grams": {"no_repeat_ngram_size": 1, "encoder_no_repeat_ngram_size": 2, "encoder_repetition_penalty": 3.0},
    "decay": {"exponential_decay_length_penalty": [1, 3.0], "renormalize_logits": True, "remove_invalid_values": True},
    "outputs": {"return_dict_in_generate": True, "output_scores": True, "output_attentions": True, "output_logits": True},
    "stop strings": {"stop_strings": ["a"]},
    "look-up": {"prompt_lookup_num_tokens": 2},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "dola": {"dola_layers": "high"},
    "watermark": {"watermarking_config": {"bias": 9.0, "seeding_scheme": "lefthash"}},
    "compiled": {"compile_config": {"mode": "reduce-overhead"}},
    "chunks": {"prefill_chunk_size": 3},
    "invalid": {"early_stopping": "perhaps", "max_new_tokens": -3},
    "unknown": {"logits_processor": [1], "some_new_setting": {"a": 1}, "transformers_version": "99.0"},
}  # fmt: skip


def model_with(own: dict[str, Any] | str | None, folder: Path) -> Path:
    """Return a copy of the embedded model whose generation_config.json says `own` beside its tokens."""
    from ftkit_trl._model import source

    shutil.copytree(source("package:ftkit_quickstart/model"), folder)
    path = folder / "generation_config.json"
    if own is None:
        path.unlink()
    else:
        path.write_text(own if isinstance(own, str) else json.dumps({**TOKENS, **own}))
    return folder


def backend_of(folder: Path, plugin: str = "trl-sft-lora", **options: Any) -> Any:
    return load_recipe(recipe(plugin, base_model=str(folder), **options)).backend.make()


@pytest.fixture(scope="module")
def task() -> Any:
    return load_task(load_recipe(recipe("trl-sft-lora")))[0]


def answers(folder: Path, task: Any, tmp_path: Path, **generation: Any) -> list[tuple[str, str, int]]:
    backend = backend_of(folder)
    run = RunDirectory.create(tmp_path / "runs", "answers")
    settings = GenerationConfig(**{"max_new_tokens": 12, **generation})
    with backend.load(backend.base_model(), run) as session:
        (found,) = session.generate([task.test[:6]], settings)
    return [(p.text, p.finish_reason, p.tokens_out) for p in found]


@pytest.fixture(scope="module")
def clean(task: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[float, Any]:
    """The answers of a model whose file names tokens only, by temperature."""
    path = tmp_path_factory.mktemp("clean")
    folder = model_with({}, path / "model")
    return {t: answers(folder, task, path, temperature=t) for t in (0.0, 0.7)}


@pytest.mark.parametrize("name", OWN)
def test_the_models_own_generation_config_changes_no_answer(
    name: str, clean: dict[float, Any], task: Any, tmp_path: Path
) -> None:
    folder = model_with(OWN[name], tmp_path / "model")
    assert answers(folder, task, tmp_path) == clean[0.0]
    assert answers(folder, task, tmp_path, temperature=0.7) == clean[0.7]


@pytest.mark.parametrize("own", [None, "{", "[1]", '{"eos_token_id": "x"}'])
def test_a_file_that_is_missing_or_broken_changes_no_answer(
    own: str | None, clean: dict[float, Any], task: Any, tmp_path: Path
) -> None:
    assert answers(model_with(own, tmp_path / "model"), task, tmp_path) == clean[0.0]


def test_generation_settings_in_the_models_config_change_no_answer(
    clean: dict[float, Any], task: Any, tmp_path: Path
) -> None:
    folder = model_with(None, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"repetition_penalty": 1.9, "num_beams": 2, "use_cache": False, "no_repeat_ngram_size": 1}
    (folder / "config.json").write_text(json.dumps(config))
    assert answers(folder, task, tmp_path) == clean[0.0]


def notes_of(folder: Path, generation: dict[str, Any], task: Any) -> list[Any]:
    asked = dataclasses.replace(task, generation=GenerationConfig(**generation))
    return [f for f in backend_of(folder).check(asked) if "generation_config.json" in f.message]


def test_check_says_what_the_models_own_file_asks_for(task: Any, tmp_path: Path) -> None:
    folder = model_with({"repetition_penalty": 1.1, "do_sample": True, "temperature": 1.0}, tmp_path / "model")
    (found,) = notes_of(folder, {}, task)
    assert found.level == "note" and "asks for repetition_penalty 1.1, do_sample true; it is not used" in found.message
    assert found.hint == "to measure with it, set generation.repetition_penalty: 1.1"
    (found,) = notes_of(folder, {"repetition_penalty": 1.1}, task)
    assert "repetition_penalty" not in found.message
    assert not notes_of(model_with({"do_sample": False}, tmp_path / "plain"), {}, task)


# ---------------------------------------------------------------- the recipe's settings


def test_the_recipes_settings_are_followed(clean: dict[float, Any], task: Any, tmp_path: Path) -> None:
    folder = model_with({}, tmp_path / "model")
    penalised = answers(folder, task, tmp_path, repetition_penalty=1.9)
    assert penalised != clean[0.0]
    # One token to choose from is greedy decoding; so is a share of 100 %.
    assert answers(folder, task, tmp_path, temperature=0.7, top_k=1) == clean[0.0]
    assert answers(folder, task, tmp_path, temperature=0.7, min_p=1.0) == clean[0.0]
    assert answers(folder, task, tmp_path, temperature=0.7, top_k=1, repetition_penalty=1.9) == penalised


def test_no_setting_is_as_it_was_before_there_were_such_settings() -> None:
    from ftkit_trl._generate import _arguments

    assert _arguments(GenerationConfig()) == {"do_sample": False}
    sampled = _arguments(GenerationConfig(temperature=0.5, top_p=0.9))
    assert sampled == {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 0}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"top_k": -1}, "`generation.top_k` must be at least 0"),
        ({"min_p": 1.5}, "`generation.min_p` must be at most 1"),
        ({"repetition_penalty": 0}, "`generation.repetition_penalty` must be greater than 0"),
        ({"stop": "\n"}, "`generation.stop` must be a list"),
        ({"stop": [""]}, "at least 1 character"),
        ({"stop_strings": ["x"]}, "in ftkit this is `stop`"),
        ({"repetition_penaly": 1.1}, "did you mean `repetition_penalty`"),
    ],
)
def test_settings_out_of_range_are_one_message(written: dict[str, Any], message: str) -> None:
    with pytest.raises(ftkit.FtkitError) as refusal:
        load_recipe({**recipe("trl-sft-lora"), "generation": written})
    assert message in str(refusal.value)


def test_a_stop_string_ends_an_answer(clean: dict[float, Any], task: Any, tmp_path: Path) -> None:
    folder = model_with({}, tmp_path / "model")
    whole = answers(folder, task, tmp_path, max_new_tokens=40)
    counts = collections.Counter(letter for text, *_ in whole for letter in set(text[1:]) if letter.isalpha())
    stops = [next(letter for letter, n in counts.most_common() if n < len(whole)), "no such text"]
    for changes in ({}, {"temperature": 0.7}):
        plain = answers(folder, task, tmp_path, max_new_tokens=40, **changes)
        stopped = answers(folder, task, tmp_path, max_new_tokens=40, stop=stops, **changes)
        assert [s for *_, s, _ in stopped if s == "stop"], stops
        for (before, why, tokens), (after, ended, used) in zip(plain, stopped, strict=True):
            if not changes:  # sampling: rows that leave the batch change what the others draw
                assert after == before.split(stops[0])[0].strip()
                assert used <= tokens and (used < tokens or after == before)
                assert ended == ("stop" if stops[0] in before else why)
            assert stops[0] not in after


@pytest.mark.parametrize("parts", [1, 2])
def test_a_stop_string_may_span_tokens_and_name_a_special_token(parts: int) -> None:
    from ftkit_trl._model import load_tokenizer
    from ftkit_trl._stop import StopStrings

    tokenizer = load_tokenizer(backend_of("package:ftkit_quickstart/model").options)
    ids = tokenizer("Anna meets Ben. Ben is late again.", add_special_tokens=False)["input_ids"]
    stops = StopStrings(tokenizer, ["Ben", "Ben is la"][:parts])
    text, used = stops.cut(ids)
    assert text.strip() == "Anna meets" and tokenizer.decode(ids[:used]).endswith("Ben")
    assert "Ben" not in tokenizer.decode(ids[: used - 1])
    assert StopStrings(tokenizer, ["nobody"]).cut(ids) is None and StopStrings(tokenizer, ["Ben"]).cut([]) is None
    special = StopStrings(tokenizer, [tokenizer.eos_token])
    text, used = special.cut([*ids, tokenizer.eos_token_id, *ids])
    assert (text.strip(), used) == ("Anna meets Ben. Ben is late again.", len(ids) + 1)
    text, _ = StopStrings(tokenizer, ["late"]).cut([tokenizer.bos_token_id, *ids])
    assert text.strip() == "Anna meets Ben. Ben is"


def test_settings_are_part_of_a_baselines_key(tmp_path: Path) -> None:
    keys = []
    for generation in ({}, {"stop": ["x"]}, {"repetition_penalty": 1.1}, {"top_k": 5, "temperature": 1}):
        loaded = load_recipe({**recipe("trl-sft-lora"), "generation": generation})
        (run,) = prepare([loaded], tmp_path, Console(silent=True))
        backend = loaded.backend.make()
        keys.append(json.dumps(key_of(run, backend, Measurement("baseline", backend.base_model()))))
    assert len(set(keys)) == 4


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize(
    ("own", "saved"),
    [
        ({"temperature": 0.9, "top_p": 0.6, "max_length": 4096}, {"temperature": 0.9, "top_p": 0.6, "do_sample": True}),
        ({"do_sample": False, "temperature": 0.9, "top_k": 3}, {"do_sample": False}),
        ({"temperature": 0}, {"do_sample": False}),
        ({"do_sample": True, "temperature": 0.6}, {"do_sample": True, "temperature": 0.6}),
        ({"cache_implementation": "no such cache", "repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"num_beams": 3, "early_stopping": True}, {"num_beams": 3, "early_stopping": True}),
        ({"early_stopping": True, "length_penalty": 2.0}, {}),
        ({"num_return_sequences": 4}, {}),
    ],
)
def test_a_full_fine_tuning_is_saved_whatever_the_bases_file_says(
    own: dict[str, Any], saved: dict[str, Any], tmp_path: Path
) -> None:
    from ftkit_trl._model import load_config, own_generation
    from ftkit_trl._own_generation import clean_config, saved_config
    from transformers import GenerationConfig as Theirs

    options = backend_of(model_with(own, tmp_path / "model"), "trl-sft-full").options
    clean = clean_config(own_generation(options), load_config(options))
    saved_config(own_generation(options), {2, 9}, clean).save_pretrained(tmp_path)
    read = Theirs.from_pretrained(tmp_path)
    assert read.eos_token_id == [2, 9] and read.pad_token_id == 0
    kept = json.loads((tmp_path / "generation_config.json").read_text())
    assert {k: v for k, v in kept.items() if k not in (*TOKENS, "transformers_version", "max_length")} == saved


def test_vicunas_file_trains_to_its_end(tmp_path: Path) -> None:
    folder = model_with({"temperature": 0.9, "top_p": 0.6}, tmp_path / "model")
    asked = recipe("trl-sft-full", base_model=str(folder), max_steps=2, learning_rate=1e-3, snapshots=[1], eval_steps=1)
    asked["backend"]["keep_best"] = True
    run = ftkit.run(asked, out=tmp_path / "runs", console=Console(silent=True))
    for place in ("train/model", "train/snapshots/1"):
        written = json.loads((run.dir / place / "generation_config.json").read_text())
        assert written["temperature"] == 0.9 and written["do_sample"] is True
    assert run.directory.record().status == "done"


def test_what_cannot_be_saved_is_known_before_anything_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaConfig

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("this config\ncannot be saved")

    monkeypatch.setattr(LlamaConfig, "save_pretrained", refuse)
    with pytest.raises(ftkit.FtkitError, match="tuned model could not be saved: ValueError: this config cannot be"):
        ftkit.run(recipe("trl-sft-full"), out=tmp_path / "runs", console=Console(silent=True))
    assert not list((tmp_path / "runs").glob("*"))
