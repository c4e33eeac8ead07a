"""ROUGE with 95 % intervals for 15,000 pairs: time and memory, against rouge-score with its own aggregator.

    python benchmarks/metrics_scale.py [--rows 15000] [--times 5]

Both score the same pairs in the same run, taking turns, each in a process of its own. rouge-score's
`BootstrapAggregator` is what `evaluate` uses; it draws 1,000 resamples. ftkit computes its intervals in closed form.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from typing import Any

from _scale import measured, middle, ratio, report, setup

NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def pairs(n: int) -> list[tuple[str, str]]:
    """Return (reference, prediction) texts: a generated dialogue's summary, and another one with the last turn."""
    from ftkit_quickstart._dialogues import rows

    made = rows("train", n, seed=3)
    other = [*made[1:], made[0]]
    return [
        (a["summary"], f"{b['summary']} {a['dialogue'].splitlines()[-1]}") for a, b in zip(made, other, strict=True)
    ]


def ours(n: int) -> None:
    import rouge_score.rouge_scorer  # noqa: F401  loaded before the clock starts, as for the peer
    from ftkit_metrics import Rouge

    from ftkit.records import Example, Prediction
    from ftkit.score import score_all

    made = pairs(n)
    examples = [Example(str(i), (), (reference,)) for i, (reference, _) in enumerate(made)]
    predictions = [Prediction(str(i), text) for i, (_, text) in enumerate(made)]

    def work() -> dict[str, Any]:
        scores, metrics = score_all([Rouge()], examples, predictions)
        rouges = {m.name: m.value for m in metrics if m.name in NAMES}
        return {"metrics": rouges, "digest": digest([[(s.values or {})[name] for name in NAMES] for s in scores])}

    report(work)


def peer(n: int) -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.scoring import BootstrapAggregator

    made = pairs(n)

    def work() -> dict[str, Any]:
        scorer, aggregator = RougeScorer(NAMES), BootstrapAggregator()
        values = []
        for reference, text in made:
            score = scorer.score(reference, text)
            aggregator.add_scores(score)
            values.append([score[name].fmeasure for name in NAMES])
        rouges = {name: float(found.mid.fmeasure) for name, found in aggregator.aggregate().items()}
        return {"metrics": rouges, "digest": digest(values)}

    report(work)


def digest(values: list[list[float]]) -> str:
    """Name all scores to the last bit."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=15_000)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--child", choices=["ours", "peer"])
    options = parser.parse_args()
    if options.child:
        {"ours": ours, "peer": peer}[options.child](options.rows)
        return

    few, many = options.rows // 10, options.rows
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for _ in range(options.times):
        for who, n in (("ours", many), ("peer", many), ("ours", few)):
            runs.setdefault((who, n), []).append(measured(__file__, "--child", who, "--rows", n))
    print(setup("ftkit", "rouge-score", "numpy"))
    print(f"median of {options.times}, taking turns\n")
    print("| ROUGE with intervals | pairs | resamples | seconds | of them CPU | peak memory |")
    print("|---|--:|--:|--:|--:|--:|")
    for (who, n), found in sorted(runs.items(), key=lambda item: item[0]):
        name, resamples = ("ftkit", "none") if who == "ours" else ("rouge-score, BootstrapAggregator", "1,000")
        print(
            f"| {name} | {n:,} | {resamples} | {middle(found, 'seconds'):.2f} | {middle(found, 'cpu'):.2f} "
            f"| {middle(found, 'peak_mb'):.0f} MB |"
        )
    faster = [ratio(runs["peer", many], runs["ours", many], key) for key in ("seconds", "cpu")]
    growth = [ratio(runs["ours", many], runs["ours", few], key) for key in ("seconds", "cpu")]
    print(f"\nfaster than the peer: {faster[0]:.1f} times (CPU: {faster[1]:.1f})")
    print(f"ten times the pairs: {growth[0]:.1f} times the time (CPU: {growth[1]:.1f}; at most 10.5)")
    equal = {found["digest"] for who, n in runs for found in runs[who, n] if n == many}
    print(f"all {4 * many:,} scores equal rouge-score's to the last bit: {'yes' if len(equal) == 1 else 'NO'}")


if __name__ == "__main__":
    main()
