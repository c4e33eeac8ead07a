"""Shared by the benchmarks of training and answering: the rows, the model, and the recipe of the small comparisons."""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "samsum"
PROMPT = "{dialogue}\nSummary:"
NEW_TOKENS = 64
LORA = {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"]}
# Of TRL's script; `recipe` says the same in ftkit's words. At most 512 tokens a training example.
SETTINGS = {"per_device_train_batch_size": 4, "max_length": 512, "learning_rate": 1e-3}


def model() -> str:
    """Return the folder of the embedded model."""
    (place,) = importlib.util.find_spec("ftkit_quickstart").submodule_search_locations
    return str(Path(place, "model"))


def rows(split: str, count: int, most: int = 1 << 30) -> list[dict[str, str]]:
    """Return the first rows of SAMSum where it is at hand, else generated dialogues; `most` characters each, none empty."""
    file = FOLDER / f"{ {'train': 'train', 'validation': 'val', 'test': 'test'}[split] }.json"
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
    else:
        from ftkit_quickstart._dialogues import rows as generated

        found = generated(split, count, seed=0)
    whole = [row for row in found if row["dialogue"].strip() and len(row["dialogue"] + row["summary"]) <= most]
    return [{key: row[key] for key in ("id", "dialogue", "summary")} for row in whole[:count]]


def source() -> str:
    return "SAMSum" if FOLDER.exists() else "generated dialogues (SAMSum is not at hand)"


def write_rows(folder: Path, most: int = 1 << 30, **counts: int) -> Path:
    """Write SPLIT.jsonl for each split and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        lines = [json.dumps(row) + "\n" for row in rows(split, count, most)]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def recipe(data: Path, plugin: str, **options: Any) -> dict[str, Any]:
    """Return the recipe of these comparisons: the embedded model, the rows of `data`, batches of 4."""
    return {
        "name": "benchmark",
        "dataset": {"path": str(data), "columns": {"input": "dialogue", "target": "summary"}},
        "prompt": {"template": "{input}\nSummary:"},
        "backend": {
            "plugin": plugin,
            "base_model": "package:ftkit_quickstart/model",
            "chat_template": "plain",
            "lora_r": LORA["r"],
            "lora_alpha": LORA["lora_alpha"],
            "lora_target_modules": LORA["target_modules"],
            "learning_rate": SETTINGS["learning_rate"],
            "lr_scheduler": "cosine",
            "micro_batch_size": SETTINGS["per_device_train_batch_size"],
            "sequence_len": SETTINGS["max_length"],
            **options,
        },
        "generation": {"max_new_tokens": NEW_TOKENS, "temperature": 0},
        "evaluator": "rouge",
    }


def prepared(data: Path, out: Path, plugin: str, **options: Any) -> Any:
    """Return a run directory as it is after `prepare`: recipe and rows are there, nothing was computed."""
    from ftkit.console import Console
    from ftkit.recipe.load import load_recipe
    from ftkit.run.prepare import prepare

    (run,) = prepare([load_recipe(recipe(data, plugin, **options))], out, Console(silent=True))
    return run


def one_thread() -> None:
    """Let all children compute in one thread: then the processor time of a process says what it did."""
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")


def quiet() -> None:
    """Keep the libraries' own lines out of sight."""
    os.environ.update(TRANSFORMERS_VERBOSITY="error", PYTHONWARNINGS="ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def with_cpu(work: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Add the processor seconds (user and system) of the work: what a busy machine disturbs less than the clock."""

    def timed() -> dict[str, Any]:
        began = time.process_time()
        return {**work(), "cpu": time.process_time() - began}

    return timed


def shown(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Say on stderr what one process took, and return it."""
    print(f"  {name}: {found['seconds']:.1f} s, CPU {found['cpu']:.1f} s", file=sys.stderr, flush=True)
    return found


def ratio(runs: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]], key: str) -> str:
    """Return the median of the pairs' ratios."""
    return f"{statistics.median(a[key] / b[key] for a, b in zip(runs, base, strict=True)):.2f}"


def table(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    made = [f"| {' | '.join(header)} |", "|---" + "|--:" * (len(header) - 1) + "|"]
    return "\n".join([*made, *(f"| {' | '.join(map(str, line))} |" for line in lines)])
