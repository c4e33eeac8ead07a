"""Plugins of pure Python for the tests of the core: a backend that learns, an evaluator, trackers.

The tests register this module in their own process; for subprocesses, `conftest.fake_site` installs a
copy of it as a real distribution. What must differ between an attempt and the next one, with the same
recipe, comes in by the variable FAKES ("slow=0.01,stop=3"):

    slow=SECONDS    wait that long per batch and per training step; slow-step=SECONDS    per training step alone
    interrupt=N     raise KeyboardInterrupt when N batches of a generation were answered by this process
    crash=N         raise RuntimeError instead
    answers=none    let every request fail for good
    train=interrupt, train=crash, train=input    end the training in that way after two steps
    train=gpu-memory, train=memory, train=secret    fail as out of memory, or with FAKE_API_KEY in the message
    export=full-disk, export=crash    end an export so; export-size=BYTES    what it is said to take
    runtime=yes    answer exported test rows, the first one wrongly
    baseline=gpu-memory    fail so in the first batch of a generation, unless batch_size is 1
    train=interrupt-hidden    as a library that wraps KeyboardInterrupt in its own exception
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ftkit import Failure
from ftkit.api import Backend, Evaluator, Launcher, MeasuredRun, Options, Run, Session, Tracker
from ftkit.errors import InputError, Interrupted, RunFailed
from ftkit.files import read_json, write_json
from ftkit.hookspecs import hookimpl
from ftkit.records import (
    Example,
    Exported,
    ExportRequest,
    Finding,
    GenerationConfig,
    Measurement,
    Metric,
    ModelRef,
    Prediction,
    Remedy,
    Rendered,
    Score,
    Task,
)
from ftkit.stats import mean_metrics


def _knob(name: str) -> str:
    return dict(part.split("=") for part in os.environ.get("FAKES", "").split(",") if part).get(name, "")


def _chance(text: str) -> float:
    return int(hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:8], 16) / 2**32


def _bytes_of(text: str) -> list[str]:
    return [bytes([byte]).decode("utf-8", "surrogateescape") for byte in text.encode()]


class OutOfMemoryError(RuntimeError):
    """As torch has it: known by its name."""


class FakeOptions(Options):
    resumable: ClassVar[frozenset[str]] = frozenset(("batch_size", "part_size", "parts", "patience"))
    extends: ClassVar[frozenset[str]] = frozenset(("steps",))

    base_model: str = "fake-base"
    part_size: int = 4  # rows of a part of a step; with `parts`, rows of a step
    parts: int = 1
    patience: float = 1.0
    skill: float = 0.8  # share of the test rows that the tuned model answers rightly
    seed_noise: float = (
        0.0  # how far a training seed moves the skill, up or down; which rows are right depends on it too
    )
    steps: int = 6
    batch_size: int = 3
    fail: list[str] = []  # noqa: RUF012  ids that no model ever answers
    fail_tuned: int = 0  # how many of its rows the tuned model never answers
    fail_once: list[str] = []  # noqa: RUF012  ids that fail when they are asked for the first time
    hand_over: bool = True
    refuse: str = ""  # an error that `check` finds
    warn: str = ""
    extras: bool = False  # measure some training rows as well
    context: int = 1 << 30  # words; a longer prompt is reported as truncated
    losses: bool = False  # those with their teacher-forced loss
    adapts: str = ""  # what it asks for after a failure: halve, or any change
    usd: float | None = 0.0  # what the run is estimated to cost; None: it is paid for, and nobody knows how much
    usd_per_answer: float | None = None
    usd_per_hour: float | None = None  # of the machine that answers
    shutdown_date: str | None = None  # the model's last day
    log_every: int = 1  # steps
    eval_every: int = 0  # steps between two evaluations in training; 0: one at its end
    bytes: bool = False  # each byte of UTF-8 is a token
    session_warning: str = ""  # a warning that measuring writes to the run's log


class FakeBackend(Backend):
    name = "fake"
    summary = "learns by heart that answers are upper case"
    Options = FakeOptions
    questions: ClassVar[dict[str, str]] = {"create-again": "yes: the provider has no such job"}

    def check(self, task: Task | None, trains: bool = True) -> Iterable[Finding]:
        found = [Finding("error", self.options.refuse, "mend it", "backend.skill")] if self.options.refuse else []
        return found + ([Finding("warning", self.options.warn)] if self.options.warn else [])

    def estimate(self, task: Task | None, trains: bool = True) -> dict[str, Any]:
        guess = {"seconds": 1.5, "memory_bytes": 1_000_000, "usd": self.options.usd}
        return guess if self.options.usd is not None else {**guess, "paid": True, "not_estimated": "no price list"}

    def render(self, examples: Iterable[Example]) -> Iterable[Rendered]:
        for e in examples:
            prompt, answer = e.input.split(), e.targets[0].split()
            if self.options.bytes:
                prompt, answer = (_bytes_of("".join(words)) for words in (prompt, answer))
            tokens = (*prompt, *answer, "<end>")
            loss_mask = tuple(i >= len(prompt) for i in range(len(tokens)))
            yield Rendered(e.id, " ".join(tokens), tuple(range(len(tokens))), tokens, loss_mask, len(prompt))

    def base_model(self) -> ModelRef:
        return ModelRef(
            "hub",
            self.options.base_model,
            meta={"shutdown_date": self.options.shutdown_date} if self.options.shutdown_date else {},
        )

    def identity(self, model: ModelRef, run: Run) -> dict[str, Any]:
        return {"plugin": self.name, "model": model.to_dict(), "fail": self.options.fail}

    def train(self, task: Task, run: Run) -> ModelRef:
        model = run.path("train", "model", "rule.json")
        for step in range(run.state(self.name).get("step", 0) + 1, self.options.steps + 1):
            time.sleep(float(_knob("slow-step") or _knob("slow") or 0))
            if step % self.options.log_every == 0:
                run.log("step", step=step, max_steps=self.options.steps, loss=1 / step, seconds=0.01 * step)
            if self.options.eval_every and step % self.options.eval_every == 0:
                run.log("eval", step=step, overlap=self.options.skill * step / self.options.steps)
            run.state(self.name).update(step=step)
            if step == 2 and _knob("train") == "interrupt":
                raise KeyboardInterrupt
            if step == 2 and _knob("train") == "interrupt-hidden":
                try:
                    signal.raise_signal(signal.SIGINT)
                except KeyboardInterrupt:
                    raise ValueError("a schema could not be built") from None
            if step == 2 and _knob("train") == "detach" and run.answer("create-again") != "yes":
                run.log("note", message="the remote job continues")
                raise Interrupted("left the job job-1", "look again later")
            if step == 2 and _knob("train") == "gpu-memory" and self.options.part_size > 2:
                raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 139.72 GiB in all")
            if step == 2 and _knob("train") == "memory":
                bytearray(1 << 62)
            if step == 2 and _knob("train") == "secret":
                raise ValueError(f"the server refused {os.environ['FAKE_API_KEY']!r}")
            if step == 2 and _knob("train") == "crash":
                raise RuntimeError("the fake trainer broke")
            if step == 2 and _knob("train") == "input":
                raise InputError("the token has no access", "log in")
        steps = self.options.steps
        if not self.options.eval_every:
            run.log("eval", step=steps, overlap=0.5)
        run.log("end", step=steps, steps=steps, peak_memory=1000, usd=0.25)
        rule = {"learned_from": len(task.train), "steps": steps, "skill": self.options.skill}
        if (earlier := run.continued()) is not None:  # more steps, more skill
            rule["after"] = read_json(run.resolve_uri(earlier.uri) / "rule.json")["steps"]
            rule["skill"] = 1.0
        if self.options.seed_noise:
            rule["skill"] += self.options.seed_noise * (2 * _chance(f"seed {run.seed}") - 1)
            rule["salt"] = f" of seed {run.seed}"
        write_json(model, rule)
        if not self.options.hand_over:
            raise RuntimeError("nothing was learned")
        return ModelRef("adapter", "train/model", self.options.base_model)

    def check_resumed(self, before: Any, run: MeasuredRun) -> Iterable[Finding]:
        then, now = before.part_size * before.parts, self.options.part_size * self.options.parts
        if then != now:
            yield Finding("error", f"a step would have {now} rows, not {then}", "set both", "backend.parts")

    def adapt(self, failure: Failure, run: MeasuredRun) -> Sequence[str]:
        if self.options.adapts != "halve":
            return (self.options.adapts,) if self.options.adapts else ()
        if failure.stage != "train":
            return (f"backend.batch_size={self.options.batch_size // 2}",)
        return ("backend.part_size=2", "backend.parts=2") if self.options.part_size > 2 else ()

    def remedies(self, failure: Failure, run: MeasuredRun) -> Iterable[Remedy]:
        if failure.cause in ("gpu-memory", "memory"):
            yield Remedy("take smaller parts, as many rows a step", ("backend.part_size=2", "backend.parts=2"))
            yield Remedy("train a smaller model, from the beginning", ("backend.base_model=small one",))
        if failure.cause == "other":
            raise AssertionError("advice must not hide a failure")

    @contextlib.contextmanager
    def load(self, model: ModelRef, run: Run) -> Iterator[Session]:
        rule = read_json(run.resolve_uri(model.uri) / "rule.json") if model.kind == "adapter" else None
        if self.options.session_warning:
            run.log("warning", message=f"{self.options.session_warning} ({model.kind})")
        yield FakeSession(self.options, rule, run)

    @property
    def eval_batch_size(self) -> int:
        return int(self.options.batch_size)

    def check_export(self, request: ExportRequest, run: MeasuredRun | None) -> Iterable[Finding]:
        return [Finding("error", "there is no converter here", "install it")] if request.gguf else []

    def export_size(self, request: ExportRequest, run: MeasuredRun) -> int | None:
        return int(_knob("export-size") or 1000)

    def export(self, request: ExportRequest, run: MeasuredRun, folder: Path) -> Exported:
        rule = read_json(run.resolve_uri("train/model") / "rule.json")
        if request.base == "original":  # what was learned does not fit these weights
            rule["skill"] /= 4
        write_json(folder / "rule.json", rule)
        if _knob("export") == "full-disk":
            raise OSError(errno.ENOSPC, "No space left on device", str(folder / "rule.json"))
        if _knob("export") == "crash":
            raise RuntimeError("the fake converter broke")
        name = "merged" if request.merge else "adapter"
        use = {"title": "Python", "language": "python", "code": 'load("{folder}")'}
        model = ModelRef("adapter", ".", self.options.base_model)
        return Exported({name: model}, "acme/base", "fakes", (use,), ("a note",), "mit")

    def answer_exported(
        self, exported: Exported, examples: Sequence[Example], run: MeasuredRun, folder: Path
    ) -> tuple[str, list[Prediction]] | None:
        if _knob("runtime") != "yes":
            return None
        return "fakes.cpp", [Prediction(e.id, e.input.upper() if i else "?") for i, e in enumerate(examples)]

    def measurements(self, task: Task, tuned: ModelRef | None) -> Iterable[Measurement]:
        if self.options.extras and tuned is not None:
            loss = bool(self.options.losses)
            yield Measurement("tuned-train-rows", tuned, "train", examples=task.train[:4], compared=False, loss=loss)


class FakeSession(Session):
    def __init__(self, options: FakeOptions, rule: dict[str, Any] | None, run: Run) -> None:
        self.options = options
        self.rule = rule
        self.truncated_prompts = 0
        self.asked = run.scratch("asked-tuned" if rule else "asked-base")  # a server remembers, whoever asks

    def generate(
        self, batches: Iterable[Sequence[Example]], generation: GenerationConfig
    ) -> Iterator[list[Prediction]]:
        for n, batch in enumerate(batches):
            if _knob("baseline") == "gpu-memory" and self.options.batch_size > 1:
                raise OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB")
            if _knob("interrupt") == str(n):
                raise KeyboardInterrupt
            if _knob("crash") == str(n):
                raise RuntimeError("the fake device went away")
            time.sleep(float(_knob("slow") or 0))
            # As in 4-bit, the text depends a little on the company in the batch.
            company = " ." * int(3 * _chance(" ".join(e.id for e in batch)))
            yield [self._answer(e, company, sample) for e in batch for sample in range(generation.samples)]

    def _answer(self, example: Example, company: str, sample: int) -> Prediction:
        self.truncated_prompts += len(example.input.split()) > self.options.context
        fails = example.id in self.options.fail or _knob("answers") == "none"
        if example.id in self.options.fail_once and not (self.asked / example.id).exists():
            (self.asked / example.id).touch()
            fails = True
        if self.rule and self.options.fail_tuned:
            fails = fails or int(example.id.split("-")[-1]) < self.options.fail_tuned
        usd = self.options.usd_per_answer
        if fails:
            return Prediction(example.id, "", sample, "error", error="the fake server said 503")
        learned = self.rule and _chance(example.id + self.rule.get("salt", "")) < self.rule["skill"]
        right = example.input.upper() if learned else example.input
        words = len(example.input.split()), len(right.split())
        return Prediction(example.id, right + company, sample, "stop", *words, latency=time.monotonic(), usd=usd)

    def loss(self, batch: Sequence[Example]) -> list[float]:
        return [len(e.targets[0]) / 100 for e in batch]

    def stats(self) -> dict[str, Any]:
        facts = {"usd_per_hour": self.options.usd_per_hour, "truncated_prompts": self.truncated_prompts}
        return {"peak_memory": 4096, "device": "fake", **facts}


class EchoOptions(Options):
    word: str = ""
    usd: float | None = None  # what its answers, and its training, are estimated to cost each


class Echo(Backend):
    """A rule that answers with one word, or with the input: a control."""

    name = "fake-echo"
    summary = "echoes"
    Options = EchoOptions

    def estimate(self, task: Task | None, trains: bool = True) -> dict[str, Any]:
        if self.options.usd is None:
            return super().estimate(task, trains)
        return {"usd": 2 * self.options.usd if trains else self.options.usd}

    def base_model(self) -> ModelRef:
        return ModelRef("rule", "echo")

    def train(self, task: Task, run: Run) -> ModelRef:
        return self.base_model()

    @contextlib.contextmanager
    def load(self, model: ModelRef, run: Run) -> Iterator[Session]:
        yield FakeEcho(self.options.word, self.options.usd)


class FakeEcho(Session):
    def __init__(self, word: str, usd: float | None) -> None:
        self.word, self.usd = word, usd

    def generate(
        self, batches: Iterable[Sequence[Example]], generation: GenerationConfig
    ) -> Iterator[list[Prediction]]:
        for batch in batches:
            yield [
                Prediction(e.id, self.word or e.input, s, usd=self.usd and self.usd / 24)
                for e in batch
                for s in range(generation.samples)
            ]


class OverlapOptions(Options):
    ignore_case: bool = False
    broken: bool = False


class Overlap(Evaluator):
    """The share of a target's words that the answer holds."""

    name = "fake-overlap"
    summary = "share of the target's words"
    primary = "overlap"
    Options = OverlapOptions

    def score(self, example: Example, prediction: Prediction) -> Score:
        assert prediction.error is None
        if self.options.broken:
            return Score(example.id, {"overlap": float("nan")}, prediction.sample)
        fold = str.lower if self.options.ignore_case else str
        words = set(fold(prediction.text).split())
        best = max(
            (sum(w in words for w in fold(t).split()) / max(1, len(t.split())) for t in example.targets), default=0
        )
        return Score(example.id, {"overlap": best, "words": float(len(prediction.text.split()))}, prediction.sample)

    def aggregate(
        self, examples: Sequence[Example], predictions: Sequence[Prediction], scores: Sequence[Score]
    ) -> list[Metric]:
        if self.options.broken:
            return [Metric("overlap", float("nan"))]
        return mean_metrics(scores, {"words": "words"}, {"words": None})


