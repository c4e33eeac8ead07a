"""The backend `gsm8k-sft-probe`: fixed questions, changed numbers, kinds of errors, rules, whole runs and a killed one."""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ftkit_gsm8k import Gsm8kSftProbe, WordProblems
from ftkit_gsm8k._numbers import annotated, marked
from ftkit_gsm8k._rules import Facts, apply_rules
from ftkit_gsm8k._sample import few_shot, fixed_sample
from ftkit_gsm8k._taxonomy import KINDS, RULES, holding, kind_of
from ftkit_gsm8k._variants import changed, variants
from ftkit_trl import TrlSftQlora
from kill_at import Stopper

import ftkit
from ftkit.console import Console
from ftkit.recipe.load import load_recipe
from ftkit.records import Example, Message, Metric, Prediction
from ftkit.report import write_report

ROOT = Path(__file__).parents[2]
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k"


def example(question: str, answer: str, name: str = "q") -> Example:
    return Example(name, (Message("user", f"Question: {question}\nAnswer:"),), (answer,), question)


DUCKS = example(
    "A farm has 3 ponds with 16 ducks each. 8 ducks fly away. How many are left?",
    "There are 3*16=<<3*16=48>>48 ducks.\n48-8=<<48-8=40>>40 are left.\n#### 40",
)


# ---------------------------------------------------------------- which questions


def test_the_same_questions_are_asked_whatever_the_order_and_more_hold_fewer() -> None:
    rows = [example(f"How many is {i}?", "#### 1", f"q{i}") for i in range(50)]
    assert fixed_sample(rows, 10) == fixed_sample(rows[::-1], 10)
    assert fixed_sample(rows, 20)[:10] == fixed_sample(rows, 10) != tuple(rows[:10])


def test_the_few_shot_prompt_shows_training_examples_with_their_solutions() -> None:
    train = [example(f"What is {i}?", f"#### {i}", f"t{i}") for i in range(9)]
    (asked,) = few_shot([DUCKS], train, 2)
    text = asked.messages[-1].content
    assert asked.targets == DUCKS.targets and text.endswith(f"\n\n{DUCKS.messages[-1].content}")
    assert [f"{e.messages[-1].content} {e.targets[0]}" in text for e in train].count(True) == 2


def test_an_instruction_is_said_once_however_many_examples_follow() -> None:
    def asked(i: int) -> Example:
        return Example(f"t{i}", (Message("user", f"Do it.\n\nQuestion: {i}?"),), (f"#### {i}",), f"{i}?")

    (one,) = few_shot([asked(7)], [asked(1), asked(1)], 2)
    assert one.messages[-1].content == "Do it.\n\n" + "Question: 1? #### 1\n\n" * 2 + "Question: 7?"


# ---------------------------------------------------------------- other numbers


def test_numbers_are_changed_and_the_answer_follows() -> None:
    other = changed(DUCKS)
    assert other is not None and other == changed(DUCKS) and other.id == "q~changed"
    ponds, ducks, gone = (int(n) for n in re.findall(r"\d+", other.input))
    assert (ponds, ducks, gone) != (3, 16, 8)
    assert marked(other.targets[0]) == ponds * ducks - gone > 0
    assert other.input in other.messages[0].content and DUCKS.input not in other.messages[0].content


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("He has 5 cups and 3 pots. How many?", "#### 8"),  # no annotation
        ("He has 5 cups and 3 pots. How many?", "5+3=<<5+3=9>>9\n#### 9"),  # a wrong annotation
        ("He has 5 cups and 3 pots. How many?", "5+3=<<5+3=8>>8\n#### 9"),  # the answer is no step's result
        ("He eats half of 8 figs, then 2. How many?", "8/2=<<8/2=4>>4, 4-2=<<4-2=2>>2\n#### 2"),  # 2: half, or figs?
        ("He has 4 rows of 2, and 8 more. How many?", "4*2=<<4*2=8>>8, 8+8=<<8+8=16>>16\n#### 16"),  # which 8?
        ("He eats five figs, then six. How many?", "5+6=<<5+6=11>>11\n#### 11"),  # no number to change
    ],
)
def test_numbers_stay_where_the_annotations_do_not_allow_it(question: str, answer: str) -> None:
    assert changed(example(question, answer)) is None


