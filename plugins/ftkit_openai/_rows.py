"""Examples in the provider's format: JSON Lines of chats, and the messages of one request."""

from __future__ import annotations

import codecs
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit.records import Example


def messages(example: Example) -> list[dict[str, Any]]:
    """Return the prompt of an example as chat messages."""
    return [message.asked() for message in example.messages]


def chats(examples: Iterable[Example]) -> Iterator[dict[str, Any]]:
    """Yield training chats: the prompt, and the target; `weight` 0 marks assistant messages that are not trained on."""
    for example in examples:
        yield example.training_chat()


def lines(examples: Iterable[Example]) -> Iterator[str]:
    """Yield the lines of a training file, without line ends."""
    for chat in chats(examples):
        yield json.dumps(chat, ensure_ascii=False)


@dataclass(frozen=True)
class DataFile:
    """A file to upload: its path, its size in bytes, its SHA-256, and the name for the upload, which contains the hash."""

    path: Path
    size: int
    sha256: str
    name: str


def write_file(path: Path, content: Iterable[str], kind: str, bom: bool) -> DataFile:
    """Write lines to `path` and describe the file. `kind` (train, batch, ...) is part of its name at the provider."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sha, size = hashlib.sha256(), 0
    with open(path, "wb") as file:
        for data in itertools.chain(
            [codecs.BOM_UTF8] if bom else [], (f"{x}\n".encode("utf-8", "replace") for x in content)
        ):
            size += file.write(data)
            sha.update(data)
    return DataFile(path, size, sha.hexdigest(), f"ftkit-{kind}-{sha.hexdigest()}.jsonl")
