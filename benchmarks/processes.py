"""The training rate of one and of two processes, with the same examples in each step.

    python benchmarks/processes.py [--steps 12] [--times 3] [--engines ddp zero2 zero3 fsdp] [--method lora|full]
    python benchmarks/processes.py --steps 3 --times 1 --engines ddp --tiny          does it run?

A Llama of 25 million weights, random values, fp32; 16 examples a step in forward passes of 4. Each process computes in one
thread, or on one GPU. `one process` takes turns with the others. A rate is the tokens of the examples (no padding) a second, of the
steps after the first two. Twice the rate of one process is the most that two can reach; `efficiency` is the share of it.
The losses must agree: the table shows the largest relative difference from one process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _samsum import model, one_thread, prepared, source, table, write_rows
from _scale import setup

SIZES = {
    "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 2048, "max_position_embeddings": 1024,
}  # fmt: skip
TINY = {
    **SIZES,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_key_value_heads": 8,
    "head_dim": 8,
}
ENGINES: dict[str, dict[str, Any] | None] = {
    "one process": None,
    "ddp": {"processes": 2},
    "zero2": {"processes": 2, "deepspeed": "zero2"},
    "zero3": {"processes": 2, "deepspeed": "zero3"},
    "fsdp": {"processes": 2, "fsdp": 2},
}
WARM = 2  # steps that do not count


def make_model(folder: Path, sizes: dict[str, int]) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    made = LlamaForCausalLM(
        LlamaConfig(**sizes, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    )
    made.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model()).save_pretrained(folder)


def trained(data: Path, base: Path, out: Path, method: str, steps: int, engine: str) -> dict[str, Any]:
    """Train in a process of its own; return tokens a second after the first steps, and the loss of each step."""
    more = {} if method == "full" else {"lora_r": 16, "lora_alpha": 32, "lora_target_modules": ["q_proj", "v_proj"]}
    run = prepared(
        data, out / engine.replace(" ", "-"), f"trl-sft-{method}", base_model=str(base), launch=ENGINES[engine],
        global_batch_size=16, max_steps=steps + WARM, logging_steps=1, save_steps=10_000, learning_rate=1e-4,
        sample_packing=False, group_by_length=False, **more,
    )  # fmt: skip
    line = [sys.executable, "-m", "ftkit.run.worker", str(run.dir)]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = [row for row in run.log_rows() if row["event"] == "step"]
    first, last = rows[WARM - 1], rows[-1]
    rate = (last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"])
    print(f"  {engine}: {rate:.0f} tokens/s", file=sys.stderr, flush=True)
    return {"rate": rate, "losses": [row["loss"] for row in rows]}


def difference(losses: list[float], others: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(losses, others, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--engines", nargs="+", choices=[*ENGINES][1:], default=[*ENGINES][1:])
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    one_thread()
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_model(place / "model", TINY if asked.tiny else SIZES)
        data = write_rows(place / "data", most=900, train=16 * (asked.steps + WARM), validation=1, test=1)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in ("one process", *asked.engines)}
        for turn in range(asked.times):
            for engine in found:
                found[engine].append(
                    trained(data, place / "model", place / str(turn), asked.method, asked.steps, engine)
                )
    one = found["one process"]
    lines = []
    for engine, runs in found.items():
        ratio = statistics.median(a["rate"] / b["rate"] for a, b in zip(runs, one, strict=True))
        apart = max(difference(a["losses"], b["losses"]) for a, b in zip(runs, one, strict=True))
        rate = statistics.median(run["rate"] for run in runs)
        share = f"{ratio / 2:.0%}" if engine != "one process" else ""
        lines.append((engine, f"{rate:.0f}", f"{ratio:.2f}", share, f"{apart:.1e}"))
    print(setup("torch", "transformers", "trl", "accelerate"))
    print(f"{asked.method}, {asked.steps} steps of 16 examples of {source()}, {asked.times} times, medians\n")
    print(table(("two processes", "tokens/s", "x one", "efficiency", "largest difference of the loss"), lines))


if __name__ == "__main__":
    main()
