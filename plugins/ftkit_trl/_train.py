"""Supervised fine-tuning with TRL, top to bottom."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, TrainerState, set_seed
from trl import SFTConfig, SFTTrainer

from ftkit.api import Run
from ftkit.files import Journal, publish
from ftkit.records import Example, ModelRef, Task

from ._batches import Layout, Order, TokenCounter, choose_layout
from ._callbacks import (
    Checkpoints,
    Monitor,
    ScheduleFrom,
    Snapshots,
    first_checkpoint,
    follow_options,
    last_complete,
)  # fmt: skip
from ._check import refuse_faulty, refuse_masked
from ._continued import meta_of, steps_before
from ._device import use_one_gpu
from ._fsdp import adapter_beside, check_sharded, shard_on_cpu
from ._fsdp import arguments as fsdp_arguments
from ._generate import TrlSession
from ._launch import deepspeed_config
from ._loss import skip_unlabelled_positions
from ._model import (
    device,
    dtype,
    ignore_deprecation_in_peft,
    load_start,
    load_tokenizer,
    own_generation,
    peak_memory,
    release_memory,
)
from ._outcome import best_measurement, refuse_undirected, warn_of_rising_loss
from ._own_generation import saved_config, try_to_save
from ._packing import PackingCollator, attention, can_share_prefix, obstacle, packed_attention
from ._render import Chat
from ._tensors import write_digests
from ._weights import check_weights_changed, sample_weights, save_model
from ._world import World, held_parameters, is_sharded
from .options import TrainOptions

if TYPE_CHECKING:
    from . import TrlSftLora

# Newer versions of transformers renamed the argument, and warn of the old name.
_CHECKPOINTING = (
    "activation_checkpointing"
    if "activation_checkpointing" in {f.name for f in fields(SFTConfig)}
    else "gradient_checkpointing"
)


def train(backend: TrlSftLora, task: Task, run: Run) -> ModelRef:
    """Train on `task.train`, write `train/model/` (safetensors, no pickle), and return its handle.

    Raises RunFailed where a row must not be trained on, the loss is not finite, or weights were not saved.
    """
    options = backend.options
    world = World(deepspeed=options.launch is not None and options.launch.deepspeed is not None)
    note = use_one_gpu()
    if note:
        run.log("note", message=note)
    if options.keep_best:
        refuse_undirected(task, run)
    release_memory()  # of the answers before, and of an attempt that ran out of memory
    set_seed(run.seed)
    checkpoints = run.scratch("checkpoints")
    arguments = _arguments(options, checkpoints, run.seed, world)  # before the model: ZeRO-3 changes how it is loaded
    tokenizer = load_tokenizer(options)
    chat = Chat(tokenizer, options)
    dataset, lengths = _tokenised(chat, task.train)
    continues = backend.adapter and backend.start is not None and backend.start.is_adapter
    model = load_start(backend, trainable=True)
    generation = saved_config(own_generation(options), chat.ends, model.generation_config)
    try_to_save(model.config, generation, tokenizer)
    plain = model.config._attn_implementation
    first_batch = _first_batch(options, run)
    layout = _layout(model, options, lengths, run, first_batch)
    packed = layout.name == "packed"
    share_prefix = packed and can_share_prefix(model, options)
    order = Order(lengths, options.micro_batch_size, run.seed, layout.name == "grouped", first_batch)
    ignore_deprecation_in_peft()
    skip_unlabelled_positions()
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        # None: TRL's own, which pads
        data_collator=PackingCollator(tokenizer.pad_token_id, share_prefix) if packed else None,
        peft_config=_lora(options) if backend.adapter and not continues else None,
        callbacks=[Checkpoints(world)],
    )
    trainer.order = order
    run.log(
        "lock",
        loss=trainer.args.loss_type,
        fused_loss=bool(trainer.args.use_liger_kernel),
        shared_prefix=share_prefix,
    )
    for config in getattr(trainer.model, "peft_config", {}).values():
        if isinstance(config.target_modules, set):  # each process would write a set in another order
            config.target_modules = sorted(config.target_modules)
    refuse_masked(trainer.data_collator, [dataset[i] for i in range(min(2, len(dataset)))])
    save = functools.partial(save_model, trainer.model, generation=generation, world=world)
    trainer.add_callback(Snapshots(save, options.snapshots, run, world))
    counter = TokenCounter(order, options.step_examples // options.micro_batch_size, packed)
    session = TrlSession(trainer.model, tokenizer, options)
    trainer.add_callback(Monitor(session, save, plain, counter, task, run, world))
    for parameter in trainer.model.parameters():
        # In half precision small updates are rounded away (TRL casts a QLoRA adapter to bf16): train in fp32.
        if parameter.requires_grad and not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.float()
    note = adapter_beside(trainer.model) if trainer.is_fsdp_enabled else None
    if note:
        run.log("note", message=note)

    before = sample_weights(trainer.model)
    trained = sum(getattr(p, "ds_numel", p.numel()) for p in trainer.model.parameters() if p.requires_grad)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    earlier = _earlier_seconds(run)
    run.log("start", resumed=earlier > 0, layout=layout.name, why=layout.why)
    began = time.monotonic()
    with attention(trainer.model, packed_attention(options) if packed else plain):
        checkpoint = last_complete(checkpoints, world)
        previous = run.continued()
        if checkpoint is None and previous is not None:
            steps = steps_before(run, previous)
            checkpoint = first_checkpoint(run.resolve_uri(previous.uri), checkpoints, steps, world)
            trainer.add_callback(ScheduleFrom(steps))
            run.log("note", message=f"training continues after step {steps}; the optimizer starts again")
            run.log("lock", continues_after_step=steps)
        if checkpoint and world.is_main:
            follow_options(Path(checkpoint), options)
        world.wait()
        state = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json") if checkpoint else None
        if state is not None and state.global_step >= state.max_steps:
            # The run was killed after its last step: the Trainer would take one more step before it compares the count.
            # (A sharded training has no checkpoint of its last step.)
            trainer._load_from_checkpoint(checkpoint)
            trainer.state = state
        else:
            trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.monotonic() - began
    if options.launch is not None and options.launch.fsdp:
        check_sharded(trainer.model, world)

    staging, best = world.emptied(run, "model"), run.scratch("best")
    selected = best_measurement(best) if options.keep_best else None
    if selected is None:
        save(staging)
    if world.is_main:
        if selected is not None:
            shutil.copytree(best, staging, ignore=shutil.ignore_patterns("metric.json"))
            run.log("note", message=selected.sentence(trainer.state.global_step))
            run.log("lock", keep_best=selected._asdict())
        tokenizer.save_pretrained(staging)
        check_weights_changed(before, staging, run)
        warn_of_rising_loss(trainer.state.log_history, run)
        publish(staging, run.path("train", "model"))
        write_digests(run.path("train", "model"), run.path("train", "tensors.json"))
    world.wait()  # no process ends before the model is written: its end could be taken for a failure
    steps = trainer.state.global_step
    tokens, with_padding = counter.after(steps)
    price = {} if options.usd_per_hour is None else {"usd": options.usd_per_hour * (earlier + seconds) / 3600}
    run.log(
        "end",
        steps=steps,
        seconds=round(seconds, 2),
        tokens=tokens,
        layout=layout.name,
        pad_share=round(1 - tokens / with_padding, 4),
        peak_memory=peak_memory(),
        trainable_parameters=trained,
        device=str(device()),
        **_spread_over(trainer, world),
        dtype=str(dtype(options)).removeprefix("torch."),
        **({} if selected is None else {"selected_step": selected.step}),
        **price,
    )
    meta = meta_of(backend)
    if backend.adapter:
        return ModelRef("adapter", "train/model", base=options.base_model, meta=meta)
    return ModelRef("path", "train/model", base=options.base_model, meta={"trained": True, **meta})


class _Trainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer, with ftkit's order of the examples."""

    order: Order

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        shard_on_cpu(self)

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        return self.order


