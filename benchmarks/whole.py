"""Baseline, training and evaluation as tutorial scripts do them, against `ftkit run` with the same settings.

    python benchmarks/whole.py [--rows 200] [--steps 60] [--pairs 5]

`peer` measures the base model prompt by prompt, trains with padded batches of 4, and measures the tuned model
prompt by prompt, all in one process. ftkit writes a report besides. Whole processes, taking turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _samsum import (
    LORA,
    NEW_TOKENS,
    PROMPT,
    SETTINGS,
    model,
    quiet,
    ratio,
    recipe,
    shown,
    source,
    table,
    with_cpu,
    write_rows,
)
from _scale import measured, middle, report, setup


def peer(data: str, steps: str) -> dict[str, Any]:
    """The tutorial: 4-bit base, answers one by one, SFTTrainer, answers one by one, ROUGE."""
    import torch
    from _peer import load, trainer
    from rouge_score.rouge_scorer import RougeScorer
    from transformers import AutoTokenizer, pipeline

    test = [json.loads(line) for line in Path(data, "test.jsonl").read_text(encoding="utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(model())
    base = load(model(), True, torch.float32)
    for module in base.modules():
        # Where a CPU has AVX512-bf16, bitsandbytes would take another kernel from the first measurement on, through
        # which no gradient passes: the tutorial's training would learn nothing.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False

    def evaluate(asked: Any) -> float:
        generator = pipeline("text-generation", model=asked, tokenizer=tokenizer)
        scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
        total = 0.0
        for row in test:
            prompt = tokenizer.bos_token + PROMPT.format(dialogue=row["dialogue"])
            answer = generator(prompt, max_new_tokens=NEW_TOKENS, do_sample=False, return_full_text=False)
            total += scorer.score(row["summary"], answer[0]["generated_text"].strip())["rouge1"].fmeasure
        return total / len(test)

    before = evaluate(base)
    made = trainer(base, tokenizer, data, LORA, max_steps=int(steps), **SETTINGS)
    made.train()
    made.save_model()
    return {"before": before, "after": evaluate(made.model.eval())}


def ours(data: Path, out: Path, steps: int) -> dict[str, Any]:
    """`ftkit run` in a process of its own; no other run's baseline is used."""
    file = out / "recipe.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(recipe(data, "trl-sft-qlora", max_steps=steps)))
    line = [sys.executable, "-m", "ftkit", "run", str(file), "--out", str(out), "--no-reuse", "--json"]
    began = time.perf_counter()
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    result = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    metrics = result["metrics"]
    stages = json.loads(Path(result["run"], "run.json").read_text())["stages"]
    return {
        "seconds": time.perf_counter() - began,
        "peak_mb": usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3),
        "cpu": usage.ru_utime + usage.ru_stime,
        "before": metrics["baseline"]["rouge1"]["value"],
        "after": metrics["tuned"]["rouge1"]["value"],
        "stages": {stage["name"]: stage["seconds"] for stage in stages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--child", nargs=2)
    options = parser.parse_args()
    if options.child:
        quiet()
        report(with_cpu(lambda: peer(*options.child)))
        return

    found: dict[str, list[dict[str, Any]]] = {"tutorial script": [], "ftkit run": []}
    with tempfile.TemporaryDirectory() as folder:
        data = write_rows(Path(folder, "data"), train=4 * options.steps, validation=4, test=options.rows)
        for i in range(options.pairs):
            found["ftkit run"].append(shown("ftkit run", ours(data, Path(folder, f"runs-{i}"), options.steps)))
            began = time.perf_counter()
            theirs = measured(__file__, "--child", data, options.steps)
            found["tutorial script"].append(shown("tutorial", {**theirs, "seconds": time.perf_counter() - began}))
    packages = ("ftkit", "torch", "transformers", "trl", "peft", "bitsandbytes")
    print(
        f"{setup(*packages)}; {source()}, {options.rows} test rows, {options.steps} steps of 4; the embedded model, QLoRA"
    )
    print(f"median of {options.pairs}, taking turns\n")
    lines = [
        (name, f"{middle(runs, 'seconds'):.0f}", f"{middle(runs, 'cpu'):.0f}",
         *(ratio(runs, found["ftkit run"], key) for key in ("seconds", "cpu")), f"{middle(runs, 'peak_mb'):.0f}",
         f"{100 * middle(runs, 'before'):.1f}", f"{100 * middle(runs, 'after'):.1f}")
        for name, runs in found.items()
    ]  # fmt: skip
    heads = ("wall s", "CPU s", "wall, times ftkit's", "CPU, times ftkit's", "peak MB", "ROUGE-1 before", "after")
    print(table(("what", *heads), lines))
    print(f"\nftkit's stages, seconds: {found['ftkit run'][0]['stages']}")


if __name__ == "__main__":
    main()
