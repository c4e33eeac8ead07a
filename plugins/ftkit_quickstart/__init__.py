"""A way to try ftkit without a download: a tiny base model, generated dialogues, and a rule to compare with.

The model is in `model/`; `make_model.py` trains it from scratch. Recipes name it as
`package:ftkit_quickstart/model`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from pydantic import Field

from ftkit.api import Backend, DatasetLoader, Options, Run, Session
from ftkit.hookspecs import hookimpl
from ftkit.records import Example, GenerationConfig, ModelRef, Prediction, Task


class DialogueOptions(Options):
    """How many dialogues are generated."""

    train_rows: int = Field(4800, gt=0, description="training dialogues")
    validation_rows: int = Field(100, ge=0, description="validation dialogues")
    test_rows: int = Field(200, gt=0, description="test dialogues")
    data_seed: int = Field(0, ge=0, description="seed of the generator")


class QuickstartDialogues(DatasetLoader):
    """Messenger dialogues with a one-sentence summary, an intent and the facts: who, what, where, when.

    Some names, places and phrasings are held out: only the test split has them. It shares no dialogue with train.
    """

    name = "quickstart-dialogues"
    summary = "generated messenger dialogues with summaries, intents and facts"
    Options = DialogueOptions

    def load(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        from ._dialogues import rows

        sizes = {
            "train": self.options.train_rows,
            "validation": self.options.validation_rows,
            "test": self.options.test_rows,
        }
        return {split: rows(split, size, self.options.data_seed) for split, size in sizes.items() if size}

    def about(self) -> dict[str, Any]:
        return {"licence": "Apache-2.0", "generator": "ftkit_quickstart"}


class FirstSentencesOptions(Options):
    """Which part of the input is the prediction."""

    sentences: int = Field(2, gt=0, description="first lines of the input that are the prediction")


class FirstSentences(Backend):
    """A rule instead of a model: the first lines of the input are the summary. A useful model must be better."""

    name = "first-sentences"
    summary = "a rule: the first lines of the input (a useful summariser must be better)"
    Options = FirstSentencesOptions
    generation_settings = frozenset(GenerationConfig.model_fields)  # a rule has no tokens: none changes its answer

    def base_model(self) -> ModelRef:
        return ModelRef("rule", f"first {self.options.sentences} lines")

    def train(self, task: Task, run: Run) -> ModelRef:
        return self.base_model()  # a rule has nothing to train

    def load(self, model: ModelRef, run: Run) -> AbstractContextManager[Session]:
        return contextlib.nullcontext(_Rule(self.options.sentences))


class _Rule(Session):
    """Predicts the first lines of each input."""

    def __init__(self, sentences: int) -> None:
        self.sentences = sentences

    def generate(
        self, batches: Iterable[Sequence[Example]], generation: GenerationConfig
    ) -> Iterator[list[Prediction]]:
        for batch in batches:
            yield [
                Prediction(e.id, " ".join(e.input.splitlines()[: self.sentences]), sample)
                for e in batch
                for sample in range(generation.samples)
            ]


@hookimpl
def ftkit_datasets() -> list[type[DatasetLoader]]:
    return [QuickstartDialogues]


@hookimpl
def ftkit_backends() -> list[type[Backend]]:
    return [FirstSentences]
