"""Tries of libraries that may crash: each is a process of its own, `python -m ftkit_trl._probe NAME`.

The last line on stdout is the result as JSON. An exception ends the process, and is the finding.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

_SECONDS = 60  # that two processes have to find each other
_TOLERANCE = 0.05  # of a 4-bit matrix product, relative to the product of the same rounded weights


def torch_and_gpus() -> dict[str, Any]:
    """Multiply on the CPU and on each GPU, and run PyTorch's attention there."""
    import torch

    _multiply(torch.device("cpu"))
    facts: dict[str, Any] = {"version": torch.__version__, "built_for": torch.version.cuda, "gpus": [], "why": ""}
    if not torch.cuda.is_available():
        try:
            torch.cuda.init()
        except Exception as error:
            facts["why"] = " ".join(str(error).split())
        return facts
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        gpu = {
            "name": about.name,
            "capability": [about.major, about.minor],
            "memory": about.total_memory,
            "bf16": about.major >= 8,
        }
        try:
            _multiply(torch.device("cuda", number))
        except Exception as error:
            gpu["error"] = " ".join(str(error).split())[:300]
        facts["gpus"].append(gpu)
    return facts


def _multiply(device: Any) -> None:
    import torch

    ones = torch.ones(1, 2, 32, 64, device=device)
    if not torch.equal(ones[0, 0] @ ones[0, 0].T, torch.full((32, 32), 64.0, device=device)):
        raise RuntimeError(f"a matrix product on {device} is wrong")
    attended = torch.nn.functional.scaled_dot_product_attention(ones, ones, ones, is_causal=True)
    if not torch.allclose(attended, ones):
        raise RuntimeError(f"attention on {device} is wrong")


def imports(*modules: str) -> dict[str, str]:
    """Import each module, and a class of it that pulls in the rest. Return the error of the first that fails."""
    parts = {"transformers": "AutoModelForCausalLM", "trl": "SFTTrainer", "peft": "get_peft_model"}
    for module in modules:
        try:
            loaded = importlib.import_module(module)
            if module in parts:
                getattr(loaded, parts[module])
        except Exception as error:
            return {"module": module, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    return {}


def four_bit() -> dict[str, str]:
    """Multiply with weights of 4 bits, as QLoRA does, and compare with the product of the same rounded weights."""
    import bitsandbytes as bnb
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    weights = torch.randn(64, 128, device=device, dtype=torch.float32)
    inputs = torch.randn(4, 128, device=device, dtype=torch.float32)
    packed, state = bnb.functional.quantize_4bit(weights, quant_type="nf4", compress_statistics=True)
    rounded = bnb.functional.dequantize_4bit(packed, state)
    wanted = inputs @ rounded.T
    found = bnb.matmul_4bit(inputs, packed.t(), quant_state=state)
    off = ((found - wanted).norm() / wanted.norm()).item()
    lost = ((rounded - weights).norm() / weights.norm()).item()
    if not off < _TOLERANCE or not 0 < lost < 0.2:
        raise RuntimeError(f"a 4-bit matrix product is wrong by {off:.0%}, its weights by {lost:.0%}")
    return {"device": device, "version": bnb.__version__}


def attention(name: str) -> dict[str, str]:
    """Run one forward pass of a tiny model with the attention `name`, on the GPU where there is one."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        attn_implementation=name,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    model = LlamaForCausalLM(config).to(device, dtype)
    if not model(torch.ones(1, 8, dtype=torch.long, device=device)).logits.isfinite().all():
        raise RuntimeError(f"the attention {name} gives values that are no numbers")
    return {"device": device}


def handshake(rank: str = "0", port: str = "0") -> dict[str, Any]:
    """Let two processes find each other and add two numbers: over NCCL where there are two GPUs, else over gloo."""
    from datetime import timedelta

    from torch import distributed

    patience = timedelta(seconds=_SECONDS)
    first = rank == "0"
    store = distributed.TCPStore("127.0.0.1", int(port), 2, first, patience, wait_for_workers=False)
    other = None
    if first:
        other = subprocess.Popen([sys.executable, "-m", __spec__.name, "handshake", "1", str(store.port)],
                                 stdout=subprocess.DEVNULL)  # fmt: skip
    try:
        kind, total = _added(store, int(rank), patience)
        if other is not None and other.wait(_SECONDS):
            raise RuntimeError("the second process failed")
    finally:
        if other is not None:
            other.kill()
    if total != 3:
        raise RuntimeError(f"two processes add 1 and 2 to {total:g}")
    return {"over": kind}


def _added(store: Any, rank: int, patience: Any) -> tuple[str, float]:
    """Return what the two processes talk over, and the sum of their numbers 1 and 2."""
    import torch
    from torch import distributed

    kind = "nccl" if torch.cuda.device_count() > 1 else "gloo"
    device = torch.device("cuda", rank) if kind == "nccl" else torch.device("cpu")
    distributed.init_process_group(kind, store=store, rank=rank, world_size=2, timeout=patience)
    value = torch.ones(1, device=device) * (rank + 1)
    distributed.all_reduce(value)
    distributed.barrier()
    total = value.item()
    distributed.destroy_process_group()
    return kind, total


_PROBES: dict[str, Callable[..., Any]] = {
    "torch": torch_and_gpus,
    "imports": imports,
    "four_bit": four_bit,
    "attention": attention,
    "handshake": handshake,
}

if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # the libraries print on it
        result = _PROBES[sys.argv[1]](*sys.argv[2:])
    print(json.dumps(result))
