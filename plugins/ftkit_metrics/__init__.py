"""Evaluators: rouge, exact-match, slot-match (facts), and hf-metric (any metric of the `evaluate` library).

Light: `_rouge.py` and `_hf.py` import rouge-score and evaluate, and are imported when they are used.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ftkit import api
from ftkit.errors import InputError
from ftkit.hookspecs import hookimpl
from ftkit.records import Example, Finding, Metric, Prediction, Score

from ._directions import direction
from ._text import Choice, choose_tokenizer, words

if TYPE_CHECKING:
    from ._hf import HfMetric
    from ._rouge import Scorer


@hookimpl
def ftkit_evaluators() -> list[type[api.Evaluator]]:
    return [Rouge, ExactMatch, SlotMatch, HfMetricEvaluator]


# ---------------------------------------------------------------- rouge


class RougeOptions(api.Options):
    use_stemmer: bool = Field(
        False,
        description="Reduce English words to their stems first (rouge-score's tokenizer only); `evaluate` does not.",
    )
    tokenizer: Literal["auto", "default", "unicode"] = Field(
        "auto",
        description="default: rouge-score's own, which keeps a-z and 0-9 only. unicode: words of any script, single "
        "characters where a script puts no spaces between words. auto: chosen by the script of the references.",
    )
    split_summaries: bool = Field(
        False,
        description="For rougeLsum, split texts into sentences with NLTK; otherwise, as in `evaluate`, a sentence ends "
        "where a line ends.",
    )

    @model_validator(mode="after")
    def _stemmer_is_english(self) -> RougeOptions:
        if self.use_stemmer and self.tokenizer == "unicode":
            raise ValueError("use_stemmer needs `tokenizer: default`: the Porter stemmer is for English")
        return self


class Rouge(api.Evaluator):
    """ROUGE F-measures by rouge-score (Lin 2004); with several targets, the best of each metric.

    Also reports mean lengths in words, separated by white space; where most of the references are in a script
    without spaces, lengths are in characters, and the unit is "characters".
    """

    name = "rouge"
    summary = "ROUGE-1, -2, -L, -Lsum (rouge-score) and lengths in words; for summaries"
    primary = "rouge1"
    Options = RougeOptions
    requires = api.Requires(("rouge_score",), "ftkit[metrics]")

    _choice: Choice | None = None
    _scorer: Scorer | None = None

    def prepare(self, examples: Sequence[Example]) -> None:
        """Choose the tokenizer by the references of all rows. Raises InputError if NLTK's sentence data is missing."""
        from ._rouge import Scorer

        choice = choose_tokenizer(target for example in examples for target in example.targets)
        if self.options.tokenizer != "auto":
            choice = Choice(self.options.tokenizer, "set by the recipe", choice.unspaced)
        self._choice = choice
        self._scorer = Scorer(choice.tokenizer, self.options.use_stemmer, self.options.split_summaries)

    def settings(self) -> dict[str, Any]:
        """Return the options and, after `prepare`, the tokenizer that was chosen and why."""
        settings = {**super().settings(), "library": f"rouge-score {version('rouge-score')}"}
        if self._choice is not None:
            settings["tokenizer_used"] = self._choice.tokenizer
            settings["tokenizer_reason"] = self._choice.reason
            settings["stemmed"] = self.options.use_stemmer and self._choice.tokenizer == "default"
        return settings

    def score(self, example: Example, prediction: Prediction) -> Score:
        if self._scorer is None:
            self.prepare([example])
        assert self._scorer is not None
        values = self._scorer.score(example.targets, prediction.text)
        values["generated_words"] = self._length(prediction.text)
        values["reference_words"] = sum(map(self._length, example.targets)) / len(example.targets)
        return Score(example.id, values, prediction.sample)

    def _length(self, text: str) -> float:
        unspaced = self._choice is not None and self._choice.unspaced
        return float(len(words(text)) if unspaced else len(text.split()))

    def aggregate(
        self, examples: Sequence[Example], predictions: Sequence[Prediction], scores: Sequence[Score]
    ) -> list[Metric]:
        unit = "characters" if self._choice is not None and self._choice.unspaced else "words"
        lengths = ("generated_words", "reference_words")
        from ftkit.stats import mean_metrics

        return mean_metrics(scores, dict.fromkeys(lengths, unit), dict.fromkeys(lengths, None))


# ---------------------------------------------------------------- exact-match


class ExactMatchOptions(api.Options):
    unicode: bool = Field(True, description="Compare after Unicode NFKC: full-width and composed forms are equal.")
    ignore_case: bool = Field(True, description="Compare after Unicode case folding.")
    collapse_whitespace: bool = Field(True, description="Runs of white space are one space; none at the ends.")
    strip_punctuation: bool = Field(
        True,
        description="Remove punctuation at the ends of the text, except % # & @ and the sign or point of a number.",
    )