@pytest.mark.skipif(not GSM8K.is_dir(), reason="needs GSM8K's files beside the repository: shared/data/gsm8k")
def test_changed_questions_of_gsm8k_keep_their_kind_of_answer() -> None:
    rows = [json.loads(line) for line in (GSM8K / "test.jsonl").open(encoding="utf-8")][:300]
    examples = [example(r["question"], r["answer"], str(i)) for i, r in enumerate(rows)]
    found = {e.meta["original"]: e for e in variants(examples)}
    assert 0.2 * len(rows) < len(found) < 0.4 * len(rows)
    for original in examples:
        if other := found.get(original.id):
            before, after = marked(original.targets[0]), marked(other.targets[0])
            assert after != before and after > 0 and (before.denominator > 1 or after.denominator == 1)
            assert other.input != original.input and other.input in other.messages[0].content


# ---------------------------------------------------------------- kinds of errors


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("3*16=<<3*16=48>>48\n48-8=<<48-8=40>>40\n#### 40", "right"),
        ("3 * 16 = 46. 46 - 8 = 38. The answer is 38.", "arithmetic slip"),
        ("3*16=<<3*16=46>>46\n46+8=<<46+8=54>>54\n#### 54", "wrong result"),
        ("3*16=<<3*16=48>>48\n48+8=<<48+8=56>>56\n#### 56", "other"),
        ("There are 16 ducks.", "no steps"),
        ("There are 41 ducks.", "no steps"),
        ("Nobody knows.", "no answer"),
        ("3*16=48 ducks " + "and so on " * 9, "degenerate loop"),
        ("3*16=48 ducks " + "and so on " * 9 + "and s", "degenerate loop"),
        ("1/3=0.3333333333333333 of 48 is 16", "wrong result"),
        ("It is 0." + "3" * 16, "no steps"),
        ("3+3+3+3+3+3+3+3=24", "other"),
        ("----------------------------\n3*16=48", "other"),
        ("and so on " * 9 + "so there are 3*16=48 of them, minus nothing", "other"),  # it came out of the loop
    ],
)
def test_errors_have_a_kind(text: str, kind: str) -> None:
    assert kind_of(DUCKS, Prediction("q", text)) == kind and kind in KINDS


@pytest.mark.skipif(not GSM8K.is_dir(), reason="needs GSM8K's files beside the repository: shared/data/gsm8k")
def test_rules_of_errors_hardly_hold_for_right_answers() -> None:
    """GSM8K's own answers and the right ones of four models: a rule that holds for them would tell of no error."""
    rows = [json.loads(line) for line in (GSM8K / "test.jsonl").open(encoding="utf-8")]
    right = [(example(r["question"], r["answer"]), Prediction("q", r["answer"])) for r in rows]
    wrong = []
    for row in map(json.loads, (GSM8K / "labelled_solutions.jsonl").open(encoding="utf-8")):
        for found in (v for v in row.values() if isinstance(v, dict)):
            pair = example(row["question"], row["ground_truth"]), Prediction("q", found["solution"])
            (right if found["is_correct"] else wrong).append(pair)
    held = [Counter(name for e, p in side for name in holding(e, p)) for side in (right, wrong)]
    assert len(right) == 1319 + 295 and len(wrong) == 505
    assert all(held[0][name] / len(right) <= 0.02 for name in RULES)
    assert held[1]["wrong result"] / len(wrong) > 0.1 > 0.01 > held[0]["wrong result"] / len(right)
    assert held[0]["degenerate loop"] == 0 < held[1]["degenerate loop"]


def test_an_answer_cut_at_the_limit_is_truncated_unless_it_was_already_given() -> None:
    assert kind_of(DUCKS, Prediction("q", "First 3*16=48 and", finish_reason="length")) == "truncated"
    went_on = "3*16=48. 48+8=56. #### 56\n\nQuestion: And 7 more"
    assert kind_of(DUCKS, Prediction("q", went_on, finish_reason="length")) == "other"


# ---------------------------------------------------------------- rules


def facts(before: float, after: float, form: float = 1.0, many: float = 0.5, n: int = 200) -> Facts:
    """Answers to `n` questions, a share of them right before and after; pass@1 is `after`, pass@8 `many`."""

    def side(share: float) -> dict[str, float]:
        return {f"q{i}": float(i < share * n) for i in range(n)}

    def metric(name: str, value: float) -> Metric:
        return Metric(name, value, max(0.0, value - 0.05), min(1.0, value + 0.05), n)

    samples = {"pass@1": metric("pass@1", after), "pass@8": metric("pass@8", many), "maj@8": metric("maj@8", after)}
    losses = (dict.fromkeys(side(0), 2.0), {q: 0.49 + 0.02 * (i % 2) for i, q in enumerate(side(0))})
    accuracy = (side(before), side(after))
    return Facts(losses, (side(0), side(form)), accuracy, accuracy, accuracy, ({}, {}), (samples, samples),
                 side(before), (Counter(), Counter({"right": 1, "other": 3})))  # fmt: skip


