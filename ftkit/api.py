"""What a plugin implements (Backend, Session, Evaluator, DatasetLoader, Launcher, Tracker), and what it is given (Run).

A plugin module stays light: it holds these classes, their options and its hooks, and imports what is
heavy inside methods. `ftkit.hookspecs` says how the classes are found.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from .records import (
    Cancelled,
    Example,
    Finding,
    GenerationConfig,
    LengthLimit,
    Measurement,
    Metric,
    ModelRef,
    Prediction,
    Rendered,
    Report,
    RunRecord,
    Score,
    StageRecord,
    Task,
)

# ---------------------------------------------------------------- what a plugin is given


class State(Mapping[str, Any]):
    """What one plugin remembers of a run between processes, such as a job's id: JSON values by name.

    Reading looks at the file each time. Several threads and processes may change it at once.
    """

    @abstractmethod
    def update(self, **values: Any) -> None:
        """Merge `values` into the state; it is on disk when this returns."""


class Run(ABC):
    """A prepared run directory, opened: where a plugin puts its files, and what it knows about the run.

    The same object is there in a new run, a resumed one, a worker process and a job of a server. A path in it is
    the run's own: `path` refuses what would leave the directory.
    """

    dir: Path

    @property
    @abstractmethod
    def id(self) -> str:
        """The directory's name."""

    @property
    @abstractmethod
    def seed(self) -> int:
        """The recipe's seed: of training, never of which rows are measured."""

    @property
    @abstractmethod
    def generation(self) -> GenerationConfig:
        """The recipe's generation settings."""

    @property
    @abstractmethod
    def primary(self) -> str:
        """The name of the metric that the verdict speaks of."""

    @property
    @abstractmethod
    def interrupted(self) -> bool:
        """Whether Ctrl-C was pressed: a library may have wrapped the KeyboardInterrupt in its own exception."""

    @abstractmethod
    def path(self, *parts: str) -> Path:
        """Return a path inside the run directory. Raises ValueError for one that would leave it.

        Raises RunFailed where the directory is gone: what is written later must not make it again.
        """

    @abstractmethod
    def scratch(self, name: str) -> Path:
        """Return a folder for unfinished work, made on demand; it is removed when the run is done."""

    @abstractmethod
    def resolve_uri(self, uri: str) -> Path:
        """Return the path of a ModelRef's uri: relative ones are relative to the run directory."""

    @abstractmethod
    def log(self, event: str, **values: Any) -> None:
        """Append one event to train/log.jsonl, from any process of the run. `Backend.train` lists the events."""

    @abstractmethod
    def state(self, name: str) -> State:
        """Return the state of the plugin `name`: one locked file per plugin."""

    @abstractmethod
    def answer(self, key: str) -> str | None:
        """Return what the user answered with `--resume RUN --answer KEY=VALUE`; None where nobody did."""

    @abstractmethod
    def evaluate(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Metric]:
        """Return the metrics of the recipe's evaluators, as the final measurement computes them."""


class MeasuredRun(Run):
    """A run whose measurements can be read back: what `ftkit_report_sections` is given."""

    @abstractmethod
    def record(self) -> RunRecord:
        """Return run.json as it is now."""

    @abstractmethod
    def measured(self) -> list[str]:
        """Return the names of the finished measurements, in the order in which the report shows them."""

    @abstractmethod
    def metrics(self, name: str) -> dict[str, Metric]:
        """Return a measurement's metrics by name."""

    @abstractmethod
    def measurement(self, name: str) -> dict[str, Any]:
        """Return the whole of NAME/metrics.json."""

    @abstractmethod
    def predictions(self, name: str) -> list[Prediction]:
        """Return a measurement's answers in example order."""

    @abstractmethod
    def scores(self, name: str) -> list[Score]:
        """Return one score per prediction."""

    @abstractmethod
    def log_rows(self) -> list[dict[str, Any]]:
        """Return the training events; where a resumed run repeated a step, only the last of each kind."""

    @abstractmethod
    def model(self) -> ModelRef | None:
        """Return what training produced, or None while it has not ended."""


