"""Signs of life of the process that executes a run, and what is known where it was killed."""

from __future__ import annotations

import contextlib
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..causes import MEMORY, OTHER, Cause
from ..directory import RunDirectory
from ..files import dump_json
from ..lang import tr
from ..text import size

_ALIVE = ".alive.json"  # beside .lock: the last sign of life of the process that executes the run


def write_sign_of_life(run: RunDirectory) -> None:
    """Write when this process was alive, and what will say how it died. Raises OSError."""
    path = run.dir / _ALIVE  # not `run.path`: a deleted directory must not be made again
    temporary = path.with_suffix(".tmp")
    temporary.write_text(dump_json({"time": time.time(), **machine()}), encoding="utf-8")
    temporary.replace(path)


def remove_sign_of_life(run: RunDirectory) -> None:
    for suffix in (".json", ".tmp"):
        with contextlib.suppress(OSError):
            (run.dir / _ALIVE).with_suffix(suffix).unlink()


def read_sign_of_life(run: RunDirectory) -> dict[str, Any]:
    try:
        sign = json.loads((run.dir / _ALIVE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return sign if isinstance(sign, dict) else {}


@dataclass(frozen=True)
class Death:
    """What is known of a process that ended without a word: sentences, and the likely cause."""

    text: str
    cause: Cause


def death_of(run: RunDirectory) -> Death:
    """Return what the last sign of life, compared with this machine now, says of how the process was killed."""
    sign, now = read_sign_of_life(run), machine()
    unknown = tr("It was ended from outside: by kill -9, by the end of a session, or by a limit of the machine.")
    if sign.get("boot") != now["boot"] and sign.get("boot") and now["boot"]:
        text = tr("The machine was restarted since then, or the run was executed on another machine.")
        return Death(text, OTHER)
    before, kills = sign.get("oom_kills"), now["oom_kills"]
    if isinstance(before, int) and isinstance(kills, int) and kills > before:
        text = tr("Since then the kernel has ended a process for lack of memory (OOM killer), most likely this one.")
        return Death(text, MEMORY)
    available, total = sign.get("available"), sign.get("memory")
    if isinstance(available, int) and isinstance(total, int) and available < total * 0.05:
        text = tr(
            "{left} of {all} of memory were left then: most likely the memory was used up.",
            left=size(available), all=size(total),
        )  # fmt: skip
        return Death(text, MEMORY)
    return Death(unknown, OTHER)


def machine() -> dict[str, Any]:
    """Return the boot's id, how many processes the kernel has ended for lack of memory, and memory in bytes."""
    kills = re.search(r"^oom_kill (\d+)$", _read("/proc/vmstat"), re.M)
    facts: dict[str, Any] = {
        "boot": _read("/proc/sys/kernel/random/boot_id").strip() or None,
        "oom_kills": int(kills[1]) if kills else None,
    }
    for name, key in (("MemAvailable", "available"), ("MemTotal", "memory")):
        found = re.search(rf"^{name}:\s+(\d+) kB$", _read("/proc/meminfo"), re.M)
        facts[key] = int(found[1]) * 1024 if found else None
    limit, used = (_read(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdecimal() and used.isdecimal() and facts["memory"] and int(limit) < facts["memory"]:  # of a container
        cached = re.search(r"^inactive_file (\d+)$", _read("/sys/fs/cgroup/memory.stat"), re.M)
        left = int(limit) - int(used) + (int(cached[1]) if cached else 0)
        facts |= {"memory": int(limit), "available": min(facts["available"] or left, left)}
    return facts


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
