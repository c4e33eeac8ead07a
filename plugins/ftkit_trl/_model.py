"""Load tokenizers and models: the same way for the untouched base, for training and for the tuned model."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ftkit.api import Run
from ftkit.errors import InputError
from ftkit.hub import explain, prefer_cache_when_unreachable
from ftkit.records import ModelRef

from ._took import check_attached, check_complete

if TYPE_CHECKING:
    from . import TrainOptions, TrlSftLora

# A template for models without one of their own: the text as it is, the answer, end of sequence.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ m['content'] }}{% if not loop.last and messages[loop.index]['role'] != 'assistant' %}{{ '\\n\\n' }}"
    "{% endif %}{% endif %}{% endfor %}"
)
_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "tokenizers")


def source(base_model: str) -> str:
    """Return what `from_pretrained` takes: a hub id, or the path of a folder or of a package's folder."""
    if base_model.startswith("package:"):
        package, _, folder = base_model.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise InputError(f"backend.base_model: there is no installed package {package!r}")
        path = Path(spec.submodule_search_locations[0], folder)
    else:
        path = Path(base_model).expanduser()
        if not (path.is_absolute() or base_model.startswith(".") or path.is_dir()):
            prefer_cache_when_unreachable()
            return base_model
    if not (path / "config.json").is_file():
        raise InputError(f"backend.base_model: {path} holds no config.json", "name a folder that save_pretrained wrote")
    return str(path)


def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def dtype(options: TrainOptions) -> torch.dtype:
    """Return the precision of the weights that are not quantised."""
    if options.dtype != "auto":
        named: torch.dtype = getattr(torch, options.dtype)
        return named
    if device().type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16


def _hub_arguments(options: TrainOptions) -> dict[str, Any]:
    return {"revision": options.revision or "main", "trust_remote_code": options.trust_remote_code}


def load_config(options: TrainOptions) -> Any:
    """Return the model's config alone (a few kilobytes). Raises InputError with the way out."""
    try:
        return AutoConfig.from_pretrained(source(options.base_model), **_hub_arguments(options))
    except InputError:
        raise
    except Exception as error:
        raise explain("model", options.base_model, error) from None


def load_tokenizer(options: TrainOptions) -> PreTrainedTokenizerBase:
    """Return the tokenizer with its chat template settled, a pad token, and padding on the left."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source(options.base_model), **_hub_arguments(options))
    except InputError:
        raise
    except Exception as error:
        raise explain("model", options.base_model, error) from None
    template = options.chat_template
    if template == "plain" or (template == "auto" and not tokenizer.chat_template):
        tokenizer.chat_template = PLAIN_TEMPLATE
    elif template != "auto":
        path = Path(template).expanduser()
        if not path.is_file():
            raise InputError(
                f"backend.chat_template: there is no file {path}", "use auto, plain, or the path of a .jinja file"
            )
        tokenizer.chat_template = path.read_text(encoding="utf-8")
    if tokenizer.pad_token is None:  # padding is masked by position, so eos does no harm where nothing better is known
        known = ("<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "[PAD]")
        tokenizer.pad_token = next((t for t in known if t in tokenizer.get_vocab()), tokenizer.eos_token)
    tokenizer.padding_side = "left"
    return tokenizer


def known_ends(model: PreTrainedModel) -> set[int]:
    """Return the tokens that the model itself is known to end its answers with (some have several)."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def _load_arguments(options: TrainOptions) -> dict[str, Any]:
    """Return what the base and the fully trained model are loaded with alike."""
    arguments: dict[str, Any] = {
        "dtype": dtype(options),
        "device_map": {"": device()},
        "trust_remote_code": options.trust_remote_code,
    }
    if options.attn_implementation:
        arguments["attn_implementation"] = options.attn_implementation
    return arguments


def load_base(backend: TrlSftLora) -> PreTrainedModel:
    """Return the base model as the method trains it: 4-bit for QLoRA, else in `dtype`."""
    options = backend.options
    arguments = {**_load_arguments(options), "revision": options.revision or "main"}
    if backend.quantised:
        from transformers import BitsAndBytesConfig

        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype(options),
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(source(options.base_model), **arguments)
    except (OSError, ValueError) as error:
        raise explain("model", options.base_model, error) from None
    for module in model.modules():
        # On CPUs with AVX512-bf16, bitsandbytes repacks 4-bit weights at the first pass in eval mode, into a form
        # that passes no gradient back and computes in bf16: a measurement would end the learning, in silence.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    # What adapters and model cards name as their base: not a path of this machine.
    model.name_or_path = model.config._name_or_path = options.base_model
    return model


def load_model(backend: TrlSftLora, ref: ModelRef, run: Run) -> PreTrainedModel:
    """Return the model that `ref` names, to be asked: the base, the base with an adapter, or fully trained weights."""
    if ref.kind == "adapter":
        from peft import PeftModel

        model = PeftModel.from_pretrained(_unpacked(load_base(backend)), run.resolve_uri(ref.uri))
        check_attached(model, run.resolve_uri(ref.uri))
        return model
    if ref.meta.get("trained"):  # all weights, in the run directory
        folder, arguments = run.resolve_uri(ref.uri), _load_arguments(backend.options)
        model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **arguments)
        check_complete(loading, folder)
        return model
    return _unpacked(load_base(backend))


def _unpacked(model: PreTrainedModel) -> PreTrainedModel:
    """Write a 4-bit model's weights out once, where a CPU has room, instead of at each pass: the values are the same."""
    size = sum(p.numel() for p in model.parameters()) * 2 * model.dtype.itemsize  # two 4-bit values lie in a byte
    if model.device.type == "cpu" and hasattr(model, "hf_quantizer") and size < psutil.virtual_memory().available / 4:
        model.dequantize()
    return model


def identity(backend: TrlSftLora, ref: ModelRef, run: Run) -> dict[str, Any]:
    """Return what decides the answers of `ref` (see `Backend.identity`)."""
    options = backend.options
    config = load_config(options)
    where = device()
    facts: dict[str, Any] = {
        "model": options.base_model,
        "commit": getattr(config, "_commit_hash", None),
        "quantisation": "nf4-double" if backend.quantised else None,
        "dtype": str(dtype(options)).removeprefix("torch."),
        "attention": options.attn_implementation,
        "chat_template": _sha256(str(load_tokenizer(options).get_chat_template()).encode()),
        "template_date": options.template_date,
        "device": torch.cuda.get_device_name() if where.type == "cuda" else where.type,
        "threads": torch.get_num_threads() if where.type == "cpu" else None,
        "code": weights_hash(Path(__file__).parent, ".py"),  # how it is asked: a mended defect makes a new baseline
        "versions": {name: _version(name) for name in _LIBRARIES},
    }
    path = Path(source(options.base_model))
    if path.is_dir():
        facts["weights"] = weights_hash(path)
    if ref.kind == "adapter" or ref.meta.get("trained"):
        facts["trained"] = weights_hash(run.resolve_uri(ref.uri))
    return facts


def weights_hash(folder: Path, *suffixes: str) -> str:
    """Return one SHA-256 over files by name and content: by default a model's (weights, config, tokenizer)."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (suffixes or (".safetensors", ".json", ".model")):
            total.update(f"{path.name} ".encode())
            with open(path, "rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def peak_memory() -> int:
    """Return the peak memory so far in bytes: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