# ---------------------------------------------------------------- what a plugin implements


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
    def generate(
        self, batches: Iterable[Sequence[Example]], generation: GenerationConfig
    ) -> Iterator[list[Prediction]]:
        """Yield one list of predictions per batch, each as soon as it is done.

        Batches may be answered in any order, but each list answers one whole batch: per example,
        `generation.samples` predictions. A request that fails for good is a Prediction with `error`.
        """

    def loss(self, batch: Sequence[Example]) -> list[float]:
        """Return the teacher-forced loss of each example's first target, in nats per token of the loss mask."""
        raise NotImplementedError(f"{type(self).__name__} cannot compute a loss")

    def stats(self) -> dict[str, Any]:
        """Return facts worth recording after use, such as `peak_memory` (bytes) and `device`.

        `usd_per_hour`, the price of the machine, prices the seconds of answers that have no price of their own.
        """
        return {}


class Backend(Plugin, ABC):
    """Something that can answer, and learn to answer better: a local trainer, a provider, a rule."""

    #: Questions of this backend that the user may answer with `--resume RUN --answer KEY=VALUE`: key -> what it decides.
    questions: ClassVar[Mapping[str, str]] = {}
    #: The keys of the recipe's `generation` section that this backend follows. Another one that differs from its
    #: default is an error before the run starts: a setting must not be ignored in silence.
    generation_settings: ClassVar[frozenset[str]] = frozenset(
        ("max_new_tokens", "temperature", "top_p", "seed", "samples")
    )

    def check(self, task: Task | None, trains: bool = True) -> Iterable[Finding]:
        """Say what would go wrong, before anything is spent.

        `task` is None where no data could be read. `trains` is False for a control: only its untouched model
        answers.
        """
        return ()

    def estimate(self, task: Task | None, trains: bool = True) -> dict[str, Any]:
        """Return what is known beforehand: `memory_bytes`, `seconds`, `usd`; or `not_estimated`: why.

        Where `usd` is above 0, the user is asked before anything is spent (`--yes` answers); `usd_detail` is a
        line that is shown with it. Where it costs an amount that is not known, return `usd` None, `paid` True and
        `not_estimated`: the user is asked as well. `trains` False counts the answers of the untouched model alone,
        once.
        """
        return {"not_estimated": f"{self.name} gives no estimate"}

    def render(self, examples: Iterable[Example]) -> Iterable[Rendered]:
        """Yield training examples as the model sees them. Raises NotImplementedError where nothing is trained."""
        raise NotImplementedError(f"{self.name} does not show tokens")

    @property
    def length_limit(self) -> LengthLimit | None:
        """The limit that cuts training examples, and the option that sets it; None where there is none."""
        return None

    @abstractmethod
    def base_model(self) -> ModelRef:
        """Return the untouched model that the run starts from."""

    def identity(self, model: ModelRef, run: Run) -> dict[str, Any]:
        """Return all that decides what `model` answers: weights, precision, template, device, versions.

        Two runs whose identity, rows, prompt, generation settings and batch plan agree share a baseline. The core
        adds the plugin's name and the version of its distribution.
        """
        return {"model": model.to_dict(), "options": self.options.model_dump(mode="json")}

    @abstractmethod
    def train(self, task: Task, run: Run) -> ModelRef:
        """Train on `task.train`, choose on `task.validation`, and return the tuned model. Resumable.

        `task` holds no test rows. Write the model to `run.path("train/model")`, and progress with `run.log`:

        - `step`: `step`, `max_steps`, `loss`, `seconds`, `tokens_per_second`, ...: shown, and drawn as curves
        - `eval`: `step` and values by metric name: drawn as curves
        - `note`, `warning`: `message` is shown
        - `lock`: facts that a repetition needs (the layout that training chose); the core adds them to lock.json
        - `end`: facts of the whole training, such as `usd` and `peak_memory` (bytes)

        Raise `errors.Interrupted` to leave a remote job that continues without this process.
        """

    @abstractmethod
    def load(self, model: ModelRef, run: Run) -> AbstractContextManager[Session]:
        """Load once for many measurements; leaving the context frees it."""

    @property
    def eval_batch_size(self) -> int:
        """Examples per planned batch of a generation: the unit of resume and of retry."""
        return 1

    @property
    def needs_direction(self) -> bool:
        """Whether training chooses by the primary metric: then `ftkit check` refuses a metric without a direction.

        Such a metric (`Metric.higher_is_better` None) does not say which of two values is better.
        """
        return False

    def measurements(self, task: Task, tuned: ModelRef | None) -> Iterable[Measurement]:
        """Yield further measurements beside `baseline` and `tuned`; default none.

        Called twice: before training with `tuned` None (yield what the base model is to answer), and
        after it (yield what the tuned model or a checkpoint is to answer).
        """
        return ()

    def cancel(self, run: MeasuredRun, running: bool) -> Cancelled:
        """End what the run has started elsewhere, and keep it from starting more (`ftkit cancel RUN`).

        `running` says whether a process is executing the run. Raises NotImplementedError where the backend starts
        nothing elsewhere.
        """
        raise NotImplementedError(f"{self.name} starts nothing elsewhere")


