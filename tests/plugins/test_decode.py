"""Answers made faster are the same answers: rows that leave the batch, the cache with room, parts side by side."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch  # noqa: TID253 (all of this file needs it)
from ftkit_trl import _model
from ftkit_trl._decode import PreallocatedLayer, StopFlag, _cache, decode, in_parallel
from test_trl import BASE, recipe
from transformers import (  # noqa: TID253
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3Config,
)

from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.recipe.load import load_recipe
from ftkit.records import GenerationConfig, ModelRef
from ftkit.run.prepare import prepare

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "max_position_embeddings": 512,
}  # fmt: skip
MODELS = {
    "llama": LlamaConfig(**SIZES),
    "qwen": Qwen3Config(**SIZES),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=512),
    "mistral": MistralConfig(**SIZES, sliding_window=6),
    "gemma": Gemma3TextConfig(**SIZES, sliding_window=6, sliding_window_pattern=2),
    "mamba": MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64),
}
ENDS = [3, 17, 40]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def made(name: str) -> Any:
    """A random model in double precision: no rounding decides between two tokens."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(MODELS[name]).double().eval()
    for parameter in model.parameters():  # of the usual size, such a model says one token for ever
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id = None
    return model


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(2)
    ids = torch.randint(4, 60, (12, 20), generator=random)
    mask = torch.ones_like(ids)
    for row in range(12):
        mask[row, : row % 5] = 0
    return ids * mask, mask


