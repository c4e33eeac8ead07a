"""Create something that costs money exactly once, whatever happens to the answer, the network or this process.

The provider is searched for an object with this run's metadata tag before the request is sent: the run's state may be lost.
The state says what is created before the request is sent. The request is sent once. Where its outcome is unknown
(no answer, a server error, a process that died), the provider is searched for an object with this run's metadata tag.
Found: the run adopts it. Not found: the run stops with "outcome unknown", and the user decides.

Jobs and batches share this mechanism: each is a subclass of `Once`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import openai

from ftkit.api import Run
from ftkit.errors import Interrupted, RunFailed

from ._dialects import is_own_server
from ._errors import RETRYABLE, Malformed, classify, never_sent, retry_after
from ._state import AGAIN, create_again, state_of
from ._tags import attempts_after
from ._throttle import backoff_delay, jittered

if TYPE_CHECKING:
    from ._client import Provider
    from .options import ManagedOptions

_SEARCHING = "searching for what was created"


class Once(ABC):
    """One paid object of a run: its job, or one of its batches.

    The run's state holds {"phase", "id", "requested_at"} under `key`; the time is in seconds since 1970. Phases:
      creating         the request was sent, or is about to be; its answer is not saved
      outcome_unknown  the search found nothing: the user has to decide
      refused          the provider refused the request, or the request was never sent
      created          the object exists, and `id` is its id
    """

    noun: ClassVar[str]  # in messages: job, batch
    what: ClassVar[str]  # in messages: a job, a batch of requests

    def __init__(self, provider: Provider, run: Run, key: str) -> None:
        self.provider, self.run, self.key = provider, run, key

    # ---- what differs between jobs and batches

    @abstractmethod
    def find(self) -> Any:
        """Return the object with the run's tag that the run can adopt, or None. May raise what the client raises."""

    @abstractmethod
    def retrieve(self, id: str) -> Any:
        """Return the object with this id. May raise what the client raises."""

    @abstractmethod
    def prepare(self) -> Callable[[], Any]:
        """Upload what the object needs; return the function that sends the request. Raises FtkitError."""

    @abstractmethod
    def status(self, found: Any) -> str:
        """Return an object's status."""

    @abstractmethod
    def can_replace(self, found: Any) -> bool:
        """Say whether another object may be created in place of this one, when the user confirms it."""

    def settle(self, found: Any) -> Any:
        """Return the object as it is once a cancellation in progress has finished."""
        return found

    def before_replacing(self, found: Any) -> None:  # noqa: B027  only batches have something to save
        """Save what an object produced, before another one replaces it."""

    # ---- the object

    @property
    def entry(self) -> dict[str, Any]:
        """What the run's state holds of the object; empty where nothing was requested."""
        return state_of(self.run).get(self.key) or {}

    def known(self) -> Any:
        """Return the object whose id the run has; None where it has no id.

        Where the user confirmed that another may be created, and this one failed or is gone, forget it and return None.
        Raises RunFailed where the provider does not have it.
        """
        id = self.entry.get("id")
        if not id:
            return None
        again = create_again(self.run)
        found = self.provider.read(f"looking at the {self.noun}", lambda: self._retrieve_or_none(id))
        if found is None:
            found = self._replacement_of(id, again)
        if not again:
            return found
        if found is not None:
            found = self.settle(found)
            if not self.can_replace(found):
                text = f"{self.noun} {found.id} is {self.status(found)}: {AGAIN} creates no second one"
                self.run.log("warning", message=text)
                state_of(self.run).update(create_again=False)
                return found
            self.before_replacing(found)
        self.forget()
        return None

    def adopt_or_create(self) -> Any:
        """Return the object of an earlier request, or a new one. Call `known` first. Raises FtkitError."""
        found = self.adopt_existing()
        if found is not None:
            return found
        if outcome_unknown(self.run, self.key) and create_again(self.run):
            # Another attempt: the earlier object keeps its own tag, should it appear later.
            state_of(self.run).update(attempts=attempts_after(self.run, self.key))
        return self._create(self.prepare())

    def adopt_existing(self) -> Any:
        """Return what an earlier request created; None where the run may create one.

        The provider is searched in any case: the run's state may be lost, and a request may have been refused (by a gateway,
        for example) after the provider had accepted it. Raises RunFailed where the search fails, and where the outcome stays
        unknown and the user did not confirm that another may be created.
        """
        provider, again = self.provider, create_again(self.run)
        if outcome_unknown(self.run, self.key):
            own = is_own_server(provider.options)  # started for this process: no earlier request reaches it late
            found = self._search(once=own)
            if found is None and not own:
                if not again:
                    raise self._outcome_unknown()
                found = provider.read(_SEARCHING, self.find, 0.0)  # a confirmation cannot replace a list that failed
            if found is not None:
                return self._adopt(found, f"{self.what} exists already ({found.id})")
        else:
            found = provider.read(_SEARCHING, self.find)
            if found is not None and self.entry.get("phase") == "refused":
                return self._adopt(found, f"{self.what} exists ({found.id}), although the request was refused")
            if found is not None:
                return self._adopt(found, f"{self.what} with this run's metadata tag exists already ({found.id})")
        self._check_not_cancelled()
        return None

    def forget(self) -> None:
        """Remove the object from the run's state. What is created next is another attempt, with a tag of its own."""
        state_of(self.run).update(**{self.key: None, "attempts": attempts_after(self.run, self.key)})

    def another_hint(self) -> str:
        """Return how the user gets another object in place of this one."""
        return f"another {self.noun}, paid again: ftkit run --resume {self.run.dir} {AGAIN}"

    # ---- creating

    def _create(self, create: Callable[[], Any]) -> Any:
        """Return the object that `create` creates.

        `create` is called again only where it was never sent, or where the provider refused it and has no object with the
        run's tag.
        """
        provider, run = self.provider, self.run
        own = is_own_server(provider.options)
        deadline = time.monotonic() + provider.patience
        for attempt in range(10**6):
            self._check_not_cancelled()
            # Where the process dies after this line and before the answer is saved, the outcome is unknown.
            state_of(run).update(
                **{self.key: {"phase": "creating", "requested_at": round(time.time(), 3)}, "create_again": False}
            )
            try:
                created = create()
                if not isinstance(getattr(created, "id", None), str) or not created.id:
                    raise Malformed(f"the answer to the request that creates {self.what} contains no id")
            except Exception as error:
                failure = classify(error)
                if certainly_not_created(error):
                    state_of(run).update(**{self.key: {"phase": "refused"}})
                else:
                    # After a timeout, a server of the run's own may still process the request, like any other.
                    certain = own and failure != "timeout"
                    found = self._search(once=certain)
                    if found is not None:
                        return self._adopt(found, f"{self.what} exists ({found.id}), although its answer was lost")
                    if not certain:
                        problem = provider.explain(error, f"creating {self.what}")
                        raise self._outcome_unknown(problem.message) from None
                wait = max(retry_after(error) or 0.0, jittered(backoff_delay(attempt, 0.5, 15.0)))
                if failure not in RETRYABLE or time.monotonic() + wait > deadline:
                    raise provider.explain(error, f"creating {self.what}") from None
                sent = not never_sent(error)
            else:
                return self._save_created(created)  # not inside `try`: the object exists, whatever fails here
            time.sleep(wait)
            if sent:
                found = provider.read(_SEARCHING, self.find)
                if found is not None:
                    return self._adopt(found, f"{self.what} exists ({found.id}), although the request was refused")
        raise AssertionError("unreachable")

    def _search(self, once: bool) -> Any:
        """Return what carries the run's tag; None where it does not appear.

        `once`: one list that could be read decides, since no request arrives late there. Otherwise the search is
        repeated for `find_window` seconds.
        """
        provider = self.provider
        if once:
            return provider.read(_SEARCHING, self.find)
        deadline = time.monotonic() + provider.options.find_window
        delay = 0.25
        while True:
            try:
                found = self.find()
            except Exception as error:
                if classify(error) not in RETRYABLE:
                    raise provider.explain(error, _SEARCHING) from None
                found, delay = None, max(delay, retry_after(error) or 0.0)
            left = deadline - time.monotonic()
            if found is not None or left <= 0:
                return found
            time.sleep(min(jittered(delay), left))
            delay = min(delay * 1.7, 8.0)

    def _retrieve_or_none(self, id: str) -> Any:
        try:
            return self.retrieve(id)
        except openai.NotFoundError:
            return None

    def _replacement_of(self, id: str, again: bool) -> Any:
        """Return the object to adopt where the provider has none with this id; None where another may be created."""
        provider, run = self.provider, self.run
        missing = f"{provider.dialect.label} has no {self.noun} {id} (404)"
        found = provider.read(f"looking for the {self.noun}", self.find)
        if found is not None:
            text = f"{missing}: the run adopts {self.noun} {found.id}, which carries its metadata tag"
            run.log("warning", message=text)
            state_of(run).update(**{self.key: {"phase": "created", "id": found.id}})
        elif again:
            run.log("warning", message=f"{missing}: another is created, as the user confirmed")
        else:
            raise RunFailed(
                missing,
                f"do backend.base_url and the key belong to it? look again: ftkit run --resume {run.dir}\n"
                f"  {self.another_hint()}",
            )
        return found

    def _adopt(self, found: Any, why: str) -> Any:
        self._save_created(found)
        self.run.log("note", message=f"{why}: the run adopts it and creates no other")
        return found

    def _save_created(self, created: Any) -> Any:
        state_of(self.run).update(**{self.key: {"phase": "created", "id": created.id}, "create_again": False})
        return created

    def _check_not_cancelled(self) -> None:
        if not create_again(self.run) and state_of(self.run).get("cancelled"):
            raise RunFailed(
                f"this run was cancelled: it does not create {self.what}",
                f"resume it anyway, and pay: ftkit run --resume {self.run.dir} {AGAIN}",
            )

    def _outcome_unknown(self, why: str | None = None) -> RunFailed:
        """Save that the outcome is unknown; return the error that says so."""
        run = self.run
        state_of(run).update(**{self.key: {**self.entry, "phase": "outcome_unknown"}})
        because = why or f"an earlier attempt ended while it created {self.what}"
        return RunFailed(
            f"outcome unknown: {self.what} may exist at the provider ({because}); none with this run's metadata tag "
            f"appeared within {self.provider.options.find_window:g} s",
            f"search again: ftkit run --resume {run.dir}\n  if the provider's own pages show that there is none: "
            f"ftkit run --resume {run.dir} {AGAIN}",
        )


