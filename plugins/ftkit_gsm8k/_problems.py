"""Generated arithmetic word problems with worked solutions in GSM8K's form.

``problem(rng, steps)`` makes one of one to four steps; ``rows(split, n, steps, seed)`` returns dicts
with the keys question and answer. In an answer each step is annotated (``12+5=<<12+5=17>>17``) and the
last line is ``#### 17``. All numbers are whole and below 100. Deterministic, standard library only.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

NAMES = """Anna Tom Maria Ben Clara David Ella Frank Grace Henry Kate Leo Mia Noah Olga Paul Rosa Sam Tina
Victor Wendy Alex Bella Carl""".split()
ITEMS = "apples pens books coins cards shells stones eggs plums cakes stamps balls marbles cups".split()
BOXES = "boxes bags jars baskets trays".split()
COLOURS = "red blue green white black yellow".split()
LIMIT = 99

# Sentences without a step, and sentences with one: {a} and {b} are new numbers.
START = ["{n} has {a} {items}.", "There are {a} {items} on {n}'s table.", "{n} collects {a} {items}."]
START_TIMES = ["{n} buys {a} {boxes} of {b} {items} each.", "{n} has {a} {boxes} with {b} {items} in each."]
START_PLUS = ["{n} has {a} {c} {items} and {b} {d} {items}.", "{n} finds {a} {items} and {m} finds {b}. {n} takes all."]
GAIN = [
    "{n} finds {b} more {items}.",
    "{m} gives {n} {b} more {items}.",
    "Then {n} buys {b} more {items}.",
    "{n} gets another {b} from {m}.",
]
LOSE = [
    "{n} gives {b} {items} to {m}.",
    "{n} loses {b} of the {items}.",
    "Then {n} sells {b} {items}.",
    "{m} takes {b} of them away.",
]
HALF = ["{n} gives half of the {items} to {m}.", "{n} keeps only half of them."]
TIMES = ["{m} has {b} times as many {items} as {n} has now.", "The next day {m} has {b} times that many {items}."]
SHARE = ["{n} puts them equally into {b} {boxes}.", "{n} shares all {items} equally with {b} friends, keeping none."]
MORE = ["{m} has {b} more {items} than {n} has now."]
FEWER = ["{m} has {b} fewer {items} than {n} has now."]
ASIDE = ["{n} is {a} years old.", "It is {a} minutes past noon.", "{m} lives at number {a}.", "A bus has {a} seats."]
ASK = {
    "own": ["How many {items} does {n} have now?", "What is the number of {items} that {n} has now?"],
    "each": ["How many {items} are in each one?", "How many {items} does each part have?"],
    "both": ["How many {items} do {n} and {m} have together?"],
}


@dataclass(frozen=True)
class Step:
    """One equation, left op right = result, and its sentence."""

    left: int
    op: str
    right: int
    sentence: str  # such as "Anna has {=} apples"; {=} is where the equation goes

    @property
    def result(self) -> int:
        return {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}[self.op](
            self.left, self.right
        )

    @property
    def whole(self) -> bool:
        """Whether the result is a whole number within the limits."""
        exact = self.op != "/" or (self.right > 0 and self.left % self.right == 0)
        return exact and 0 < self.result <= LIMIT


@dataclass(frozen=True)
class WordProblem:
    """A question and the steps of its solution."""

    question: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        return self.steps[-1].result


def problem(rng: random.Random, steps: int, aside: float = 0.2) -> WordProblem:
    """Return a problem whose solution has `steps` steps; with probability `aside` it has a number that no step uses."""
    while True:
        made = _attempt(rng, steps, aside)
        if made is not None:
            return made


def _attempt(rng: random.Random, steps: int, aside: float) -> WordProblem | None:
    n, m = rng.sample(NAMES, 2)
    c, d = rng.sample(COLOURS, 2)
    words = {"items": rng.choice(ITEMS), "boxes": rng.choice(BOXES), "c": c, "d": d}
    told: list[str] = []
    done: list[Step] = []

    def tell(forms: list[str], **numbers: int) -> None:
        told.append(rng.choice(forms).format(n=n, m=m, **words, **numbers))

    def step(left: int, op: str, right: int, sentence: str) -> bool:
        done.append(Step(left, op, right, sentence.format(n=n, m=m, **words, e="{=}")))
        return done[-1].whole

    kind = rng.choice(["plain", "plain", "times", "plus"])
    if kind == "plain":
        value = rng.randint(3, 60)
        tell(START, a=value)
    elif kind == "times":
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        tell(START_TIMES, a=a, b=b)
        step(a, "*", b, "{n} has {e} {items}")
        value = a * b
    else:
        a, b = rng.randint(3, 45), rng.randint(3, 45)
        tell(START_PLUS, a=a, b=b)
        step(a, "+", b, "{n} has {e} {items}")
        value = a + b
    if len(done) > steps:
        return None
    if rng.random() < aside:
        tell(ASIDE, a=rng.randint(2, 60))
    question = "own"
    while len(done) < steps:
        left = steps - len(done)
        kinds = ["gain", "gain", "lose", "lose", "times"] + ["half"] * (kind != "half")
        kinds += ["share"] * 2 if left == 1 else ["compare"] * 2 if left == 2 else []
        kind = rng.choice(kinds)
        if kind == "gain":
            b = rng.randint(2, 40)
            tell(GAIN, b=b)
            good = step(value, "+", b, "{n} then has {e} {items}")
        elif kind == "lose":
            b = rng.randint(2, 40)
            tell(LOSE, b=b)
            good = step(value, "-", b, "There are {e} {items} left")
        elif kind == "half":
            tell(HALF)
            good = step(value, "/", 2, "Half of them are {e} {items}")
        elif kind == "times":
            b = rng.randint(2, 5)
            tell(TIMES, b=b)
            good = step(value, "*", b, "{m} has {e} {items}")
            n, m = m, n
        elif kind == "share":
            b = rng.randint(2, 9)
            tell(SHARE, b=b)
            good = step(value, "/", b, "Each part has {e} {items}")
            question = "each"
        else:
            b, more = rng.randint(2, 30), rng.random() < 0.5
            tell(MORE if more else FEWER, b=b)
            good = step(value, "+" if more else "-", b, "{m} has {e} {items}") and step(
                value, "+", done[-1].result, "Together they have {e} {items}"
            )
            question = "both"
        if not good:
            return None
        value = done[-1].result
    told.append(rng.choice(ASK[question]).format(n=n, m=m, **words))
    return WordProblem(" ".join(told), tuple(done))


def worked(solved: WordProblem) -> str:
    """Return the solution in GSM8K's form."""
    lines = []
    for s in solved.steps:
        equation = f"{s.left}{s.op}{s.right}"
        lines.append(s.sentence.replace("{=}", f"{equation}=<<{equation}={s.result}>>{s.result}") + ".")
    return "\n".join([*lines, f"#### {solved.answer}"])


def rows(split: str, n: int, steps: tuple[int, ...], seed: int) -> list[dict[str, str]]:
    """Return `n` different problems with their worked solutions; no two splits share one."""
    seen: set[str] = set()
    found: list[dict[str, str]] = []
    rng = random.Random(f"{seed} {split} {steps}")
    while len(found) < n:
        made = problem(rng, steps[len(found) % len(steps)])
        # The text of a question decides its split: there is no need to compare the splits.
        if made.question in seen or split_of(made.question) != split:
            continue
        seen.add(made.question)
        found.append({"question": made.question, "answer": worked(made)})
    return found


def split_of(question: str) -> str:
    """Return the split that a question belongs to: 30 % train, 10 % test, 5 % validation, the rest pre-training."""
    place = random.Random(question).random()
    return "train" if place < 0.3 else "test" if place < 0.4 else "validation" if place < 0.45 else "pretraining"
