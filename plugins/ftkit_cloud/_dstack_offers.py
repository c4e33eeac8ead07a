"""What a machine through dstack may cost, before it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftkit.errors import InputError
from ftkit.text import dollars

from ._dstack_cli import NO_PROJECT, CallFailed, Cli
from ._dstack_task import offer_arguments
from ._money import estimate_of, first_limit

BOOT = 20 * 60.0  # paid seconds until a machine must be up
_MARGIN = 1.2  # how much dearer than the cheapest offer a machine may be: the cheapest may be gone


def estimate(asked: Mapping[str, Any], options: Any) -> dict[str, Any]:
    """Return what a run may cost at most. Raises InputError where no machine fits, or dstack's server does not answer."""
    price, what, cheapest = price_of(Cli(), asked, options)
    limit = first_limit(options, price, BOOT)
    prices = (
        f"at most; the cheapest is {dollars(cheapest)} by dstack's list" if cheapest < price else "by dstack's list"
    )
    return estimate_of(limit, what, prices)


def price_of(cli: Cli, asked: Mapping[str, Any], options: Any) -> tuple[float, str, float]:
    """Return the highest price an hour that is accepted, what the cheapest machine is, and its price."""
    named = options.max_price or asked.get("max_price")
    try:
        offers = cli.offers(*offer_arguments(asked), *(["--max-price", f"{named:g}"] if named else []))
    except CallFailed as error:
        raise InputError(f"dstack gives no offers: {error}", no_server(str(error))) from None
    if not offers:
        under = f" under {dollars(named)} an hour" if named else ""
        raise InputError(
            f"dstack knows no machine that fits{under}",
            "see what there is: dstack offer; name another GPU, or raise max_price",
        )
    first = offers[0]
    price = float(named) if named else round(float(first["price"]) * _MARGIN + 0.005, 2)
    instance = first.get("instance") or {}
    what = ", ".join(filter(None, map(str, (first.get("backend"), instance.get("name")))))
    return price, what or "the machine", float(first["price"])


def no_server(text: str) -> str:
    if "connect" in text.lower():
        return "start it in a window of its own: dstack server"
    if NO_PROJECT in text:
        return "set it up: docs/cloud.md, RunPod; the first start of `dstack server` writes the client's settings"
    return "this must work without a question: dstack ps"
