"""Does the W&B server answer, and does it know the key (`ftkit doctor`)? Imports no wandb, and shows no key."""

from __future__ import annotations

import base64
import json
import netrc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ftkit.probing import http_status
from ftkit.records import Diagnosis

if TYPE_CHECKING:
    from . import WandbOptions

_HOST = "https://api.wandb.ai"
_LOGIN = "provider login"
_NETWORK = "the network, or the server at its other end, cannot be reached"


def diagnoses(options: WandbOptions, needed: bool) -> Iterator[Diagnosis]:
    """Yield the server and the login. `needed`: a recipe asks for them, and online where it says so.

    Otherwise, and with the default mode, a run without a login is recorded offline: nothing is wrong.
    """
    mode = options.mode or os.environ.get("WANDB_MODE") or "online"
    if mode in ("offline", "disabled", "dryrun"):
        yield Diagnosis("login", True, f"mode {mode}: no request is sent")
        return
    url = (options.base_url or os.environ.get("WANDB_BASE_URL") or _HOST).rstrip("/")
    key = _key(url)
    if not key:
        required = needed and options.mode == "online"
        fix = "run `wandb login`, or set WANDB_API_KEY; or set the tracker's mode to offline"
        yield Diagnosis(
            "login", False if required else None, f"no key for {url}: runs are recorded offline", fix, _LOGIN
        )
        return
    yield _asked(url, key)


def _asked(url: str, key: str) -> Diagnosis:
    """Ask the server who the key belongs to."""
    login = base64.b64encode(f"api:{key}".encode()).decode()
    headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
    try:
        status, body = http_status(f"{url}/graphql", headers, b'{"query": "query Viewer { viewer { id } }"}')
    except OSError as error:
        fix = "connect, or name the proxy in HTTPS_PROXY; until then runs are recorded offline"
        return Diagnosis("server", False, f"{url} cannot be reached: {error}", fix, _NETWORK)
    user = _user(body) if status == 200 else None
    if status in (401, 403) or user == "":
        fix = "run `wandb login --relogin`, or set WANDB_API_KEY to a valid key"
        return Diagnosis("login", False, f"{url} does not know the key (status {status})", fix, _LOGIN)
    if user is None:
        fix = "check the tracker's base_url, or run this again later; until then runs are recorded offline"
        return Diagnosis("server", False, f"{url} does not answer as a W&B server (status {status})", fix, _NETWORK)
    return Diagnosis("login", True, f"{url} answers and accepts the key")


def _user(body: bytes) -> str | None:
    """Return the id of the user that the server names: "" for a key that it does not know, None for another answer."""
    try:
        viewer = json.loads(body)["data"]["viewer"]
        return "" if viewer is None else str(viewer["id"])
    except (ValueError, LookupError, TypeError):
        return None


def _key(url: str) -> str | None:
    """Return the key from the environment, or from the file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return os.environ["WANDB_API_KEY"]
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            found = netrc.netrc(path).authenticators(urlsplit(url).hostname or "")
        except (OSError, netrc.NetrcParseError):
            continue
        if found:
            return found[2]
    return None
