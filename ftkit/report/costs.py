"""What the systems of a report cost: to train, per 1,000 predictions, per month; and where two ways of paying meet.

A system is paid for per prediction (a provider's API) or by the hour (a rented machine). A machine is rented
on demand, for just the seconds that its predictions take, or it is always on and paid for whole months. The
figures are measured, from the recipe, or set by the user, and each says which.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from ..lang import msg
from ..records import Record, System
from ..text import nearest

HOURS_PER_MONTH = 730  # 365 days of 24 hours, divided by 12
VOLUMES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)  # predictions per month that the report spells out
PRICES = {
    "usd_per_hour": "a machine's price per hour",
    "usd_per_1k": "the price of 1,000 predictions",
    "train_usd": "the price of the training",
}
PER_PREDICTION, ON_DEMAND, ALWAYS_ON = msg("per prediction"), msg("machine on demand"), msg("machine always on")
MEASURED, SET, IN_RECIPE = msg("measured"), msg("set"), msg("in the recipe")
RENTED = msg("rented machine")

Prices = Mapping[str, Mapping[str, float]]  # by system, then by a key of PRICES


@dataclass(frozen=True)
class SystemCost(Record):
    """One system's price and time; `sources` says of each figure whether it was measured, set or in the recipe."""

    system: str
    train_seconds: float | None
    train_usd: float | None
    seconds_per_1k: float | None
    usd_per_1k: float | None  # of a machine: of the seconds that 1,000 predictions take
    usd_per_hour: float | None  # None where it is not paid by the hour
    n_failed: int
    n_predictions: int
    hosted_by: str | None = None
    shutdown_date: str | None = None
    sources: dict[str, str] = field(default_factory=dict)
    explicit: tuple[str, ...] = ()  # the prices that the user set for this system


@dataclass(frozen=True)
class Way(Record):
    """One way of paying for one system: dollars per prediction, or per machine and month with its limit."""

    system: str
    way: str  # per prediction, machine on demand, machine always on
    usd_per_prediction: float
    usd_per_month: float = 0.0  # per machine
    capacity: float | None = None  # predictions that one machine can make in a month; None: no limit is known

    def machines(self, volume: float) -> int:
        """Return how many machines `volume` predictions per month need; 0 where none is always on."""
        if not self.usd_per_month or not self.capacity:
            return 1 if self.usd_per_month else 0
        return max(1, math.ceil(volume / self.capacity))

    def monthly(self, volume: float) -> float:
        """Return the dollars of a month with `volume` predictions, training left out."""
        return self.machines(volume) * self.usd_per_month + volume * self.usd_per_prediction


@dataclass(frozen=True)
class BreakEven(Record):
    """A machine against an API: from `volume` predictions per month on the machine is the cheaper one.

    `volume` None means that one of them is cheaper (or equal) at every volume: `cheaper` names its system. The
    training is apart: `train_usd` is how much more the machine's system cost to train, in dollars, and where
    it is cheaper per prediction, `repaid_after` that many predictions in all.
    """

    machine: str
    api: str
    way: str
    volume: float | None
    cheaper: str | None
    capacity: float | None = None
    train_usd: float | None = None
    repaid_after: float | None = None


@dataclass(frozen=True)
class Costs(Record):
    """All that a report says of money."""

    systems: tuple[SystemCost, ...]
    ways: tuple[Way, ...]
    break_evens: tuple[BreakEven, ...]
    runs: tuple[dict[str, Any], ...] = ()  # {"run", "estimated", "actual", "source"}: dollars of a whole run


def costs_of(systems: Sequence[System], prices: Prices, runs: Iterable[dict[str, Any]] = ()) -> Costs:
    """Return the costs of `systems`; `prices` are those that the user set (from `read_prices`).

    Ways of paying are compared for what somebody would use: tuned models, answers from elsewhere, and the
    base models of runs that tuned none.
    """
    found = [system_cost(s, prices.get(s.name, {})) for s in systems if s.role != "extra"]
    tuned = {s.run for s in systems if s.role == "tuned"}
    usable = [
        s.name for s in systems if s.role in ("tuned", "external") or (s.role == "baseline" and s.run not in tuned)
    ]
    ways = [way for cost in found if cost.system in usable for way in ways_of(cost)]
    apis = [way for way in ways if way.way == PER_PREDICTION]
    by_name = {cost.system: cost for cost in found}
    meets = [
        break_even(machine, api, _difference(by_name[machine.system].train_usd, by_name[api.system].train_usd))
        for machine in ways
        for api in apis
        if machine.way != PER_PREDICTION
    ]
    return Costs(tuple(found), tuple(ways), tuple(meets), tuple(runs))


