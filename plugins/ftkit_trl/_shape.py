"""The shapes of a model that has no weights yet, for the memory estimator."""

from __future__ import annotations

from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from ._memory import Linear, Shape

LINEAR = torch.nn.Linear | Conv1D  # Conv1D: GPT-2's linear layer, whose weight is transposed


def shape_of(model: Any, adapted: list[str] | str | None) -> Shape:
    """Return the sizes of a model's blocks. `adapted` names the layers with an adapter: names, all-linear, or None."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    linears = []
    for name, module in model.named_modules():
        if isinstance(module, LINEAR) and module is not head:
            linears.append(Linear(*sizes(module), _is_adapted(name, adapted)))
    hidden = int(config.hidden_size)
    heads = int(getattr(config, "num_attention_heads", 0) or 1)
    head_size = int(getattr(config, "head_dim", None) or hidden // heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, LINEAR)}
    inner = (
        getattr(config, "intermediate_size", None)
        or getattr(config, "ffn_dim", None)
        or getattr(config, "n_inner", None)
    )
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        hidden=hidden,
        layers=int(config.num_hidden_layers),
        vocabulary=int(config.vocab_size),
        heads=heads,
        query=heads * head_size,
        key=groups * head_size,
        inner=int(inner or 4 * hidden),
        gated=any("gate" in name for name in names),
        linears=tuple(linears),
    )


def sizes(module: Any) -> tuple[int, int]:
    """Return a linear layer's inputs and outputs."""
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    return int(module.in_features), int(module.out_features)


def is_named(path: str, name: str) -> bool:
    """Return whether peft finds the layer at `path` by this name: the last parts of the path agree."""
    return path == name or path.endswith("." + name)


def _is_adapted(path: str, adapted: list[str] | str | None) -> bool:
    if adapted is None or isinstance(adapted, str):
        return adapted == "all-linear"
    return any(is_named(path, name) for name in adapted)
