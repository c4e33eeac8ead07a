"""The generation_config.json that comes with a model: not used for measurements, and kept for the tuned model.

A measurement generates with the recipe's settings and the ids of special tokens, and with nothing else: a setting that
comes with one model and not with another would be compared instead of the models. The tuned model of full
fine-tuning keeps the file, repaired where transformers would refuse to save it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file

from ftkit.errors import RunFailed

_FILE = "generation_config.json"
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_BOOKKEEPING = ("transformers_version", "_from_model_config", "_commit_hash")
# Flags that transformers uses for sampling alone; with do_sample absent it refuses to save them.
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def own_settings(folder_or_id: str, revision: str = "main") -> dict[str, Any]:
    """Return the model's generation_config.json as it is written; empty where there is none that can be read."""
    try:
        path = cached_file(
            folder_or_id, _FILE, revision=revision, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        found = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):  # no such file, or no JSON: transformers, too, continues without it
        return {}
    return found if isinstance(found, dict) else {}


def clean_config(own: Mapping[str, Any], model_config: Any) -> GenerationConfig:
    """Return a generation config that holds the ids of special tokens and nothing else."""
    text = model_config.get_text_config(decoder=True)
    ids = {name: own[name] if name in own else getattr(text, name, None) for name in _TOKENS}
    return GenerationConfig(**{name: value for name, value in ids.items() if _is_ids(value)})


def _is_ids(value: Any) -> bool:
    ids = value if isinstance(value, list) else [value]
    return bool(ids) and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids)


def unused_settings(own: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the file asks for beyond transformers' defaults, but for what the recipe sets to the same value."""
    defaults = GenerationConfig._get_default_generation_params()
    known = {*_TOKENS, *_BOOKKEEPING, "max_length"}
    return {
        key: value
        for key, value in own.items()
        if key not in known and value is not None and value != defaults.get(key) and value != recipe.get(key)
    }


def saved_config(own: Mapping[str, Any], ends: Iterable[int], clean: GenerationConfig) -> GenerationConfig:
    """Return the generation config that the tuned model is saved with: the model's own, in a form that can be saved.

    `ends` are the ids that end a target in training: they end a generation, too. Sampling flags without `do_sample`
    get `do_sample: true`, as their author meant them; where it is false they have no effect and are left out. What
    transformers refuses beyond that is left out.
    """
    wanted = {k: v for k, v in own.items() if k not in (*_TOKENS, *_BOOKKEEPING)}
    flags = [name for name in _SAMPLING if wanted.get(name) is not None]
    if wanted.get("temperature") == 0:  # greedy, in the words of other tools
        wanted = {**wanted, "do_sample": False}
    if flags and wanted.get("do_sample") is None:
        wanted["do_sample"] = True
    elif flags and not wanted["do_sample"]:
        wanted = {k: v for k, v in wanted.items() if k not in flags}
    known = clean.eos_token_id
    eos = [*([] if known is None else [known] if isinstance(known, int) else known)]
    eos += sorted(set(ends) - set(eos))
    tokens = {name: getattr(clean, name) for name in _TOKENS}
    kept: dict[str, Any] = {**tokens, "eos_token_id": (eos[0] if len(eos) == 1 else eos) or None}
    first = ("do_sample", "num_beams", "return_dict_in_generate")  # others are valid only beside them
    for key in sorted(wanted, key=lambda name: name not in first):
        try:
            GenerationConfig(**kept, **{key: wanted[key]}).validate(strict=True)
        except Exception:  # whatever its checks raise
            continue
        kept[key] = wanted[key]
    return GenerationConfig(**kept)


def try_to_save(config: Any, generation: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Save all but the weights in a temporary folder. Raises RunFailed where transformers refuses to."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            config.save_pretrained(folder)
            generation.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        except Exception as error:  # whatever the libraries' own checks raise
            why = " ".join(str(error).split())
            raise RunFailed(
                f"the tuned model could not be saved: {type(error).__name__}: {why[:300]}",
                "correct the model's config.json, generation_config.json or tokenizer files",
            ) from None
