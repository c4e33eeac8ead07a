"""The plain data that flows through ftkit: frozen dataclasses that survive a JSON round trip.

Everything here can be written to a run directory and read back by another process, another
machine or another program. Nothing here holds a live model, an open file or a connection.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

T = TypeVar("T", bound="Record")


@dataclasses.dataclass(frozen=True)
class Record:
    """Base of all records: `to_dict` gives JSON-ready data, `from_dict` reads it back."""

    def to_dict(self) -> dict[str, Any]:
        """Return nested dicts, lists and scalars: what `json.dumps` accepts."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
        """Build the record from `to_dict` data; unknown keys are ignored (a newer ftkit wrote them)."""
        readers = _readers(cls)
        return cls(**{name: _read(readers[name], value) for name, value in data.items() if name in readers})


def _plain(value: Any) -> Any:
    if isinstance(value, Record | GenerationConfig):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


Reader = Callable[[Any], Any] | None  # builds a value from plain data; None where plain data is the value
_READERS: dict[type, dict[str, Reader]] = {}


def _readers(cls: type) -> dict[str, Reader]:
    if cls not in _READERS:  # looking at annotations costs far more than building a record
        _READERS[cls] = {name: _reader(hint) for name, hint in typing.get_type_hints(cls).items()}
    return _READERS[cls]


def _read(reader: Reader, value: Any) -> Any:
    return value if reader is None or value is None else reader(value)


def _reader(hint: Any) -> Reader:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in args if a is not type(None)]
        return _reader(inner[0]) if len(inner) == 1 else None
    if origin in (tuple, list):
        item, make = _reader(args[0]), origin
        return make if item is None else lambda value: make(_read(item, v) for v in value)
    if origin is dict:
        item = _reader(args[1])
        return dict if item is None else lambda value: {k: _read(item, v) for k, v in value.items()}
    if isinstance(hint, type) and issubclass(hint, Record | GenerationConfig):
        return hint.from_dict
    return None


# ---------------------------------------------------------------- data and requests


