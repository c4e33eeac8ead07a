"""The base models that the server offers, and the backend options that OpenAI's three hyperparameters set."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, ValidationError

from ftkit.api import Backend, Options
from ftkit.errors import FtkitError, InputError
from ftkit.plugins import installed_plugins
from ftkit.text import nearest

_CHECKPOINTS = 3  # one for each of the last epochs, as at OpenAI
HYPERPARAMETERS = ("n_epochs", "batch_size", "learning_rate_multiplier")


class ServedModel(Options):
    """One base model of a models file."""

    backend: dict[str, Any] = Field(description="{plugin: NAME, its options}, as in a recipe")
    options: dict[str, str] = Field(
        {"n_epochs": "num_epochs", "batch_size": "micro_batch_size", "learning_rate_multiplier": "learning_rate"},
        description="hyperparameter -> the backend's option; the learning rate is multiplied, the others are set",
    )
    max_tokens: int = Field(512, gt=0, description="limit of tokens that a request may generate")
    shutdown_date: datetime.date | None = Field(None, description="last day of the model, as /v1/models shows it")
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
    """Return base models by name, from a YAML file or the default. Raises InputError for an entry that is wrong."""
    models = DEFAULT if path is None else _read(path)
    for name, model in models.items():
        backend = make_backend(name, model.backend)
        for hyperparameter, option in model.options.items():
            if hyperparameter not in HYPERPARAMETERS:
                raise InputError(
                    f"{name}: there is no hyperparameter {hyperparameter!r}",
                    f"choose from {', '.join(HYPERPARAMETERS)}",
                )
            if option not in type(backend.options).model_fields:
                near = nearest(option, list(type(backend.options).model_fields))
                raise InputError(
                    f"{name}: {backend.name} has no option {option!r}", f"did you mean {near!r}?" if near else None
                )
    return models


def check_models(models: Mapping[str, ServedModel]) -> None:
    """Ask each backend whether its base model can be used. Raises InputError with the reason for the first that cannot."""
    for name, model in models.items():
        backend = make_backend(name, model.backend)
        try:
            errors = [f for f in backend.check(None, trains=False) if f.level == "error"]
        except FtkitError as error:
            raise InputError(f"{name} cannot be served: {error.message}", error.hint) from None
        if errors:
            raise InputError(f"{name} cannot be served: {errors[0].message}", errors[0].hint)


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
            raise InputError(f"{path}: {name}: {_first_error(error)}") from None
    return models


def make_backend(name: str, entry: dict[str, Any]) -> Backend:
    """Return the backend of a models file's entry. Raises InputError if the plugin or an option is wrong."""
    plugin = entry.get("plugin")
    if not isinstance(plugin, str):
        raise InputError(f"{name}: backend names no plugin", "such as `backend: {plugin: trl-sft-lora, ...}`")
    cls = installed_plugins().resolve("backend", plugin)
    try:
        options = cls.Options.model_validate({key: value for key, value in entry.items() if key != "plugin"})
    except ValidationError as error:
        raise InputError(f"{name}: {plugin}: {_first_error(error)}") from None
    backend: Backend = cls(options)
    return backend


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'entry'}: {first['msg']}"


def resolve_hyperparameters(model: ServedModel, requested: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return the hyperparameters of the training: each "auto" is replaced. `rows` counts the training examples.

    The automatic number of epochs follows the rule of OpenAI's cookbook: 3; more (at most 25) if 3 epochs have fewer
    than 100 rows in total; fewer (at least 1) if they have more than 25,000.
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
    return {key: value if requested.get(key, "auto") == "auto" else requested[key] for key, value in auto.items()}


def training_backend(model: ServedModel, hyperparameters: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return the backend section of a recipe for these hyperparameters. `rows` counts the training examples.

    A backend that has an option `snapshots` keeps the models of the last epochs: the job's checkpoints.
    """
    options = make_backend("", model.backend).options
    entry = dict(model.backend)
    for hyperparameter, option in model.options.items():
        value = hyperparameters[hyperparameter]
        entry[option] = getattr(options, option) * value if hyperparameter == "learning_rate_multiplier" else value
    if hasattr(options, "snapshots"):
        batches = -(-rows // hyperparameters["batch_size"])
        steps = -(-batches // getattr(options, "gradient_accumulation_steps", 1))
        epochs = range(max(1, hyperparameters["n_epochs"] - _CHECKPOINTS + 1), hyperparameters["n_epochs"])
        entry["snapshots"] = [steps * epoch for epoch in epochs]
    return entry
