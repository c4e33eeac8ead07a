"""Does a run fit into the GPU's memory, and which change makes it fit?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from ftkit.records import Finding, Task

from ._check_launch import read_zero, zero_stage
from ._device import visible_gpus
from ._launch import deepspeed_config, world_size
from ._memory import LIBRARIES, NF4_DOUBLE, Memory, Setting, Shape, answering_memory, training_memory
from ._model import device, dtype, load_config, skeleton
from ._shape import shape_of
from .options import TrainOptions

if TYPE_CHECKING:
    from . import TrlSftLora

_ROOM = 0.95  # of the memory that an estimate may take and still be said to fit: estimates are up to 9 % too low
_ANSWERS = 64  # tokens of an answer where the recipe does not say


@dataclass(frozen=True)
class Place:
    """Where a run is to compute: its name, the bytes of one device, how many of these there are, and whether they are GPUs."""

    name: str
    memory_bytes: int
    count: int
    gpu: bool
    asked: bool  # named with --gpu: not this machine

    def verdict(self, needed: int) -> str:
        """Return fits, tight or no."""
        return "fits" if needed <= _ROOM * self.memory_bytes else "tight" if needed <= self.memory_bytes else "no"


def place_of(backend: TrlSftLora) -> Place:
    """Return the machine that the backend is asked about, or this one with the memory that is free now."""
    if backend.machine is not None:
        asked = backend.machine
        return Place(asked.name, asked.memory_bytes, asked.count, True, True)
    if device().type == "cuda":
        name = torch.cuda.get_device_name()
        # What is free, and what this process holds itself.
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
        return Place(name, free, max(1, len(visible_gpus())), True, False)
    return Place("this machine", psutil.virtual_memory().available, 1, False, False)


@dataclass(frozen=True)
class Change:
    """One way to need less: what it is called, the options that it sets, and what is needed then."""

    words: str
    sets: tuple[str, ...]
    needed: int = 0


# ---------------------------------------------------------------- the estimate


@dataclass(frozen=True)
class Needs:
    """What a run needs on one device: in training, and while it answers."""

    training: Memory | None
    answering: Memory

    @property
    def most(self) -> Memory:
        return max((m for m in (self.training, self.answering) if m), key=lambda m: m.total)

    @property
    def total(self) -> int:
        return self.most.total


class Estimator:
    """Computes what a recipe's run needs, and what it would need with other options."""

    def __init__(self, backend: TrlSftLora, task: Task | None, trains: bool = True) -> None:
        self.backend, self.trains = backend, trains
        self.options: TrainOptions = backend.options
        self.place = place_of(backend)
        self.config = load_config(self.options)
        self.model = skeleton(self.config, self.options)
        self.longest = longest(task, self.options.sequence_len)
        answer = task.generation.max_new_tokens if task is not None and task.generation is not None else _ANSWERS
        self.prompt = self.longest + answer
        self.samples = task.generation.samples if task is not None and task.generation is not None else 1
        self.adapted = getattr(self.options, "lora_target_modules", None)

    def shape(self, adapted: Any) -> Shape:
        return shape_of(self.model, adapted)

    def needs(self, options: TrainOptions, adapter: bool, quantised: bool) -> Needs:
        setting = self.setting(options, adapter, quantised)
        adapted = (self.adapted or ["q_proj", "v_proj"]) if adapter else None
        shape = self.shape(adapted)
        training = training_memory(shape, setting) if self.trains else None
        answering = setting if self.place.gpu else replace(setting, four_bit=None)  # a CPU dequantises it once
        return Needs(training, answering_memory(shape, answering))

    def setting(self, options: TrainOptions, adapter: bool, quantised: bool) -> Setting:
        launch = options.launch
        width = torch.empty(0, dtype=dtype(options)).element_size()
        if self.place.asked and options.dtype == "auto":
            width = 2  # bf16 or fp16
        size = world_size(options, self.place.count if self.place.asked else None)
        zero = 3 if launch is not None and launch.fsdp else zero_stage(launch) if launch is not None else 0
        return Setting(
            tokens=options.micro_batch_size * self.longest,
            longest=self.longest,
            adapter=adapter,
            lora_r=getattr(options, "lora_r", 16) if adapter else 0,
            four_bit=NF4_DOUBLE if quantised else None,
            width=width,
            optimizer=options.optimizer,
            checkpointing=options.activation_checkpointing,
            eager=options.attn_implementation == "eager",
            processes=size,
            zero=zero,
            offload=zero > 0 and _offloads(options),
            rows=options.eval_batch_size * self.samples,
            prompt=self.prompt,
            **({} if self.place.gpu else {"context": LIBRARIES}),
        )

    def own(self) -> Needs:
        return self.needs(self.options, self.backend.adapter, self.backend.quantised)

    # ---- changes

    def cheapest(self, most: int = 2) -> list[Change]:
        """Return the first changes, in the order of what they cost, with which the run fits; where none does, the smallest."""
        found: list[Change] = []
        smallest: Change | None = None
        for words, changes, adapter, quantised in self._candidates():
            options = self.options.model_copy(update={k: v for k, v in changes.items() if k != "plugin"})
            needed = self.needs(options, adapter, quantised).total
            change = Change(words, tuple(f"backend.{k}={_plain(v)}" for k, v in changes.items()), needed)
            smallest = change if smallest is None or needed < smallest.needed else smallest
            if self.place.verdict(needed) == "fits" and words not in [other.words for other in found]:
                found.append(change)
            if len(found) == most:
                break
        return found or ([smallest] if smallest else [])

    def _candidates(self) -> Iterator[tuple[str, dict[str, Any], bool, bool]]:
        """Yield single changes and pairs: first those that change no result, then those that change the method."""
        o, adapter, quantised = self.options, self.backend.adapter, self.backend.quantised
        smaller = list(_smaller_passes(o)) if self.trains else []
        answers = {"eval_batch_size": max(1, o.eval_batch_size // 4)} if o.eval_batch_size > 1 else {}
        own = self.own()
        if answers and own.most is own.answering:
            yield "fewer prompts at once", answers, adapter, quantised
        for change in smaller:
            yield "fewer examples in a forward pass, the same in a step", change, adapter, quantised
        again = {} if o.activation_checkpointing or not self.trains else {"activation_checkpointing": True}
        if again:
            yield "activations are computed again (about 30 % slower)", again, adapter, quantised
            if smaller:
                yield (
                    "both: one small forward pass at a time, activations computed again",
                    {**smaller[-1], **again},
                    adapter,
                    quantised,
                )
        least = {
            **(smaller[-1] if smaller else {}),
            **again,
            **(answers if own.answering.total > own.total // 2 else {}),
        }
        if self.trains and not adapter and "8bit" not in o.optimizer:
            bits = {"optimizer": "adamw_bnb_8bit"}
            yield "an 8-bit optimizer", bits, adapter, quantised
            yield (
                "an 8-bit optimizer, small forward passes, activations computed again",
                {**least, **bits},
                adapter,
                quantised,
            )
        if self.place.count > 1 and o.launch is None and self.trains:
            from .options import LaunchOptions

            for zero in ("zero2", "zero3"):
                if zero == "zero3" and quantised:
                    continue
                launch = {"launch": LaunchOptions(deepspeed=zero)}
                yield f"shard over {self.place.count} GPUs with {zero}", launch, adapter, quantised
                yield (
                    f"shard with {zero}, small forward passes, activations computed again",
                    {**least, **launch},
                    adapter,
                    quantised,
                )
        if not adapter and self.trains:
            yield "LoRA instead of all weights (another method)", {"plugin": "trl-sft-lora"}, True, False
            yield (
                "LoRA, small forward passes, activations computed again",
                {"plugin": "trl-sft-lora", **least},
                True,
                False,
            )
        if not quantised and self.place.gpu:
            yield "QLoRA: the base model in 4 bits (another method)", {"plugin": "trl-sft-qlora"}, True, True
            yield (
                "QLoRA, small forward passes, activations computed again",
                {"plugin": "trl-sft-qlora", **least},
                True,
                True,
            )


def _smaller_passes(options: TrainOptions) -> Iterator[dict[str, Any]]:
    """Yield smaller micro-batches, the largest first; a step keeps its examples."""
    size = options.micro_batch_size
    for n in range(size // 2, 0, -1):
        if size % n == 0:
            change: dict[str, Any] = {"micro_batch_size": n}
            if not options.global_batch_size:
                change["gradient_accumulation_steps"] = options.step_examples // n
            yield change


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if hasattr(value, "model_dump"):
        return json.dumps(value.model_dump(exclude_defaults=True))
    return str(value)


def _offloads(options: TrainOptions) -> bool:
    assert options.launch is not None
    if not options.launch.deepspeed:
        return False
    try:
        zero = read_zero(Path(deepspeed_config(options.launch.deepspeed)).expanduser())
    except (OSError, ValueError, TypeError, AttributeError):
        return False
    return "offload_optimizer" in zero or "offload_param" in zero


def longest(task: Task | None, limit: int) -> int:
    """Return the tokens of the longest training example: about a third of its bytes, and at most the limit."""
    rows: Sequence[Any] = (task.train or task.test) if task is not None else ()
    sizes = [
        sum(len(m.content.encode("utf-8", "replace")) for m in e.messages)
        + len(e.targets[0].encode("utf-8", "replace"))
        for e in rows
        if e.messages
    ]
    return min(limit, max(sizes, default=3 * limit) // 3 + 16)


# ---------------------------------------------------------------- in words


def gigabytes(n: float) -> str:
    return f"{n / 1e9:.1f}"


def sentence(place: Place, needed: int) -> str:
    """Return one line: what is needed, what there is, and whether it fits."""
    if place.gpu:
        what = f"needs about {gigabytes(needed)} GB a GPU; "
        has = f"{place.name} has {gigabytes(place.memory_bytes)} GB" + ("" if place.asked else " free")
    else:
        what = f"needs about {gigabytes(needed)} GB; "
        has = f"{place.name} has {gigabytes(place.memory_bytes)} GB free"
    verdict = {"fits": "it fits", "tight": "it may just fit", "no": "it does not fit"}[place.verdict(needed)]
    return f"{what}{has}: {verdict}"


def size_findings(estimator: Estimator) -> Iterator[Finding]:
    """Yield where the estimate says that the memory is too small, with the two cheapest changes that make it fit."""
    place, needed = estimator.place, estimator.own().total
    verdict = place.verdict(needed)
    if verdict == "fits":
        return
    changes = estimator.cheapest()
    fitting = [c for c in changes if place.verdict(c.needed) == "fits"]
    if fitting:
        hint = "\n  ".join(_change_text(c) for c in fitting)
    elif changes:
        hint = f"no change makes it fit; the least is {_change_text(changes[0])}. Use a smaller model or a larger GPU"
    else:
        hint = "use a smaller model or a larger GPU"
    level, here = "note" if verdict == "tight" else "warning", estimator.backend.machine is None
    yield Finding(level, sentence(place, needed), hint, "backend.micro_batch_size", here=here)


def _change_text(change: Change) -> str:
    sets = " ".join(f"--set '{text}'" if '"' in text else f"--set {text}" for text in change.sets)
    return f"{sets}: about {gigabytes(change.needed)} GB ({change.words})"


def facts(estimator: Estimator) -> dict[str, Any]:
    """Return what `estimate` tells of memory."""
    place, needs = estimator.place, estimator.own()
    most = needs.most
    return {
        "memory_bytes": most.total,
        "memory": sentence(place, most.total),
        "memory_parts": {
            "of": "training" if needs.training is not None and most == needs.training else "answers",
            **{
                name: round(getattr(most, name)) for name in ("weights", "training", "activations", "logits", "context")
            },
        },
        "machine": {"name": place.name, "memory_bytes": place.memory_bytes, "count": place.count},
        "fits": place.verdict(most.total) != "no",
    }
