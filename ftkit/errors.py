"""Errors that a user can cause or must see: one short message each, never a traceback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


class FtkitError(Exception):
    """Base: `str(error)` is the whole message, `hint` the fix, `exit_status` what the shell sees."""

    exit_status = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if not self.hint else f"{self.message}\n  {self.hint}"


class InputError(FtkitError):
    """The command, a recipe or a file given to it is wrong (exit status 2)."""

    exit_status = 2


class RunFailed(FtkitError):
    """A run began and could not continue (exit status 1)."""


class ProcessFailed(RunFailed):
    """A process that works for the run failed.

    `cause` is the name of what made it fail (see `ftkit.causes`; "other" where that is not known), `kind` the name of
    the type of its error ("" where a signal ended the process).
    """

    def __init__(self, message: str, hint: str | None = None, cause: str = "other", kind: str = "") -> None:
        super().__init__(message, hint)
        self.cause, self.kind = cause, kind


class Interrupted(FtkitError):
    """The user stopped the run; it can be resumed (exit status 130)."""

    exit_status = 130


@dataclass(frozen=True)
class Problem:
    """One mistake at one place of a recipe. `line` and `column` count from 1; None where there is no place."""

    message: str
    file: str | None = None
    line: int | None = None
    column: int | None = None
    key: str | None = None
    hint: str | None = None
    level: str = "error"

    def __str__(self) -> str:
        place = ":".join(str(p) for p in (self.file, self.line, self.column) if p is not None)
        if self.file == "--set" and self.key and f"`{self.key}`" not in self.message:
            place = f"{place} {self.key}"  # no line says which of several is meant
        text = f"{place}: {self.message}" if place else self.message
        return text if not self.hint else f"{text}\n  {self.hint}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class RecipeError(InputError):
    """All mistakes of a recipe at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(p) for p in self.problems))
