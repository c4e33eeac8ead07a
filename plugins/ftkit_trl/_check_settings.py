"""Checks of single settings against the model: what would fail, or be useless, only after time was spent."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from ftkit.errors import InputError
from ftkit.records import Example, Finding, Task
from ftkit.text import nearest

from ._model import context_length, device
from ._render import Chat
from ._shape import LINEAR, is_named
from .options import TrainOptions

if TYPE_CHECKING:
    from .options import LoraOptions

_DEFAULT_OPTIMIZER = "adamw_torch"


def schedule_findings(options: TrainOptions, task: Task | None) -> Iterator[Finding]:
    """Yield what is wrong with optimizer and warm-up."""
    yield from _optimizer_findings(options)
    rows = len(task.train) if task is not None else 0
    steps = options.max_steps
    if steps is None and rows:
        per_epoch = math.ceil(rows / options.step_examples)
        steps = math.ceil(options.num_epochs * per_epoch)
    if steps and options.warmup_steps >= steps:
        yield Finding(
            "warning",
            f"the warm-up is not shorter than the training: {options.warmup_steps} of {steps} steps; the learning rate "
            f"never stays at {options.learning_rate:g}",
            f"set backend.warmup_steps to {steps // 10} or so, or train longer",
            "backend.warmup_steps",
        )


def _optimizer_findings(options: TrainOptions) -> Iterator[Finding]:
    """Yield why transformers has no such optimizer, or cannot make it here."""
    from transformers import Trainer, TrainingArguments
    from transformers.training_args import OptimizerNames

    name, known = options.optimizer, [o.value for o in OptimizerNames]
    if name not in known:
        near = nearest(name, known)
        hint = f"did you mean {near}?" if near else f"it knows: {', '.join(known)}"
        yield Finding("error", f"transformers has no optimizer {name!r}", hint, "backend.optimizer")
    elif name != _DEFAULT_OPTIMIZER:
        try:
            with tempfile.TemporaryDirectory() as folder:
                arguments = TrainingArguments(folder, optim=name, use_cpu=device().type == "cpu", report_to="none")
                Trainer.get_optimizer_cls_and_kwargs(arguments, torch.nn.Linear(1, 1))
        except Exception as error:  # a package that is missing, or a setting that a recipe does not have
            why = " ".join(str(error).split())[:200]
            yield Finding(
                "error",
                f"the optimizer {name!r} cannot be used here: {why}",
                f"install what it needs, or use {_DEFAULT_OPTIMIZER}",
                "backend.optimizer",
            )


def attention_findings(options: TrainOptions, config: Any, here: bool = True) -> Iterator[Finding]:
    """Yield why this attention implementation cannot be used: it is unknown, or its package or GPU is missing.

    `here` False asks about another machine, which has a GPU.
    """
    name = options.attn_implementation
    if not name:
        return
    problem = None
    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(
                config, attn_implementation=name, trust_remote_code=options.trust_remote_code
            )
    except Exception as error:  # each implementation has checks of its own
        problem = " ".join(str(error).split())[:240]
    if problem is None and "flash" in name and device().type == "cpu" and here:
        problem = "it needs a GPU"
    if problem is not None:
        near = nearest(name, ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"))
        better = f"did you mean {near}? Or " if near and near != name else "install what it needs, or "
        yield Finding(
            "error",
            f"attention {name!r} cannot be used: {problem}",
            f"{better}remove the key: PyTorch's own (sdpa) is the default",
            "backend.attn_implementation",
        )


def position_findings(options: TrainOptions, config: Any, model: Any) -> Iterator[Finding]:
    """Yield where training examples may be longer than the model has positions."""
    positions = context_length(config)
    if positions is None or options.sequence_len <= positions:
        return
    learned = any(
        isinstance(module, torch.nn.Embedding) and re.search(r"wpe|pos", name.rsplit(".", 1)[-1])
        for name, module in model.named_modules()
    )
    message = f"backend.sequence_len {options.sequence_len} is above the model's {positions} positions"
    hint = f"set backend.sequence_len: {positions}"
    if learned:
        message += ": it has learned no others"
    else:
        message += ": it was not trained on longer texts"
    yield Finding("error" if learned else "warning", message, hint, "backend.sequence_len")


def vocabulary_findings(
    tokenizer: PreTrainedTokenizerBase, chat: Chat, model: Any, task: Task | None
) -> Iterator[Finding]:
    """Yield where the tokenizer gives token ids that the model's embedding has no row for.

    Some tokenizers have tokens that the model lacks and that no text uses (of images): they are a note.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = {i: token for token, i in tokenizer.get_vocab().items() if i >= rows}
    if not beyond:
        return
    used = {tokenizer.pad_token_id, *chat.ends, *chat.header_ids}
    sample = Example("", chat.probe, ("",))
    prompts = [sample, *(task.measured if task else ())]
    for ids in _prompts(chat, prompts):
        used.update(ids)
    for row in chat.render([*task.train, *task.validation] if task else []):
        used.update(row.ids)
    found = sorted(beyond.keys() & used)
    size = f"the tokenizer has token ids up to {max(beyond)}, and the model's embedding has {rows} rows"
    if found:
        yield Finding(
            "error",
            f"{size}: it cannot read {beyond[found[0]]!r} (id {found[0]}), which the texts or the chat template use",
            "use the tokenizer that belongs to the model, or enlarge the model: "
            f"model.resize_token_embeddings({max(beyond) + 1}), save_pretrained into a folder, and name that folder",
            "backend.base_model",
        )
    else:
        yield Finding("note", f"{size}; none of the texts uses such a token", key="backend.base_model")


