"""FSDP2: each process holds its part of every layer, and gathers a layer while it computes with it.

accelerate shards with PyTorch's `fully_shard`. It does so on GPUs only: on a CPU it leaves FSDP out and does not say so.
Here it shards there too, so that two processes on a CPU train with the code that GPUs use.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin

from ftkit.errors import RunFailed

from ._world import World

# The groups that are gathered at once are the model's layers. Each process writes its own part of a checkpoint.
_CONFIG = {
    "version": 2,
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "reshard_after_forward": True,
    "state_dict_type": "SHARDED_STATE_DICT",
    "cpu_ram_efficient_loading": False,
}


def arguments() -> dict[str, Any]:
    """Return the Trainer's arguments for FSDP2."""
    return {"fsdp": True, "fsdp_config": dict(_CONFIG)}


def shard_on_cpu(trainer: Any) -> None:
    """Let accelerate shard on a CPU as on GPUs; call it where the Trainer has just made its accelerator."""
    accelerator = trainer.accelerator
    if trainer.args.fsdp_plugin_args is None or accelerator.device.type != "cpu":
        return
    # accelerate sets these itself for GPUs: in its own state, and in that of the processes.
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    accelerator.state.distributed_type = DistributedType.FSDP
    trainer.args.distributed_state.distributed_type = DistributedType.FSDP
    trainer.is_fsdp_enabled = True


def adapter_beside(model: torch.nn.Module) -> str | None:
    """Return a note where fp32 adapters share the groups of weights in half precision; None where they do not.

    FSDP2 raises where the weights that are trained in a group have several types. Those of an adapter are all fp32.
    """
    frozen = {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad} - {torch.float32}
    if not frozen:
        return None
    types = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in frozen))
    return f"the adapter is trained in float32 beside a {types} model: FSDP2 needs one type of the trained weights only"


def reshard(model: torch.nn.Module) -> None:
    """Free what is still gathered: a forward pass without a backward pass leaves the last group of layers whole."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def check_sharded(model: torch.nn.Module, world: World) -> None:
    """Raise RunFailed where a parameter that is trained lies whole in this process, or is spread over other processes."""
    from torch.distributed.tensor import DTensor

    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            sharded = parameter.device_mesh.size() == world.size
        else:
            sharded = not parameter.requires_grad
        if not sharded:
            raise RunFailed(
                f"FSDP2 did not shard {name} among the {world.size} processes",
                "train without backend.launch.fsdp, or install the tested versions of accelerate and transformers "
                "(`ftkit doctor` names them)",
            )
