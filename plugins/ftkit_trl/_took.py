"""Did training take? What it hands over is compared with what it started from, and what is loaded with what was saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ftkit.api import Run
from ftkit.errors import RunFailed

_VALUES = 4096  # of each tensor, spread over it: enough to tell, and no second copy of a model
_STILL = 1e-9  # root mean square of a change that fp32 cannot even add to a weight of usual size (0.02)


def sample(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return some values of each tensor that is trained, by the name it is saved under."""
    return {
        name.replace(".default.", "."): _some(parameter.data)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def judge(before: dict[str, torch.Tensor], folder: Path, run: Run) -> None:
    """Compare saved weights with their `sample` from before training; warn where nothing moved.

    Logs an event `took`: tensors, how many of them moved, and the norm of the whole change (estimated from
    the samples). Raises RunFailed where a weight is not finite, or none of the trained ones was saved.
    """
    tensors = moved = 0
    squares = 0.0
    for name, value in _saved(folder):
        if name not in before:
            continue
        change = (_some(value) - before[name]).double()
        if not torch.isfinite(change).all():
            raise RunFailed(f"training left weights that are not finite ({name})", "lower backend.learning_rate")
        mean = change.square().mean().item()
        # An adapter adds B @ A, and B starts as zeros: while B stands still, A changes nothing.
        moved += math.sqrt(mean) > _STILL and ".lora_A." not in name
        tensors += ".lora_A." not in name
        squares += mean * value.numel()
    if not tensors:
        raise RunFailed(f"none of the {len(before)} tensors that were trained was saved", "this is a defect of ftkit")
    run.log("took", tensors=tensors, moved=moved, change_norm=math.sqrt(squares))
    if not moved:
        run.log(
            "warning",
            message=f"training did not take: none of the {tensors} trained tensors moved (norm of the change "
            f"{math.sqrt(squares):.1e}); raise backend.learning_rate or backend.max_steps",
        )


def check_attached(model: Any, folder: Path) -> None:
    """Raise RunFailed unless every tensor of the saved adapter sits in the loaded model, and nothing else does.

    peft itself only warns, and goes on with the untouched base model.
    """
    from peft import get_peft_model_state_dict

    saved = {name for name, _ in _saved(folder)}
    loaded = set(get_peft_model_state_dict(model, save_embedding_layers=False))  # which would ask the hub
    strangers = sorted(saved ^ loaded)
    if strangers or not saved:
        example = f", such as {strangers[0]}" if strangers else ""
        raise RunFailed(
            f"the adapter in {folder} does not fit its base model: {len(saved - loaded)} of its {len(saved)} tensors "
            f"have no place, {len(loaded - saved)} places are empty{example}",
            "was it trained on this backend.base_model, and with this version of transformers?",
        )


def check_complete(loading: dict[str, Any], folder: Path) -> None:
    """Raise RunFailed where fully trained weights lack a tensor: it would be filled with random numbers."""
    wrong = [*loading["missing_keys"], *loading["mismatched_keys"]]
    if wrong:
        raise RunFailed(f"the weights in {folder} are not whole: {len(wrong)} tensors are missing, such as {wrong[0]}")


def _saved(folder: Path) -> Any:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  a handle is no mapping
                yield name, file.get_tensor(name)


def _some(values: torch.Tensor) -> torch.Tensor:
    flat = values.detach().flatten()
    return flat[:: max(1, flat.numel() // _VALUES)].float().cpu().clone()  # a copy: training changes tensors in place
