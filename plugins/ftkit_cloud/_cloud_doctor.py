"""Can this machine ask for rented machines (`ftkit doctor`)? Spends nothing, shows no token."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator

from ftkit.records import Diagnosis

_LOGIN = "provider login"
_UNUSED = "needed with --on alone"


def hf_jobs() -> Iterator[Diagnosis]:
    """Yield whether there is a token, and whether the Hub takes it."""
    from ftkit.hub import endpoint
    from ftkit.probing import http_status

    try:
        from huggingface_hub import get_token
    except ImportError:
        return
    token = get_token()
    if not token:
        yield Diagnosis("login", None, f"no Hugging Face token ({_UNUSED})", "log in: hf auth login", _LOGIN)
        return
    try:
        status, _ = http_status(f"{endpoint()}/api/whoami-v2", {"Authorization": f"Bearer {token}"})
    except OSError as error:
        yield Diagnosis(
            "login", None, f"Hugging Face cannot be reached: {error}", "connect, or name the proxy in HTTPS_PROXY"
        )
        return
    if status in (401, 403):
        yield Diagnosis("login", False, "Hugging Face does not accept the token", "log in again: hf auth login", _LOGIN)
        return
    yield Diagnosis("login", status == 200 or None, f"Hugging Face answers with status {status}")
    yield Diagnosis("right to run jobs", None, "cannot be known without starting one; the token needs it")


def dstack() -> Iterator[Diagnosis]:
    """Yield whether dstack is there, and whether its server answers."""
    from ._dstack_cli import COMMAND, INSTALL, CallFailed, Cli

    line = shlex.split(os.environ.get(COMMAND) or "dstack")
    if shutil.which(line[0]) is None:
        yield Diagnosis("dstack", None, f"{line[0]} is not installed ({_UNUSED})", INSTALL)
        return
    cli = Cli()
    try:
        yield Diagnosis("dstack", True, cli.call("--version", seconds=30).strip()[:40])
        active = [run for run in cli.runs() if not run.finished]
    except CallFailed as error:
        fix = "start it in a window of its own: dstack server" if "connect" in str(error).lower() else "run: dstack ps"
        yield Diagnosis("server", None, f"it does not answer: {error}", fix, _LOGIN)
        return
    yield Diagnosis("server", True, f"it answers; {len(active)} runs have not ended")