@dataclasses.dataclass(frozen=True)
class Message(Record):
    """One chat turn; `role` is system, developer, user, assistant or tool.

    A call in `tool_calls` is {"id", "type": "function", "function": {"name", "arguments": JSON text}}; `tool_call_id`
    names the call that a tool turn answers. `weight` is of assistant turns in rows that are trained on: 1 is in the
    loss mask, 0 and None are not (but see `Example.target_turn`).
    """

    role: str
    content: str
    name: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    tool_call_id: str | None = None
    weight: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are set: {"role", "content"} for plain text."""
        return {key: value for key, value in super().to_dict().items() if value not in (None, [])}

    def asked(self) -> dict[str, Any]:
        """Return the fields that a model is given: all but `weight`."""
        return {key: value for key, value in self.to_dict().items() if key != "weight"}


@dataclasses.dataclass(frozen=True)
class Example(Record):
    """One row of a task: the prompt as messages (no answer in it) and one or more right answers.

    `tools` are the functions that the model may call, each {"type": "function", "function": {"name", ...}}. `answer`
    is the last assistant turn where it holds more than the first target's text: tool calls, a name, a weight of 0.
    """

    id: str
    messages: tuple[Message, ...]
    targets: tuple[str, ...]
    input: str = ""  # the text of the input column, before the prompt was put around it
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)  # the columns that `dataset.columns.meta` names
    tools: tuple[dict[str, Any], ...] = ()
    answer: Message | None = None

    def to_dict(self) -> dict[str, Any]:
        data = super().to_dict()
        return {key: value for key, value in data.items() if key not in ("tools", "answer") or value}

    @property
    def target_turn(self) -> Message:
        """The turn that training adds to the prompt. It is in the loss mask unless its `weight` is 0."""
        text = self.targets[0] if self.targets else ""
        return self.answer if self.answer is not None and self.answer.content == text else Message("assistant", text)

    def training_chat(self) -> dict[str, Any]:
        """Return {"messages", "tools"} with the target: each assistant message that is not trained on has weight 0.

        `tools` is there where the example has some. A message without `weight` is trained on if it is the assistant's.
        """
        messages = [message.asked() for message in (*self.messages, self.target_turn)]
        for message, turn in zip(messages[:-1], self.messages, strict=True):
            if turn.role == "assistant" and turn.weight != 1:
                message["weight"] = 0
        if self.target_turn.weight == 0:
            messages[-1]["weight"] = 0
        return {"messages": messages, **({"tools": _plain(self.tools)} if self.tools else {})}


@dataclasses.dataclass(frozen=True)
class Task(Record):
    """What is trained on and measured: three splits of examples, and hashes that name them.

    `fingerprints` maps a split to the hash of its rows (ids, inputs, targets, in order);
    `prompt_hash` is the hash of the prompt's instruction, system text and template. `measured_split` names the split
    that base and tuned model are measured on: test, or validation (`measure: validation`, where there are no test rows).
    """

    name: str
    splits: dict[str, tuple[Example, ...]]
    fingerprints: dict[str, str]
    prompt_hash: str
    source: dict[str, Any] = dataclasses.field(default_factory=dict)  # path, revision, how splits were cut
    generation: GenerationConfig | None = None  # how the measured rows are answered; None where no recipe says so
    measured_split: str = "test"

    @property
    def train(self) -> tuple[Example, ...]:
        return self.splits.get("train", ())

    @property
    def validation(self) -> tuple[Example, ...]:
        return self.splits.get("validation", ())

    @property
    def test(self) -> tuple[Example, ...]:
        return self.splits.get("test", ())

    @property
    def measured(self) -> tuple[Example, ...]:
        """The rows that base and tuned model are measured on."""
        return self.splits.get(self.measured_split, ())

    def for_training(self) -> Task:
        """Return the task without its test rows: what is measured is not there to be trained on."""
        return dataclasses.replace(self, splits={name: rows for name, rows in self.splits.items() if name != "test"})


@dataclasses.dataclass(frozen=True)
class ModelRef(Record):
    """A handle to a model, never the model: kind is hub, path, adapter, remote or rule.

    `uri` is a hub id, a provider's model id, or a path; a path that is relative is relative to the
    run directory, so that the directory can be moved. `base` is what an adapter sits on.
    """

    kind: str
    uri: str
    base: str | None = None
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


class GenerationConfig(BaseModel):
    """How text is generated: at most `max_new_tokens` tokens; temperature 0 is greedy decoding.

    The recipe's `generation` section is read into it. Raises pydantic's ValidationError for a value out of range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    max_new_tokens: int = Field(128, ge=1, description="longest answer, in tokens")
    temperature: float = Field(0.0, ge=0, le=10, description="0 takes the likeliest token each time")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the likeliest tokens that make up this share")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the sampling")
    samples: int = Field(1, ge=1, description="answers per example; more than one needs a temperature above 0")
    top_k: int = Field(0, ge=0, description="sample from so many of the likeliest tokens; 0 is no such limit")
    min_p: float = Field(
        0.0, ge=0, le=1, description="sample from tokens at least this share as likely as the likeliest; 0 is no limit"
    )
    repetition_penalty: float = Field(
        1.0, gt=0, le=10, description="divides the scores of tokens that the prompt or the answer holds; 1 is none"
    )
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        [], max_length=16, description="texts that end an answer; the answer is cut in front of the first of them"
    )
    renamed: ClassVar[Mapping[str, str]] = {
        "stop_strings": "stop",
        "stop_sequences": "stop",
        "stop_words": "stop",
        "max_tokens": "max_new_tokens",
        "max_length": "max_new_tokens",
        "n": "samples",
        "num_return_sequences": "samples",
    }

    @model_validator(mode="after")
    def _samples_differ(self) -> GenerationConfig:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("`samples` above 1 needs a `temperature` above 0: all answers would be the same")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready data."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GenerationConfig:
        """Build the settings from `to_dict` data; unknown keys are ignored (a newer ftkit wrote them)."""
        return cls(**{key: value for key, value in data.items() if key in cls.model_fields})

    def replace(self, **changes: Any) -> GenerationConfig:
        """Return a copy with some settings changed, checked like new ones."""
        return GenerationConfig(**{**self.model_dump(), **changes})


