"""The evaluator `hf-metric`: permission, a corpus metric and its interval, values per example, errors as messages."""

from __future__ import annotations

import json
import sys
import textwrap

import pytest
from ftkit_metrics import HfMetricEvaluator
from pydantic import ValidationError
from test_metrics import example, measure

import ftkit
from ftkit.errors import FtkitError, InputError
from ftkit.records import Example, Prediction, Score

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

    for name in [name for name in sys.modules if name.startswith("evaluate_modules")]:
        monkeypatch.delitem(sys.modules, name)  # of another test's folder
    monkeypatch.setattr(sys, "path", list(sys.path))
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


@pytest.mark.parametrize(
    ("options", "higher"),
    [
        ({"metric": "wer"}, False), ({"metric": "CER"}, False), ({"metric": "ter", "result_key": "score"}, False),
        ({"metric": "perplexity", "result_key": "mean_perplexity"}, False), ({"metric": "./own/rmse.py"}, False),
        ({"metric": "mse"}, False), ({"metric": "mae"}, False), ({"metric": "brier_score"}, False),
        ({"metric": "sacrebleu", "result_key": "score"}, True), ({"metric": "rouge", "result_key": "rougeLsum"}, True),
        ({"metric": "bertscore", "result_key": "f1"}, True), ({"metric": "exact_match"}, True),
        ({"metric": "chrf", "result_key": "score"}, True), ({"metric": "glue", "result_key": "accuracy"}, True),
        ({"metric": "evaluate-metric/meteor"}, True), ({"metric": "code_eval", "result_key": "pass@1"}, True),
        # what no name says
        ({"metric": "ter", "result_key": "num_edits"}, None), ({"metric": "sacrebleu", "result_key": "sys_len"}, None),
        ({"metric": "mystery"}, None), ({"metric": "mystery", "result_key": "score"}, None),
        ({"metric": "glue", "result_key": "score"}, None),
        # what the recipe says
        ({"metric": "mystery", "higher_is_better": True}, True), ({"metric": "accuracy", "higher_is_better": False}, False),
        ({"metric": "wer", "higher_is_better": None}, None),
    ],
)  # fmt: skip
def test_hf_metric_knows_which_way_is_better_or_says_that_it_does_not(options, higher):
    """Every metric was "higher is better": a word error rate that rose from 0.2 to 0.6 was called better."""
    evaluator = HfMetricEvaluator(HfMetricEvaluator.Options(allow_code=True, **options))
    assert evaluator.options.direction is higher
    warnings = evaluator.check()
    if higher is None and "higher_is_better" not in options:
        [warning] = warnings
        assert warning.level == "warning" and "set `higher_is_better`" in warning.message
    else:
        assert warnings == []
    # A recipe is stored with every default written out, and read again from that.
    again = HfMetricEvaluator.Options(**evaluator.options.model_dump(mode="json"))
    assert again == evaluator.options and again.direction is higher


@pytest.mark.parametrize("per_example", [True, False])
def test_hf_metric_directions_reach_the_metrics(script, per_example):
    for higher in (True, False, None):
        _, metrics = measure(hf(script, per_example=per_example, higher_is_better=higher), ROWS)
        assert metrics["overlap"].higher_is_better is higher
    assert measure(hf(script, per_example=per_example), ROWS)[1]["overlap"].higher_is_better is None


@pytest.mark.parametrize(
    ("metric", "verdict"), [("wer", "bad is worse than good"), ("overlap", "No verdict on bad against good")]
)
def test_a_higher_error_rate_is_worse(script, tmp_path, metric, verdict):
    """A word error rate that rose from 0.2 to 0.6 was reported as better."""
    own = tmp_path / f"{metric}.py"
    own.write_text(textwrap.dedent(SCRIPT).replace('"overlap": scale', f'"{metric}": scale'))  # counts wrong words here
    runs = []
    for name, wrong in (("good", 2), ("bad", 6)):
        path = tmp_path / f"{name}.jsonl"
        rows = [
            {
                "id": str(i),
                "input": f"question {i}",
                "target": "wrong",
                "prediction": " ".join(["wrong"] * k + ["x"] * (10 - k)),
            }
            for i, k in ((i, wrong + i % 2) for i in range(30))
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = [f"metric={own}", "allow_code=true", "per_example=true"]
        runs.append(ftkit.score(path, "hf-metric", tmp_path / "runs", name, options))
    report = ftkit.report(*runs, out=tmp_path / "report")
    assert report.deltas[0].delta == pytest.approx(0.4) and report.verdict == verdict
    assert any("set `higher_is_better`" in w for w in report.warnings) == (metric == "overlap")


def test_hf_metric_intervals_have_width_and_count_inputs(script):
    _, metrics = measure(hf(script), [("a", "a")] * 30)
    assert (
        metrics["overlap"].low is None and metrics["overlap"].method == "no interval: all resamples have the same value"
    )
    rows = [("a b", "a"), ("c", "x c d"), ("e f", "y")] * 10
    examples = [Example(str(i), (), (target,), f"question {i % 3}") for i, (target, _) in enumerate(rows)]
    predictions = [Prediction(str(i), text) for i, (_, text) in enumerate(rows)]
    scores = [Score(e.id, {}) for e in examples]
    [metric] = hf(script).aggregate(examples, predictions, scores)
    assert (metric.n, metric.n_inputs) == (30, 3) and metric.caution.startswith("from 3 different inputs")


def test_hf_metric_gives_no_interval_on_large_splits(script):
    _, metrics = measure(hf(script), [("a b", "a")] * 2_001)
    assert metrics["overlap"].low is None and "more than 2000" in metrics["overlap"].method
