"""A metric of the `evaluate` library: load it, compute it, and resample examples for a corpus metric's interval."""

from __future__ import annotations

import hashlib
import inspect
import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import evaluate
import numpy as np

from ftkit.errors import FtkitError, InputError
from ftkit.records import Example, Metric, Prediction, Score
from ftkit.stats import CONFIDENCE, SEED, clusters_of, expanded_tail, few_units

if TYPE_CHECKING:
    from . import HfMetricOptions

_RESAMPLES = 100
_UP_TO = 2_000  # examples; with more, 100 computations take minutes


class HfMetric:
    """One loaded metric. An error in the metric's own code is raised as an FtkitError that names the metric."""

    def __init__(self, options: HfMetricOptions) -> None:
        self._options = options
        self._metric = _load(options.metric, options.config)
        source = inspect.getsourcefile(type(self._metric))
        self.script_sha256 = hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else None

    def compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """Return the metric's value; `references` holds one or more texts per prediction.

        Raises FtkitError if the metric fails, needs something other than texts, or returns no such number.
        """
        several = any(len(r) != 1 for r in references)
        shaped = [list(r) for r in references] if several else [r[0] for r in references]
        try:
            result = self._metric.compute(predictions=list(predictions), references=shaped, **self._options.kwargs)
        except Exception as error:
            what = "several targets per row" if several else "texts as predictions and references"
            hint = f"the metric may not take {what}, or an argument in `kwargs` is wrong"
            raise FtkitError(f"hf-metric: {self._options.metric}: {_one_line(error)}", hint) from error
        return self._number(result)

    def _number(self, result: Any) -> float:
        found = {k: v for k, v in dict(result or {}).items() if isinstance(v, numbers.Real | np.number)}
        key = self._options.value_name
        if key not in found and self._options.result_key is None and len(found) == 1:
            key = next(iter(found))
        if key not in found:
            raise InputError(
                f"hf-metric: {self._options.metric} returns no number {key!r}",
                f"set result_key to one of: {', '.join(map(str, found)) or 'none, it returns no number'}",
            )
        return float(found[key])

    def over_split(
        self, examples: Sequence[Example], predictions: Sequence[Prediction], scores: Sequence[Score]
    ) -> list[Metric]:
        """Return the metric over all scored predictions, its interval from resampling examples."""
        options = self._options
        targets = {example.id: example.targets for example in examples}
        scored = {(score.example_id, score.sample) for score in scores if score.values is not None}
        texts: dict[str, list[str]] = {}
        for prediction in sorted(predictions, key=lambda p: (p.example_id, p.sample)):
            if (prediction.example_id, prediction.sample) in scored:
                texts.setdefault(prediction.example_id, []).append(prediction.text)
        n_unscored = len({score.example_id for score in scores} - texts.keys())
        ids = list(texts)
        if not ids:
            return []

        def value(chosen: Sequence[str]) -> float:
            pairs = [(text, targets[i]) for i in chosen for text in texts[i]]
            return self.compute([text for text, _ in pairs], [reference for _, reference in pairs])

        mean = value(ids)
        if not math.isfinite(mean):
            raise FtkitError(f"hf-metric: {options.metric} gives {mean} over the split")
        low, high, method, caution = None, None, "no interval: resamples is 0", None
        units = _units(ids, clusters_of(examples))
        what = "examples" if len(units) == len(ids) else "different inputs"
        resamples = options.resamples
        if resamples is None:
            resamples = _RESAMPLES if len(ids) <= _UP_TO else 0
            method = f"no interval: {_RESAMPLES} computations over more than {_UP_TO} examples; set resamples"
        if len(units) < 2:
            method = "no interval from one example" if len(ids) < 2 else "no interval: all rows have the same input"
        elif resamples:
            rng = np.random.default_rng(SEED)
            drawn = [rng.integers(0, len(units), len(units)) for _ in range(resamples)]
            values = np.array([value([i for u in row for i in units[u]]) for row in drawn])
            if np.isfinite(values).all() and values.min() < values.max():
                tail = expanded_tail(len(units), CONFIDENCE)
                low, high = (float(q) for q in np.quantile(values, [tail, 1 - tail]))
                low, high = min(low, mean), max(high, mean)
                if options.unit == "fraction":
                    low, high = max(0.0, low), min(1.0, high)
                method = f"95 % bootstrap over {what}, expanded percentiles, {resamples} resamples, seed {SEED}"
                caution = few_units(len(units), what)
            elif np.isfinite(values).all():
                method = "no interval: all resamples have the same value"
            else:
                method = "no interval: the metric is not a finite number on some resamples"
        return [
            Metric(
                options.value_name,
                mean,
                low,
                high,
                len(ids),
                n_unscored,
                options.unit,
                options.direction,
                method,
                len(units) if len(units) < len(ids) else None,
                caution,
            )
        ]


def _units(ids: Sequence[str], clusters: Mapping[str, str]) -> list[list[str]]:
    """Return the examples in groups of one input: what is drawn together."""
    groups: dict[str, list[str]] = {}
    for i in ids:
        groups.setdefault(clusters.get(i, i), []).append(i)
    return [groups[name] for name in sorted(groups)]


def _load(name: str, config: str | None) -> Any:
    is_path = name.endswith(".py") or name.startswith((".", "/", "~"))
    path = str(Path(name).expanduser()) if is_path else name
    if is_path and not Path(path).exists():
        raise InputError(f"hf-metric: there is no metric script at {name}")
    try:
        return evaluate.load(path, config, keep_in_memory=True)
    except ImportError as error:  # evaluate's message names the modules and the pip command
        raise FtkitError(f"hf-metric: {name} needs more: {_one_line(error)}") from error
    except OSError as error:
        raise FtkitError(
            f"hf-metric: no metric {name!r} could be found: {_one_line(error)}",
            "check the name; without a network, give the path of a downloaded metric script",
        ) from error
    except Exception as error:  # a metric's script may raise anything
        raise FtkitError(f"hf-metric: {name} cannot be loaded: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