class RecorderOptions(Options):
    file: str


class Recorder(Tracker):
    """Writes down which methods were called."""

    name = "fake-recorder"
    Options = RecorderOptions

    def _write(self, *what: Any) -> None:
        with open(self.options.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(what) + "\n")

    def started(self, run: Run, record: Any) -> None:
        self._write("started", Path(run.dir).name)

    def logged(self, run: Run, event: dict[str, Any]) -> None:
        self._write("event", event["event"], event.get("step"))

    def stage_finished(self, run: Run, stage: Any) -> None:
        self._write("stage", stage.name)

    def failed(self, run: Run, record: Any) -> None:
        self._write("failed", record.error)

    def finished(self, run: MeasuredRun, record: Any, report: Any) -> None:
        self._write("finished", report.verdict)


class Raising(Tracker):
    name = "fake-raising"

    def started(self, run: Run, record: Any) -> None:
        raise ConnectionError("the tracker's server is down")


class Hanging(Tracker):
    name = "fake-hanging"
    patience = 0.5
    released: ClassVar[threading.Event] = threading.Event()

    def logged(self, run: Run, event: dict[str, Any]) -> None:
        self.released.wait(3600)
        raise TimeoutError("gave up at last")


class ApartOptions(RecorderOptions):
    at: str = ""  # the method that does it
    does: str = ""  # hang, raise, exit or print
    patience: float = 10.0


