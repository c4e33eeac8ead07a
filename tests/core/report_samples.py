"""Reports made by hand for the tests of rendering."""

from __future__ import annotations

import random
from dataclasses import replace

from ftkit.records import Curve, Delta, Differing, Distribution, Headline, Metric, Pair, Report, Section, System
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


STRIP = (
    {"label": "Model", "value": "acme/tiny-1b, 1.1 B", "note": "bfloat16"},
    {"label": "Method", "value": "some-trainer", "note": "lr=0.004 r=16, 300 steps"},
    {"label": "Data", "value": "4,800 train · 64 validation · 60 test", "note": "no leaks found"},
    {"label": "Time and price", "value": "1 h 12 min, $0.42", "note": "NVIDIA A10G"},
    {"label": "Seeds", "value": "1", "note": "training noise not measured"},
)


def spread(pairs: tuple[Pair, ...], a: str, b: str) -> Distribution:
    """The distribution of two systems' scores, each fifth row wrong in a second metric."""
    scored = [p for p in pairs if p.delta is not None]
    scored.sort(key=lambda p: -(p.delta or 0))
    edges = tuple(i / 20 for i in range(21))

    def counts(name: str) -> tuple[int, ...]:
        values = [p.answers[name]["score"] for p in scored]
        return tuple(sum(min(int(v * 20), 19) == i for v in values) for i in range(20))

    gains = tuple({"id": p.example_id, "gain": p.delta, "right": i % 5 != 0} for i, p in enumerate(scored))
    n_better = sum((p.delta or 0) > 0 for p in scored)
    return Distribution(
        "overlap1", a, b, edges, {a: counts(a), b: counts(b)}, gains, n_better=n_better, n_worse=len(scored) - n_better,
        second="all_right", n_right=sum(g["right"] for g in gains), n_second=len(gains), high=0.8, n_high_wrong=2,
    )  # fmt: skip


def led_report(**more: object) -> Report:
    """One run with everything that leads its page: headline, strip, distribution, a kept checkpoint."""
    report = sample_report()
    curves = tuple(replace(c, chosen=200.0) for c in report.curves)
    headline = Headline(
        "Fine-tuning helped: overlap1 15.2 → 47.2",
        ("On 200 test rows the tuned model scores 32.0 points higher in overlap1 than the base model.",),
        "But 12 of 59 answers still fail all_right, and 2 of these score 80 or more.",
        STRIP,
    )
    found = {"headline": headline, "distribution": spread(report.pairs, "baseline", "tuned"), "curves": curves}
    return replace(report, **{**found, **more})  # type: ignore[arg-type]


