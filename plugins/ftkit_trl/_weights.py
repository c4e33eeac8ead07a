"""Checks of weights: training must change them, and a loaded model must hold exactly the tensors that were saved."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import GenerationConfig

from ftkit.api import Run
from ftkit.errors import RunFailed

from ._world import World, is_sharded, whole, whole_state

_VALUES = 4096  # compared per tensor, spread over it: enough to see a change, without a second copy of the model
_UNCHANGED = 1e-9  # root mean square of a change that fp32 cannot even add to a weight of usual size (0.02)


def sample_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return up to some 4,096 values (fp32, on the CPU) of each trainable tensor, by the name it is saved under."""
    return {
        name.replace(".default.", "."): _sampled(whole(parameter))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def save_model(model: Any, folder: Path, generation: GenerationConfig, world: World) -> None:
    """Save the adapter, or all weights with config and `generation` as its generation config, as safetensors.

    All processes call it, and the main process writes; the parts of a sharded model are put together first.
    """
    adapter = hasattr(model, "peft_config")
    state = whole_state(model, trainable=adapter, keep=world.is_main) if is_sharded(model) else None
    if not world.is_main:
        return
    if adapter:
        # "auto" would send a request to the hub, and would add whole embeddings to an adapter of `lm_head`.
        model.save_pretrained(folder, save_embedding_layers=False, state_dict=state)
    else:
        model.save_pretrained(folder, state_dict=state)
        generation.save_pretrained(folder)


def check_weights_changed(before: dict[str, torch.Tensor], folder: Path, run: Run) -> None:
    """Compare saved weights with their `sample_weights` from before training; warn where no tensor changed.

    Logs an event `weights_changed`: tensors, how many of them changed, and the norm of the whole change (estimated
    from the samples). Raises RunFailed where a weight is not finite, or where none of the trained tensors was saved.
    """
    tensors = changed = 0
    squares = 0.0
    for name, value in _saved(folder):
        if name not in before:
            continue
        change = (_sampled(value) - before[name]).double()
        if not torch.isfinite(change).all():
            raise RunFailed(f"training left weights that are not finite ({name})", "lower backend.learning_rate")
        mean = change.square().mean().item()
        # An adapter adds B @ A, and B starts as zeros: while B does not change, a change of A has no effect.
        changed += math.sqrt(mean) > _UNCHANGED and ".lora_A." not in name
        tensors += ".lora_A." not in name
        squares += mean * value.numel()
    if not tensors:
        raise RunFailed(f"none of the {len(before)} tensors that were trained was saved", "this is a defect of ftkit")
    run.log("weights_changed", tensors=tensors, changed=changed, change_norm=math.sqrt(squares))
    if not changed:
        run.log(
            "warning",
            message=f"training changed no weights: none of the {tensors} trained tensors changed (norm of the change "
            f"{math.sqrt(squares):.1e}); raise backend.learning_rate or backend.max_steps",
        )


def check_attached(model: Any, folder: Path, adapter: str = "default") -> None:
    """Raise RunFailed unless the loaded model holds every tensor of the saved adapter, and no other adapter tensor.

    peft itself only warns, and continues with the untouched base model.
    """
    from peft import get_peft_model_state_dict

    saved = {name for name, _ in _saved(folder)}
    loaded = set(
        get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    )  # True would send a request to the hub
    unmatched = sorted(saved ^ loaded)
    if unmatched or not saved:
        example = f", such as {unmatched[0]}" if unmatched else ""
        raise RunFailed(
            f"the adapter in {folder} does not fit its base model: {len(saved - loaded)} of its {len(saved)} tensors "
            f"have no place, {len(loaded - saved)} places are empty{example}",
            "was it trained on this backend.base_model, and with this version of transformers?",
        )


def check_complete(loading: dict[str, Any], folder: Path) -> None:
    """Raise RunFailed where fully trained weights lack a tensor: transformers would fill it with random numbers.

    `loading` is the loading info that `from_pretrained` returns.
    """
    wrong = [*loading["missing_keys"], *loading["mismatched_keys"]]
    if wrong:
        raise RunFailed(
            f"the weights in {folder} are not complete: {len(wrong)} tensors are missing, such as {wrong[0]}"
        )


def _saved(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of all safetensors files of a folder."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  a handle is no mapping
                yield name, file.get_tensor(name)


def _sampled(values: torch.Tensor) -> torch.Tensor:
    flat = values.detach().flatten()
    return flat[:: max(1, flat.numel() // _VALUES)].float().cpu().clone()  # a copy: training changes tensors in place
