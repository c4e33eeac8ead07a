"""A result that others can have, as functions: what `ftkit rerun`, `diff`, `verify` and `pack` do.

Each takes the path of a run directory or of a packed archive.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .console import Console
from .directory import RunDirectory

if TYPE_CHECKING:
    from .report.diff import RunsDiff
    from .run.rerun import Rerun
    from .run.verify import Verification


def rerun(
    run: str | Path,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    console: Console | None = None,
    yes: bool = False,
    dry_run: bool = False,
    trust: bool = False,
) -> Rerun:
    """Run a run again from its directory alone, under `out`; `.verdict` says whether the result is the same.

    `trust` lets the recipe of an archive allow code of others to run. Raises FtkitError, see `ftkit.run.rerun.rerun`.
    """
    from .run.rerun import rerun as again

    with _trusted(run, trust) as original:
        return again(original, Path(out), console or Console(), overrides, yes, dry_run)


def verify(run: str | Path, against: str | None = None, trust: bool = False) -> Verification:
    """Check a run's files and numbers; `.ok` says whether anything is wrong. `against` is the source of its rows."""
    from .run.verify import verify as check

    with _trusted(run, trust) as directory:
        return check(directory, against)


def diff(before: str | Path, now: str | Path) -> RunsDiff:
    """Return in what two runs differ: recipe, lock, data, metrics and answers."""
    from .report.diff import diff_runs
    from .run.pack import opened

    with opened(before) as first, opened(now) as second:
        return diff_runs(first, second)


def pack(run: str | Path, target: str | Path | None = None, anyway: bool = False) -> Path:
    """Write a finished run into one .tar.gz and return its path. Raises InputError, see `ftkit.run.pack.pack`."""
    from .run.pack import pack as write

    return write(RunDirectory.open(run), None if target is None else Path(target), anyway)


@contextlib.contextmanager
def _trusted(path: str | Path, trust: bool) -> Iterator[RunDirectory]:
    """Open a run; of an archive, what its recipe permits counts only with `trust`."""
    from .run.pack import is_archive, opened, refuse_code

    with opened(path) as run:
        if is_archive(path) and not trust:
            refuse_code(run)
        yield run
