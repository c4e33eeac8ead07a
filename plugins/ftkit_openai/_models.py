"""What is known of a provider's model: who hosts it, and its shutdown date."""

from __future__ import annotations

import contextlib
import datetime
import re
from typing import TYPE_CHECKING, Any

from ._dialects import DIALECTS

if TYPE_CHECKING:
    from ._client import Provider
    from .options import ManagedOptions

_known: dict[tuple[str, str, str], str | None] = {}  # shutdown dates by dialect, address and model


def shutdown_of(o: ManagedOptions, model: Any) -> str | None:
    """Return a model's shutdown date as YYYY-MM-DD: the provider's, or the one known of its family; None without one."""
    stated = str(getattr(model, "shutdown_date", None) or "")[:10]
    if re.fullmatch(r"\d{4}-\d\d-\d\d", stated):
        with contextlib.suppress(ValueError):  # a day that no month has
            return datetime.date.fromisoformat(stated).isoformat()
    name = o.base_model
    known = {f: day for f, day in DIALECTS[o.dialect].shutdown.items() if name == f or name.startswith(f"{f}-20")}
    return next(iter(known.values()), None)


def fetch_shutdown_date(provider: Provider, model: str) -> str | None:
    """Request a model's shutdown date. An error counts as an unknown date, since this is only a line of the report."""
    try:
        found = provider.client.models.retrieve(model, timeout=10.0)
    except Exception:
        found = None
    return shutdown_of(provider.options, found)


def model_facts(o: ManagedOptions) -> dict[str, Any]:
    """Return what the report says of the base model: `hosted_by` and, where it is known, `shutdown_date`."""
    from ._client import Provider, base_url
    from ._connect import connection_problem

    url = base_url(o)
    if url is None or o.dialect == "local":
        return {"hosted_by": DIALECTS[o.dialect].label}
    if connection_problem(o, url):
        date = shutdown_of(o, None)
        return {"hosted_by": DIALECTS[o.dialect].label, **({"shutdown_date": date} if date else {})}
    provider = Provider(o, url, 0.0)
    try:
        key = (o.dialect, url, o.base_model)
        if key not in _known:
            _known[key] = fetch_shutdown_date(provider, o.base_model)
        date = _known[key]
        return {"hosted_by": provider.hosted_by, **({"shutdown_date": date} if date else {})}
    finally:
        provider.close()
