"""Parts of the report's page in a real browser: differences, copies, files, slices, the list of sections, print."""

from __future__ import annotations

import base64
import csv
import io
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reading import cards, choose, filter_by, gain, run
from report_samples import facts_report, japanese_report

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.needs("chromium", "chromedriver")


# ---------------------------------------------------------------- differences


def differ(page: Any, before: str, after: str) -> list[list[str]] | None:
    """Return what the page's own code says of two texts."""
    source = (ROOT / "ftkit/report/page/templates/diff.js").read_text("utf-8")
    found = run(page, source + "\nreturn piecesOf(arguments[0], arguments[1]);", before, after)
    return None if found is None else [list(piece) for piece in found]


def side(pieces: Sequence[Sequence[str]], kind: str) -> str:
    return "".join(text for k, text in pieces if k in ("same", kind))


@pytest.mark.parametrize(
    ("before", "after", "pieces"),
    [
        ("A b c.", "A b c.", [["same", "A b c."]]),
        ("in York at 2:15 pm.", "in York at 1:15 pm.", [["same", "in York at "], ["missing", "2:15 "], ["added", "1:15 "], ["same", "pm."]]),
        ("a long coat", "a coat", [["same", "a "], ["missing", "long "], ["same", "coat"]]),
        ("please don't go", "please don’t go", [["same", "please "], ["missing", "don't "], ["added", "don’t "], ["same", "go"]]),
        ("土曜日に映画館へ行く。", "日曜日に映画館へ行く。", [["missing", "土"], ["added", "日"], ["same", "曜日に映画館へ行く。"]]),
        ("明天去北京开会", "明天去上海开会", [["same", "明天去"], ["missing", "北京"], ["added", "上海"], ["same", "开会"]]),
        ("パーティーに行く", "ハーティーに行く", [["missing", "パ"], ["added", "ハ"], ["same", "ーティーに行く"]]),
        ("cafe\u0301 ouvert", "caf\u00e9 ouvert", [["same", "caf\u00e9 ouvert"]]),
        ("go 👩‍💻 now", "go 👩‍🎓 now", [["same", "go "], ["missing", "👩‍💻 "], ["added", "👩‍🎓 "], ["same", "now"]]),
        ("completely different words here", "nothing is shared", None),
        ("something", "", None),
    ],
)  # fmt: skip
def test_differences_are_by_word_and_by_character_where_a_script_has_no_spaces(
    driver: Any, before: str, after: str, pieces: list[list[str]] | None
) -> None:
    assert differ(driver, before, after) == pieces


def test_a_difference_loses_no_text_and_is_as_small_as_can_be(driver: Any) -> None:
    rng = random.Random(3)
    source = (ROOT / "ftkit/report/page/templates/diff.js").read_text("utf-8")
    cases = [["".join(rng.choices("ab c東", k=rng.randint(1, 30))) for _ in range(2)] for _ in range(150)]
    script = """
      const lists = arguments[0].map(([a, b]) => [[...a], [...b]]);
      return lists.map(([a, b], i) => [commonRuns(a, b), piecesOf(...arguments[0][i])]);"""
    for (a, b), (runs, pieces) in zip(cases, run(driver, source + script, cases), strict=True):
        assert sum(length for *_, length in runs) == longest_common(a, b)
        assert all(a[x : x + n] == b[y : y + n] for x, y, n in runs)
        if pieces:
            assert side(pieces, "added") == b
            assert side(pieces, "missing").split() == a.split() or "".join(side(pieces, "missing").split()) == "".join(a.split())  # fmt: skip


def longest_common(a: str, b: str) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        last = row
        row = [0]
        for j, y in enumerate(b):
            row.append(last[j] + 1 if x == y else max(row[j], last[j + 1]))
    return row[-1]


def test_long_unlike_texts_are_compared_in_bounded_time(driver: Any) -> None:
    rng = random.Random(5)
    source = (ROOT / "ftkit/report/page/templates/diff.js").read_text("utf-8")
    for alphabet in ("東京都大阪府名古屋市", ["alpha ", "beta ", "gamma ", "delta "]):
        a, b = ("".join(rng.choices(alphabet, k=20_000)) for _ in range(2))
        script = "const t = performance.now(); piecesOf(arguments[0], arguments[1]); return performance.now() - t"
        assert run(driver, source + script, a, b) < 2_000
        pieces = run(driver, source + "return piecesOf(arguments[0], arguments[0] + arguments[1].slice(0, 50))", a, b)
        assert side(pieces, "added") == a + b[:50]


