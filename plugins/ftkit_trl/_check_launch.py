"""Checks of `backend.launch`: what several processes, or a sharded model, cannot do."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ftkit.records import Finding, Task

from ._launch import deepspeed_config, search_path, world_size
from ._model import device, dtype
from .options import LaunchOptions, TrainOptions, is_gguf

if TYPE_CHECKING:
    from . import TrlSftLora


def launch_findings(backend: TrlSftLora, task: Task | None) -> Iterator[Finding]:
    """Yield what would stop training with several processes, or make it train something else."""
    options = backend.options
    launch = options.launch
    size = world_size(options, backend.machine.count if backend.machine is not None else None)
    yield from _batch_findings(options, task, size)
    if launch is None:
        return
    for key in ("deepspeed", "accelerate_config"):
        yield from _file_findings(launch, key)
    if launch.deepspeed:
        yield from _deepspeed_findings()
    sharded = launch.fsdp or zero_stage(launch) == 3
    if sharded and backend.quantised:
        yield from _four_bit_findings(options, "FSDP2" if launch.fsdp else "ZeRO-3")
    if sharded and is_gguf(options.base_model):
        yield Finding(
            "error",
            "a GGUF file is read whole by each process: its model cannot be sharded",
            "shard optimizer and gradients alone (backend.launch.deepspeed: zero2), or name the model in transformers' "
            "format (docs/models.md shows how to convert it)",
            "backend.launch",
        )
    if launch.fsdp and options.optimizer.startswith("paged_"):
        yield Finding(
            "error",
            f"the optimizer {options.optimizer} keeps its state in pages of its own, which FSDP cannot shard",
            "use adamw_torch",
            "backend.optimizer",
        )
    if launch.fsdp and size == 1:
        yield Finding(
            "error",
            "FSDP2 shards a model among processes, and there is one process",
            "remove backend.launch.fsdp, or set backend.launch.processes",
            "backend.launch.fsdp",
            here=True,
        )


def _four_bit_findings(options: Any, engine: str) -> Iterator[Finding]:
    """Yield where 4-bit weights cannot be sharded; `options` are those of QLoRA."""
    if options.bnb_4bit_quant_storage == "uint8":
        yield Finding(
            "error",
            f"{engine} does not shard 4-bit weights that lie in uint8 tensors: each process would hold all of them",
            "set backend.bnb_4bit_quant_storage: bfloat16, or shard optimizer and gradients alone "
            "(backend.launch.deepspeed: zero2)",
            "backend.launch",
        )
    elif device().type == "cuda" and dtype(options) == torch.float16:
        yield Finding(
            "error",
            f"{engine} would convert the 4-bit weights from bfloat16 to float16, in which the model computes here",
            "use a GPU that has bfloat16, or shard optimizer and gradients alone (backend.launch.deepspeed: zero2)",
            "backend.bnb_4bit_quant_storage",
        )


def _batch_findings(options: TrainOptions, task: Task | None, size: int) -> Iterator[Finding]:
    """Yield where the examples of a step, or the rows of an epoch, cannot be divided among the processes."""
    passes = options.micro_batch_size * size
    if options.step_examples % passes:
        fitting = f"backend.micro_batch_size={options.step_examples // size}"
        if not options.global_batch_size:  # without it, the examples of a step follow from micro_batch_size
            fitting += f" with backend.global_batch_size={options.step_examples}"
        yield Finding(
            "error",
            f"a step of {options.step_examples} examples cannot be divided among {size} processes with "
            f"micro_batch_size {options.micro_batch_size}",
            f"set backend.global_batch_size to a multiple of {passes}"
            + (f", or {fitting}" if options.step_examples % size == 0 else ""),
            "backend.global_batch_size",
        )
        return
    rows = len(task.train) if task is not None else 0
    steps = options.max_steps or math.ceil(options.num_epochs * rows / options.step_examples)
    if size > 1 and rows % passes and steps * options.step_examples > rows - rows % passes:
        whole = rows - rows % passes
        yield Finding(
            "error",
            f"{rows} training rows do not divide among {size} processes with micro_batch_size "
            f"{options.micro_batch_size}: the last step of an epoch would repeat {passes - rows % passes} of them",
            f"set dataset.splits.train to {whole}" if whole else "use fewer processes",
            "backend.launch.processes",
        )


def _file_findings(launch: LaunchOptions, key: str) -> Iterator[Finding]:
    named = getattr(launch, key)
    if named is None:
        return
    path = Path(deepspeed_config(named) if key == "deepspeed" else named).expanduser()
    if not path.is_file():
        yield Finding(
            "error",
            f"there is no file {named}",
            "use zero1, zero2, zero3, zero3_offload, or the path of a file" if key == "deepspeed" else None,
            f"backend.launch.{key}",
        )
    elif key == "deepspeed":
        try:
            read_zero(path)
        except (ValueError, TypeError, AttributeError) as error:
            yield Finding("error", f"{named} is not a DeepSpeed config: {error}", key="backend.launch.deepspeed")


def _deepspeed_findings() -> Iterator[Finding]:
    if importlib.util.find_spec("deepspeed") is None:
        yield Finding(
            "error",
            "DeepSpeed is not installed",
            "pip install 'ftkit[deepspeed]'",
            "backend.launch.deepspeed",
            here=True,
        )
    missing = [name for name in ("g++", "ninja") if shutil.which(name, path=search_path()) is None]
    if missing:
        yield Finding(
            "error",
            f"DeepSpeed builds parts of itself when it is first used, and {' and '.join(missing)} cannot be found",
            "install a C++ compiler and ninja (Debian: apt install g++ ninja-build)",
            "backend.launch.deepspeed",
            here=True,
        )


def read_zero(path: Path) -> dict[str, Any]:
    """Return the section `zero_optimization` of a DeepSpeed config. Raises ValueError, TypeError, AttributeError."""
    zero = json.loads(path.read_text(encoding="utf-8")).get("zero_optimization", {})
    return {**zero, "stage": int(zero.get("stage", 0))}


def zero_stage(launch: LaunchOptions) -> int:
    """Return the ZeRO stage of the DeepSpeed config: 0 where there is none, or it cannot be read."""
    try:
        return int(read_zero(Path(deepspeed_config(launch.deepspeed or "")).expanduser())["stage"])
    except (OSError, ValueError, TypeError, AttributeError):
        return 0