class Apart(Recorder):
    """Writes down which methods were called in a process of its own, and what that process is."""

    name = "fake-apart"
    Options = ApartOptions
    own_process = True
    environment = ("FAKE_SETTING", "FAKE_PREFIX_*")

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.patience = self.options.patience

    def _write(self, *what: Any) -> None:
        super()._write(*what)
        if what[0] != self.options.at:
            return
        if self.options.does == "hang":
            time.sleep(3600)
        elif self.options.does == "exit":
            os._exit(7)
        elif self.options.does == "raise":
            raise ConnectionError("the tracker's\nserver is down")
        elif self.options.does == "print":
            print("chatter")
            subprocess.run(["echo", "chatter"], check=True)
            self.say("said")
            self.warn("warned")

    def started(self, run: Run, record: Any) -> None:
        self._write("process", os.getpid(), os.getppid(), sorted(os.environ), "torch" in sys.modules)
        self._write("started", record.group)

    def failed(self, run: Run, record: Any) -> None:
        self._write("failed", record.status, record.error)


class Elsewhere(Launcher):
    """Executes a copy of the run directory in another process, and brings it back."""

    name = "fake-elsewhere"
    summary = "another folder of this machine"

    def launch(self, run: Run, where: str) -> None:
        there = run.scratch("elsewhere") / run.id
        shutil.copytree(run.dir, there, ignore=shutil.ignore_patterns(".work", ".lock"), dirs_exist_ok=True)
        line = [sys.executable, "-m", "ftkit", "run", "--resume", str(there), "--on", "here"]
        done = subprocess.run(
            line, capture_output=True, text=True, env={**os.environ, "FAKES": where, "FTKIT_LAUNCHED": "1"}
        )
        if done.returncode:
            raise RunFailed(f"the remote run failed: {done.stderr}")
        shutil.copytree(there, run.dir, ignore=shutil.ignore_patterns(".work", ".lock"), dirs_exist_ok=True)


@hookimpl
def ftkit_launchers() -> list[type[Launcher]]:
    return [Elsewhere]


@hookimpl
def ftkit_backends() -> list[type[Backend]]:
    return [FakeBackend, Echo]


@hookimpl
def ftkit_evaluators() -> list[type[Evaluator]]:
    return [Overlap]


@hookimpl
def ftkit_trackers() -> list[type[Tracker]]:
    return [Recorder, Raising, Hanging, Apart]