def test_marks_are_underlined_and_struck_out_never_colour_alone(page: Callable[..., Any]) -> None:
    browser = page(japanese_report(), place="#example=ja-2")
    found = run(browser, """
      const card = document.activeElement, style = (tag) => {
        const element = card.querySelector('.chosen ' + tag);
        return [element.textContent, getComputedStyle(element).textDecorationLine];
      };
      return [style('ins'), style('del')];""")  # fmt: skip
    assert found == [["日", "underline"], ["土", "line-through"]]
    choose(browser, "mark", "off")
    assert run(browser, "return document.querySelectorAll('#cards ins, #cards del').length") == 0


def test_the_nearest_of_several_references_is_compared(page: Callable[..., Any]) -> None:
    report = facts_report()
    marks = "return [...document.querySelectorAll('.chosen del, .chosen ins')].map((e) => e.textContent)"
    far, near = "Nobody knows anything about it at all", "Anna meets Ben at noon today"
    answers = {
        "baseline": {"text": "Anna sees Tom at noon today", "score": 0.5, "error": None},
        "tuned": {"text": "Anna meets Tom at noon today", "score": 0.9, "error": None},
    }
    browser = page(replace(report, pairs=(replace(report.pairs[0], targets=(far, near), answers=answers),)))
    assert run(browser, marks) == ["Ben", "Tom"]
    choose(browser, "mark", "other")
    assert run(browser, marks) == ["sees", "meets"]


# ---------------------------------------------------------------- copies and files


def test_commands_recipes_and_tables_are_copied(page: Callable[..., Any]) -> None:
    failed = "this run failed in train: out of memory; resume with: ftkit run --resume runs/run-a"
    report = facts_report()
    browser = page(replace(report, warnings=(failed,)))
    origin = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    browser.execute_cdp_cmd("Browser.grantPermissions", origin)

    def copied(selector: str) -> str:
        run(browser, "document.querySelectorAll('details').forEach((d) => { d.open = true })")
        run(browser, "document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", selector)
        browser.find_element("css selector", selector).click()
        time.sleep(0.2)
        script = "navigator.clipboard.readText().then(arguments[0], (error) => arguments[0](String(error)))"
        return str(browser.execute_async_script(script))

    assert copied("code.command + .copy") == "ftkit run --resume runs/run-a"
    assert copied(".run details .copy") == "name: tiny-qlora\nseed: 42\n"
    table = copied(".copy:has(+ .scroll[aria-label^='Scores of each system'])").split("\n")
    assert table[0].split("\t")[0] == "System" and table[1].split("\t")[0].startswith("baseline")
    assert len({line.count("\t") for line in table}) == 1
    assert run(browser, "return document.querySelector('code.command + .copy').textContent") in ("Copy", "Copied")


def read_csv(page: Any, folder: Path) -> list[list[str]]:
    page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    page.find_element("id", "csv").click()
    path = folder / "examples.csv"
    for _ in range(100):
        if path.exists() and path.stat().st_size:
            break
        time.sleep(0.05)
    text = path.read_bytes().decode("utf-8")
    assert text.startswith("\ufeff") and text.endswith("\r\n")
    return list(csv.reader(io.StringIO(text[1:], newline=""), strict=True))


def test_rows_are_downloaded_as_csv(page: Callable[..., Any], tmp_path: Path) -> None:
    report = facts_report()
    browser = page(report)
    filter_by(browser, "who wrong")
    header, *lines = read_csv(browser, tmp_path)
    wanted = [p for p in report.pairs if p.answers["tuned"]["values"].get("who") == 0]
    assert len(lines) == len(wanted) and {len(line) for line in lines} == {len(header)}
    by_id = {line[0]: dict(zip(header, line, strict=True)) for line in lines}
    for pair in wanted:
        line, tuned = by_id[pair.example_id], pair.answers["tuned"]
        assert (line["input"], line["reference"], line["tuned"]) == (pair.input, pair.targets[0], tuned["text"])
        assert float(line["tuned: overlap1"]) == tuned["score"] and line["tuned: who"] == "0"
        assert line["tuned: reason"] == tuned.get("reason", "") and line["tuned: read as"] == tuned.get("answer", "")
        assert float(line["baseline → tuned: overlap1"]) == pytest.approx(gain(pair))


