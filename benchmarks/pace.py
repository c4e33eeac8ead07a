"""Compare the time that a training was said to take with the time that it took.

    python benchmarks/pace.py RUN_DIR...

For the forecast after three measured steps, and for each tenth of the steps: the seconds that training was said to take
in all, and their error. Runs that were resumed are not judged.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ftkit.directory import RunDirectory


def judge(path: Path) -> None:
    rows = RunDirectory.open(path).log_rows()
    if sum(row["event"] == "start" for row in rows) != 1:
        print(f"{path.name}: resumed, not judged")
        return
    steps = [row for row in rows if row["event"] == "step"]
    took = steps[-1]["seconds"]
    print(f"{path.name}: {steps[-1]['step']} steps took {took:.1f} s")
    for row in rows:
        if row["event"] == "forecast":
            print(
                f"  step {row['step']:>5} (three measured): {row['seconds']:8.1f} s  {row['seconds'] / took - 1:+.1%}"
            )
    shown = [row for row in steps if "seconds_left" in row]
    for tenth in range(1, 10):
        row = next((r for r in shown if r["step"] >= tenth * r["max_steps"] / 10), None)
        if row is not None:
            total = row["seconds"] + row["seconds_left"]
            print(f"  step {row['step']:>5} ({tenth} tenths): {total:8.1f} s  {total / took - 1:+.1%}")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        judge(Path(name))
