"""What made a run fail, as far as an exception says it: out of memory, a full disk, a network that is away."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass

from .errors import ProcessFailed


@dataclass(frozen=True)
class Cause:
    """One kind of failure: `name` is what plugins receive (`Failure.cause`), `words` what people read."""

    name: str
    words: str


@dataclass(frozen=True)
class Failure:
    """How a run ended: what `Backend.remedies` receives.

    `cause` is gpu-memory, memory (of the machine), disk, gpu (a device error), timeout, network, or other. `stage` is
    the run's stage, such as "train". `error` is what was raised; None where the process was killed. `kind` names the type
    of what was raised first, also where that was in another process.
    """

    cause: str
    stage: str
    error: BaseException | None = None

    @property
    def kind(self) -> str:
        return self.error.kind if isinstance(self.error, ProcessFailed) else type(self.error).__name__


GPU_MEMORY = Cause("gpu-memory", "the GPU has not enough memory")
MEMORY = Cause("memory", "this machine has not enough memory")
DISK = Cause("disk", "the disk is full")
GPU = Cause("gpu", "the GPU reported an error")
TIMEOUT = Cause("timeout", "no answer came in time")
NETWORK = Cause("network", "the network, or the server at its other end, cannot be reached")
OTHER = Cause("other", "")
_ALL = (GPU_MEMORY, MEMORY, DISK, GPU, TIMEOUT, NETWORK, OTHER)

# By the name of a type: each library, and each of its versions, has types of its own.
_TYPES = (
    ("OutOfMemoryError", GPU_MEMORY),
    ("MemoryError", MEMORY),
    ("TimeoutError", TIMEOUT),
    ("TimeoutException", TIMEOUT),
    ("Timeout", TIMEOUT),
    ("ConnectionError", NETWORK),
    ("ConnectError", NETWORK),
    ("gaierror", NETWORK),
)
_ERRNOS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), DISK),
    errno.ENOMEM: MEMORY,
    errno.ETIMEDOUT: TIMEOUT,
    **dict.fromkeys((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN), NETWORK),
}
_TEXTS = (
    (r"(CUDA|HIP|MPS|XPU|NPU|GPU)\b.{0,40}\bout of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED", GPU_MEMORY),
    (r"DefaultCPUAllocator|can.?t allocate memory|Cannot allocate memory|Unable to allocate .{0,20}i?B\b", MEMORY),
    (r"std::bad_alloc|DataLoader worker .{0,40}killed by signal: Killed", MEMORY),
    (r"No space left on device|Disk quota exceeded", DISK),
    (r"(CUDA|HIP|NCCL|cuDNN) error|device-side assert|uncorrectable ECC", GPU),
    (r"\btimed out\b", TIMEOUT),
    (r"Name or service not known|name resolution|Connection refused|Connection reset|Max retries exceeded", NETWORK),
)


def words_of(cause: str) -> str:
    """Return the words for the name of a cause; empty where there are none."""
    return next((each.words for each in _ALL if each.name == cause), "")


def cause_of(error: BaseException) -> Cause:
    """Return what made `error`: the first of its chain of causes that says so; `OTHER` where none does."""
    return next((cause for each in chain(error) if (cause := _own_cause(each)) is not None), OTHER)


def _own_cause(error: BaseException) -> Cause | None:
    if isinstance(error, ProcessFailed):
        return next((cause for cause in _ALL if cause.name == error.cause), OTHER)
    types = {cls.__name__ for cls in type(error).__mro__}
    by_type = next((cause for name, cause in _TYPES if name in types), None)
    by_number = _ERRNOS.get(error.errno or 0) if isinstance(error, OSError) else None
    if by_number or by_type:
        return by_number or by_type
    if isinstance(error, OSError | SyntaxError):  # a file's name may hold any words
        return None
    text = str(error)[:4000]
    return next((cause for pattern, cause in _TEXTS if re.search(pattern, text, re.I)), None)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and what caused it, the last first."""
    for _ in range(8):
        if error is None:
            return
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