def test_format_without_accuracy_is_called_so() -> None:
    verdict, rules, help_ = apply_rules(facts(0.2, 0.21, many=0.6))
    assert verdict.startswith("Format +100.0 [+97.1, +100.0] points, accuracy +1.0 [")
    assert "SFT taught the format. Meanwhile the loss on gold solutions fell, 2.000 → 0.500" in verdict
    assert "pass@8 is 2.9x pass@1" in verdict
    assert any("Reinforcement learning with a verifiable reward" in line for line in help_)
    assert [r.holds for r in rules] == [True, True, False, False, True, False, None, False]


def test_accuracy_that_rises_gets_the_other_verdict_from_the_same_rules() -> None:
    verdict, rules, _ = apply_rules(facts(0.2, 0.8, many=0.9))
    assert "SFT taught solving and the format." in verdict and "Meanwhile" not in verdict
    assert [r.holds for r in rules] == [True, True, True, False, False, False, None, True]


@pytest.mark.parametrize(
    ("before", "after", "form", "said"),
    [
        (0.5, 0.2, 1.0, "SFT taught the format and cost accuracy."),
        (0.5, 0.2, 0.0, "SFT taught neither format nor solving, and cost accuracy."),
        (0.2, 0.2, 0.0, "as far as these questions can show"),
        (0.2, 0.6, 0.0, "SFT taught solving."),
        (0.2, 0.23, 1.0, "SFT taught the format."),  # three points do not matter, though all of them are gains
    ],
)
def test_verdicts_report_whichever_way_it_goes(before: float, after: float, form: float, said: str) -> None:
    assert said in apply_rules(facts(before, after, form))[0]


# ---------------------------------------------------------------- the generated problems


def test_problems_have_their_steps_right_and_no_question_is_in_two_splits() -> None:
    loader = WordProblems(WordProblems.Options(train_rows=300, validation_rows=60, test_rows=120, steps=[2, 3, 4]))
    splits = loader.load()
    assert splits == loader.load()
    questions = {s: {r["question"] for r in rows} for s, rows in splits.items()}
    assert sum(map(len, questions.values())) == len(set.union(*questions.values())) == 480
    for row in splits["train"]:
        steps = annotated(row["answer"])
        assert 2 <= len(steps) <= 4 and all(s.true == s.claimed for s in steps)
        assert marked(row["answer"]) == steps[-1].claimed
    assert {len(annotated(r["answer"])) for r in WordProblems(WordProblems.Options(steps=[1])).load()["test"]} == {1}


# ---------------------------------------------------------------- whole runs

SMALL = [
    "dataset.test_rows=64", "backend.probe_samples=20", "backend.pass_samples=5", "backend.pass_k=4",
    "backend.snapshots=[20]",
]  # fmt: skip


def probe(name: str, out: Path, *overrides: str) -> ftkit.Run:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml", overrides=[*SMALL, *overrides])
    return ftkit.run(recipe.to_dict(), out=out, console=Console(silent=True))


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> ftkit.Run:
    """The quickstart, trained in full and asked fewer questions: problems of two to four steps."""
    return probe("gsm8k-quickstart", tmp_path_factory.mktemp("steps"))


def section(run: ftkit.Run) -> dict[str, Any]:
    (found,) = [s for s in run.report.to_dict()["sections"] if s["title"].startswith("What fine-tuning taught")]
    return found


def test_it_is_the_trl_backend_and_measures_on_the_cores_own_way(steps: ftkit.Run) -> None:
    assert issubclass(Gsm8kSftProbe, TrlSftQlora)
    stages = set(steps.directory.measured())
    where = ("base", "step-20", "tuned")
    assert stages == {"baseline", "tuned", "probe-few-shot"} | {
        f"probe-{w}-{what}" for w in where for what in ("test", "train", "changed", "samples")
    }
    asked = [
        [json.loads(line)["id"] for line in steps.directory.path(f"probe-{w}-test", "examples.jsonl").open()]
        for w in where
    ]
    assert asked[0] == asked[1] == asked[2] and len(asked[0]) == 20
    generation = steps.directory.measurement("probe-base-samples")["settings"]["generation"]
    assert (generation["samples"], generation["seed"], generation["temperature"]) == (4, 0, 0.8)
    assert {s.role for s in steps.report.systems if s.stage.startswith("probe-")} == {"extra"}
    assert not [d for d in steps.report.deltas if "probe" in d.to or "probe" in d.from_]


