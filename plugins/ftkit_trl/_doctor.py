"""What training on this machine needs, tried out (`ftkit doctor`). Imports no torch: `_probe` does, in other processes."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftkit.probing import Outcome, in_python, missing_modules
from ftkit.records import Diagnosis
from ftkit.text import one_line, size
from ftkit.versions import reinstall

from ._launch import processes, search_path, world_size
from .options import TrainOptions

_SECONDS = 150.0  # for one probe: PyTorch takes long to import from a slow disk
_COMPILE_SECONDS = 30.0
_MISMATCH = "version mismatch"
_COMPILER = "missing compiler"
_GPU = "the GPU is not used"
_PROCESSES = "two processes do not find each other"
_PROGRAM = "#include <Python.h>\n#include <vector>\nint main() { return (int)std::vector<int>(1)[0]; }\n"


def diagnoses(modules: tuple[str, ...], quantised: bool, options: TrainOptions | None) -> Iterator[Diagnosis]:
    """Yield what works of what a backend needs; with `options`, of what they need."""
    found = _probe("torch")
    if found.result is None:
        yield Diagnosis("PyTorch", False, found.error, reinstall("torch"), _MISMATCH)
        return
    yield Diagnosis("PyTorch", True, f"{found.result['version']}, built for CUDA {found.result['built_for'] or '-'}")
    yield from _gpus(found.result, options)
    four_bit = _four_bit() if quantised else None
    if four_bit is not None:
        yield four_bit
        if four_bit.ok is False:
            return  # the other libraries import it
    wrong = _wrong_import(tuple(m for m in modules if m not in ("torch", "bitsandbytes")))
    if wrong is not None:
        yield wrong
        return
    yield from _attention(options)
    yield from _deepspeed(options)
    if options is None or world_size(options) > 1:
        yield _handshake(options)


@functools.cache
def _probe(*arguments: str) -> Outcome:
    """Return how a probe ended; once in this process, since three backends share most of them."""
    return in_python(["-m", "ftkit_trl._probe", *arguments], _SECONDS, {"HF_HUB_OFFLINE": "1", "PATH": search_path()})


# ---------------------------------------------------------------- GPUs


def _gpus(facts: dict[str, Any], options: TrainOptions | None) -> Iterator[Diagnosis]:
    driver = _driver()
    if not facts["gpus"]:
        if driver is None:
            yield Diagnosis("GPU", None, "none: models train and answer on the CPU")
        elif os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
            yield Diagnosis("GPU", None, "CUDA_VISIBLE_DEVICES hides all of them")
        else:
            text = (
                f"driver {driver} is there, and PyTorch {facts['version']} does not use it: {facts['why'] or 'unknown'}"
            )
            fix = (
                "update the NVIDIA driver, or install the PyTorch that is built for it (https://pytorch.org)"
                if facts["built_for"]
                else "this PyTorch is built for CPUs: install the one for CUDA (https://pytorch.org)"
            )
            yield Diagnosis("GPU", False, text, fix, _GPU)
    for number, gpu in enumerate(facts["gpus"]):
        yield _one_gpu(number, gpu, driver or "unknown", options)


def _one_gpu(number: int, gpu: dict[str, Any], driver: str, options: TrainOptions | None) -> Diagnosis:
    what, capability = f"GPU {number}", ".".join(map(str, gpu["capability"]))
    text = f"{gpu['name']}, {size(gpu['memory'])}, driver {driver}, compute capability {capability}"
    if "error" in gpu:
        fix = f"install a PyTorch that is built for compute capability {capability} (https://pytorch.org)"
        return Diagnosis(what, False, f"{text}: {gpu['error']}", fix, _GPU)
    if not gpu["bf16"] and options is not None and options.dtype == "bfloat16":
        return Diagnosis(what, False, f"{text}: it has no bf16", "--set backend.dtype=auto", _GPU)
    return Diagnosis(what, True, f"{text}, {'bf16' if gpu['bf16'] else 'no bf16: fp16 is used'}")


def _driver() -> str | None:
    """Return the version of the NVIDIA driver; None where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return found[0] if found else None


# ---------------------------------------------------------------- libraries


def _wrong_import(modules: tuple[str, ...]) -> Diagnosis | None:
    found = _probe("imports", *modules)
    if found.result == {}:
        return None
    if not missing_modules(["bitsandbytes"]) and _four_bit().ok is False:  # they import it where it is installed
        return _four_bit()
    if found.result is None:
        names = ", ".join(modules)
        return Diagnosis("libraries", False, f"importing {names}: {found.error}", reinstall(modules[0]), _MISMATCH)
    module, error = found.result["module"], found.result["error"]
    return Diagnosis("libraries", False, f"{module} cannot be imported: {error}", reinstall(module), _MISMATCH)


