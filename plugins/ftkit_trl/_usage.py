"""How an export is loaded: the exact commands for this run. {folder} stands for the export's folder or repository."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ftkit.api import MeasuredRun
from ftkit.records import GenerationConfig

from ._model import dtype
from .options import TrainOptions

if TYPE_CHECKING:
    from . import TrlSftLora

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM accepts as --max-lora-rank


def usage_of(
    backend: TrlSftLora, run: MeasuredRun, models: Sequence[str], hub: str | None, commit: str | None
) -> Iterator[dict[str, str]]:
    """Yield {"title", "language", "code"} for each program that loads what was exported."""
    if "adapter" in models:
        base = hub or "PATH_OF_THE_BASE_MODEL"
        yield _use("transformers and peft", "python", _adapter_code(backend, run.generation, base, commit))
        yield _use("vLLM", "sh", _vllm_adapter(backend, base, commit))
        return
    gguf = next((name for name in models if not name.startswith(("merged", "full"))), None)
    if gguf is not None:
        file = f"model-{gguf.removesuffix('-original')}.gguf"
        yield _use("Ollama, in the export's folder", "sh", "ollama create my-model -f Modelfile && ollama run my-model")
        n = run.generation.max_new_tokens
        yield _use(
            "llama.cpp, in the export's folder",
            "sh",
            f"llama-cli -m {file} --jinja --temp {run.generation.temperature:g} -n {n}",
        )
    if any(name.startswith(("merged", "full")) for name in models):
        yield _use("transformers", "python", _whole_code(run.generation))
        yield _use(
            "vLLM", "sh", "vllm serve {folder}" + (" --trust-remote-code" if backend.options.trust_remote_code else "")
        )


def _use(title: str, language: str, code: str) -> dict[str, str]:
    return {"title": title, "language": language, "code": code.rstrip("\n") + "\n"}


def vllm_rank(rank: int) -> int:
    """Return the smallest --max-lora-rank that vLLM accepts and that the adapter fits into."""
    return next((r for r in _RANKS if r >= rank), _RANKS[-1])


def _vllm_adapter(backend: TrlSftLora, base: str, commit: str | None) -> str:
    options: Any = backend.options
    more = f" --revision {commit}" if commit else ""
    more += " --quantization bitsandbytes" if backend.quantised else ""  # 4-bit NF4, as in training
    return (
        f"vllm serve {base}{more} --enable-lora --max-lora-rank {vllm_rank(options.lora_r)} \\\n"
        "  --lora-modules tuned={folder}\n"
        '# ask for the model "tuned"'
    )


def _adapter_code(backend: TrlSftLora, generation: GenerationConfig, base: str, commit: str | None) -> str:
    options: TrainOptions = backend.options
    kind = str(dtype(options)).removeprefix("torch.")
    revision = f", revision={json.dumps(commit)}" if commit else ""
    quantised = (
        f'quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,\n'
        f"                               bnb_4bit_compute_dtype=torch.{kind})\n"
    )
    extra = ", quantization_config=quantized" if backend.quantised else ""
    return (
        "import torch\n"
        "from peft import PeftModel\n"
        f"from transformers import AutoModelForCausalLM, AutoTokenizer{', BitsAndBytesConfig' if backend.quantised else ''}\n\n"
        f"{quantised if backend.quantised else ''}"
        f"base = AutoModelForCausalLM.from_pretrained({json.dumps(base)}{revision}, dtype=torch.{kind}{extra})\n"
        'model = PeftModel.from_pretrained(base, "{folder}")\n'
        'tokenizer = AutoTokenizer.from_pretrained("{folder}")\n'
        f"{_asking(generation)}"
    )


def _whole_code(generation: GenerationConfig) -> str:
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("{folder}", dtype="auto", device_map="auto")\n'
        'tokenizer = AutoTokenizer.from_pretrained("{folder}")\n'
        f"{_asking(generation)}"
    )


def _asking(generation: GenerationConfig) -> str:
    sampling = (
        f"do_sample=True, temperature={generation.temperature:g}" if generation.temperature else "do_sample=False"
    )
    return (
        'chat = [{"role": "user", "content": "..."}]\n'
        'inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)\n'
        f"out = model.generate(**inputs.to(model.device), max_new_tokens={generation.max_new_tokens}, {sampling})\n"
        'print(tokenizer.decode(out[0][inputs["input_ids"].shape[1]:], skip_special_tokens=True))\n'
    )
