"""What may help after a failure, as commands, and its traceback."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from dataclasses import replace
from pathlib import Path

from ..api import Backend
from ..causes import DISK, GPU, GPU_MEMORY, MEMORY, Failure
from ..directory import RunDirectory
from ..masking import masked
from ..recipe.load import PluginRef
from ..recipe.resumable import why_not_resumable
from ..records import Remedy

_SHOWN = 3  # remedies: more than that is a list to read, not a way on
_RESUME = "ftkit run --resume {run}"
_CORE: dict[str, tuple[Remedy, ...]] = {
    GPU_MEMORY.name: (Remedy("see which other programs use the GPU, and end them", command="nvidia-smi"),),
    MEMORY.name: (Remedy("see how much memory is free, and end what is not needed", command="free -h"),),
    DISK.name: (
        Remedy("see how much room is left where the run is", command="df -h {run}"),
        Remedy("find what is large there, such as checkpoints of other unfinished runs", command="du -h {run}/.. | sort -h | tail -20"),
    ),
    GPU.name: (
        Remedy("see whether the GPU and its driver answer", command="nvidia-smi"),
        Remedy("resume with exact error messages (slower)", command=f"CUDA_LAUNCH_BLOCKING=1 {_RESUME}"),
    ),
}  # fmt: skip


# ---------------------------------------------------------------- what may help


def remedies_of(failure: Failure, run: RunDirectory, backend: Backend | None) -> tuple[Remedy, ...]:
    """Return up to three remedies, each with its command: those of the backend first, then those of the core."""
    found: list[Remedy] = []
    if backend is not None:
        with contextlib.suppress(Exception):  # advice that fails must not hide the failure
            ref = run.recipe.backend
            found += [with_command(remedy, ref) for remedy in backend.remedies(failure, run)]
    if isinstance(failure.error, FileNotFoundError) and str(failure.error.filename).startswith(f"{run.dir}{os.sep}"):
        found.append(Remedy("put the file back, or run the recipe again", command="ftkit run {run}/recipe.yaml"))
    return tuple([*found, *_CORE.get(failure.cause, ())][:_SHOWN])


def with_command(remedy: Remedy, backend: PluginRef) -> Remedy:
    """Return a remedy whose command carries out its changes: the run is resumed with them, or started again."""
    if remedy.command or not remedy.changes:
        return remedy
    keys = [change.partition("=")[0] for change in remedy.changes]
    again = any(why_not_resumable(backend, key) for key in keys)
    start = "ftkit run {run}/recipe.yaml" if again else _RESUME
    options = " ".join(f"--set {shlex.quote(change)}" for change in remedy.changes)
    return replace(remedy, command=f"{start} {options}")


def command_for(remedy: Remedy, run: Path) -> str:
    """Return the command of a remedy with the path of its run directory, as a shell takes it."""
    return (remedy.command or "").replace("{run}", shlex.quote(str(run)))


def resume_command(run: Path) -> str:
    return _RESUME.replace("{run}", shlex.quote(str(run)))


# ---------------------------------------------------------------- the traceback

_MARK = "==== ftkit: the run failed"


def keep_traceback(run: RunDirectory, stage: str | None, error: BaseException) -> None:
    """Add the traceback to the run's debug.log, without secrets. Raises OSError."""
    import traceback

    text = "".join(traceback.format_exception(error))
    moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    where = f" in {stage}" if stage else ""
    descriptor = os.open(run.dir / "debug.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{_MARK}{where}, {moment}\n{masked(text)}")


def kept_traceback(run: RunDirectory, cap: int = 20_000) -> str | None:
    """Return the last traceback in debug.log, up to its last `cap` characters; None where there is none."""
    try:
        with open(run.dir / "debug.log", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4 * cap))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return None
    _, mark, found = text.rpartition(_MARK)
    return found.partition("\n")[2].strip()[-cap:] or None if mark else None
