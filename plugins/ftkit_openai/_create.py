"""Make something that costs money exactly once, whatever happens to the answer, the network or this process.

What is to be made is written down before the request goes out. The request goes out once. Where its fate is
in doubt (no answer, a server error, a process that died), what carries this run's mark is looked for at the
provider. Found: it is taken. Not found: the run stops as "unknown", and the user decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import openai

from ftkit.errors import RunFailed
from ftkit.store import RunContext

from ._client import PASSING, Malformed, Provider, jittered, kind, never_sent, retry_after

Find = Callable[[], Any]  # returns what carries the run's mark, or None; may raise what the client raises


def create_once(
    provider: Provider, run: RunContext, name: str, create: Callable[[], Any], find: Find, what: str
) -> Any:
    """Return the object that `create` makes, or made in an earlier attempt. `name` is its place in the run's state.

    state[name] is {"phase": creating | unknown | created, "id"}. Raises RunFailed.
    """
    state = run.state.get(name) or {}
    if state.get("phase") in ("creating", "unknown"):
        made = _looked_for(provider, find)
        if made is not None:
            return _made(run, name, made, f"{what} was there already ({made.id}): it is taken, none is made anew")
        if not (provider.dialect.authoritative or run.state.get("create_again")):
            raise _unknown(provider, run, name, what)
    until = time.monotonic() + provider.patience
    for attempt in range(10**6):
        # From here to the answer a dying process leaves a doubt; before it, none.
        run.save_state(**{name: {"phase": "creating", "asked": round(time.time(), 3)}, "create_again": False})
        try:
            made = create()
            if not isinstance(getattr(made, "id", None), str) or not made.id:
                raise Malformed(f"the answer to the request that creates {what} names none")
        except Exception as error:
            failure = kind(error)
            if surely_not_made(error):
                run.save_state(**{name: {"phase": "refused"}})
            else:
                found = _looked_for(provider, find)
                if found is not None:
                    note = f"{what} exists ({found.id}), though its answer was lost: it is taken"
                    return _made(run, name, found, note)
                if not provider.dialect.authoritative:
                    problem = provider.explain(error, f"creating {what}")
                    raise _unknown(provider, run, name, what, problem.message) from None
            wait = max(retry_after(error) or 0.0, jittered(min(0.5 * 2**attempt, 15.0)))
            if failure not in PASSING or time.monotonic() + wait > until:
                raise provider.explain(error, f"creating {what}") from None
        else:
            return _made(run, name, made)  # outside: what fails here fails with a job in the world
            time.sleep(wait)
    raise AssertionError("unreachable")


def surely_not_made(error: BaseException) -> bool:
    """Say whether a failed request surely created nothing: it was refused as it stands, or never sent.

    Anything else is a doubt, also an error that is none of the client's.
    """
    if isinstance(error, openai.APIStatusError):
        return 400 <= error.status_code < 500 and error.status_code not in (408, 409)
    return never_sent(error)


def _made(run: RunContext, name: str, made: Any, note: str | None = None) -> Any:
    run.save_state(**{name: {"phase": "created", "id": made.id}, "create_again": False})
    if note:
        run.log("note", message=note)
    return made


def _looked_for(provider: Provider, find: Find) -> Any:
    """Return what carries the run's mark, looking again and again for the stated window; None where it stays away."""
    until = time.monotonic() + provider.options.find_window
    delay = 0.25
    while True:
        try:
            made = find()
        except Exception as error:
            if kind(error) not in PASSING:
                raise provider.explain(error, "looking for what was made") from None
            made, delay = None, max(delay, retry_after(error) or 0.0)
        left = until - time.monotonic()
        if made is not None or left <= 0 or provider.dialect.authoritative:
            return made
        time.sleep(min(jittered(delay), left))
        delay = min(delay * 1.7, 8.0)


def _unknown(provider: Provider, run: RunContext, name: str, what: str, why: str | None = None) -> RunFailed:
    run.save_state(**{name: {**(run.state.get(name) or {}), "phase": "unknown"}})
    because = why or f"an earlier attempt ended while {what} was being created"
    return RunFailed(
        f"it is unknown whether {what} exists: {because}; none with this run's mark showed in "
        f"{provider.options.find_window:g} s",
        f"look again: ftkit run --resume {run.dir}\n  if you know from the provider's own pages that there is none: "
        f"ftkit run --resume {run.dir} --create-again",
    )
