"""A run of a real, tiny model: run again in another process it is identical, and a changed weight is named."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ftkit import run as run_recipe
from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.files import file_digest, read_json, read_jsonl, write_json
from ftkit.run.manifest import seal
from ftkit.run.verify import verify

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% else %} {% endif %}{% endfor %}"
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "seed": 1,
    "dataset": {
        "path": "loader:quickstart-dialogues",
        "train_rows": 64,
        "validation_rows": 8,
        "test_rows": 12,
        "columns": {"input": "dialogue", "target": "summary"},
    },
    "prompt": {"template": "{input}\nSummary:"},
    "backend": {
        "plugin": "trl-sft-lora",
        "base_model": "package:ftkit_quickstart/model",
        "chat_template": "./chat.jinja",
        "max_steps": 6,
        "learning_rate": 4e-3,
        "logging_steps": 1,
    },
    "generation": {"max_new_tokens": 12},
    "evaluator": "exact-match",
}


ENVIRONMENT: dict[str, str] = {}  # in which the run was made: it made libraries add variables to that of this process


def ftkit(*arguments: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "ftkit", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, env={**ENVIRONMENT, **variables})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its chat template, and one finished run in runs/."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "chat.jinja").write_text(TEMPLATE)
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    ENVIRONMENT.update(os.environ)
    run_recipe(folder / "recipe.yaml", out=folder / "runs", console=Console(silent=True))
    return folder


@pytest.fixture
def run(place: Path, tmp_path: Path) -> RunDirectory:
    (made,) = place.glob("runs/*")
    shutil.copytree(made, tmp_path / made.name)
    return RunDirectory.open(tmp_path / made.name)


def problems(run: RunDirectory) -> list[str]:
    return [problem for check in verify(run).checks for problem in check.problems]


def test_a_rerun_in_another_process_without_recipe_and_template_is_identical(place: Path, run: RunDirectory) -> None:
    elsewhere = run.dir.parent
    done = ftkit("rerun", run.dir, "--out", "again", "--json", cwd=elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"] == "identical" and found["differences"] == [], found
    new = elsewhere / found["run"]
    for file in ("tuned/predictions.jsonl", "baseline/predictions.jsonl", "train/model/adapter_model.safetensors"):
        assert (new / file).read_bytes() == (run.dir / file).read_bytes(), file
    texts = [row["text"] for row in read_jsonl(new / "tuned" / "predictions.jsonl")]
    assert all(texts) and len(set(texts)) > 3


def test_the_lock_holds_what_the_backend_knows(run: RunDirectory) -> None:
    lock = read_json(run.path("lock.json"))
    model = lock["model"]
    assert len(model["weights"]) == len(model["chat_template"]) == 64
    assert {"attention", "device", "threads", "flags", "cuda", "kernels", "dtype"} <= set(model)
    assert {"name", "loss", "fused_loss"} <= set(lock["training"]), lock["training"]
    assert lock["files"] == {"chat.jinja": file_digest(run.path("files", "chat.jinja"))}
    assert set(lock["trained"]) >= {"train/model/adapter_model.safetensors", "train/model/adapter_config.json"}


def test_one_character_of_the_template_and_one_variable_are_named(run: RunDirectory) -> None:
    template = run.path("files", "chat.jinja")
    template.write_text(TEMPLATE.replace("}} {", "}}_{").replace("{% else %} ", "{% else %}_"))
    done = ftkit("rerun", run.dir, "--dry-run", cwd=run.dir.parent, MKL_CBWR="COMPATIBLE")
    assert done.returncode == 0, done.stderr
    for part in ("file chat.jinja ", "model chat_template ", "variable MKL_CBWR none -> COMPATIBLE"):
        assert part in done.stdout, done.stdout


def test_an_untouched_run_verifies(run: RunDirectory) -> None:
    assert problems(run) == []


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_tensors(path: Path, header: dict[str, Any], content: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


def changed_weight(path: Path) -> str:
    header, content = header_of(path)
    name = sorted(k for k in header if ".lora_B." in k)[0]
    start = header[name]["data_offsets"][0]
    write_tensors(path, header, content[:start] + struct.pack("<f", 0.5) + content[start + 4 :])
    return f"tensor {name} is not the one that training wrote"


def weight_that_is_not_a_number(path: Path) -> str:
    header, content = header_of(path)
    name = sorted(k for k in header if ".lora_A." in k)[0]
    start = header[name]["data_offsets"][0]
    write_tensors(path, header, content[:start] + struct.pack("<f", float("nan")) + content[start + 4 :])
    return f"tensor {name} holds values that are not finite"


def renamed_tensor(path: Path) -> str:
    header, content = header_of(path)
    name = sorted(k for k in header if ".lora_A." in k)[0]
    write_tensors(path, {("weight" if k == name else k): v for k, v in header.items()}, content)
    return "tensor 'weight' is not named as one of an adapter"


def empty_tensor(path: Path) -> str:
    header, content = header_of(path)
    end = len(content)
    write_tensors(
        path, {**header, "x.lora_A.weight": {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}}, content
    )
    return "tensor x.lora_A.weight is empty"


def untrained_adapter(path: Path) -> str:
    header, content = header_of(path)
    write_tensors(path, header, bytes(len(content)))
    return "the adapter changes nothing"


def no_tensor(path: Path) -> str:
    write_tensors(path, {}, b"")
    return "holds no tensor"


def cut_short(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-4])
    return "is not a whole safetensors file"


def hidden_bytes(path: Path) -> str:
    path.write_bytes(path.read_bytes() + b"payload")
    return "bytes belong to no tensor"


def base_not_named(path: Path) -> str:
    config = path.with_name("adapter_config.json")
    write_json(config, {**read_json(config), "base_model_name_or_path": None})
    return "adapter_config.json names no base model"


def other_base(path: Path) -> str:
    config = path.with_name("adapter_config.json")
    write_json(config, {**read_json(config), "base_model_name_or_path": "acme/other"})
    return "adapter_config.json names the base model acme/other"


@pytest.mark.parametrize(
    "tamper",
    [changed_weight, weight_that_is_not_a_number, renamed_tensor, empty_tensor, untrained_adapter, no_tensor, cut_short,
     hidden_bytes, base_not_named, other_base],
)  # fmt: skip
def test_a_changed_adapter_is_named_by_its_tensor(tamper: Any, run: RunDirectory) -> None:
    named = tamper(run.path("train", "model", "adapter_model.safetensors"))
    # The tamperer knows of the hashes in lock.json and of the manifest.
    lock = read_json(run.path("lock.json"))
    lock["trained"] = {path: file_digest(run.path(path)) for path in lock["trained"]}
    write_json(run.path("lock.json"), lock)
    seal(run)
    found = problems(RunDirectory.open(run.dir))
    assert any(named in problem for problem in found), found


def test_tensors_are_read_without_torch() -> None:
    code = "import sys, ftkit_trl._tensors; print([m for m in ('torch', 'transformers', 'safetensors') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
