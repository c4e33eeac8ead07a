"""ftkit: fine-tune a language model from one recipe, and prove that it helped.

    import ftkit
    run = ftkit.run("recipes/quickstart.yaml")
    run.metrics

Names are imported when they are first used, so that `import ftkit` and the command line stay quick.
"""

from __future__ import annotations

import importlib
from typing import Any

# public name -> module that holds it
_PUBLIC = {
    **dict.fromkeys(["run", "resume", "score", "make_report", "open_run", "Run"], "notebook"),
    **dict.fromkeys(["Recipe", "load_recipe"], "recipe"),
    **dict.fromkeys(
        ["Backend", "Evaluator", "DatasetLoader", "Launcher", "Tracker", "Session", "Options", "Requires"], "api"
    ),
    **dict.fromkeys(
        ["Example", "Message", "Task", "ModelRef", "Generation", "Measurement", "Rendered", "Prediction", "Score", "Metric",
         "Finding", "StageRecord", "RunRecord", "System", "Delta", "Pair", "Curve", "Section", "Report"], "records"
    ),
    "RunContext": "store",
    "hookimpl": "hookspecs",
    "FtkitError": "errors",
}  # fmt: skip

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module 'ftkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