def uneven_prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of 1 to 120 tokens, not in the order of their lengths."""
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(4, 60, (9, 120), generator=random)
    mask = torch.ones_like(ids)
    for row, length in enumerate((30, 120, 1, 119, 64, 33, 20, 100, 64)):
        mask[row, : 120 - length] = 0
    return ids * mask, mask


def templated_prompts(lengths: tuple[int, ...] = (30, 120, 25, 119, 64, 33, 26, 100, 64)) -> tuple[Any, torch.Tensor]:
    """Prompts that begin with the same 24 tokens."""
    random = torch.Generator().manual_seed(14)
    ids = torch.randint(4, 60, (len(lengths), max(lengths)), generator=random)
    common, mask = torch.randint(4, 60, (24,), generator=random), torch.ones_like(ids)
    for row, length in enumerate(lengths):
        begin = ids.shape[1] - length
        ids[row, begin : begin + 24], ids[row, begin + 24] = common, 4 + row
        mask[row, :begin] = 0
    return ids * mask, mask


def upto_end(row: list[int]) -> list[int]:
    return row[: next((n + 1 for n, token in enumerate(row) if token in ENDS), len(row))]


@pytest.mark.parametrize("rows", [prompts, uneven_prompts, templated_prompts])
@pytest.mark.parametrize("name", MODELS)
def test_each_row_is_what_generate_gives(name: str, rows: Any) -> None:
    model = made(name)
    ids, mask = rows()
    for new in (50, 1, 2):
        whole = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=new, do_sample=False, eos_token_id=ENDS, pad_token_id=0
        )
        expected = [upto_end(row) for row in whole[:, ids.shape[1] :].tolist()]
        found = decode(model, ids, mask, new, ENDS, StopFlag(), do_sample=False, pad_token_id=0)
        assert [upto_end(row) for row in found] == expected
        assert max(map(len, found)) <= new
        lengths = {len(row) for row in expected}
        assert new < 50 or (min(lengths) < 16 and len(lengths) > 1), "rows are to leave at different times"
    roomy = name in ("llama", "qwen", "gpt2")  # the others remember only what is near, or a state
    assert (_cache(model) is not None) == roomy


def test_prompts_of_different_lengths_are_read_without_padding() -> None:
    model = made("llama")
    ids, mask = uneven_prompts()
    read: list[int] = []
    model.model.register_forward_pre_hook(
        lambda _, __, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    decode(model, ids, mask, 2, ENDS, StopFlag(), do_sample=False, pad_token_id=0)
    assert read == [2 * 120, 100, 2 * 64, 3 * 33, 1, 9]
    read.clear()
    even, whole = prompts()
    decode(model, even, whole, 2, ENDS, StopFlag(), do_sample=False, pad_token_id=0)
    assert read == [12 * 20, 12]


def test_the_shared_beginning_of_prompts_is_read_once() -> None:
    model = made("llama")
    read: list[int] = []
    model.model.register_forward_pre_hook(
        lambda _, __, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )

    def tokens(ids: torch.Tensor, mask: torch.Tensor) -> list[int]:
        read.clear()
        decode(model, ids, mask, 2, ENDS, StopFlag(), do_sample=False, pad_token_id=0)
        return list(read)

    assert tokens(*templated_prompts()) == [24, 2 * 96, 76, 2 * 40, 4 * 9, 9]
    assert tokens(*templated_prompts((40, 40, 40))) == [24, 3 * 16, 3], "of one length"
    assert tokens(*templated_prompts((40,))) == [40, 1], "one alone"
    assert tokens(*templated_prompts((400, 400))) == [800, 2], "it would save too little"
    ids, mask = templated_prompts((40, 40))
    ids[1] = ids[0]
    assert tokens(ids, mask) == [39, 2, 2], "the last token of a prompt is read for each: it gives the first new one"


def test_an_empty_prompt_disturbs_no_other() -> None:
    model = made("llama")
    ids, mask = uneven_prompts()
    expected = decode(model, ids, mask, 20, ENDS, StopFlag(), do_sample=False, pad_token_id=0)
    mask[2] = 0
    found = decode(model, ids * mask, mask, 20, ENDS, StopFlag(), do_sample=False, pad_token_id=0)
    assert [upto_end(row) for row in found[:2] + found[3:]] == [upto_end(row) for row in expected[:2] + expected[3:]]


def test_rows_that_have_ended_leave_and_the_cache_copies_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    update = PreallocatedLayer.update

    def watched(self: PreallocatedLayer, keys: torch.Tensor, values: torch.Tensor, *others: Any, **more: Any) -> Any:
        result = update(self, keys, values, *others, **more)
        assert self._buffers is not None
        seen.append((len(keys), self._buffers[0].data_ptr()))
        return result

    monkeypatch.setattr(PreallocatedLayer, "update", watched)
    decode(made("llama"), *prompts(), 50, ENDS, StopFlag(), do_sample=False, pad_token_id=0)
    sizes = [size for size, _ in seen]
    assert sizes[0] == 12 and sizes == sorted(sizes, reverse=True) and len(set(sizes)) > 2
    assert len({place for _, place in seen}) <= 2 * 5  # two layers, at most every 16 tokens


def test_sampling_repeats_with_its_seed() -> None:
    model = made("llama")
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(decode(model, *prompts(), 40, ENDS, StopFlag(), do_sample=True, top_k=0, pad_token_id=0))
    assert found[0] == found[1] != found[2]


def test_threads_are_shared_among_the_parts_and_given_back() -> None:
    torch.set_num_threads(2)
    both = threading.Barrier(2, timeout=30)  # only passed where two are at work at once

    def work(part: int) -> tuple[int, int]:
        both.wait()
        return part, torch.get_num_threads()

    ended: list[bool] = []
    groups = [[1, 2], [3, 4], [5, 6]]
    found = list(in_parallel(work, groups, lambda: ended.append(True)))
    assert found == [(group, [(part, 1) for part in group]) for group in groups] and ended
    assert torch.get_num_threads() == 2
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2]


@pytest.mark.parametrize(
    ("count", "max_parallel", "groups"), [(1, 4, [[1, 2], [3]]), (2, 1, [[1, 2], [3]]), (2, 4, [[1], [2]])]
)
def test_what_has_no_company_is_done_in_this_thread_with_all_of_them(
    count: int, max_parallel: int, groups: list[list[int]]
) -> None:
    torch.set_num_threads(count)
    here = threading.get_ident()
    for _, made in in_parallel(lambda _: (threading.get_ident(), torch.get_num_threads()), groups, print, max_parallel):
        assert set(made) == {(here, count)}


def test_not_much_is_begun_ahead_of_who_reads() -> None:
    torch.set_num_threads(2)
    begun: list[int] = []
    answers = in_parallel(begun.append, ([i, i] for i in range(100)), lambda: None)
    next(answers)
    assert len(begun) <= 6
    answers.close()  # type: ignore[attr-defined]
    assert len(begun) <= 6


@pytest.mark.parametrize("how", ["error", "ctrl-c", "closed"])
def test_a_part_that_fails_and_ctrl_c_end_the_others(how: str) -> None:
    torch.set_num_threads(2)
    model = made("mistral")  # whose cache is its own: one call of `generate`, which would take hours
    stopped = StopFlag()
    started = threading.Event()

    def work(part: int) -> Any:
        if part > 1:
            return None
        if part == 1:
            started.set()
            return decode(model, *prompts(), 10**7, [63_000], stopped, do_sample=False, pad_token_id=0)
        started.wait(30)
        if how == "error":
            raise ValueError("broken")
        if how == "ctrl-c":
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return None

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        answers = in_parallel(work, [[2, 3], [0, 1]], stopped.event.set)
        if how == "closed":
            next(answers)
            assert started.wait(30)
            answers.close()  # type: ignore[attr-defined]
        else:
            with pytest.raises(ValueError if how == "error" else KeyboardInterrupt):
                list(answers)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.event.is_set()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    loaded = load_recipe({**recipe("trl-sft-qlora"), "dataset": {**BASE["dataset"], "test_rows": 40}})  # type: ignore[dict-item]
    (run,) = prepare([loaded], tmp_path_factory.mktemp("runs"), Console(silent=True))
    return run


def test_a_batch_in_parts_comes_back_in_its_order_whatever_the_threads(run: RunDirectory) -> None:
    backend = run.recipe.backend.make()
    batch = run.task.test[:40]  # three parts
    answers = []
    with backend.load(backend.base_model(), run) as session:
        for count in (1, 2):
            torch.set_num_threads(count)
            (found,) = session.generate([batch], GenerationConfig(max_new_tokens=24))
            answers.append([(p.example_id, p.text, p.tokens_in, p.tokens_out) for p in found])
        one_by_one = [p.text for e in batch for (p,) in session.generate([[e]], GenerationConfig(max_new_tokens=24))]
        (samples,) = session.generate([batch[:3]], GenerationConfig(max_new_tokens=8, temperature=1.0, samples=2))
    assert [a[0] for a in answers[0]] == [e.id for e in batch]
    assert answers[0] == answers[1]
    assert [a[1] for a in answers[0]] == one_by_one
    assert [(p.example_id, p.sample) for p in samples] == [(e.id, s) for e in batch[:3] for s in (0, 1)]


def test_4_bit_weights_that_are_written_out_give_the_same_numbers(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = run.recipe.backend.make()
    base = backend.base_model()
    ids = torch.arange(4, 60)[None]
    kinds, logits = [], []
    for available in (10**12, 1000):
        monkeypatch.setattr(_model.psutil, "virtual_memory", lambda free=available: SimpleNamespace(available=free))
        model = _model.load_model(backend, ModelRef(base.kind, base.uri), run).eval()
        kinds.append(type(model.model.layers[0].mlp.up_proj).__name__)
        with torch.inference_mode():
            logits.append(model(input_ids=ids).logits)
    assert kinds == ["Linear", "Linear4bit"]
    assert torch.equal(*logits)
