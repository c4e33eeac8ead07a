"""The probe's section of a report: curves, error kinds, headroom, and a verdict from stated rules."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from ftkit.api import MeasuredRun
from ftkit.files import read_jsonl
from ftkit.records import Curve, Example, Metric, Prediction, Section
from ftkit.stats import example_means

from ._rules import Facts, apply_rules, most_samples
from ._taxonomy import KINDS, RULES, holding, kind_of

EXAMPLES = 2  # shown per kind of error, before and after training
TEXT = 1200  # characters of a solution that are shown


@dataclass(frozen=True)
class Place:
    """The probe at one step of training: the base model (step 0), a snapshot, or the tuned model."""

    name: str  # base, step-100, tuned
    step: int

    def stage(self, what: str) -> str:
        return f"probe-{self.name}-{what}"


def section(run: MeasuredRun) -> Section | None:
    """Return the section of a probe's run, or None for other runs. Reads nothing but the run directory."""
    places = _places(run)
    if not places or places[0].name != "base":
        return None
    title = f"What fine-tuning taught: {run.record().name}"
    if places[-1].name != "tuned":
        return Section(
            title, ({"kind": "text", "text": "The run has not measured the tuned model yet, so there is no verdict."},)
        )
    facts = _facts(run, places)
    verdict, rules, advice = apply_rules(facts)
    blocks: list[dict[str, Any]] = [
        {"kind": "text", "text": verdict},
        {"kind": "table", "header": ["rule", "numbers", "holds"], "rows": [r.row() for r in rules]},
        {"kind": "text", "text": "What to try next: " + " ".join(advice)},
        {"kind": "curves", "curves": _curves(run, places)},
        {"kind": "table", "header": _HEADER, "rows": [*(_line(run, p) for p in places), *_control(run)]},
        {"kind": "text", "text": _notes(run, facts)},
        *_errors(run, places[0], places[-1], facts.on_right),
    ]
    headline, lead = led_by(verdict)
    return Section(title, tuple(blocks), headline, lead)


def led_by(verdict: str) -> tuple[str, str]:
    """Return what training taught, as the report's headline, and the numbers and findings beside it."""
    numbers, _, rest = verdict.partition(": ")
    taught, _, more = rest.partition(". ")
    return taught.removesuffix("."), " ".join(filter(None, [f"{numbers}.", more]))


def _places(run: MeasuredRun) -> list[Place]:
    names = [s.removeprefix("probe-").removesuffix("-test") for s in run.measured() if _is_test(s)]
    known = {int(n.removeprefix("step-")): n for n in names if n.startswith("step-")}
    places = [Place(name, step) for step, name in sorted(known.items())]
    if "base" in names:
        places.insert(0, Place("base", 0))
    if "tuned" in names:
        places.append(Place("tuned", _last_step(run)))
    return places


def _is_test(stage: str) -> bool:
    return stage.startswith("probe-") and stage.endswith("-test")


def _last_step(run: MeasuredRun) -> int:
    ends = [row["steps"] for row in run.log_rows() if row["event"] == "end"]
    return int(ends[-1]) if ends else 0


def _facts(run: MeasuredRun, places: list[Place]) -> Facts:
    base, tuned = places[0], places[-1]

    def values(stage: str, name: str) -> dict[str, float]:
        return example_means(run.scores(stage), name) if stage in run.measured() else {}

    accuracy = "accuracy_flexible"
    solutions = [_kinds(run, base), _kinds(run, tuned)]
    right = [(e, p) for side in solutions for kind, e, p in side if kind == "right"]
    wrong = [(e, p) for kind, e, p in solutions[1] if kind != "right"]
    samples = [run.metrics(p.stage("samples")) for p in (base, tuned)]
    return Facts(
        loss=(values(base.stage("test"), "loss"), values(tuned.stage("test"), "loss")),
        form=(values("baseline", "answer_format"), values("tuned", "answer_format")),
        accuracy=(values("baseline", accuracy), values("tuned", accuracy)),
        train=(values(base.stage("train"), accuracy), values(tuned.stage("train"), accuracy)),
        test=(values(base.stage("test"), accuracy), values(tuned.stage("test"), accuracy)),
        changed=(values(base.stage("changed"), accuracy), values(tuned.stage("changed"), accuracy)),
        samples=(samples[0], samples[1]),
        few_shot=values("probe-few-shot", accuracy),
        kinds=(_count(solutions[0]), _count(solutions[1])),
        on_wrong=_held(wrong),
        on_right=_held(right),
    )


def _count(solutions: list[tuple[str, Example, Prediction]]) -> Counter[str]:
    return Counter(kind for kind, _, _ in solutions)


def _held(solutions: list[tuple[Example, Prediction]]) -> Counter[str]:
    """Return for how many solutions each rule of an error holds, and how many "answers" there are."""
    counts = Counter(name for e, p in solutions for name in holding(e, p))
    counts["answers"] = len(solutions)
    return counts


def _kinds(run: MeasuredRun, place: Place) -> list[tuple[str, Example, Prediction]]:
    """Return each test prediction with the kind of its error; without failed requests."""
    stage = place.stage("test")
    examples = {e.id: e for e in map(Example.from_dict, read_jsonl(run.path(stage, "examples.jsonl")))}
    succeeded = [p for p in run.predictions(stage) if p.error is None]
    return [(kind_of(examples[p.example_id], p), examples[p.example_id], p) for p in succeeded]


