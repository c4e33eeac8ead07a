"""Does a sweep claim gains that are not there? Simulated: choosing on the test rows, and choosing on the validation rows.

    python benchmarks/selection.py [--repeats N] [--settings N]

Each repetition draws a base model and N tuned models that answer validation and test rows. A row has a difficulty that
all models share, so that models are alike row by row, as they are in fact. `gain` is how much better every tuned model
truly is (0: none is), `spread` how far settings truly differ. Shown are, of 95 % intervals of the gain over the base:

- on test, chosen on test: the interval of the best of N, as if it were the only one. Claims gains that are not there.
- on test, chosen on validation: what a sweep reports. Untouched rows, so the plain interval holds.
- on validation, plain: the interval of the chosen one on the rows that it was chosen by.
- on validation, corrected: that of the sweep's leaderboard, each at level 1 - 0.05 / N.

`adaptive` draws each setting near the best one so far, as a search does. Uses ftkit's own intervals; about 5 minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from ftkit.stats import paired_interval
from ftkit.sweep.choose import simultaneous

ROWS = {"validation": 100, "test": 200}
TARGET = 0.93


def answer_binary(skill: np.ndarray, hard: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return right (1) or wrong (0), shape (models, rows): by skill and difficulty, and by chance."""
    chance = 1 / (1 + np.exp(-(logit(skill)[:, None] - 1.5 * hard[None])))
    return (rng.random(chance.shape) < chance).astype(float)


def answer_graded(skill: np.ndarray, hard: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return scores within 0..1 that are skewed, as ROUGE is, shape (models, rows)."""
    mean = 1 / (1 + np.exp(-(logit(skill)[:, None] - hard[None])))
    return rng.beta(4 * mean, 4 * (1 - mean))


def logit(p: np.ndarray) -> np.ndarray:
    return np.log(p / (1 - p))


def true_mean(answer: str, skill: float) -> float:
    """Return the mean score of a model of this skill over all possible rows."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(61)
    slope = 1.5 if answer == "binary" else 1.0
    values = 1 / (1 + np.exp(-(logit(np.array(skill)) - slope * nodes)))
    return float(values @ weights / weights.sum())


ANSWERS: dict[str, Callable[..., np.ndarray]] = {"binary": answer_binary, "graded": answer_graded}


def gain_interval(base: np.ndarray, tuned: np.ndarray, level: float) -> tuple[float, float]:
    named = [{str(i): float(v) for i, v in enumerate(side)} for side in (base, tuned)]
    found = paired_interval(named[0], named[1], "fraction", {}, level)
    if found.low is None or found.high is None:
        return 0.0, 0.0
    return found.low, found.high


def skills(n: int, gain: float, spread: float, rng: np.random.Generator) -> np.ndarray:
    return np.clip(0.5 + gain + spread * rng.standard_normal(n), 0.05, 0.95)


def simulate(answer: str, n: int, gain: float, spread: float, adaptive: bool, repeats: int) -> dict[str, list[float]]:
    """Return by way of measuring: the share of intervals that cover the true gain, and that claim one above 0 wrongly."""
    rng = np.random.default_rng(20240229)
    drawn = ANSWERS[answer]
    names = ("test, chosen on test", "test, chosen on validation", "validation, plain", "validation, corrected")
    covers: dict[str, list[bool]] = {name: [] for name in names}
    claims: dict[str, list[bool]] = {name: [] for name in names}
    for _ in range(repeats):
        hard = {split: rng.standard_normal(rows) for split, rows in ROWS.items()}
        base = {split: drawn(np.array([0.5]), hard[split], rng)[0] for split in ROWS}
        if adaptive:
            skill, tuned = np.zeros(0), {split: np.zeros((0, rows)) for split, rows in ROWS.items()}
            for k in range(n):
                middle = skill[int(np.argmax(tuned["validation"].mean(axis=1)))] if k >= n // 2 else 0.5 + gain
                one = np.clip(middle + (spread if k < n // 2 else spread / 3) * rng.standard_normal(1), 0.05, 0.95)
                skill = np.append(skill, one)
                tuned = {s: np.vstack([tuned[s], drawn(one, hard[s], rng)]) for s in ROWS}
        else:
            skill = skills(n, gain, spread, rng)
            tuned = {split: drawn(skill, hard[split], rng) for split in ROWS}
        truth = [true_mean(answer, s) - true_mean(answer, 0.5) for s in skill]
        by_test, by_validation = (int(np.argmax(tuned[s].mean(axis=1))) for s in ("test", "validation"))
        shown = {
            "test, chosen on test": ("test", by_test, 0.95),
            "test, chosen on validation": ("test", by_validation, 0.95),
            "validation, plain": ("validation", by_validation, 0.95),
            "validation, corrected": ("validation", by_validation, simultaneous(n)),
        }
        for name, (split, best, level) in shown.items():
            low, high = gain_interval(base[split], tuned[split][best], level)
            covers[name].append(low <= truth[best] <= high)
            claims[name].append(low > 0 and truth[best] <= 0)
    return {name: [float(np.mean(covers[name])), float(np.mean(claims[name]))] for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--settings", type=int, default=12)
    arguments = parser.parse_args()
    n, worst = arguments.settings, 1.0
    print(
        f"{n} settings, {ROWS['validation']} validation and {ROWS['test']} test rows, {arguments.repeats} repetitions"
    )
    print(f"{'scores':8} {'gain':>5} {'spread':>6} {'search':9} {'measured on':28} {'covers':>7} {'false gains':>12}")
    for answer in ANSWERS:
        for gain, spread, adaptive in ((0.0, 0.0, False), (0.0, 0.05, False), (0.1, 0.05, False), (0.0, 0.05, True)):
            found = simulate(answer, n, gain, spread, adaptive, arguments.repeats)
            for name, (covers, claims) in found.items():
                how = "adaptive" if adaptive else "grid"
                print(f"{answer:8} {gain:5.2f} {spread:6.2f} {how:9} {name:28} {covers:7.1%} {claims:12.1%}")
            reported = [found["test, chosen on validation"][0]]
            reported += [] if adaptive else [found["validation, corrected"][0]]
            worst = min(worst, *reported)
    print(f"lowest coverage of what a sweep reports: {worst:.1%} (it must be at least {TARGET:.0%})")
    raise SystemExit(worst < TARGET)


if __name__ == "__main__":
    main()
