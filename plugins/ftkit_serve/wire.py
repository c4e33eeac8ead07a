"""Request bodies as pydantic models, with OpenAI's limits. The error for an unknown field names the field."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ],
    Field(max_length=16),
]
FilePurpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _encodable(cls, data: Any) -> Any:
        if not isinstance(data, dict):  # pydantic rejects it: no JSON object, or the bytes of a body that is no JSON
            return data
        try:
            json.dumps(data, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a string contains half of a surrogate pair, which cannot be encoded") from None
        except RecursionError:
            raise ValueError("the JSON is nested too deeply") from None
        return data


class ExpiresAfter(Body):
    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000)


class CreateUpload(Body):
    filename: str
    purpose: FilePurpose
    bytes: int = Field(ge=0)
    mime_type: str
    expires_after: ExpiresAfter | None = None


class CompleteUpload(Body):
    part_ids: list[str]
    md5: str | None = None


class Hyperparameters(Body):
    n_epochs: Literal["auto"] | Annotated[int, Field(ge=1, le=50)] = "auto"
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = "auto"
    learning_rate_multiplier: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"


class Supervised(Body):
    hyperparameters: Hyperparameters = Hyperparameters()


class Method(Body):
    type: Literal["supervised"]
    supervised: Supervised = Supervised()


class Wandb(Body):
    project: str
    name: str | None = None
    entity: str | None = None
    tags: list[str] = []


class Integration(Body):
    type: Literal["wandb"]
    wandb: Wandb


class CreateJob(Body):
    model: str
    training_file: str
    validation_file: str | None = None
    hyperparameters: Hyperparameters | None = None  # deprecated: `method` replaces it
    method: Method | None = None
    suffix: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, le=2_147_483_647)] | None = None
    integrations: Annotated[list[Integration], Field(max_length=5)] | None = None
    metadata: Metadata | None = None


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool = False


class PlainText(Body):
    type: Literal["text"]


class Chat(Body):
    """A chat request. Fields that this server does not support (tools, images, log probabilities) are errors.

    A field that is null is one that is not set, also where the field is not supported.
    """

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        known = cls.model_fields
        return {k: v for k, v in data.items() if v is not None or k in known} if isinstance(data, dict) else data

    model: str
    messages: Annotated[list[Any], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # accepted and ignored: they do not change the answer
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    service_tier: str | None = None
    parallel_tool_calls: bool | None = None  # there are no tools
    # accepted only with the value that means "off"
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logprobs: Literal[False] | None = None
    response_format: PlainText | None = None
    tool_choice: Literal["none"] | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None


class CreateBatch(Body):
    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


class BatchLine(Body):
    custom_id: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: str
    body: dict[str, Any]
