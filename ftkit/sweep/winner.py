"""The chosen setting on the test rows: ordinary runs that take over the training of their trials."""

from __future__ import annotations

from dataclasses import replace

from ..console import Console
from ..report import write_report
from ..run.adopt import adopt_training
from ..run.prepare import prepare
from .directory import SweepDirectory, Trial
from .page import sections_of
from .rows import for_winner, keep_rows


def prepare_winner(sweep: SweepDirectory, console: Console) -> None:
    """Prepare the runs that measure the chosen trial on the test rows, unless they are there."""
    trial = chosen_trial(sweep)
    if not sweep.winner:
        recipes = []
        for run in trial.runs:
            recipe = run.recipe
            seed = f"-seed{recipe.seed}" if len(trial.runs) > 1 else ""
            named = replace(recipe, name=f"{sweep.plan.name[:60]}{seed}")
            recipes.append(for_winner(named, keep_rows(sweep, recipe)))
        sweep.add_winner(prepare(recipes, sweep.dir / "winner", console, yes=True))
    for run, trained in zip(sweep.winner, trial.runs, strict=True):
        adopt_training(run, trained)


def chosen_trial(sweep: SweepDirectory) -> Trial:
    return next(t for t in sweep.trials() if t.number == sweep.chosen)


def finish(sweep: SweepDirectory) -> None:
    """Write the sweep's report."""
    write_report(sweep.winner, sweep.dir, more=sections_of(sweep))
