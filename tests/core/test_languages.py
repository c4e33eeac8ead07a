"""The texts of report and terminal in Japanese: complete, chosen as documented, and no English left in the page."""

from __future__ import annotations

import json
import os
import re
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_samples import japanese_report, led_report, priced_report, several_report
from texts_in_use import texts_in_use

from ftkit import causes, lang
from ftkit.data.audit import audit_warnings
from ftkit.intervals import Clustered, caution, few_units
from ftkit.lang import joined, keeping, language, msg, speaking, tr, translated
from ftkit.records import Report
from ftkit.report import failure
from ftkit.report.page.render import render_brief, render_html, render_markdown
from ftkit.report.page.text import in_own_language
from ftkit.report.spoken import in_language, translator
from ftkit.text import duration

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "browser"))
import chromium  # noqa: E402

JAPANESE = lang.catalogue("ja")


# ---------------------------------------------------------------- the catalogue


def test_every_text_has_a_translation_and_every_translation_is_used() -> None:
    used = texts_in_use()
    assert len(used) > 500
    assert sorted(used - set(JAPANESE)) == []
    assert sorted(set(JAPANESE) - used) == []


def fields(text: str) -> set[str]:
    return {f"{name}!{conversion}:{spec}" for _, name, spec, conversion in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("english", sorted(JAPANESE))
def test_a_translation_has_the_placeholders_and_the_markup_of_its_text(english: str) -> None:
    japanese = JAPANESE[english]
    assert fields(japanese) == fields(english)
    assert sorted(re.findall(r"<[^>]+>", japanese)) == sorted(re.findall(r"<[^>]+>", english))
    commands = r"`[^`]+`|ftkit (?:run|report|open|recipes)\b"
    assert sorted(re.findall(commands, japanese)) == sorted(re.findall(commands, english))
    assert not re.search("[０-９％]", japanese), "digits and units are half-width"


# ---------------------------------------------------------------- which language


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "en"),
        ({"FTKIT_LANG": "ja"}, "ja"),
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja_JP.eucJP", "LC_ALL": "C"}, "en"),
        ({"LANG": "C", "LC_MESSAGES": "ja_JP"}, "ja"),
        ({"LANG": "ja_JP.UTF-8", "FTKIT_LANG": "en"}, "en"),
        ({"LANG": "ja_JP.UTF-8", "FTKIT_LANG": ""}, "ja"),
        ({"LANG": "fr_FR.UTF-8"}, "en"),
        ({"LANG": "jam_JM"}, "en"),
    ],
)
def test_the_language_is_that_of_ftkit_lang_else_of_the_locale(
    settings: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FTKIT_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert language() == expected


def ftkit(*arguments: str, cwd: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", **settings}
    command = [sys.executable, "-m", "ftkit", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, encoding="utf-8", check=False)


def test_the_command_line_takes_a_language(tmp_path: Path) -> None:
    assert "runs/ に実行はありません" in ftkit("runs", "--lang", "ja", cwd=tmp_path).stderr
    assert "runs/ に実行はありません" in ftkit("runs", cwd=tmp_path, FTKIT_LANG="ja").stderr
    assert "no runs in runs/" in ftkit("runs", "--lang", "en", cwd=tmp_path, FTKIT_LANG="ja").stderr
    wrong = ftkit("runs", cwd=tmp_path, FTKIT_LANG="jp")
    assert wrong.returncode == 2 and "FTKIT_LANG=jp: no such language" in wrong.stderr and "en, ja" in wrong.stderr


def test_what_programs_read_stays_english(tmp_path: Path) -> None:
    rows = tmp_path / "answers.jsonl"
    lines = [json.dumps({"target": "a b", "prediction": text}) + "\n" for text in ("a b", "a", "b c", "c")]
    rows.write_text("".join(lines), "utf-8")
    done = ftkit("score", "--predictions", str(rows), "--evaluator", "rouge", cwd=tmp_path, FTKIT_LANG="ja")
    assert "95 % 信頼区間" in done.stdout and "例が 4 件では信頼区間" in done.stderr, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    shown = ftkit("report", str(folder), cwd=tmp_path, FTKIT_LANG="ja")
    assert "判定なし" in shown.stdout, shown.stderr
    stored = json.loads((folder / "report.json").read_text("utf-8"))
    assert stored["verdict"] == "No verdict"
    assert "判定なし" in (folder / "report.md").read_text("utf-8")
    assert '<html lang="ja"' in (folder / "report.html").read_text("utf-8")
    as_json = ftkit("report", str(folder), "--json", cwd=tmp_path, FTKIT_LANG="ja")
    assert json.loads(as_json.stdout)["verdict"] == "No verdict"


# ---------------------------------------------------------------- stored texts


def test_a_stored_text_is_told_again_with_all_that_it_was_made_from() -> None:
    with keeping() as texts:
        gains = joined([duration(95.0), duration(4.2)], last=" and ")
        stored = tr("{title}: {text}", title="行 1", text=tr("Over the base model: {gains}.", gains=gains))
    assert stored == "行 1: Over the base model: 1 min 35 s and 4.2 s."
    texts = json.loads(json.dumps(texts))
    with speaking("ja"):
        assert translated(stored, texts) == "行 1: ベースモデルとの差: 1 分 35 秒、4.2 秒。"
        assert translated("of the user", texts) == "of the user"
    assert translated(stored, texts) == stored


def test_values_may_hold_braces_and_be_their_own_text() -> None:
    with keeping() as texts:
        stored = tr("{what}{keys}", what="{n} {}", keys="")
    with speaking("ja"):
        assert translated(stored, texts) == "{n} {}"


def test_texts_that_a_run_directory_holds_are_known_by_their_form() -> None:
    few = few_units(12, "examples")
    varied = caution(Clustered([0.0] * 40 + [1.0] * 2, [1.0] * 42, [str(i) for i in range(42)]))
    assert few and varied
    with speaking("ja"):
        assert translator({})(few) == "例が 12 件では信頼区間をあてにできません（20 件必要です）"
        assert translator({})(few.capitalize()) == "例が 12 件では信頼区間をあてにできません（20 件必要です）"
        assert translator({})(varied) == "42 個の値のうちほかと異なるのは 2 個だけで、信頼区間をあてにできません"
        assert translator({})("something else") == "something else"
        for cause in (causes.GPU_MEMORY, causes.MEMORY, causes.DISK, causes.GPU, causes.TIMEOUT, causes.NETWORK):
            translate = translator({})(f"{cause.words}: OSError: {{x}}")
            assert translate.endswith(": OSError: {x}") and cause.words not in translate
        report = {
            "splits": {
                "train": {"empty_inputs": ["1"], "empty_targets": ["1", "2"], "copies": 3, "rows": 4},
                "test": {"empty_inputs": ["1", "2"], "empty_targets": ["2"], "copies": 0, "rows": 4},
            },
            "leaks": {"validation": {"rows": 1}, "test": {"rows": 2}},
            "test_in_validation": {"rows": 1},
        }
        for warning in audit_warnings(report):
            assert translator({})(warning) != warning, warning
        for remedy in (r for remedies in failure._CORE.values() for r in remedies):
            assert translator({})(remedy.text) != remedy.text, remedy


# ---------------------------------------------------------------- the page

KNOWN = {"ftkit", "Holm", "CSV", "API", "CPU", "GPU", "ID", "UTC", "kB", "MB", "GB", "Python", "report", "html"}
KNOWN |= {"usd_per_1k", "train_usd"}  # keys of --set-price
KNOWN |= {"None"}  # the fake backend's lock holds a Python value


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    browser = chromium.start(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.quit()


def strings_of(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, found in value.items():
            yield from (str(name), *strings_of(found))
    elif isinstance(value, list | tuple):
        for found in value:
            yield from strings_of(found)
    elif isinstance(value, str):
        yield value


def without_sentences(report: Report) -> Report:
    """Return a report made by hand without its English sentences: those of a real one are tested with a run."""
    fields: dict[str, Any] = {"verdict": "", "verdict_detail": "", "warnings": (), "notes": (), "sections": ()}
    return replace(report, title="例", headline=None, **fields)


def words_of_data(report: Report) -> set[str]:
    """Return the Latin words of a report that are names or the user's data."""
    data = [
        [
            (s.name, s.model, s.method, s.run, list(s.metrics), [m.unit for m in s.metrics.values()])
            for s in report.systems
        ],
        [(p.example_id, p.input, p.targets, p.answers) for p in report.pairs],
        [report.distribution.second] if report.distribution else [],
        [(c.name, c.axis, c.run) for c in report.curves],
        [(run.get("name"), run.get("id"), run.get("recipe"), run.get("lock"), run.get("label")) for run in report.runs],
        report.differing.to_dict() if report.differing else (),
        [(s["info"].get("hosted_by"), s["info"].get("shutdown_date")) for s in (x.to_dict() for x in report.systems)],
    ]
    return {word for text in strings_of(data) for word in re.findall(LATIN, text)} - {"loss"}


LATIN = "[A-Za-z][A-Za-z_0-9]+"
VISIBLE = """
const out = [];
document.querySelectorAll("wbr").forEach((e) => e.remove());
document.body.normalize();
for (const part of document.querySelectorAll("details")) part.open = true;
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode;
  if (!node.parentElement.closest("script, style, code, pre, kbd, noscript")) out.push(node.textContent);
}
for (const e of document.querySelectorAll("[aria-label]")) out.push(e.getAttribute("aria-label"));
for (const e of document.querySelectorAll("[title]")) out.push(e.getAttribute("title"));
return out.concat(document.title);
"""


def left_of_english(page: Path, report: Report, driver: Any) -> dict[str, str]:
    """Return the Latin words that a page shows and that are no names, no data and no code, with their sentences."""
    chromium.show(driver, page.as_uri())
    assert driver.execute_script("return document.documentElement.lang") == "ja"
    shown = driver.execute_script(VISIBLE)
    assert any(re.search("[ぁ-ん]", text) for text in shown)
    assert [e for e in driver.get_log("browser") if e["level"] == "SEVERE"] == []
    allowed = KNOWN | words_of_data(report)
    return {w: text for text in shown for w in re.findall(LATIN, text) if w not in allowed}


@pytest.mark.needs("chromium", "chromedriver")
@pytest.mark.parametrize("render", [render_html, render_brief])
@pytest.mark.parametrize("make", [led_report, several_report, priced_report, japanese_report])
def test_no_english_is_left_in_a_japanese_page(
    make: Callable[[], Report], render: Callable[[Report], str], driver: Any, tmp_path: Path
) -> None:
    report = without_sentences(make())
    with speaking("ja"):
        (tmp_path / "report.html").write_text(render(report), "utf-8")
    assert left_of_english(tmp_path / "report.html", report, driver) == {}


@pytest.mark.needs("chromium", "chromedriver")
def test_no_english_is_left_in_the_pages_of_real_runs(
    command: Callable[..., Any], recipe_file: Callable[..., Path], driver: Any, tmp_path: Path
) -> None:
    first, second = recipe_file("a.yaml", name="一番"), recipe_file("b.yaml", name="二番", seed=7)
    done = command("run", first, second, FTKIT_LANG="ja", PYTHONIOENCODING="utf-8")
    assert done.returncode == 0, done.stderr
    assert "ベースモデル: 完了" in done.stderr and "次のコマンド:" in done.stderr and "レポート: " in done.stdout
    pages = sorted((tmp_path / "runs").glob("*/report.html"))
    assert len(pages) == 3
    left = {}
    for page in pages:
        report = Report.from_dict(json.loads(page.with_name("report.json").read_text("utf-8")))
        assert re.search("better|No |scored|difference", report.verdict)
        left |= left_of_english(page, report, driver)
    assert left == {}


def test_markdown_is_japanese_too() -> None:
    with speaking("ja"):
        text = render_markdown(led_report())
    assert "## スコア" in text and "| システム |" in text and "改善" in text and "## Scores" not in text


def test_an_english_report_is_as_it_was() -> None:
    report = led_report()
    assert in_language(report) is report
    text = render_html(report)
    assert '<html lang="en">' in text and "data-texts" not in text and not re.search("スコア|シード", text)


def test_texts_of_the_data_carry_their_own_language() -> None:
    assert in_own_language("今日は") == ' lang="ja"' and in_own_language("안녕") == ' lang="ko"'
    assert in_own_language("東京") == "" and in_own_language("hello") == ""
    with speaking("ja"):
        assert in_own_language("東京") == "" and in_own_language("hello") == ' lang=""'


@pytest.mark.needs("chromium", "chromedriver")
def test_japanese_answers_are_drawn_with_japanese_fonts(driver: Any, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(render_html(japanese_report()), "utf-8")
    chromium.show(driver, (tmp_path / "report.html").as_uri())
    fonts = "return [...document.querySelectorAll('.card .text[lang=ja]')].map((e) => getComputedStyle(e).fontFamily)"
    found = driver.execute_script(fonts)
    assert found and all('"Hiragino Sans"' in f and "IPAGothic" in f and "system-ui" not in f for f in found)


def test_a_marked_text_is_the_text_itself() -> None:
    assert msg("better") == "better"
