"""What rented machines may cost at most, what they have cost, and the names by which they are found again.

The limit holds by construction: a machine is asked for with a price an hour and a time limit, and their product is
what was confirmed. What a run's machines have cost stands in its launcher's state; a further machine gets what is left.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator

from ftkit.api import Options, Run
from ftkit.errors import InputError, RunFailed
from ftkit.files import read_json
from ftkit.text import dollars, duration

LABEL = "ftkit-run"  # of each machine that ftkit asks for; its value is `key_of`
LAUNCHERS = ("hf-jobs", "runpod", "dstack")
_SHORTEST = 300.0  # seconds: a machine with less time would only start
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")


def seconds_of(text: str) -> float:
    """Return the seconds of a duration such as 90m, 4h or 1d. Raises ValueError."""
    found = _DURATION.fullmatch(text.strip())
    if not found or not float(found[1]):
        raise ValueError(f"{text!r} is not a duration such as 90m, 4h or 1d")
    return float(found[1]) * _SECONDS[found[2]]


class CloudOptions(Options):
    """What every launcher of rented machines takes: `--on NAME:WHERE,max_usd=5,max_duration=3h`."""

    max_usd: float | None = Field(None, gt=0, description="What all machines of the run may cost, in dollars.")
    max_duration: str = Field("4h", description="Time after which a machine is ended: 90m, 4h, 1d.")
    image: str | None = Field(None, description="Docker image of the machine; it needs Python 3.11 or newer.")

    @field_validator("max_duration")
    @classmethod
    def _is_duration(cls, value: str) -> str:
        seconds_of(value)
        return value


@dataclass(frozen=True)
class Limit:
    """What one machine may take at most: dollars, dollars an hour, seconds."""

    usd: float
    usd_per_hour: float
    seconds: float


def first_limit(options: CloudOptions, usd_per_hour: float, start: float = 0.0) -> Limit:
    """Return the limit of a run's first machine. `start` are the paid seconds before its time limit begins.

    Raises InputError where `max_usd` buys too little time.
    """
    seconds = seconds_of(options.max_duration)
    if options.max_usd is not None and usd_per_hour > 0:
        seconds = min(seconds, options.max_usd / usd_per_hour * 3600 - start)
        if seconds < _SHORTEST:
            raise InputError(
                f"max_usd {dollars(options.max_usd)} buys less than {duration(_SHORTEST + start)} at "
                f"{dollars(usd_per_hour)} an hour",
                "raise max_usd, or name a cheaper machine",
            )
    return Limit(usd_per_hour * (seconds + start) / 3600, usd_per_hour, seconds)


def estimate_of(limit: Limit, what: str, prices: str, **facts: Any) -> dict[str, Any]:
    """Return what `Launcher.estimate` returns: the limit, in words too. `prices` says where the price is from."""
    detail = (
        f"{what} costs {dollars(limit.usd_per_hour)} an hour ({prices}) and is ended after {duration(limit.seconds)} at "
        "the latest. The time that the run takes there is not estimated."
    )
    found = {"usd": round(limit.usd, 6), "usd_per_hour": limit.usd_per_hour, "seconds": limit.seconds}
    return {**found, "usd_detail": detail, **facts}


def next_limit(run: Run, options: CloudOptions, usd_per_hour: float, start: float = 0.0) -> Limit:
    """Return the limit of the run's next machine: what was confirmed, less what earlier machines have cost.

    Raises RunFailed where too little is left.
    """
    confirmed = read_json(run.path("audit.json")).get("launch_estimate", {})
    cap = options.max_usd if options.max_usd is not None else confirmed.get("usd")
    seconds = seconds_of(options.max_duration)
    if cap is not None and usd_per_hour > 0:
        spent = Ledger(run, LAUNCHERS[0]).spent()
        seconds = min(seconds, (cap - spent) / usd_per_hour * 3600 - start)
        if seconds < _SHORTEST:
            earlier = f", and {dollars(spent)} of it may be spent" if spent else ""
            raise RunFailed(
                f"the price limit of {dollars(cap)} does not buy another {duration(_SHORTEST + start)} at "
                f"{dollars(usd_per_hour)} an hour{earlier}",
                f"raise it: ftkit run --resume {run.dir} --on 'LAUNCHER:WHERE,max_usd=...'",
            )
    return Limit(usd_per_hour * (seconds + start) / 3600, usd_per_hour, seconds)


# ---------------------------------------------------------------- names


def key_of(mark: str) -> str:
    """Return the name of a run at a provider: lower-case letters, digits and hyphens, 34 characters at most.

    It comes from `Run.mark` alone, so that a resumed run, and `ftkit cloud`, find its machine again.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", mark.lower()).strip("-")[:25].strip("-") or "run"
    return f"{plain}-{hashlib.sha256(mark.encode()).hexdigest()[:8]}"


