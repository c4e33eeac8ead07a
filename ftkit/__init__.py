"""ftkit: fine-tune a language model from one recipe, and prove that it helped.

    import ftkit
    result = ftkit.run("recipes/quickstart.yaml")
    result.metrics

Names are imported when they are first used, so that `import ftkit` and the command line stay quick.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import (
        Backend,
        DatasetLoader,
        Evaluator,
        Launcher,
        MeasuredRun,
        Options,
        Requires,
        Run,
        Session,
        State,
        Tracker,
    )
    from .causes import Failure
    from .errors import FtkitError
    from .hookspecs import hookimpl
    from .interface import (
        cancel,
        check,
        doctor,
        export,
        open_run,
        predict,
        preview,
        report,
        resume,
        run,
        runs,
        score,
        sweep,
    )  # fmt: skip
    from .recipe.load import Recipe, load_recipe
    from .records import (
        Cancelled,
        Curve,
        Delta,
        Diagnosis,
        Example,
        Exported,
        ExportRequest,
        Finding,
        GenerationConfig,
        LengthLimit,
        Measurement,
        Message,
        Metric,
        ModelRef,
        Pair,
        Prediction,
        Remedy,
        Rendered,
        Report,
        RunRecord,
        Score,
        Section,
        StageRecord,
        System,
        Task,
    )
    from .reproduce import diff, pack, rerun, verify
    from .results import JointResult, RunList, RunResult
    from .sweep.result import SweepResult

# module -> the public names that it holds
_HOLDS = {
    "interface": ["run", "resume", "score", "report", "open_run", "cancel", "check", "preview", "runs", "doctor",
                  "predict", "export", "sweep"],
    "reproduce": ["rerun", "verify", "diff", "pack"],
    "results": ["RunResult", "JointResult", "RunList"],
    "sweep.result": ["SweepResult"],
    "recipe.load": ["Recipe", "load_recipe"],
    "api": ["Backend", "Evaluator", "DatasetLoader", "Launcher", "Tracker", "Session", "Options", "Requires", "Run",
            "MeasuredRun", "State"],
    "records": ["Example", "Message", "Task", "ModelRef", "GenerationConfig", "LengthLimit", "Measurement", "Remedy", "ExportRequest", "Exported",
                "Rendered", "Prediction", "Score", "Metric", "Finding", "Cancelled", "Diagnosis", "StageRecord", "RunRecord", "System", "Delta",
                "Pair", "Curve", "Section", "Report"],
    "hookspecs": ["hookimpl"],
    "causes": ["Failure"],
    "errors": ["FtkitError"],
}  # fmt: skip
_PUBLIC = {name: module for module, names in _HOLDS.items() for name in names}

__all__ = [
    "Backend",
    "Cancelled",
    "Curve",
    "DatasetLoader",
    "Delta",
    "Diagnosis",
    "Evaluator",
    "Example",
    "ExportRequest",
    "Exported",
    "Failure",
    "Finding",
    "FtkitError",
    "GenerationConfig",
    "JointResult",
    "Launcher",
    "LengthLimit",
    "MeasuredRun",
    "Measurement",
    "Message",
    "Metric",
    "ModelRef",
    "Options",
    "Pair",
    "Prediction",
    "Recipe",
    "Remedy",
    "Rendered",
    "Report",
    "Requires",
    "Run",
    "RunList",
    "RunRecord",
    "RunResult",
    "Score",
    "Section",
    "Session",
    "StageRecord",
    "State",
    "SweepResult",
    "System",
    "Task",
    "Tracker",
    "cancel",
    "check",
    "diff",
    "doctor",
    "export",
    "hookimpl",
    "load_recipe",
    "open_run",
    "pack",
    "predict",
    "preview",
    "report",
    "rerun",
    "resume",
    "run",
    "runs",
    "score",
    "sweep",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module 'ftkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


class _Package(types.ModuleType):
    """`ftkit.run`, `ftkit.report`, `ftkit.score` and `ftkit.sweep` are functions, though submodules have these names.

    Importing a submodule would set the attribute of its parent; here the function stays.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PUBLIC and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
