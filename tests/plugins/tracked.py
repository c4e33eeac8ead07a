"""What the tests of the trackers share: runs of the fake backend in a process of their own, with an environment that holds keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wandb_files import Recorded, recorded

from ftkit.directory import RunDirectory

SECRETS = {
    "OPENAI_API_KEY": "sk-proj-4f1c9b7e2a",
    "HF_TOKEN": "hf_QqWwEeRrTtYy",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENG",
    "MY_PASSWORD": "correct-horse-battery",
}
SETTING = ("WANDB_", "TRACKIO_", "HF_", "OPENAI_")


@dataclass
class Desk:
    """A folder to work in: rows, recipes, runs, and the trackers' own folders."""

    folder: Path
    site: Path

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(SETTING)}
        own = {
            "PYTHONPATH": str(self.site),
            "HOME": str(self.folder / "home"),
            "WANDB_DATA_DIR": str(self.folder / "wandb-data"),
            "WANDB_CACHE_DIR": str(self.folder / "wandb-cache"),
            "TRACKIO_DIR": str(self.folder / "trackio"),
            "COLUMNS": "120",
        }
        return {**kept, **own, **SECRETS, **variables}

    def recipe(self, name: str = "fake-run", rows: int = 24, **keys: Any) -> Path:
        """Write a recipe (JSON is YAML) for the fake backend and its rows; return its path."""
        data = self.folder / "rows"
        data.mkdir(exist_ok=True)
        (self.folder / "home").mkdir(exist_ok=True)
        for split, count in (("train", 20), ("validation", 4), ("test", rows)):
            lines = [
                {"input": f"{split} row {i} says", "target": f"{split} row {i} SAYS".upper()} for i in range(count)
            ]
            (data / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        recipe = {
            "name": name,
            "dataset": {"path": str(data)},
            "backend": {"plugin": "fake"},
            "generation": {"max_new_tokens": 16},
            "evaluator": {"plugin": "fake-overlap"},
            **keys,
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(recipe))
        return path

    def start(self, *arguments: object, **variables: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "ftkit", *map(str, arguments)]
        environment = self.environment(**variables)
        return subprocess.Popen(line, stdout=-1, stderr=-1, text=True, cwd=self.folder, env=environment)

    def ftkit(self, *arguments: object, status: int = 0, **variables: str) -> str:
        """Run ftkit, check its exit status and return what it said."""
        process = self.start(*arguments, **variables)
        out, err = process.communicate(timeout=180)
        assert process.returncode == status, err
        assert "Traceback" not in err, err
        return out + err

    def runs(self) -> list[RunDirectory]:
        """Return the run directories, oldest first."""
        found = [RunDirectory.open(path.parent) for path in self.folder.glob("runs/*/run.json")]
        return sorted(found, key=lambda run: run.record().started)

    def wandb_folders(self) -> list[Path]:
        folders = [p for p in self.folder.glob("runs/wandb/*run-*") if p.is_dir() and not p.is_symlink()]
        return sorted(folders, key=lambda p: p.name.removeprefix("offline-"))

    def wandb(self) -> list[Recorded]:
        """Read back each folder of wandb, oldest first."""
        return [recorded(folder) for folder in self.wandb_folders()]
