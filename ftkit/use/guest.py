"""A run directory that is only used: nothing is written into it. It stays as it was sealed, and may be read-only."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..directory import PluginState, RunDirectory


class GuestRun(RunDirectory):
    """A run as plugins see it that load its models: states are copies, and what is logged is shown to the user."""

    sealed = True

    def __init__(
        self, directory: Path, folder: Path | None = None, say: Callable[[str], None] = lambda text: None
    ) -> None:
        """`folder` is an empty folder for what plugins write; `say` shows a note or a warning of theirs."""
        super().__init__(directory)
        self._own = tempfile.TemporaryDirectory() if folder is None else None  # removed with this object
        self.folder, self.say = Path(self._own.name) if self._own else folder or Path(), say

    def log(self, event: str, **values: Any) -> None:
        if event in ("note", "warning") and values.get("message"):
            self.say(str(values["message"]))

    def scratch(self, name: str) -> Path:
        path = self.folder / "scratch" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def state(self, name: str) -> PluginState:
        own = super().state(name).path
        copy = self.folder / "state" / own.name
        copy.parent.mkdir(exist_ok=True)
        if own.exists() and not copy.exists():
            shutil.copyfile(own, copy)
        return PluginState(copy)
