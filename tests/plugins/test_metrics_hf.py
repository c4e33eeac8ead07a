"""The evaluator `hf-metric`: permission, a corpus metric and its interval, values per example, errors as messages."""

from __future__ import annotations

import textwrap

import pytest
from ftkit_metrics import HfMetricEvaluator
from pydantic import ValidationError
from test_metrics import example, measure

from ftkit.errors import FtkitError, InputError
from ftkit.records import Prediction, Score

SCRIPT = """
import datasets
import evaluate

class Overlap(evaluate.Metric):
    def _info(self):
        texts = datasets.Value("string")
        features = [
            datasets.Features({"predictions": texts, "references": datasets.Sequence(texts)}),
            datasets.Features({"predictions": texts, "references": texts}),
        ]
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references, scale=1.0):
        # A corpus metric: a ratio of sums, and not a mean of ratios.
        hits = words = 0
        for prediction, reference in zip(predictions, references):
            reference = " ".join(reference) if isinstance(reference, list) else reference
            hits += sum(word in reference.split() for word in prediction.split())
            words += len(prediction.split())
        return {"overlap": scale * hits / words if words else float("nan"), "hits": hits, "note": "text"}
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    import evaluate

    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.setattr(evaluate.loading.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))
    path = tmp_path / "overlap.py"
    path.write_text(textwrap.dedent(SCRIPT))
    return str(path)


def hf(metric, **options):
    return HfMetricEvaluator(HfMetricEvaluator.Options(metric=metric, allow_code=True, **options))


ROWS = [("a b c", "a b"), ("a b", "x y z a"), ("c", "c"), ("d e", "x")]


def test_hf_metric_needs_permission():
    with pytest.raises(ValidationError, match="allow_code: true"):
        HfMetricEvaluator.Options(metric="sacrebleu")


def test_hf_corpus_metric(script):
    evaluator = hf(script, kwargs={"scale": 100.0}, unit="points")
    scores, metrics = measure(evaluator, ROWS)
    [metric] = metrics.values()
    assert evaluator.primary == metric.name == "overlap" and metric.unit == "points"
    assert metric.value == pytest.approx(100 * 4 / 8)  # the mean of the rows' values would be 100 * 9/16
    assert 0 <= metric.low < metric.value < metric.high <= 100
    assert metric.n == 4 and "100 resamples" in metric.method
    assert [score.values for score in scores] == [{}] * 4
    assert measure(hf(script, kwargs={"scale": 100.0}, unit="points"), ROWS)[1] == metrics
    assert len(evaluator.settings()["script_sha256"]) == 64


def test_hf_metric_failed_predictions_are_left_out(script):
    evaluator = hf(script, resamples=0)
    examples = [example("1", "a"), example("2", "b")]
    predictions = [Prediction("1", "a"), Prediction("2", "", error="timeout")]
    scores = [evaluator.score(examples[0], predictions[0]), Score("2", None)]
    [metric] = evaluator.aggregate(examples, predictions, scores)
    assert (metric.value, metric.n, metric.n_unscored, metric.low) == (1.0, 1, 1, None)
    assert evaluator.aggregate(examples, predictions, [Score("1", None), Score("2", None)]) == []


def test_hf_metric_per_example(script):
    scores, metrics = measure(hf(script, per_example=True, unit="fraction"), [*ROWS, ("a", "")])
    assert [s.values and s.values["overlap"] for s in scores] == [1.0, 0.25, 1.0, 0.0, None]
    assert metrics["overlap"].value == pytest.approx(9 / 16) and metrics["overlap"].n_unscored == 1


def test_hf_metric_result_key_and_several_targets(script):
    _, metrics = measure(hf(script, result_key="hits", resamples=5), [(["a", "b"], "a b"), ("c", "c")])
    assert metrics["hits"].value == 3
    with pytest.raises(InputError, match="overlap, hits"):
        measure(hf(script, result_key="nope"), ROWS)


def test_hf_metric_errors_are_messages(script, tmp_path):
    with pytest.raises(FtkitError, match="unexpected keyword argument 'nope'"):
        measure(hf(script, kwargs={"nope": 1}), ROWS)
    with pytest.raises(InputError, match="no metric script"):
        hf(str(tmp_path / "absent.py")).prepare([])
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_module_at_all\n")
    with pytest.raises(FtkitError, match="no_such_module_at_all"):
        hf(str(broken)).prepare([])


def test_hf_metric_without_the_hub(script, monkeypatch):
    import evaluate

    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hugging Face Hub")

    monkeypatch.setattr(evaluate, "load", unreachable)
    with pytest.raises(FtkitError, match="without a network"):
        hf("sacrebleu").prepare([])


def test_hf_metric_gives_no_interval_on_large_splits(script):
    _, metrics = measure(hf(script), [("a b", "a")] * 2_001)
    assert metrics["overlap"].low is None and "more than 2000" in metrics["overlap"].method