def _tokenised(chat: Chat, examples: Sequence[Example]) -> tuple[Dataset, list[int]]:
    """Return token ids and labels, and the lengths in tokens. Raises RunFailed where a row must not be trained on.

    The arrays are of 32-bit integers: Python's lists of numbers would take ten times the memory.
    """
    ids, labels, faulty = [], [], []
    for row in chat.render(examples):
        tokens = np.array(row.ids, dtype=np.int32)
        ids.append(tokens)
        labels.append(np.where(row.loss_mask, tokens, np.int32(-100)))
        if row.finding is not None:
            faulty.append(row)
    refuse_faulty(faulty)
    return Dataset.from_dict({"input_ids": ids, "labels": labels}), [len(row) for row in ids]


def _first_batch(options: TrainOptions, run: Run) -> int:
    """Return the micro_batch_size that the run's training began with: it decides the order of the examples."""
    state = run.state("trl")
    if "micro_batch_size" not in state:
        state.update(micro_batch_size=options.micro_batch_size)
    return int(state["micro_batch_size"])


def _layout(
    model: PreTrainedModel, options: TrainOptions, lengths: Sequence[int], run: Run, first_batch: int
) -> Layout:
    """Choose how forward passes are laid out; record the choice in the log and, for a rerun, in the lock."""
    no_packing = None
    if is_sharded(model) or (options.launch is not None and options.launch.fsdp):
        no_packing = "whether a sharded model keeps packed examples apart cannot be tested before training"
    elif options.sample_packing is not False:
        no_packing = obstacle(model, packed_attention(options))
    if options.sample_packing is True and no_packing:
        run.log("warning", message=f"sample_packing is not possible, length grouping is used instead: {no_packing}")
    layout = choose_layout(options, lengths, run.seed, no_packing, first_batch)
    run.log("note", message=f"training batches are {layout.name}: {layout.why}")
    run.log("lock", **asdict(layout))
    return layout


