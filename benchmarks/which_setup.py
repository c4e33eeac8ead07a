"""Write docs/which-setup.md: which method fits which model on which GPU, by the memory estimator.

python benchmarks/which_setup.py           # print the page
python benchmarks/which_setup.py --write   # write it into docs/
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from ftkit_trl._memory import NF4_DOUBLE, Memory, Setting, Shape, answering_memory, training_memory
from ftkit_trl._shape import shape_of
from transformers import AutoModelForCausalLM, LlamaConfig

from ftkit.machines import GPUS

PAGE = Path(__file__).parents[1] / "docs" / "which-setup.md"
# hidden size, layers, heads, key-value heads, inner size, vocabulary, whether embeddings and output layer are one
MODELS = {
    "SmolLM2 135M": (576, 30, 9, 3, 1536, 49152, True),
    "Qwen2.5 0.5B": (896, 24, 14, 2, 4864, 151936, True),
    "Llama 3.2 1B": (2048, 16, 32, 8, 8192, 128256, True),
    "Llama 3.2 3B": (3072, 28, 24, 8, 8192, 128256, True),
    "Mistral 7B": (4096, 32, 32, 8, 14336, 32768, False),
    "Llama 3.1 8B": (4096, 32, 32, 8, 14336, 128256, False),
    "Qwen2.5 14B": (5120, 48, 40, 8, 13824, 152064, False),
    "Qwen2.5 32B": (5120, 64, 40, 8, 27648, 152064, False),
    "Llama 3.3 70B": (8192, 80, 64, 8, 28672, 128256, False),
}
METHODS = {"QLoRA": (True, NF4_DOUBLE), "LoRA": (True, None), "all weights": (False, None)}
LAYOUTS = {
    "4 x 512": {"tokens": 4 * 512, "longest": 512},
    "1 x 512, checkpointing": {"tokens": 512, "longest": 512, "checkpointing": True},
    "1 x 2048, checkpointing": {"tokens": 2048, "longest": 2048, "checkpointing": True},
}
CARDS = ("t4", "a10g", "a100", "a6000", "a100-80gb", "h200")  # from small to large, each often rented
ROOM = 0.95

HEAD = """# Which setup for which model

Estimated memory of one GPU in GB (10^9 bytes), and the smallest of these GPUs that has it: {cards}.
`benchmarks/which_setup.py` computes the table with the estimator of `ftkit check`; [memory.md](memory.md) says how good
its estimates are. None of these rows was measured.

- LoRA and QLoRA: rank 16 on the query and value projections, as the recipes have it. QLoRA: NF4 with double quantisation.
- All weights: trained in mixed precision, with 32-bit AdamW. With `optimizer: adamw_bnb_8bit` it takes 6 bytes a weight
  less.
- `4 x 512`: four examples of 512 tokens in a forward pass. `1 x 512, checkpointing`: `micro_batch_size: 1` and
  `activation_checkpointing: true`; a step keeps its examples through `gradient_accumulation_steps`. The smallest GPU is
  that of this layout.

Your own recipe, on any GPU:

```
ftkit check recipe.yaml --gpu a10g
ftkit check recipe.yaml --gpu 4x24GB
```

"""


def shape(numbers: tuple[Any, ...], adapted: bool) -> Shape:
    hidden, layers, heads, groups, inner, vocabulary, tied = numbers
    config = LlamaConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=groups,
        intermediate_size=inner, vocab_size=vocabulary, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return shape_of(model, ["q_proj", "v_proj"] if adapted else None)


def needed(found: Shape, adapter: bool, four_bit: float | None, layout: dict[str, Any]) -> int:
    setting = Setting(adapter=adapter, lora_r=16, four_bit=four_bit, rows=8, prompt=layout["longest"] + 128, **layout)
    both: list[Memory] = [training_memory(found, setting), answering_memory(found, setting)]
    return max(m.total for m in both)


def page() -> str:
    lines = [f"| model | method | {' | '.join(LAYOUTS)} | smallest GPU |", f"|---|---|{'--:|' * len(LAYOUTS)}---|"]
    for model, numbers in MODELS.items():
        shapes = {adapted: shape(numbers, adapted) for adapted in (True, False)}
        for method, (adapter, four_bit) in METHODS.items():
            sizes = [needed(shapes[adapter], adapter, four_bit, layout) for layout in LAYOUTS.values()]
            cells = [f"{n / 1e9:.1f}" if n < 1e11 else f"{n / 1e9:.0f}" for n in sizes]
            fitting = (name for name in CARDS if sizes[1] <= ROOM * GPUS[name] * 2**20)
            lines.append(f"| {model} | {method} | {' | '.join(cells)} | {next(fitting, 'several GPUs')} |")
    cards = ", ".join(f"{name} ({GPUS[name] * 2**20 / 1e9:.0f} GB)" for name in CARDS)
    return HEAD.format(cards=cards) + "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")
