"""Reading answers in a real browser: every width and text, the first view, the pair, filters, addresses, keys."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from reading import address, cards, choose, filter_by, filters, gain, overflow, press, run, screenshot, status, text_of
from report_samples import HOSTILE, facts_report, hostile_report, japanese_report, large_report

from ftkit.report.page.render import render_html

ROOT = Path(__file__).parents[2]
AXE = "tests/browser/node_modules/axe-core/axe.min.js"
REPORTS = {"facts": facts_report, "japanese": japanese_report, "hostile": hostile_report}

pytestmark = pytest.mark.needs("chromium", "chromedriver")


# ---------------------------------------------------------------- every width, scheme and kind of text


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_opens_without_errors_requests_or_overflow(
    page: Callable[..., Any], width: int, scheme: str, name: str
) -> None:
    browser = page(REPORTS[name](), width, scheme)
    assert cards(browser) and overflow(browser) <= 0
    assert run(browser, "return performance.getEntriesByType('resource').length") == 0
    assert browser.get_log("browser") == []
    screenshot(browser, f"examples-{name}-{width}-{scheme}")


@pytest.mark.needs(AXE)
@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_axe_finds_no_fault(page: Callable[..., Any], width: int, scheme: str, name: str) -> None:
    browser = page(REPORTS[name](), width, scheme)
    filter_by(browser, "Better")
    run(browser, "document.querySelectorAll('details').forEach((d) => { d.open = true })")
    run(browser, "document.getElementById('keys').showModal()")
    run(browser, (ROOT / AXE).read_text("utf-8"))
    for selector in ("dialog", "document"):
        if selector == "document":
            run(browser, "document.getElementById('keys').close()")
        found = browser.execute_async_script(
            "axe.run(arguments[0] === 'dialog' ? '#keys' : document).then(arguments[1], (e) => arguments[1]({error: String(e)}))",
            selector,
        )
        faults = {v["id"]: [n["html"][:200] for n in v["nodes"]] for v in found["violations"]}
        if name == "hostile":
            faults.pop("landmark-unique", None)  # all its parts have one title
        assert faults == {}


def test_hostile_text_is_shown_and_never_run(page: Callable[..., Any]) -> None:
    browser = page(hostile_report())
    assert run(browser, "return [document.scripts.length, document.images.length]") == [2, 0]
    assert "<img src=x onerror=alert(1)>" in text_of(browser, "#cards .reference")
    assert "␛[31mred ␀ ⟨U+D800⟩ ⟨U+202E⟩gnp.exe" in text_of(browser, "#cards .chosen")
    link = run(browser, "return document.querySelector('#cards h3 a').hash")
    run(browser, "location.hash = arguments[0]", link)
    time.sleep(0.2)
    assert run(browser, "return document.activeElement.className") == "card"
    assert "owned" not in browser.title[:5] and browser.get_log("browser") == []


# ---------------------------------------------------------------- the first view


def test_starts_with_three_best_three_middle_and_three_worst(page: Callable[..., Any]) -> None:
    report = facts_report()
    ranked = [p.example_id for p in sorted(report.pairs, key=lambda p: -gain(p))]
    middle = (len(ranked) - 3) // 2
    browser = page(report)
    assert cards(browser) == [*ranked[:3], *ranked[middle : middle + 3], *ranked[-3:]]
    groups = run(browser, "return [...document.querySelectorAll('.group')].map((g) => g.textContent)")
    assert groups == ["Largest gains", "In the middle", "Smallest gains and losses"]
    assert status(browser) == "40 examples, 9 of them below"
    browser.find_element("id", "whole").click()
    assert cards(browser) == ranked[:20] and not browser.find_element("id", "whole").is_displayed()


def test_few_rows_are_all_shown(page: Callable[..., Any]) -> None:
    report = facts_report()
    browser = page(replace(report, pairs=report.pairs[:9]))
    assert len(cards(browser)) == 9 and status(browser) == "9 examples"
    assert not run(browser, "return document.querySelectorAll('.group').length")


def test_one_system_alone_is_read_by_its_score(page: Callable[..., Any]) -> None:
    report = facts_report()
    pairs = tuple(replace(p, answers={"tuned": p.answers["tuned"]}, delta=None) for p in report.pairs)
    browser = page(replace(report, pairs=pairs, systems=report.systems[-1:], deltas=()))
    by_score = sorted(pairs, key=lambda p: -p.answers["tuned"]["score"])
    assert cards(browser)[:3] == [p.example_id for p in by_score[:3]]
    assert text_of(browser, ".group") == "Highest scores"
    assert run(browser, "return document.querySelectorAll('#a, #b, [data-filters=change]').length") == 0


# ---------------------------------------------------------------- the pair of systems


def test_the_pair_drives_order_difference_and_filters(page: Callable[..., Any]) -> None:
    report = facts_report()
    browser = page(report)
    options = run(browser, "return [...document.getElementById('a').options].map((o) => o.text)")
    assert options == ["baseline", "control", "tuned"]
    for a, b in (("baseline", "tuned"), ("control", "tuned"), ("baseline", "control")):
        choose(browser, "a", str(options.index(a)))
        choose(browser, "b", str(options.index(b)))
        choose(browser, "sort", "delta-down")
        ranked = sorted(report.pairs, key=lambda p: -gain(p, a, b))
        assert cards(browser) == [p.example_id for p in ranked[:20]]
        best = gain(ranked[0], a, b)
        assert text_of(browser, ".card .pill") == f"{'+' if best > 0 else ''}{100 * best:.1f} points".replace("-", "−")
        counts = filters(browser)
        assert counts["Better"] == sum(gain(p, a, b) > 0 for p in report.pairs)
        assert counts["Worse"] == sum(gain(p, a, b) < 0 for p in report.pairs)
        assert counts["Unchanged"] == sum(gain(p, a, b) == 0 for p in report.pairs)
        sides = run(browser, "return [...document.querySelector('.card').querySelectorAll('.answer .label')].map((l) => l.firstChild.textContent)")  # fmt: skip
        assert sides == [a, b]


def test_choosing_one_system_twice_lets_the_two_change_places(page: Callable[..., Any]) -> None:
    browser = page(facts_report())
    choose(browser, "a", "2")
    assert run(browser, "return ['a', 'b'].map((id) => document.getElementById(id).value)") == ["2", "0"]
    filter_by(browser, "Worse")
    assert status(browser) == f"{sum(gain(p) > 0 for p in facts_report().pairs)} of 40 examples"
    browser = page(facts_report(), place="#a=tuned")
    assert run(browser, "return ['a', 'b'].map((id) => document.getElementById(id).value)") == ["0", "2"]


def test_a_metric_of_which_less_is_better(page: Callable[..., Any]) -> None:
    report = facts_report()
    systems = tuple(
        replace(s, metrics={**s.metrics, "overlap1": replace(s.metrics["overlap1"], higher_is_better=False)})
        for s in report.systems
    )
    browser = page(replace(report, systems=systems))
    assert cards(browser)[0] == min(report.pairs, key=gain).example_id
    assert filters(browser)["Better"] == sum(gain(p) < 0 for p in report.pairs)
    assert run(browser, "return document.querySelector('.card .pill').className") == "pill up"


# ---------------------------------------------------------------- filters and what a row says


def test_filters_say_how_many_rows_they_leave(page: Callable[..., Any]) -> None:
    report = facts_report()
    answers = {p.example_id: p.answers["tuned"] for p in report.pairs}
    before = {p.example_id: p.answers["baseline"] for p in report.pairs}

    def wrong(i: str, *names: str) -> bool:
        return any(answers[i]["values"].get(n) == 0 for n in names)

    wanted = {
        "Any metric wrong": [i for i in answers if wrong(i, "who", "when")],
        "overlap1 > 80, yet a metric wrong": [i for i in answers if answers[i]["score"] > 0.8 and wrong(i, "who", "when")],
        "who wrong": [i for i in answers if wrong(i, "who")],
        "when wrong": [i for i in answers if wrong(i, "when")],
        "Right before, wrong now": [
            i for i in answers if any(answers[i]["values"].get(n) == 0 and before[i]["values"].get(n) == 1 for n in ("who", "when"))
        ],
        "Cut at the length limit": [i for i in answers if answers[i].get("finish_reason") == "length"],
        "Empty": [i for i in answers if not answers[i]["text"].strip()],
        "Equal to the input": [p.example_id for p in report.pairs if p.input == answers[p.example_id]["text"]],
    }  # fmt: skip
    browser = page(report)
    shown = filters(browser)
    assert {name: shown[name] for name in wanted} == {name: len(ids) for name, ids in wanted.items()}
    assert min(len(ids) for ids in wanted.values()) >= 1
    for name, ids in wanted.items():
        filter_by(browser, name)
        assert status(browser) == f"{len(ids)} of 40 examples" and set(cards(browser)) <= set(ids)
        filter_by(browser, name)  # pressed again: off
        assert status(browser).startswith("40 examples")
    filter_by(browser, "who wrong")
    filter_by(browser, "Worse")  # both groups together
    both = [p for p in report.pairs if gain(p) < 0 and p.example_id in wanted["who wrong"]]
    assert status(browser) == f"{len(both)} of 40 examples"


def test_a_row_says_every_metric_the_reason_and_what_was_read(page: Callable[..., Any]) -> None:
    browser = page(facts_report(), place="#example=row-3")
    chosen = run(browser, "return document.activeElement.querySelector('.chosen').innerText")
    for words in ("tuned", "✗ who", "✓ when", "overlap2", "words", "read as: 4 pm", "not found: who"):
        assert words in chosen, words
    assert "same_everywhere" not in chosen, "a metric in which no two answers ever differ says nothing"
    run(browser, "document.activeElement.querySelector('.rest summary').click()")
    time.sleep(0.2)
    assert "control" in run(browser, "return document.querySelector('.card .rest[open]').innerText")


def test_search_finds_reasons_and_extracted_answers(page: Callable[..., Any]) -> None:
    browser = page(facts_report())
    choose(browser, "search", "NOT FOUND: WHO")
    found = sum(any("not found: who" in a.get("reason", "") for a in p.answers.values()) for p in facts_report().pairs)
    assert 0 < found < 40 and status(browser) == f"{found} of 40 examples"


# ---------------------------------------------------------------- addresses and keys


def test_an_address_leads_to_one_example_from_anywhere(page: Callable[..., Any]) -> None:
    report = facts_report()
    ranked = [p.example_id for p in sorted(report.pairs, key=lambda p: -gain(p))]
    browser = page(report, place=f"#example={ranked[17]}")
    for wanted in (ranked[17], ranked[33], ranked[0]):
        run(browser, "location.hash = '#example=' + arguments[0]", quote(wanted, safe=""))
        time.sleep(0.2)
        seen = run(browser, """const card = document.activeElement, box = card.getBoundingClientRect();
          const nav = document.querySelector('nav').getBoundingClientRect();
          return [card.querySelector('h3').textContent, box.top >= nav.bottom - 1 && box.top < innerHeight]""")  # fmt: skip
        assert seen == [wanted, True]
    run(browser, "location.hash = '#scores'")  # a part of the page is no state of the examples
    time.sleep(0.2)
    assert ranked[0] in cards(browser)


@pytest.mark.parametrize("name", ["a b&c=d", "50%", "日本/行?1#2", "+1", "100%25"])
def test_any_id_has_an_address(page: Callable[..., Any], name: str) -> None:
    report = facts_report()
    pairs = (*report.pairs[:20], replace(report.pairs[20], example_id=name), *report.pairs[21:])
    browser = page(replace(report, pairs=pairs), place=f"#example={quote(name, safe='')}")
    assert run(browser, "return document.activeElement.querySelector('h3').textContent") == name
    link = run(browser, "return document.activeElement.querySelector('h3 a').hash")
    browser = page(replace(report, pairs=pairs), place=link)
    assert run(browser, "return document.activeElement.querySelector('h3').textContent") == name


def test_an_unknown_example_is_said_so(page: Callable[..., Any]) -> None:
    browser = page(facts_report(), place="#example=gone&sort=nonsense&a=nobody&page=-5")
    assert status(browser).startswith("No example has the id gone. 40 examples") and browser.get_log("browser") == []


def test_the_address_holds_the_whole_state(page: Callable[..., Any]) -> None:
    report = facts_report()
    browser = page(report)
    choose(browser, "a", "1")
    choose(browser, "sort", "score-up")
    choose(browser, "mark", "other")
    choose(browser, "search", "pm é")
    choose(browser, "search", "pm")
    filter_by(browser, "who wrong")
    filter_by(browser, "Better")
    state, seen = address(browser), (cards(browser), status(browser))
    assert seen[0] and "of 40" in seen[1]
    browser = page(report, place=state)
    assert (cards(browser), status(browser)) == seen
    values = run(browser, "return ['a', 'sort', 'mark', 'search'].map((id) => document.getElementById(id).value)")
    assert values == ["1", "score-up", "other", "pm"]
    pressed = run(browser, "return [...document.querySelectorAll('[aria-pressed=true]')].map((b) => b.dataset.value)")
    assert pressed == ["better", "wrong-who"]


def test_pages_are_in_the_address(page: Callable[..., Any]) -> None:
    browser = page(facts_report(), place="#sort=order")
    browser.find_element("id", "next").click()
    assert cards(browser)[0] == "row-20" and address(browser) == "#sort=order&page=2"
    browser = page(facts_report(), place="#sort=order&page=2")
    assert cards(browser)[0] == "row-20"


def test_keys_move_search_and_explain(page: Callable[..., Any]) -> None:
    browser = page(facts_report(), place="#sort=order")
    here = "return (document.activeElement.querySelector('h3') || {}).textContent"
    run(browser, "document.body.focus()")
    press(browser, "jj")
    assert run(browser, here) == "row-1" and "example=row-1" in address(browser)
    press(browser, "k")
    assert run(browser, here) == "row-0"
    press(browser, "j" * 20)
    assert run(browser, here) == "row-20", "over the end of a page"
    press(browser, "k")
    assert run(browser, here) == "row-19"
    press(browser, "/")
    assert run(browser, "return document.activeElement.id") == "search"
    press(browser, "j?k")
    assert run(browser, "return document.getElementById('search').value") == "j?k", "in a field, keys are letters"
    choose(browser, "search", "")
    run(browser, "document.activeElement.blur()")
    press(browser, "i")
    assert run(browser, "return document.querySelectorAll('.input[open]').length") == 20
    press(browser, "?")
    assert run(browser, "return document.getElementById('keys').open")
    browser.find_element("id", "keys-on").click()
    browser.find_element("id", "keys-close").click()
    press(browser, "j")
    assert run(browser, "return document.activeElement.className") != "card", "the keys can be turned off"


# ---------------------------------------------------------------- many rows


def test_ten_thousand_rows_are_filtered_searched_and_linked(page: Callable[..., Any]) -> None:
    """How fast this is, `benchmarks/report_scale.py` measures: here nothing rests on a clock."""
    report = large_report(10_000)
    browser = page(report, place="#example=row-7777")
    assert run(browser, "return document.activeElement.querySelector('h3').textContent") == "row-7777"
    assert run(browser, "return document.querySelectorAll('*').length") < 3000
    worse = sum(gain(p, "baseline", "large rank") < 0 for p in report.pairs)
    choose(browser, "b", "3")
    filter_by(browser, "Worse")
    assert status(browser) == f"{worse:,} of 10,000 examples"
    found = sum("row-77" in p.example_id and gain(p, "baseline", "large rank") < 0 for p in report.pairs)
    choose(browser, "search", "ROW-77")
    assert status(browser) == f"{found:,} of 10,000 examples" and overflow(browser) <= 0


def test_the_islands_numbers_are_those_of_the_report() -> None:
    html = render_html(facts_report())
    island = json.loads(html.split('id="data">')[1].split("</script>")[0])
    names = [m["name"] for m in island["metrics"]]
    assert names == ["overlap1", "who", "when", "overlap2", "words"]
    for pair, row in zip(facts_report().pairs, island["rows"], strict=True):
        for name, answer in zip(island["systems"], row["answers"], strict=True):
            values = {k: v for k, v in zip(names, answer["values"], strict=True) if v is not None}
            known = {k: v for k, v in pair.answers[name]["values"].items() if k in names}
            assert values == pytest.approx(known, rel=1e-5)
    assert list(itertools.islice(island["pair"], 2)) == [0, 2] and HOSTILE not in html