def test_a_spreadsheet_computes_nothing_of_the_file(page: Callable[..., Any], tmp_path: Path) -> None:
    formulas = ["=1+1", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\n=1", " =1", "＝1+1", '"=1+1', "'=1"]
    numbers = ["-5", "+3.5", "1e9", "-0.25"]
    plain = ['says "yes", then', "two\nlines, one; cell", "−5", "a=b", "日本語"]
    report = facts_report()
    texts = [*formulas, *numbers, *plain]
    pairs = tuple(
        replace(report.pairs[i], example_id=f"id-{i}", targets=(text,), answers={**report.pairs[i].answers, "tuned": {"text": text, "score": 0.5, "error": None}})
        for i, text in enumerate(texts)
    )  # fmt: skip
    browser = page(replace(report, pairs=pairs), place="#sort=order")
    header, *lines = read_csv(browser, tmp_path)
    read = [(line[header.index("reference")], line[header.index("tuned")]) for line in lines]
    assert read == [*((f"'{t}", f"'{t}") for t in formulas), *((t, t) for t in [*numbers, *plain])]


# ---------------------------------------------------------------- slices, the list of sections, print, no script


def test_slices_are_tables_with_small_groups_marked(page: Callable[..., Any]) -> None:
    browser = page(facts_report())
    text = run(browser, "return document.getElementById('groups').parentElement.innerText")
    assert "Input length, characters" in text and "travel" in text and "40.0" in text and "30.0 to 50.0" in text
    assert "Without groups: key (hardly two rows share a value)." in text
    marked = run(browser, "return [...document.querySelectorAll('.few')].map((f) => f.closest('tr').querySelector('th').textContent)")  # fmt: skip
    assert marked == ["食べ物"]


def test_the_list_of_sections_stays_in_sight_and_says_where_one_is(page: Callable[..., Any]) -> None:
    for width in (1440, 390):
        browser = page(facts_report(), width)
        run(browser, "document.querySelector('nav a[href=\"#examples\"]').click()")
        time.sleep(0.4)
        seen = run(browser, """const nav = document.querySelector('nav'), box = nav.getBoundingClientRect();
          const heading = document.getElementById('examples').getBoundingClientRect();
          const current = nav.querySelector('[aria-current]'), at = current.getBoundingClientRect();
          return [box.top, heading.top >= box.bottom, current.textContent, at.left >= 0 && at.right <= innerWidth]""")  # fmt: skip
        assert seen == [0, True, "Examples", True]


def test_print_has_ten_examples_in_light_colours_with_their_inputs(page: Callable[..., Any]) -> None:
    browser = page(facts_report(), 1024, "light")
    for place in ("", "#sort=order"):
        run(browser, "location.hash = arguments[0]", place or "#examples")
        time.sleep(0.2)
        run(browser, "dispatchEvent(new Event('beforeprint'))")
        assert (
            len(cards(browser)) == 10 and run(browser, "return document.querySelectorAll('.input[open]').length") == 10
        )
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        hidden = "return ['#controls', '#tools', '#pager', '.copy', 'nav'].map((s) => document.querySelector(s).offsetParent)"
        assert run(browser, hidden) == [None] * 5
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        run(browser, "dispatchEvent(new Event('afterprint'))")
    assert len(cards(browser)) == 20
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") < 30


def test_without_script_ten_examples_can_be_read(page: Callable[..., Any]) -> None:
    browser = page(facts_report())
    ranked = [p.example_id for p in sorted(facts_report().pairs, key=lambda p: -gain(p))]
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.refresh()
        shown = [h.text for h in browser.find_elements("css selector", "noscript h3")]
        assert shown == [*ranked[:3], *ranked[18:22], *ranked[-3:]]
        assert browser.find_element("id", "groups").is_displayed() and not browser.find_element("id", "controls").is_displayed()  # fmt: skip
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
