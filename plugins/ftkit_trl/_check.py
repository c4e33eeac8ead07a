"""Checks and estimates before training: does the model exist, does it fit in memory, how long will it take?"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase

from ftkit.errors import InputError, RunFailed
from ftkit.records import Finding, GenerationConfig, Rendered, Task

from ._batches import Order
from ._check_launch import launch_findings
from ._check_settings import (
    adapter_findings,
    attention_findings,
    context_findings,
    position_findings,
    schedule_findings,
    vocabulary_findings,
)
from ._continued import Start, start_findings
from ._fit import Estimator, facts, size_findings
from ._gguf import dequantised
from ._model import device, gguf_file, load_config, load_tokenizer, own_generation, skeleton
from ._own_generation import clean_config, saved_config, try_to_save, unused_settings
from ._render import Chat
from .options import TrainOptions

if TYPE_CHECKING:
    from . import TrlSftLora

_TOO_LONG = 3 * 3600.0  # seconds on a CPU beyond which a run needs allow_slow


def findings(backend: TrlSftLora, task: Task | None, trains: bool = True) -> Iterator[Finding]:
    """Yield what would stop the run or make its result useless; `trains` False looks at the untouched model alone."""
    options = backend.options
    yield from start_findings(backend)
    if trains:
        yield from _training_findings(options, task)
        yield from schedule_findings(options, task)
        yield from launch_findings(backend, task)
    if backend.quantised and device().type == "mps":
        yield Finding(
            "error",
            "4-bit training does not work on Apple GPUs",
            "use plugin trl-sft-lora",
            "backend.plugin",
            here=True,
        )
    try:
        model = _skeleton(options)
        tokenizer = load_tokenizer(options)
    except InputError as error:
        hint = error.hint or ""
        if device().type == "cpu" and "hub cannot be reached" in error.message:
            hint += "\n  this machine has no GPU: `ftkit run quickstart` works on a CPU without any download"
        yield Finding("error", error.message, hint.strip() or None, "backend.base_model")
        return
    gguf = gguf_file(options)
    if gguf is not None:
        yield from _gguf_findings(gguf, backend)
    config = load_config(options)
    yield from _template_findings(tokenizer, backend.start)
    yield from _generation_findings(tokenizer, options, task, trains)
    yield from attention_findings(options, config, here=backend.machine is None)
    if trains:
        yield from position_findings(options, config, model)
    try:
        chat = Chat(tokenizer, options)
    except InputError as error:
        yield Finding("error", error.message, error.hint, "backend.chat_template")
    else:
        yield from _template_notes(chat)
        yield from vocabulary_findings(tokenizer, chat, model, task)
        yield from context_findings(chat, config, task, options, trains)
    if backend.adapter and trains:
        yield from adapter_findings(model, options)
    estimator = Estimator(backend, task, trains)
    yield from _speed_findings(_estimated(estimator, task), options)
    yield from size_findings(estimator)


def _template_findings(tokenizer: PreTrainedTokenizerBase, start: Start | None) -> Iterator[Finding]:
    """Yield that the model of another run was trained with another chat template than it is trained with here."""
    here = hashlib.sha256(str(tokenizer.get_chat_template()).encode()).hexdigest()
    if start is not None and start.template not in (None, here):
        yield Finding(
            "warning",
            f"the chat template is not the one that the run {start.run.name} was trained with",
            "set backend.chat_template as that run has it",
            "backend.chat_template",
        )


def _gguf_findings(file: Path, backend: TrlSftLora) -> Iterator[Finding]:
    """Yield that the weights of a GGUF file are dequantised: they are not those that the model was published with."""
    how = dequantised(file)
    if how is not None:
        again = ", then quantised to 4 bits" if backend.quantised else ""
        yield Finding(
            "note",
            f"the weights of {file.name} are {how}{again}: the scores are those of these weights, not of the original model",
            key="backend.base_model",
        )


def _training_findings(options: TrainOptions, task: Task | None) -> Iterator[Finding]:
    """Yield what is wrong with the options of training."""
    if task is not None and not task.train:
        yield Finding("error", "there are no training rows", "set dataset.splits.train", "dataset.splits.train")
    if options.keep_best and not options.eval_steps:
        yield Finding(
            "error",
            "keep_best needs eval_steps: without them nothing is measured during training",
            key="backend.keep_best",
        )
    if options.eval_steps and task is not None and not task.validation:
        yield Finding(
            "error", "eval_steps needs validation rows", "set dataset.splits.validation", "backend.eval_steps"
        )


def _speed_findings(found: dict[str, Any], options: TrainOptions) -> Iterator[Finding]:
    """Yield where the estimate says that this machine is too slow."""
    seconds = found.get("seconds")
    if seconds and seconds > _TOO_LONG and not options.allow_slow:
        yield Finding(
            "error",
            f"this machine has no GPU, and a model of {found['parameters'] / 1e9:.2f}B parameters would take about "
            f"{seconds / 3600:.0f} hours on its CPU (a rough estimate)",
            "run it on a GPU; or try `ftkit run quickstart`, a smaller backend.base_model, fewer backend.max_steps; "
            "or start it all the same with --set backend.allow_slow=true",
            "backend.base_model",
            here=True,
        )


def _template_notes(chat: Chat) -> Iterator[Finding]:
    """Yield notes on the chat template."""
    if chat.dated:
        yield Finding("note", f"the chat template tells the model the date: it is always {chat.date:%d %b %Y}",
                      "backend.template_date changes it", "backend.template_date")  # fmt: skip
    if chat.closing:
        yield Finding("note", f"the chat template ends answers with no special token: they end with {chat.tokenizer.eos_token}",
                      key="backend.chat_template")  # fmt: skip


def _generation_findings(
    tokenizer: PreTrainedTokenizerBase, options: TrainOptions, task: Task | None, trains: bool
) -> Iterator[Finding]:
    """Yield what the model's own generation config asks for and does not get, and whether it can be saved again."""
    config, own = load_config(options), own_generation(options)
    recipe = task.generation.to_dict() if task is not None and task.generation is not None else {}
    unused = unused_settings(own, recipe)
    if unused:
        shown = ", ".join(f"{key} {_short(value)}" for key, value in unused.items())
        usable = [f"generation.{key}: {_short(unused[key])}" for key in unused if key in GenerationConfig.model_fields]
        yield Finding(
            "note",
            f"the model's generation_config.json asks for {shown}; it is not used: the recipe's `generation` decides",
            f"to measure with it, set {', '.join(usable)}" if usable else None,
            "generation",
        )
    if trains:
        try:
            try_to_save(config, saved_config(own, (), clean_config(own, config)), tokenizer)
        except RunFailed as error:
            yield Finding("error", error.message, error.hint, "backend.base_model")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def refuse_faulty(rows: Sequence[Rendered]) -> None:
    """Raise RunFailed where a training row must not be trained on: rows or model may have changed since `prepare`."""
    faulty = [row for row in rows if row.finding is not None and row.finding.level == "error"]
    if faulty:
        row = faulty[0]
        raise RunFailed(
            f"example {row.example_id!r}: {row.finding.message} ({len(faulty)} such rows)", row.finding.hint
        )


