"""GSM8K: the evaluator `gsm8k-answer`, and a probe that shows what fine-tuning on worked solutions teaches.

Light: the `_*.py` files that compute are imported when they are used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from ftkit_trl import TrlSftQlora
from ftkit_trl.options import QloraOptions
from pydantic import Field

from ftkit.api import Backend, DatasetLoader, Evaluator, MeasuredRun, Options
from ftkit.hookspecs import hookimpl
from ftkit.records import Example, Finding, GenerationConfig, Measurement, ModelRef, Section, Task

from ._evaluator import FIX, Gsm8kAnswer, wrong_targets
from ._sample import few_shot, fixed_sample


class ProbeOptions(QloraOptions):
    """The options of trl-sft-qlora, and how much the probe measures. It measures the models of `snapshots`, too."""

    probe_samples: int = Field(200, gt=0, description="test questions, and as many training questions, per model")
    pass_k: int = Field(8, ge=2, le=1000, description="sampled solutions per question, for pass@k and maj@k")
    pass_samples: int = Field(100, gt=0, description="test questions with k sampled solutions per model")
    pass_temperature: float = Field(0.8, gt=0, description="temperature of the sampled solutions")
    pass_top_p: float = Field(1.0, gt=0, le=1, description="top-p of the sampled solutions")
    pass_max_new_tokens: int = Field(256, gt=0, description="length limit of the sampled solutions, in tokens")
    pass_seed: int = Field(0, ge=0, description="seed of the sampled solutions; the run records it")
    few_shot: int = Field(4, ge=0, description="training examples in the prompt of the few-shot control; 0: no control")

    renamed: ClassVar[dict[str, str]] = {**QloraOptions.renamed, "checkpoints": "snapshots", "k": "pass_k", "shots": "few_shot"}  # fmt: skip


class Gsm8kSftProbe(TrlSftQlora):
    """QLoRA as in `trl-sft-qlora`, with further measurements of the base model, of snapshots and of the tuned model.

    Each model gets the same questions, chosen by the hash of their text. Measured are: greedy solutions and the
    teacher-forced loss on test questions; greedy solutions of training questions, and of test questions with other
    numbers; and k sampled solutions. The base model is also measured once with training examples in its prompt.
    """

    name = "gsm8k-sft-probe"
    summary = "QLoRA on worked solutions, and measurements that say what it taught"
    Options = ProbeOptions

    def check(self, task: Task | None, trains: bool = True) -> Iterable[Finding]:
        yield from super().check(task, trains)
        if task is None:
            return
        if not any("<<" in e.targets[0] for e in task.measured[:200]):
            yield Finding(
                "warning",
                "no test target holds a calculator annotation such as <<48/2=24>>: step arithmetic and changed numbers"
                " cannot be measured",
                "name the column of worked solutions",
                "dataset.columns.target",
            )
        measured = [*task.measured, *task.validation, *fixed_sample(task.train, self.options.probe_samples)]
        wrong = wrong_targets(measured)
        if wrong and len(wrong) < len(measured):
            more = f" (and {len(wrong) - 1} more rows)" if len(wrong) > 1 else ""
            yield Finding("error", f"{wrong[0]}{more}", FIX, "dataset.columns.target")
        o, places = self.options, 2 + len(self.checkpoints(task))
        greedy = 2 * min(o.probe_samples, len(task.measured)) + min(o.probe_samples, len(task.train))  # at most
        sampled = o.pass_k * min(o.pass_samples, o.probe_samples, len(task.measured))
        yield Finding(
            "note",
            f"the probe measures {places} models, with up to {greedy} greedy and {sampled} sampled solutions each,"
            " in addition to baseline and tuned",
        )

    def measurements(self, task: Task, tuned: ModelRef | None) -> Iterator[Measurement]:
        if tuned is None:
            yield from self._probes(task, "base", self.base_model())
            if self.options.few_shot:
                examples = few_shot(self._test(task), task.train, self.options.few_shot)
                yield Measurement("probe-few-shot", self.base_model(), examples=examples, compared=False)
            return
        for step in self.checkpoints(task):
            snapshot = ModelRef("adapter", f"train/snapshots/{step}", base=self.options.base_model)
            yield from self._probes(task, f"step-{step}", snapshot)
        yield from self._probes(task, "tuned", tuned)

    def checkpoints(self, task: Task) -> list[int]:
        """Return the steps of the snapshots that training reaches before its last step."""
        o = self.options
        per_epoch = math.ceil(len(task.train) / o.step_examples)
        steps = o.max_steps or math.ceil(o.num_epochs * per_epoch)
        return sorted({s for s in o.snapshots if s < steps})

    def _test(self, task: Task) -> tuple[Example, ...]:
        return fixed_sample(task.measured, self.options.probe_samples)

    def _probes(self, task: Task, where: str, model: ModelRef) -> Iterator[Measurement]:
        """Yield one model's measurements. They are not compared as systems: rows and settings are not the recipe's."""
        from ._variants import variants

        o, test = self.options, self._test(task)
        yield Measurement(f"probe-{where}-test", model, examples=test, compared=False, loss=True)
        train = fixed_sample(task.train, o.probe_samples)
        yield Measurement(f"probe-{where}-train", model, split="train", examples=train, compared=False)
        other = tuple(variants(test))
        if other:
            yield Measurement(f"probe-{where}-changed", model, examples=other, compared=False)
        sampling = GenerationConfig(
            max_new_tokens=o.pass_max_new_tokens,
            temperature=o.pass_temperature,
            top_p=o.pass_top_p,
            seed=o.pass_seed,
            samples=o.pass_k,
        )
        few = test[: o.pass_samples]
        yield Measurement(f"probe-{where}-samples", model, generation=sampling, examples=few, compared=False)


class ProblemOptions(Options):
    """How many problems are generated, and of how many steps."""

    steps: list[Literal[1, 2, 3, 4]] = Field(
        [2, 3, 4], min_length=1, description="steps of a solution, in equal shares"
    )
    train_rows: int = Field(1500, gt=0, description="training problems")
    validation_rows: int = Field(64, ge=0, description="validation problems")
    test_rows: int = Field(300, gt=0, description="test problems")
    data_seed: int = Field(0, ge=0, description="seed of the generator")


class WordProblems(DatasetLoader):
    """Arithmetic word problems with worked solutions in GSM8K's form; no question is in two splits."""

    name = "gsm8k-quickstart"
    summary = "generated arithmetic word problems with worked, annotated solutions"
    Options = ProblemOptions

    def load(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        from ._problems import rows

        o = self.options
        sizes = {"train": o.train_rows, "validation": o.validation_rows, "test": o.test_rows}
        return {split: rows(split, n, tuple(o.steps), o.data_seed) for split, n in sizes.items() if n}

    def about(self) -> dict[str, Any]:
        return {"licence": "Apache-2.0", "generator": "ftkit_gsm8k"}


@hookimpl
def ftkit_backends() -> list[type[Backend]]:
    return [Gsm8kSftProbe]


@hookimpl
def ftkit_evaluators() -> list[type[Evaluator]]:
    return [Gsm8kAnswer]


@hookimpl
def ftkit_datasets() -> list[type[DatasetLoader]]:
    return [WordProblems]


@hookimpl
def ftkit_report_sections(runs: list[MeasuredRun]) -> list[Section]:
    from ._report import section

    return [found for run in runs if (found := section(run)) is not None]
