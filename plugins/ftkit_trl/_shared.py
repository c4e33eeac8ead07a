"""A loaded base model with any number of adapters in the same memory: one of them, or none, answers at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ._model import ignore_deprecation_in_peft
from ._weights import check_attached


class Weights:
    """The weights of one base model, and its adapters by name.

    `key` is all that decides the base model's weights and how they compute: sessions with one key can share them. None
    where they cannot be shared (fully trained weights, several processes).
    """

    def __init__(self, model: PreTrainedModel, key: tuple[Any, ...] | None = None) -> None:
        self.model: Any = model  # a PeftModel once an adapter is attached
        self.key = key
        self._attached = int(hasattr(model, "peft_config"))
        self._lock = threading.Lock()
        self._thread: int | None = None  # the one whose generation holds the lock

    def attach(self, folder: Path) -> str:
        """Add a saved adapter and return its name here. Raises RunFailed where it does not fit the base model."""
        from peft import PeftModel

        ignore_deprecation_in_peft()
        name = "default" if not self._attached else f"adapter-{self._attached}"
        with self._held():
            if isinstance(self.model, PeftModel):
                self.model.load_adapter(str(folder), adapter_name=name)
            else:
                self.model = PeftModel.from_pretrained(self.model, str(folder), adapter_name=name)
            self.model.eval()
            self._attached += 1
        check_attached(self.model, folder, name)
        return name

    def detach(self, name: str) -> None:
        """Free an adapter; the base model and the other adapters stay."""
        with self._held():
            if len(self.model.peft_config) > 1:  # peft cannot be without any
                self.model.delete_adapter(name)

    @contextlib.contextmanager
    def answering(self, adapter: str | None) -> Iterator[None]:
        """Let the base model with this adapter, or without any, compute until the block ends; others wait."""
        with self._held():
            if not self._attached:
                yield
            elif adapter is None:
                with self.model.disable_adapter():
                    yield
            else:
                if self.model.active_adapter != adapter:
                    self.model.set_adapter(adapter)
                yield

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        if self._thread == threading.get_ident():  # it would wait for itself
            raise RuntimeError("two sessions share these weights: end one generation before another one begins")
        with self._lock:
            self._thread = threading.get_ident()
            try:
                yield
            finally:
                self._thread = None
