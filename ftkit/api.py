"""What a plugin implements: Backend, Evaluator, DatasetLoader, Launcher, Tracker.

A plugin module stays light: it holds these classes, their options and its hooks, and imports what is
heavy inside methods. `ftkit.hookspecs` says how the classes are found.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from .records import Example, Finding, Generation, Measurement, Metric, ModelRef, Prediction, Rendered, Score, Task

if TYPE_CHECKING:
    from .store import RunContext


class Options(BaseModel):
    """Base of every plugin's options: unknown keys are errors, with the nearest key named.

    Give each field a type, a default and `Field(description=...)`; they appear in `ftkit schema`. `renamed` maps other tools' spellings to this plugin's
    ({"cutoff_len": "sequence_len"}), so that the error can name the right key. `paths` names the options that
    may hold a file or folder: what lies beside the recipe is found from wherever ftkit is started.
    """

    # Deferred: a command builds the validators of those plugins only that its recipe names.
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), defer_build=True)
    renamed: ClassVar[Mapping[str, str]] = {}
    paths: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class Requires:
    """What a plugin needs beyond the core: importable modules, and the pip requirement that brings them."""

    modules: tuple[str, ...] = ()
    install: str = ""  # such as "ftkit[trl]"


class Plugin:
    """What all kinds share: a name for recipes, a line for lists, options, requirements."""

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    Options: ClassVar[type[BaseModel]] = Options
    requires: ClassVar[Requires] = Requires()

    def __init__(self, options: BaseModel | None = None) -> None:
        self.options: Any = options if options is not None else self.Options()


class Session(ABC):
    """A loaded model that answers planned batches; made by `Backend.load`, closed by its context."""

    @abstractmethod
    def generate(self, batches: Iterable[Sequence[Example]], generation: Generation) -> Iterator[list[Prediction]]:
        """Yield one list of predictions per batch, each as soon as it is done.

        Batches may be answered in any order, but each list answers one whole batch: per example,
        `generation.samples` predictions. A request that fails for good is a Prediction with `error`.
        """

    def loss(self, batch: Sequence[Example]) -> list[float]:
        """Return the teacher-forced loss of each example's first target, in nats per learned token."""
        raise NotImplementedError(f"{type(self).__name__} cannot compute a loss")

    def stats(self) -> dict[str, Any]:
        """Return facts worth recording after use, such as `peak_memory` (bytes) and `device`.

        `usd_per_hour`, the price of the machine, prices the seconds of answers that have no price of their own.
        """
        return {}


class Backend(Plugin, ABC):
    """Something that can answer, and learn to answer better: a local trainer, a provider, a rule."""

    # Set by the core before `check` and `estimate`: only its untouched model will be asked, for a comparison.
    control: bool = False

    def check(self, task: Task | None, run: RunContext | None) -> Iterable[Finding]:
        """Say what would go wrong, before anything is spent. `task` is None where no data could be read."""
        return ()

    def estimate(self, task: Task | None) -> dict[str, Any]:
        """Return what is known beforehand: `memory_bytes`, `seconds`, `usd`; or `not_estimated`: why.

        Where `usd` is above 0, the user is asked before anything is spent (`--yes` answers); `usd_detail` is a
        line that is shown with it. Where it costs an amount that is not known, return `usd` None, `paid` True and
        `not_estimated`: the user is asked just so. A `control` costs its answers alone, once.
        """
        return {"not_estimated": f"{self.name} gives no estimate"}

    def render(self, examples: Iterable[Example]) -> Iterable[Rendered]:
        """Yield training examples as the model sees them. Raises NotImplementedError where nothing is trained."""
        raise NotImplementedError(f"{self.name} does not show tokens")

    @abstractmethod
    def base_model(self) -> ModelRef:
        """Return the untouched model that the run starts from."""

    def identity(self, model: ModelRef, run: RunContext) -> dict[str, Any]:
        """Return all that decides what `model` answers: weights, precision, template, device, versions.

        Two runs whose identity, rows, prompt, generation settings and batch plan agree share a baseline.
        """
        from .plugins import installed_plugins

        owner = installed_plugins().find("backend", self.name).owner
        return {
            "plugin": self.name,
            "version": f"{owner.distribution} {owner.version}",
            "model": model.to_dict(),
            "options": self.options.model_dump(mode="json"),
        }

    @abstractmethod
    def train(self, task: Task, run: RunContext) -> ModelRef:
        """Train on `task.train`, choose on `task.validation`; never read test rows. Resumable.

        Write what is handed over to `run.path("train/model")`, and progress with `run.log`: events `step`
        (drawn as curves), `note` and `warning` (their `message` is shown), and `end` (facts, `usd` among them).
        A remote job that goes on without this process is left by raising `errors.Interrupted`.
        """

    @abstractmethod
    def load(self, model: ModelRef, run: RunContext) -> AbstractContextManager[Session]:
        """Load once for many measurements; leaving the context frees it."""

    @property
    def eval_batch_size(self) -> int:
        """Examples per planned batch of a generation: the unit of resume and of retry."""
        return 1

    def measurements(self, task: Task, tuned: ModelRef | None) -> Iterable[Measurement]:
        """Yield further measurements beside `baseline` and `tuned`; default none.

        Asked twice: before training with `tuned` None (yield what the base model is to answer), and
        after it (yield what the tuned model or a checkpoint is to answer).
        """
        return ()


class Evaluator(Plugin, ABC):
    """Turns predictions into scores (one per prediction) and scores into metrics (one per split)."""

    primary: ClassVar[str]  # the metric that verdicts speak of

    @abstractmethod
    def score(self, example: Example, prediction: Prediction) -> Score:
        """Score one answer. The caller never passes a failed prediction: those are unscored."""

    def prepare(self, examples: Sequence[Example]) -> None:
        """Look at all rows of a split once, before scoring: to choose a tokenizer by script, for example."""

    def settings(self) -> dict[str, Any]:
        """Return what a reader needs to get the same number elsewhere; systems with other settings do not compare."""
        settings: dict[str, Any] = self.options.model_dump(mode="json")
        return settings

    def aggregate(
        self, examples: Sequence[Example], predictions: Sequence[Prediction], scores: Sequence[Score]
    ) -> list[Metric]:
        """Return metrics over the split; by default the mean of each value with a bootstrap interval."""
        from .stats import mean_metrics

        return mean_metrics(scores)


class DatasetLoader(Plugin, ABC):
    """Gives splits of rows for `dataset.path: loader:NAME`; its options sit beside `path`."""

    @abstractmethod
    def load(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Return rows per split ("train", "validation", "test"), each row a mapping of columns."""

    def about(self) -> dict[str, Any]:
        """Return provenance to record: a version, a seed, a licence."""
        return {}


class Launcher(Plugin, ABC):
    """Runs a bundle elsewhere and brings the run directory back (`ftkit run --on NAME`)."""

    @abstractmethod
    def launch(self, bundle: Any, where: str, run: RunContext) -> None:
        """Run the bundle at `where`; on return the local run directory is complete."""


class Tracker(Plugin):
    """Watches a run: implement any of the notifying hooks of `ftkit.hookspecs` as methods with `@hookimpl`.

    A tracker never delays or ends a run: it works in a thread of its own, and one that raises or hangs
    is dropped with a warning.
    """
