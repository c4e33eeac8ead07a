"""Which way is better, for metrics that are known by their names."""

from __future__ import annotations

_LOWER = """
wer cer mer ter character perplexity word_perplexity loss nll cross_entropy bits_per_byte bits_per_character
mae mse rmse mape smape mase mean_absolute_error mean_squared_error root_mean_squared_error error_rate
brier_score toxicity toxicity_ratio max_toxicity hamming_loss edit_distance levenshtein levenshtein_distance
frechet_distance fid kl_divergence ece expected_calibration_error
"""
_HIGHER = """
accuracy balanced_accuracy f1 f1_score precision recall exact_match exact bleu sacrebleu google_bleu gleu nist nist_mt
meteor chrf chrf++ bertscore bleurt comet mauve sari frugalscore matthews_correlation mcc pearson pearsonr spearmanr
kendalltau roc_auc auc average_precision mean_iou iou r_squared r2 code_eval rouge
"""
LOWER, HIGHER = frozenset(_LOWER.split()), frozenset(_HIGHER.split())
GENERIC = frozenset({"score", "value", "result", "mean_score", "overall"})  # result keys that say nothing by themselves
_STARTS = ("rouge", "bertscore", "pass@", "chrf")
_FAMILIES = ("mean_", "eval_", "macro_", "micro_", "weighted_", "overall_", "corpus_", "average_")


def direction(metric: str, result_key: str | None) -> bool | None:
    """Return whether a higher value is better; None where the names do not say.

    A result key speaks for itself ("num_edits" of ter is another number than its score), unless it is as plain as
    "score": then the metric's name decides.
    """
    if result_key is None or result_key.lower() in GENERIC:
        return _of(metric)
    return _of(result_key)


def _of(name: str) -> bool | None:
    name = name.lower().replace("-", "_").replace(" ", "_")
    for family in ("", *_FAMILIES):
        plain = name.removeprefix(family)
        if plain in LOWER:
            return False
        if plain in HIGHER or plain.startswith(_STARTS):
            return True
    return None