class ExactMatch(api.Evaluator):
    """1 where the prediction equals any target after both are normalised, else 0; Wilson's interval on the mean."""

    name = "exact-match"
    summary = "share of predictions equal to a target after a stated normalisation"
    primary = "exact_match"
    Options = ExactMatchOptions

    def score(self, example: Example, prediction: Prediction) -> Score:
        answer = self.normalise(prediction.text)
        right = any(answer == self.normalise(target) for target in example.targets)
        return Score(example.id, {"exact_match": float(right)}, prediction.sample, answer=answer)

    def normalise(self, text: str) -> str:
        """Return the normalised text that is compared."""
        if self.options.unicode:
            text = unicodedata.normalize("NFKC", text)
        if self.options.ignore_case:
            text = text.casefold()
            if self.options.unicode:  # case folding can leave the normal form
                text = unicodedata.normalize("NFKC", text)
        if self.options.collapse_whitespace:
            text = " ".join(text.split())
        if self.options.strip_punctuation:
            text = _strip_punctuation(text) or text  # "?" and "!" stay different
        return text

    def aggregate(
        self, examples: Sequence[Example], predictions: Sequence[Prediction], scores: Sequence[Score]
    ) -> list[Metric]:
        from ftkit.stats import mean_metrics

        return mean_metrics(scores)


def _strip_punctuation(text: str) -> str:
    """Return `text` without white space and punctuation at its ends; signs that change the meaning stay.

    "-5", ".5", "50%" and "C#" are not "5", "50" and "C".
    """
    start, end = 0, len(text)
    while start < end and _droppable(text[start]) and not re.match(r"-?\.?\d", text[start : start + 3]):
        start += 1
    while end > start and _droppable(text[end - 1]):
        end -= 1
    return text[start:end]


def _droppable(char: str) -> bool:
    return char.isspace() or char == "`" or (unicodedata.category(char)[0] == "P" and char not in "%#&@")


# ---------------------------------------------------------------- slot-match


class SlotMatchOptions(api.Options):
    slots: list[str] = Field(
        min_length=1,
        description="Columns (kept by `dataset.columns.meta`) whose text must occur in the prediction; a cell is a text "
        "or a list of texts.",
    )

    @field_validator("slots")
    @classmethod
    def _no_clash(cls, slots: list[str]) -> list[str]:
        if len(set(slots)) != len(slots):
            raise ValueError("a slot is named twice")
        return slots


class SlotMatch(api.Evaluator):
    """Checks facts: a slot is 1 if all of its texts occur in the prediction as whole words, a list in its order.

    The comparison is word by word: case, punctuation, white space and Unicode forms make no difference. An empty
    or absent cell does not count, so `n` may differ between slots. `all_slots` is 1 if every slot of the row is 1.
    """

    name = "slot-match"
    summary = "share of predictions that contain the right facts, per slot and all together"
    primary = "all_slots"
    Options = SlotMatchOptions

    def prepare(self, examples: Sequence[Example]) -> None:
        """Raise InputError for a slot whose column is in no row."""
        columns = sorted({key for example in examples for key in example.meta})
        absent = [slot for slot in self.options.slots if slot not in columns]
        if examples and absent:
            raise InputError(
                f"slot-match: no row has {', '.join(map(repr, absent))} (kept columns: {', '.join(columns) or 'none'})",
                "name the columns in dataset.columns.meta",
            )

    def score(self, example: Example, prediction: Prediction) -> Score:
        predicted = words(prediction.text)
        values: dict[str, float] = {}
        for slot in self.options.slots:
            phrases = [phrase for phrase in map(words, _texts(example.meta.get(slot))) if phrase]
            if phrases:
                values[f"slot_{slot}"] = float(_in_order(phrases, predicted))
        missing = [name.removeprefix("slot_") for name, value in values.items() if not value]
        if values:
            values["all_slots"] = float(not missing)
        return Score(
            example.id, values, prediction.sample, reason=f"not found: {', '.join(missing)}" if missing else None
        )

    def aggregate(
        self, examples: Sequence[Example], predictions: Sequence[Prediction], scores: Sequence[Score]
    ) -> list[Metric]:
        names = [*(f"slot_{slot}" for slot in self.options.slots), "all_slots"]
        from ftkit.stats import mean_metrics

        metrics = {metric.name: metric for metric in mean_metrics(scores)}
        return [metrics[name] for name in names if name in metrics]  # the recipe's order, not the first row's


def _texts(cell: Any) -> list[str]:
    if cell is None:
        return []
    return [str(item) for item in cell if item is not None] if isinstance(cell, list | tuple) else [str(cell)]


def _in_order(phrases: Sequence[Sequence[str]], text: Sequence[str]) -> bool:
    """Return whether the phrases (lists of words) occur in `text` (a list of words), in order and without overlap."""
    start = 0
    for phrase in phrases:
        size = len(phrase)
        places = (i for i in range(start, len(text) - size + 1) if list(text[i : i + size]) == list(phrase))
        found = next(places, None)
        if found is None:
            return False
        start = found + size
    return True


