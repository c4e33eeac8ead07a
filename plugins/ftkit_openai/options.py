"""The options of `openai-managed`. Light: pydantic and ftkit only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator

from ftkit.api import Options

Auto = Literal["auto"]
# Training context in tokens of models whose limit is not 65,536; the first that fits counts.
_EXAMPLE_LIMITS = {
    "gpt-3.5-turbo-0613": 4_096,
    "gpt-35-turbo-0613": 4_096,
    "gpt-3.5-turbo": 16_385,
    "gpt-35-turbo": 16_385,
}


class WandbOptions(Options):
    """The provider's own Weights & Biases integration: the provider sends the metrics."""

    project: str = Field(min_length=1, description="project that the provider sends the job's metrics to")
    name: str | None = Field(None, description="name of the run there; the job's id by default")
    entity: str | None = Field(None, description="team or user")
    tags: list[str] = Field([], max_length=50, description="tags of the run")


class AzureOptions(Options):
    """Where a tuned model is deployed in Azure. Azure bills a deployment by the hour until it is deleted."""

    subscription: str = Field(min_length=1, description="subscription id")
    resource_group: str = Field(min_length=1, description="resource group")
    resource: str = Field(min_length=1, description="name of the Azure OpenAI resource")
    sku: str = Field("standard", description="standard, globalstandard, developertier, ...")
    capacity: int = Field(50, gt=0, description="capacity in thousands of tokens a minute")
    token_env: str = Field("AZURE_TOKEN", description="variable with a token of `az account get-access-token`")
    management_url: str = Field("https://management.azure.com", description="address of Azure's control plane")


class ManagedOptions(Options):
    """Options of `openai-managed`."""

    base_model: str = Field(
        min_length=1, description="the provider's model id, best with its date: gpt-4o-mini-2024-07-18"
    )
    dialect: Literal["openai", "azure", "nebius", "local"] = Field(
        "openai",
        description="provider whose variant of the API is used; local: `ftkit serve` on this machine, started for the run",
    )
    base_deployment: str | None = Field(
        None,
        min_length=1,
        description="name of the deployment that serves the base model, where it differs from base_model (dialect azure)",
    )
    base_url: str | None = Field(None, description="address of the API up to /v1; the dialect's by default")
    api_key_env: str | None = Field(
        None,
        description="variable with the key, from the environment or .env; OPENAI_API_KEY by default",
    )

    n_epochs: Annotated[int, Field(ge=1, le=50)] | Auto = Field("auto", description="passes over the training rows")
    batch_size: Annotated[int, Field(ge=1, le=256)] | Auto = Field("auto", description="examples per step")
    learning_rate_multiplier: Annotated[float, Field(gt=0)] | Auto = Field(
        "auto", description="factor on the provider's learning rate"
    )
    learning_rate: float | None = Field(None, gt=0, le=1, description="absolute learning rate (dialect nebius)")
    lora_r: int | None = Field(None, gt=0, description="rank of the adapter (dialect nebius)")
    suffix: str | None = Field(None, min_length=1, max_length=64, description="part of the tuned model's name")
    seed: int | None = Field(None, ge=0, description="seed of the training; the recipe's by default")
    validation_file: bool = Field(
        True, description="upload the validation rows too, so that the provider reports the validation loss"
    )
    wandb: WandbOptions | None = Field(None, description="the provider's Weights & Biases integration: {project: NAME}")
    azure: AzureOptions | None = Field(None, description="where the tuned model is deployed (dialect azure)")

    max_usd: float | None = Field(None, ge=0, description="refuse to start where the estimate is above this")
    prices: dict[str, Any] | str | None = Field(
        None,
        description="own prices in USD per million tokens, {MODEL: {training, input, output}}, or a YAML file of that",
    )
    use_batch_api: bool = Field(False, description="answer through the Batch API: half the price, up to 24 hours")
    concurrency: int = Field(
        16, ge=1, le=512, description="requests in flight at once; fewer while the provider refuses requests"
    )
    max_example_tokens: int | None = Field(
        None,
        gt=0,
        description="length in tokens above which an example is truncated; by default the model's: 65536, or 16385 for gpt-3.5-turbo",
    )

    timeout: float = Field(120.0, gt=0, description="seconds that one request may take")
    patience: float = Field(300.0, ge=0, description="seconds of outage or rate limit before the run stops, resumable")
    find_window: float = Field(
        60.0,
        ge=0,
        description="seconds that the provider's list is searched for a job or a batch whose creation has no known outcome",
    )
    model_wait: float = Field(
        600.0, ge=0, description="seconds that a new tuned model may be missing (404) before that is an error"
    )
    poll_seconds: float = Field(20.0, gt=0, le=60, description="longest wait between two requests for a job's status")
    shutdown_days: int = Field(30, ge=0, description="warn where the model shuts down within so many days")
    multipart_mb: int = Field(512, gt=0, description="files above so many MB are uploaded in parts")
    probe_training: bool | None = Field(
        None,
        description="preflight requests a job on a file that does not exist, to learn free of charge whether training "
        "is allowed; by default at api.openai.com alone",
    )

    @property
    def example_limit(self) -> int:
        """The length in tokens above which the provider truncates an example, and to which it is paid for."""
        known = next((limit for family, limit in _EXAMPLE_LIMITS.items() if self.base_model.startswith(family)), 65_536)
        return self.max_example_tokens or known

    @field_validator("api_key_env", mode="before")
    @classmethod
    def _check_variable_name(cls, value: Any) -> Any:
        """Refuse a key, and do not repeat it: it would appear in every error and in every recipe.yaml."""
        is_name = isinstance(value, str) and re.fullmatch("[A-Z_][A-Z0-9_]{0,63}", value)
        if value is not None and (not is_name or re.fullmatch("[0-9A-F]{16,}|[A-Z0-9]{20,}", value)):
            raise ValueError(
                "must be the name of an environment variable in capital letters, such as MY_KEY, and never the key itself"
            )
        return value

    @field_validator("base_url", mode="before")
    @classmethod
    def _check_no_password(cls, value: Any) -> Any:
        if isinstance(value, str) and "@" in value.split("//")[-1].split("/")[0]:
            raise ValueError(
                "must hold no user and password: put the key into the environment, and name it in api_key_env"
            )
        return value

    model_config = ConfigDict(hide_input_in_errors=True, allow_inf_nan=False)
    paths: ClassVar[tuple[str, ...]] = ("prices",)
    # How, and how patiently, the provider is asked; which key pays. Not what is asked.
    resumable: ClassVar[frozenset[str]] = frozenset(
        (
            *("concurrency", "timeout", "patience", "find_window", "model_wait", "poll_seconds"),
            *("multipart_mb", "shutdown_days", "max_usd", "probe_training", "api_key_env"),
        )
    )
    renamed: ClassVar[Mapping[str, str]] = {
        "model": "base_model", "model_name": "base_model", "api_base": "base_url", "endpoint": "base_url",
        "api_key": "api_key_env", "num_epochs": "n_epochs", "epochs": "n_epochs", "num_train_epochs": "n_epochs",
        "micro_batch_size": "batch_size", "lr_multiplier": "learning_rate_multiplier", "lr": "learning_rate",
        "provider": "dialect", "budget": "max_usd", "parallel": "concurrency", "max_concurrency": "concurrency",
    }  # fmt: skip
