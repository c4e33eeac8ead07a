"""Keep secrets out of the logs of the HTTP libraries: at level DEBUG they write the headers of a response as they came."""

from __future__ import annotations

import logging

from ._mask import Mask

_LIBRARIES = ("openai", "httpx2", "httpcore2")


class _Filter(logging.Filter):
    """Masks the secrets of all providers that this process talked to."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: dict[tuple[str, ...], Mask] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        said = text = record.getMessage()
        for mask in tuple(self.masks.values()):
            text = mask(text, short=False)
        if text != said:
            record.msg, record.args = text, ()
        return True


_filter = _Filter()


def mask_logs(mask: Mask) -> None:
    """Mask the secrets of `mask` in what the HTTP libraries log from now on. Call it after the libraries are imported."""
    _filter.masks.setdefault(tuple(mask.needles), mask)
    for name in tuple(logging.root.manager.loggerDict):
        if name.split(".")[0] in _LIBRARIES:
            logging.getLogger(name).addFilter(_filter)  # a logger's filter does not see what those below it log
