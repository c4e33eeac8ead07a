"""What trackers cost: `ftkit run` of the quickstart with `wandb` (offline) and `trackio`, and without them.

    python benchmarks/trackers.py [--pairs 5] [--steps 300]

Whole processes, which take turns; each measures its own baseline. The aim is below 3 % more time. What trackers cost
hardly depends on the length of the training: many pairs with few steps say it to a tenth of a second, where single
long runs vary by more than that.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _scale import setup

RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"
AIM = 0.03
TRACKERS = "tracking=[{plugin: wandb, mode: offline}, {plugin: trackio}]"


def seconds(folder: Path, tracked: bool, steps: int) -> float:
    """Return how long one run took, from start to exit."""
    own = {"WANDB_DATA_DIR": str(folder / "wandb-data"), "TRACKIO_DIR": str(folder / "trackio")}
    line = [sys.executable, "-m", "ftkit", "run", str(RECIPE), "--out", str(folder / "runs"), "--no-reuse"]
    line += ["--set", f"backend.max_steps={steps}", *(["--set", TRACKERS] if tracked else [])]
    began = time.perf_counter()
    done = subprocess.run(line, env={**os.environ, **own}, capture_output=True, text=True)
    took = time.perf_counter() - began
    assert done.returncode == 0, done.stderr
    assert ("wandb sync" in done.stderr) == tracked and "dropped" not in done.stderr, done.stderr
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    print(setup())
    ratios, more = [], []
    with tempfile.TemporaryDirectory() as folder:
        seconds(Path(folder), True, 1)  # files are in the system's cache from here on
        for pair in range(arguments.pairs):
            order = (False, True) if pair % 2 else (True, False)
            took = {tracked: seconds(Path(folder), tracked, arguments.steps) for tracked in order}
            ratios.append(took[True] / took[False])
            more.append(took[True] - took[False])
            print(f"without {took[False]:.1f} s, with both {took[True]:.1f} s: {ratios[-1]:.3f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.3f}, aim below {1 + AIM:.2f}")
    error = statistics.stdev(more) / len(more) ** 0.5 if len(more) > 1 else float("nan")
    print(f"seconds more: mean {statistics.mean(more):+.2f}, standard error {error:.2f}")


if __name__ == "__main__":
    main()
