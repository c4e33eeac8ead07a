"""Reports made by hand for the tests of rendering."""

from __future__ import annotations

import random
from dataclasses import replace

from ftkit.records import Curve, Delta, Metric, Pair, Report, Section, System
from ftkit.report.costs import costs_of

HOSTILE = (
    "</script><script>document.title='owned'</script><!-- <img src=x onerror=alert(1)> \x1b[31mred \x00 \ud800 "
    "\u202egnp.exe \u2028 <|eot_id|> | pipe `tick` [link](http://evil.test) @someone {{ 7 * 7 }}"
)


def metric(name: str, value: float, n: int = 200, **more: object) -> Metric:
    low, high = value - 0.02, value + 0.021
    return Metric(**{"name": name, "value": value, "low": low, "high": high, "n": n, **more})  # type: ignore[arg-type]


def system(name: str, role: str, value: float, run: str = "run-a", **more: object) -> System:
    metrics = {
        "overlap2": metric("overlap2", value * 0.6),
        "overlap1": metric("overlap1", value),
        "words": Metric("words", 12 + 30 * (1 - value), n=198, n_unscored=2, unit="words", higher_is_better=None),
    }
    return System(
        **{  # type: ignore[arg-type]
            "name": name,
            "run": run,
            "stage": role,
            "role": role,
            "metrics": metrics,
            "model": "acme/tiny-1b",
            "method": "some-trainer",
            "seconds": 83.2,
            "train_seconds": None if role == "baseline" else 4210.0,
            "usd": None if role == "baseline" else 0.42,
            "train_usd": None if role == "baseline" else 0.42,
            "n_predictions": 200,
            "info": {"hosted_by": "the run directory"} if role == "tuned" else {},
            "tokens_in": 41_230,
            "tokens_out": 9_120,
            "peak_memory": 2_340_000_000,
            **more,
        }
    )


def sample_report(**more: object) -> Report:
    rng = random.Random(7)
    systems = (system("baseline", "baseline", 0.1523), system("tuned", "tuned", 0.4719))
    people = ("Anna", "Ben", "Chloé", "Dmitri", "結衣")
    pairs = []
    for i in range(60):
        who, other = rng.sample(people, 2)
        before, after = rng.uniform(0, 0.4), rng.uniform(0.1, 0.9)
        pairs.append(
            Pair(
                f"test-{i:03d}",
                f"{who}: hey, are you coming to the cinema on Friday?\n{other}: I can't, my sister is visiting.\n"
                f"{who}: oh no! Saturday then?\n{other}: Saturday at {i % 12 + 1} works, I'll get the tickets.",
                (f"{who} and {other} will go to the cinema on Saturday at {i % 12 + 1}.",),
                {
                    "baseline": {"text": f"{who}: hey, are you coming\n{other}: I can't", "score": before},
                    "tuned": {"text": f"{other} will meet {who} at the cinema on Saturday.", "score": after},
                },
                delta=after - before,
            )
        )
    failed = {**pairs[3].answers, "tuned": {"text": "", "score": None, "error": "timed out after 60 s"}}
    pairs[3] = replace(pairs[3], answers=failed, delta=None)
    steps = range(0, 301, 50)
    report = {
        "title": "tiny chats: does QLoRA help?",
        "verdict": "Fine-tuning made the summaries clearly better",
        "verdict_detail": "Same prompt, settings and 200 test dialogues for both; one training seed.",
        "primary": "overlap1",
        "systems": systems,
        "deltas": (
            Delta("baseline", "tuned", "overlap1", 0.3196, 0.301, 0.338, 0.0001, 200, verdict="better"),
            Delta("baseline", "tuned", "overlap2", 0.1918, 0.17, 0.21, 0.0001, 200),
            Delta("baseline", "tuned", "words", -9.59, -10.4, -8.8, 0.0001, 198, unit="words"),
        ),
        "pairs": tuple(pairs),
        "curves": (
            Curve("run-a", "training", "loss", tuple([s, 3.1 * 0.99**s + 0.6 + rng.random() / 5] for s in range(301))),
            Curve("run-a", "validation", "loss", tuple([s, 3.0 * 0.99**s + 0.8] for s in steps)),
            Curve("run-a", "validation sample", "overlap1", tuple([s, 0.15 + s / 900] for s in steps)),
        ),
        "runs": (
            {
                "id": "run-a",
                "name": "tiny-qlora",
                "status": "done",
                "started": "2026-11-23T15:42:10Z",
                "stages": [
                    {"name": "baseline", "status": "done", "seconds": 83.2, "usd": None, "error": None},
                    {"name": "train", "status": "done", "seconds": 4210.0, "usd": 0.42, "error": None},
                ],
                "recipe": "name: tiny-qlora\nseed: 42\n",
                "lock": {"packages": {"ftkit": "0.1.0"}},
            },
        ),
        "warnings": ("12 of 200 test inputs also occur in the training rows.",),
        "notes": ("This small model is a stand-in for trying the tool.",),
        "sections": (
            Section(
                "Facts",
                (
                    {"kind": "text", "text": "How many of the facts are right."},
                    {"kind": "table", "header": ["slot", "right"], "rows": [["who", 0.71], ["when", 0.64]]},
                    {"kind": "examples", "examples": [{"title": "A wrong name", "text": "Anna, not Ben"}]},
                ),
            ),
        ),
        "created": "2026-11-23 16:55 UTC",
        "version": "0.1.0",
    }
    report |= more
    report.setdefault("costs", costs_of(report["systems"], {}).to_dict())  # type: ignore[arg-type]
    return Report(**report)  # type: ignore[arg-type]


