"""The machines that ftkit has asked dstack for, as `ftkit cloud` lists and ends them."""

from __future__ import annotations

import os
import time

from ._dstack_cli import CallFailed, Cli, DstackRun
from ._money import Machine

PREFIX = "ftkit-"  # of the names of all machines
POLL = "FTKIT_CLOUD_POLL"  # seconds between two looks; the tests have no time
STOPS = 8  # looks at a machine that is to end gently; then it is aborted


def machines(launcher: str) -> list[Machine]:
    """Return the machines that ftkit asked dstack for and that have not ended. Raises CallFailed, InputError."""
    return [_machine(run, launcher) for run in Cli().runs() if run.name.startswith(PREFIX) and not run.finished]


def _machine(run: DstackRun, launcher: str) -> Machine:
    return Machine(
        launcher, run.name, run.label, run.status, run.usd_per_hour, run.submitted, run.usd or None, run.what
    )


def stop(name: str, patience: float = 300.0) -> DstackRun | None:
    """End a machine by its name; return it as it ended. Raises CallFailed where dstack does not end it."""
    cli, began, attempt = Cli(), time.monotonic(), 0
    poll = float(os.environ.get(POLL) or 5.0)
    while True:
        try:
            found = cli.find(name)
            if found is None or found.finished:
                return found
            cli.stop(name, abort=attempt >= STOPS)
            why = f"it is still {found.status}"
        except CallFailed as error:
            why = str(error)
        attempt += 1
        if time.monotonic() - began > patience:
            raise CallFailed(why, answered=False)
        time.sleep(min(poll, 5.0))
