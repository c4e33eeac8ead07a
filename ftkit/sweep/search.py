"""A search with Optuna's TPE sampler: each trial is chosen from the results of those before it.

Optuna is imported here alone (`pip install 'ftkit[sweep]'`), and keeps nothing on disk: before each choice its study is
built from the trials of the sweep's directory, so that a resumed search chooses as an unbroken one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from ..recipe.yaml import scalar
from .directory import DONE, FAILED, PRUNED
from .space import Parameter, Values


@dataclass(frozen=True)
class Tried:
    """A trial as the search sees it: `value` is its score, `seen` the metric that it is ranked by, by step of its training."""

    values: Values
    status: str
    value: float | None = None
    seen: dict[int, float] = field(default_factory=dict)


def check_installed() -> None:
    """Raise InputError where Optuna is missing."""
    if importlib.util.find_spec("optuna") is None:
        raise InputError("--search tpe needs Optuna, which is not installed", "pip install 'ftkit[sweep]'")


class Tpe:
    """The choices of one search."""

    def __init__(self, varied: Sequence[Parameter], trials: int, seed: int, higher_is_better: bool) -> None:
        check_installed()
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._seed, self._maximize = optuna, seed, higher_is_better
        self._random = max(2, min(10, trials // 2))  # trials before the first that is chosen by the others' results
        self._varied = {p.key: p for p in varied}
        self._distributions = {p.key: self._distribution(p) for p in varied}

    def _distribution(self, p: Parameter) -> Any:
        kinds = self._optuna.distributions
        if not p.is_range:
            return kinds.CategoricalDistribution(p.values)
        assert p.low is not None and p.high is not None
        if p.whole:
            return kinds.IntDistribution(int(p.low), int(p.high), log=p.log)
        return kinds.FloatDistribution(p.low, p.high, log=p.log)

    def _study(self, tried: Sequence[Tried]) -> Any:
        """Return a study with these trials; its sampler depends on the sweep's seed and their number alone."""
        sampler = self._optuna.samplers.TPESampler(
            seed=(self._seed + len(tried)) % 2**32, n_startup_trials=self._random
        )
        study = self._optuna.create_study(direction="maximize" if self._maximize else "minimize", sampler=sampler)
        for trial in tried:
            study.add_trial(self._frozen(trial))
        return study

    def _frozen(self, tried: Tried) -> Any:
        states = self._optuna.trial.TrialState
        state = {DONE: states.COMPLETE, PRUNED: states.PRUNED, FAILED: states.FAIL}.get(tried.status, states.RUNNING)
        params = {k: scalar(v) if self._varied[k].is_range else v for k, v in tried.values.items()}
        if state == states.COMPLETE and tried.value is None:
            state = states.FAIL
        return self._optuna.trial.create_trial(
            state=state,
            value=tried.value if state == states.COMPLETE else None,
            params=params,
            distributions=self._distributions,
            intermediate_values=tried.seen,
        )

    def ask(self, tried: Sequence[Tried]) -> Values:
        """Return the next setting to try."""
        asked = self._study(tried).ask(self._distributions).params
        return {key: p.written(asked[key]) if p.is_range else str(asked[key]) for key, p in self._varied.items()}
