"""Machines that are not here: well-known GPUs by name, for `ftkit check --gpu`."""

from __future__ import annotations

import re

from .errors import InputError
from .records import Machine
from .text import nearest

_MIB = 1 << 20
# The memory of one GPU as its driver reports it (MiB). Where cloud providers sell two sizes, the name tells the size.
GPUS = {
    "t4": 15360,
    "p100": 16280,
    "v100": 16384,
    "v100-32gb": 32768,
    "rtx2080ti": 11264,
    "rtx3060": 12288,
    "rtx3080": 10240,
    "rtx3090": 24576,
    "rtx4060ti": 16380,
    "rtx4070": 12282,
    "rtx4080": 16376,
    "rtx4090": 24564,
    "rtx5090": 32607,
    "l4": 23034,
    "a10": 23028,
    "a10g": 23028,
    "a30": 24576,
    "a40": 46068,
    "a6000": 49140,
    "l40s": 46068,
    "a100": 40960,
    "a100-80gb": 81920,
    "h100": 81559,
    "h200": 143771,
    "b200": 183359,
}
_SPELLED = re.compile(r"(?:(?P<count>[1-9][0-9]{0,3})x)?(?P<name>.+)")
_SIZE = re.compile(r"(?P<size>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>gi?b)")


def machine(text: str) -> Machine:
    """Return the machine that `text` names: a GPU ("a10g"), a size ("24GB"), or several of one ("4xa100").

    Raises InputError for a name that is not known.
    """
    plain = re.sub(r"^nvidia[ -]*|(?<=rtx)[ -]+", "", text.strip().lower())
    match = _SPELLED.fullmatch(plain)
    count, name = (int(match["count"] or 1), match["name"].strip()) if match else (1, plain)
    size = _SIZE.fullmatch(name)
    if size:
        memory = float(size["size"]) * (1 << 30 if size["unit"] == "gib" else 10**9)
        if memory <= 0:
            raise InputError(f"--gpu {text}: a GPU has more than 0 bytes of memory")
        return Machine(name, int(memory), count)
    name = name.replace(" ", "-")
    known = name if name in GPUS else f"rtx{name}"  # "4090"
    if known not in GPUS:
        near = nearest(name, GPUS)
        hint = f"did you mean {near}? " if near else ""
        raise InputError(
            f"--gpu {text}: no GPU of this name is known",
            f"{hint}Known: {', '.join(GPUS)}; or write its memory, such as 24GB, and 4x24GB for four GPUs",
        )
    return Machine(known, GPUS[known] * _MIB, count)
