"""How providers of the OpenAI wire format differ, as data. Only `local` was tested against its real server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .options import ManagedOptions


@dataclass(frozen=True)
class Dialect:
    """What differs between a provider and OpenAI; the defaults are OpenAI's."""

    label: str  # the provider's name in messages and reports
    base_url: str | None  # None: the recipe must name it
    key_env: str | None = "OPENAI_API_KEY"  # None: no key is needed
    # option of the recipe -> the provider's name of that hyperparameter; other options are refused
    hyperparameters: Mapping[str, str] = field(
        default_factory=lambda: {
            "n_epochs": "n_epochs",
            "batch_size": "batch_size",
            "learning_rate_multiplier": "learning_rate_multiplier",
        }
    )
    method: bool = True  # method={...}; False: top-level `hyperparameters`
    rank_extras: Mapping[str, Any] = field(default_factory=dict)  # further hyperparameters where lora_r is given
    extra_body: Mapping[str, Any] = field(default_factory=dict)  # further fields of the create request
    statuses: Mapping[str, str] = field(default_factory=dict)  # the provider's status -> OpenAI's
    bom: bool = False  # files begin with a UTF-8 byte order mark
    deploy: str | None = None  # how a tuned model is deployed before it can answer: azure or nebius
    metadata: bool = True  # jobs carry metadata; False: the suffix identifies a job
    tokens_field: str = "max_completion_tokens"
    min_examples: int = 10
    wandb: bool = True
    shutdown: Mapping[str, str] = field(default_factory=dict)  # model family -> date, where /v1/models has none
    authoritative: bool = False  # the run starts the server, unless the recipe names one: see is_own_server


DIALECTS: dict[str, Dialect] = {
    "openai": Dialect(
        "OpenAI",
        "https://api.openai.com/v1",
        shutdown={"gpt-4o-mini": "2027-01-14", "gpt-4.1-mini": "2027-01-14"},
    ),
    "azure": Dialect(
        "Azure OpenAI",
        None,  # https://RESOURCE.openai.azure.com/openai/v1/
        "AZURE_OPENAI_API_KEY",
        extra_body={"trainingType": "Standard"},
        statuses={
            "canceled": "cancelled",
            "notrunning": "queued",
            "pending": "queued",
            "created": "queued",
            "deleted": "cancelled",
        },
        bom=True,
        deploy="azure",
        wandb=False,
    ),
    "nebius": Dialect(
        "Nebius Token Factory",
        "https://api.tokenfactory.nebius.com/v1/",
        "NEBIUS_API_KEY",
        hyperparameters={
            "n_epochs": "n_epochs",
            "batch_size": "batch_size",
            "learning_rate": "learning_rate",
            "lora_r": "lora_r",
        },
        method=False,
        rank_extras={"lora": True},
        deploy="nebius",
        metadata=False,
        tokens_field="max_tokens",
    ),
    "local": Dialect("this machine", None, None, authoritative=True, wandb=False),
}


def is_own_server(options: ManagedOptions) -> bool:
    """Say whether the run starts its server itself. A job that such a server does not list does not exist."""
    return DIALECTS[options.dialect].authoritative and options.base_url is None
