"""Which base models the server offers, and how OpenAI's three hyperparameters become a backend's options."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, ValidationError

from ftkit.api import Backend, Options
from ftkit.errors import InputError
from ftkit.plugins import installed_plugins
from ftkit.yaml_source import nearest

_CHECKPOINTS = 3  # of the last epochs, the end included, as at OpenAI
HYPERPARAMETERS = ("n_epochs", "batch_size", "learning_rate_multiplier")


class ServedModel(Options):
    """One base model of a models file."""

    backend: dict[str, Any] = Field(description="{plugin: NAME, its options}, as in a recipe")
    options: dict[str, str] = Field(
        {"n_epochs": "num_epochs", "batch_size": "micro_batch_size", "learning_rate_multiplier": "learning_rate"},
        description="hyperparameter -> the backend's option; a learning rate is multiplied, the others are set",
    )
    max_tokens: int = Field(512, gt=0, description="longest answer that a request may ask for")
    shutdown_date: datetime.date | None = Field(None, description="last day of the model, as /v1/models tells it")
    renamed: ClassVar[Mapping[str, str]] = {"max_new_tokens": "max_tokens"}


DEFAULT = {
    "ftkit-tiny": ServedModel(
        backend={
            "plugin": "trl-sft-qlora",
            "base_model": "package:ftkit_quickstart/model",
            "chat_template": "plain",
            "lora_r": 16,
            "lora_alpha": 32,
            "lora_target_modules": "all-linear",
            "learning_rate": 4e-3,
            "lr_scheduler": "linear",
            "warmup_steps": 10,
            "micro_batch_size": 16,
            "sequence_len": 256,
            "logging_steps": 1,
            "save_steps": 25,
        }
    )
}


def read_models(path: Path | None) -> dict[str, ServedModel]:
    """Return base models by name, from a YAML file or the default. Raises InputError for what cannot be served."""
    models = DEFAULT if path is None else _read(path)
    for name, model in models.items():
        backend = make_backend(name, model.backend)
        for hyperparameter, option in model.options.items():
            if hyperparameter not in HYPERPARAMETERS:
                raise InputError(
                    f"{name}: no hyperparameter is called {hyperparameter!r}", f"there are {', '.join(HYPERPARAMETERS)}"
                )
            if option not in type(backend.options).model_fields:
                near = nearest(option, list(type(backend.options).model_fields))
                raise InputError(
                    f"{name}: {backend.name} has no option {option!r}", f"did you mean {near!r}?" if near else None
                )
    return models


def _read(path: Path) -> dict[str, ServedModel]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        data = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not isinstance(data, dict) or not data:
        raise InputError(
            f"{path} names no model", "such as `my-model: {backend: {plugin: trl-sft-lora, base_model: ...}}`"
        )
    models = {}
    for name, entry in data.items():
        try:
            models[str(name)] = ServedModel.model_validate(entry)
        except ValidationError as error:
            raise InputError(f"{path}: {name}: {_first(error)}") from None
    return models


def make_backend(name: str, entry: dict[str, Any]) -> Backend:
    """Return the backend that a models file describes, ready to use."""
    plugin = entry.get("plugin")
    if not isinstance(plugin, str):
        raise InputError(f"{name}: backend names no plugin", "such as `backend: {plugin: trl-sft-lora, ...}`")
    cls = installed_plugins().resolve("backend", plugin)
    try:
        options = cls.Options.model_validate({key: value for key, value in entry.items() if key != "plugin"})
    except ValidationError as error:
        raise InputError(f"{name}: {plugin}: {_first(error)}") from None
    backend: Backend = cls(options)
    return backend


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'entry'}: {first['msg']}"


def settled(model: ServedModel, wanted: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return the hyperparameters with each "auto" replaced: what is trained with.

    Passes over the data: three, more where that shows the model fewer than 100 rows (at most 25), fewer
    where it shows more than 25,000; the rule that OpenAI's cookbook gives for its own choice.
    """
    options = make_backend("", model.backend).options
    epochs = 3
    if rows * epochs < 100:
        epochs = min(25, -(-100 // rows))
    elif rows * epochs > 25_000:
        epochs = max(1, 25_000 // rows)
    auto = {
        "n_epochs": epochs,
        "batch_size": getattr(options, model.options.get("batch_size", ""), 1),
        "learning_rate_multiplier": 1.0,
    }
    return {key: value if wanted.get(key, "auto") == "auto" else wanted[key] for key, value in auto.items()}


def training_backend(model: ServedModel, settled: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return the backend section of a recipe for these hyperparameters and this many training examples.

    A backend with an option `snapshots` keeps the model of the last epochs: the job's checkpoints.
    """
    options = make_backend("", model.backend).options
    entry = dict(model.backend)
    for hyperparameter, option in model.options.items():
        value = settled[hyperparameter]
        entry[option] = getattr(options, option) * value if hyperparameter == "learning_rate_multiplier" else value
    if hasattr(options, "snapshots"):
        batches = -(-rows // settled["batch_size"])
        steps = -(-batches // getattr(options, "gradient_accumulation_steps", 1))
        epochs = range(max(1, settled["n_epochs"] - _CHECKPOINTS + 1), settled["n_epochs"])
        entry["snapshots"] = [steps * epoch for epoch in epochs]
    return entry
