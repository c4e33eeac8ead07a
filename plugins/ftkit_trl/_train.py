"""Supervised fine-tuning with TRL, top to bottom."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import TrainerCallback, set_seed

from ftkit.errors import RunFailed
from ftkit.measure import plan
from ftkit.records import Example, ModelRef, Task
from ftkit.store import Journal, RunContext, write_atomic

from ._check import refuse_faulty, refuse_masked
from ._generate import TrlSession
from ._model import device, dtype, load_base, load_tokenizer, peak_memory
from ._render import Chat
from ._took import judge, sample

if TYPE_CHECKING:
    from . import TrainOptions, TrlSftLora

_WHOLE = "ftkit-complete"  # a file in a checkpoint that was written to its end


def train(backend: TrlSftLora, task: Task, run: RunContext) -> ModelRef:
    """Train on `task.train`, hand over `train/model/` (safetensors, no pickle), and return its handle."""
    from trl import SFTTrainer

    options = backend.options
    set_seed(run.seed)
    tokenizer = load_tokenizer(options)
    rows = list(Chat(tokenizer, options).render(task.train))
    refuse_faulty(rows)
    dataset = Dataset.from_dict(
        {
            "input_ids": [row.ids for row in rows],
            "labels": [[i if on else -100 for i, on in zip(row.ids, row.learned, strict=True)] for row in rows],
        }
    )
    checkpoints = run.scratch("checkpoints")
    trainer = SFTTrainer(
        model=load_base(backend),
        args=_arguments(options, checkpoints, run.seed),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=_lora(options) if backend.adapter else None,
        callbacks=[_Checkpoints()],
    )
    refuse_masked(trainer.data_collator, [dataset[i] for i in range(min(2, len(dataset)))])
    trainer.add_callback(_Snapshots(trainer.model, options.snapshots, run))
    trainer.add_callback(_Watch(trainer.model, tokenizer, options, task, run))
    for parameter in trainer.model.parameters():
        # In half precision small updates are rounded away (TRL casts a QLoRA adapter to bf16): what is trained is fp32.
        if parameter.requires_grad:
            parameter.data = parameter.data.float()

    before = sample(trainer.model)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    earlier = _earlier_seconds(run)
    run.log("start", resumed=earlier > 0)
    began = time.monotonic()
    trainer.train(resume_from_checkpoint=_last_whole(checkpoints))
    seconds = time.monotonic() - began

    staging = run.scratch("model")
    shutil.rmtree(staging)
    best = run.scratch("best")
    if options.keep_best and (best / "metric.json").exists():
        shutil.copytree(best, staging, ignore=shutil.ignore_patterns("metric.json"))
    else:
        trainer.model.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    judge(before, staging, run)
    publish(staging, run.path("train", "model"))
    state = trainer.state
    price = {} if options.usd_per_hour is None else {"usd": options.usd_per_hour * (earlier + seconds) / 3600}
    run.log(
        "end",
        steps=state.global_step,
        seconds=round(seconds, 2),
        tokens=int(state.num_input_tokens_seen),
        peak_memory=peak_memory(),
        trainable_parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        device=str(device()),
        dtype=str(dtype(options)).removeprefix("torch."),
        **price,
    )
    if backend.adapter:
        return ModelRef("adapter", "train/model", base=options.base_model)
    return ModelRef("path", "train/model", base=options.base_model, meta={"trained": True})


def _arguments(options: TrainOptions, output: Path, seed: int) -> Any:
    from trl import SFTConfig

    kind, where = dtype(options), device()
    return SFTConfig(
        output_dir=str(output),
        max_length=None,  # `render` has already cut what is too long, and it keeps the answer
        dataset_kwargs={"skip_prepare_dataset": True},
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.lr_scheduler,
        warmup_steps=options.warmup_steps,
        max_steps=options.max_steps or -1,
        num_train_epochs=options.num_epochs,
        per_device_train_batch_size=options.micro_batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        train_sampling_strategy="group_by_length" if options.group_by_length else "random",
        optim=options.optimizer,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        gradient_checkpointing=options.gradient_checkpointing,
        bf16=kind == torch.bfloat16 and where.type == "cuda",
        fp16=kind == torch.float16 and where.type == "cuda",
        use_cpu=where.type == "cpu",
        dataloader_pin_memory=where.type == "cuda",
        logging_steps=options.logging_steps,
        logging_first_step=True,
        include_num_input_tokens_seen="non_padding",
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=2,
        seed=seed,
        data_seed=seed,
        report_to="none",
        disable_tqdm=True,
    )


def _lora(options: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=options.lora_target_modules,
        task_type="CAUSAL_LM",
    )


def _earlier_seconds(run: RunContext) -> float:
    """Return the seconds that killed attempts trained, up to the last line that each logged."""
    total, previous = 0.0, None
    for row in Journal(run.path("train", "log.jsonl")).read():
        if previous is not None and row["event"] != "start":  # between an attempt and the next nothing was done
            total += row["time"] - previous
        previous = row["time"]
    return total


def publish(staging: Path, target: Path) -> None:
    """Move a finished folder to where it is looked for: what bears that name is whole and on disk."""
    for path in (p for p in staging.rglob("*") if p.is_file()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(staging, target)


def _last_whole(checkpoints: Path) -> str | None:
    """Return the newest checkpoint that was written to its end; a torn one is removed."""
    found = sorted(checkpoints.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    for path in [p for p in found if not (p / _WHOLE).exists()]:
        shutil.rmtree(path)
    whole = [p for p in found if p.exists()]
    return str(whole[-1]) if whole else None


class _Checkpoints(TrainerCallback):
    """Marks a checkpoint after it is whole: the Trainer does not write them atomically."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        os.sync()
        (folder / _WHOLE).touch()