def several_report() -> Report:
    """Six runs of two settings by three seeds, and a third recipe with one seed: systems called by what differs."""
    names = ("lr=0.004 r=8", "lr=0.0004 r=16", "lr=0.01 r=8")
    values = (0.4719, 0.4212, 0.2001)
    metrics = ("overlap1", "overlap2", "words", "metric_four", "metric_five", "six", "seven", "eight", "nine")

    def trained(name: str, value: float, first: int, n: int) -> System:
        seeds = tuple(
            {"seed": 42 + i, "runs": [f"run-{first + i}"], "metrics": {"overlap1": value + (i - 1) / 40}}
            for i in range(n)
        )
        deviation = {"overlap1": {"sd": 0.02, "min": value - 0.025, "max": value + 0.025}} if n > 1 else {}
        return system(name, "tuned", value, run=f"run-{first}", seeds=seeds, spread=deviation, differs=name)

    systems = (
        system("baseline", "baseline", 0.1523, run="run-0"),
        *(trained(name, value, 3 * i, n) for i, (name, value, n) in enumerate(zip(names, values, (3, 3, 1), strict=True))),
    )  # fmt: skip
    between = [(0, 1, "worse"), (0, 2, "scored lower"), (1, 2, "scored lower")]
    deltas = (
        *(Delta("baseline", n, "overlap1", v - 0.1523, v - 0.18, v - 0.12, 0.001, 200, 0.004, "better") for n, v in zip(names, values, strict=True)),
        *(Delta(names[i], names[j], "overlap1", values[j] - values[i], values[j] - values[i] - 0.03, values[j] - values[i] + 0.03, 0.01, 200, 0.02, word) for i, j, word in between),
    )  # fmt: skip
    runs = tuple(
        {"id": f"run-{i}", "name": f"chats-seed{42 + i % 3}", "label": f"{names[i // 3]} seed {42 + i % 3}", "status": "done",
         "started": "2026-11-23T15:42:10Z", "stages": [{"name": "train", "status": "done", "seconds": 61.0}],
         "lock": {"hardware": {"cpu": "AMD EPYC", "cores": 2, "gpus": []}, "packages": {f"package-{k}": "1.0" for k in range(120)}}}
        for i in range(7)
    )  # fmt: skip
    curves = tuple(
        Curve(str(run["label"]), name, "loss" if name == "loss" else "validation metrics",
              tuple([s, 3.1 * 0.98**s + 0.02 * i + 0.01 if name == "loss" else 0.1 + 0.001 * s * (1 + i / 9)] for s in range(0, 301, 50)))
        for i, run in enumerate(runs)
        for name in ("loss", *metrics)
    )  # fmt: skip
    answers = {"baseline": {"text": "no", "score": 0.1}, names[0]: {"text": "yes", "score": 0.5}}
    pairs = tuple(Pair(f"test/{i} ä", f"question {i}", ("yes",), answers, delta=0.4 - i / 100) for i in range(60))
    rows = (
        {"key": "backend.learning_rate", "short": "lr", "values": ["0.004", "0.0004", "0.01"]},
        {"key": "backend.lora_r", "short": "r", "values": ["8", "16", "8"]},
    )
    return sample_report(
        title="chats (3 training seeds) vs chats", systems=systems, deltas=deltas, curves=curves, pairs=pairs, runs=runs,
        headline=Headline("Best of 3: lr=0.004 r=8, overlap1 15.2 → 47.2 (+32.0); all beat the base model", ("It scores higher than each of the other 2.",), "", STRIP),
        distribution=spread(pairs, "baseline", names[0]), differing=Differing(names, rows), sections=(), warnings=(),
    )  # fmt: skip


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
    said = {"text": HOSTILE, "score": 0.5, "error": None, "answer": HOSTILE, "reason": HOSTILE}
    answers = {
        HOSTILE: {**said, "values": {"overlap1": 0.5, HOSTILE: 0.0, "</b>": 3.0}},
        f"{HOSTILE} 2": {**said, "text": f"new {HOSTILE}", "score": 0.6, "values": {HOSTILE: 1.0, "</b>": 4.0}},
    }
    pair = Pair(HOSTILE, HOSTILE, (HOSTILE,), answers, delta=0.1)
    cell = {"value": 0.4, "low": 0.3, "high": 0.5, "n": 4, "method": HOSTILE, "caution": HOSTILE}
    group = {"name": HOSTILE, "n": 4, "few": HOSTILE, "systems": dict.fromkeys(answers, cell)}
    slices = (
        {"by": HOSTILE, "unit": HOSTILE, "groups": [group, group], "left_out": None},
        {"by": HOSTILE, "unit": HOSTILE, "groups": [], "left_out": HOSTILE},
    )
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
        slices=slices,
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
        headline=Headline(HOSTILE, (HOSTILE,), HOSTILE, ({"label": HOSTILE, "value": HOSTILE, "note": HOSTILE},)),
        distribution=Distribution(
            "overlap1",
            HOSTILE,
            f"{HOSTILE} 2",
            (0.0, 0.5, 1.0),
            {HOSTILE: (1, 2)},
            ({"id": HOSTILE, "gain": 0.1, "right": False},),
            n_better=1,
            second=HOSTILE,
            n_second=1,
        ),
        differing=Differing(
            (HOSTILE, f"{HOSTILE} 2"), ({"key": HOSTILE, "short": HOSTILE, "values": [HOSTILE, None]},)
        ),
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


