"""Delete run directories: nothing that is not a run, nothing that is in use, nothing that ftkit did not write."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from .directory import RunDirectory
from .errors import InputError, RunFailed
from .listing import Summary
from .text import one_line

_FOLDERS = {"data", "train", "state", ".work"}
_FILES = re.compile(r"\.?[\w.-]+\.(json|jsonl|journal|yaml|log|html|md|csv|svg|png|pdf|lock|tmp)|\.lock", re.ASCII)
_MEASURED = ("metrics.json", "predictions.jsonl", "predictions.journal", "plan.json")
_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder; links count as nothing."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            path = Path(parent, name)
            total += 0 if path.is_symlink() else path.lstat().st_size
    return total


def check_removable(run: RunDirectory) -> None:
    """Raise InputError where a run directory must not be deleted: it is in use, or holds what ftkit did not write."""
    record = run.record()
    if run.is_held():
        raise InputError(f"{run.dir} is running: it is not deleted", "stop it with Ctrl-C where it runs")
    if record.kind not in ("run", "score") or not record.started or not record.name:
        raise InputError(f"{run.dir} is not deleted: its run.json is not one of ftkit's")
    here = Path.cwd()
    if here == run.dir or run.dir in here.parents:
        raise InputError(f"{run.dir} is not deleted: it is the folder that you are in", "leave it first: cd ..")
    foreign = [path.name for path in sorted(run.dir.iterdir()) if not _is_ours(path)]
    if foreign:
        names = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
        raise InputError(
            f"{run.dir} is not deleted: it holds what ftkit did not write: {names}", "move that out of it first"
        )


def _is_ours(path: Path) -> bool:
    if path.is_symlink():
        return False
    if path.is_file():
        return bool(_FILES.fullmatch(path.name))
    measured = any((path / name).exists() for name in _MEASURED)
    return path.name in _FOLDERS or measured or not any(path.iterdir())


def remove(run: RunDirectory) -> None:
    """Delete a run directory. Its run.json goes last: what a stopped deletion leaves is still known as a run."""
    check_removable(run)
    try:
        with run.exclusive():
            last = (run.dir / "run.json", run.dir / ".lock")
            for path in run.dir.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path not in last:
                    path.unlink()
            for path in last:
                path.unlink(missing_ok=True)
        run.dir.rmdir()
    except OSError as error:
        raise RunFailed(f"{run.dir} could not be deleted: {one_line(error, 200)}") from None


# ---------------------------------------------------------------- which ones


def seconds_of(text: str) -> float:
    """Return how many seconds "30d", "12h", "90m" or "2w" are. Raises InputError for anything else."""
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]+)?) ?([mhdw])", text.strip(), re.ASCII)
    if found is None:
        raise InputError(f"{text!r} is no length of time", "write it like 30d, 12h, 90m or 2w")
    return float(found[1]) * _UNITS[found[2]]


def to_clean(found: Sequence[Summary], failed: bool, keep_best: int | None, older_than: float | None) -> list[Summary]:
    """Return the runs that `ftkit clean` would delete: never one that is running.

    `failed`: those that failed or were killed. `keep_best`: the finished ones but for so many that score best, of
    those whose primary metric and measured rows are the same. Both together: all of these. Neither: all that have ended. `older_than`
    leaves out what was started less than so many seconds ago, but it does not change which ones are best.
    """
    ended = [s for s in found if s.status not in ("running", "prepared") and not s.run.is_held()]
    gone: list[Summary] = []
    if failed:
        gone += [s for s in ended if s.failed]
    if keep_best is not None:
        gone += [s for group in _groups(s for s in ended if s.status == "done") for s in group[keep_best:]]
    if not failed and keep_best is None:
        gone = ended
    if older_than is not None:
        gone = [s for s in gone if s.age is not None and s.age >= older_than]
    return [s for s in found if s in gone]


def _groups(found: Iterable[Summary]) -> list[list[Summary]]:
    """Return runs that compare, the best first; of equal ones, the newer."""
    groups: dict[tuple[str, str | None, str], list[Summary]] = {}
    for s in found:
        if s.tuned is not None and s.tuned.higher_is_better is not None:  # without a best, all are kept
            groups.setdefault((s.tuned.name, s.rows, s.record.kind), []).append(s)
    return [sorted(group, key=_goodness, reverse=True) for group in groups.values()]


def _goodness(s: Summary) -> tuple[float, str]:
    assert s.tuned is not None
    return (s.tuned.value if s.tuned.higher_is_better else -s.tuned.value, s.record.started)