def refuse_masked(collate: Callable[[list[dict[str, Any]]], Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise RunFailed where the trainer's collator does not keep exactly the labels of these rows.

    A collator that masks by token value drops the end of every target where the pad token is the end-of-turn token.
    """
    some = [dict(row) for row in rows]
    labels = collate(some)["labels"]  # (B, T)
    kept, given = labels[labels != -100].tolist(), [i for row in some for i in row["labels"] if i != -100]
    if kept != given:
        raise RunFailed(
            f"the trainer's batches hold {len(kept)} labels for the first rows, not the {len(given)} it was given",
            "this is a defect of the installed trl with ftkit: `pip install -c constraints.txt trl`",
        )


def estimate(backend: TrlSftLora, task: Task | None, trains: bool = True) -> dict[str, Any]:
    """Return `parameters`, the memory (docs/memory.md), rough `seconds` of the whole run; or `not_estimated` and why.

    `memory_bytes` are of one device, `memory_parts` say where they go, `memory` says whether they fit. Operations are
    2 per parameter and token forward, 4 more backward. `pad_share` (0..1) is the share of padding in random batches
    that are padded. `trains` False counts the answers of the untouched model alone.
    """
    try:
        estimator = Estimator(backend, task, trains)
    except InputError as error:
        return {"not_estimated": f"the size of {backend.options.base_model!r} is not known ({error.message})"}
    return _estimated(estimator, task)


def _estimated(estimator: Estimator, task: Task | None) -> dict[str, Any]:
    options, trains = estimator.options, estimator.trains
    parameters = sum(p.numel() for p in estimator.model.parameters())
    found: dict[str, Any] = {"parameters": parameters, **facts(estimator)}
    lengths = _lengths(task, options.sequence_len) if task is not None else []
    if lengths and trains:
        found["pad_share"] = round(Order(lengths, options.micro_batch_size, seed=0).pad_share(), 3)
    if task is not None and lengths and not estimator.place.gpu:
        steps = options.max_steps or options.num_epochs * len(task.train) / options.step_examples
        per_example = sum(lengths) / len(lengths)
        trained_tokens = steps * options.step_examples * per_example
        measured_tokens = (2 if trains else 1) * len(task.measured) * (per_example + 64)
        operations = 2 * parameters * (3 * trained_tokens * trains + measured_tokens)
        found["seconds"] = round(operations / _operations_per_second(), 1)
    return found


def _skeleton(options: TrainOptions) -> Any:
    """Return the model without its weights."""
    return skeleton(load_config(options), options)


def _lengths(task: Task, limit: int) -> list[int]:
    """Return the training examples' rough lengths in tokens: about three characters each, at most `limit`."""
    rows = task.train or task.measured
    return [
        min(limit, (sum(len(m.content) for m in e.messages) + len(e.targets[0])) // 3 + 1) for e in rows if e.messages
    ]


@lru_cache(maxsize=1)
def _operations_per_second() -> float:
    """Measure this CPU's fp32 rate on a matrix product of medium size, in operations per second."""
    a, b = torch.randn(512, 1024), torch.randn(1024, 1024)
    a @ b
    began = time.perf_counter()
    for _ in range(8):
        a @ b
    return 8 * 2 * 512 * 1024 * 1024 / (time.perf_counter() - began) / 2  # training reaches about half of it
