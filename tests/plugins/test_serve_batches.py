"""The work of a batch job grows with its lines, not with their square."""

from __future__ import annotations

import json
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from ftkit.records import Prediction

pytest.importorskip("fastapi", reason="fastapi is not installed")


class FakeEngine:
    """Answers at once, in the thread of the caller."""

    def max_tokens(self, name: str) -> int:
        return 512

    def batch_size(self, name: str) -> int:
        return 4

    def submit(self, name: str, batch: Any, generation: Any) -> Future[list[Prediction]]:
        answered: Future[list[Prediction]] = Future()
        answered.set_result([Prediction(example.id, "answer", 0, "stop", 3, 4) for example in batch])
        return answered


def calls_of_a_batch_job(folder: Path, lines: int, temperature: float) -> int:
    """Run a batch job and return the number of calls, those of generators included."""
    from ftkit_serve.batches import Batches
    from ftkit_serve.files import Files
    from ftkit_serve.store import Database

    folder.mkdir()
    database = Database(folder / "server.sqlite")
    files = Files(folder, database)
    batches = Batches(folder, database, files, FakeEngine())  # type: ignore[arg-type]
    rows = []
    for i in range(lines):
        body = {"model": "m", "temperature": temperature, "messages": [{"role": "user", "content": f"line {i}"}]}
        rows.append({"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions", "body": body})
    rows[0]["body"] = {"model": "m"}  # one line that fails
    file = files.add("in.jsonl", "batch", "".join(json.dumps(row) + "\n" for row in rows).encode())
    batch = {"id": "batch_1", "status": "validating", "endpoint": "/v1/chat/completions", "input_file_id": file["id"]}
    database.add("batch", batch)
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        batches._run(batch)
    finally:
        sys.setprofile(None)
    done = database.get("batch", "batch_1")
    database.close()
    assert done is not None and done["status"] == "completed"
    assert done["request_counts"] == {"total": lines, "completed": lines - 1, "failed": 1}
    usage = (done["usage"]["input_tokens"], done["usage"]["output_tokens"], done["usage"]["total_tokens"])
    assert usage == (3 * (lines - 1), 4 * (lines - 1), 7 * (lines - 1))
    return calls


@pytest.mark.parametrize("temperature", [0, 1])
def test_four_times_the_lines_are_four_times_the_work(tmp_path: Path, temperature: float) -> None:
    few, many = (calls_of_a_batch_job(tmp_path / str(n), n, temperature) for n in (100, 400))
    assert 3 < many / few < 4.5