class _Snapshots(TrainerCallback):
    """Keeps the weights after the steps asked for in `train/snapshots/STEP/`, as safetensors."""

    def __init__(self, model: Any, steps: list[int], run: RunContext) -> None:
        self.model, self.steps, self.run = model, steps, run

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for step in (s for s in self.steps if s > state.max_steps):
            self.run.log("warning", message=f"no snapshot of step {step}: training ends at step {state.max_steps}")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Before the checkpoint of this step is written: a resumed run repeats the step or finds its snapshot.
        if state.global_step in self.steps:
            staging = self.run.scratch("snapshot")
            shutil.rmtree(staging)
            self.model.save_pretrained(staging)
            publish(staging, self.run.path("train", "snapshots", str(state.global_step)))


class _Watch(TrainerCallback):
    """Logs loss and throughput, and every `eval_steps` the evaluator's own metric on a validation sample."""

    def __init__(self, model: Any, tokenizer: Any, options: TrainOptions, task: Task, run: RunContext) -> None:
        self.session = TrlSession(model, tokenizer, options)
        self.options, self.run = options, run
        self.sample = {e.id: e for e in task.validation[: options.eval_samples]} if options.eval_steps else {}
        self.best = run.scratch("best")
        self.began, self.measuring, self.first_tokens = 0.0, 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began, self.first_tokens = time.monotonic(), int(state.num_input_tokens_seen)
        if state.global_step == 0:
            self.measure(0)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        if not torch.isfinite(torch.tensor(logs["loss"])):
            raise RunFailed(
                f"the loss is {logs['loss']} at step {state.global_step}",
                "lower backend.learning_rate, or use another dtype",
            )
        seconds = time.monotonic() - self.began - self.measuring
        tokens = int(state.num_input_tokens_seen)
        self.run.log(
            "step",
            step=state.global_step,
            max_steps=state.max_steps,
            loss=logs["loss"],
            learning_rate=logs.get("learning_rate"),
            grad_norm=logs.get("grad_norm"),
            tokens=tokens,
            tokens_per_second=round((tokens - self.first_tokens) / max(seconds, 1e-9), 1),
            seconds=round(time.monotonic() - self.began, 2),
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.options.eval_steps and (
            state.global_step % self.options.eval_steps == 0 or state.global_step == state.max_steps
        ):
            self.measure(state.global_step)

    def measure(self, step: int) -> None:
        """Generate on the validation sample, score it, and keep the weights if they are the best so far."""
        if not self.sample:
            return
        began = time.monotonic()
        model, generation = self.session.model, self.run.recipe.generation
        model.eval()
        examples: list[Example] = list(self.sample.values())
        batches = [[self.sample[i] for i in ids] for ids in plan(examples, self.options.eval_batch_size)]
        predictions = [p for batch in self.session.generate(batches, generation) for p in batch]
        model.train()
        metrics = {m.name: m for m in self.run.evaluate(examples, predictions)}
        self.measuring += time.monotonic() - began
        self.run.log("eval", step=step, n=len(examples), **{name: round(m.value, 6) for name, m in metrics.items()})
        primary = metrics.get(self.run.recipe.evaluators[0].make().primary)
        if (
            self.options.keep_best
            and step > 0
            and primary
            and self.is_better(primary.value, bool(primary.higher_is_better))
        ):
            staging = self.run.scratch("best-new")
            shutil.rmtree(staging)
            model.save_pretrained(staging)
            write_atomic(staging / "metric.json", json.dumps({"step": step, "value": primary.value}))
            publish(staging, self.best)

    def is_better(self, value: float, higher: bool) -> bool:
        path = self.best / "metric.json"
        if not path.exists():
            return True
        best: float = json.loads(path.read_text())["value"]
        return value > best if higher else value < best