def context_findings(
    chat: Chat, config: Any, task: Task | None, options: TrainOptions, trains: bool
) -> Iterator[Finding]:
    """Yield where answers of full length leave too little of the model's context for the prompts."""
    positions = context_length(config)
    if positions is None or task is None or task.generation is None:
        return
    answer = task.generation.max_new_tokens
    room = positions - answer
    measured: list[Example] = list(task.measured)
    if trains and options.eval_steps:
        measured += task.validation[: options.eval_samples]
    lengths = [len(ids) for ids in _prompts(chat, _may_be_long(measured, room))]
    longest = max(lengths, default=0)
    if longest <= max(room, 0):
        return
    cut = sum(length > room for length in lengths)
    facts = (
        f"generation.max_new_tokens {answer} leaves {max(room, 0)} of the model's {positions} positions for a prompt"
    )
    if room * 2 >= longest:
        yield Finding(
            "warning",
            f"{facts}: {cut} of {len(measured)} prompts are truncated, the longest has {longest} tokens",
            _fix(positions, longest),
            "generation.max_new_tokens",
        )
    else:
        yield Finding(
            "error",
            f"{facts}, less than half of the longest, which has {longest} tokens",
            _fix(positions, longest),
            "generation.max_new_tokens",
        )


def _prompts(chat: Chat, examples: Sequence[Example]) -> list[list[int]]:
    """Return the prompts' tokens; none where the template refuses one, which the audit of tokens reports."""
    try:
        return chat.prompts(examples)
    except InputError:
        return []


def _fix(positions: int, longest: int) -> str:
    if longest < positions:
        return f"set generation.max_new_tokens to {positions - longest} or less: then each prompt fits"
    return "shorten the rows or the prompt, or use a model with a longer context"


def _may_be_long(examples: Sequence[Example], room: int) -> list[Example]:
    """Return the examples whose prompt may have more than `room` tokens: a token is at least one byte.

    Half of the room is kept for what the chat template adds.
    """
    return [e for e in examples if sum(len(m.content.encode("utf-8", "replace")) for m in e.messages) > room // 2]


# ---------------------------------------------------------------- layers with an adapter


def adapter_findings(model: Any, options: LoraOptions) -> Iterator[Finding]:
    """Yield the layers that are to get an adapter and that the model does not have, or that cannot be trained so."""
    wanted = options.lora_target_modules
    if wanted == "all-linear":
        return
    head = model.get_output_embeddings()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LINEAR)}
    usable = sorted({name.rsplit(".", 1)[-1] for name, module in layers.items() if module is not head})
    for name in wanted:
        found = [module for path, module in layers.items() if is_named(path, name)]
        if not found:
            near = nearest(name, usable)
            known = f"it has: {', '.join(usable)}"
            yield Finding("error", f"the model has no linear layer {name!r}",
                          f"did you mean {near}? {known}" if near else known, "backend.lora_target_modules")  # fmt: skip
        elif any(module is head for module in found):
            yield Finding(
                "error",
                f"{name!r} is the model's output layer: TRL computes the loss without an adapter on it, so the adapter "
                "would not be trained",
                f"remove it from backend.lora_target_modules; choose from: {', '.join(usable)}",
                "backend.lora_target_modules",
            )