def facts_report() -> Report:
    """Three systems with yes-or-no metrics, reasons, read answers and every fault that an answer may have."""
    rng = random.Random(11)

    def answer(i: int, who: int, when: int, text: str, score: float) -> dict[str, object]:
        values = {
            "overlap1": score,
            "who": who,
            "when": when,
            "overlap2": score / 2,
            "words": len(text.split()),
            "same_everywhere": 1.0,
        }
        missing = [name for name, right in (("who", who), ("when", when)) if not right]
        reason = {"reason": f"not found: {', '.join(missing)}"} if missing else {}
        return {"text": text, "score": score, "error": None, "values": values, "answer": f"{i % 12 + 1} pm", **reason}

    pairs = []
    for i in range(40):
        spoken = f"Anna: cinema on Friday?\nBen: Saturday at {i % 12 + 1} pm works, I'll get ticket number {i}."
        target = f"Anna and Ben will go to the cinema on Saturday at {i % 12 + 1} pm with ticket number {i}."
        answers = {
            "baseline": answer(i, int(i % 7 == 0), int(i % 10 == 0), "i have to run now", rng.uniform(0, 0.4)),
            "control": answer(i, 1, 0, spoken.split("\n")[0], rng.uniform(0.1, 0.6)),
            "tuned": answer(i, int(i % 5 != 3), int(i % 4 != 1), target.replace("Ben", "Tom"), rng.uniform(0.25, 1)),
        }
        pairs.append(Pair(f"row-{i}", spoken, (target,), answers))
    pairs[6].answers["tuned"]["finish_reason"] = "length"
    pairs[7].answers["tuned"] |= {"text": " "}
    pairs[8].answers["tuned"] |= {"text": pairs[8].input}
    pairs[9].answers["tuned"] |= {"score": pairs[9].answers["baseline"]["score"]}
    pairs[9].answers["tuned"]["values"]["overlap1"] = pairs[9].answers["baseline"]["score"]
    pairs = [replace(p, delta=p.answers["tuned"]["score"] - p.answers["baseline"]["score"]) for p in pairs]
    roles = {"baseline": 0.2, "control": 0.35, "tuned": 0.6}

    def group(name: str, n: int, few: str | None = None) -> dict[str, object]:
        cell = {"value": 0.4, "low": 0.3, "high": 0.5, "n": n, "method": "95 % interval", "caution": few}
        return {"name": name, "n": n, "few": few, "systems": dict.fromkeys(roles, cell)}

    slices = (
        {
            "by": "input length",
            "unit": "characters",
            "groups": [group("61 to 62", 20), group("63", 20)],
            "left_out": None,
        },
        {
            "by": "topic",
            "unit": "",
            "groups": [group("travel", 36), group("食べ物", 4, "from 4 examples")],
            "left_out": None,
        },
        {"by": "key", "unit": "", "groups": [], "left_out": "hardly two rows share a value"},
    )
    return sample_report(
        systems=tuple(system(name, name, value) for name, value in roles.items()), pairs=tuple(pairs), slices=slices
    )  # fmt: skip


def japanese_report() -> Report:
    """Dialogues and summaries in Japanese; the tuned model mistakes one day for another in each."""
    pairs = []
    for i in range(24):
        time = f"{i % 12 + 1}時"
        spoken = (
            f"結衣: 金曜日の映画、来られる?\n大輔: 無理、妹が来るんだ。\n結衣: じゃあ土曜日の{time}は?\n大輔: いいよ。"
        )
        target = f"結衣と大輔は土曜日の{time}に映画館へ行きます。"
        answers = {
            "baseline": {
                "text": "はい、わかりました。",
                "score": 0.05 + i / 500,
                "error": None,
                "values": {"when": 0.0},
            },
            "tuned": {
                "text": target.replace("土", "日"),
                "score": 0.9 + i / 300,
                "error": None,
                "values": {"when": i % 2},
            },
        }
        delta = answers["tuned"]["score"] - answers["baseline"]["score"]  # type: ignore[operator]
        pairs.append(Pair(f"ja-{i}", spoken, (target,), answers, delta))  # type: ignore[arg-type]
    return sample_report(title="会話の要約: 微調整は役に立つか", pairs=tuple(pairs))


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
