"""Read back what the W&B client recorded: its transaction log (`run-ID.wandb`), a log of protobuf records.

The file is LevelDB's log format: a header of 7 bytes, then blocks of 32 KiB; a record, or a part of one, is a header (checksum,
length, kind: whole, first, middle, last) and its bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BLOCK, _HEADER = 32768, 7
_WHOLE, _LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """Yield the protobuf records of a transaction log."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data.startswith(b":W&B")
    position, parts = _HEADER, b""
    while position + _HEADER <= len(data):
        if _BLOCK - position % _BLOCK < _HEADER:
            position += _BLOCK - position % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + _HEADER])
        parts += data[position + _HEADER : position + _HEADER + length]
        position += _HEADER + length
        if kind in (_WHOLE, _LAST):
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


@dataclass
class Recorded:
    """One folder of wandb: what it holds of a run."""

    folder: Path
    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)  # glob of metrics -> their step metric
    artifacts: dict[str, Any] = field(default_factory=dict)  # by type
    kinds: list[str] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def text(self) -> str:
        """All bytes of the transaction log, as text: what is not in there is sent nowhere."""
        return b"".join(path.read_bytes() for path in self.folder.glob("*.wandb")).decode("utf-8", "replace")

    def curve(self, name: str) -> list[tuple[Any, Any]]:
        """Return (step of its axis, value) of a metric."""
        axis = f"{name.split('/')[0]}/step"
        return [(row[axis], row[name]) for row in self.history if name in row]

    def table(self, name: str) -> dict[str, Any]:
        path = next(row[name]["path"] for row in self.history if name in row)
        found: dict[str, Any] = json.loads((self.folder / "files" / path).read_text(encoding="utf-8"))
        return found

    def media(self, name: str) -> str:
        path = next(row[name]["path"] for row in self.history if name in row)
        return (self.folder / "files" / path).read_text(encoding="utf-8")


def recorded(folder: Path) -> Recorded:
    """Read a folder of wandb back."""
    found = Recorded(folder)
    (log,) = folder.glob("*.wandb")
    for record in records(log):
        kind = record.WhichOneof("record_type")
        found.kinds.append(kind)
        if kind == "run":
            found.run = record.run
            found.config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "summary":
            found.summary |= _values(record.summary.update)
        elif kind == "history":
            found.history.append(_values(record.history.item))
        elif kind == "metric" and record.metric.glob_name:
            found.axes[record.metric.glob_name] = record.metric.step_metric
        elif kind == "artifact":
            found.artifacts[record.artifact.type] = record.artifact
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _values(items: Any) -> dict[str, Any]:
    """Return the items of a record by their keys, nested ones as dicts."""
    found: dict[str, Any] = {}
    for item in items:
        first, *rest = item.nested_key or [item.key]
        place = found
        for key in rest:
            place = place.setdefault(first, {})
            first = key
        place[first] = json.loads(item.value_json)
    return found
