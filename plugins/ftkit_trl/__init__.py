"""Backends that fine-tune on this machine with TRL: QLoRA (4-bit), LoRA, and all weights.

Light: the `_*.py` files that import torch are imported when they are used. Each method that may start CUDA first
calls `use_one_gpu`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

from ftkit.api import Backend, MeasuredRun, Requires, Run, Session
from ftkit.causes import Failure
from ftkit.errors import InputError
from ftkit.hookspecs import hookimpl
from ftkit.probing import missing_modules
from ftkit.records import (
    Diagnosis,
    Example,
    Exported,
    ExportRequest,
    Finding,
    GenerationConfig,
    LengthLimit,
    ModelRef,
    Prediction,
    Remedy,
    Rendered,
    Task,
)

from ._continued import Start, meta_of, resolved
from ._device import use_one_gpu
from .options import LoraOptions, QloraOptions, TrainOptions, is_gguf

_MODULES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


class TrlSftLora(Backend):
    """LoRA: the base model in its own precision, a small adapter is trained."""

    name = "trl-sft-lora"
    summary = "LoRA with TRL's SFTTrainer on this machine"
    Options = LoraOptions
    requires = Requires(_MODULES, "ftkit[trl]")
    quantised: ClassVar[bool] = False
    adapter: ClassVar[bool] = True
    start: Start | None = None  # the run whose model is the base model: see `resolved`
    generation_settings = frozenset(GenerationConfig.model_fields)

    def requirements(self) -> Iterator[Requires]:
        yield self.requires
        if self.options.launch is not None and self.options.launch.deepspeed:
            yield Requires(("deepspeed",), "ftkit[deepspeed]")
        if is_gguf(self.options.base_model):
            yield Requires(("gguf",), "ftkit[gguf]")

    @classmethod
    def diagnose(cls, options: Any = None) -> Iterator[Diagnosis]:
        if missing_modules(cls.requires.modules):
            yield from super().diagnose(options)
            return
        from ._doctor import diagnoses  # it imports the modules one by one

        yield from diagnoses(cls.requires.modules, cls.quantised, options)

    def check(self, task: Task | None, trains: bool = True) -> Iterable[Finding]:
        use_one_gpu()
        from ._check import findings

        try:
            backend = resolved(self)
        except InputError as error:
            return [Finding("error", error.message, error.hint, "backend.base_model")]
        return findings(backend, task, trains)

    def estimate(self, task: Task | None, trains: bool = True) -> dict[str, Any]:
        use_one_gpu()
        from ._check import estimate

        return estimate(resolved(self), task, trains)

    def estimate_answers(self, task: Task, model: ModelRef) -> dict[str, Any]:
        return {"usd": 0.0}  # nothing is paid for but the machine, which is there

    def render(self, examples: Iterable[Example]) -> Iterator[Rendered]:
        from ._model import load_tokenizer
        from ._render import Chat

        options = resolved(self).options
        return Chat(load_tokenizer(options), options).render(examples)

    @property
    def length_limit(self) -> LengthLimit:
        return LengthLimit(self.options.sequence_len, "backend.sequence_len")

    def base_model(self) -> ModelRef:
        uri = self.options.base_model
        local = uri.startswith(("package:", "/", "./", "../", "~")) or (is_gguf(uri) and ":" not in uri)
        kind = "path" if local else "hub"
        meta = {"revision": self.options.revision} if self.options.revision else {}
        return ModelRef(kind, uri, meta={**meta, **meta_of(resolved(self))})

    def identity(self, model: ModelRef, run: Run) -> dict[str, Any]:
        use_one_gpu()
        from ._identity import identity
        from ._model import pinned

        if "exported" in model.meta:
            from ._export import exported_identity

            return exported_identity(resolved(self, model) if model.kind == "adapter" else self, model, run)
        return identity(pinned(resolved(self, model), run, keep=True), model, run)

    def train(self, task: Task, run: Run) -> ModelRef:
        from ._launch import is_launched, train_in_processes

        if is_launched(self.options):
            return train_in_processes(self.options, run)
        use_one_gpu()
        from ._model import pinned
        from ._train import train

        return train(pinned(resolved(self), run), task, run)

    def load(self, model: ModelRef, run: Run) -> AbstractContextManager[Session]:
        use_one_gpu()
        if "exported" in model.meta:
            from ._export import open_exported

            return open_exported(resolved(self, model) if model.kind == "adapter" else self, model, run)
        from ._generate import open_session
        from ._launch import processes
        from ._model import pinned
        from ._spread import open_spread

        count = processes(self.options)
        if count > 1:
            return open_spread(pinned(resolved(self, model), run), model, run, count)
        return open_session(pinned(resolved(self, model), run), model, run)

    def load_beside(self, loaded: Session, model: ModelRef, run: Run) -> AbstractContextManager[Session] | None:
        from ._generate import open_beside
        from ._model import pinned

        return open_beside(loaded, pinned(resolved(self, model), run), model, run)

    def check_resumed(self, before: TrainOptions, run: MeasuredRun) -> Iterable[Finding]:
        from ._remedies import resumed_findings

        return resumed_findings(before, self.options)

    def adapt(self, failure: Failure, run: MeasuredRun) -> Sequence[str]:
        from ._remedies import adaptations

        return adaptations(self.options, failure, any(row["event"] == "start" for row in run.log_rows()))

    def remedies(self, failure: Failure, run: MeasuredRun) -> Iterable[Remedy]:
        from ._remedies import remedies

        return remedies(self.options, failure, self.quantised, self.adapter)

    def verify_model(self, model: ModelRef, run: MeasuredRun) -> Iterable[str]:
        from ._tensors import faults

        base = model.base or self.options.base_model if model.kind == "adapter" else None
        return faults(run.resolve_uri(model.uri), run.path("train", "tensors.json"), base)

    def check_export(self, request: ExportRequest, run: MeasuredRun | None) -> Iterable[Finding]:
        from ._export import findings

        return findings(self if run is None else resolved(self, run.model()), request, run)

    def export_size(self, request: ExportRequest, run: MeasuredRun) -> int | None:
        from ._export import export_size

        return export_size(resolved(self, run.model()), request, run)

    def export(self, request: ExportRequest, run: MeasuredRun, folder: Path) -> Exported:
        use_one_gpu()
        from ._export import export

        return export(resolved(self, run.model()), request, run, folder)

    def answer_exported(
        self, exported: Exported, examples: Sequence[Example], run: MeasuredRun, folder: Path
    ) -> tuple[str, list[Prediction]] | None:
        from ._export import answers

        return answers(exported, examples, run, folder)

    @property
    def eval_batch_size(self) -> int:
        size: int = self.options.eval_batch_size
        return size


class TrlSftQlora(TrlSftLora):
    """QLoRA: the base model in 4-bit NF4 (double quantisation), a small adapter is trained."""

    name = "trl-sft-qlora"
    summary = "QLoRA (4-bit NF4) with TRL's SFTTrainer on this machine"
    Options = QloraOptions
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
