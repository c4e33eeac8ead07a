"""Kill real runs at random moments, and at every step they take in the file system; resume; compare the ends.

    python tests/soak.py [--seed N] [--kills 100] [--no-steps] [--table FILE]

A run of the fake backend is stopped at each step it takes, one after the other, in four ways: killed, killed
in the middle of a line, interrupted, on a full disk. Then runs of the fake backend and of the TRL backend (the
embedded model, a few training steps) are killed with SIGKILL at random moments, again and again until
they are through. What is left must be, byte for byte, what an undisturbed run leaves. Takes ten to twenty minutes on a laptop.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import install_fakes  # noqa: E402
from kill_at import Stopper, results, unfinished  # noqa: E402
from test_survival import write_recipe  # noqa: E402

SIGNALS = {"kill": -signal.SIGKILL, "torn": -signal.SIGKILL, "interrupt": 130, "full": 1}
COMMAND = [sys.executable, "-c", "from ftkit.cli.main import main; main()"]


@dataclass
class Tally:
    """What came of one kind of stop: how many runs, how often they were stopped, and in which stage."""

    what: str
    runs: int = 0
    stops: int = 0
    stages: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def stopped(self, run: Path | None) -> None:
        record = json.loads((run / "run.json").read_text()) if run else {"stages": []}
        stage = record["stages"][-1]["name"] if record["stages"] else "before"
        self.stops += 1
        self.stages[stage] = self.stages.get(stage, 0) + 1

    def ended(self, run: Path, whole: dict[str, Any], where: str) -> None:
        self.runs += 1
        left, found = unfinished(run), results(run)
        differs = [name for name in whole if found.get(name) != whole[name]]
        if left or differs:
            self.wrong.append(f"{where}: left behind {left}, differs in {differs}")


def only(folder: Path) -> Path | None:
    found = [path.parent for path in folder.glob("*/run.json")]
    return found[0] if found else None


def changed(run: Path | None) -> int:
    """Return when run.json was written last; 0 before it is there."""
    return (run / "run.json").stat().st_mtime_ns if run else 0


def reached(run: Path | None, names: list[str]) -> int:
    """Return which of the stages a run came to last, by its place in `names`."""
    stages = json.loads((run / "run.json").read_text())["stages"] if run else []
    return names.index(stages[-1]["name"]) if stages else 0


def every_step(folder: Path, site: Path, how: str) -> Tally:
    """Stop a run of the fakes at each of its steps, once each."""
    tally = Tally(f"every step, {how}")
    with Stopper(folder, PYTHONPATH=str(site)) as stopper:
        first = stopper.run("run", "recipe.yaml", "--out", f"{how}-whole")
        whole_run = only(folder / f"{how}-whole")
        assert first.status == 0 and whole_run, first.said
        whole = results(whole_run)
        for at in range(len(first.steps)):
            out = folder / f"{how}-{at}"
            stopped = stopper.run("run", "recipe.yaml", "--out", out.name, at=at, how=how)
            run = only(out)
            if stopped.status == 0:  # an interruption or a full disk after the last write
                continue
            if stopped.status != SIGNALS[how] and not (how == "full" and stopped.status == 2):
                tally.wrong.append(f"step {at}: {stopped.said}")
            tally.stopped(run)
            if run is not None:
                resumed = stopper.run("run", "--resume", run)
                if resumed.status:
                    tally.wrong.append(f"step {at}: {resumed.said}")
                else:
                    tally.ended(run, whole, f"step {at}, {first.steps[at]}")
            shutil.rmtree(out, ignore_errors=True)
    return tally


def random_moments(folder: Path, site: Path, what: str, kills: int, rng: random.Random) -> Tally:
    """Kill runs of `recipe.yaml` at random moments until `kills` of them hit, each run until it is through.

    First a stage is drawn, of those still to come, then a moment in it: else most would hit the longest one.
    Or none is drawn, and the run is left alone.
    """
    tally = Tally(f"random moments, {what}")
    path = os.pathsep.join([str(site), str(ROOT), str(ROOT / "plugins")])
    env = {**os.environ, "PYTHONPATH": path, "FAKES": "slow=0.05", "OMP_NUM_THREADS": "1"}

    def start(*arguments: object) -> subprocess.Popen[str]:
        line = [*COMMAND, "run", *map(str, arguments)]
        return subprocess.Popen(line, cwd=folder, env=env, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    process = start("recipe.yaml", "--out", f"{what}-whole")
    _, said = process.communicate()
    whole_run = only(folder / f"{what}-whole")
    assert process.returncode == 0 and whole_run, said
    whole = results(whole_run)
    seconds = {stage["name"]: stage["seconds"] for stage in json.loads((whole_run / "run.json").read_text())["stages"]}
    names = list(seconds)
    while tally.stops < kills:
        out = folder / f"{what}-{tally.runs}"
        arguments: list[object] = ["recipe.yaml", "--out", out.name]
        while True:
            before = changed(only(out))
            drawn = rng.choice([*names[reached(only(out), names) :], None])
            process = start(*arguments)
            while (
                drawn
                and process.poll() is None
                and (changed(only(out)) == before or reached(only(out), names) < names.index(drawn))
            ):
                time.sleep(0.005)  # its imports take long, and nothing can happen to them
            try:
                _, said = process.communicate(timeout=rng.random() * seconds[drawn] if drawn else None)
            except subprocess.TimeoutExpired:
                process.kill()
                _, said = process.communicate()
                tally.stopped(only(out))
            run = only(out)
            if process.returncode == 0:
                break
            if process.returncode != -signal.SIGKILL:
                tally.wrong.append(f"{out.name}: status {process.returncode}: {said}")
                break
            arguments = ["--resume", run] if run else arguments
        if process.returncode == 0 and run:
            tally.ended(run, whole, out.name)
    return tally


def table(tallies: list[Tally]) -> str:
    stages = ("before", "prepare", "baseline", "train", "evaluate", "report")
    head = ["stopped at", "stops", *stages, "runs resumed to the end", "that ended otherwise"]
    rows = [
        [t.what, str(t.stops), *(str(t.stages.get(s, 0)) for s in stages), str(t.runs), str(len(t.wrong))]
        for t in tallies
    ]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def trl_recipe(folder: Path) -> None:
    backend = {
        "plugin": "trl-sft-lora", "base_model": "package:ftkit_quickstart/model", "chat_template": "plain",
        "learning_rate": 4e-3, "micro_batch_size": 4, "max_steps": 40, "save_steps": 2, "eval_steps": 10,
        "eval_batch_size": 4, "logging_steps": 1, "lora_dropout": 0.1,
    }  # fmt: skip
    data = {"path": "loader:quickstart-dialogues", "train_rows": 200, "validation_rows": 4, "test_rows": 64,
            "columns": {"input": "dialogue", "target": "summary"}}  # fmt: skip
    recipe = {"name": "soak", "dataset": data, "prompt": {"template": "{input}\nSummary:"}, "backend": backend,
              "generation": {"max_new_tokens": 24}, "evaluator": "rouge"}  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--kills", type=int, default=100, help="at random moments: half with each backend")
    parser.add_argument("--no-steps", action="store_true", help="at random moments only")
    parser.add_argument("--table", type=Path, help="write the result here as well")
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    rng, tallies = random.Random(asked.seed), []
    memory = Path("/dev/shm")  # where there is one: a kill loses nothing that was written, and fsync costs nothing
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        site, fake, real = (Path(name, part) for part in ("site", "fake", "trl"))
        for folder in (site, fake, real):
            folder.mkdir()
        install_fakes(site)
        write_recipe(fake)
        trl_recipe(real)
        jobs = [
            *((every_step, (fake, site, how)) for how in SIGNALS if not asked.no_steps),
            (random_moments, (fake, site, "fake", asked.kills // 2, rng)),
            (random_moments, (real, site, "TRL", asked.kills - asked.kills // 2, rng)),
        ]
        for job, arguments in jobs:
            tallies.append(job(*arguments))  # type: ignore[operator]
            print(table(tallies[-1:]), *tallies[-1].wrong, sep="\n", flush=True)
    text = table(tallies)
    print(f"\nseed {asked.seed}\n{text}")
    if asked.table:
        asked.table.write_text(text)
    return int(any(t.wrong for t in tallies))


if __name__ == "__main__":
    sys.exit(main())