def _four_bit() -> Diagnosis:
    what = "4-bit matmul"
    found = _probe("four_bit")
    if found.result is None:
        text = f"bitsandbytes does not work: {found.error}"
        return Diagnosis(what, False, text, reinstall("bitsandbytes"), _MISMATCH)
    return Diagnosis(what, True, f"bitsandbytes {found.result['version']} on {found.result['device']}")


def _attention(options: TrainOptions | None) -> Iterator[Diagnosis]:
    """Yield the attention that a recipe names, tried on a tiny model; else the default, which was tried with PyTorch."""
    name = options.attn_implementation if options is not None else None
    if name in (None, "sdpa"):
        yield Diagnosis("attention", True, "sdpa")
        return
    found = _probe("attention", name)
    if found.result is None:
        text = f"{name} does not work: {found.error}"
        yield Diagnosis("attention", False, text, "--set backend.attn_implementation=sdpa", _MISMATCH)
    else:
        yield Diagnosis("attention", True, f"{name} on {found.result['device']}")


# ---------------------------------------------------------------- several processes


def _deepspeed(options: TrainOptions | None) -> Iterator[Diagnosis]:
    """Yield DeepSpeed and what it builds itself with: where a recipe asks for it, or it is installed."""
    installed = not missing_modules(["deepspeed"])
    launch = options.launch if options is not None else None
    if not (launch is not None and launch.deepspeed) and not (options is None and installed):
        return
    if not installed:
        yield Diagnosis("DeepSpeed", False, "it is not installed", "pip install 'ftkit[deepspeed]'", _MISMATCH)
        return
    build = _build_chain()
    yield build
    if build.ok is False:
        return
    found = _probe("imports", "deepspeed")
    error = found.error or (found.result or {}).get("error", "")
    if error:
        yield Diagnosis("DeepSpeed", False, f"it cannot be imported: {error}", reinstall("deepspeed"), _MISMATCH)


@functools.cache
def _build_chain() -> Diagnosis:
    """Say whether DeepSpeed can build its parts: a C++ compiler that compiles, ninja, and with a GPU CUDA's compiler."""
    what, path = "DeepSpeed's build chain", search_path()
    missing = [name for name in ("g++", "ninja") if shutil.which(name, path=path) is None]
    if missing:
        fix = "install a C++ compiler and ninja (Debian: apt install g++ ninja-build)"
        return Diagnosis(what, False, f"{' and '.join(missing)} cannot be found", fix, _COMPILER)
    command = ["g++", "-x", "c++", "-fsyntax-only", "-I", sysconfig.get_paths()["include"], "-"]
    try:
        done = subprocess.run(
            command,
            input=_PROGRAM,
            capture_output=True,
            text=True,
            timeout=_COMPILE_SECONDS,
            env={**os.environ, "PATH": path},
        )
        why = next((line for line in done.stderr.splitlines() if "error" in line), "") if done.returncode else None
    except (OSError, subprocess.SubprocessError) as error:
        why = str(error)
    if why is not None:
        fix = "install the C++ standard library and Python's headers (Debian: apt install g++ python3-dev)"
        return Diagnosis(what, False, f"g++ cannot compile a program: {one_line(why, 200)}", fix, _COMPILER)
    facts = _probe("torch").result or {}
    if facts.get("gpus") and _nvcc(path) is None:
        fix = f"install CUDA {facts['built_for']}'s toolkit, and set CUDA_HOME to its folder"
        return Diagnosis(what, False, "CUDA_HOME is not set, and there is no nvcc", fix, _COMPILER)
    return Diagnosis(what, True, "g++ and ninja" + (" and nvcc" if facts.get("gpus") else ""))


def _nvcc(path: str) -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return shutil.which("nvcc", path=str(Path(home, "bin")))
    return shutil.which("nvcc", path=path) or shutil.which("nvcc", path="/usr/local/cuda/bin")


def _handshake(options: TrainOptions | None) -> Diagnosis:
    found = _probe("handshake")
    if found.result is None:
        text = f"two processes of this machine cannot train together: {found.error}"
        fix = "let processes connect to 127.0.0.1; GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names the interface"
        return Diagnosis("two processes", False, text, fix, _PROCESSES)
    of = f"; the recipe starts {processes(options)}" if options is not None else ""
    return Diagnosis("two processes", True, f"they find each other over {found.result['over']}{of}")
