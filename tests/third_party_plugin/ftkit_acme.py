"""A plugin for ftkit: the evaluator `word-overlap`, the backend `acme-first-sentences`, the tracker `acme-lines`."""

import contextlib
import re
from collections import Counter

from pydantic import Field

from ftkit import Backend, Evaluator, ModelRef, Options, Prediction, Score, Session, Tracker, hookimpl


class WordOverlapOptions(Options):
    ignore_case: bool = Field(True, description="`Cat` and `cat` are one word")


class WordOverlap(Evaluator):
    """F-measure of the words that answer and target share, 0 to 1; of several targets the best counts."""

    name = "word-overlap"
    summary = "share of words that answer and target have in common"
    primary = "overlap"
    Options = WordOverlapOptions

    def score(self, example, prediction):
        best = max(self.overlap(prediction.text, target) for target in example.targets)
        return Score(example.id, {"overlap": best}, prediction.sample)

    def overlap(self, *texts):
        a, b = (Counter(re.findall(r"\w+", t.casefold() if self.options.ignore_case else t)) for t in texts)
        return 2 * (a & b).total() / max(a.total() + b.total(), 1)


class FirstSentencesOptions(Options):
    most: int = Field(5, ge=1, description="try keeping up to this many sentences")


class FirstSentences(Backend):
    """A rule instead of a model: untouched it keeps one sentence, trained as many as fit the targets' length."""

    name = "acme-first-sentences"
    summary = "a rule: the first sentences of the input"
    Options = FirstSentencesOptions

    def base_model(self):
        return ModelRef("rule", "first-1", meta={"sentences": 1})

    def train(self, task, run):
        sizes = range(1, self.options.most + 1)
        misfit = {n: sum(abs(len(first(e.input, n)) - len(e.targets[0])) for e in task.train) for n in sizes}
        best = min(misfit, key=misfit.get)
        return ModelRef("rule", f"first-{best}", meta={"sentences": best})

    def load(self, model, run):
        return contextlib.nullcontext(Rule(model.meta["sentences"]))


class Rule(Session):
    def __init__(self, sentences):
        self.sentences = sentences

    def generate(self, batches, generation):
        for batch in batches:
            answers = [(e.id, first(e.input, self.sentences)) for e in batch]
            yield [Prediction(*answer, sample) for answer in answers for sample in range(generation.samples)]


def first(text, sentences):
    return " ".join(re.split(r"(?<=[.!?])\s+", text.strip())[:sentences])


class LinesOptions(Options):
    file: str = Field(description="where the lines go")
    paths = ("file",)


class Lines(Tracker):
    """Writes one line for each stage, and the verdict."""

    name = "acme-lines"
    summary = "one line per stage in a file"
    Options = LinesOptions
    patience = 2.0

    def stage_finished(self, run, stage):
        self._write(f"{run.id} {stage.name} {stage.seconds} s")

    def finished(self, run, record, report):
        self._write(f"{run.id} {report.verdict}")

    def _write(self, line):
        with open(self.options.file, "a") as file:
            print(line, file=file)


@hookimpl
def ftkit_evaluators():
    return [WordOverlap]


@hookimpl
def ftkit_backends():
    return [FirstSentences]


@hookimpl
def ftkit_trackers():
    return [Lines]
