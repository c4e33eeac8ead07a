"""What a run remembers of its objects at the provider: see `ftkit.api.State`.

Keys: `job`, `batch-HASH` ({"phase", "id", "requested_at"}, see `_once`), `attempts` (by key), `files` (uploaded, by SHA-256),
`create_again` (the user's confirmation that another object may be created), `cancelled` (no more may be created).
"""

from __future__ import annotations

from ftkit.api import Run, State

CREATE_AGAIN = "create-again"  # the question of this backend that the user may answer with `--answer`
AGAIN = f"--answer {CREATE_AGAIN}=yes"  # in messages


def state_of(run: Run) -> State:
    return run.state("openai-managed")


def create_again(run: Run) -> bool:
    """Return whether the user confirmed that another object may be created. That also lifts a cancellation."""
    state = state_of(run)
    if run.answer(CREATE_AGAIN) == "yes":
        state.update(create_again=True, cancelled=None)
    return bool(state.get("create_again"))