def _spread_over(trainer: Any, world: World) -> dict[str, Any]:
    """Return facts of a training that a launcher started.

    `engine` is the class that spreads it over the processes (DeepSpeedEngine, DistributedDataParallel, FSDP...), and
    `parameters_held` how many values of the model's parameters this process holds.
    """
    if not world.launched:
        return {}
    engine = type(trainer.model_wrapped).__name__
    return {"processes": world.size, "engine": engine, "parameters_held": held_parameters(trainer.model)}


def _processes_arguments(options: TrainOptions, world: World) -> dict[str, Any]:
    """Return the arguments of a training that a launcher started."""
    launch = options.launch
    if not world.launched:
        return {}
    return {
        "accelerator_config": {"use_configured_state": True},  # that of `World`
        "ddp_find_unused_parameters": False,
        "deepspeed": deepspeed_config(launch.deepspeed) if launch and launch.deepspeed else None,
        **(fsdp_arguments() if launch and launch.fsdp else {}),
    }


def _arguments(options: TrainOptions, output: Path, seed: int, world: World) -> Any:
    kind, where = dtype(options), device()
    sharded = options.launch is not None and bool(options.launch.deepspeed)
    arguments = SFTConfig(
        output_dir=str(output),
        max_length=None,  # `render` has already truncated long examples, and keeps the target
        dataset_kwargs={"skip_prepare_dataset": True},
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.lr_scheduler,
        warmup_steps=options.warmup_steps,
        max_steps=options.max_steps or -1,
        num_train_epochs=options.num_epochs,
        per_device_train_batch_size=options.micro_batch_size,
        gradient_accumulation_steps=options.step_examples // options.micro_batch_size // world.size,
        optim=options.optimizer,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        bf16=kind == torch.bfloat16 and where.type == "cuda",
        fp16=kind == torch.float16 and where.type == "cuda",
        use_cpu=where.type == "cpu" and not (world.launched and sharded),  # it would turn DeepSpeed off
        dataloader_pin_memory=where.type == "cuda",
        logging_steps=options.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # a loss that is not finite stops the run instead of being left out of the mean
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=2,
        seed=seed,
        data_seed=seed,
        report_to="none",
        disable_tqdm=True,
        **{_CHECKPOINTING: options.activation_checkpointing},
        **_processes_arguments(options, world),
    )
    return _with_one_gpu(arguments)


def _with_one_gpu(arguments: SFTConfig) -> SFTConfig:
    """Let the Trainer use one GPU of a process that sees several: CUDA may have started before `use_one_gpu`."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def _lora(options: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=options.lora_target_modules,
        task_type="CAUSAL_LM",
    )


def _earlier_seconds(run: Run) -> float:
    """Return the seconds of training in attempts that were killed, each up to the last line of its log.

    Notes, warnings and facts for the lock do not count: an attempt logs some before its `start`, long after the end of
    the last attempt.
    """
    total, previous = 0.0, None
    for row in Journal(run.path("train", "log.jsonl")).read():
        if row["event"] in ("note", "warning", "lock"):
            continue
        if previous is not None and row["event"] != "start":
            total += row["time"] - previous
        previous = row["time"]
    return total
