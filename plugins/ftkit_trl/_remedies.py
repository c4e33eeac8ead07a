"""What may help where training on this machine failed, and which options a resumed run may change. Light: no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ftkit.causes import Failure, chain
from ftkit.errors import RunFailed
from ftkit.records import Finding, Remedy

from .options import TrainOptions

ANSWERING = "while prompts were answered"  # the note of such an error
_SHORTEST = 128  # tokens: shorter examples are hardly a remedy


class LossNotFinite(RunFailed):
    """The loss became NaN or infinite: what follows would train on nothing."""

    def __init__(self, loss: float, step: int) -> None:
        super().__init__(f"the loss is {loss} at step {step}", "lower backend.learning_rate, or use another dtype")


def resumed_findings(before: TrainOptions, now: TrainOptions) -> Iterator[Finding]:
    """Yield an error where a step would have another number of examples than before, or more training changes nothing."""
    if now.num_epochs != before.num_epochs and now.max_steps is not None and now.max_steps == before.max_steps:
        yield Finding(
            "error",
            f"num_epochs has no effect: max_steps {now.max_steps} decides how long this run trains",
            "increase backend.max_steps",
            "backend.num_epochs",
        )
    longer = (now.max_steps, now.num_epochs) != (before.max_steps, before.num_epochs)
    if longer and now.launch is not None and (now.launch.deepspeed or now.launch.fsdp or now.launch.accelerate_config):
        yield Finding(
            "error",
            "a finished training cannot continue with a sharded model: its checkpoints are gone",
            "start a new run from its model: backend.base_model: RUN",
            "backend.launch",
        )
    then, planned = before.step_examples, now.step_examples
    if then == planned:
        return
    if then % now.micro_batch_size == 0:
        hint = f"add --set backend.gradient_accumulation_steps={then // now.micro_batch_size}"
    else:
        fits = ", ".join(str(n) for n in range(1, then + 1) if then % n == 0)
        hint = f"choose a backend.micro_batch_size that divides {then}: {fits}"
    yield Finding(
        "error",
        f"a step of training would have {planned} examples (micro_batch_size {now.micro_batch_size} x "
        f"gradient_accumulation_steps {now.step_examples // now.micro_batch_size}), and this run trains with {then}",
        hint,
        "backend.micro_batch_size",
    )


def remedies(options: TrainOptions, failure: Failure, quantised: bool, adapter: bool) -> Iterator[Remedy]:
    """Yield what may help: where memory is short, and where the loss is not finite."""
    if failure.kind == LossNotFinite.__name__:  # also of another process of the training
        yield from _of_loss(options)
    elif failure.cause in ("gpu-memory", "memory"):
        if failure.stage == "train":
            yield from _smaller_passes(options)
        yield from _fewer_prompts(options, failure.stage)
        if failure.cause == "gpu-memory" and not quantised:
            yield from _smaller_method(adapter)
        if failure.stage == "train" and options.sequence_len // 2 >= _SHORTEST:
            yield Remedy(
                "train on shorter examples, from the beginning", (f"backend.sequence_len={options.sequence_len // 2}",)
            )


def adaptations(options: TrainOptions, failure: Failure, trained: bool) -> tuple[str, ...]:
    """Return the change with which a run continues after it ran out of memory; none where nothing is left to try.

    `trained` says whether a training has begun: before that, smaller passes do not help. An error that was raised while
    prompts were answered bears the note `ANSWERING`: then fewer are answered at once, and what is measured so far is
    measured again, so that base and tuned model are measured alike.
    """
    if options.on_oom != "adapt" or failure.cause not in ("gpu-memory", "memory") or failure.error is None:
        return ()
    if any(ANSWERING in getattr(error, "__notes__", ()) for error in chain(failure.error)):
        return (f"backend.eval_batch_size={options.eval_batch_size // 2}",) if options.eval_batch_size > 1 else ()
    if failure.stage == "train" and trained:
        return next((remedy.changes for remedy in _smaller_passes(options)), ())
    return ()


def _smaller_passes(options: TrainOptions) -> Iterator[Remedy]:
    size, passes = options.micro_batch_size, options.gradient_accumulation_steps
    smaller = next((n for n in range(size // 2, 0, -1) if size % n == 0), size)
    if smaller < size:
        changes: tuple[str, ...] = (f"backend.micro_batch_size={smaller}",)
        if not options.global_batch_size:
            changes += (f"backend.gradient_accumulation_steps={size * passes // smaller}",)
        yield Remedy("put fewer examples into one forward pass; each step keeps its examples", changes)
    if not options.activation_checkpointing:
        changes = ("backend.activation_checkpointing=true",)
        yield Remedy("recompute activations instead of keeping them: about 30 % slower", changes)


def _fewer_prompts(options: TrainOptions, stage: str) -> Iterator[Remedy]:
    measures = stage in ("baseline", "evaluate") or (stage == "train" and options.eval_steps)
    if measures and options.eval_batch_size > 1:
        changes = (f"backend.eval_batch_size={max(1, options.eval_batch_size // 4)}",)
        yield Remedy("answer fewer prompts at once; what is measured so far is measured again", changes)


def _smaller_method(adapter: bool) -> Iterator[Remedy]:
    plugin = "trl-sft-qlora" if adapter else "trl-sft-lora"
    what = "keep the base model in 4 bits" if adapter else "train an adapter instead of all weights"
    yield Remedy(f"{what}, from the beginning", (f"backend.plugin={plugin}",))


def _of_loss(options: TrainOptions) -> Iterator[Remedy]:
    lower: Any = f"{options.learning_rate / 10:.2g}"
    yield Remedy("train with a tenth of the learning rate, from the beginning", (f"backend.learning_rate={lower}",))
    if options.dtype in ("auto", "float16"):
        yield Remedy("compute in single precision, from the beginning", ("backend.dtype=float32",))
    if options.warmup_steps < 10:
        yield Remedy("begin with small steps, from the beginning", ("backend.warmup_steps=10",))
