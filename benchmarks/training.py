"""The train stage against a bare TRL script with the same settings: wall time and peak memory.

    python benchmarks/training.py [--rows 120] [--pairs 5] [--methods lora qlora]
    python benchmarks/training.py --layouts            what grouping and packing save

One pass over the rows in batches of 4, no metric in training, one thread: processor time can be compared on a
machine that does other things besides. Each measurement is a process of its own, from its imports on to the saved
adapter; they take turns. The script is in _peer.py; it gets the rows in the order that ftkit draws.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from _samsum import (
    LORA,
    SETTINGS,
    model,
    one_thread,
    prepared,
    quiet,
    ratio,
    recipe,
    rows,
    shown,
    source,
    table,
    with_cpu,
    write_rows,
)
from _scale import measured, middle, report, setup

PADDED = {"sample_packing": False, "group_by_length": False}
PLUGINS = {"lora": "trl-sft-lora", "qlora": "trl-sft-qlora"}


def peer(data: str, method: str) -> dict[str, Any]:
    import torch
    from _peer import load, trainer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model())
    loaded = load(model(), method == "qlora", torch.float32)
    settings = {**SETTINGS, "num_train_epochs": 1, "train_sampling_strategy": "sequential"}
    made = trainer(loaded, tokenizer, data, LORA, **settings)
    made.train()
    made.save_model()
    return {"tokens": next(row["num_tokens"] for row in reversed(made.state.log_history) if "num_tokens" in row)}


def ours(directory: str) -> dict[str, Any]:
    """The train stage of a run: what `ftkit run` does between baseline and evaluation."""
    from ftkit.directory import RunDirectory
    from ftkit.run.observers import follow

    run, clock = RunDirectory.open(directory), Clock()
    with follow(run.journal.path, clock, print):
        run.recipe.backend.make().train(run.task.for_training(), run)
    end = run.log_rows()[-1]
    return {"train_cpu": clock.cpu, **{key: end[key] for key in ("tokens", "pad_share", "layout")}}


class Clock:
    """Processor seconds between the log's lines `start` and `end`: the steps, without what is loaded before."""

    began = cpu = 0.0

    def __call__(self, row: dict[str, Any]) -> None:
        if row["event"] == "start":
            self.began = time.process_time()
        elif row["event"] == "end":
            self.cpu = time.process_time() - self.began


def in_our_order(run: Any, folder: Path) -> Path:
    """Write the rows in the order that ftkit draws: batches of like lengths would else be one side's luck."""
    from ftkit_trl._batches import Order

    folder.mkdir(exist_ok=True)
    train = [run.task.train[i] for batch in Order([1] * len(run.task.train), 4, run.seed).batches(0) for i in batch]
    lines = [json.dumps({"dialogue": e.input, "summary": e.targets[0]}) + "\n" for e in train]
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def compare(methods: list[str], count: int, pairs: int) -> None:
    for method in methods:
        found: dict[str, list[dict[str, Any]]] = {
            "TRL script": [],
            "ftkit, same batches": [],
            "ftkit, as it chooses": [],
        }
        with tempfile.TemporaryDirectory() as folder:
            # Of at most 900 characters, under 512 tokens: TRL cuts off the answers of longer ones, and leaves them out.
            data = write_rows(Path(folder, "data"), most=900, train=count, validation=4, test=4)
            for _ in range(pairs):
                for name, options in {"ftkit, same batches": PADDED, "ftkit, as it chooses": {}}.items():
                    run = prepared(data, Path(folder, "runs"), PLUGINS[method], **options)
                    found[name].append(shown(name, measured(__file__, "--child", "ours", str(run.dir))))
                found["TRL script"].append(
                    shown("TRL", measured(__file__, "--child", "peer", in_our_order(run, data / "peer"), method))
                )
        theirs = found["TRL script"]
        keys = ("seconds", "cpu", "peak_mb")
        lines = [
            (f"{method}: {name}", f"{middle(runs, 'tokens'):.0f}", *(f"{middle(runs, key):.{0 if key == 'peak_mb' else 1}f}" for key in keys),
             *(ratio(runs, theirs, key) for key in keys))
            for name, runs in found.items()
        ]  # fmt: skip
        print(
            table(("what", "tokens", "wall s", "CPU s", "peak MB", "wall ratio", "CPU ratio", "memory ratio"), lines),
            "\n",
            flush=True,
        )


def layouts(count: int, times: int) -> None:
    """Print the share of padding over all rows, and the speed on some of them, of each layout."""
    from ftkit_trl._batches import Order
    from ftkit_trl._model import load_tokenizer
    from ftkit_trl._render import Chat

    from ftkit.data.task import load_task
    from ftkit.recipe.load import load_recipe

    options = {
        "random": PADDED,
        "grouped": {"sample_packing": False, "group_by_length": True},
        "packed": {"sample_packing": True},
    }
    with tempfile.TemporaryDirectory() as folder:
        everything = write_rows(Path(folder, "all"), train=20_000, validation=4, test=4)
        loaded = load_recipe(recipe(everything, "trl-sft-lora"))
        chosen = loaded.backend.options
        examples = load_task(loaded)[0].train
        lengths = [len(row.ids) for row in Chat(load_tokenizer(chosen), chosen).render(examples)]
        shares = {name: Order(lengths, 4, 0, grouped=name == "grouped").pad_share() for name in ("random", "grouped")}
        shares["packed"] = 0.0
        data = write_rows(Path(folder, "data"), train=count, validation=4, test=4)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in options}
        for _ in range(times):
            for name, layout in options.items():
                run = prepared(data, Path(folder, "runs"), "trl-sft-lora", **layout)
                found[name].append(shown(name, measured(__file__, "--child", "ours", str(run.dir))))
    lines = []
    for name, runs in found.items():
        speed, base = (
            statistics.median(r["tokens"] / r["train_cpu"] for r in some) for some in (runs, found["random"])
        )
        lines.append((
            name, f"{shares[name]:.1%}", f"{middle(runs, 'pad_share'):.1%}", f"{speed:.0f}", f"{speed / base:.2f}",
            f"{middle(runs, 'peak_mb'):.0f} MB",
        ))  # fmt: skip
    print(f"batches of 4, at most {SETTINGS['max_length']} tokens; median length {statistics.median(lengths):.0f}")
    heads = (
        "order",
        f"padding, all {len(lengths):,} rows",
        f"padding, {count} rows",
        "tokens/s",
        "speed",
        "peak memory",
    )
    print(table(heads, lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--methods", nargs="+", choices=list(PLUGINS), default=list(PLUGINS))
    parser.add_argument("--layouts", action="store_true")
    parser.add_argument("--child", nargs="+")
    options = parser.parse_args()
    if options.child:
        who, *arguments = options.child
        quiet()
        import ftkit_trl._train  # noqa: F401  loaded before the clock starts, for both

        report(with_cpu(lambda: {"ours": ours, "peer": peer}[who](*arguments)))
        return
    one_thread()
    machine = setup("ftkit", "torch", "transformers", "trl", "peft", "bitsandbytes")
    print(f"{machine}; {source()}, {len(rows('train', options.rows))} rows; the embedded model", flush=True)
    print(f"median of {options.pairs}, taking turns; ratios are medians of the pairs\n", flush=True)
    if options.layouts:
        layouts(options.rows, options.pairs)
    else:
        compare(options.methods, options.rows, options.pairs)


if __name__ == "__main__":
    main()