def system_cost(system: System, prices: Mapping[str, float]) -> SystemCost:
    """Return what a system cost. A set price wins over a measured one; a set hour prices the measured seconds again."""
    n = system.n_predictions
    per_1k = 1000 / n if n else None
    seconds = system.seconds * per_1k if system.seconds is not None and per_1k else None
    priced = 1000 / system.n_priced if system.n_priced else per_1k  # what failed without a price is no answer paid for
    hour = prices.get("usd_per_hour", system.info.get("usd_per_hour"))
    rented = None  # the machine that `--on` rented prices a system that has no price of its own
    if hour is None and system.measure_usd is None and system.train_usd is None:
        rented = system.info.get("rented_usd_per_hour")
    figures: dict[str, tuple[float | None, str]] = {
        "train_usd": (system.train_usd, MEASURED),
        "usd_per_1k": (system.measure_usd * priced if system.measure_usd is not None and priced else None, MEASURED),
        "usd_per_hour": (hour, SET if "usd_per_hour" in prices else IN_RECIPE),
    }
    if "usd_per_hour" in prices or rented is not None:
        hourly, source = (prices["usd_per_hour"], SET) if rented is None else (rented, RENTED)
        took = {"train_usd": system.train_seconds, "usd_per_1k": seconds}
        figures |= {key: (s * hourly / 3600, source) for key, s in took.items() if s is not None}
        figures["usd_per_hour"] = (hourly, source)
    figures |= {key: (value, SET) for key, value in prices.items()}
    known = {key: value for key, (value, _) in figures.items()}
    return SystemCost(
        system=system.name,
        train_seconds=system.train_seconds,
        train_usd=known["train_usd"],
        seconds_per_1k=seconds,
        usd_per_1k=known["usd_per_1k"],
        usd_per_hour=known["usd_per_hour"],
        n_failed=system.n_failed,
        n_predictions=n,
        hosted_by=_text(system.info.get("hosted_by")),
        shutdown_date=_text(system.info.get("shutdown_date")),
        explicit=tuple(prices),
        sources={key: source for key, (value, source) in figures.items() if value is not None},
    )


def ways_of(cost: SystemCost) -> list[Way]:
    """Return the ways in which a system's predictions can be paid for; none where its prices are not known."""
    ways = []
    if cost.usd_per_1k is not None and (cost.usd_per_hour is None or "usd_per_1k" in cost.explicit):
        ways.append(Way(cost.system, PER_PREDICTION, cost.usd_per_1k / 1000))
    if cost.usd_per_hour is not None and cost.seconds_per_1k:
        seconds = cost.seconds_per_1k / 1000
        ways.append(Way(cost.system, ON_DEMAND, seconds * cost.usd_per_hour / 3600))
        capacity = HOURS_PER_MONTH * 3600 / seconds
        ways.append(Way(cost.system, ALWAYS_ON, 0.0, HOURS_PER_MONTH * cost.usd_per_hour, capacity))
    return ways


def break_even(machine: Way, api: Way, train_usd: float | None = None) -> BreakEven:
    """Return where a machine meets an API that is paid per prediction.

    An always-on machine costs the same at any volume that it can carry, so it is cheaper from
    `price of a month / price of a prediction` on. If that is more than it can carry, more machines would be
    needed, and each is dearer than the API even when it is used to the full: the API is cheaper at every
    volume. On demand both prices grow alike with the volume, and never meet.
    """
    volume = None
    if machine.way == ALWAYS_ON:
        limit = math.inf if machine.capacity is None else machine.capacity
        meets = machine.usd_per_month / api.usd_per_prediction if api.usd_per_prediction else math.inf
        volume = meets if machine.usd_per_month and meets < limit else None
        cheaper = None if volume is not None else machine.system if not machine.usd_per_month else api.system
        return BreakEven(machine.system, api.system, machine.way, volume, cheaper, machine.capacity, train_usd)
    alike = math.isclose(api.usd_per_prediction, machine.usd_per_prediction, rel_tol=1e-9)
    saved = 0.0 if alike else api.usd_per_prediction - machine.usd_per_prediction
    cheaper = machine.system if saved > 0 else api.system if saved < 0 else None
    repaid = train_usd / saved if train_usd is not None and train_usd * saved > 0 else None
    return BreakEven(machine.system, api.system, machine.way, None, cheaper, None, train_usd, repaid)


def read_prices(
    settings: Sequence[str], systems: Sequence[System], names: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Return the prices of `SYSTEM.KEY=NUMBER` texts by system; raises InputError with the nearest right thing.

    SYSTEM is a system's name in the report, or a run's name or id (`names` maps ids to names): then all its systems.
    """
    prices: dict[str, dict[str, float]] = {}
    for text in settings:
        left, _, number = text.rpartition("=")
        name, _, key = left.rpartition(".")
        if not name:
            raise InputError(f"--set-price {text}: not of the form SYSTEM.KEY=NUMBER", f"as in: {_example(systems)}")
        if key not in PRICES:
            near = nearest(key, PRICES)
            known = "; ".join(f"{k}: {what}" for k, what in PRICES.items())
            hint = f"did you mean {near!r}?" if near else known
            raise InputError(f"--set-price {text}: there is no price {key!r}", hint)
        value = _price(number)
        if value is None:
            raise InputError(
                f"--set-price {text}: {number!r} is not a price", "a number of dollars, 0 or more, such as 0.8"
            )
        meant = [s.name for s in systems if name in (s.name, s.run, names.get(s.run))]
        if not meant:
            have = [s.name for s in systems]
            near = nearest(name, have)
            hint = f"did you mean {near!r}?" if near else f"there are: {', '.join(have)}"
            raise InputError(f"--set-price {text}: the report has no system {name!r}", hint)
        for system in meant:
            prices.setdefault(system, {})[key] = value
    return prices


def _example(systems: Sequence[System]) -> str:
    name = next((s.name for s in systems if s.role == "tuned"), "tuned")
    return f"--set-price '{name}.usd_per_hour=0.8' (or {', '.join(key for key in PRICES if key != 'usd_per_hour')})"


def _price(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
