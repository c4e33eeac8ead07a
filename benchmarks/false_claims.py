"""How often a report claims a difference between two recipes: where there is none, and where there is one.

    python benchmarks/false_claims.py [--sims 2000] [--seed 1]

Each simulation makes two recipes with 2, 3, 5 or 10 training seeds a side and lets the report's own code decide.
A recipe's answer to a row is right if the row's difficulty, the recipe's effect on that row, the training seed's effect
and chance that belongs to this training *and* this row together pass a threshold. So two trainings of one recipe
disagree on some rows even where neither is better. Without a true difference both recipes have the same distribution.

The last table has one training a side: of each pair the report says which run scored higher, and claims nothing.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ftkit.directory import RunDirectory
from ftkit.records import Metric, Score, System
from ftkit.report.compare import deltas_of
from ftkit.report.measured import Measured
from ftkit.report.seed_stats import seed_interval

Floats = NDArray[np.float64]
SIDES = (2, 3, 5, 10)
PAIRS = 60  # of single runs that go through the whole comparison, with its 9,999 resamples, for each scenario


@dataclass(frozen=True)
class Scenario:
    """How noisy a task is; all standard deviations are in units of the difficulty of a row, whose own is 1."""

    name: str
    rows: int
    seed: float  # effect of a training seed on all rows
    recipe: float  # effect of a recipe on a single row
    both: float  # chance of one training on one row
    graded: bool = False  # a score between 0 and 1, such as ROUGE, in place of right or wrong
    skewed: bool = False  # most seeds alike and a few far better: exponential in place of normal
    base: bool = False  # the other side is a base model: fixed, never trained


SCENARIOS = (
    Scenario("right or wrong, 200 rows", 200, 0.10, 0.3, 0.5),
    Scenario("right or wrong, 200 rows, quiet seeds", 200, 0.02, 0.3, 0.5),
    Scenario("right or wrong, 1,000 rows, noisy seeds", 1000, 0.30, 0.3, 0.3),
    Scenario("right or wrong, 24 rows", 24, 0.10, 0.3, 0.3),
    Scenario("graded, 200 rows", 200, 0.10, 0.3, 0.5, graded=True),
    Scenario("graded, 800 rows, few lucky seeds", 800, 0.20, 0.3, 0.3, graded=True, skewed=True),
    Scenario("base model against tuned, 200 rows", 200, 0.10, 0.3, 0.5, base=True),
    Scenario("base model against tuned, 1,000 rows", 1000, 0.30, 0.3, 0.3, base=True),
)


def trainings(s: Scenario, k: int, rows: Floats, shift: float, rng: np.random.Generator) -> Floats:
    """Return scores of shape (k, rows): `k` trainings of a new recipe."""
    seeds = rng.exponential(1, k) - 1 if s.skewed else rng.normal(0, 1, k)
    recipe = s.recipe * rng.normal(0, 1, rows.size)
    ability = 0.6 + shift + rows + recipe + s.seed * seeds[:, None] + s.both * rng.normal(0, 1, (k, rows.size))
    return 1 / (1 + np.exp(-ability)) if s.graded else (ability > 0).astype(np.float64)


def two_sides(s: Scenario, k: int, shift: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    rows = rng.normal(0, 1, s.rows)
    fixed = Scenario(s.name, s.rows, 0.0, s.recipe, s.both)  # a base model has no seed
    first = trainings(fixed, 1, rows, 0.0, rng) if s.base else trainings(s, k, rows, 0.0, rng)
    return first, trainings(s, k, rows, shift, rng)


def claims(s: Scenario, k: int, shift: float, sims: int, rng: np.random.Generator) -> float:
    """Return the share of simulations whose interval leaves out 0: where the report says better or worse."""
    found = (seed_interval(*two_sides(s, k, shift, rng)) for _ in range(sims))
    return sum(not f.low <= 0 <= f.high for f in found) / sims


def satterthwaite(s: Scenario, k: int, sims: int, rng: np.random.Generator) -> float:
    """Return the share of false claims of the usual single factor, against a base model: what the report does not use."""
    from scipy.stats import t

    false = 0
    for _ in range(sims):
        base, tuned = two_sides(s, k, 0.0, rng)
        differences, seeds = tuned.mean(axis=0) - base[0], tuned.mean(axis=1)
        of_rows, of_seeds = differences.var(ddof=1) / s.rows, seeds.var(ddof=1) / k
        freedom = (of_rows + of_seeds) ** 2 / (of_rows**2 / (s.rows - 1) + of_seeds**2 / (k - 1))
        false += abs(differences.mean()) > t.ppf(0.975, freedom) * np.sqrt(of_rows + of_seeds)
    return false / sims


def points(s: Scenario, shift: float, rng: np.random.Generator) -> tuple[float, float]:
    """Return the mean difference that `shift` makes, and the standard deviation of seeds, both in points of 100."""
    rows = rng.normal(0, 1, 20_000)
    sides = [trainings(s, 60, rows, d, rng).mean(axis=1) for d in (0.0, shift)]
    return 100 * float(sides[1].mean() - sides[0].mean()), 100 * float(sides[0].std(ddof=1))


# ---------------------------------------------------------------- one training a side


def measurement(name: str, scores: Floats) -> Measured:
    """Return one training run as a report has it, made of nothing but its scores."""
    settings = {"primary": "score"}
    system = System(name, name, "tuned", "tuned", {"score": Metric("score", float(scores.mean()), n=scores.size)},
                    settings=settings)  # fmt: skip
    rows = [Score(str(i), {"score": float(value)}) for i, value in enumerate(scores)]
    return Measured(system, RunDirectory(Path(name)), {}, rows, {name})


def verdicts_on_single_runs(s: Scenario, pairs: int, rng: np.random.Generator) -> Counter[str]:
    found: Counter[str] = Counter()
    for _ in range(pairs):
        first, second = two_sides(s, 1, 0.0, rng)
        (delta,) = deltas_of([measurement("a", first[0]), measurement("b", second[0])], "score", [])
        found[delta.verdict] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sims", type=int, default=2000, help="simulations for each number of the tables")
    parser.add_argument("--seed", type=int, default=1, help="seed of the simulations")
    o = parser.parse_args()
    rng, began = np.random.default_rng(o.seed), time.monotonic()
    head = "| scenario | seed noise | " + " | ".join(f"{k} seeds" for k in SIDES) + " |"
    line = "|---|--:|" + "--:|" * len(SIDES)
    print(f"{o.sims} simulations for each number, seed {o.seed}\n")
    print(f"Claims where there is no difference (at most 6 % are allowed)\n\n{head}\n{line}")
    worst = 0.0
    for s in SCENARIOS:
        shares = [claims(s, k, 0.0, o.sims, rng) for k in SIDES]
        worst = max(worst, *shares)
        cells = " | ".join(f"{100 * share:.1f} %" for share in shares)
        print(f"| {s.name} | {points(s, 0.0, rng)[1]:.1f} | {cells} |", flush=True)
    print("\nFor comparison, false claims of Satterthwaite's approximation:\n")
    for s in SCENARIOS:
        if s.base:
            shares = [satterthwaite(s, k, o.sims, rng) for k in SIDES]
            print(f"- {s.name}: " + ", ".join(f"{100 * share:.1f} %" for share in shares), flush=True)
    print("\nClaims where there is a difference (found)\n")
    print(head.replace("seed noise", "seed noise | true difference") + "\n" + line.replace("|--:|", "|--:|--:|", 1))
    for s in SCENARIOS:
        if s.base:
            continue
        for shift in (0.25, 0.75):
            cells = " | ".join(f"{100 * claims(s, k, shift, o.sims // 4, rng):.0f} %" for k in SIDES)
            true, noise = points(s, shift, rng)
            print(f"| {s.name} | {noise:.1f} | {true:.1f} | {cells} |", flush=True)
    print(f"\nOne training a side, no difference: verdicts of {PAIRS} pairs each\n")
    total: Counter[str] = Counter()
    for s in SCENARIOS:
        if not s.base:
            found = verdicts_on_single_runs(s, PAIRS, rng)
            total += found
            print(f"- {s.name}: " + ", ".join(f"{n} {verdict!r}" for verdict, n in sorted(found.items())), flush=True)
    print(
        f"\nworst share of false claims: {100 * worst:.1f} %; claims of single pairs: {total['better'] + total['worse']}"
    )
    print(f"{time.monotonic() - began:.0f} s")
    if worst > 0.06 or total["better"] + total["worse"]:
        raise SystemExit("too many false claims")


if __name__ == "__main__":
    main()
