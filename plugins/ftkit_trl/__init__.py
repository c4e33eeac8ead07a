"""Backends that fine-tune on this machine with TRL: QLoRA (4-bit), LoRA, and all weights.

Light: the `_*.py` files that import torch are imported when they are used. Each method that may start CUDA first
calls `use_one_gpu`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from ftkit.api import Backend, Requires, Run, Session
from ftkit.hookspecs import hookimpl
from ftkit.records import Example, Finding, GenerationConfig, LengthLimit, ModelRef, Rendered, Task

from ._device import use_one_gpu
from .options import LoraOptions, TrainOptions

_MODULES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


class TrlSftLora(Backend):
    """LoRA: the base model in its own precision, a small adapter is trained."""

    name = "trl-sft-lora"
    summary = "LoRA with TRL's SFTTrainer on this machine"
    Options = LoraOptions
    requires = Requires(_MODULES, "ftkit[trl]")
    quantised: ClassVar[bool] = False
    adapter: ClassVar[bool] = True
    generation_settings = frozenset(GenerationConfig.model_fields)

    def check(self, task: Task | None, trains: bool = True) -> Iterable[Finding]:
        use_one_gpu()
        from ._check import findings

        return findings(self, task, trains)

    def estimate(self, task: Task | None, trains: bool = True) -> dict[str, Any]:
        use_one_gpu()
        from ._check import estimate

        return estimate(self, task, trains)

    def render(self, examples: Iterable[Example]) -> Iterator[Rendered]:
        from ._model import load_tokenizer
        from ._render import Chat

        return Chat(load_tokenizer(self.options), self.options).render(examples)

    @property
    def length_limit(self) -> LengthLimit:
        return LengthLimit(self.options.sequence_len, "backend.sequence_len")

    def base_model(self) -> ModelRef:
        uri = self.options.base_model
        kind = "path" if uri.startswith(("package:", "/", "./", "../", "~")) else "hub"
        return ModelRef(kind, uri, meta={"revision": self.options.revision} if self.options.revision else {})

    def identity(self, model: ModelRef, run: Run) -> dict[str, Any]:
        use_one_gpu()
        from ._identity import identity
        from ._model import pinned

        return identity(pinned(self, run, keep=True), model, run)

    def train(self, task: Task, run: Run) -> ModelRef:
        use_one_gpu()
        from ._model import pinned
        from ._train import train

        return train(pinned(self, run), task, run)

    def load(self, model: ModelRef, run: Run) -> AbstractContextManager[Session]:
        use_one_gpu()
        from ._generate import open_session
        from ._model import pinned

        return open_session(pinned(self, run), model, run)

    @property
    def eval_batch_size(self) -> int:
        size: int = self.options.eval_batch_size
        return size


class TrlSftQlora(TrlSftLora):
    """QLoRA: the base model in 4-bit NF4 (double quantisation), a small adapter is trained."""

    name = "trl-sft-qlora"
    summary = "QLoRA (4-bit NF4) with TRL's SFTTrainer on this machine"
    requires = Requires((*_MODULES, "bitsandbytes"), "ftkit[trl]")
    quantised = True


class TrlSftFull(TrlSftLora):
    """Full fine-tuning: all weights are trained."""

    name = "trl-sft-full"
    summary = "full fine-tuning with TRL's SFTTrainer on this machine"
    Options = TrainOptions
    adapter = False


@hookimpl
def ftkit_backends() -> list[type[Backend]]:
    return [TrlSftQlora, TrlSftLora, TrlSftFull]
