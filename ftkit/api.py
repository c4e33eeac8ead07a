"""What a plugin implements (Backend, Session, Evaluator, DatasetLoader, Launcher, Tracker), and what it is given (Run).

A plugin module stays light: it holds these classes, their options and its hooks, and imports what is
heavy inside methods. `ftkit.hookspecs` says how the classes are found.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from .causes import Failure
from .records import (
    Cancelled,
    Diagnosis,
    Example,
    Exported,
    ExportRequest,
    Finding,
    GenerationConfig,
    LengthLimit,
    Machine,
    Measurement,
    Metric,
    ModelRef,
    Prediction,
    Remedy,
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
    #: Whether a finished run is only used (chat, predict, serve): `scratch` and `state` are elsewhere then, and nothing may
    #: be written into `dir`. It stays as it was sealed, and may be read-only.
    sealed: bool = False

    @property
    @abstractmethod
    def id(self) -> str:
        """The directory's name."""

    @abstractmethod
    def resolved_recipe(self) -> dict[str, Any]:
        """Return the recipe as plain data, every default written out."""

    @property
    @abstractmethod
    def mark(self) -> str:
        """What identifies the run outside its directory, such as at a provider: its first name, also after a renaming."""

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
        """Return what the user answered with `--resume RUN --answer KEY=VALUE`; None where there is no answer."""

    @abstractmethod
    def continued(self) -> ModelRef | None:
        """Return the model that this training continues: the run was finished, and an option of `Options.extends` increased."""

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
    ({"cutoff_len": "sequence_len"}), so that the error can name the right key; `refused` maps those that the plugin cannot
    have to the reason and the fix ({"device_map": ("each process has one device", "use ...")}). `paths` names the options that
    may hold a file or folder: what lies beside the recipe is found from wherever ftkit is started. `permissions` names
    the options that let code of others run: they do not count in a packed run that comes from somewhere else.
    """

    # Deferred: a command builds the validators of those plugins only that its recipe names.
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), defer_build=True)
    renamed: ClassVar[Mapping[str, str]] = {}
    refused: ClassVar[Mapping[str, tuple[str, str]]] = {}
    paths: ClassVar[tuple[str, ...]] = ()
    #: Options that `--resume RUN --set` may change: those that change no measured number (memory, patience, limits).
    resumable: ClassVar[frozenset[str]] = frozenset()
    #: Options of `train` whose increase continues a finished training with `--resume RUN --set`, such as its steps:
    #: `Run.continued` is then the model so far. `check_resumed` may refuse the change.
    extends: ClassVar[frozenset[str]] = frozenset()
    permissions: ClassVar[tuple[str, ...]] = ()


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

    def requirements(self) -> Iterable[Requires]:
        """Return what this plugin needs with its options, for a machine where nothing is installed; by default `requires`."""
        return (self.requires,)

    @classmethod
    def diagnose(cls, options: Any = None) -> Iterable[Diagnosis]:
        """Yield what this plugin needs and whether it works here (`ftkit doctor`); by default, the required modules.

        They are imported in a process of its own.
        `options` are those of a recipe, or None without one: then what a user may not have set up (a login) is `ok`
        None. Nothing is spent or changed. A library that may crash or hang is tried in a process of its own
        (`ftkit.probing.in_python`), a server with a time limit (`ftkit.probing.http_status`). What this raises becomes
        a diagnosis. It is called where modules are missing, too: yield from this method first.
        """
        from .probing import import_error, missing_modules
        from .versions import reinstall

        missing = missing_modules(cls.requires.modules)
        if missing:
            install = f"pip install '{cls.requires.install or ' '.join(missing)}'"
            yield Diagnosis("modules", False, f"not installed: {', '.join(missing)}", install, see="version mismatch")
        elif cls.requires.modules and (wrong := import_error(cls.requires.modules)):
            text = f"{wrong[0]} cannot be imported: {wrong[1]}"
            yield Diagnosis("modules", False, text, reinstall(wrong[0]), see="version mismatch")
        elif cls.requires.modules:
            yield Diagnosis("modules", True, ", ".join(cls.requires.modules))


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

    def stream(self, example: Example, generation: GenerationConfig) -> Generator[str, None, Prediction]:
        """Yield the answer to one example piece by piece, as it is generated; return the whole prediction.

        The pieces together are its text. By default there is one piece. Closing the generator ends the answer. `stats` counts
        a truncated prompt before the first piece.
        """
        (prediction,) = (p for batch in self.generate([[example]], generation) for p in batch)
        yield prediction.text
        return prediction

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
    #: The machine that `check` and `estimate` are asked about (`ftkit check --gpu a10g`); None is this one. A backend
    #: that does not compute here may leave it out of account.
    machine: Machine | None = None

    def check(self, task: Task | None, trains: bool = True) -> Iterable[Finding]:
        """Say what would go wrong, before anything is spent.

        `task` is None where no data could be read. `trains` is False for a control: only its untouched model
        answers.
        """
        return ()

    def estimate(self, task: Task | None, trains: bool = True) -> dict[str, Any]:
        """Return what is known beforehand: `memory_bytes`, `seconds`, `usd`; or `not_estimated`: why.

        `memory` is a line that is shown: what is needed, what there is, and whether it fits.
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

        - `step`: `step`, `max_steps`, `loss`, `seconds`, `seconds_left`, `tokens_per_second`, `peak_memory` (bytes), ...: shown,
          and drawn
        - `eval`: `step` and values by metric name: drawn as curves
        - `note`, `warning`: `message` is shown
        - `lock`: facts that a repetition needs (the layout that training chose); the core adds them to lock.json
        - `end`: facts of the whole training, such as `usd` and `peak_memory` (bytes)

        Raise `errors.Interrupted` to leave a remote job that continues without this process.
        """

    @abstractmethod
    def load(self, model: ModelRef, run: Run) -> AbstractContextManager[Session]:
        """Load once for many measurements; leaving the context frees it."""

    def load_beside(self, loaded: Session, model: ModelRef, run: Run) -> AbstractContextManager[Session] | None:
        """Load `model` into the memory of a loaded session, where both share weights; None where they do not.

        `loaded` is a session of any backend and run, which stays usable. At one time one of the two answers.
        """
        return None

    def estimate_answers(self, task: Task, model: ModelRef) -> dict[str, Any]:
        """Return what it costs that `model` answers the test rows of `task`, as `estimate` does; their targets may be empty.

        By default, what the untouched model's answers cost.
        """
        return self.estimate(task, trains=False)

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

    def check_resumed(self, before: Any, run: MeasuredRun) -> Iterable[Finding]:
        """Say why a run must not be resumed with this backend's options in place of `before`, its options until now.

        Called with `--resume RUN --set`, where all options that differ are `Options.resumable`: an error refuses the
        change. Where `eval_batch_size` differs, the core measures again what the run has measured.
        """
        return ()

    def adapt(self, failure: Failure, run: MeasuredRun) -> Sequence[str]:
        """Return changes with which the run continues by itself after this failure; default none: it stops.

        They are as in `--resume RUN --set`, such as "backend.batch_size=2": options of `Options.resumable` alone. The
        core records them in run.json, and the report names them; then it repeats the stage, which resumes. It is asked
        again after each further failure: return something else each time, and at last nothing.
        """
        return ()

    def remedies(self, failure: Failure, run: MeasuredRun) -> Iterable[Remedy]:
        """Yield what may help after this failure, the best first: at most three are shown, as commands.

        The core has remedies of its own for a cause of its own (a full disk); yield those that speak of this backend's
        options. An exception here is passed over.
        """
        return ()

    def verify_model(self, model: ModelRef, run: MeasuredRun) -> Iterable[str]:
        """Yield what is wrong with the files of the trained `model`, one sentence each (`ftkit verify RUN`).

        It loads no model and needs no network. The core has compared the files with those that training left.
        """
        return ()

    def cancel(self, run: MeasuredRun, running: bool) -> Cancelled:
        """End what the run has started elsewhere, and keep it from starting more (`ftkit cancel RUN`).

        `running` says whether a process is executing the run. Raises NotImplementedError where the backend starts
        nothing elsewhere.
        """
        raise NotImplementedError(f"{self.name} starts nothing elsewhere")

    def check_export(self, request: ExportRequest, run: MeasuredRun | None) -> Iterable[Finding]:
        """Say why the model cannot be exported as asked: a missing program, say. An error refuses it.

        Called at the start of `ftkit export`, and, with `run` None, before a run whose recipe has `export`.
        """
        return ()

    def export_size(self, request: ExportRequest, run: MeasuredRun) -> int | None:
        """Return the most bytes that an export takes on the disk, unfinished files included; None: not known."""
        return None

    def export(self, request: ExportRequest, run: MeasuredRun, folder: Path) -> Exported:
        """Write the trained model into the empty `folder`, in a form that others can load without ftkit.

        Then the core measures what `Exported.models` names, on the test rows: `load` and `identity` are given those
        models, and `run.resolve_uri` finds their files. A README.md is replaced by the model card. Raises
        NotImplementedError where the backend has no weights to write.
        """
        raise NotImplementedError(f"{self.name} has no weights to export")

    def answer_exported(
        self, exported: Exported, examples: Sequence[Example], run: MeasuredRun, folder: Path
    ) -> tuple[str, list[Prediction]] | None:
        """Answer a few test rows with the program that will use the export; return its name and the answers.

        The core compares them with the run's own. None where there is no such program here, or nothing to try.
        """
        return None


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
    """Executes a prepared run directory elsewhere: `ftkit run RECIPE --on NAME:WHERE,OPTION=VALUE`.

    `:WHERE` and the options may be left out. The options are those of the class's `Options`.
    """

    def estimate(self, where: str, estimates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return what a run at `where` may cost at most, before anything is started; {} where it costs nothing.

        `usd` is that limit in dollars, which `launch` must keep. The user is asked before it is spent (`--yes` answers);
        `usd_detail` is a line that is shown with it. Further keys are recorded (`usd_per_hour`, `seconds`: the time
        limit). Where no limit is known, return `usd` None, `paid` True and `not_estimated`: why. `estimates` are
        those of the run's backend and controls, made for this machine. Raises InputError for a place that does not exist.
        """
        return {}

    @abstractmethod
    def launch(self, run: Run, where: str) -> Mapping[str, Any] | None:
        """Execute the run directory at `where` and bring it back: on return the local directory is complete.

        `where` is what follows `NAME:`, or "". Append remote training events to train/log.jsonl as they come: the
        terminal and the trackers follow that file. A second call resumes: find what was started before, and start
        nothing twice. Raise `errors.Interrupted` to leave a remote run that continues without this process.

        The process there has the variable FTKIT_LAUNCHED. It calls no tracker, and adds the events `stage` (a stage
        began or ended) and `progress` to the log: append one of a stage that is done when its files are here.
        Until this returns, run.json is the launcher's to replace.

        Return None, or what the machines of this run cost in all: `usd`, `seconds`, `usd_per_hour`, and `source`,
        a few words on where the price came from. The report shows it.
        """

    def is_busy(self, run: Run) -> bool:
        """Return whether the run may still be executed where this launcher started it: then it starts nowhere else."""
        return False

    def cancel(self, run: MeasuredRun, where: str, running: bool) -> Cancelled:
        """End what executes the run at `where` (`ftkit cancel RUN`), and bring back what it has done.

        `running` says whether a process here follows it; that one then brings it back. Raises NotImplementedError where
        nothing can be ended.
        """
        raise NotImplementedError(f"{self.name} cannot end a run")