# ---------------------------------------------------------------- blocks

_HEADER = ["", "loss on gold solutions (nats/token)", "accuracy, flexible", "accuracy, strict", "answer format",
           "step arithmetic", "accuracy on training questions", "accuracy, numbers changed", "pass@1", "pass@k", "maj@k"]  # fmt: skip


def _line(run: MeasuredRun, place: Place) -> list[str]:
    measured = run.measured()
    found = {what: run.metrics(place.stage(what)) for what in ("test", "train", "changed", "samples") if place.stage(what) in measured}  # fmt: skip
    test, samples = found.get("test", {}), found.get("samples", {})
    k = most_samples(samples)
    name = {"base": "base model", "tuned": f"tuned (step {place.step})"}.get(place.name, f"step {place.step}")
    cells = [
        test.get("loss"),
        *(test.get(m) for m in ("accuracy_flexible", "accuracy_strict", "answer_format", "step_arithmetic")),
        found.get("train", {}).get("accuracy_flexible"),
        found.get("changed", {}).get("accuracy_flexible"),
        samples.get("pass@1"),
        samples.get(f"pass@{k}"),
        samples.get(f"maj@{k}"),
    ]
    return [name, *(_cell(m) for m in cells)]


def _control(run: MeasuredRun) -> list[list[str]]:
    """Return the row of the few-shot control, where the run has one. Its prompt differs: it is in no delta."""
    if "probe-few-shot" not in run.measured():
        return []
    found = run.metrics("probe-few-shot")
    cells = [_cell(found.get(m)) for m in ("accuracy_flexible", "accuracy_strict", "answer_format", "step_arithmetic")]
    return [["control: base model, examples in the prompt", "–", *cells, *["–"] * (len(_HEADER) - 6)]]


def _cell(metric: Metric | None) -> str:
    if metric is None:
        return "–"
    if metric.unit != "fraction":
        return f"{metric.value:.3f}"
    interval = (
        "" if metric.low is None or metric.high is None else f" [{100 * metric.low:.1f}, {100 * metric.high:.1f}]"
    )
    return f"{100 * metric.value:.1f}{interval}"


def _curves(run: MeasuredRun, places: list[Place]) -> list[Curve]:
    """Return the curves of the loss and, at the same steps, of accuracy and format."""
    name = run.record().name
    lines = []
    for metric, label, axis in (
        ("loss", "loss on gold solutions", "nats per token"),
        ("accuracy_flexible", "accuracy, flexible", "accuracy and format"),
        ("answer_format", "answer format", "accuracy and format"),
    ):
        points = [[p.step, found[metric].value] for p in places if metric in (found := run.metrics(p.stage("test")))]
        lines.append(Curve(name, label, axis, tuple(points)))
    return lines


def _notes(run: MeasuredRun, facts: Facts) -> str:
    k = most_samples(facts.samples[1])
    generation = run.measurement("probe-tuned-samples")["settings"]["generation"]
    n_changed = len(facts.changed[1])
    return (
        f"Points are percent with 95 % intervals. {len(facts.test[1])} test and {len(facts.train[1])} training questions,"
        f" chosen by the hash of their text; {n_changed} of the test questions allow other numbers. pass@{k} and maj@{k}:"
        f" {generation['samples']} samples at temperature {generation['temperature']}, seed {generation['seed']}; unbiased"
        " estimator 1 - C(n-c,k)/C(n,k). The loss is teacher-forced, on the worked solutions of the test questions."
    )


def _errors(run: MeasuredRun, base: Place, tuned: Place, on_right: Counter[str]) -> list[dict[str, Any]]:
    """Return the table of error kinds before and after training, and examples of each.

    Its column "holds for right answers" shows how often a rule holds where there is no error.
    """
    found = [_kinds(run, base), _kinds(run, tuned)]
    counts = [_count(side) for side in found]
    n_right = on_right["answers"]
    rows = []
    examples: list[dict[str, str]] = []
    for kind, rule in KINDS.items():
        shares = [100 * count[kind] / max(1, len(side)) for count, side in zip(counts, found, strict=True)]
        control = f"{on_right[kind]} of {n_right}" if kind in RULES and n_right else "–"
        rows.append([kind, f"{counts[0][kind]} ({shares[0]:.1f} %)", f"{counts[1][kind]} ({shares[1]:.1f} %)",
                     f"{shares[1] - shares[0]:+.1f}", control, rule])  # fmt: skip
        if kind == "right":
            continue
        for label, side in zip(("before", "after"), found, strict=True):
            shown = [(e, p) for k, e, p in side if k == kind][:EXAMPLES]
            examples += [{"title": f"{kind}, {label}: {e.id}", "text": _shown(e, p)} for e, p in shown]
    header = ["error", "base model", "tuned", "points", "holds for right answers", "rule"]
    return [{"kind": "table", "header": header, "rows": rows}, {"kind": "examples", "examples": examples}]


def _shown(example: Example, prediction: Prediction) -> str:
    answer = prediction.text if len(prediction.text) <= TEXT else prediction.text[:TEXT] + " …"
    return f"{example.input}\n\nAnswer:\n{answer}\n\nReference:\n{example.targets[0]}"
