"""Runs over ssh, each killed at a random moment on one of the two sides and resumed until it is done.

    python tests/soak_ssh.py [RUNS] [SEED]

A real sshd on loopback and the fake backend: a run takes a few seconds. Each has to end with the results of one that
nothing disturbed, its folder there must be gone, and no process of it may be left.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS), str(TESTS / "plugins")]
import conftest  # noqa: E402
from sshd import Sshd, left_over  # noqa: E402

_SIDES = ("here: ftkit", "there: run", "there: supervisor", "there: connection")


def results(run: Path) -> dict[str, bytes]:
    names = ("data/*", "*/predictions.jsonl", "*/scores.jsonl", "*/plan.json", "train/model/*")
    return {p.relative_to(run).as_posix(): p.read_bytes() for name in names for p in sorted(run.glob(name))}


def write_recipe(folder: Path) -> Path:
    rows = folder / "rows"
    rows.mkdir()
    for split, count in (("train", 20), ("validation", 4), ("test", 24)):
        lines = [{"input": f"{split} row {i} says", "target": f"{split} row {i} SAYS".upper()} for i in range(count)]
        (rows / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = folder / "recipe.yaml"
    content = {
        "name": "soak",
        "dataset": {"path": str(rows)},
        "backend": {"plugin": "fake"},
        "generation": {"max_new_tokens": 16},
        "evaluator": {"plugin": "fake-overlap"},
    }
    recipe.write_text(json.dumps(content))
    return recipe


def victims(side: str, process: subprocess.Popen[str], there: Path, sshd: Sshd) -> list[int]:
    if side == "here: ftkit":
        return [process.pid]
    if side == "there: run":
        return [pid for pid, line in left_over(there).items() if "--on here" in line]
    if side == "there: connection":
        return sshd.connections()
    found = []
    for path in there.glob("runs/*/status.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            found.append(json.loads(path.read_text())["supervisor"])
    return found


def main() -> None:
    runs, seed = int((sys.argv[1:] or ["20"])[0]), int((sys.argv[2:] or ["0"])[0])
    chance, counts = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="ftkit-soak-ssh-") as name:
        folder = Path(name)
        site, there = folder / "site", folder / "there"
        site.mkdir()
        conftest.install_fakes(site)
        sshd = Sshd(folder / "sshd", PYTHONPATH=str(site))
        recipe = write_recipe(folder)
        environment = {
            **os.environ,
            "PYTHONPATH": str(site),
            "FAKES": "slow=0.1",
            "FTKIT_SEND_ENV": "FAKES",
            "FTKIT_SSH_COMMAND": sshd.command,
            "FTKIT_REMOTE_PYTHON": sys.executable,
        }

        def start(*arguments: str) -> subprocess.Popen[str]:
            line = [sys.executable, "-m", "ftkit", "run", *arguments]
            return subprocess.Popen(
                line, stdin=-3, stdout=-3, stderr=-1, text=True, cwd=folder, env=environment, start_new_session=True
            )

        def undisturbed(out: str, *where: str) -> tuple[Path, float]:
            began = time.monotonic()
            err = start(str(recipe), "--out", out, "--no-reuse", *where).communicate(timeout=300)[1]
            found = [path.parent for path in (folder / out).glob("*/run.json")]
            assert len(found) == 1, err
            return found[0], time.monotonic() - began

        try:
            wanted = results(undisturbed("here")[0])
            first, seconds = undisturbed("first", "--on", sshd.where(there))
            assert results(first) == wanted
            print(f"undisturbed: {seconds:.1f} s; seed {seed}", flush=True)
            for number in range(runs):
                side, moment = _SIDES[number % len(_SIDES)], chance.uniform(0.5, seconds)
                out = f"run-{number}"
                process = start(str(recipe), "--out", out, "--no-reuse", "--on", sshd.where(there))
                if side != _SIDES[0]:  # once the run is there: what is to be killed exists
                    while process.poll() is None and not list(there.glob("runs/*/status.json")):
                        time.sleep(0.02)
                    moment /= 3
                time.sleep(moment)
                killed = victims(side, process, there, sshd)
                for pid in killed:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                said, attempts = process.communicate(timeout=300)[1], 1
                while not (runs_there := [p.parent for p in (folder / out).glob("*/run.json")]) or (
                    json.loads((runs_there[0] / "run.json").read_text())["status"] != "done"
                    or not (runs_there[0] / "manifest.json").exists()
                ):
                    assert attempts < 6, said
                    assert process.returncode in (1, 130, -9), said
                    more = (
                        ["--resume", str(runs_there[0])]
                        if runs_there
                        else [str(recipe), "--out", out, "--on", sshd.where(there)]
                    )
                    process, attempts = start(*more), attempts + 1
                    said = process.communicate(timeout=300)[1]
                    assert "Traceback" not in said, said
                assert results(runs_there[0]) == wanted, "other results"
                assert not list(there.glob("runs/*")), list(there.glob("runs/*"))
                deadline = time.monotonic() + 20
                while (left := left_over(there, folder / out)) and time.monotonic() < deadline:
                    time.sleep(0.2)
                assert not left, left
                counts[side] += bool(killed)
                what = f"{side} at {moment:.1f} s ({len(killed)} processes)"
                print(f"{number + 1:3d}. {what}: done after {attempts} commands", flush=True)
        finally:
            sshd.stop()
    print(f"{runs} runs, killed: {dict(counts)}; all ended with the same results, nothing was left")


if __name__ == "__main__":
    main()