class Tracker(Plugin):
    """Watches a run: override any of its methods, each of which does nothing by default.

    A tracker never delays or ends a run: it has a thread of its own, and one that raises or hangs is dropped with
    a warning. Methods of your own begin with an underscore: another public name is an error, since it is most
    likely misspelt.
    """

    #: Seconds that a finished run waits for this tracker's last calls. An instance may have its own.
    patience: float = 10.0
    #: Whether it is called in a process of its own, for libraries that are slow to import, start threads or send what
    #: they find in their process. The process has a lower priority, prints nothing, and is ended with its last call.
    #: Where the run's process is killed, it calls `failed` and ends.
    own_process: ClassVar[bool] = False
    #: The variables that such a process is given, beside those of the system (`PATH`, `HOME`, proxies): names, or
    #: beginnings of names that end with `*`. Others, such as a provider's key, do not reach it.
    environment: ClassVar[tuple[str, ...]] = ()

    _tell: Callable[[str, str], None] | None = None  # set by the core: takes "say" or "warn", and the text

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

    def say(self, text: str) -> None:
        """Show one line to the user."""
        if self._tell:
            self._tell("say", text)

    def warn(self, text: str) -> None:
        """Show a warning to the user; it stays in the run's record."""
        if self._tell:
            self._tell("warn", text)
