"""Shared by the benchmarks of scale: one task in a process of its own, its time and its peak memory."""

from __future__ import annotations

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any


def measured(script: str, *arguments: object) -> dict[str, Any]:
    """Run `python SCRIPT ARGUMENTS` and return the JSON object of its last line."""
    line = [sys.executable, script, *map(str, arguments)]
    return dict(json.loads(subprocess.run(line, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1]))


def report(work: Callable[[], dict[str, Any] | None]) -> None:
    """Do the work in this process and print what it took as the last line.

    `seconds` by the clock, `cpu` seconds of the processor (which a busy machine does not stretch), `peak_mb` of memory.
    """
    started, cpu = time.perf_counter(), time.process_time()
    found = work() or {}
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak_mb": peak, **found}))


def middle(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.median(float(run[key]) for run in runs)


def ratio(runs: list[dict[str, Any]], others: list[dict[str, Any]], key: str) -> float:
    """Return the median of the ratios of runs that took turns."""
    return statistics.median(a[key] / b[key] for a, b in zip(runs, others, strict=True))


def setup(*packages: str) -> str:
    """Say what the numbers were measured with."""
    from importlib.metadata import version

    return ", ".join([f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in packages), _processor()])


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
