"""Read safetensors files without torch: what `ftkit verify` looks at. A header is JSON: names, types, shapes, places."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ftkit.files import read_json, write_json

_MAX_HEADER = 100_000_000  # bytes, as the safetensors library has it
_DIGITS = 16  # of a tensor's SHA-256
_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
_SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}  # else 1


class Tensor(NamedTuple):
    """One tensor of a file: its type as safetensors names it, its shape, and its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray[Any, np.dtype[np.uint8]]


def tensors(path: Path) -> Iterator[Tensor]:
    """Yield the tensors of a safetensors file. Raises ValueError where it is not one, or not whole."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 0 < length <= min(_MAX_HEADER, size - 8):
            raise ValueError("it has no header")
        header = json.loads(file.read(length))
    content = np.memmap(path, np.uint8, "r", 8 + length) if size > 8 + length else np.zeros(0, np.uint8)
    end = 0
    for name, about in header.items():
        if name == "__metadata__":
            continue
        start, stop = about["data_offsets"]
        count = math.prod(about["shape"])
        if not 0 <= start <= stop <= len(content) or stop - start != count * _SIZES.get(about["dtype"], 1):
            raise ValueError(f"tensor {name} does not fit into the file")
        end = max(end, stop)
        yield Tensor(name, about["dtype"], tuple(about["shape"]), content[start:stop])
    if end != len(content):
        raise ValueError(f"{len(content) - end:,} bytes belong to no tensor")


def write_digests(folder: Path, target: Path) -> None:
    """Write {tensor: digest} of a saved model, so that a changed tensor can be named."""
    write_json(target, {tensor.name: _digest(tensor) for path in _files(folder) for tensor in tensors(path)})


def faults(folder: Path, digests: Path, base: str | None) -> Iterator[str]:
    """Yield what is wrong with a saved model; `base` is the model that an adapter names, None for full weights."""
    if base is not None:
        yield from _adapter_faults(folder, base)
    found: dict[str, Tensor] = {}
    for path in _files(folder):
        try:
            for tensor in tensors(path):
                found[tensor.name] = tensor
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            yield f"{path.name} is not a whole safetensors file: {error}"
            return
    if not found:
        yield f"{folder.name} holds no tensor"
        return
    for tensor in found.values():
        yield from _tensor_faults(tensor, base is not None)
    changing = [tensor for tensor in found.values() if ".lora_B." in tensor.name]
    if changing and not any(tensor.data.any() for tensor in changing):
        yield "the adapter changes nothing: all its lora_B tensors are zero"
    known = read_json(digests) if digests.exists() else None
    for name in sorted({*known, *found}) if known is not None else ():
        if name not in found:
            yield f"tensor {name} is missing"
        elif name not in known:
            yield f"tensor {name} was not trained"
        elif _digest(found[name]) != known[name]:
            yield f"tensor {name} is not the one that training wrote"


def _adapter_faults(folder: Path, base: str) -> Iterator[str]:
    path = folder / "adapter_config.json"
    if not path.exists():
        yield "the adapter has no adapter_config.json"
        return
    named = read_json(path).get("base_model_name_or_path")
    if not named:
        yield "adapter_config.json names no base model"
    elif named != base:
        yield f"adapter_config.json names the base model {named}, and the run's is {base}"


def _tensor_faults(tensor: Tensor, adapter: bool) -> Iterator[str]:
    if adapter and ".lora_" not in tensor.name:
        yield f"tensor {tensor.name!r} is not named as one of an adapter"
    if not tensor.data.size:
        yield f"tensor {tensor.name} is empty"
    elif not _finite(tensor):
        yield f"tensor {tensor.name} holds values that are not finite"


def _finite(tensor: Tensor) -> bool:
    if tensor.dtype == "BF16":  # the upper half of a 32-bit number: its exponent is all ones
        return not ((tensor.data.view(np.uint16) & 0x7F80) == 0x7F80).any()
    kind = _FLOATS.get(tensor.dtype)
    return kind is None or bool(np.isfinite(tensor.data.view(kind)).all())


def _digest(tensor: Tensor) -> str:
    about = f"{tensor.dtype} {list(tensor.shape)} ".encode()
    return hashlib.sha256(about + tensor.data.tobytes()).hexdigest()[:_DIGITS]


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))
