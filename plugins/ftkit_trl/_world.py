"""The processes that train together: which one this is, and what they do in step. One process alone is a world of one.

A launcher sets RANK, WORLD_SIZE and LOCAL_RANK in the environment of each process. Every function here that says "all
processes" must be called by all of them, in the same order.
"""

from __future__ import annotations

import datetime
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ftkit.api import Run

_TIMEOUT = datetime.timedelta(hours=2)  # that a process waits for the others: one of them may measure, or save


class World:
    """The processes of this training. Joins them: all processes make one."""

    def __init__(self, deepspeed: bool = False) -> None:
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.launched = "RANK" in os.environ
        if self.launched:
            self._join(deepspeed)

    def _join(self, deepspeed: bool) -> None:
        if deepspeed:
            os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"  # read by what joins them; without it, plain DDP
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            PartialState(timeout=_TIMEOUT)
        else:
            PartialState(cpu=not deepspeed, backend="gloo", timeout=_TIMEOUT)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files of the run."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            PartialState().wait_for_everyone()

    def emptied(self, run: Run, name: str) -> Path:
        """Return the path of a scratch folder that the main process is about to write; it does not exist yet."""
        folder = run.scratch(name)
        self.wait()  # until no process makes it again
        if self.is_main:
            shutil.rmtree(folder)
        return folder

    def gathered(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank; they are pickled in memory between the processes alone."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values


def is_sharded(model: torch.nn.Module) -> bool:
    """Return whether a process holds only its part of the model's parameters: ZeRO stage 3, or FSDP."""
    return any(hasattr(p, "ds_id") or hasattr(p, "full_tensor") for p in model.parameters())


def held_parameters(model: torch.nn.Module) -> int:
    """Return how many values of the model's parameters this process holds: with ZeRO-3 and FSDP, its part."""
    return sum(_local(p).numel() for p in model.parameters())


def _local(parameter: Any) -> torch.Tensor:
    if hasattr(parameter, "ds_id"):
        own: torch.Tensor = parameter.ds_tensor
    else:
        own = parameter.to_local() if hasattr(parameter, "full_tensor") else parameter
    return own


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """Return the whole of a parameter that may be sharded. All processes call it, and all get it.

    A ZeRO-3 parameter is empty outside of the layer that computes with it; saved as it is, it would be lost.
    """
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().to("cpu", copy=True)
    if hasattr(parameter, "full_tensor"):
        full: torch.Tensor = parameter.full_tensor().detach().to("cpu")
        return full
    return parameter.detach()


def whole_state(model: torch.nn.Module, trainable: bool, keep: bool) -> dict[str, torch.Tensor]:
    """Return the state of a sharded model by name, one parameter gathered at a time; `trainable`: of those alone.

    All processes call it. `keep` says which of them get the state: it takes the memory of the whole model.
    """
    state = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not trainable:
            value = whole(parameter)
            if keep:
                state[name] = value
    if keep and not trainable:
        names = set(model.state_dict())
        state |= {name: buffer for name, buffer in model.named_buffers() if name in names}
    return state
