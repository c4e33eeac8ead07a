"""Make something that costs money exactly once, whatever happens to the answer, the network or this process.

What is to be made is written down before the request goes out. The request goes out once. Where its fate is
in doubt (no answer, a server error, a process that died), what carries this run's mark is looked for at the
provider. Found: it is taken. Not found: the run stops as "unknown", and the user decides.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai

from ftkit.api import Run
from ftkit.errors import RunFailed
from ftkit.files import write_json

from ._client import PASSING, Malformed, Provider, jittered, kind, never_sent, retry_after
from ._dialects import is_own_server

Find = Callable[[], Any]  # returns what carries the run's mark, or None; may raise what the client raises
_LOOK = "looking for what was made"


def in_doubt(run: Run, name: str) -> bool:
    """Say whether something was asked for, and nobody knows whether it was made."""
    return (run.state.get(name) or {}).get("phase") in ("creating", "unknown")


def taken_again(provider: Provider, run: Run, name: str, find: Find, what: str) -> Any:
    """Return what an earlier attempt asked for without learning its fate; None where it may be created.

    `name` is its place in the run's state: {"phase": creating | unknown | refused | created, "id"}.
    Raises RunFailed where that is not known, and the user has not given their word.
    """
    again = create_again(run)
    if in_doubt(run, name):
        own = is_own_server(provider.options)  # started anew for this process: it takes in nothing late
        found = _looked_for(provider, find, own)
        if found is None and not own:
            if not again:
                raise _unknown(provider, run, name, what)
            found = provider.read(_LOOK, find, 0.0)  # the user's word stands for no list that could not be read
        if found is not None:
            return _made(run, name, found, f"{what} was there already ({found.id}): it is taken, none is made anew")
    elif (run.state.get(name) or {}).get("phase") == "refused":  # by a gateway, say, after the provider had taken it
        with contextlib.suppress(RunFailed):
            found = provider.read(_LOOK, find, 5.0)
            if found is not None:
                return _made(run, name, found, f"{what} exists ({found.id}), though it was refused: it is taken")
    _not_cancelled(run, what)
    return None


def create_once(provider: Provider, run: Run, name: str, create: Callable[[], Any], find: Find, what: str) -> Any:
    """Return the object that `create` makes, asked for once; `taken_again` comes first. Raises RunFailed."""
    own = is_own_server(provider.options)
    until = time.monotonic() + provider.patience
    for attempt in range(10**6):
        _not_cancelled(run, what)
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
                # A server of the run's own that only is slow may take it in late, like any other.
                sure = own and failure != "timeout"
                found = _looked_for(provider, find, sure)
                if found is not None:
                    note = f"{what} exists ({found.id}), though its answer was lost: it is taken"
                    return _made(run, name, found, note)
                if not sure:
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


# ---------------------------------------------------------------- the user's word: no more, or once more


def _cancelled(run: Run) -> Path:
    """Return a file, not a key of the state: a run that is at work writes its state, and would undo the other's."""
    return run.path("train", "cancelled.json")


def cancel_run(run: Run) -> None:
    """Note, for a run that may be at work, that nothing paid is to be made for it any more."""
    write_json(_cancelled(run), {"cancelled": True, "time": round(time.time(), 3)})


def create_again(run: Run) -> bool:
    """Return whether the user asked for another; a cancelled run may then go on."""
    wanted = bool(run.state.get("create_again"))
    if wanted:
        _cancelled(run).unlink(missing_ok=True)
    return wanted


def _not_cancelled(run: Run, what: str) -> None:
    if not create_again(run) and _cancelled(run).exists():
        raise RunFailed(
            f"this run was cancelled: {what} is not made",
            f"go on with it all the same, and pay: ftkit run --resume {run.dir} --create-again",
        )


# ---------------------------------------------------------------- what is there


def _made(run: Run, name: str, made: Any, note: str | None = None) -> Any:
    run.save_state(**{name: {"phase": "created", "id": made.id}, "create_again": False})
    if note:
        run.log("note", message=note)
    return made


def _looked_for(provider: Provider, find: Find, at_once: bool) -> Any:
    """Return what carries the run's mark; None where it stays away.

    One list that could be read says it, `at_once`, where nothing comes late. Else it is looked for again and
    again for the stated window.
    """
    if at_once:
        return provider.read(_LOOK, find)
    until = time.monotonic() + provider.options.find_window
    delay = 0.25
    while True:
        try:
            made = find()
        except Exception as error:
            if kind(error) not in PASSING:
                raise provider.explain(error, _LOOK) from None
            made, delay = None, max(delay, retry_after(error) or 0.0)
        left = until - time.monotonic()
        if made is not None or left <= 0:
            return made
        time.sleep(min(jittered(delay), left))
        delay = min(delay * 1.7, 8.0)


def _unknown(provider: Provider, run: Run, name: str, what: str, why: str | None = None) -> RunFailed:
    run.save_state(**{name: {**(run.state.get(name) or {}), "phase": "unknown"}})
    because = why or f"an earlier attempt ended while {what} was being created"
    return RunFailed(
        f"it is unknown whether {what} exists: {because}; none with this run's mark showed in "
        f"{provider.options.find_window:g} s",
        f"look again: ftkit run --resume {run.dir}\n  if you know from the provider's own pages that there is none: "
        f"ftkit run --resume {run.dir} --create-again",
    )