def certainly_not_created(error: BaseException) -> bool:
    """Say whether a failed request certainly created nothing: the provider refused it, or it was never sent.

    After any other error the outcome is unknown, also after one that did not come from the client.
    """
    if isinstance(error, openai.APIStatusError):
        return 400 <= error.status_code < 500 and error.status_code not in (408, 409)
    return never_sent(error)


def outcome_unknown(run: Run, key: str) -> bool:
    """Say whether the run requested something under `key`, and it is not known whether it was created."""
    return (state_of(run).get(key) or {}).get("phase") in ("creating", "outcome_unknown")


def detached(options: ManagedOptions, run: Run, noun: str, keys: Iterable[str]) -> Interrupted:
    """Return the error for Ctrl-C: it separates what keeps running, and is paid for, from what does not exist.

    `keys` are the places in the run's state where a `noun` (job, batch) may be.
    """
    resume, cancel = f"resume with: ftkit run --resume {run.dir}", f"\n  cancel it with: ftkit cancel {run.dir}"
    state = state_of(run)
    entries = {key: state[key] for key in keys if state.get(key)}
    ids = ", ".join(entry["id"] for entry in entries.values() if entry.get("id"))
    if any(outcome_unknown(run, key) for key in entries):
        return Interrupted(
            f"interrupted; outcome unknown: a {noun} may exist at the provider",
            f"{resume} (it searches for the {noun} first){cancel}",
        )
    if not ids:
        return Interrupted(f"interrupted before a {noun} was created", resume)
    if is_own_server(options):
        return Interrupted(f"detached: {noun} {ids} waits with its server", resume)
    return Interrupted(f"detached: {noun} {ids} keeps running at the provider, and is paid for", resume + cancel)


# ---------------------------------------------------------------- a cancelled run


def cancel_run(run: Run) -> None:
    """Note, for a run that may be running in another process, that nothing paid is to be created for it any more."""
    state_of(run).update(cancelled=round(time.time(), 3))
