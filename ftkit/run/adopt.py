"""Give a prepared run the training of another one: the same model, measured on other rows."""

from __future__ import annotations

import shutil
from dataclasses import replace

from ..directory import RunDirectory
from ..errors import RunFailed
from ..files import publish
from .lock import add_facts, add_model

_FOLDERS = ("state", "train")  # what training leaves; `train`, with the model, comes last


def adopt_training(run: RunDirectory, trained: RunDirectory) -> None:
    """Copy the training of `trained` into `run`, whose `train` stage is then done.

    Both have the same recipe but for the rows that are measured, which training never sees. `run` may have taken some
    of it before: a killed process calls this again. Raises RunFailed where `trained` has no trained model, or was
    trained on other rows.
    """
    ours, theirs = (
        {split: print_ for split, print_ in r.task.fingerprints.items() if split != "test"} for r in (run, trained)
    )
    if ours != theirs:
        raise RunFailed(f"{run.dir} was prepared with other training or validation rows than {trained.dir}")
    stage = next((s for s in trained.record().stages if s.name == "train" and s.status == "done"), None)
    if stage is None or trained.model() is None:
        raise RunFailed(f"{trained.dir} has no trained model")
    if any(s.name == "train" for s in run.record().stages):
        return
    for name in _FOLDERS:
        if trained.path(name).is_dir():
            staging = run.scratch("adopt") / name
            shutil.rmtree(staging, ignore_errors=True)
            shutil.copytree(trained.path(name), staging, symlinks=True)
            publish(staging, run.path(name))
    add_facts(run)
    add_model(run)
    record = run.record()
    copied = replace(stage, meta={**stage.meta, "reused_from": trained.id})
    run.save_record(replace(record, stages=(*record.stages, copied)))
