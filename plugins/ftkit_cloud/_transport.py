"""What the engine needs of a way to another machine: run a command, put a file, get files."""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class Lost(Exception):
    """The connection failed or broke; the same call may succeed later. `str(error)` is the reason in a few words."""


@dataclass(frozen=True)
class Answer:
    """How a command ended there: its exit status, standard output, and standard error."""

    status: int
    out: bytes
    err: str


class Transport(ABC):
    """A way to run commands on one machine and to move files. Every method raises Lost where the connection fails.

    What no repetition can mend (a changed host key, no permission) is an InputError.
    """

    place: str  # the machine, as messages name it

    @abstractmethod
    def run(self, command: Sequence[str], input: bytes = b"", seconds: float | None = 60) -> Answer:
        """Run a command to its end, within `seconds`."""

    @abstractmethod
    def open(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a command, with pipes to its standard input, output and error. It ends when its input closes."""

    @abstractmethod
    def lost(self, status: int, err: str) -> Exception | None:
        """Return the error where a command ended since the connection failed; None where the command itself ended."""

    @abstractmethod
    def put(self, source: Path, target: str) -> None:
        """Write a file there, whole. Raises RunFailed where the machine has no room for it."""

    @abstractmethod
    def get(self, folder: str, paths: Sequence[str], into: Path) -> bool:
        """Write files of `folder` there to the same paths below `into`; what was got earlier may be kept.

        Return False where this transport has no way of its own: the engine then reads an archive from a command.
        """
