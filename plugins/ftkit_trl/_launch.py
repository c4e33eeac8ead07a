"""Train a prepared run directory with several processes: start them, wait for them, and say what ended one of them."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from ftkit.api import Run
from ftkit.causes import MEMORY, words_of
from ftkit.errors import InputError, ProcessFailed
from ftkit.files import read_json, write_json
from ftkit.records import ModelRef

from ._device import visible_gpus
from .options import ZERO_CONFIGS, LaunchOptions, TrainOptions

_POLL = 0.2  # seconds
_PATIENCE = 20.0  # seconds that the launcher has to end its processes
# What a process says when another one has ended: never the cause.
_CONNECTION = ("Connection closed by peer", "Connection reset by peer", "connectFullMesh", "NCCL error", "Broken pipe")


def processes(options: TrainOptions, gpus: int | None = None) -> int:
    """Return how many processes of a machine train: `auto` is one for each GPU, and at least one.

    `gpus` are those of another machine; None: those that are visible here.
    """
    launch = options.launch
    if launch is None:
        return 1
    if launch.processes != "auto":
        return launch.processes
    return max(1, len(visible_gpus()) if gpus is None else gpus)


def world_size(options: TrainOptions, gpus: int | None = None) -> int:
    """Return how many processes train together, on all machines; `gpus` as in `processes`."""
    return processes(options, gpus) * (options.launch.nodes if options.launch else 1)


def deepspeed_config(named: str) -> str:
    """Return the path of a DeepSpeed config: one of those that come with ftkit, or the user's file."""
    return str(Path(__file__).parent / "deepspeed_configs" / f"{named}.json") if named in ZERO_CONFIGS else named


def is_launched(options: TrainOptions) -> bool:
    """Return whether training starts processes of its own; one process without sharding trains in this process."""
    launch = options.launch
    if launch is None or "RANK" in os.environ:
        return False
    return world_size(options) > 1 or bool(launch.deepspeed or launch.fsdp or launch.accelerate_config)


def train_in_processes(options: TrainOptions, run: Run) -> ModelRef:
    """Train with the processes that `options.launch` asks for. Raises ProcessFailed with the first failure."""
    assert options.launch is not None
    _check_checkpoints(options, run)
    for left in (run.path("train", "failures.json"), *run.path("train").glob("error*.json")):  # of an earlier attempt
        left.unlink(missing_ok=True)
    run.path("train").mkdir(exist_ok=True)
    command = _command(options.launch, processes(options), run)
    if options.launch.nodes > 1 and options.launch.accelerate_config is None:
        shown = shlex.join(["python", *command[1:]])
        run.log("note", message=f"waiting for {options.launch.nodes - 1} other machines; start on each: {shown}")
    # The processes write to files of the run: all of the output of a failed one is in debug.log.
    with open(run.path("debug.log"), "ab") as log:
        _wait([*command, "--end-with-stdin", "--parent-holds-lock"], _environment(options), log)
    written = run.path("train", "model.json")
    if not written.exists():
        raise _cause(run)
    return ModelRef.from_dict(read_json(written))


def _command(launch: LaunchOptions, count: int, run: Run) -> list[str]:
    if launch.accelerate_config is not None:
        accelerate = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
        return [*accelerate, "--config_file", launch.accelerate_config, "-m", "ftkit_trl.rank", str(run.dir)]
    command = [sys.executable, "-m", "ftkit_trl.launcher", str(run.dir), "--processes", str(count)]
    if launch.nodes > 1:
        command += ["--nodes", str(launch.nodes), "--rendezvous", str(launch.rendezvous)]
    return command


def search_path() -> str:
    """Return PATH with the programs of this environment, such as the ninja that pip installed."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _environment(options: TrainOptions) -> dict[str, str]:
    """Return the environment of the processes: all GPUs are visible; on a CPU they share its cores."""
    environment = dict(os.environ)
    gpus = visible_gpus()
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes(options))))
    environment["PATH"] = search_path()
    environment["PYTHONUNBUFFERED"] = "1"
    environment.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # PyTorch's own, at each step of each process
    return environment


def _wait(command: list[str], environment: dict[str, str], log: IO[bytes]) -> None:
    """Run the launcher to its end. Its processes end with this one: they wait for the end of their standard input."""
    launcher = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
    )
    try:
        while launcher.poll() is None:
            time.sleep(_POLL)
    finally:
        assert launcher.stdin is not None
        launcher.stdin.close()
        if launcher.poll() is None:
            launcher.terminate()
            try:
                launcher.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                launcher.kill()
                launcher.wait()


# ---------------------------------------------------------------- what ended a process


def _cause(run: Run) -> ProcessFailed:
    """Return the error of the process that failed first; those of the others follow from it."""
    path = run.path("train", "failures.json")
    failures: dict[str, dict[str, Any]] = read_json(path) if path.exists() else {}
    errors = {_rank(file): (file.stat().st_mtime, read_json(file)) for file in run.path("train").glob("error*.json")}
    for rank, failure in failures.items():
        code = failure["exitcode"]
        if code < 0 and -code != signal.SIGTERM and rank not in errors:
            return _killed(rank, signal.Signals(-code))
    first = sorted(errors.items(), key=lambda e: (any(c in e[1][1]["message"] for c in _CONNECTION), e[1][0]))
    if first:
        rank, (_, error) = first[0]
        words = words_of(error["cause"])
        message = f"process {rank}: {words}: {error['message']}" if words else f"process {rank}: {error['message']}"
        return ProcessFailed(message, error["hint"], error["cause"], error["kind"])
    return ProcessFailed("the training processes ended without a model", "debug.log holds their output")


def _killed(rank: str, by: signal.Signals) -> ProcessFailed:
    message = f"process {rank} was ended by signal {by.value} ({by.name})"
    if by != signal.SIGKILL:
        return ProcessFailed(message, "debug.log holds its output")
    return ProcessFailed(
        message,
        "if no person ended it, the machine probably ran out of memory. Each process holds a whole model unless it is "
        "sharded (backend.launch: {fsdp: 2} or {deepspeed: zero3})",
        MEMORY.name,
    )


def _rank(path: Path) -> str:
    return path.stem.removeprefix("error").removeprefix("-rank-") or "0"


# ---------------------------------------------------------------- resume


def _check_checkpoints(options: TrainOptions, run: Run) -> None:
    """Raise InputError where the checkpoints of an earlier attempt cannot be resumed with these processes."""
    assert options.launch is not None
    launch, size = options.launch, world_size(options)
    engine = "deepspeed" if launch.deepspeed else "fsdp" if launch.fsdp else "accelerate" if launch.accelerate_config else "ddp"  # fmt: skip
    path = run.scratch("checkpoints") / "processes.json"
    if path.exists():
        before = read_json(path)
        if before["engine"] != engine or (engine != "ddp" and before["processes"] != size):
            raise InputError(
                f"the checkpoints of this run are of {before['processes']} processes ({before['engine']}), and now there "
                f"are {size} ({engine}): each process reads its own part of a checkpoint",
                f"resume with {before['processes']} processes, or start the run again",
            )
    write_json(path, {"processes": size, "engine": engine})
