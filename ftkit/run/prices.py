"""What runs are estimated to cost, shown and confirmed before any of it is spent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..console import Console
from ..errors import InputError
from ..text import dollars


def confirm_price(estimates: Sequence[dict[str, Any]], console: Console, yes: bool) -> None:
    """Show what runs are estimated to cost, and ask before any of it is spent. Raises InputError on a no.

    An estimate with a `launcher` is what a rented machine may cost at most.
    """
    priced = [e for e in estimates if (e.get("usd") or 0) > 0]
    unknown = [e for e in estimates if e.get("paid") and e.get("usd") is None]
    for estimate in priced:
        price = f"{_of_whom(estimate)}{dollars(estimate['usd'])}"
        what = "estimated price" if "launcher" not in estimate else "price limit"
        console.say(f"  {what}: {price}. {estimate.get('usd_detail', '')}".rstrip())
    for estimate in unknown:
        why = f"{_of_whom(estimate)}{estimate.get('not_estimated', 'the backend does not say why')}"
        console.say(f"  the price is not known: {why}")
    about = sum(e["usd"] for e in priced if "launcher" not in e)
    limit = sum(e["usd"] for e in priced if "launcher" in e)
    amounts = [f"about {dollars(about)}"] if about else []
    amounts += [f"at most {dollars(limit)} for machines"] if limit else []
    amounts += ["an amount that is not known"] if unknown else []
    if not amounts or yes or console.confirm(f"Spend {' and '.join(amounts)}?"):
        return
    raise InputError(
        f"not started: it would cost {' and '.join(amounts)}, and that was not confirmed; nothing was spent",
        "confirm with --yes (in Python: yes=True)",
    )


def _of_whom(estimate: dict[str, Any]) -> str:
    if "launcher" in estimate:
        return f"{estimate['launcher']}, at most "
    return f"control {estimate['control']}, " if "control" in estimate else ""
