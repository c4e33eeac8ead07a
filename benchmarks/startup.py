"""How soon the command line answers: `ftkit --help`, `check` on a bad recipe, `runs`; beside `trl --help`.

    python benchmarks/startup.py [--pairs 5]

Wall time of whole processes, which take turns; bytecode is cached, as it is after `pip install`. The bad
recipe has seven mistakes, three of them in columns of a local file of 15,000 rows; `runs` lists a folder of fifty.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _scale import setup

LIMIT = 0.3  # seconds
BAD = """\
nam: startup
seed: "42"
dataset: {path: rows.jsonl, columns: {input: dialog, target: summery, meta: [who]}}
backend: {plugin: trl-sft-qlora, base_model: x, lora_rank: 16}
evaluator: rogue
"""


def seconds(line: list[str], folder: Path) -> float:
    """Return how long a process took; one that fails is timed like any other."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    subprocess.run(line, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - started


def prepare(folder: Path) -> None:
    """Write the recipe, its rows, and fifty runs."""
    import ftkit

    (folder / "bad.yaml").write_text(BAD, encoding="utf-8")
    row = json.dumps({"id": "1", "dialogue": "Ann: hi\nBob: hello " * 20, "summary": "They meet."}) + "\n"
    (folder / "rows.jsonl").write_text(row * 15_000, encoding="utf-8")
    answers = folder / "answers.jsonl"
    answers.write_text(json.dumps({"prediction": "a", "target": "a"}) + "\n", encoding="utf-8")
    first = ftkit.score(answers, "exact-match", out=folder / "runs").dir
    for number in range(1, 50):
        shutil.copytree(first, first.with_name(f"{first.name}-{number:02}"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    pairs = parser.parse_args().pairs
    programs = Path(sys.executable).parent
    ftkit, trl = str(programs / "ftkit"), str(programs / "trl")
    commands = {
        "trl --help": [trl, "--help"],
        "ftkit --help": [ftkit, "--help"],
        "ftkit check, a bad recipe": [ftkit, "check", "bad.yaml"],
        "ftkit runs, fifty of them": [ftkit, "runs"],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for line in commands.values():  # once unmeasured: files come into memory
            seconds(line, folder)
        for _ in range(pairs):
            for name, line in commands.items():
                taken[name].append(seconds(line, folder))
    print(f"{setup('ftkit', 'trl', 'pydantic', 'click')}; median of {pairs}, taking turns; least and most in brackets")
    middle = {name: statistics.median(times) for name, times in taken.items()}
    for name, times in taken.items():
        ratio = middle[name] / middle["trl --help"]
        fit = "" if name.startswith("trl") else "  ok" if middle[name] < LIMIT else f"  NOT below {LIMIT} s"
        print(f"{name:<26} {middle[name]:.3f} s  [{min(times):.3f}, {max(times):.3f}]  {ratio:.2f} of trl --help{fit}")


if __name__ == "__main__":
    main()
