"""What systems cost: golden numbers worked out by hand, and what must hold for any prices."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ftkit.errors import InputError
from ftkit.records import System
from ftkit.report.costs import (
    ALWAYS_ON,
    HOURS_PER_MONTH,
    ON_DEMAND,
    PER_PREDICTION,
    Costs,
    Way,
    break_even,
    costs_of,
    read_prices,
    system_cost,
    ways_of,
)

# 200 predictions in 90 s (0.45 s each) on a machine of 0.80 $ an hour: 90 * 0.8 / 3600 = 0.02 $.
MACHINE = System(
    name="local tuned", run="run-l", stage="tuned", role="tuned", metrics={}, seconds=90.0, train_seconds=1800.0,
    measure_usd=0.02, train_usd=0.4, usd=0.42, n_predictions=200, info={"hosted_by": "here", "usd_per_hour": 0.8},
)  # fmt: skip
# 200 predictions for 0.06 $: 0.30 $ per 1,000.
API = System(
    name="api tuned", run="run-a", stage="tuned", role="tuned", metrics={}, seconds=20.0, train_seconds=3000.0,
    measure_usd=0.06, train_usd=6.0, usd=6.06, n_predictions=200, n_failed=3, info={"shutdown_date": "2027-01-14"},
)  # fmt: skip


def ways(system: System, **prices: float) -> dict[str, Way]:
    return {way.way: way for way in ways_of(system_cost(system, prices))}


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    ("system", "prices", "train", "per_1k", "seconds_per_1k", "hour"),
    [
        (MACHINE, {}, 0.4, 0.1, 450, 0.8),
        (MACHINE, {"usd_per_hour": 2.4}, 1.2, 0.3, 450, 2.4),  # half an hour of training; 450 s
        (MACHINE, {"usd_per_hour": 0}, 0, 0, 450, 0),
        (MACHINE, {"train_usd": 7}, 7, 0.1, 450, 0.8),
        (API, {}, 6, 0.3, 100, None),
        (API, {"usd_per_1k": 0.15, "train_usd": 0}, 0, 0.15, 100, None),  # a batch discount
        (API, {"usd_per_hour": 3.6}, 3, 0.1, 100, 3.6),  # as if it were ours
        (replace(MACHINE, info={}, measure_usd=None, train_usd=None), {}, None, None, 450, None),
        (replace(MACHINE, seconds=None, n_predictions=0), {"usd_per_1k": 1}, 0.4, 1, None, 0.8),
        (replace(API, n_predictions=0), {}, 6, None, None, None),
        (replace(API, n_priced=150), {}, 6, 0.4, 100, None),  # 50 failed, and cost nothing
    ],
)
def test_price_and_time_of_a_system(
    system: System, prices: dict[str, float], train: float | None, per_1k: float | None, seconds_per_1k: float | None,
    hour: float | None,
) -> None:  # fmt: skip
    cost = system_cost(system, prices)
    found = (cost.train_usd, cost.usd_per_1k, cost.seconds_per_1k, cost.usd_per_hour)
    assert found == pytest.approx((train, per_1k, seconds_per_1k, hour))
    assert all(cost.sources[key] == "set" for key in prices)


def test_each_figure_says_where_it_is_from() -> None:
    assert system_cost(MACHINE, {}).sources == {
        "train_usd": "measured", "usd_per_1k": "measured", "usd_per_hour": "in the recipe",
    }  # fmt: skip
    assert system_cost(MACHINE, {"usd_per_hour": 1}).sources == dict.fromkeys(
        ("train_usd", "usd_per_1k", "usd_per_hour"), "set"
    )
    assert system_cost(API, {"train_usd": 1}).sources == {"train_usd": "set", "usd_per_1k": "measured"}


def test_ways_of_paying() -> None:
    machine = ways(MACHINE)
    assert set(machine) == {ON_DEMAND, ALWAYS_ON}
    assert machine[ON_DEMAND].usd_per_prediction == pytest.approx(0.45 * 0.8 / 3600)
    assert machine[ALWAYS_ON].usd_per_month == pytest.approx(584)  # 730 * 0.8
    assert machine[ALWAYS_ON].capacity == pytest.approx(5_840_000)  # 730 * 3600 / 0.45
    assert {k: w.usd_per_prediction for k, w in ways(API).items()} == {PER_PREDICTION: pytest.approx(0.0003)}
    assert set(ways(MACHINE, usd_per_1k=0.2)) == {ON_DEMAND, ALWAYS_ON, PER_PREDICTION}  # the same model, hosted
    assert ways(replace(MACHINE, info={}, measure_usd=None)) == {}


@pytest.mark.parametrize(
    ("hour", "seconds", "per_1k", "volume", "cheaper"),
    [
        (0.8, 0.45, 0.3, 584 / 0.0003, None),  # 1,946,667 of at most 5,840,000
        (0.8, 0.45, 0.1, None, "api"),  # used to the full it costs 0.10 $ per 1,000 as well
        (0.8, 0.45, 0.0999, None, "api"),
        (0.8, 0.45, 0.1001, 584 / 0.0001001, None),
        (2.0, 5.0, 0.3, None, "api"),
        (0.0, 5.0, 0.3, None, "machine"),
        (0.8, 0.45, 0.0, None, "api"),
    ],
)
def test_break_even_of_a_machine_that_is_always_on(
    hour: float, seconds: float, per_1k: float, volume: float | None, cheaper: str | None
) -> None:
    machine = Way("machine", ALWAYS_ON, 0.0, HOURS_PER_MONTH * hour, HOURS_PER_MONTH * 3600 / seconds)
    found = break_even(machine, Way("api", PER_PREDICTION, per_1k / 1000))
    assert (found.volume, found.cheaper) == (pytest.approx(volume) if volume else None, cheaper)


@pytest.mark.parametrize(
    ("demand", "api", "train", "cheaper", "repaid"),
    [
        (0.0001, 0.0003, -5.6, "machine", None),  # cheaper to train and to use
        (0.0001, 0.0003, 5.0, "machine", 25_000),  # 5 $ more to train, 0.0002 $ less each
        (0.0004, 0.0003, -5.0, "api", 50_000),  # the API was dearer to train and is cheaper to use
        (0.0004, 0.0003, 5.0, "api", None),
        (0.0003, 0.0003, 5.0, None, None),
        (0.0001, 0.0003, None, "machine", None),
    ],
)
def test_on_demand_one_is_cheaper_at_every_volume(
    demand: float, api: float, train: float | None, cheaper: str | None, repaid: float | None
) -> None:
    found = break_even(Way("machine", ON_DEMAND, demand), Way("api", PER_PREDICTION, api), train)
    assert (found.volume, found.cheaper) == (None, cheaper)
    assert found.repaid_after == (pytest.approx(repaid) if repaid else None)


def test_more_machines_than_one() -> None:
    machine = Way("m", ALWAYS_ON, 0.0, 584.0, 5_840_000)
    assert [machine.machines(v) for v in (0, 1, 5_840_000, 5_840_001, 10_000_000)] == [1, 1, 1, 2, 2]
    assert machine.monthly(10_000_000) == 1168
    assert Way("a", PER_PREDICTION, 0.0003).monthly(10_000_000) == pytest.approx(3000)


# ---------------------------------------------------------------- for any prices

money = st.floats(1e-4, 1e3)
seconds = st.floats(1e-3, 1e3)


def machine_of(hour: float, took: float) -> Way:
    return Way("machine", ALWAYS_ON, 0.0, HOURS_PER_MONTH * hour, HOURS_PER_MONTH * 3600 / took)


@given(money, seconds, st.floats(1e-7, 10))
def test_costs_are_equal_at_the_break_even_and_one_is_cheaper_on_each_side(
    hour: float, took: float, each: float
) -> None:
    machine, api = machine_of(hour, took), Way("api", PER_PREDICTION, each)
    found = break_even(machine, api)
    assert machine.capacity
    if found.volume is None:
        assert found.cheaper == "api"
        for volume in (1, 1000, machine.capacity / 2, machine.capacity, 3.5 * machine.capacity):
            assert api.monthly(volume) <= machine.monthly(volume) * (1 + 1e-9)
        return
    assert 0 < found.volume <= machine.capacity
    assert machine.monthly(found.volume) == pytest.approx(api.monthly(found.volume))
    assert api.monthly(found.volume * 0.99) < machine.monthly(found.volume * 0.99)
    more = min(found.volume * 1.01, machine.capacity)
    assert machine.monthly(more) <= api.monthly(more) * (1 + 1e-9)


@given(money, seconds, st.floats(1e-7, 10), st.floats(1.01, 100))
def test_a_dearer_machine_or_a_cheaper_api_breaks_even_later(
    hour: float, took: float, each: float, factor: float
) -> None:
    api = Way("api", PER_PREDICTION, each)
    before = break_even(machine_of(hour, took), api).volume
    assume(before is not None)
    assert before is not None
    dearer = break_even(machine_of(hour * factor, took), api).volume
    cheaper_api = break_even(machine_of(hour, took), replace(api, usd_per_prediction=each / factor)).volume
    slower = break_even(machine_of(hour, took * factor), api).volume
    assert dearer is None or dearer > before
    assert cheaper_api is None or cheaper_api > before
    assert slower in (None, before)  # its month costs the same, until it cannot carry that many


@given(money, seconds, st.lists(st.floats(0, 1e9), min_size=2, max_size=20))
def test_more_predictions_never_cost_less(hour: float, took: float, volumes: list[float]) -> None:
    for way in (machine_of(hour, took), Way("m", ON_DEMAND, hour * took / 3600), Way("a", PER_PREDICTION, hour)):
        months = [way.monthly(v) for v in sorted(volumes)]
        assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(months))
        assert all(math.isfinite(m) for m in months)


@given(money, seconds)
def test_always_on_and_used_to_the_full_costs_what_on_demand_costs(hour: float, took: float) -> None:
    full = machine_of(hour, took)
    assert full.capacity
    assert full.monthly(full.capacity) / full.capacity == pytest.approx(hour * took / 3600)


# ---------------------------------------------------------------- a whole report


def test_machines_meet_apis_and_baselines_stay_out() -> None:
    base = replace(MACHINE, name="local baseline", stage="baseline", role="baseline", train_usd=None)
    extra = replace(MACHINE, name="local rows", role="extra")
    found = costs_of([base, MACHINE, API, extra], {})
    assert [c.system for c in found.systems] == ["local baseline", "local tuned", "api tuned"]
    assert [(m.machine, m.api, m.way) for m in found.break_evens] == [
        ("local tuned", "api tuned", ON_DEMAND),
        ("local tuned", "api tuned", ALWAYS_ON),
    ]
    assert [m.train_usd for m in found.break_evens] == pytest.approx([-5.6, -5.6])
    assert Costs.from_dict(found.to_dict()) == found


def test_a_baseline_that_nobody_tuned_is_compared() -> None:
    base = replace(API, name="api", stage="baseline", role="baseline", train_usd=None)
    assert {m.api for m in costs_of([MACHINE, base], {}).break_evens} == {"api"}
    assert {m.api for m in costs_of([MACHINE, base, API], {}).break_evens} == {"api tuned"}


def test_without_prices_nothing_is_compared() -> None:
    assert not costs_of([replace(MACHINE, info={}, measure_usd=None), API], {}).break_evens
    assert not costs_of([], {}).systems


# ---------------------------------------------------------------- prices that the user sets

NAMES = {"run-l": "local", "run-a": "v1.5-api"}
SYSTEMS = [MACHINE, replace(MACHINE, name="local baseline", role="baseline"), API]


@pytest.mark.parametrize(
    ("texts", "prices"),
    [
        (["local tuned.usd_per_hour=0.8"], {"local tuned": {"usd_per_hour": 0.8}}),
        (["api tuned.usd_per_1k=1", "api tuned.train_usd=0"], {"api tuned": {"usd_per_1k": 1, "train_usd": 0}}),
        (["local.usd_per_hour=2"], {n: {"usd_per_hour": 2} for n in ("local tuned", "local baseline")}),
        (["v1.5-api.usd_per_1k=1e-3"], {"api tuned": {"usd_per_1k": 0.001}}),
        (["run-a.usd_per_1k=3", "api tuned.usd_per_1k=4"], {"api tuned": {"usd_per_1k": 4}}),
        ([], {}),
    ],
)
def test_prices_are_read(texts: list[str], prices: dict[str, dict[str, float]]) -> None:
    assert read_prices(texts, SYSTEMS, NAMES) == prices


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("usd_per_hour=0.8", r"not of the form SYSTEM\.KEY=NUMBER[\s\S]*'local tuned\.usd_per_hour=0\.8'"),
        ("local tuned.usd_per_hour", "not of the form"),
        ("local tuned.usd_per_hr=1", r"no price 'usd_per_hr'[\s\S]*did you mean 'usd_per_hour'"),
        ("local tuned.colour=1", r"no price 'colour'[\s\S]*usd_per_1k: the price of 1,000 predictions"),
        ("local tund.usd_per_hour=1", r"no system 'local tund'[\s\S]*did you mean 'local tuned'"),
        ("zzz.usd_per_hour=1", r"no system 'zzz'[\s\S]*there are: local tuned, local baseline, api tuned"),
        ("local tuned.usd_per_hour=cheap", "'cheap' is not a price"),
        ("local tuned.usd_per_hour=-1", "'-1' is not a price"),
        ("local tuned.usd_per_hour=nan", "'nan' is not a price"),
        ("local tuned.usd_per_hour=", "'' is not a price"),
    ],
)
def test_a_mistake_in_a_price_is_told_with_the_nearest_right_thing(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_prices([text], SYSTEMS, NAMES)
