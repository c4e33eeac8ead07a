"""Exports of the TRL backends, on the embedded model: each is measured, and loaded by the plain libraries without ftkit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import ftkit
from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.errors import InputError, RunFailed
from ftkit.files import read_json
from ftkit.run.verify import verify

QUIET = Console(silent=True)
HERE = Path(__file__).parents[1]
MODEL = "package:ftkit_quickstart/model"


def recipe(plugin: str, steps: int, test: int, **options: object) -> dict[str, Any]:
    return {
        "name": plugin, "seed": 1, "evaluator": "rouge", "generation": {"max_new_tokens": 40},
        "prompt": {"template": "{input}\nSummary:"},
        "dataset": {
            "path": "loader:quickstart-dialogues", "train_rows": 8 * steps, "validation_rows": 2, "test_rows": test,
            "columns": {"input": "dialogue", "target": "summary"},
        },
        "backend": {
            "plugin": plugin, "base_model": MODEL, "chat_template": "plain", "max_steps": steps, "micro_batch_size": 8,
            "learning_rate": 4e-3, **options,
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def qlora(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    wanted = recipe("trl-sft-qlora", 50, 40, lora_target_modules="all-linear")
    return ftkit.run(wanted, out=tmp_path_factory.mktemp("runs"), console=QUIET).directory


def texts(run: RunDirectory, name: str) -> list[str]:
    return [p.text for p in run.predictions(name)]


def same(run: RunDirectory, name: str) -> int:
    return sum(a == b for a, b in zip(texts(run, name), texts(run, "tuned"), strict=True))


# What a user runs who has transformers and peft, and not ftkit. It prints the answers of the first rows as JSON.
PLAIN = """
import json, sys
for name in ("ftkit", "ftkit_trl", "ftkit_quickstart"):
    sys.modules[name] = None  # cannot be imported
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
folder, rows, base = sys.argv[1:]
if base:
    from peft import PeftModel
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                             bnb_4bit_compute_dtype=torch.float32)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, quantization_config=nf4), folder)
else:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder)
answers = []
for messages in json.load(open(rows)):
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    answers.append(tokenizer.decode(out[0][inputs["input_ids"].shape[1]:], skip_special_tokens=True).strip())
print(json.dumps(answers))
"""


def without_ftkit(folder: Path, run: RunDirectory, tmp_path: Path, base: str = "", rows: int = 3) -> list[str]:
    asked = tmp_path / "asked.json"
    asked.write_text(json.dumps([[m.asked() for m in e.messages] for e in run.task.test[:rows]]))
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(folder), str(asked), base], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers: list[str] = json.loads(done.stdout.splitlines()[-1])
    return answers


# ---------------------------------------------------------------- adapter and merge


def test_the_adapter_answers_as_the_run_did_and_names_no_place_of_this_machine(
    qlora: RunDirectory, tmp_path: Path
) -> None:
    done = ftkit.export(qlora.dir, tmp_path / "adapter", console=QUIET)
    assert same(qlora, "export-adapter") == 40
    config = read_json(tmp_path / "adapter" / "adapter_config.json")
    assert config["base_model_name_or_path"] is None, "no hub id is known of an embedded model"
    assert "has no name on the hub" in done.notes[0] and "--merge" in done.notes[0]
    assert any("--max-lora-rank 16 " in use["code"] for use in done.usage if use["title"] == "vLLM")
    base = str(HERE.parent / "plugins" / "ftkit_quickstart" / "model")
    assert without_ftkit(tmp_path / "adapter", qlora, tmp_path, base) == texts(qlora, "export-adapter")[:3]


def test_a_merge_fits_the_dequantised_base_and_the_number_of_another_says_so(
    qlora: RunDirectory, tmp_path: Path
) -> None:
    right = ftkit.export(qlora.dir, tmp_path / "right", merge=True, console=QUIET)
    wrong = ftkit.export(qlora.dir, tmp_path / "wrong", merge=True, base="original", console=QUIET)
    assert same(qlora, "export-merged") >= 38 and same(qlora, "export-merged-original") <= 30
    values = [m["rouge1"].value for m in (*right.systems.values(), *wrong.systems.values(), qlora.metrics("tuned"))]
    assert abs(values[0] - values[2]) < 0.01 and values[1] < values[2] - 0.01
    assert not right.lost and "export-merged-original " in wrong.compared[0] and "rouge1 −" in wrong.compared[0]
    data = ModelCard.load(tmp_path / "right" / "README.md").data
    assert (data.library_name, data.model_name) == ("transformers", "right")
    assert {r.metric_type for r in data.eval_results} == {"rouge1", "rouge2", "rougeL", "rougeLsum"}
    config = read_json(tmp_path / "right" / "config.json")
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config
    assert without_ftkit(tmp_path / "right", qlora, tmp_path) == texts(qlora, "export-merged")[:3]
    assert verify(qlora).ok


@pytest.mark.parametrize(("plugin", "name"), [("trl-sft-lora", "merged"), ("trl-sft-full", "full")])
def test_lora_is_merged_and_full_models_go_as_they_are(plugin: str, name: str, tmp_path: Path) -> None:
    run = ftkit.run(recipe(plugin, 3, 8), out=tmp_path / "runs", console=QUIET).directory
    done = ftkit.export(run.dir, tmp_path / "out", merge=True, console=QUIET)
    assert list(done.systems) == [f"export-{name}"] and same(run, f"export-{name}") >= 7
    assert not (tmp_path / "out" / "adapter_config.json").exists() and verify(run).ok
    if name == "full":
        assert same(run, "export-full") == 8


# ---------------------------------------------------------------- GGUF

# Stands in for llama.cpp's converter, whose list of tokenizers lacks that of the embedded model: the same options, a
# file of the same form.
CONVERTER = f"""
import argparse, sys
from pathlib import Path
sys.path.insert(0, {str(HERE)!r})
from gguf_files import write_gguf
parser = argparse.ArgumentParser()
parser.add_argument("model", type=Path)
parser.add_argument("--outfile", type=Path)
parser.add_argument("--outtype")
asked = parser.parse_args()
template = (asked.model / "chat_template.jinja").read_text()
write_gguf(asked.outfile, asked.outtype.upper(), model=asked.model, template=template)
"""


@pytest.fixture
def llama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    (folder / "convert_hf_to_gguf.py").write_text(CONVERTER)
    monkeypatch.setenv("FTKIT_LLAMA_CPP", str(folder))
    return folder


def test_a_gguf_file_comes_with_a_modelfile_and_is_measured(qlora: RunDirectory, llama: Path, tmp_path: Path) -> None:
    done = ftkit.export(qlora.dir, tmp_path / "gguf", gguf="q8_0", console=QUIET)
    assert sorted(done.files) == ["Modelfile", "README.md", "ftkit.json", "model-q8_0.gguf"]
    # A GGUF file cannot hold the rules of this tokenizer (llama.cpp's own converter refuses it): the number says so.
    assert same(qlora, "export-q8_0") < 20 and done.lost[0].startswith("export-q8_0 is worse than tuned")
    modelfile = (tmp_path / "gguf" / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./model-q8_0.gguf\nTEMPLATE ")
    assert 'PARAMETER stop "' in modelfile and "PARAMETER num_predict 40\n" in modelfile
    assert done.usage[0]["code"] == "ollama create my-model -f Modelfile && ollama run my-model\n"
    assert verify(qlora).ok


def test_what_gguf_needs_is_looked_for_at_the_start(
    qlora: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("FTKIT_LLAMA_CPP", raising=False)
    with pytest.raises(InputError, match=r"needs llama.cpp's converter convert_hf_to_gguf.py") as error:
        ftkit.export(qlora.dir, tmp_path / "out", gguf="q8_0", console=QUIET)
    assert "FTKIT_LLAMA_CPP=FOLDER" in str(error.value.hint) and not (tmp_path / "out").exists()
    wanted = {**recipe("trl-sft-lora", 2, 2), "export": {"gguf": "q4_k_m"}}
    found = ftkit.check(wanted)
    assert any("llama-quantize" in p.message and p.key == "export" for p in found.errors)
    monkeypatch.setenv("FTKIT_LLAMA_CPP", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="there is no such folder"):
        ftkit.export(qlora.dir, tmp_path / "out", gguf="q8_0", console=QUIET)


def test_a_converter_that_does_not_know_the_tokenizer_says_what_to_do(
    qlora: RunDirectory, llama: Path, tmp_path: Path
) -> None:
    script = (
        "import sys\n"
        "if '--help' not in sys.argv:\n"
        "    raise NotImplementedError('BPE pre-tokenizer was not recognized - update get_vocab_base_pre()')\n"
    )
    (llama / "convert_hf_to_gguf.py").write_text(script)
    with pytest.raises(RunFailed, match="does not know this model's tokenizer") as error:
        ftkit.export(qlora.dir, tmp_path / "out", gguf="q8_0", console=QUIET)
    assert "--merge" in str(error.value.hint) and not (tmp_path / "out").exists()


# ---------------------------------------------------------------- the Modelfile's template

CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
NUMBERED = (  # no fixed text stands around a message
    "{% for m in messages %}{{ loop.index ~ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def parts_of(template: str) -> Any:
    from ftkit_trl._modelfile import _parts
    from transformers import AutoTokenizer

    class Dated:
        date = None

    tokenizer = AutoTokenizer.from_pretrained(HERE.parent / "plugins" / "ftkit_quickstart" / "model")
    tokenizer.chat_template = template
    return _parts(tokenizer, Dated())  # type: ignore[arg-type]


def test_a_template_is_written_in_ollamas_language_only_where_it_writes_the_same() -> None:
    from ftkit_trl._modelfile import _go

    found = parts_of(CHATML)
    assert found.default_system == "<|im_start|>system\nBe kind.<|im_end|>\n"
    assert _go(found) == (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ else }}<|im_start|>system\nBe kind.<|im_end|>\n"
        '{{ end }}{{ range .Messages }}{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n{{ end }}{{ end }}'
        "<|im_start|>assistant\n"
    )
    assert parts_of(LLAMA_2) is not None
    assert parts_of(NUMBERED) is None
