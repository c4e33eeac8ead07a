"""The architecture of recipes/samsum.yaml (Llama 3.2 1B, random weights) on one GPU: ftkit against bare TRL.

    python benchmarks/gpu.py [--steps 30] [--times 3]      on a CUDA GPU
    python benchmarks/gpu.py --tiny                        the same on a CPU with a model of toy size: does it run?

The recipe's settings: 4-bit QLoRA, batches of 4, 4 passes a step, 512 tokens at most. Text is SAMSum in the tokens
of the embedded model, which are about 1.6 times as many as Llama's own. `padded` is the recipe without packing.
Tokens are those of the examples, without padding.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from _peer import load, trainer
from _samsum import SETTINGS, model, prepared, quiet, ratio, source, table, write_rows
from _scale import measured, middle, report, setup

LLAMA = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128_256, "max_position_embeddings": 131_072,
}  # fmt: skip
TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 2048, "max_position_embeddings": 1024,
}  # fmt: skip
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
RECIPE = {
    "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.1, "learning_rate": 2e-4, "warmup_steps": 0,
    "gradient_accumulation_steps": 4, "logging_steps": 5,
}  # fmt: skip
LAYOUTS = {"padded": {"sample_packing": False, "group_by_length": False}, "packed": {"sample_packing": True}}


def make_model(folder: Path, sizes: dict[str, int]) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    made = LlamaForCausalLM(
        LlamaConfig(**sizes, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    )
    made.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model()).save_pretrained(folder)


class Watch:
    """Asks the GPU every quarter of a second how busy it is, while training continues."""

    def __enter__(self) -> Watch:
        import torch

        self.shares: list[int] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._ask, daemon=True)
        self.cuda = torch.cuda.is_available()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.thread.start()
        return self

    def _ask(self) -> None:
        line = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]
        while not self.stop.wait(0.25):
            self.shares.append(int(subprocess.run(line, capture_output=True, text=True, check=True).stdout))

    def __exit__(self, *_: object) -> None:
        import torch

        self.stop.set()
        if self.cuda:
            self.thread.join()
        self.peak_gb = torch.cuda.max_memory_allocated() / 1e9 if self.cuda else float("nan")
        self.busy = sum(self.shares) / len(self.shares) if self.shares else float("nan")


def bare_trl(data: str, folder: str, steps: str) -> dict[str, Any]:
    import torch
    from transformers import AutoTokenizer

    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    settings = {**SETTINGS, "learning_rate": 2e-4, "gradient_accumulation_steps": 4, "max_steps": int(steps)}
    made = trainer(load(folder, True, dtype), AutoTokenizer.from_pretrained(folder), data, LORA, **settings)
    with Watch() as watch:
        made.train()
    logs = made.state.log_history
    tokens = next(row["num_tokens"] for row in reversed(logs) if "num_tokens" in row)
    seconds = next(row["train_runtime"] for row in logs if "train_runtime" in row)
    return {"speed": tokens / seconds, "peak_gb": watch.peak_gb, "busy": watch.busy}


def ours(directory: str) -> dict[str, Any]:
    from ftkit.directory import RunDirectory

    run = RunDirectory.open(directory)
    with Watch() as watch:
        run.recipe.backend.make().train(run.task, run)
    end = run.log_rows()[-1]
    return {"speed": end["tokens"] / end["seconds"], "peak_gb": watch.peak_gb, "busy": watch.busy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--child", nargs="+")
    options = parser.parse_args()
    if options.child:
        who, *arguments = options.child
        quiet()
        report(lambda: {"ours": ours, "trl": bare_trl}[who](*arguments))
        return
    import torch

    if not torch.cuda.is_available() and not options.tiny:
        raise SystemExit("there is no CUDA GPU here; --tiny tries the script itself on a CPU")
    steps, times = (2, 1) if options.tiny else (options.steps, options.times)
    names = ("bare TRL, padded", *(f"ftkit, {name}" for name in LAYOUTS))
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        make_model(folder, TINY if options.tiny else LLAMA)
        data = write_rows(Path(temporary, "data"), train=16 * steps, validation=4, test=4)
        for _ in range(times):
            found[names[0]].append(measured(__file__, "--child", "trl", data, folder, steps))
            for name, layout in LAYOUTS.items():
                extra = {"base_model": str(folder), "max_steps": steps, **RECIPE, **layout}
                run = prepared(data, Path(temporary, "runs"), "trl-sft-qlora", **extra)
                found[f"ftkit, {name}"].append(measured(__file__, "--child", "ours", run.dir))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, toy sizes: says nothing about speed"
    print(f"{device}; {setup('ftkit', 'torch', 'transformers', 'trl', 'peft', 'bitsandbytes')}; {source()}")
    print(f"median of {times}, {steps} steps of 16 examples, taking turns\n")
    lines = [
        (name, f"{middle(runs, 'speed'):.0f}", ratio(runs, found[names[0]], "speed"), f"{middle(runs, 'peak_gb'):.1f}",
         f"{middle(runs, 'busy'):.0f} %")
        for name, runs in found.items()
    ]  # fmt: skip
    print(table(("what", "tokens/s", "times TRL's", "peak GB", "GPU busy"), lines))


if __name__ == "__main__":
    main()
