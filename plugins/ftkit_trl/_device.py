"""Choose one GPU where several are visible: one process uses one device. Light: imports no torch.

TRL refuses to train in one process that sees several GPUs, unless a distributed launcher starts one process per GPU.
`use_one_gpu` must run before CUDA starts in this process: CUDA reads CUDA_VISIBLE_DEVICES once.
"""

from __future__ import annotations

import os
import re
import subprocess
from functools import cache

_ALL = "FTKIT_VISIBLE_GPUS"  # all GPUs that were visible before `use_one_gpu` chose one; processes that it starts inherit it
_SECONDS = 20.0  # that nvidia-smi may take; its driver can take several to wake up


@cache
def use_one_gpu() -> str | None:
    """Set CUDA_VISIBLE_DEVICES to the first visible GPU; return a note for the log where there was a choice.

    Does nothing, and returns None, where at most one GPU is visible, and under a distributed launcher (LOCAL_RANK is
    set). Only the first call of a process looks; further calls return the same note.
    """
    if "LOCAL_RANK" in os.environ:
        return None
    visible = visible_gpus()
    if len(visible) < 2:
        return None
    os.environ[_ALL] = ",".join(visible)
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[0]
    return (
        f"{len(visible)} GPUs are visible ({', '.join(visible)}), and this backend uses one: GPU {visible[0]}. "
        "Set CUDA_VISIBLE_DEVICES to choose another"
    )


def visible_gpus() -> list[str]:
    """Return the GPUs that CUDA may use, as CUDA_VISIBLE_DEVICES names them; does not start CUDA.

    After `use_one_gpu` these are still all that were visible before. Without CUDA_VISIBLE_DEVICES, counts what `nvidia-smi -L` lists; an empty list where there is no such program.
    """
    named = os.environ.get(_ALL, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if named is None:
        return [str(n) for n in range(_installed_gpus())]
    gpus: list[str] = []
    for name in map(str.strip, named.split(",")):
        if name in ("", "-1"):  # CUDA, too, ignores what follows a name that is not valid
            break
        gpus.append(name)
    return gpus


def _installed_gpus() -> int:
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return len(re.findall(r"^GPU \d+:", listed, re.MULTILINE))
