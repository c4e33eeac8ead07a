"""What decides the predictions of a model: its weights, precision, template, device and library versions.

`identity` is called for every measurement of a run. Files are hashed, and config and tokenizer are loaded, once in a
process for as long as the files do not change: the weights of an 8B model are 16 GB.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import try_to_load_from_cache

from ftkit.api import Run
from ftkit.records import ModelRef
from ftkit.versions import package_of

from ._files import file_hash, files_hash, state_of
from ._gguf import dequantised
from ._model import device, dtype, gguf_file, load_config, load_tokenizer, local_path, skeleton, source
from .options import TrainOptions, is_gguf

if TYPE_CHECKING:
    from . import TrlSftLora

_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "tokenizers")
# Optional packages: transformers uses their kernels where they are installed.
_KERNELS = ("flash_attn", "kernels", "xformers", "liger_kernel", "causal_conv1d", "mamba_ssm", "fla", "triton")
_KEPT = 64  # models whose template is kept in memory; a process serves few models


def identity(backend: TrlSftLora, ref: ModelRef, run: Run) -> dict[str, Any]:
    """Return what decides the predictions of `ref` (see `Backend.identity`). Raises InputError as `load_config` does."""
    options = backend.options
    where = device()
    gguf = gguf_file(options)
    path = gguf or Path(source(options.base_model))
    is_local = local_path(options.base_model) is not None
    template, attention = _template_and_attention(options, path)
    facts: dict[str, Any] = {
        "model": options.base_model,
        "commit": None if is_local else options.revision,  # `pinned` has put the commit there
        "quantisation": _quantisation(backend, gguf),
        "dtype": str(dtype(options)).removeprefix("torch."),
        "attention": attention,
        "chat_template": template,
        "template_date": options.template_date,
        "device": torch.cuda.get_device_name() if where.type == "cuda" else where.type,
        "threads": torch.get_num_threads() if where.type == "cpu" else None,
        "cuda": torch.version.cuda if where.type == "cuda" else None,
        "cudnn": torch.backends.cudnn.version() if where.type == "cuda" else None,
        "kernels": {name: found.version for name in _KERNELS if (found := package_of(name))},
        "flags": _flags(),
        "code": files_hash(Path(__file__).parent, ".py"),  # a fixed defect in this plugin makes a new baseline
        "versions": {name: package.version if (package := package_of(name)) else None for name in _LIBRARIES},
    }
    if path.is_dir():
        facts["weights"] = files_hash(path)
    elif gguf is not None:
        facts["weights"] = file_hash(gguf)
    if ref.kind == "adapter" or ref.meta.get("trained"):
        facts["trained"] = files_hash(run.resolve_uri(ref.uri))
    elif backend.start is not None:
        facts["continues"] = {"run": backend.start.run.name, "model": files_hash(backend.start.folder)}
    return facts


def _quantisation(backend: TrlSftLora, gguf: Path | None) -> str | None:
    """Return how the weights lost precision: by the quantisation of a GGUF file, by that of QLoRA, or both."""
    found = ("nf4-double" if backend.quantised else None, dequantised(gguf) if gguf is not None else None)
    return ", ".join(filter(None, found)) or None


_known: dict[tuple[Any, ...], tuple[str, str | None]] = {}


def _template_and_attention(options: TrainOptions, path: Path) -> tuple[str, str | None]:
    """Return the SHA-256 of the model's chat template, and the attention kernel that transformers chooses for it."""
    key = (options.base_model, options.revision, options.trust_remote_code, options.chat_template)
    key += (options.attn_implementation,)
    states = _states(options, path)
    if states is not None and (*key, states) in _known:
        return _known[(*key, states)]
    model = skeleton(load_config(options), options, options.attn_implementation)
    template = str(load_tokenizer(options).get_chat_template())
    found = hashlib.sha256(template.encode()).hexdigest(), getattr(model.config, "_attn_implementation", None)
    states = _states(options, path)  # again: loading may have downloaded the files
    if states is not None:
        if len(_known) >= _KEPT:
            _known.clear()
        _known[(*key, states)] = found
    return found


def _flags() -> dict[str, Any]:
    """Return the settings of torch that change results: how exact products are, and which kernels it may choose."""
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _states(options: TrainOptions, path: Path) -> tuple[Any, ...] | None:
    """Return the state of all files that decide template and attention, or None where it is not known.

    A hub model's files lie in a folder per commit: the path of its config in the local cache says which was loaded.
    """
    named = Path(options.chat_template).expanduser()
    template = state_of(named) if named.is_file() else None
    if is_gguf(options.base_model):  # all in one file
        return (template, state_of(path))
    if path.is_dir():
        files = [p for p in path.iterdir() if p.is_file() and p.suffix != ".safetensors"]
        files += path.glob("*/*.jinja")  # templates may lie in a folder of their own
        return (template, *map(state_of, sorted(files)))
    cached = try_to_load_from_cache(options.base_model, "config.json", revision=options.revision)
    return (template, cached) if isinstance(cached, str) else None