# ---------------------------------------------------------------- hf-metric


class HfMetricOptions(api.Options):
    permissions: ClassVar[tuple[str, ...]] = ("allow_code",)
    metric: str = Field(
        min_length=1, description="Name on the Hugging Face hub (such as sacrebleu) or path of a metric script."
    )
    allow_code: bool = Field(
        False, description="Allow the metric's script to run on this machine; without it, nothing is loaded."
    )
    config: str | None = Field(None, description="Configuration of the metric, where it has several.")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="Further arguments of the metric's compute().")
    result_key: str | None = Field(
        None, description="Key of the result's number; by default the metric's name, or the only number."
    )
    per_example: bool = Field(
        False,
        description="true: the metric over a split is the mean of its values on single examples; each example gets a "
        "score, so that systems can be compared in pairs. false (BLEU, F1, ...): one value over the whole split.",
    )
    resamples: int | None = Field(
        None,
        ge=0,
        le=10_000,
        description="Bootstrap resamples for the interval of a corpus metric, each a computation over the split; 0: "
        "no interval. By default 100 for up to 2,000 examples, and 0 for more.",
    )
    unit: str = Field("score", description='Unit of the value; "fraction" for a metric in 0..1 is shown as percent.')
    higher_is_better: bool | Literal["auto"] | None = Field(
        "auto",
        description="true or false (an error rate); null where neither is better: then there is no verdict. auto: known "
        "by the name of the metric (wer, bleu, f1, ...); for any other, this option must say it, or there is no verdict.",
    )

    @model_validator(mode="after")
    def _code_is_allowed(self) -> HfMetricOptions:
        if not self.allow_code:
            raise ValueError(
                f"loading the metric {self.metric!r} runs its Python script on this machine: read it, then set "
                "`allow_code: true`"
            )
        return self

    @property
    def value_name(self) -> str:
        return self.result_key or Path(self.metric).stem

    @property
    def direction(self) -> bool | None:
        """Whether a higher value is better; None where neither is, or it is not known."""
        if self.higher_is_better == "auto":
            return direction(Path(self.metric).stem, self.result_key)
        return self.higher_is_better


class HfMetricEvaluator(api.Evaluator):
    """Any metric of the `evaluate` library; its value is named by `result_key`, or else like the metric.

    A corpus metric gives no score per example, so systems cannot be compared in pairs: its interval is a bootstrap
    over examples.
    """

    name = "hf-metric"
    summary = "any metric of the Hugging Face `evaluate` library, corpus metrics included"
    primary = "score"  # each instance names its own
    Options = HfMetricOptions
    requires = api.Requires(("evaluate",), "ftkit[metrics]")

    _metric: HfMetric | None = None

    def __init__(self, options: HfMetricOptions) -> None:
        super().__init__(options)
        self.primary = options.value_name  # type: ignore[misc]  # a class attribute for all other evaluators

    def check(self) -> list[Finding]:
        """Warn of a metric whose direction is not known."""
        options = self.options
        if options.higher_is_better != "auto" or options.direction is not None:
            return []
        message = (
            f"hf-metric: whether a higher or a lower {options.value_name!r} is better is not known, so there will be no "
            "verdict: set `higher_is_better` of the evaluator to true or false"
        )
        return [Finding("warning", message, "set it to null where neither is better", "higher_is_better")]

    def prepare(self, examples: Sequence[Example]) -> None:
        """Load the metric. Raises FtkitError if it cannot be found, reached or imported."""
        self._load()

    def _load(self) -> HfMetric:
        if self._metric is None:
            from ._hf import HfMetric

            self._metric = HfMetric(self.options)
        return self._metric

    def settings(self) -> dict[str, Any]:
        """Return the options, the library's version and, after `prepare`, the hash of the metric's script."""
        settings = {**super().settings(), "library": f"evaluate {version('evaluate')}"}
        if self._metric is not None:
            settings["script_sha256"] = self._metric.script_sha256
        return settings

    def score(self, example: Example, prediction: Prediction) -> Score:
        if not self.options.per_example:
            return Score(example.id, {}, prediction.sample)  # scored, with the whole split
        value = self._load().compute([prediction.text], [example.targets])
        if not math.isfinite(value):  # unscored: it is counted, and the mean is over the other examples
            return Score(example.id, None, prediction.sample, reason=f"the metric gave {value}")
        return Score(example.id, {self.primary: value}, prediction.sample)

    def aggregate(
        self, examples: Sequence[Example], predictions: Sequence[Prediction], scores: Sequence[Score]
    ) -> list[Metric]:
        options = self.options
        if options.per_example:
            from ftkit.stats import mean_metrics

            return mean_metrics(scores, {self.primary: options.unit}, {self.primary: options.direction})
        return self._load().over_split(examples, predictions, scores)
