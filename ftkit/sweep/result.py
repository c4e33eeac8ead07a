"""What `ftkit.sweep` returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..directory import RunDirectory
from ..results import JointResult, RunResult
from .choose import Effect, Line, effects, leaderboard
from .directory import SweepDirectory


class SweepResult(JointResult):
    """A finished sweep: its runs are those of the chosen setting, one for each seed, measured on the test rows."""

    def __init__(self, sweep: SweepDirectory) -> None:
        super().__init__([RunResult(run) for run in sweep.winner], sweep.dir)
        self.sweep = sweep

    @property
    def leaderboard(self) -> list[Line]:
        """The trials, the best first; their numbers are those of the validation rows."""
        return leaderboard(self.sweep)

    @property
    def effects(self) -> list[Effect]:
        """What each value of each key does, on the validation rows."""
        return effects(self.sweep)

    @property
    def values(self) -> dict[str, str]:
        """The chosen values by key; a key that is not there has the recipe's own value."""
        return dict(next(line.values for line in self.leaderboard if line.chosen))

    @property
    def trials(self) -> Sequence[RunDirectory]:
        """The runs of all trials."""
        return [run for trial in self.sweep.trials() for run in trial.runs]

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            "sweep": str(self.dir),
            "verdict": self.verdict,
            "winner": {
                "trial": self.sweep.chosen,
                "values": self.values,
                "runs": [run.to_dict() for run in self.runs],
            },
            "leaderboard": [
                {**line.to_dict(), "runs": [str(run.dir) for run in trial.runs]}
                for line in self.leaderboard
                for trial in self.sweep.trials()
                if trial.number == line.trial
            ],
            "effects": [effect.to_dict() for effect in self.effects],
            "report_html": str(self.dir / "report.html"),
            "report_json": str(self.dir / "report.json"),
        }

    def __repr__(self) -> str:
        return f"<ftkit sweep {self.dir.name}: {self.verdict}>"