def test_the_base_solves_some_and_training_on_steps_teaches_the_format(steps: ftkit.Run) -> None:
    few_shot = steps.directory.metrics("probe-few-shot")["accuracy_flexible"]
    base, tuned = (steps.directory.metrics(s) for s in ("baseline", "tuned"))
    assert base["accuracy_flexible"].value >= 0.1 and few_shot.value >= 0.1
    assert tuned["answer_format"].value - base["answer_format"].value > 0.5
    verdict = section(steps)["blocks"][0]["text"]
    assert "SFT taught the format" in verdict and "taught solving" not in verdict
    assert steps.report.headline and steps.report.headline.title.startswith("SFT taught the format")
    losses = [steps.directory.metrics(f"probe-{w}-test")["loss"].value for w in ("base", "step-20", "tuned")]
    assert losses[0] > losses[1] > losses[2]


def test_the_section_shows_rules_with_numbers_curves_and_examples(steps: ftkit.Run) -> None:
    blocks = section(steps)["blocks"]
    rules = blocks[1]["rows"]
    assert len(rules) == 8 and all(numbers and holds in ("yes", "no") for _, numbers, holds in rules)
    (curves,) = [b["curves"] for b in blocks if b["kind"] == "curves"]
    assert [[p[0] for p in c["points"]] for c in curves] == [[0, 20, 60]] * 3
    kinds = [row[0] for row in blocks[-2]["rows"]]
    assert kinds == list(KINDS) and blocks[-1]["examples"]
    html = (steps.dir / "report.html").read_text(encoding="utf-8")
    assert "What fine-tuning taught" in html and "arithmetic slip" in html


def test_one_step_problems_get_the_other_verdict(tmp_path: Path) -> None:
    few = ["backend.snapshots=[]", "backend.few_shot=0", "backend.probe_samples=8", "backend.max_steps=40"]
    run = probe("gsm8k-quickstart-control", tmp_path, *few)
    assert "SFT taught solving" in section(run)["blocks"][0]["text"]


def test_a_probe_killed_twice_ends_with_the_same_numbers(tmp_path: Path) -> None:
    """kill -9 in a measurement of the base model and in one of a snapshot; resume; all predictions are equal."""
    tiny = ["dataset.train_rows=40", "dataset.test_rows=8", "dataset.splits.validation=4", "backend.max_steps=3",
            "backend.snapshots=[2]", "backend.probe_samples=6", "backend.pass_samples=6", "backend.pass_k=2",
            "backend.eval_batch_size=2", "backend.pass_max_new_tokens=24", "generation.max_new_tokens=24",
            "backend.save_steps=1", "backend.micro_batch_size=4"]  # fmt: skip
    whole = probe("gsm8k-quickstart", tmp_path / "whole", *tiny)
    sets = [word for item in [*SMALL, *tiny] for word in ("--set", item)]
    out = tmp_path / "killed"
    line: list[Any] = ["run", ROOT / "recipes" / "gsm8k-quickstart.yaml", "--out", out, *sets]
    with Stopper(tmp_path, "ftkit_trl._train", "ftkit_trl._generate") as stopper:
        for stage in ("probe-base-samples", "probe-step-2-train"):
            killed = stopper.run(*line, at=rf"open .*/{stage}/predictions\.journal", nth=2)
            assert killed.status == -signal.SIGKILL, killed.said
            (directory,) = [p for p in out.iterdir() if p.is_dir()]
            line = ["run", "--resume", directory]
    ftkit.resume(directory, Console(silent=True))
    for stage in whole.directory.measured():
        for file in ("predictions.jsonl", "scores.jsonl"):
            assert (directory / stage / file).read_bytes() == (whole.dir / stage / file).read_bytes(), stage
    # Whoever holds the directory gets the section: nothing of it was in the process that made it.
    write_report([ftkit.open_run(directory).directory], tmp_path)
    again, first = (json.loads((p / "report.json").read_text())["sections"] for p in (tmp_path, whole.dir))
    assert again == first
