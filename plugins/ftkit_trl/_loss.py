"""TRL's loss on a CPU: logits for the positions with a label alone."""

from __future__ import annotations

import torch
from trl.trainer import utils

_trl_skips = getattr(utils, "_use_triton", None)  # of TRL 1.16; None in a version without it


def skip_unlabelled_positions() -> None:
    """Let TRL's loss project only the positions with a label onto the vocabulary on a CPU, as it does on a GPU.

    The loss of the other positions is zero. TRL leaves them out where Triton computes, and computes them elsewhere:
    tiles of one shape suit accelerators that compile each shape, but not a CPU. Loss and gradients are the same, up to
    rounding. Does nothing with a version of TRL that decides this in another way.
    """
    if _trl_skips is not None:
        utils._use_triton = _skips


def _skips(device: torch.device) -> bool:
    return device.type == "cpu" or bool(_trl_skips and _trl_skips(device))
