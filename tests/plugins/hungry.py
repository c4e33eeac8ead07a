"""A plugin with an evaluator that uses up the memory of one process of a training: that of rank 1."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ftkit.api import Evaluator
from ftkit.hookspecs import hookimpl
from ftkit.records import Example, Metric, Prediction, Score


class Hungry(Evaluator):
    name = "hungry"
    summary = "length of the answer, as a share of 1000 characters"
    primary = "length"

    def score(self, example: Example, prediction: Prediction) -> Score:
        if os.environ.get("RANK") == "1":
            import resource

            import torch

            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
            torch.zeros(2**30)  # 4 GB
        return Score(example.id, {"length": min(1.0, len(prediction.text) / 1000)}, prediction.sample)

    def aggregate(
        self, examples: Sequence[Example], predictions: Sequence[Prediction], scores: Sequence[Score]
    ) -> list[Metric]:
        mean = sum(score.values["length"] for score in scores) / len(scores)
        return [Metric("length", mean, None, None, len(scores))]


@hookimpl
def ftkit_evaluators() -> list[type[Evaluator]]:
    return [Hungry]


def install(site: Path) -> None:
    """Put this plugin into a folder for PYTHONPATH, as pip would."""
    shutil.copyfile(__file__, site / "hungry.py")
    info = site / "ftkit_hungry-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ftkit-hungry\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[ftkit]\nhungry = hungry\n")
