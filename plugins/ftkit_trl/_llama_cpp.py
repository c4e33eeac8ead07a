"""llama.cpp's own programs: the converter to GGUF, the quantiser, and a runtime that answers from the file.

FTKIT_LLAMA_CPP names a checkout or an installation of llama.cpp; else PATH is searched. The runtime is the package
llama-cpp-python. Native code runs in a process of its own: a crash of it is a message.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from ftkit.errors import RunFailed
from ftkit.files import write_json
from ftkit.probing import in_python
from ftkit.records import Example, Finding, GenerationConfig, Prediction
from ftkit.text import one_line

VARIABLE = "FTKIT_LLAMA_CPP"
BYTES = {"q8_0": 1.1, "q4_k_m": 2.7}  # of a parameter on the disk: the file, and for q4_k_m the bf16 file before it
_CONVERTER, _QUANTISER = "convert_hf_to_gguf.py", "llama-quantize"
_PLACES = ("", "bin", "build/bin", "libexec")  # where a checkout or an installation has its programs
_RUNTIME = "llama_cpp"
_PATIENCE = 3600.0  # seconds for one program
_GET_CONVERTER = (
    f"get llama.cpp (git clone of ggml-org/llama.cpp, or a package of your system) and name its folder: "
    f"export {VARIABLE}=FOLDER"
)


def _find(program: str) -> str | None:
    """Return the path of a program of llama.cpp, or None."""
    folder = os.environ.get(VARIABLE)
    places = [Path(folder).expanduser() / place / program for place in _PLACES] if folder else []
    return next((str(p) for p in places if p.is_file()), None) or shutil.which(program)


def _has_runtime() -> bool:
    return importlib.util.find_spec(_RUNTIME) is not None


def missing(quantisation: str) -> Iterator[Finding]:
    """Yield what a GGUF file of this quantisation needs, and what is not here."""
    folder = os.environ.get(VARIABLE)
    if folder and not Path(folder).expanduser().is_dir():
        yield Finding("error", f"{VARIABLE}={folder}: there is no such folder", f"name a folder of llama.cpp, or unset {VARIABLE}")  # fmt: skip
    elif _find(_CONVERTER) is None:
        yield Finding("error", f"a GGUF file needs llama.cpp's converter {_CONVERTER}, and it is not on this machine", _GET_CONVERTER)  # fmt: skip
    elif (broken := _broken(str(_find(_CONVERTER)))) is not None:
        yield Finding("error", broken.message, broken.hint)
    if importlib.util.find_spec("gguf") is None:
        yield Finding("error", "a GGUF file is measured, and the package gguf that reads it is not installed", "pip install 'ftkit[gguf]'")  # fmt: skip
    if quantisation != "q8_0" and _find(_QUANTISER) is None and not _has_runtime():
        yield Finding(
            "error",
            f"{quantisation} needs llama.cpp's {_QUANTISER}, and it is not on this machine",
            f"build it (cmake -B build && cmake --build build --target {_QUANTISER}) and name its folder in {VARIABLE}, "
            "or: pip install llama-cpp-python; q8_0 needs neither",
        )
    if not _has_runtime():
        yield Finding("note", "no answer is tried with llama.cpp: llama-cpp-python is not installed")


@lru_cache(maxsize=1)
def _broken(script: str) -> RunFailed | None:
    """Return why the converter cannot even show its help (it lacks a package, say), or None; takes some seconds."""
    try:
        _run([sys.executable, script, "--help"], "llama.cpp's converter")
    except RunFailed as error:
        return error
    return None


def convert(weights: Path, file: Path, quantisation: str) -> None:
    """Convert a folder of safetensors to a GGUF file. Raises RunFailed with the last words of the program that failed."""
    script = _find(_CONVERTER)
    if script is None:
        raise RunFailed(f"llama.cpp's {_CONVERTER} is gone", _GET_CONVERTER)
    direct = quantisation == "q8_0"
    first = file if direct else file.with_name(f".{file.stem}.bf16.gguf")
    line = [sys.executable, script, str(weights), "--outfile", str(first), "--outtype", "q8_0" if direct else "bf16"]
    _run(line, "llama.cpp's converter")
    if not direct:
        _quantise(first, file, quantisation)
        first.unlink()
    if not file.is_file():
        raise RunFailed(f"llama.cpp wrote no {file.name}")


def _quantise(source: Path, file: Path, quantisation: str) -> None:
    program = _find(_QUANTISER)
    if program is not None:
        return _run([program, str(source), str(file), quantisation.upper()], f"llama.cpp's {_QUANTISER}")
    done = in_python(["-m", "ftkit_trl._llama_worker", "quantise", str(source), str(file), quantisation], _PATIENCE)
    if done.error:
        raise RunFailed(f"llama.cpp could not quantise to {quantisation}: {done.error}")


def _run(line: Sequence[str], what: str) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            line, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, env=environment, timeout=_PATIENCE
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RunFailed(f"{what} was not done after {_PATIENCE:.0f} s") from None
    except OSError as error:
        raise RunFailed(f"{what} cannot be started: {error.strerror}") from None
    if done.returncode:
        raise _explained(what, done.stderr or done.stdout)


def _explained(what: str, said: str) -> RunFailed:
    lacking = re.search(r"No module named '([\w.]+)'", said)
    if lacking:
        return RunFailed(f"{what} needs the Python package {lacking[1]}, which is not installed",
                         f"pip install {lacking[1]} (requirements/ in llama.cpp lists all that it needs)")  # fmt: skip
    if "BPE pre-tokenizer was not recognized" in said or "get_vocab_base_pre" in said:
        return RunFailed(f"{what} does not know this model's tokenizer, so llama.cpp would split texts wrongly",
                         "update llama.cpp; for a tokenizer of your own there is none: export with --merge instead")  # fmt: skip
    if "is not supported" in said and "Model" in said:
        return RunFailed(f"{what} does not know this kind of model: {_last(said)}", "update llama.cpp, or export with --merge instead")  # fmt: skip
    return RunFailed(f"{what} failed: {_last(said)}")


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return one_line(lines[-1], 300) if lines else "it said nothing"


# ---------------------------------------------------------------- the runtime


def answer(
    file: Path, examples: Sequence[Example], generation: GenerationConfig
) -> tuple[str, list[Prediction]] | None:
    """Let llama-cpp-python answer examples as chats, greedily; None where it is not installed, or an example has tools.

    A prediction with `error` stands for each row where the program failed or crashed.
    """
    if not _has_runtime() or any(e.tools for e in examples):
        return None
    asked = {
        "chats": [[m.asked() for m in e.messages] for e in examples],
        "max_tokens": generation.max_new_tokens,
        "stop": list(generation.stop),
        "repeat_penalty": generation.repetition_penalty,
    }
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder, "asked.json"), asked)
        done = in_python(
            ["-m", "ftkit_trl._llama_worker", "answer", str(file), str(Path(folder, "asked.json"))], _PATIENCE
        )
    if done.error:
        return "llama.cpp", [Prediction(e.id, "", finish_reason="error", error=done.error) for e in examples]
    found = done.result
    assert isinstance(found, dict), json.dumps(found)
    pairs = zip(examples, found["answers"], strict=True)
    return f"llama.cpp (llama-cpp-python {found['version']})", [Prediction(e.id, text) for e, text in pairs]
