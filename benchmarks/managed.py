"""How fast a provider is asked: 2,000 predictions against a local server that takes 50 ms for each.

    python benchmarks/managed.py [--rows 2000] [--latency 0.05] [--concurrency 16]

Prints one line of JSON: `share` is the speed reached, as a share of concurrency / latency; `times_a_loop` compares
with one request every quarter of a second; `processor_ms_each` is what an answer costs this process, whatever else
runs on the machine; `memory_growth` is in bytes, from the 200th prediction to the last.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STUB = Path(__file__).parents[1] / "tests" / "plugins" / "openai_stub.py"


def resident() -> int:
    """Return the memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measured(url: str, rows: int, concurrency: int) -> tuple[float, float, int]:
    """Return the seconds of a generation with all that a run does per answer, those of the processor, and the growth of memory."""
    from ftkit_openai import ManagedOptions, OpenAIManaged

    from ftkit.directory import RunDirectory
    from ftkit.recipe.load import load_recipe
    from ftkit.records import Example, Measurement, Message, ModelRef, Task
    from ftkit.run.measure import generate

    sys.path.insert(0, str(STUB.parent))
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory.create(Path(folder), "benchmark")
        examples = tuple(
            Example(f"row-{i}", (Message("user", f"row {i} " + "word " * 100),), ("x",), "x") for i in range(rows)
        )
        run.task = Task("benchmark", {"test": examples}, {"test": "x"}, "x")
        run.recipe = load_recipe(
            {
                "name": "benchmark",
                "dataset": {
                    "path": "loader:quickstart-dialogues",
                    "columns": {"input": "dialogue", "target": "summary"},
                },
                "backend": {"plugin": "openai-managed", "base_model": "gpt-4o-mini-2024-07-18", "base_url": url},
                "evaluator": {"plugin": "exact-match"},
            }
        )
        backend = OpenAIManaged(
            ManagedOptions(base_model="gpt-4o-mini-2024-07-18", base_url=url, concurrency=concurrency)
        )
        memory: list[int] = []
        model = ModelRef("remote", "gpt-4o-mini-2024-07-18")
        with backend.load(model, run) as session:
            began, busy = time.monotonic(), time.process_time()
            generate(run, backend, session, Measurement("baseline", model), lambda *_: memory.append(resident()))
            seconds, busy = time.monotonic() - began, time.process_time() - busy
        return seconds, busy, memory[-1] - memory[min(200, len(memory) // 2)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--concurrency", type=int, default=16)
    o = parser.parse_args()
    os.environ["OPENAI_API_KEY"] = "sk-proj-TESTSECRET0123456789abcdefghijklmnop"
    stub = subprocess.Popen(
        [sys.executable, STUB, str(o.latency)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert stub.stdin is not None and stub.stdout is not None
    try:
        seconds, busy, growth = measured(stub.stdout.readline().strip(), o.rows, o.concurrency)
    finally:
        stub.stdin.close()
        stub.wait()
    rate, ideal = o.rows / seconds, o.concurrency / o.latency
    print(json.dumps({
        "rows": o.rows, "latency": o.latency, "concurrency": o.concurrency, "seconds": round(seconds, 2), "per_second": round(rate, 1),
        "share": round(rate / ideal, 3), "times_a_loop": round(rate / 4, 1), "processor_ms_each": round(busy / o.rows * 1000, 2), "memory_growth": growth,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
