"""Write a trained model for others: the adapter as it is, merged into its base, or as a GGUF file.

A merge adds fp32 numbers and saves bf16. QLoRA trains against the base in 4-bit NF4: an adapter fits those weights,
dequantised, and no others. The original weights are a choice that the measurement of the export judges.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from huggingface_hub import ModelCard, try_to_load_from_cache
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftkit.api import MeasuredRun, Run
from ftkit.errors import RunFailed
from ftkit.files import read_json, write_json
from ftkit.hub import prefer_cache_when_unreachable
from ftkit.records import Example, Exported, ExportRequest, Finding, ModelRef, Prediction
from ftkit.text import size

from . import _llama_cpp
from ._generate import TrlSession
from ._identity import identity
from ._model import (
    context_length,
    hub_name,
    ignore_deprecation_in_peft,
    load_arguments,
    load_base,
    load_config,
    load_model,
    load_tokenizer,
    local_path,
    own_generation,
    pinned,
    skeleton,
)
from ._modelfile import modelfile
from ._own_generation import clean_config, saved_config
from ._render import Chat
from ._usage import usage_of
from ._weights import check_attached, check_complete
from .options import TrainOptions, is_gguf

if TYPE_CHECKING:
    from . import TrlSftLora

_BF16 = 2  # bytes of a parameter in an export
_EXPORTED = "exported"  # in a ModelRef's meta: its own files say all, tokenizer and template included


# ---------------------------------------------------------------- before


def findings(backend: TrlSftLora, request: ExportRequest, run: MeasuredRun | None) -> Iterator[Finding]:
    """Yield what is wrong with an export (see `Backend.check_export`)."""
    if request.gguf:
        yield from _llama_cpp.missing(request.gguf)
    if request.merge and not backend.adapter and not request.gguf:
        yield Finding("note", "all weights were trained: there is nothing to merge")
    if request.base == "original" and not backend.quantised:
        yield Finding("note", "training did not quantise the base model: `base: original` changes nothing")
    if run is None or not (backend.adapter and (request.merge or request.gguf)):
        return
    with contextlib.suppress(Exception):  # what cannot be loaded is reported when it is loaded
        needed, free = 4 * _parameters(backend.options), psutil.virtual_memory().available
        if needed > free:
            yield Finding(
                "warning", f"a merge holds the model in fp32, {size(needed)}; {size(free)} of memory are free"
            )


def export_size(backend: TrlSftLora, request: ExportRequest, run: MeasuredRun) -> int | None:
    """Return the most bytes on the disk at one time: merged weights, the GGUF file they become, and the quantised one."""
    model = run.model()
    own = sum(p.stat().st_size for p in run.resolve_uri(model.uri).rglob("*") if p.is_file()) if model else 0
    if not request.gguf:
        return _BF16 * _parameters(backend.options) if backend.adapter and request.merge else own
    return int((_BF16 + _llama_cpp.BYTES[request.gguf]) * _parameters(backend.options))


def _parameters(options: TrainOptions) -> int:
    return sum(p.numel() for p in skeleton(load_config(options), options).parameters())


# ---------------------------------------------------------------- the files


def export(backend: TrlSftLora, request: ExportRequest, run: MeasuredRun, folder: Path) -> Exported:
    """Write what is asked for into `folder` (see `Backend.export`). Raises InputError and RunFailed as loading does."""
    ref = run.model()
    if ref is None:
        raise RunFailed("the run has no trained model")
    options = backend.options
    hub, commit = _published(options, run)
    models: dict[str, ModelRef] = {}
    notes: list[str] = []
    merged = f"merged-{request.base}" if request.base == "original" and backend.quantised else "merged"
    if request.gguf:
        weights = folder / ".merged"
        _write_weights(backend, request, ref, run, weights)
        name = f"model-{request.gguf}.gguf"
        _llama_cpp.convert(weights, folder / name, request.gguf)
        tokenizer = AutoTokenizer.from_pretrained(weights)
        text, found = modelfile(tokenizer, Chat(tokenizer, _own(options, weights)), run.generation, name, context_length(load_config(options)))  # fmt: skip
        (folder / "Modelfile").write_text(text, encoding="utf-8")
        notes += found
        key = f"{request.gguf}-original" if merged == "merged-original" else request.gguf
        models[key] = ModelRef("path", name, base=options.base_model, meta={_EXPORTED: "gguf"})
        notes.append("The report's numbers of the GGUF file are those of its weights, dequantised and run by transformers.")  # fmt: skip
        if request.merge and backend.adapter:
            for path in weights.iterdir():
                shutil.move(path, folder / path.name)
        shutil.rmtree(weights)
    elif request.merge and backend.adapter:
        _write_weights(backend, request, ref, run, folder)
    else:
        shutil.copytree(
            run.resolve_uri(ref.uri), folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("README.md")
        )
    if request.merge and backend.adapter:
        models[merged] = ModelRef("path", ".", base=options.base_model, meta={_EXPORTED: "merged"})
    elif not request.gguf and backend.adapter:
        continued = {key: ref.meta[key] for key in ("chain", "revision") if "chain" in ref.meta and key in ref.meta}
        models["adapter"] = ModelRef("adapter", ".", base=options.base_model, meta={_EXPORTED: "adapter", **continued})
        notes += _name_base(folder, backend, hub, commit)
    elif not request.gguf:
        models["full"] = ModelRef("path", ".", base=options.base_model, meta={_EXPORTED: "full"})
    if Chat(load_tokenizer(options), options).dated:
        notes.append(
            f"The chat template writes today's date into the prompt. The run was trained and measured with the date "
            f"{options.template_date}."
        )
    library = "peft" if "adapter" in models else "transformers" if not request.gguf or request.merge else ""
    usage = usage_of(backend, run, list(models), hub, commit)
    return Exported(models, hub, library, tuple(usage), tuple(notes), _licence(options, hub, commit))


def _write_weights(backend: TrlSftLora, request: ExportRequest, ref: ModelRef, run: MeasuredRun, folder: Path) -> None:
    """Write a whole model: the adapter merged in fp32 and saved in bf16, or all weights as training wrote them."""
    if not backend.adapter:
        shutil.copytree(run.resolve_uri(ref.uri), folder, dirs_exist_ok=True)
        return
    from peft import PeftModel

    options = backend.options
    original = request.base == "original" and backend.quantised
    base: Any = load_base(_unquantised(backend) if original else backend)
    if hasattr(base, "hf_quantizer"):
        base.dequantize()
    base = base.to("cpu").float()
    ignore_deprecation_in_peft()
    model: Any = PeftModel.from_pretrained(base, run.resolve_uri(ref.uri))
    check_attached(model, run.resolve_uri(ref.uri))
    whole = model.merge_and_unload(safe_merge=True).to(torch.bfloat16)
    tokenizer = load_tokenizer(options)
    config = whole.config
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    whole.generation_config = saved_config(own_generation(options), Chat(tokenizer, options).ends, clean_config(own_generation(options), config))  # fmt: skip
    whole.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _unquantised(backend: TrlSftLora) -> TrlSftLora:
    """Return the backend that loads the base as it is published."""
    found = copy.copy(backend)
    found.quantised = False  # type: ignore[misc]  of this one alone
    return found


def _published(options: TrainOptions, run: MeasuredRun) -> tuple[str | None, str | None]:
    """Return the base model's id on the hub and its commit, where it has one that others can load.

    A folder of the hub's cache says both in its path. A GGUF file is no base for an adapter or for transformers.
    """
    name = options.base_model
    path = local_path(name)
    if path is None and not is_gguf(name):
        state = run.state("hub").get(f"model {name} {options.revision or 'main'}")
        return name, str(state) if state else options.revision
    if path is None:
        return hub_name(name)[0], None
    parts = path.parts
    owner = next((i for i, part in enumerate(parts) if part.startswith("models--")), None)
    if owner is not None and parts[owner + 1 : owner + 2] == ("snapshots",) and len(parts) == owner + 3:
        return parts[owner].removeprefix("models--").replace("--", "/"), parts[owner + 2]
    return None, None


def _name_base(folder: Path, backend: TrlSftLora, hub: str | None, commit: str | None) -> list[str]:
    """Write into adapter_config.json a base that others can load; return what a reader must know about it."""
    gguf = is_gguf(backend.options.base_model)
    path = folder / "adapter_config.json"
    known = hub if hub and not gguf else None
    write_json(path, {**read_json(path), "base_model_name_or_path": known, "revision": commit if known else None})
    name = backend.options.base_model
    shown = name if name.startswith("package:") or hub else Path(name).name
    notes = []
    if known is None:
        why = f"{shown} is a GGUF file" if gguf else f"{shown} has no name on the hub"
        notes.append(f"{why}: others cannot load this adapter by itself. Export the whole model instead: ftkit export RUN --to DIR --merge")  # fmt: skip
    if backend.quantised:
        notes.append("The adapter was trained on the base in 4-bit NF4, and was measured so. On the base in another precision its answers differ.")  # fmt: skip
    return notes


def _licence(options: TrainOptions, hub: str | None, commit: str | None) -> str | None:
    """Return the licence in the base model's card: in its folder, in the local cache, or on the hub; None where it is not known."""
    try:
        path = local_path(options.base_model)
        cached = try_to_load_from_cache(hub, "README.md", revision=commit) if hub else None
        if path is not None and path.is_dir() and (path / "README.md").is_file():
            source: str | Path = path / "README.md"
        elif isinstance(cached, str):
            source = cached
        elif hub and path is None:
            prefer_cache_when_unreachable()
            source = hub
        else:
            return None
        found = ModelCard.load(source).data.license
        return found if isinstance(found, str) else None
    except Exception:  # no card, no network, no metadata
        return None