@dataclasses.dataclass(frozen=True)
class Measurement(Record):
    """One thing to measure, stored in a folder of its own name: a model on a split (None: `Task.measured_split`).

    `generation` None means the recipe's settings; `loss` asks for the teacher-forced loss as well. `examples` None
    means the whole split as the recipe prompts it; a few-shot prompt or a sample of training rows gives its own
    examples. `compared` False marks a measurement that is not like for like (another prompt, other rows): the
    report shows it beside the rest and computes no delta with it.
    """

    name: str
    model: ModelRef
    split: str | None = None
    generation: GenerationConfig | None = None
    examples: tuple[Example, ...] | None = None
    compared: bool = True
    loss: bool = False


@dataclasses.dataclass(frozen=True)
class Rendered(Record):
    """One training example as the model sees it: `tokens[i]` has id `ids[i]` and counts in the loss where `loss_mask[i]`.

    A byte of a token that is only part of a character stands in `tokens` as a surrogate (Python's "surrogateescape").
    The three tuples have one length, in tokens; `n_prompt` of them belong to the prompt, where earlier assistant
    turns may be in the loss mask (`dataset.train_on: all`).
    `truncated` counts tokens cut off by the sequence limit: (of the prompt, of the target). A `finding` of
    level error says why this example must not be trained on: no run starts with one in its training rows.
    """

    example_id: str
    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    loss_mask: tuple[bool, ...]
    n_prompt: int
    truncated: tuple[int, ...] = (0, 0)
    finding: Finding | None = None


@dataclasses.dataclass(frozen=True)
class LengthLimit(Record):
    """The limit, in tokens, that cuts a training example; `key` is the recipe key that sets it, `hint` what helps."""

    tokens: int
    key: str | None = None
    hint: str | None = None


@dataclasses.dataclass(frozen=True)
class ExportRequest(Record):
    """What `ftkit export` is asked for.

    `merge` adds an adapter to the weights of its base: to those that training used (`base` "trained"), or to those
    that the base model is published with ("original"). They differ where training quantised the base. `gguf` is the
    quantisation of a GGUF file (q8_0, q4_k_m); None asks for none. All false asks for what training wrote, as it is.
    """

    merge: bool = False
    base: str = "trained"
    gguf: str | None = None


