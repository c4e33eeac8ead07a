"""Base models in GGUF files: transformers reads config, tokenizer and weights from them.

A file of quantised weights is dequantised when it is loaded: training and measurements use the values that it holds.
Reading a file takes seconds, so what was read is kept while the file does not change.
"""

from __future__ import annotations

import copy
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ftkit.errors import InputError

from ._files import FileState, state_of

_PLAIN = ("F32", "F16", "BF16", "F64")  # not quantised
_KEPT = 4  # files whose config and tokenizer are kept in memory; a process uses few
_CANNOT_READ = (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, NotImplementedError)
_OTHER_WEIGHTS = "use the model's weights in transformers' format (a hub id, or a folder with config.json)"


class Facts(NamedTuple):
    """What the head of a file says: the kind of model, and the data type of most of its weights, such as Q4_1."""

    architecture: str
    stored_as: str


def facts(file: Path) -> Facts:
    """Return what the head of a file says. Raises InputError where it cannot be used, with the fix."""
    return _facts(state_of(file))


@lru_cache(maxsize=_KEPT)
def _facts(state: FileState) -> Facts:
    name = Path(state.path).name
    with open(state.path, "rb") as opened:
        if opened.read(4) != b"GGUF":
            raise InputError(f"backend.base_model: {name} is not a GGUF file", "name a file that llama.cpp wrote")
    try:
        from gguf import GGUFReader
    except ImportError:
        raise InputError(
            f"backend.base_model: {name} cannot be read: the package gguf is not installed",
            "pip install 'ftkit[gguf]'",
        ) from None
    try:
        reader = GGUFReader(state.path)
        fields = {key: field.contents() for key in _READ if (field := reader.get_field(key)) is not None}
        sizes: Counter[str] = Counter()
        for tensor in reader.tensors:
            sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    except Exception as error:  # whatever numpy raises where the file ends too early, or holds no numbers
        why = " ".join(str(error).split())[:200]
        raise InputError(
            f"backend.base_model: {name} is damaged, or of a version that the package gguf cannot read "
            f"({type(error).__name__}: {why})",
            "download it again; if it is whole: pip install --upgrade gguf",
        ) from None
    if int(fields.get("split.count") or 1) > 1:
        raise InputError(
            f"backend.base_model: {name} is one of {fields['split.count']} parts of a model",
            "merge them first: `llama-gguf-split --merge FIRST_PART MERGED.gguf`, of llama.cpp",
        )
    if not sizes or "general.architecture" not in fields:
        raise InputError(f"backend.base_model: {name} holds no model", _OTHER_WEIGHTS)
    return Facts(str(fields["general.architecture"]), sizes.most_common(1)[0][0])


_READ = ("general.architecture", "split.count")


def dequantised(file: Path) -> str | None:
    """Return such as "dequantised from Q4_1", or None where the file's weights are not quantised."""
    stored_as = facts(file).stored_as
    return None if stored_as in _PLAIN else f"dequantised from {stored_as}"


def load_config(file: Path) -> Any:
    """Return the model's config. Raises InputError where transformers cannot read such a model, or it writes no text."""
    return copy.deepcopy(_config(state_of(file)))


@lru_cache(maxsize=_KEPT)
def _config(state: FileState) -> Any:
    file = Path(state.path)
    architecture = facts(file).architecture
    try:
        config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
    except _CANNOT_READ as error:
        raise _unreadable(file, error) from None
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"backend.base_model: {file.name} holds a {architecture} model, which is no causal language model",
            "name a model that continues text",
        )
    return config


def load_tokenizer(file: Path) -> Any:
    """Return the file's tokenizer with its chat template. Raises InputError where transformers cannot build it."""
    return copy.deepcopy(_tokenizer(state_of(file)))


@lru_cache(maxsize=_KEPT)
def _tokenizer(state: FileState) -> Any:
    file = Path(state.path)
    facts(file)
    try:
        return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    except _CANNOT_READ as error:
        raise _unreadable(file, error) from None


def load_model(file: Path, arguments: dict[str, Any], quantisation: Any = None) -> Any:
    """Return the model with `arguments` of `from_pretrained`, its weights dequantised, or quantised again.

    transformers does not quantise what it reads from a GGUF file: the whole model is read into the CPU's memory first.
    Raises InputError where the file lacks a tensor: transformers would fill it with random numbers.
    """
    # Without the config, newer versions keep the weights in their blocks, which cannot be trained.
    whole = (
        {"quantization_config": kind(dequantize=True)} if (kind := getattr(transformers, "GgufConfig", None)) else {}
    )
    placed = {**arguments, "device_map": {"": "cpu"}} if quantisation is not None else arguments
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            gguf_file=file.name,
            config=load_config(file),
            output_loading_info=True,
            **{**placed, **whole},
        )
    except _CANNOT_READ as error:
        raise _unreadable(file, error) from None
    missing = sorted({*loading["missing_keys"], *(str(key) for key in loading["mismatched_keys"])})
    if missing:
        raise InputError(
            f"backend.base_model: {file.name} is not complete: {len(missing)} tensors are missing, such as {missing[0]}",
            f"download it again, or {_OTHER_WEIGHTS}",
        )
    if quantisation is not None:
        model = type(model).from_pretrained(
            None, config=model.config, state_dict=model.state_dict(), quantization_config=quantisation, **arguments
        )
    model.generation_config = arguments["generation_config"]  # from a GGUF file, transformers makes one of its own
    return model


def _unreadable(file: Path, error: Exception) -> InputError:
    why = " ".join(str(error).split())[:200]
    return InputError(
        f"backend.base_model: transformers {transformers.__version__} cannot read {file.name}, which holds a "
        f"{facts(file).architecture} model ({type(error).__name__}: {why})",
        f"{_OTHER_WEIGHTS}, or a newer version of transformers",
    )