def priced_report() -> Report:
    """An open-weight model on a rented GPU beside a model behind an API: four systems with their prices."""
    here = {"run": "run-a", "info": {"hosted_by": "the run directory", "usd_per_hour": 0.8}, "n_predictions": 200}
    there = {"run": "run-b", "info": {"hosted_by": "the provider", "shutdown_date": "2027-01-14"}, "n_predictions": 200}
    systems = (
        system("chats-1b baseline", "baseline", 0.1523, **here | {"usd": 0.0185, "measure_usd": 0.0185}),
        system("chats-1b tuned", "tuned", 0.4719, **here | {"usd": 0.954, "measure_usd": 0.0185, "train_usd": 0.9356}),
        system("chats-api baseline", "baseline", 0.3712, **there | {"usd": 0.0102, "measure_usd": 0.0102, "seconds": 21}),
        system(
            "chats-api tuned", "tuned", 0.4803, **there | {"usd": 6.2, "measure_usd": 0.0305, "train_usd": 6.1695}
            | {"seconds": 24, "n_failed": 1, "model": "ft:tiny-2:acme::a1b2c3"},
        ),
    )  # fmt: skip
    runs = [{"run": "chats-api", "estimated": 5.9, "actual": 6.2102, "prices_as_of": "2026-11-01"}]
    deltas = (
        Delta("chats-1b baseline", "chats-1b tuned", "overlap1", 0.3196, 0.301, 0.338, 0.0001, 200, 0.0004, "better"),
        Delta("chats-api baseline", "chats-api tuned", "overlap1", 0.1091, 0.08, 0.131, 0.0001, 199, 0.0004, "better"),
        Delta("chats-1b tuned", "chats-api tuned", "overlap1", 0.0084, -0.01, 0.02, 0.41, 199, 0.41, "no difference shown"),
        Delta("chats-1b baseline", "chats-api baseline", "overlap1", 0.2189, 0.19, 0.24, 0.0001, 200, 0.0004, "better"),
    )  # fmt: skip
    return sample_report(
        title="chats-1b vs chats-api", systems=systems, deltas=deltas, costs=costs_of(systems, {}, runs).to_dict()
    )


def hostile_report() -> Report:
    pair = Pair(HOSTILE, HOSTILE, (HOSTILE,), {HOSTILE: {"text": HOSTILE, "score": 0.5, "error": None}}, delta=0.1)
    hostile = {
        "run": HOSTILE,
        "model": HOSTILE,
        "method": HOSTILE,
        "info": {"hosted_by": HOSTILE, "shutdown_date": HOSTILE},
    }
    systems = (system(HOSTILE, HOSTILE, 0.4, **hostile), system(f"{HOSTILE} 2", "tuned", 0.4, **hostile))
    prices = {HOSTILE: {"usd_per_1k": 1.0}, f"{HOSTILE} 2": {"usd_per_hour": 1.0, "usd_per_1k": 2.0}}
    spent = [{"run": HOSTILE, "estimated": 1, "actual": None, "prices_as_of": HOSTILE}]
    return sample_report(
        title=HOSTILE,
        costs=costs_of(systems, prices, spent).to_dict(),
        verdict=HOSTILE,
        verdict_detail=HOSTILE,
        warnings=(HOSTILE,),
        notes=(HOSTILE,),
        systems=systems,
        deltas=(Delta(HOSTILE, HOSTILE, "overlap1", 0.1, 0.0, 0.2, 0.5, 9, verdict=HOSTILE),),
        pairs=(pair,),
        curves=(Curve(HOSTILE, HOSTILE, HOSTILE, ([0, 1.0], [1, 0.5])),),
        runs=({"id": HOSTILE, "name": HOSTILE, "status": HOSTILE, "recipe": HOSTILE, "lock": {HOSTILE: HOSTILE}},),
        sections=(
            Section(
                HOSTILE,
                (
                    {"kind": "text", "text": HOSTILE},
                    {"kind": "table", "header": [HOSTILE], "rows": [[HOSTILE]]},
                    {"kind": "examples", "examples": [{"title": HOSTILE, "text": HOSTILE}]},
                    {"kind": HOSTILE, "x": HOSTILE},
                ),
            ),
        ),
    )


def large_report(n: int = 10_000) -> Report:
    rng = random.Random(1)
    names = ("baseline", "few-shot", "small rank", "large rank")
    words = (
        "meet",
        "cinema",
        "Friday",
        "sister",
        "ticket",
        "train",
        "late",
        "dinner",
        "bring",
        "keys",
        "doctor",
        "rain",
    )

    def text(k: int) -> str:
        return " ".join(rng.choices(words, k=k))

    def pair(i: int) -> Pair:
        scores = [rng.random() for _ in names]
        answers = {name: {"text": text(20), "score": s, "error": None} for name, s in zip(names, scores, strict=True)}
        return Pair(f"row-{i}", text(90), (text(20),), answers, delta=scores[-1] - scores[0])

    systems = (
        system("baseline", "baseline", 0.15),
        system("few-shot", "control", 0.22),
        system("small rank", "tuned", 0.43),
        system("large rank", "tuned", 0.47, run="run-b"),
    )
    return sample_report(systems=systems, pairs=tuple(pair(i) for i in range(n)))