# ---------------------------------------------------------------- measured as a user would load it


def _own(options: TrainOptions, place: Path) -> TrainOptions:
    """Return options under which an export is loaded from its own files alone."""
    return options.model_copy(update={"base_model": str(place), "revision": None, "chat_template": "auto"})


@contextlib.contextmanager
def open_exported(backend: TrlSftLora, ref: ModelRef, run: Run) -> Iterator[TrlSession]:
    """Load an export with its own tokenizer, template and generation config; free the memory afterwards."""
    place = run.resolve_uri(ref.uri)
    if ref.kind == "adapter":
        options = pinned(backend, run).options
        model = load_model(pinned(backend, run), ref, run)
        tokenizer: Any = AutoTokenizer.from_pretrained(place)
        tokenizer.padding_side = "left"
    else:
        options = _own(backend.options, place)
        alone = _unquantised(backend)
        alone.options = options
        model = load_base(alone) if place.is_file() else _whole(alone, place)
        tokenizer = load_tokenizer(options)
    session = TrlSession(model.eval(), tokenizer, options)
    try:
        yield session
    finally:
        session.stop.event.set()
        del model, session
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _whole(backend: TrlSftLora, place: Path) -> Any:
    """Load a folder of weights. Raises RunFailed where a tensor is missing."""
    model, loading = AutoModelForCausalLM.from_pretrained(
        place, output_loading_info=True, **load_arguments(backend.options)
    )
    check_complete(loading, place)
    return model


def exported_identity(backend: TrlSftLora, ref: ModelRef, run: Run) -> dict[str, Any]:
    """Return what decides the answers of an export; its place on this machine does not."""
    if ref.kind == "adapter":
        return {**identity(pinned(backend, run, keep=True), ref, run), "exported": True}
    alone = _unquantised(backend)
    alone.options = _own(backend.options, run.resolve_uri(ref.uri))
    return {**identity(alone, ModelRef("path", alone.options.base_model), run), "model": ref.uri, "exported": True}


# ---------------------------------------------------------------- tried with llama.cpp


def answers(
    exported: Exported, examples: Sequence[Example], run: MeasuredRun, folder: Path
) -> tuple[str, list[Prediction]] | None:
    """Let llama.cpp answer test rows from the GGUF file, by the template that the file itself holds."""
    file = next((folder / ref.uri for ref in exported.models.values() if ref.meta.get(_EXPORTED) == "gguf"), None)
    return None if file is None else _llama_cpp.answer(file, examples, run.generation)


__all__ = ["answers", "export", "export_size", "exported_identity", "findings", "open_exported"]