# ---------------------------------------------------------------- what was spent


class Ledger:
    """The machines of one run: written before one is asked for, and when it has ended."""

    def __init__(self, run: Run, launcher: str) -> None:
        self._run, self._state = run, run.state(launcher)

    def machines(self) -> dict[str, dict[str, Any]]:
        """Return the machines of this launcher, in the order in which they were asked for."""
        return dict(self._state.get("machines", {}))

    def open(self) -> str | None:
        """Return the id of the machine that has not ended; None where there is none."""
        return next((id for id, entry in self.machines().items() if not entry.get("ended")), None)

    def begin(self, id: str, limit: Limit, source: str) -> None:
        """Write down a machine before it is asked for. Until it has ended it counts with its limit."""
        entry = {"asked": time.time(), "usd_per_hour": limit.usd_per_hour, "source": source}
        self._change(id, {**entry, "limit_usd": limit.usd, "limit_seconds": limit.seconds})

    def note(self, id: str, **facts: Any) -> None:
        """Add facts to a machine, such as the provider's id of it."""
        self._change(id, {**self.machines().get(id, {}), **facts})

    def end(self, id: str, usd: float | None, seconds: float | None) -> None:
        """Write down what a machine has cost: `usd` as the provider says, or else its seconds at its price."""
        entry = self.machines().get(id, {})
        if usd is None and seconds is not None and entry.get("usd_per_hour") is not None:
            usd = seconds * entry["usd_per_hour"] / 3600
        self._change(id, {**entry, "ended": entry.get("ended") or time.time(), "usd": usd, "seconds": seconds})

    def spent(self) -> float:
        """Return the dollars that the machines of all launchers have cost, or may still cost."""
        return sum(_dollars_of(entry) for entry in self._all())

    def _all(self) -> list[dict[str, Any]]:
        states = [self._run.state(name).get("machines", {}) for name in LAUNCHERS]
        return sorted((entry for found in states for entry in found.values()), key=lambda e: e.get("asked", 0.0))

    def rental(self) -> dict[str, Any]:
        """Return what `Launcher.launch` returns: dollars and seconds of all machines, and where the price is from."""
        entries = self._all()
        known = [e for e in entries if e.get("usd") is not None]
        if not known:
            return {}
        last = known[-1]
        return {
            "usd": round(sum(e["usd"] for e in known), 6),
            "seconds": sum(e.get("seconds") or 0.0 for e in known),
            "usd_per_hour": last["usd_per_hour"],
            "source": last["source"],
            "machines": len(entries),
        }

    def _change(self, id: str, entry: Mapping[str, Any]) -> None:
        self._state.update(machines={**self.machines(), id: dict(entry)})


def _dollars_of(entry: Mapping[str, Any]) -> float:
    usd = entry.get("usd") if entry.get("ended") else None
    return float(entry.get("limit_usd") or 0.0) if usd is None else float(usd)


# ---------------------------------------------------------------- machines, as `ftkit cloud` lists them


@dataclass(frozen=True)
class Machine:
    """A machine that ftkit has asked for, as its provider knows it. `started` is in seconds since the epoch."""

    launcher: str
    id: str
    run: str  # its label: `key_of`
    status: str
    usd_per_hour: float | None = None
    started: float | None = None
    usd: float | None = None  # so far
    what: str = ""  # "a10g-small", "A100 80GB, EU-NL-1"
    page: str = ""  # where a person can see it

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "seconds": self.seconds}

    @property
    def seconds(self) -> float | None:
        return None if self.started is None else max(0.0, time.time() - self.started)


class NotAsked(Exception):
    """A provider that this machine has no account for: `str(error)` says what is missing."""
