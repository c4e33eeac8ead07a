"""Compare the memory estimator with published peaks of fine-tuning runs, which are read from a folder.

    python benchmarks/memory.py FOLDER [--fit] [--markdown] [--json]

FOLDER holds models.json (shapes by name, keys as in a config of transformers) and published.jsonl (one run a line:
source, model, method, micro_batch_size, sequence_len, lora_r, lora_layers, peak, unit). The rows are split in two
halves by a hash of the row: the constants of `ftkit_trl._memory` are fitted to one half (--fit looks for them), and
judged on the other.

How a row is read: the peaks are of PyTorch's allocator, without the CUDA context. Other trainers than TRL build the
logits of all tokens at once; with `bf16` they train in 16 bits, where TRL keeps trained weights in 32 bits. torchtune's
rows do not say whether activations were kept or computed again: on a GPU of 24 GB they can only have been computed
again, and the loss is made in chunks.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ftkit_trl import _memory
from ftkit_trl._memory import NF4, NF4_DOUBLE, Setting, Shape, training_memory

_UNITS = {"GB": 1e9, "GiB": 2**30}
_LAYERS = {
    "q,v": ["q_proj", "v_proj"],
    "mlp": ["gate_proj", "up_proj", "down_proj"],
    "all-linear": "all-linear",
    "all-linear and head": "all-linear",
}


@dataclass(frozen=True)
class Row:
    """One published run: what it is, its peak in bytes, and whether the constants are fitted to it."""

    facts: dict[str, Any]
    peak: float
    fitted: bool

    @property
    def what(self) -> str:
        f = self.facts
        lora = f", r {f['lora_r']} on {f['lora_layers']}" if f["lora_r"] else ""
        gpu = "" if lora or f["lora_layers"] or "torchtune" not in f["source"] else f",{f['source'].split(',')[1]}"
        return f"{f['model']}, {f['method']}{lora}, {f['micro_batch_size']} x {f['sequence_len']}{gpu}"


def read(folder: Path) -> tuple[dict[str, Any], list[Row]]:
    models = json.loads((folder / "models.json").read_text())
    rows = []
    for line in (folder / "published.jsonl").read_text().splitlines():
        facts = json.loads(line)
        peak = facts["peak"]
        largest = max(float(part) for part in peak.split("/")) if isinstance(peak, str) else float(peak)
        key = json.dumps({k: v for k, v in facts.items() if k not in ("peak", "unit", "time")}, sort_keys=True)
        fitted = hashlib.sha256(key.encode()).digest()[0] % 2 == 0
        rows.append(Row(facts, largest * _UNITS[facts["unit"]], fitted))
    return models, rows


@functools.cache
def _shape(config: str, layers: str | None) -> Shape:
    import torch
    from ftkit_trl._shape import shape_of
    from transformers import AutoModelForCausalLM, LlamaConfig

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**json.loads(config)))
    return shape_of(model, _LAYERS.get(layers, ["q_proj", "v_proj"]) if layers != "full" else None)


def estimated(row: Row, models: dict[str, Any]) -> int:
    """Return the estimate for the run of a row, in bytes, without the CUDA context."""
    f = row.facts
    full = f["method"].startswith("full")
    shape = _shape(json.dumps(models[f["model"]]), "full" if full else f["lora_layers"])
    tune = "torchtune" in f["source"]
    said = f["source"].lower()
    checkpointing = "checkpointing" in said and "no checkpointing" not in said
    setting = Setting(
        tokens=f["micro_batch_size"] * f["sequence_len"],
        longest=f["sequence_len"],
        adapter=not full,
        lora_r=f["lora_r"] or 8,
        four_bit=(NF4_DOUBLE if "double" in f["method"] else NF4) if "qlora" in f["method"] else None,
        master=2,
        checkpointing=checkpointing or (tune and "4090" in said),
        whole_logits=not tune,
        context=0,
    )
    return training_memory(shape, setting).total


def errors(rows: list[Row], models: dict[str, Any]) -> list[float]:
    return [estimated(row, models) / row.peak - 1 for row in rows]


def fit(rows: list[Row], models: dict[str, Any]) -> None:
    """Print the constants for which the sum of the fitted half's errors is smallest, with none below -4 %."""
    found = []
    for spread, four_bit in itertools.product([1 + n / 40 for n in range(25)], [n / 10 for n in range(26)]):
        _memory._SPREAD, _memory._FOUR_BIT = spread, four_bit
        each = errors(rows, models)
        if min(each) >= -0.04:
            found.append((sum(map(abs, each)), max(each), spread, four_bit))
    for total, worst, spread, four_bit in sorted(found)[:5]:
        print(f"_SPREAD {spread:.3f}  _FOUR_BIT {four_bit:.1f}: sum of errors {total:.3f}, largest {worst:.3f}")


def _halves(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    halves = [("fitted", [r for r in rows if r.fitted]), ("held out", [r for r in rows if not r.fitted])]
    return [(name, half) for name, half in halves if half]


def _numbers(found: list[float]) -> dict[str, float]:
    return {"n": len(found), "median": median(abs(e) for e in found), "lowest": min(found), "highest": max(found)}


def summary(name: str, found: list[float]) -> str:
    sizes = sorted(abs(e) for e in found)
    return (
        f"{name}: {len(found)} rows, median error {median(sizes):.0%}, largest {max(sizes):.0%}, "
        f"lowest estimate {min(found):+.0%}, highest {max(found):+.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--markdown", action="store_true", help="print the table of errors for docs/memory.md")
    parser.add_argument("--json", action="store_true", help="print the errors of both halves as JSON")
    arguments = parser.parse_args()
    models, rows = read(arguments.folder)
    if arguments.fit:
        fit([row for row in rows if row.fitted], models)
        return
    if arguments.json:
        print(json.dumps({name: _numbers(errors(half, models)) for name, half in _halves(rows)}))
        return
    for name, half in _halves(rows):
        found = errors(half, models)
        for row, error in zip(half, found, strict=True):
            bar = " | " if arguments.markdown else "  "
            mark = "| " if arguments.markdown else ""
            end = " |" if arguments.markdown else ""
            print(f"{mark}{name}{bar}{row.what}{bar}{error:+.0%}{end}")
        print(summary(name, found))


if __name__ == "__main__":
    main()
