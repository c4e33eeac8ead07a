"""200 SAMSum prompts answered by the embedded model: ftkit against the usual loop and against a hand-written one.

    python benchmarks/evaluation.py [--rows 200] [--pairs 5] [--method qlora]

- usual: a transformers pipeline that is handed lists of 4 prompts, which it answers one by one.
- hand-written: prompts sorted by length, batches of 32, `model.generate`.

The model is in 4-bit NF4, as the recipes train it, or with `--method lora` in fp32. All are greedy and stop at 64 tokens. Each measurement is a process of its own, with the clock started after the
imports and one thread; they take turns.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from _samsum import (
    NEW_TOKENS,
    PROMPT,
    model,
    prepared,
    quiet,
    ratio,
    rows,
    shown,
    source,
    table,
    with_cpu,
    write_rows,
)
from _scale import measured, middle, report, setup


def usual(prompts: list[str], quantised: bool) -> list[str]:
    import torch
    from _peer import load
    from transformers import AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained(model())
    loaded = load(model(), quantised, torch.float32)
    generator = pipeline("text-generation", model=loaded, tokenizer=tokenizer)
    texts = []
    for i in range(0, len(prompts), 4):
        for (answer,) in generator(
            prompts[i : i + 4], max_new_tokens=NEW_TOKENS, do_sample=False, return_full_text=False
        ):
            texts.append(answer["generated_text"].strip())
    return texts


def by_hand(prompts: list[str], quantised: bool) -> list[str]:
    import torch
    from _peer import load
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model(), padding_side="left")
    loaded = load(model(), quantised, torch.float32)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), 32):
        batch = order[start : start + 32]
        inputs = tokenizer([prompts[i] for i in batch], return_tensors="pt", padding=True)
        with torch.inference_mode():
            output = loaded.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        answers = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, answer in zip(batch, answers, strict=True):
            texts[i] = answer.strip()
    return texts


def ours(directory: str) -> list[str]:
    """What `ftkit run` does in its baseline stage up to the scores: every batch is on disk when it is done."""
    from ftkit.directory import RunDirectory
    from ftkit.records import Measurement
    from ftkit.run.measure import generate

    run = RunDirectory.open(directory)
    backend = run.recipe.backend.make()
    base = backend.base_model()
    with backend.load(base, run) as session:
        generate(run, backend, session, Measurement("baseline", base), lambda *_: None)
    return [p.text for p in run.predictions("baseline")]


def child(who: str, place: str, count: int, quantised: bool) -> None:
    # Loaded before the clock starts, for all of them.
    import bitsandbytes  # noqa: F401
    import ftkit_trl._generate  # noqa: F401
    from transformers import AutoTokenizer, pipeline  # noqa: F401

    quiet()
    start = AutoTokenizer.from_pretrained(model()).bos_token  # which ftkit's plain template puts there, too
    prompts = [start + PROMPT.format(dialogue=row["dialogue"]) for row in rows("test", count)]

    def work() -> dict[str, Any]:
        return {
            "texts": ours(place) if who == "ours" else {"usual": usual, "by_hand": by_hand}[who](prompts, quantised)
        }

    report(with_cpu(work))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--method", choices=("qlora", "lora"), default="qlora", help="4-bit NF4, or fp32")
    parser.add_argument("--child", nargs=2)
    options = parser.parse_args()
    if options.child:
        child(*options.child, options.rows, options.method == "qlora")
        return
    names = {
        "usual": "transformers pipeline, lists of 4",
        "by_hand": "hand-written, sorted, batches of 32",
        "ours": "ftkit",
    }
    found: dict[str, list[dict[str, Any]]] = {who: [] for who in names}
    with tempfile.TemporaryDirectory() as folder:
        data = write_rows(Path(folder, "data"), train=4, validation=4, test=options.rows)
        for _ in range(options.pairs):
            for who in names:
                place = (
                    prepared(data, Path(folder, "runs"), f"trl-sft-{options.method}").dir if who == "ours" else folder
                )
                found[who].append(
                    shown(
                        who,
                        measured(__file__, "--rows", options.rows, "--method", options.method, "--child", who, place),
                    )
                )
    print(
        f"{setup('ftkit', 'torch', 'transformers')}; {source()}, {options.rows} prompts; the embedded model, {options.method}"
    )
    print(f"median of {options.pairs}, taking turns; ratios are medians of the pairs\n")
    ours_first = found["ours"][0]["texts"]
    lines = [
        (name, *(f"{middle(found[who], key):.1f}" for key in ("seconds", "cpu")),
         *(ratio(found[who], found["ours"], key) for key in ("seconds", "cpu")), f"{middle(found[who], 'peak_mb'):.0f}",
         sum(a == b for a, b in zip(found[who][0]["texts"], ours_first, strict=True)))
        for who, name in names.items()
    ]  # fmt: skip
    print(
        table(
            ("what", "wall s", "CPU s", "wall, times ftkit's", "CPU, times ftkit's", "peak MB", "answers equal"), lines
        )
    )


if __name__ == "__main__":
    main()
