"""The file `.eval_results/NAME.yaml` of a model on the hub: a score on a data set that the hub registers as a benchmark.

The hub's documentation: https://huggingface.co/docs/hub/eval-results. A benchmark is a data set with an eval.yaml at its
root, which names its tasks. The file is written only where all of the test split was measured.
"""

from __future__ import annotations

import io
from pathlib import Path

from ruamel.yaml import YAML

from ..directory import RunDirectory
from ..hub import prefer_cache_when_unreachable
from ..records import Report
from ..text import scale_for

FOLDER = ".eval_results"


def eval_results(run: RunDirectory, report: Report, system: str, dataset: str, revision: str | None) -> str | None:
    """Return the YAML text for `system`; None where the hub data set is no benchmark, or the score is not one on it."""
    metric = next((s.metrics.get(report.primary) for s in report.systems if s.name == system), None)
    whole = run.recipe.dataset.splits.test == "all"
    task = task_of(dataset, revision) if metric is not None and metric.n_unscored == 0 and whole else None
    if metric is None or task is None:
        return None
    about = {"id": dataset, "task_id": task, **({"revision": revision} if revision else {})}
    scale = scale_for(metric.unit, [metric.value])
    notes = f"{metric.name} ({scale.unit or metric.unit}) of ftkit's evaluator, n={metric.n}, prompt and settings as in the model card"
    text = io.StringIO()
    YAML().dump([{"dataset": about, "value": float(scale.value(metric.value)), "notes": notes}], text)
    return text.getvalue()


def task_of(dataset: str, revision: str | None) -> str | None:
    """Return the id of the one task of a benchmark; None for another data set, several tasks, or without the hub."""
    from huggingface_hub import hf_hub_download

    try:
        prefer_cache_when_unreachable()
        path = hf_hub_download(dataset, "eval.yaml", repo_type="dataset", revision=revision)
        tasks = YAML(typ="safe").load(Path(path).read_text(encoding="utf-8"))["tasks"]
        return str(tasks[0]["id"]) if len(tasks) == 1 else None
    except Exception:  # no such file, no network, another shape: then nothing is claimed
        return None
