"""The report in a real browser: nothing fetched, nothing executed, quick, wide and narrow, light and dark."""

from __future__ import annotations

import base64
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from report_samples import (
    hostile_report,
    large_report,
    led_report,
    metric,
    priced_report,
    sample_report,
    several_report,
    system,
)

from ftkit.records import Delta, Report
from ftkit.report.page.render import render_brief, render_html

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "browser"))
import chromium  # noqa: E402

pytestmark = pytest.mark.needs("chromium", "chromedriver")

AXE = "tests/browser/node_modules/axe-core/axe.min.js"
SHOTS = ROOT / "test-output"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    browser = chromium.start(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.quit()


@pytest.fixture
def page(driver: Any, tmp_path: Path) -> Callable[..., Any]:
    """Open a report from disk at a width, in a colour scheme."""

    def open_page(report: Report, width: int = 1280, scheme: str = "light") -> Any:
        path = tmp_path / "report.html"
        path.write_text(render_html(report), "utf-8")
        chromium.show(driver, path.as_uri(), width, scheme)
        return driver

    return open_page


def cards(page: Any) -> list[str]:
    script = "return [...document.querySelectorAll('#cards h3')].map((h) => h.textContent)"
    return list(page.execute_script(script))


def choose(page: Any, control: str, value: str) -> None:
    """Set a control as a person would."""
    script = """
      const [id, value] = arguments, control = document.getElementById(id);
      control.value = value;
      control.dispatchEvent(new Event('input', {bubbles: true}));"""
    page.execute_script(script, control, value)


def press_filter(page: Any, value: str) -> None:
    page.execute_script("document.querySelector(`.filter[data-value='${arguments[0]}']`).click()", value)


def status(page: Any) -> str:
    return str(page.execute_script("return document.getElementById('count').textContent"))


def overflow(page: Any) -> int:
    return int(page.execute_script("return document.documentElement.scrollWidth - innerWidth"))


def screenshot(page: Any, name: str, width: int) -> None:
    SHOTS.mkdir(exist_ok=True)
    chromium.resize(page, width, min(page.execute_script("return document.documentElement.scrollHeight"), 6000))
    page.save_screenshot(str(SHOTS / f"{name}.png"))


def requests(page: Any) -> list[str]:
    """Addresses the page asked for, beyond its own file and data: addresses."""
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert urls.count(page.current_url) == 1, "the log of requests is kept"
    return [url for url in urls if url != page.current_url and not url.startswith("data:")]


REPORTS = {"report": led_report, "report-priced": priced_report, "report-several": several_report}
WIDTHS = [1440, 1024, 390]


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_opens_from_disk_without_errors_or_requests(
    page: Callable[..., Any], width: int, scheme: str, name: str
) -> None:
    browser = page(REPORTS[name](), width, scheme)
    assert len(cards(browser)) == 9
    assert overflow(browser) <= 0
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert requests(browser) == []
    assert browser.get_log("browser") == []
    screenshot(browser, f"{name}-{width}-{scheme}", width)


def test_sorts_searches_filters_and_turns_pages(page: Callable[..., Any]) -> None:
    report = sample_report()
    browser = page(report)
    by_delta = sorted(report.pairs, key=lambda p: p.delta or 0)
    assert cards(browser)[0] == by_delta[-1].example_id
    choose(browser, "sort", "delta-up")
    assert cards(browser)[0] == by_delta[0].example_id
    choose(browser, "sort", "id")
    assert cards(browser)[:2] == ["test-000", "test-001"]
    browser.find_element("id", "next").click()
    assert cards(browser)[0] == "test-020"

    choose(browser, "search", "TIMED OUT")
    assert cards(browser) == ["test-003"]
    assert status(browser) == "1 of 60 examples"
    choose(browser, "search", "nothing says this")
    assert cards(browser) == [] and status(browser) == "0 of 60 examples"
    choose(browser, "search", "")

    press_filter(browser, "worse")
    assert status(browser) == f"{sum((p.delta or 0) < 0 for p in report.pairs)} of 60 examples"
    press_filter(browser, "worse")
    press_filter(browser, "failed")
    assert cards(browser) == ["test-003"]


@pytest.mark.parametrize(("scheme", "other"), [("light", "dark"), ("dark", "light")])
def test_switches_theme(page: Callable[..., Any], scheme: str, other: str) -> None:
    browser = page(sample_report(), scheme=scheme)
    colour = "return getComputedStyle(document.body).backgroundColor"
    before = browser.execute_script(colour)
    button = browser.find_element("id", "theme")
    assert button.text == f"{other.capitalize()} theme"
    button.click()
    assert browser.execute_script("return document.documentElement.dataset.theme") == other
    assert browser.execute_script(colour) != before
    assert button.text == f"{scheme.capitalize()} theme"


def names_of_columns(page: Any) -> list[str]:
    script = "return [...document.querySelectorAll('.differing thead th')].slice(1).map((h) => h.textContent)"
    return list(page.execute_script(script))


def test_a_rows_name_sorts_the_columns_of_what_differs(page: Callable[..., Any]) -> None:
    browser = page(several_report(), 1440)
    assert names_of_columns(browser) == ["lr=0.004 r=8", "lr=0.0004 r=16", "lr=0.01 r=8"]
    buttons = {b.text.strip(): b for b in browser.find_elements("css selector", ".differing .sort")}
    assert list(buttons)[:3] == ["backend.learning_rate", "backend.lora_r", "overlap1"]
    buttons["backend.learning_rate"].click()
    assert names_of_columns(browser) == ["lr=0.01 r=8", "lr=0.004 r=8", "lr=0.0004 r=16"]
    buttons["backend.learning_rate"].send_keys("\ue007")  # Enter
    assert names_of_columns(browser) == ["lr=0.0004 r=16", "lr=0.004 r=8", "lr=0.01 r=8"]
    best = "return document.querySelector('.differing .score strong').closest('td').cellIndex"
    assert browser.execute_script(best) == 2  # the star stays with its system


def test_a_bar_leads_to_its_example(page: Callable[..., Any]) -> None:
    browser = page(led_report(), 1440)
    bars = browser.execute_script(
        "return [...document.querySelectorAll('.gains a')].map((a) => a.getAttribute('href'))"
    )
    best = max(led_report().pairs, key=lambda p: p.delta or -1)
    assert len(bars) == 59 and bars[0] == f"#example={best.example_id}"
    browser.execute_script(
        "document.querySelector('.gains a rect').dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    assert browser.execute_script("return location.hash") == f"#example={best.example_id}"


def test_narrow_intervals_stand_out_of_their_dots(page: Callable[..., Any]) -> None:
    """An interval of 0.2 points on an axis of 100 is hidden by its dot; its ends are taller than the dot."""
    narrow = {"overlap1": metric("overlap1", 0.9, low=0.899, high=0.901)}
    systems = (system("baseline", "baseline", 0.1), system("tuned", "tuned", 0.9, metrics=narrow))
    browser = page(sample_report(systems=systems), 1440)
    heights = browser.execute_script("""
        const row = [...document.querySelectorAll('.forest .row')].find((r) => r.textContent.includes('tuned'));
        return [...row.querySelectorAll('.dot, .cap')].map((e) => e.getBoundingClientRect().height);""")
    assert len(heights) == 3 and min(heights[:2]) > 1.5 * heights[2]


def print_pages(browser: Any) -> list[str]:
    """Print the page as a PDF; return the text of each of its pages."""
    done = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    pdf = base64.b64decode(done["data"])
    return re.findall(r"/Type\s*/Page[^s]", pdf.decode("latin-1"))


@pytest.mark.parametrize("name", REPORTS)
def test_paper_is_light_and_open_and_has_ten_examples(page: Callable[..., Any], name: str) -> None:
    browser = page(REPORTS[name](), 794, "dark")
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    try:
        assert browser.execute_script("return getComputedStyle(document.body).color") == "rgb(27, 26, 24)"
        assert browser.execute_script("return document.querySelectorAll('details:not([open])').length") == 0
        shown = "return [...document.querySelectorAll('#cards > *')].filter((c) => c.offsetParent).length"
        assert browser.execute_script(shown) == 10
        clipped = browser.execute_script("""
            return [...document.querySelectorAll('main *')].filter((e) => {
              const style = getComputedStyle(e);
              return e.clientWidth && !e.classList.contains('hidden') && /auto|scroll|hidden/.test(style.overflowX + style.overflowY)
                && (e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1);
            }).map((e) => e.outerHTML.slice(0, 80));""")
        assert clipped == [] and overflow(browser) <= 0
        browser.execute_script("dispatchEvent(new Event('afterprint'))")
        screenshot(browser, f"{name}-print", 794)
        assert len(print_pages(browser)) < 20
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.mark.parametrize("name", [*REPORTS, "report-hostile"])
def test_the_brief_is_one_page_with_nothing_cut(driver: Any, tmp_path: Path, name: str) -> None:
    report = {**REPORTS, "report-hostile": hostile_report}[name]()
    path = tmp_path / "brief.html"
    path.write_text(render_brief(report), "utf-8")
    chromium.show(driver, path.as_uri(), 1440, "dark")
    assert len(print_pages(driver)) == 1
    cut = "const m = document.querySelector('.brief main'); return m.scrollHeight - m.clientHeight"
    assert name == "report-hostile" or driver.execute_script(cut) <= 1
    assert driver.execute_script("return document.scripts.length") == 0 and driver.get_log("browser") == []
    screenshot(driver, f"{name}-brief", 1440)


@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_text_is_shown_and_never_run(page: Callable[..., Any], width: int) -> None:
    browser = page(hostile_report(), width)
    assert browser.title.startswith("</script><script>")
    assert browser.execute_script("return document.scripts.length") == 2
    assert browser.execute_script("return document.images.length") == 0
    shown = browser.execute_script("return document.getElementById('cards').textContent")
    assert "<img src=x onerror=alert(1)>" in shown and "␛[31mred ␀ ⟨U+D800⟩ ⟨U+202E⟩gnp.exe" in shown
    assert overflow(browser) <= 0
    assert browser.get_log("browser") == []
    screenshot(browser, f"report-hostile-{width}", width)


def test_a_long_text_opens_on_demand(page: Callable[..., Any]) -> None:
    pairs = sample_report().pairs
    long = type(pairs[0])("long", "x" * 10_000_000, ("y",), pairs[0].answers, delta=2.0)
    browser = page(sample_report(pairs=(long, *pairs)), 390)
    choose(browser, "search", "long")
    assert cards(browser) == ["long"]
    browser.find_element("css selector", "#cards .input summary").click()
    time.sleep(0.2)
    length = "return document.querySelector('#cards .input .text').textContent.length"
    assert browser.execute_script(length) < 1000
    browser.execute_script("document.querySelector('#cards .input .more').click()")
    assert 20_000 < browser.execute_script(length) < 20_100
    assert overflow(browser) <= 0


def test_without_script_the_result_is_there(page: Callable[..., Any]) -> None:
    browser = page(sample_report())
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.refresh()
        text = browser.find_element("tag name", "body").text
        assert "Fine-tuning made the summaries clearly better" in text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_ten_thousand_examples_of_four_systems_are_searched_and_turned(page: Callable[..., Any]) -> None:
    """What is typed finds every row that has it, and the page never holds more than one page of cards.

    How fast this is, `benchmarks/report_scale.py` measures: here nothing rests on a clock.
    """
    report = large_report(10_000)
    browser = page(report)

    def elements() -> int:
        return int(browser.execute_script("return document.querySelectorAll('*').length"))

    def rows_with(words: str) -> int:
        return sum(
            words in "\n".join([p.example_id, p.input, *p.targets, *(a["text"] for a in p.answers.values())])
            for p in report.pairs
        )

    assert status(browser) == "10,000 examples, 9 of them below" and elements() < 3000
    search = browser.find_element("id", "search")
    for words in ("cinema Friday", "row-77", "row-777"):
        search.clear()
        search.send_keys(words.upper())
        assert status(browser) == f"{rows_with(words):,} of 10,000 examples"
        assert len(cards(browser)) == min(20, rows_with(words)) and elements() < 3000
    choose(browser, "search", "")
    choose(browser, "b", "3")
    choose(browser, "sort", "delta-up")
    worst = sorted(report.pairs, key=lambda p: p.delta or 0)
    assert cards(browser) == [p.example_id for p in worst[:20]]
    for _ in range(3):
        browser.find_element("id", "next").click()
    assert cards(browser) == [p.example_id for p in worst[60:80]] and elements() < 3000
    browser.execute_script("scrollTo(0, document.documentElement.scrollHeight)")
    assert browser.execute_script("return scrollY") > 1000
    assert overflow(browser) <= 0
    screenshot(browser, "report-large-1280", 1280)


def test_an_unfinished_run_says_what_is_missing(page: Callable[..., Any]) -> None:
    full = sample_report()
    stages = [{"name": "train", "status": "failed", "error": "out of memory"}]
    browser = page(
        sample_report(
            verdict="",
            systems=full.systems[:1],
            deltas=(),
            pairs=(),
            curves=(),
            runs=({"id": "run-a", "status": "failed", "stages": stages},),
            warnings=("this run failed in train: out of memory; resume with: ftkit run --resume runs/run-a",),
        ),
        390,
    )
    text = browser.find_element("tag name", "main").text
    assert "this run failed in train: out of memory; resume with: ftkit run --resume runs/run-a" in text
    assert browser.get_log("browser") == []
    screenshot(browser, "report-unfinished-390", 390)


def test_names_are_not_broken_inside_a_word(page: Callable[..., Any]) -> None:
    names = ("rougeLsum", "generated_words", "all_slots")
    browser = page(
        sample_report(
            systems=tuple(
                system(name, role, 0.2, metrics={n: metric(n, 0.2) for n in names})
                for name, role in (("baseline", "baseline"), ("control-majority_class", "control"))
            ),
            primary=names[0],
            deltas=tuple(Delta("baseline", "control-majority_class", n, 0.1, 0.0, 0.2, 0.03, 60) for n in names),
        ),
        390,
    )
    broken = browser.execute_script("""
        const broken = [];
        for (const cell of document.querySelectorAll("th, .pair, .forest .name, dt")) {
          for (const part of cell.childNodes) {
            const range = document.createRange();
            range.selectNodeContents(part);
            if (part.nodeType === 3 && !/[ ]/.test(part.data.trim()) && range.getClientRects().length > 1) {
              broken.push(part.data);
            }
          }
        }
        return broken;""")
    assert broken == [] and overflow(browser) <= 0
    screenshot(browser, "report-names-390", 390)


@pytest.mark.needs(AXE)
@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_no_serious_fault(page: Callable[..., Any], width: int, scheme: str, name: str) -> None:
    browser = page(REPORTS[name](), width, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    browser.execute_script((ROOT / AXE).read_text("utf-8"))
    result = browser.execute_async_script(
        "axe.run().then(arguments[0], (error) => arguments[0]({error: String(error)}))"
    )
    faults = {
        v["id"]: [node["html"][:200] for node in v["nodes"]]
        for v in result["violations"]
        if v["impact"] in ("serious", "critical")
    }
    assert faults == {}
