"""Run `ftkit` again and again in children that stop at the N-th step they take in the file system.

Python tells an audit hook of every file that is opened to be written, renamed, removed or made, before it
happens. A child counts these steps and, at a given one, is killed, interrupted, or finds the disk full. So a
test can stop a run at every place where its directory could be left in another state, one after the other.

The children are forked from one process that has everything imported: a run of the fakes takes 0.1 s.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_STEPS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink")


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a child ended: its exit status (minus the signal's number if one ended it), and what it said and did."""

    status: int
    out: str
    err: str
    steps: list[str]  # what it did in the file system, up to its end or to the step that it was stopped at

    @property
    def said(self) -> str:
        return f"status {self.status} after step {len(self.steps)} ({self.steps[-1:]})\n{self.out}\n{self.err}"


class Stopper:
    """A process that runs `ftkit` in forked children of its own, one at a time. Close it, or use it in a `with`."""

    def __init__(self, cwd: Path, *modules: str, **variables: str) -> None:
        """`modules` are imported beforehand, `variables` are set in the environment."""
        self.cwd = cwd
        self._server = subprocess.Popen(
            [sys.executable, __file__, str(cwd), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "COLUMNS": "120", "OPENBLAS_NUM_THREADS": "1", **variables},
        )

    def run(self, *arguments: object, at: int | str | None = None, how: str = "kill", nth: int = 1) -> Ended:
        """Run `ftkit ARGUMENTS`; at step `at` (a number from 0, or the nth step that a pattern matches) it is stopped.

        `how`: kill (SIGKILL), torn (the same; of a file that is appended to, a half line is written before),
        interrupt (SIGINT), terminate (SIGTERM), hang-up (SIGHUP), full (from here on the disk is full).
        """
        assert self._server.stdin and self._server.stdout
        job = {"arguments": [str(a) for a in arguments], "at": at, "how": how, "nth": nth}
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the process that runs ftkit has ended"
        return Ended(**json.loads(answer))

    def close(self) -> None:
        assert self._server.stdin and self._server.stdout
        self._server.stdin.close()
        self._server.wait(20)
        self._server.stdout.close()

    def __enter__(self) -> Stopper:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def mount(arguments: list[str]) -> None:
    """Mount a file system for a test, or skip the test: root alone may, and not everywhere."""
    import pytest

    try:
        subprocess.run(["mount", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs to mount a file system, as root: {getattr(error, 'stderr', None) or error}")


# ---------------------------------------------------------------- what a run leaves


def results(run: Path) -> dict[str, Any]:
    """Return what must be the same however often a run was stopped: data, answers, scores, metrics, model, report."""
    files = (
        "predictions.jsonl",
        "losses.jsonl",
        "scores.jsonl",
        "plan.json",
        "key.json",
        "examples.jsonl",
        "audit.json",
    )
    folders = ("data", "model")
    found: dict[str, Any] = {
        str(p.relative_to(run)): p.read_bytes()
        for p in sorted(run.rglob("*"))
        if p.is_file() and (p.name in files or p.parent.name in folders) and ".work" not in p.parts
    }
    for path in sorted(run.glob("*/metrics.json")):
        measured = _load(path)
        counts = ("n_failed", "n_predictions", "tokens_in", "tokens_out", "usd", "truncated_prompts")
        found[f"{path.parent.name} metrics"] = measured["metrics"], [measured["cost"].get(c) for c in counts]
    record = _load(run / "run.json")
    found["record"] = [record["status"], record["systems"], record["warnings"], record["error"]]
    found["stages"] = [(s["name"], s["status"], s["usd"]) for s in record["stages"]]
    if "audit.json" in found:  # an estimate of seconds depends on how busy the machine is
        found["audit.json"] = {key: value for key, value in _load(run / "audit.json").items() if key != "estimate"}
    report = _load(run / "report.json")
    found["report"] = [
        report[key] for key in ("verdict", "verdict_detail", "deltas", "pairs", "curves", "warnings", "notes")
    ]
    return found


def unfinished(run: Path, working: bool = False) -> list[str]:
    """Return files of a run directory that are not whole, and (unless the run is `working`) files of unfinished work."""
    wrong = []
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if not working and (path.name.endswith((".tmp", ".journal")) or path.name == ".work"):
            wrong.append(name)
        if path.suffix in (".json", ".jsonl") and not path.name.startswith(".") and path.is_file():
            try:
                lines = path.read_text("utf-8").split("\n") if path.suffix == ".jsonl" else [path.read_text("utf-8")]
                growing = working and name == "train/log.jsonl"  # a journal, while the run is at work
                for line in lines[:-1] if growing else [line for line in lines if line]:
                    json.loads(line)
            except ValueError:
                wrong.append(f"{name} is torn")
    return wrong


def _load(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


# ---------------------------------------------------------------- in the server and its children


def _serve(cwd: str, *modules: str) -> None:
    for name in ("cli.main", "interface", "report.build", "run.prepare", "run.stages"):
        importlib.import_module(f"ftkit.{name}")
    for name in ("scipy.stats", *modules):
        importlib.import_module(name)
    from ftkit.plugins import installed_plugins
    from ftkit.run.lock import packages

    installed_plugins()
    packages()
    os.chdir(cwd)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            _child(**job)
        _, status = os.waitpid(child, 0)
        texts = {name: Path(f".stopper.{name}").read_text(errors="replace") for name in ("out", "err", "steps")}
        ended = Ended(os.waitstatus_to_exitcode(status), texts["out"], texts["err"], texts["steps"].splitlines())
        print(json.dumps(dataclasses.asdict(ended)), flush=True)


def _child(arguments: list[str], at: int | str | None, how: str, nth: int) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for fd, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f".stopper.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
    steps = os.open(".stopper.steps", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    sys.argv = ["ftkit", *arguments]
    count, lock, root, place = 0, threading.Lock(), os.getcwd(), at

    def hook(event: str, details: tuple[Any, ...]) -> None:
        nonlocal count, place, nth
        step = _step(event, details, root)
        if step is None:
            return
        with lock:
            number, count = count, count + 1
            if isinstance(place, str) and re.search(place, step):
                nth -= 1
                place = place if nth else number
        os.write(steps, f"{step}\n".encode())
        if not isinstance(place, int) or number < place:
            return
        if how == "full":
            if event in ("open", "os.mkdir"):
                raise OSError(28, "No space left on device", str(details[0]))
        elif number == place:
            if how == "torn" and event == "open" and details[2] & os.O_APPEND and not str(details[0]).endswith(".log"):
                with open(details[0], "ab") as file:
                    file.write(b'{"event": "step", "ba')
            names = {"interrupt": signal.SIGINT, "terminate": signal.SIGTERM, "hang-up": signal.SIGHUP}
            os.kill(os.getpid(), names.get(how, signal.SIGKILL))

    sys.addaudithook(hook)
    status: Any = 0
    try:
        from ftkit.cli.main import main

        main()
    except SystemExit as end:
        status = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 0 if status is None else 1)


def _step(event: str, details: tuple[Any, ...], root: str) -> str | None:
    """Return what is about to happen in the run's file system, or None if it is nothing that changes it."""
    if event == "open":
        path, _, flags = details
        changes = isinstance(path, str | bytes | os.PathLike) and isinstance(flags, int) and flags & _WRITES
    else:
        path, changes = (details[0] if details else None), event in _STEPS
    if not changes:
        return None
    name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)
    if event == "os.mkdir" and os.path.isdir(name):
        return None
    if os.path.isabs(name) and not name.startswith(root):
        return None
    return f"{event} {os.path.relpath(name, root) if os.path.isabs(name) else name}"


if __name__ == "__main__":
    _serve(*sys.argv[1:])
