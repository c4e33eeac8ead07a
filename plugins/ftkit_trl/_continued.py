"""Training that continues another: from the model of a run (`base_model: RUN`), or after the last step of its own. Light.

Of an adapter's run, an adapter method trains this adapter further; full fine-tuning trains the merged weights. Of a run
that trained all weights, these are the base model, for every method.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ftkit.api import Run
from ftkit.errors import InputError
from ftkit.files import Journal, file_digest, read_json
from ftkit.records import Finding, ModelRef

from .options import LoraOptions, TrainOptions

if TYPE_CHECKING:
    from . import TrlSftLora


class Start(NamedTuple):
    """The run whose model a training starts from."""

    run: Path
    model: ModelRef
    folder: Path  # of the files that it trained
    revision: str | None  # the commit of the base model that its adapter stands on
    quantised: bool  # whether that base model is in 4-bit
    template: str | None  # SHA-256 of its chat template
    chain: tuple[str, ...]  # what led to it: the first base model, then the names of runs

    @property
    def is_adapter(self) -> bool:
        return self.model.kind == "adapter"


def start_of(base_model: str) -> Start | None:
    """Return the run that `base_model` names by its directory; None where it names none.

    Raises InputError where this run has no model that can be trained here.
    """
    path = Path(base_model).expanduser()
    if base_model.startswith("package:") or not (path / "run.json").is_file():
        return None
    written = path / "train" / "model.json"
    if not written.is_file():
        status = read_json(path / "run.json").get("status")
        raise InputError(
            f"backend.base_model: the run {path} has no tuned model: it is {status}", f"ftkit run --resume {path}"
        )
    model = ModelRef.from_dict(read_json(written))
    folder = path / model.uri
    if model.kind != "adapter" and not model.meta.get("trained"):
        raise InputError(
            f"backend.base_model: the model of the run {path} cannot be trained here: it is {model.kind} {model.uri}",
            "name a run that trained on a machine with weights of its own",
        )
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"backend.base_model: the model of the run {path} is gone: {folder} holds no weights")
    lock = read_json(path / "lock.json").get("model", {})
    first = (lock.get("about") or {}).get("chain") or (model.base or lock.get("model") or "",)
    quantised = "nf4" in (lock.get("quantisation") or "")
    return Start(path, model, folder, lock.get("commit"), quantised, lock.get("chat_template"), (*first, path.name))


def resolved(backend: TrlSftLora, ref: ModelRef | None = None) -> TrlSftLora:
    """Return the backend with a base model that can be loaded in place of a run, and `start`, the run's model.

    `ref`: an adapter that this run has trained stands on its own base model; the run that it started from is not needed.
    """
    options = backend.options
    if ref is not None and ref.kind == "adapter" and "chain" in ref.meta and ref.base:
        return _with(backend, options, ref.base, ref.meta.get("revision"), None)
    start = start_of(options.base_model)
    if start is None:
        return backend
    if start.is_adapter:
        return _with(backend, options, start.model.base or "", start.revision, start)
    return _with(backend, options, str(start.folder), None, start)


def _with(
    backend: TrlSftLora, options: TrainOptions, base: str, revision: str | None, start: Start | None
) -> TrlSftLora:
    found = copy.copy(backend)
    found.options = options.model_copy(update={"base_model": base, "revision": options.revision or revision})
    found.start = start
    return found


def meta_of(backend: TrlSftLora) -> dict[str, object]:
    """Return what a model's handle says of the runs that led to it: `chain`, and the commit of the base model."""
    if backend.start is None:
        return {}
    revision = {"revision": backend.options.revision} if backend.options.revision else {}
    return {"chain": list(backend.start.chain), **revision}


def start_findings(backend: TrlSftLora) -> Iterator[Finding]:
    """Yield what is wrong with the run that training starts from, and how its model is used."""
    start, key = backend.start, "backend.base_model"
    if start is None:
        return
    name = start.run.name
    for path, expected in read_json(start.run / "lock.json").get("trained", {}).items():
        file = start.run / path
        if not file.is_file() or file_digest(file) != expected:
            what = "was changed after training" if file.is_file() else "is missing"
            yield Finding("error", f"the run {name} is not as it was: {file} {what}", f"ftkit verify {start.run}", key)
    if not start.is_adapter:
        yield Finding("note", f"the base model is the one that the run {name} trained", key=key)
        return
    if not backend.adapter:
        how = "merged into its dequantised base model" if start.quantised else "merged into its base model"
        yield Finding("note", f"the adapter of the run {name} is {how}, and all weights are trained", key=key)
        return
    yield Finding("note", f"the adapter of the run {name} is trained further", key=key)
    if start.quantised != backend.quantised:
        bits = "4-bit" if start.quantised else "not quantised"
        yield Finding(
            "warning",
            f"the adapter of the run {name} was trained on a base model that is {bits}, and here it is not so: it may "
            "answer worse before it is trained further",
            f"use the same backend.plugin as the run {name}",
            "backend.plugin",
        )
    yield from _shape_findings(start, backend.options)


def _shape_findings(start: Start, options: LoraOptions) -> Iterator[Finding]:
    """Yield an error for each option that would give the adapter another shape: it keeps the one it has."""
    saved = read_json(start.folder / "adapter_config.json")
    layers = saved.get("target_modules")
    shape = {"lora_r": saved.get("r"), "lora_alpha": saved.get("lora_alpha")}
    if isinstance(layers, list) and isinstance(options.lora_target_modules, list):
        shape["lora_target_modules"] = sorted(layers)
    for key, value in shape.items():
        here = getattr(options, key)
        if (sorted(here) if isinstance(here, list) else here) != value:
            yield Finding(
                "error",
                f"{key} is {here}, and the adapter of the run {start.run.name} has {value}: it is trained further as it is",
                f"set backend.{key}: {value}",
                f"backend.{key}",
            )


# ---------------------------------------------------------------- after the last step of a finished training


def steps_before(run: Run, earlier: ModelRef) -> int:
    """Return after how many steps the finished training ended that `run` continues; it is remembered."""
    state = run.state("trl")
    known: dict[str, int] = dict(state.get("steps_before") or {})
    if earlier.uri not in known:
        rows = Journal(run.path("train", "log.jsonl"))
        ends = [row["steps"] for row in rows if row["event"] == "end" and "steps" in row]
        known[earlier.uri] = int(ends[-1]) if ends else 0
        state.update(steps_before=known)
    return known[earlier.uri]