class Evaluator(Plugin, ABC):
    """Turns predictions into scores (one per prediction) and scores into metrics (one per split)."""

    primary: ClassVar[str]  # the metric that verdicts speak of

    def check(self) -> Iterable[Finding]:
        """Say what the options alone show to be wrong; a `Finding.key` names one of the evaluator's own options.

        Called before anything is spent, and by `ftkit score`; it must not need the network. Afterwards `ftkit check`
        scores one made-up answer, the target of a test row: what that raises is a finding too.
        """
        return ()

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
        """Return metrics over the split; by default the mean of each value with its interval.

        `Metric.higher_is_better` None gives no verdict. Rows with the same input count as one wherever `ftkit.stats`
        computes the interval.
        """
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
    """Executes a prepared run directory elsewhere (`ftkit run RECIPE --on NAME` or `--on NAME:WHERE`)."""

    @abstractmethod
    def launch(self, run: Run, where: str) -> None:
        """Execute the run directory at `where` and bring it back: on return the local directory is complete.

        `where` is what follows `NAME:`, or "". Append remote training events to train/log.jsonl as they come: the
        terminal and the trackers follow that file. A second call resumes: find what was started before, and start
        nothing twice. Raise `errors.Interrupted` to leave a remote run that continues without this process.
        """


class Tracker(Plugin):
    """Watches a run: override any of its methods, each of which does nothing by default.

    A tracker never delays or ends a run: it has a thread of its own, and one that raises or hangs is dropped with
    a warning. Methods of your own begin with an underscore: another public name is an error, since it is most
    likely misspelt.
    """

    #: Seconds that a finished run waits for this tracker's last calls.
    patience: ClassVar[float] = 10.0

    def started(self, run: Run, record: RunRecord) -> None:
        """The run is prepared: recipe, lock, audit and data are on disk. Called again when a run is resumed."""

    def logged(self, run: Run, event: dict[str, Any]) -> None:
        """A line was added to train/log.jsonl: `event` has "event", "time" (seconds since the epoch), and values."""

    def stage_finished(self, run: Run, stage: StageRecord) -> None:
        """A stage ended well; its files are complete."""

    def failed(self, run: Run, record: RunRecord) -> None:
        """The run failed or was interrupted; `record.error` says why."""

    def finished(self, run: MeasuredRun, record: RunRecord, report: Report) -> None:
        """The run is done and its report is written."""
