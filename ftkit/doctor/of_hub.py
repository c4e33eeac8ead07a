"""Can the hub be reached, does it know the token, and may this machine read what a recipe takes from it?"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .. import hub
from ..errors import InputError
from ..records import Diagnosis
from ..text import one_line, size
from .machine import free_at, hub_home

UNREACHABLE = "the hub cannot be reached"
REFUSED = "is gated or private, and this machine may not read it"


@dataclass(frozen=True)
class Wanted:
    """A repository of the hub that a recipe takes something from; `kind` is "model" or "dataset"."""

    kind: str
    name: str
    revision: str | None

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"


def hub_diagnoses(wanted: Iterable[Wanted]) -> Iterator[Diagnosis]:
    """Yield whether the hub answers, and whether each repository may be read; without any, what a first run needs."""
    wanted = list(wanted)
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield Diagnosis("hub", None, "HF_HUB_OFFLINE is set: no request is sent")
        yield from _cached(wanted)
        return
    try:
        status = hub.account_status()
    except OSError as error:
        yield from _unreachable(wanted, f"{hub.endpoint()}: {one_line(error, 200)}")
        return
    answer = _account(status)
    yield answer
    if answer.ok is not False and wanted:
        if importlib.util.find_spec("huggingface_hub") is None:
            return  # the plugin that needs it says so
        for one in wanted:
            yield _readable(one)


def _account(status: int) -> Diagnosis:
    """Say what the hub's answer to the token means."""
    if status in (401, 403) and hub.token():
        text = f"{hub.endpoint()} does not know the token (status {status})"
        fix = "run `hf auth login`, or set HF_TOKEN to a valid token, or unset it"
        return Diagnosis("hub", False, text, fix, REFUSED)
    if status >= 500 or status == 429:
        text = f"{hub.endpoint()} answers with status {status}"
        return Diagnosis("hub", False, text, "run this again in a few minutes", UNREACHABLE)
    if status == 200:
        return Diagnosis("hub", True, f"{hub.endpoint()} answers and knows the token")
    return Diagnosis("hub", True, f"{hub.endpoint()} answers; no token is set: public models and datasets only")


def _unreachable(wanted: list[Wanted], why: str) -> Iterator[Diagnosis]:
    """Say that the hub does not answer: it is no fault where all that is wanted has been downloaded."""
    if wanted and all(hub.in_cache(one.kind, one.name) for one in wanted):
        yield Diagnosis("hub", None, f"cannot be reached ({why}); what the recipe takes from it is in the cache")
        return
    fix = "connect, or name the proxy in HTTPS_PROXY; without a network, name local folders in the recipe"
    yield Diagnosis("hub", False, f"cannot be reached: {why}", fix, UNREACHABLE)


def _cached(wanted: list[Wanted]) -> Iterator[Diagnosis]:
    for one in wanted:
        there = hub.in_cache(one.kind, one.name)
        fix = None if there else "unset HF_HUB_OFFLINE once, or name a local folder in the recipe"
        text = "in the local cache" if there else "not in the local cache"
        yield Diagnosis(str(one), there, text, fix, None if there else UNREACHABLE)


def _readable(one: Wanted) -> Diagnosis:
    try:
        total = hub.size_of(one.kind, one.name, one.revision)
    except InputError as error:
        return Diagnosis(str(one), False, error.message, error.hint, REFUSED)
    free = free_at(hub_home())
    if total > free and not hub.in_cache(one.kind, one.name):
        text = f"{size(total)} are to be downloaded, and {size(free)} are free"
        return Diagnosis(str(one), False, text, "set HF_HOME to a folder on a disk with room", "the disk is full")
    return Diagnosis(str(one), True, f"can be read{f', {size(total)}' if total else ''}")
