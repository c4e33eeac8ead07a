"""The shipped evaluators against the real libraries, published numbers and texts in many scripts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import ftkit_metrics
import pytest
from ftkit_metrics import ExactMatch, Rouge, SlotMatch
from ftkit_metrics._text import choose_tokenizer, words
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ftkit.errors import InputError
from ftkit.records import Example, Prediction
from ftkit.stats import wilson

PUBLISHED = Path(__file__).parents[3] / "shared/data/published/llama-3.2-1b-instruct-baseline/predictions.jsonl"


def example(id, *targets, **meta):
    return Example(id, (), targets, meta=meta)


def measure(evaluator, rows):
    """Score (target or targets, prediction) rows; return scores and metrics by name."""
    examples = [example(str(i), *([t] if isinstance(t, str) else t)) for i, (t, _) in enumerate(rows)]
    predictions = [Prediction(str(i), text) for i, (_, text) in enumerate(rows)]
    evaluator.prepare(examples)
    scores = [evaluator.score(e, p) for e, p in zip(examples, predictions, strict=True)]
    return scores, {m.name: m for m in evaluator.aggregate(examples, predictions, scores)}


def rouge(**options):
    return Rouge(Rouge.Options(**options))


# ---------------------------------------------------------------- the plugin


def test_import_is_light_and_names_are_offered():
    code = (
        "import sys, ftkit_metrics as m; print([c.name for c in m.ftkit_evaluators()]);"
        "print([x for x in ('nltk', 'rouge_score', 'evaluate', 'datasets', 'torch', 'scipy') if x in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["['rouge', 'exact-match', 'slot-match', 'hf-metric']", "[]"]


def test_every_option_is_described():
    for cls in ftkit_metrics.ftkit_evaluators():
        assert all(field.description for field in cls.Options.model_fields.values()), cls.name
        assert cls.summary and cls.primary


# ---------------------------------------------------------------- rouge


def library(target, prediction, **options):
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], **options)
    return {name: score.fmeasure for name, score in scorer.score(target, prediction).items()}


def test_published_numbers_are_reproduced():
    if not PUBLISHED.exists():
        pytest.skip("the published predictions are not on this machine (../shared/data/published)")
    rows = [json.loads(line) for line in PUBLISHED.read_text(encoding="utf-8").splitlines()]
    published = json.loads((PUBLISHED.parent / "eval_results.json").read_text())
    evaluator = rouge()
    scores, metrics = measure(evaluator, [(row["reference"], row["prediction"]) for row in rows])
    for name in ("rouge1", "rouge2", "rougeL"):
        assert metrics[name].value == pytest.approx(published[name], abs=0.0012)
        assert metrics[name].low < metrics[name].value < metrics[name].high
    assert metrics["rouge1"].n == published["num_samples"]
    assert evaluator.settings()["tokenizer_used"] == "default"
    for row, score in zip(rows, scores, strict=True):
        for name, value in library(row["reference"], row["prediction"]).items():
            assert score.values[name] == value


def test_golden_numbers():
    target, prediction = "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."
    [score], _ = measure(rouge(), [(target, prediction)])
    # From rouge-score's README: rouge1 6 of 8 and 6 of 9, rougeL 5 of 8 and 5 of 9.
    assert score.values["rouge1"] == pytest.approx(12 / 17)
    assert score.values["rougeL"] == pytest.approx(10 / 17)
    assert score.values["rouge2"] == pytest.approx(4 / 15)
    assert (score.values["generated_words"], score.values["reference_words"]) == (8, 9)


texts = st.lists(st.sampled_from(["a", "b", "c", "Dog", "running", "é", ".", "\n", "\n\n", "1"]), max_size=14).map(
    " ".join
)


@settings(max_examples=200, deadline=None)
@given(texts, texts, st.booleans())
def test_equal_to_the_library(target, prediction, stem):
    evaluator = rouge(use_stemmer=stem, tokenizer="default")
    evaluator.prepare([])
    values = evaluator.score(example("1", target), Prediction("1", prediction)).values
    assert {k: v for k, v in values.items() if k.startswith("rouge")} == library(target, prediction, use_stemmer=stem)


def test_several_targets_best_per_metric():
    targets = ["a b c d", "d c b a e"]
    [score], _ = measure(rouge(), [(targets, "a b d c")])
    each = [library(t, "a b d c") for t in targets]
    for name in each[0]:
        assert score.values[name] == max(e[name] for e in each)
    assert score.values["reference_words"] == 4.5


def test_lengths_have_a_unit_and_no_better():
    _, metrics = measure(rouge(), [("one two", "one"), ("one two three four", "one two three")])
    assert (metrics["generated_words"].value, metrics["reference_words"].value) == (2, 3)
    assert (metrics["generated_words"].unit, metrics["generated_words"].higher_is_better) == ("words", None)
    assert (metrics["rouge1"].unit, metrics["rouge1"].higher_is_better) == ("fraction", True)


@pytest.mark.parametrize(
    ("reference", "same", "other", "script"),
    [
        ("アンナは明日の午後五時に駅で会う予定です。", "アンナは明日駅で会う。", "猫が庭で寝ている。", "CJK"),
        ("安娜明天下午五点在车站见面。", "安娜明天在车站见面", "猫喜欢睡觉", "CJK"),
        ("แอนนาจะไปพบเพื่อนที่สถานี", "แอนนาจะไปสถานี", "๑๒๓", "THAI"),
        ("Анна встретит друга на вокзале в пять.", "Анна встретит друга.", "Кошка спит дома", "CYRILLIC"),
        ("آنا ستلتقي صديقها في المحطة", "آنا ستلتقي صديقها", "القطة نائمة", "ARABIC"),
        ("안나는 내일 역에서 친구를 만난다", "안나는 친구를 만난다", "고양이가 잔다", "HANGUL"),
        ("Η Άννα θα συναντήσει τον φίλο της", "η άννα θα συναντήσει", "Η γάτα κοιμάται", "GREEK"),
        ("अन्ना कल स्टेशन पर मित्र से मिलेगी", "अन्ना मित्र से मिलेगी", "बिल्ली घर में", "DEVANAGARI"),
        ("Później żółw spotka się z Łukaszem, żeby coś zjeść.", "żółw spotka się z łukaszem", "kot śpi", "LATIN"),
    ],
)
def test_scripts(reference, same, other, script):
    evaluator = rouge()
    scores, _ = measure(evaluator, [(reference, reference), (reference, same), (reference, other)])
    full, part, none = (score.values["rouge1"] for score in scores)
    assert full == 1 and 0.3 < part < 1 and none < 0.35
    settings = evaluator.settings()
    assert settings["tokenizer_used"] == "unicode" and script in settings["tokenizer_reason"]
    json.dumps(settings)


def test_default_tokenizer_scores_japanese_0():
    scores, _ = measure(rouge(tokenizer="default"), [("明日の駅", "明日の駅")])
    assert scores[0].values["rouge1"] == 0


def test_length_in_characters_where_there_are_no_spaces():
    _, metrics = measure(rouge(), [("東京で会う。", "東京")])
    assert (metrics["reference_words"].value, metrics["reference_words"].unit) == (5, "characters")


def test_choice_by_language():
    english = ["Zoë and José meet Łukasz at a café at 5 pm, and the rest of them will come later in the week. 😀"]
    assert choose_tokenizer([*english, *(["Anna asks Tom to buy milk."] * 20)]).tokenizer == "default"
    for text in (
        "Anna kommt später, weil sie noch für die Prüfung lernen muss und der Zug sich verspätet",
        "Anna a oublié ses clés et demande à Marc de l'attendre près de la gare",
        "Anna non può venire perché è malata, così restano a casa",
        "Ana no podrá venir mañana porque está enferma y el niño también",
    ):
        assert choose_tokenizer([text]).tokenizer == "unicode", text
    assert choose_tokenizer([]).tokenizer == "default"
    assert choose_tokenizer(["", "42", "😀"]).tokenizer == "default"
    assert choose_tokenizer(["Anna meets Tom at the station"] * 9 + ["明日の午後"]).tokenizer == "unicode"


@given(st.text())
def test_words_of_anything(text):
    found = words(text)
    assert all(found) and words(" ".join(found)) == found


def test_words():
    assert words("Żółw's 2nd – кофе, 東京") == ["żółw", "s", "2nd", "кофе", "東", "京"]
    assert words("cafe\u0301 ＡＢＣ") == ["café", "abc"]
    assert words("a\ud800b \x00") == ["a", "b"]  # a lone surrogate and NUL separate


def test_auto_equals_default_on_english_with_accented_names():
    rows = [("José meets Zoë at the station at five", "josé meets zoe at 5"), ("They had a long talk", "a talk")]
    assert measure(rouge(), rows)[0] == measure(rouge(tokenizer="default"), rows)[0]


def test_stemmer():
    with pytest.raises(ValidationError, match="English"):
        rouge(use_stemmer=True, tokenizer="unicode")
    evaluator = rouge(use_stemmer=True)
    [score], _ = measure(evaluator, [("they were running", "they run")])
    assert score.values["rouge1"] == pytest.approx(0.8) and evaluator.settings()["stemmed"] is True
    measure(evaluator, [("они бежали", "они бегут")])
    assert evaluator.settings()["stemmed"] is False


def test_split_summaries_needs_sentence_data(monkeypatch):
    import nltk

    def missing(text):
        raise LookupError("punkt_tab")

    monkeypatch.setattr(nltk, "sent_tokenize", missing)
    with pytest.raises(InputError, match="punkt_tab"):
        rouge(split_summaries=True).prepare([example("1", "A b. C d.")])
    monkeypatch.setattr(nltk, "sent_tokenize", lambda text: text.replace(". ", ".\n").split("\n"))
    [score], _ = measure(rouge(split_summaries=True), [("c d. a b.", "a b. c d.")])
    assert score.values["rougeLsum"] == 1 and score.values["rougeL"] == 0.5


def test_1000_pairs_are_fast():
    target = "Anna will meet Tom at the station at five and bring the tickets for the concert on Friday evening"
    rows = [(target, f"Tom waits {i} hours at the station for Anna who brings tickets") for i in range(1_000)]
    started = time.perf_counter()
    measure(rouge(), rows)
    assert time.perf_counter() - started < 5


# ---------------------------------------------------------------- exact-match


@pytest.mark.parametrize(
    ("target", "answer", "right"),
    [
        ("Paris", " paris. ", True),
        ("Paris", '**"Paris"**!', True),
        ("New York", "new\n york", True),
        ("STRASSE", "straße", True),
        ("10 km", "１０ ㎞", True),
        ("東京", "「東京」。", True),
        ("Paris", "Paris, France", False),
        ("5", "-5", False),
        ("50", "50%", False),
        ("C", "C#", False),
        ("0.5", ".5", False),
        ("?", "!", False),
        ("?", "", False),
        ("5", "(5)", True),
    ],
)
def test_exact_match(target, answer, right):
    [score], _ = measure(ExactMatch(), [(target, answer)])
    assert score.values == {"exact_match": float(right)}


def test_exact_match_any_target_answer_and_interval():
    scores, metrics = measure(ExactMatch(), [(["yes", "Yeah"], " YEAH!"), ("no", "maybe")])
    assert [s.answer for s in scores] == ["yeah", "maybe"]
    metric = metrics["exact_match"]
    assert (metric.value, metric.low, metric.high) == (0.5, *wilson(1, 2)) and "Wilson" in metric.method


def test_exact_match_switches():
    off = dict.fromkeys(("unicode", "ignore_case", "collapse_whitespace", "strip_punctuation"), False)
    for target, answer in [("a", "A"), ("a b", "a  b"), ("a", "a."), ("A", "Ａ")]:
        assert measure(ExactMatch(), [(target, answer)])[0][0].values["exact_match"] == 1
        strict = ExactMatch(ExactMatch.Options(**off))
        assert measure(strict, [(target, answer)])[0][0].values["exact_match"] == 0
    with pytest.raises(ValidationError):
        ExactMatch.Options(lower=True)


@given(st.text(max_size=12))
def test_normalising_twice_changes_nothing(text):
    evaluator = ExactMatch()
    assert evaluator.normalise(evaluator.normalise(text)) == evaluator.normalise(text)


# ---------------------------------------------------------------- slot-match


def slot_score(text, **meta):
    return SlotMatch(SlotMatch.Options(slots=list(meta))).score(example("1", "x", **meta), Prediction("1", text))


def test_slots():
    score = slot_score(
        "Anna and Tom will meet at the Café Roma.", who=["Anna", "Tom"], where="cafe\u0301 roma", when="6 pm"
    )
    assert score.values == {"slot_who": 1, "slot_where": 1, "slot_when": 0, "all_slots": 0}
    assert score.reason == "not found: when"


def test_slots_are_whole_words_in_order():
    assert slot_score("Annabel sings", who="Anna").values["slot_who"] == 0
    assert slot_score("Anna's cat", who="Anna").values["slot_who"] == 1
    assert slot_score("Tom meets Anna", who=["Anna", "Tom"]).values["slot_who"] == 0
    assert slot_score("Anna meets Anna", who=["Anna", "Anna"]).values["slot_who"] == 1
    assert slot_score("Anna waits", who=["Anna", "Anna"]).values["slot_who"] == 0
    assert slot_score("at 5:30", when="5.30").values["slot_when"] == 1
    assert slot_score("明日東京で会う", where="東京").values["slot_where"] == 1
    assert slot_score("room 12", room=12).values["slot_room"] == 1


def test_empty_slots_are_not_counted():
    examples = [example("1", "x", who="Anna", when=None), example("2", "x", who="Tom", when="noon"), example("3", "x")]
    evaluator = SlotMatch(SlotMatch.Options(slots=["who", "when"]))
    evaluator.prepare(examples)
    predictions = [Prediction("1", "Anna"), Prediction("2", "Tom at four"), Prediction("3", "")]
    scores = [evaluator.score(e, p) for e, p in zip(examples, predictions, strict=True)]
    assert scores[2].values == {}
    metrics = evaluator.aggregate(examples, predictions, scores)
    assert [(m.name, m.value, m.n, m.n_unscored) for m in metrics] == [
        ("slot_who", 1, 2, 0),
        ("slot_when", 0, 1, 0),
        ("all_slots", 0.5, 2, 0),
    ]


def test_unknown_slot_is_an_error():
    evaluator = SlotMatch(SlotMatch.Options(slots=["who", "wen"]))
    with pytest.raises(InputError, match=r"'wen'.*kept columns: when, who"):
        evaluator.prepare([example("1", "x", who="Anna", when="noon")])
    for slots in ([], ["a", "a"]):
        with pytest.raises(ValidationError):
            SlotMatch.Options(slots=slots)
