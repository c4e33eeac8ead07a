"""The rules of the probe's verdict. The report shows each with the numbers it was applied to."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from ftkit.records import Metric
from ftkit.stats import PairedDelta, paired_delta

from ._intervals import Change, Values, difference_of_changes, difference_of_rates, paired

MATTERS = 0.05  # a smaller change of accuracy (below 5 points) does not count, whatever its interval
FORM = 0.10  # the format was learned if its rate rose by 10 points or more
HEADROOM = 0.10  # reinforcement learning has something to reward if pass@k is this much above pass@1
GAP = 0.10  # questions were memorised if training raised accuracy on its own questions this much more than on others
SHARE = 0.25  # a kind of error with this share of all errors gets advice


@dataclass(frozen=True)
class Facts:
    """The input of the rules: values per question, before and after training; metrics of sampled solutions; errors."""

    loss: tuple[Values, Values]
    form: tuple[Values, Values]
    accuracy: tuple[Values, Values]  # on the recipe's whole test split
    train: tuple[Values, Values]
    test: tuple[Values, Values]  # on the probe's sample of the test split
    changed: tuple[Values, Values]
    samples: tuple[dict[str, Metric], dict[str, Metric]]
    few_shot: Values  # of the base model with training examples in its prompt, on the questions of `test`
    kinds: tuple[Counter[str], Counter[str]]
    # How many solutions each rule of an error holds for, and "answers": how many there are. The tuned model's wrong
    # answers; the right answers of both models.
    on_wrong: Counter[str] = field(default_factory=Counter)
    on_right: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Rule:
    """One rule: its text, the numbers it was applied to, whether it holds (None: it could not be applied)."""

    text: str
    numbers: str
    holds: bool | None

    def row(self) -> list[str]:
        return [self.text, self.numbers, {True: "yes", False: "no", None: "not measured"}[self.holds]]


def apply_rules(facts: Facts) -> tuple[str, list[Rule], list[str]]:
    """Return the verdict, the rules with their numbers, and advice."""
    loss = paired_delta(*facts.loss, unit="nats/token")
    form, accuracy = (paired_delta(*side, unit="fraction") for side in (facts.form, facts.accuracy))
    rules = {
        "loss": Rule(
            "The loss on gold solutions fell: the interval of its change is below 0.",
            f"{_means(facts.loss, 1, 3)} nats/token, {_change(loss, 1, 3)}",
            None if loss.high is None else loss.high < 0,
        ),
        "form": Rule(
            f"The format was learned: its rate rose by {100 * FORM:.0f} points or more, and the interval is above 0.",
            f"{_means(facts.form)} %, {_change(form)} points",
            None if form.low is None or form.delta is None else form.low > 0 and form.delta >= FORM,
        ),
        "rose": Rule(
            f"Solving was learned: accuracy (flexible) rose by {100 * MATTERS:.0f} points or more, and the interval is"
            " above 0.",
            f"{_means(facts.accuracy)} %, {_change(accuracy)} points, n={accuracy.n}",
            None if accuracy.low is None or accuracy.delta is None else accuracy.low > 0 and accuracy.delta >= MATTERS,
        ),
        "fell": Rule(
            "Solving was lost: the interval of the change of accuracy is below 0.",
            f"{_change(accuracy)} points",
            None if accuracy.high is None else accuracy.high < 0,
        ),
        "headroom": _headroom(facts),
        "memorised": _memorised(facts),
        "brittle": _brittle(facts),
        "few-shot": _few_shot(facts),
    }
    return _verdict(rules, form, accuracy, facts), list(rules.values()), _advice(rules, facts)


def _verdict(rules: dict[str, Rule], form: PairedDelta, accuracy: PairedDelta, facts: Facts) -> str:
    if rules["rose"].holds:
        taught = "SFT taught solving" + (" and the format." if rules["form"].holds else ".")
    elif rules["form"].holds:
        taught = "SFT taught the format." if not rules["fell"].holds else "SFT taught the format and cost accuracy."
    elif rules["fell"].holds:
        taught = "SFT taught neither format nor solving, and cost accuracy."
    else:
        taught = "SFT taught neither format nor solving, as far as these questions can show."
    parts = [f"Format {_change(form)} points, accuracy {_change(accuracy)}: {taught}"]
    if rules["loss"].holds and not rules["rose"].holds:
        parts.append(f"Meanwhile the loss on gold solutions fell, {_means(facts.loss, 1, 3)} nats/token.")
    k = most_samples(facts.samples[1])
    if rules["headroom"].holds:
        one, many = facts.samples[1]["pass@1"].value, facts.samples[1][f"pass@{k}"].value
        times = f"{many / one:.1f}x pass@1" if one else "above a pass@1 of 0"
        parts.append(f"pass@{k} is {times}: sampling finds answers that one attempt misses.")
    if rules["memorised"].holds:
        parts.append("Training raised accuracy on its own questions more than on others: a part of that is memorised.")
    if rules["brittle"].holds:
        parts.append(
            "With other numbers in the same questions, accuracy is lower: a part of it depends on these numbers."
        )
    return " ".join(parts)


def _headroom(facts: Facts) -> Rule:
    k = most_samples(facts.samples[1])
    text = f"Sampling has headroom: the tuned model's pass@k is {100 * HEADROOM:.0f} points or more above its pass@1, and the intervals do not meet."
    if not k:
        return Rule(text, "", None)
    one, many = facts.samples[1]["pass@1"], facts.samples[1][f"pass@{k}"]
    before = facts.samples[0].get(f"pass@{k}")
    numbers = f"pass@1 {_metric(one)} %, pass@{k} {_metric(many)} %" + (
        f" (base model: pass@{k} {_metric(before)} %)" if before else ""
    )
    if one.high is None or many.low is None:
        return Rule(text, numbers, None)
    return Rule(text, numbers, many.low > one.high and many.value - one.value >= HEADROOM)


def _memorised(facts: Facts) -> Rule:
    text = (
        f"Questions were memorised: training raised accuracy on training questions by {100 * GAP:.0f} points or more above"
        " what it did on test questions, and the interval of this difference of differences is above 0."
    )
    found = difference_of_changes(facts.train, facts.test)
    if found is None:
        return Rule(text, "", None)
    gaps = [100 * (_mean(train) - _mean(test)) for train, test in zip(facts.train, facts.test, strict=True)]
    numbers = f"training above test questions: base model {gaps[0]:+.1f}, tuned {gaps[1]:+.1f}; {_points(found)}"
    return Rule(text, numbers, found.low > 0 and found.delta >= GAP)


def _brittle(facts: Facts) -> Rule:
    text = "Accuracy depends on the numbers: with other numbers in the same questions it is lower, and the interval is below 0."
    pairs = [_on_originals(test, changed) for test, changed in zip(facts.test, facts.changed, strict=True)]
    base, tuned = (paired(*pair) for pair in pairs)
    if tuned is None:
        return Rule(text, "", None)
    before = f"base model {_points(base)}; " if base else ""
    return Rule(text, f"{before}tuned {_means(pairs[1])} %, {_points(tuned)}", tuned.high < 0)


def _on_originals(test: Values, changed: Values) -> tuple[Values, Values]:
    renamed = {i.removesuffix("~changed"): v for i, v in changed.items()}
    return {i: v for i, v in test.items() if i in renamed}, renamed


def _few_shot(facts: Facts) -> Rule:
    text = (
        "Training is better than prompting: on the same questions, the tuned model's accuracy is above that of the base"
        " model with training examples in its prompt, and the interval of the paired difference is above 0."
    )
    found = paired(facts.few_shot, facts.test[1])
    if found is None:
        return Rule(text, "", None)
    numbers = f"examples in the prompt {100 * _mean(facts.few_shot):.1f} %, tuned without {100 * _mean(facts.test[1]):.1f} %, {_points(found)}"
    return Rule(text, numbers, found.low > 0)


def separates(kind: str, facts: Facts) -> bool:
    """Return whether the rule of a kind of error holds for wrong answers more often than for right ones."""
    wrong, right = facts.on_wrong, facts.on_right
    found = difference_of_rates(wrong[kind], wrong["answers"], right[kind], right["answers"])
    return found is not None and found.low > 0


def _advice(rules: dict[str, Rule], facts: Facts) -> list[str]:
    """Return what the numbers suggest to try next."""
    k, samples = most_samples(facts.samples[1]), facts.samples[1]
    found = []
    if rules["headroom"].holds:
        found.append(
            f"Reinforcement learning with a verifiable reward (is the final number right?): {100 * samples[f'pass@{k}'].value:.0f} %"
            f" of the questions have a right solution among {k} samples, so there is something to reward."
        )
        majority = samples[f"maj@{k}"]
        if majority.low is not None and majority.low > samples["pass@1"].value:
            found.append(f"Without training: the majority of {k} samples, {_metric(majority)} % against pass@1 {_metric(samples['pass@1'])} %.")  # fmt: skip
    elif k and samples[f"pass@{k}"].value < 0.1:
        found.append(
            f"A larger or better base model: {k} samples include a right solution for only {100 * samples[f'pass@{k}'].value:.0f} % of the questions."
        )
    if rules["memorised"].holds:
        found.append("More training problems, or fewer passes over these.")
    errors = {kind: n for kind, n in facts.kinds[1].items() if kind != "right"}
    total = sum(errors.values())
    for kind, advice in (
        (
            "arithmetic slip",
            "A calculator at the annotations, or a reward for right results: the operations are right.",
        ),
        ("wrong result", "A calculator at the annotations: results of steps are wrong."),
        ("truncated", "A higher generation.max_new_tokens: solutions are truncated."),
        ("degenerate loop", "Less training or a lower learning rate: solutions repeat themselves."),
    ):
        if total and errors.get(kind, 0) / total >= SHARE and separates(kind, facts):
            found.append(f"{advice} ({kind}: {errors[kind]} of {total} errors)")
    if rules["rose"].holds:
        found.append("More training problems: supervised fine-tuning still improves accuracy; measure again with more.")
    return found or ["these rules suggest nothing."]


# ---------------------------------------------------------------- numbers as text


def most_samples(samples: dict[str, Metric]) -> int:
    """Return the largest k of the pass@k that were measured, 0 without any."""
    return max((int(name.removeprefix("pass@")) for name in samples if name.startswith("pass@")), default=0)


def _mean(values: Values) -> float:
    return math.fsum(values.values()) / len(values) if values else math.nan


def _means(pair: tuple[Values, Values], scale: float = 100, digits: int = 1) -> str:
    return " → ".join(f"{scale * _mean(side):.{digits}f}" for side in pair)


def _change(found: PairedDelta, scale: float = 100, digits: int = 1) -> str:
    if found.delta is None:
        return "not measured"
    interval = "" if found.low is None or found.high is None else f" [{scale * found.low:+.{digits}f}, {scale * found.high:+.{digits}f}]"  # fmt: skip
    return f"{scale * found.delta:+.{digits}f}{interval}"


def _points(found: Change) -> str:
    return f"{100 * found.delta:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}] points, n={found.n}"


def _metric(metric: Metric) -> str:
    interval = (
        "" if metric.low is None or metric.high is None else f" [{100 * metric.low:.1f}, {100 * metric.high:.1f}]"
    )
    return f"{100 * metric.value:.1f}{interval}"
