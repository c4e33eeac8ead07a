"""Options of the three TRL backends: the keys that a recipe may write beside `plugin:`. Light: imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import AliasChoices, Field, PositiveInt, model_validator

from ftkit.api import Options

ZERO_CONFIGS = ("zero1", "zero2", "zero3", "zero3_offload")  # the files of deepspeed_configs/


class LaunchOptions(Options):
    """How training is spread over processes. One process has one GPU; without GPUs, all share the CPU's cores.

    At most one of `deepspeed`, `fsdp` and `accelerate_config`; with none of them, each process holds the whole model
    (DDP). A step of training has the same examples, whatever the number of processes.
    """

    processes: PositiveInt | Literal["auto"] = Field(
        "auto", description="processes on each machine; auto: one for each visible GPU"
    )
    nodes: int = Field(1, ge=1, description="machines that train together; all see the run directory under one path")
    rendezvous: str | None = Field(None, description="HOST:PORT on which the machines find each other, with nodes > 1")
    deepspeed: str | None = Field(
        None, description=f"shard with DeepSpeed ZeRO: {', '.join(ZERO_CONFIGS)}, or a DeepSpeed config file (.json)"
    )
    fsdp: Literal[2] | None = Field(None, description="2: shard with PyTorch's FSDP2")
    accelerate_config: str | None = Field(
        None, description="a file of `accelerate config`: any other shape. ftkit does not check what it sets"
    )

    @model_validator(mode="after")
    def _one_engine(self) -> LaunchOptions:
        named = [key for key in ("deepspeed", "fsdp", "accelerate_config") if getattr(self, key) is not None]
        if len(named) > 1:
            raise ValueError(f"launch: choose one of {' and '.join(named)}: each decides how the model is sharded")
        if self.nodes > 1 and self.rendezvous is None and self.accelerate_config is None:
            raise ValueError("launch: nodes above 1 need rendezvous: HOST:PORT, an address that all machines reach")
        return self


def is_gguf(base_model: str) -> bool:
    """Return whether `base_model` names a GGUF file: a path, PATH in package:NAME/PATH, or FILE in HUB_ID:FILE."""
    return base_model.lower().endswith(".gguf")


class TrainOptions(Options):
    """Options that all three backends share.

    `sample_packing` and `group_by_length` decide how the examples of a forward pass are laid out. With both at auto:
    batches are padded, in random order, where less than 5 % of the tokens would be padding. Otherwise they are packed,
    where the model keeps packed examples apart (this is tested before training). Otherwise they are grouped by length,
    where that halves the padding. Packing does not change which examples make up a step; the beginning that their
    prompts share is computed once. The log and lock.json record the choice.
    """

    base_model: str = Field(
        description="hub id, folder or .gguf file; package:NAME/PATH for one inside an installed package; "
        "HUB_ID:FILE.gguf for a file on the hub; the directory of a run, whose model is trained further"
    )
    revision: str | None = Field(None, description="hub revision of the model; the run's lock records the commit used")
    chat_template: str = Field(
        "auto", description="auto (the tokenizer's own, or plain where it has none), plain, or a .jinja file"
    )
    template_date: str = Field("26 Jul 2024", description="what chat templates that insert today's date get instead")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="auto: bf16 where the GPU has it, else fp16 on a GPU, fp32 on CPU"
    )
    attn_implementation: str | None = Field(None, description="attention kernel, as transformers names it")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")

    learning_rate: float = Field(2e-4, gt=0, le=1, description="peak learning rate")
    lr_scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = Field(
        "cosine", description="schedule"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    max_steps: int | None = Field(None, gt=0, description="optimizer steps; overrides num_epochs")
    num_epochs: float = Field(1.0, gt=0, description="passes over the training rows")
    micro_batch_size: int = Field(4, gt=0, description="examples per forward pass and device")
    gradient_accumulation_steps: int = Field(
        1, gt=0, description="forward passes per optimizer step of one process; fewer with several processes"
    )
    global_batch_size: int | None = Field(
        None,
        gt=0,
        description="examples per optimizer step, of all processes together. "
        "Default: micro_batch_size x gradient_accumulation_steps",
    )
    launch: LaunchOptions | None = Field(None, description="train with several processes, or with a sharded model")
    sequence_len: int = Field(512, ge=16, description="tokens per example; a longer prompt is truncated in its middle")
    allow_cut_targets: bool = Field(
        False, description="train on targets that sequence_len truncates: they lose their end"
    )
    allow_cut_prompts: bool = Field(
        False, description="train on prompts that sequence_len truncates to less than half of their length"
    )
    sample_packing: bool | Literal["auto"] = Field(
        "auto",
        description="put a forward pass's examples into one row without padding; each attends to itself alone. "
        "auto: where it saves padding",
    )
    group_by_length: bool | Literal["auto"] = Field(
        "auto",
        description="put examples of similar length into one forward pass: less padding. "
        "auto: where packing is not possible",
    )
    optimizer: str = Field("adamw_torch", description="optimizer, as transformers names it")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping")
    activation_checkpointing: bool = Field(
        False,
        validation_alias=AliasChoices("activation_checkpointing", "gradient_checkpointing"),
        description="recompute activations in the backward pass: less memory, about 30 % slower. "
        "The older name gradient_checkpointing is accepted",
    )

    eval_batch_size: int = Field(32, gt=0, description="prompts per generation batch; the unit of resume")
    eval_steps: int | None = Field(None, gt=0, description="steps between measurements of the validation sample")
    eval_samples: int = Field(32, gt=0, description="validation rows in that sample")
    keep_best: bool = Field(
        False, description="keep the weights of the best of these measurements, not of the last step"
    )
    save_steps: int = Field(100, gt=0, description="steps between checkpoints that a killed run resumes from")
    snapshots: list[PositiveInt] = Field([], description="steps whose weights are kept in train/snapshots/STEP")
    logging_steps: int = Field(5, gt=0, description="steps between logged losses")
    usd_per_hour: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="price of this machine, in dollars an hour: prices training and predictions",
    )
    on_oom: Literal["adapt", "stop"] = Field(
        "adapt",
        description="out of memory: adapt continues by itself with smaller forward passes, and with fewer prompts at once; "
        "a step keeps its examples, and the report names the change. stop ends the run, which can be resumed",
    )
    allow_slow: bool = Field(False, description="start even where the estimate says many hours on this machine")

    @model_validator(mode="after")
    def _snapshots_are_reached(self) -> TrainOptions:
        if self.max_steps and self.snapshots and max(self.snapshots) > self.max_steps:
            raise ValueError(
                f"snapshots: step {max(self.snapshots)} is after the last step, max_steps {self.max_steps}"
            )
        return self

    @property
    def step_examples(self) -> int:
        """Examples per optimizer step, of all processes together."""
        return self.global_batch_size or self.micro_batch_size * self.gradient_accumulation_steps

    @model_validator(mode="after")
    def _one_batch(self) -> TrainOptions:
        accumulated = self.micro_batch_size * self.gradient_accumulation_steps
        if self.gradient_accumulation_steps > 1 and accumulated != self.step_examples:
            raise ValueError(
                f"global_batch_size is {self.step_examples}, and micro_batch_size x gradient_accumulation_steps is "
                f"{accumulated}: write one of the two"
            )
        if self.step_examples % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size {self.step_examples} is no multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _one_layout(self) -> TrainOptions:
        if self.sample_packing is True and self.group_by_length is True:
            raise ValueError("sample_packing leaves no padding that group_by_length could save: choose one")
        return self

    paths: ClassVar[tuple[str, ...]] = ("base_model", "chat_template", "launch")
    permissions: ClassVar[tuple[str, ...]] = ("trust_remote_code",)
    # Memory, patience and how often something is written. Of the first two, the product must stay (`check_resumed`).
    resumable: ClassVar[frozenset[str]] = frozenset(
        (
            *("micro_batch_size", "gradient_accumulation_steps", "activation_checkpointing", "eval_batch_size"),
            *("save_steps", "logging_steps", "allow_slow", "launch", "on_oom"),
        )
    )
    refused: ClassVar[dict[str, tuple[str, str]]] = {
        "device_map": (
            "each process computes on one device: a map of devices cannot be given",
            "to spread a model over several GPUs, use backend.launch: {fsdp: 2} or {deepspeed: zero3}",
        )
    }
    extends: ClassVar[frozenset[str]] = frozenset(("max_steps", "num_epochs"))
    renamed: ClassVar[dict[str, str]] = {
        "packing": "sample_packing", "padding_free": "sample_packing",
        "model_name_or_path": "base_model", "model": "base_model", "model_id": "base_model", "model_name": "base_model",
        "cutoff_len": "sequence_len", "max_length": "sequence_len", "max_seq_length": "sequence_len", "max_seq_len": "sequence_len",
        "per_device_train_batch_size": "micro_batch_size", "batch_size": "micro_batch_size",
        "per_device_eval_batch_size": "eval_batch_size",
        "num_train_epochs": "num_epochs", "epochs": "num_epochs", "lr": "learning_rate",
        "lr_scheduler_type": "lr_scheduler", "optim": "optimizer", "torch_dtype": "dtype", "template": "chat_template",
        "train_batch_size": "global_batch_size", "num_processes": "launch", "nproc_per_node": "launch",
        "deepspeed": "launch", "fsdp": "launch", "accelerate_config": "launch",
        # Accepted in place of activation_checkpointing; this is the message where a recipe writes both.
        "gradient_checkpointing": "activation_checkpointing",
    }  # fmt: skip


class LoraOptions(TrainOptions):
    """Options of the two adapter methods."""

    lora_r: int = Field(16, gt=0, description="rank of the adapter")
    lora_alpha: int = Field(32, gt=0, description="scale of the adapter: alpha / r")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout in front of the adapter")
    lora_target_modules: list[str] | Literal["all-linear"] = Field(
        ["q_proj", "v_proj"], description="names of the layers that get an adapter, or all-linear"
    )

    renamed: ClassVar[dict[str, str]] = {
        **TrainOptions.renamed,
        "r": "lora_r", "lora_rank": "lora_r", "rank": "lora_r", "alpha": "lora_alpha", "dropout": "lora_dropout",
        "target_modules": "lora_target_modules", "lora_target": "lora_target_modules",
    }  # fmt: skip


class QloraOptions(LoraOptions):
    """Options of QLoRA."""

    bnb_4bit_quant_storage: Literal["uint8", "bfloat16"] = Field(
        "uint8",
        description="type of the tensors that hold the 4-bit weights: two in a uint8, or four in a bfloat16, which FSDP2 "
        "and ZeRO-3 need to shard them. The weights are the same",
    )