@dataclasses.dataclass(frozen=True)
class Exported(Record):
    """What `Backend.export` wrote into its folder.

    `models` maps a short name (adapter, merged, q8_0) to the model that `Backend.load` is given to measure it: its uri
    is relative to the folder. The report calls it export-NAME. `base_model` is the base's id on the hub, or None where
    none is known; `library` is the hub's name of the library that loads it. `usage` are {"title", "language", "code"}:
    how it is loaded; {folder} in `code` stands for the export's folder or repository. `notes` are sentences; `licence` is the base model's,
    as its publisher states it.
    """

    models: dict[str, ModelRef]
    base_model: str | None = None
    library: str = ""
    usage: tuple[dict[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    licence: str | None = None


# ---------------------------------------------------------------- what comes back


@dataclasses.dataclass(frozen=True)
class Prediction(Record):
    """One answer. A failed request carries `error` and is never scored as an empty answer.

    `finish_reason` is stop, length or error; `latency` is in seconds (of the whole batch, where one
    was generated together, divided by its size); token counts exclude padding; `usd` is what the
    answer cost, where it cost anything.
    """

    example_id: str
    text: str
    sample: int = 0
    finish_reason: str = "stop"
    tokens_in: int | None = None
    tokens_out: int | None = None
    latency: float | None = None
    error: str | None = None
    usd: float | None = None


@dataclasses.dataclass(frozen=True)
class Score(Record):
    """One example's values by metric name (fractions 0..1 unless the metric says otherwise).

    `values` None means unscored (the request failed): left out of every mean, and counted.
    `answer` is what was extracted and compared, `reason` says why where that helps a reader.
    """

    example_id: str
    values: dict[str, float] | None
    sample: int = 0
    answer: str | None = None
    reason: str | None = None


@dataclasses.dataclass(frozen=True)
class Metric(Record):
    """One number over a split with its 95 % interval (`low`..`high`; None where it has none).

    `n` counts scored examples, `n_unscored` those left out. `unit` is "fraction" (shown as
    percent) or a plain unit such as "words". `method` says how the interval was made, or why there is none;
    `caution` why it must not be relied on. `n_inputs` counts the different inputs where some of the n repeat.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0
    n_unscored: int = 0
    unit: str = "fraction"
    higher_is_better: bool | None = True  # None: neither way is better (a length), or it is not known which
    method: str | None = None
    n_inputs: int | None = None
    caution: str | None = None


@dataclasses.dataclass(frozen=True)
class Finding(Record):
    """What a check found. `level` is error (the run must not start), warning or note; `hint` says the fix."""

    level: str
    message: str
    hint: str | None = None
    key: str | None = None  # the recipe key it speaks of, such as "backend.base_model"
    here: bool = False  # it speaks of this machine: with `--on` another one executes the run, and it is only a note


@dataclasses.dataclass(frozen=True)
class Machine(Record):
    """A machine to answer for that is not this one (`--gpu`): `count` GPUs, each with `memory_bytes`."""

    name: str
    memory_bytes: int
    count: int = 1


@dataclasses.dataclass(frozen=True)
class Diagnosis(Record):
    """What `ftkit doctor` found of one thing: whether it works, and the one fix.

    `ok` is True (it works), False (it does not), or None (it is not there and not needed, or cannot be known). `fix` is
    a command or a sentence. `see` is a heading of docs/troubleshooting.md, or the address of a page.
    """

    what: str  # a few words: "4-bit matmul"
    ok: bool | None
    detail: str = ""  # one line
    fix: str | None = None
    see: str | None = None


@dataclasses.dataclass(frozen=True)
class Cancelled(Record):
    """What `Backend.cancel` did: `ended` are {"what", "id", "status"}; `unknown` names what may still exist (a job).

    `notes` are sentences for the user.
    """

    ended: tuple[dict[str, str], ...] = ()
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class StageRecord(Record):
    """One stage of a run; status is running, done, failed, interrupted or reused. `started` is ISO 8601 UTC."""

    name: str
    status: str
    started: str
    seconds: float | None = None
    usd: float | None = None
    error: str | None = None
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)  # tokens, peak memory (bytes), ...


@dataclasses.dataclass(frozen=True)
class Remedy(Record):
    """One way on after a failure: `text` says what it does, in a few words that an infinitive can begin.

    `changes` are options to continue with, such as "backend.batch_size=2": the run is resumed with them, or started
    again where they change a measured number. `command` is any other command; `{run}` in it stands for the run directory.
    """

    text: str
    changes: tuple[str, ...] = ()
    command: str | None = None


@dataclasses.dataclass(frozen=True)
class RunRecord(Record):
    """run.json: what happened. `status` is prepared, running, done, failed or interrupted; `kind` is run or score.

    `where` names the launcher that executes the run (`--on`); None is this machine. `mark` is what identifies the run
    outside its directory: it stays the same where the directory is renamed ("" in records of older versions: then `id`).
    `remedies` are those of the failure that `error` names. `changes` are what `--resume --set` changed: {"time", "stage",
    "key", "from", "to"} each. `group` is shared by the runs of one command (several recipes, several seeds); None for a
    run that was started alone. `rental` is what a launcher's machines cost: {"usd", "seconds", "usd_per_hour", "source"}, or {}.
    """

    id: str
    name: str
    status: str
    started: str
    kind: str = "run"
    stages: tuple[StageRecord, ...] = ()
    warnings: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()  # measurement folders, in the order the report shows them
    error: str | None = None
    reuse: bool = True  # False: its baseline may not be copied from another run
    where: str | None = None
    mark: str = ""
    remedies: tuple[Remedy, ...] = ()
    changes: tuple[dict[str, Any], ...] = ()
    group: str | None = None
    rental: dict[str, Any] = dataclasses.field(default_factory=dict)


# ---------------------------------------------------------------- the report


@dataclasses.dataclass(frozen=True)
class System(Record):
    """One row of the report's table: a model as measured, with what it cost.

    `seconds` is measuring, `train_seconds` training; `usd` is both together, `measure_usd` and `train_usd` each;
    `n_predictions` counts the requested answers, `n_priced` those that `measure_usd` pays for (a failed request has no
    price), `n_length_limit` those that end at the length limit. `role` is baseline, tuned, control, external, export,
    further (a backend's own measurement, like for like) or extra (one that is not compared); `settings` is what must agree before two systems may be compared; `info` holds what the
    backend says of the model (`hosted_by`, `shutdown_date`, `usd_per_hour`: what its machine costs).
    A recipe with several training seeds is one system: `metrics` are means over the seeds, `train_seconds` and
    `train_usd` are those of one training (the mean); times, dollars, tokens and counts of measuring, and `usd`, are sums.
    """

    name: str
    run: str
    stage: str
    role: str
    metrics: dict[str, Metric]
    model: str = ""
    method: str = ""  # the backend plugin's name
    seconds: float | None = None  # measuring
    train_seconds: float | None = None
    usd: float | None = None
    measure_usd: float | None = None
    train_usd: float | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    peak_memory: int | None = None  # bytes
    n_predictions: int = 0
    n_priced: int = 0
    n_failed: int = 0
    n_length_limit: int = 0
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    seeds: tuple[
        dict[str, Any], ...
    ] = ()  # {"seed", "runs", "metrics": {name: value}} of each training; none: untrained
    spread: dict[str, dict[str, float]] = dataclasses.field(
        default_factory=dict
    )  # metric: {"sd", "min", "max"} of seeds
    differs: str = ""  # what its recipe has that those of the report's other runs have not: "lr=0.004 r=8"


@dataclasses.dataclass(frozen=True)
class Delta(Record):
    """A paired difference `to` - `from_` on the examples both have scored, with its interval at level `confidence`.

    `p_value` is from a paired permutation test, `p_adjusted` after Holm's correction over all
    deltas of the primary metric in the report (None where only one was tested). `confidence` is corrected alike:
    the interval is the one that the verdict rests on. `n_inputs`, `method` and `caution` are as in `Metric`.
    """

    from_: str
    to: str
    metric: str
    delta: float
    low: float | None
    high: float | None
    p_value: float | None
    n: int
    p_adjusted: float | None = None
    verdict: str = ""  # better, worse, scored higher, scored lower, no difference shown, or "" where none is given
    unit: str = "fraction"
    confidence: float = 0.95
    n_inputs: int | None = None
    method: str | None = None
    caution: str | None = None
    about: str = ""  # what the verdict speaks of: "recipe" (several seeds), "run" (one training), "" (no training)

    @property
    def p_decided(self) -> float | None:
        """The p-value that the verdict rests on: after the correction, where there is one."""
        return self.p_value if self.p_adjusted is None else self.p_adjusted

    def to_dict(self) -> dict[str, Any]:
        data = super().to_dict()
        return {"from": data.pop("from_"), **data}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Delta:
        return super().from_dict({"from_": data["from"], **{k: v for k, v in data.items() if k != "from"}})


@dataclasses.dataclass(frozen=True)
class Pair(Record):
    """One example in the report: each system's text and scores, side by side.

    `answers` maps a system's name to {"text", "score", "error"}: `score` is the primary metric's value. Where there are
    such, an answer has `values` (metric name: value), `answer` (what was extracted and compared), `reason` (of its
    values), and `finish_reason` "length" (it was cut at the length limit). `delta` is the primary metric's difference
    between the first run's tuned and baseline systems.
    """

    example_id: str
    input: str
    targets: tuple[str, ...]
    answers: dict[str, dict[str, Any]]
    delta: float | None = None


@dataclasses.dataclass(frozen=True)
class Curve(Record):
    """One line of a training chart: `points` are [step, value]; `axis` groups lines drawn together.

    `chosen` is the step whose weights were kept, where that is not simply the last one.
    """

    run: str
    name: str
    axis: str  # loss, or a metric's name
    points: tuple[list[float], ...]
    chosen: float | None = None


@dataclasses.dataclass(frozen=True)
class Section(Record):
    """A part that a plugin adds to the report: a title and blocks of plain data, never HTML.

    A block is {"kind": "text", "text"}, {"kind": "table", "header", "rows"},
    {"kind": "curves", "curves": [Curve]} or {"kind": "examples", "examples": [{"title", "text"}]}.
    `headline` is the finding in one sentence, `lead` what a reader should know beside it: they lead the report.
    """

    title: str
    blocks: tuple[dict[str, Any], ...]
    headline: str = ""
    lead: str = ""


@dataclasses.dataclass(frozen=True)
class Headline(Record):
    """What happened, for a reader who reads nothing else: a title, sentences, what is still wrong, a strip of facts.

    `strip` holds {"label", "value", "note"}: model, method, data, time and price, seeds. `source` is the title of the
    plugin's section that gave the headline; "" where the report's own numbers did.
    """

    title: str
    text: tuple[str, ...] = ()
    wrong: str = ""
    strip: tuple[dict[str, str], ...] = ()
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Distribution(Record):
    """The primary metric row by row: a histogram of each system, and what each row gained from `from_` to `to`.

    `edges` are the borders of the bins, in the metric's unit; `counts` has by system the rows of each bin. `gains` are
    {"id", "gain", "right"} by falling gain: `right` says whether `to` has all of `second` in this row (None: `second`
    is "", or has no value there). `n_right` counts them, `n_high_wrong` the rows that are not right and yet have a
    value of `high` or more.
    """

    metric: str
    from_: str
    to: str
    edges: tuple[float, ...]
    counts: dict[str, tuple[int, ...]]
    gains: tuple[dict[str, Any], ...]
    n_better: int = 0
    n_same: int = 0
    n_worse: int = 0
    second: str = ""
    n_right: int = 0
    n_second: int = 0
    high: float | None = None
    n_high_wrong: int = 0

    def to_dict(self) -> dict[str, Any]:
        data = super().to_dict()
        return {"from": data.pop("from_"), **data}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Distribution:
        return super().from_dict({"from_": data["from"], **{k: v for k, v in data.items() if k != "from"}})


@dataclasses.dataclass(frozen=True)
class Differing(Record):
    """What differs between the recipes of a report: one column for each system, one row for each key that differs.

    `rows` are {"key", "short", "values"}: values are texts in the order of `systems`, None where a recipe lacks the key.
    """

    systems: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class Report(Record):
    """report.json: everything report.html and report.md show, and nothing else is computed there."""

    title: str
    verdict: str
    verdict_detail: str
    primary: str  # the metric that the verdict speaks of
    systems: tuple[System, ...]
    deltas: tuple[Delta, ...]
    pairs: tuple[Pair, ...]
    curves: tuple[Curve, ...] = ()
    runs: tuple[dict[str, Any], ...] = ()  # RunRecord + provenance of each run, for the last section
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()
    costs: dict[str, Any] = dataclasses.field(default_factory=dict)  # prices and break-even, from report/costs.py
    headline: Headline | None = None
    distribution: Distribution | None = None
    differing: Differing | None = None
    slices: tuple[dict[str, Any], ...] = ()  # the primary metric by groups of rows, from report/slices.py
    created: str = ""
    version: str = ""
    texts: dict[str, Any] = dataclasses.field(default_factory=dict)  # how its texts are made, for other languages
