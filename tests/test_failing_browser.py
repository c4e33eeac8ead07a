"""The page of a run at work, and of runs that ended early, in a real browser: it refreshes itself, and it stops."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))
import chromium  # noqa: E402

pytestmark = pytest.mark.needs("chromium", "chromedriver")

AXE = "tests/browser/node_modules/axe-core/axe.min.js"
SHOTS = ROOT / "test-output"
HOSTILE = "<img src=x onerror=alert(1)> </script><b>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    found = chromium.start(tmp_path_factory.mktemp("chromium"))
    yield found
    found.quit()


def text(browser: Any, selector: str) -> str:
    script = "const e = document.querySelector(arguments[0]); return e ? e.innerText : ''"
    return " ".join(str(browser.execute_script(script, selector)).split())


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing happened within {seconds} s"
        time.sleep(0.1)


def only(folder: Path) -> Path:
    (run,) = (p.parent for p in folder.glob("*/run.json"))
    return run


def at_work(command: Callable[..., Any], recipe: Path, folder: Path) -> tuple[subprocess.Popen[str], Path]:
    """Start a run, and wait until it trains and its page says so."""
    process = command("run", recipe, wait=False, FAKES="slow=0.1")
    until(lambda: process.poll() is not None or list(folder.glob("runs/*/train/log.jsonl")))
    assert process.poll() is None, process.communicate()
    run = only(folder / "runs")
    until(lambda: "Training: step" in (run / "report.html").read_text())
    return process, run


def screenshot(browser: Any, name: str, width: int) -> None:
    SHOTS.mkdir(exist_ok=True)
    chromium.resize(browser, width, min(browser.execute_script("return document.documentElement.scrollHeight"), 6000))
    browser.save_screenshot(str(SHOTS / f"{name}.png"))


def serious_faults(browser: Any) -> dict[str, list[str]]:
    browser.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    browser.execute_script((ROOT / AXE).read_text("utf-8"))
    found = browser.execute_async_script(
        "axe.run().then(arguments[0], (error) => arguments[0]({error: String(error)}))"
    )
    return {
        v["id"]: [node["html"][:200] for node in v["nodes"]]
        for v in found["violations"]
        if v["impact"] in ("serious", "critical")
    }


def looked_at(browser: Any, page: Path, name: str) -> None:
    """Look at a page wide and narrow, light and dark: no fault, no request, nothing beside the window."""
    for scheme in ("light", "dark"):
        for width in (1280, 390):
            chromium.show(browser, page.as_uri(), width, scheme)
            assert browser.execute_script("return document.documentElement.scrollWidth - innerWidth") <= 0, (
                name,
                width,
            )
            assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
            assert browser.get_log("browser") == []
            screenshot(browser, f"{name}-{width}-{scheme}", width)
            assert serious_faults(browser) == {}


# ---------------------------------------------------------------- at work


def test_it_refreshes_itself_until_the_report_is_there(
    browser: Any, command: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    process, run = at_work(command, recipe_file(backend={"steps": 150}), tmp_path)
    chromium.show(browser, (run / "report.html").as_uri())
    first = text(browser, "h1")
    assert first.startswith("Training: step") and "Alive" in text(browser, "#age")
    assert "left in this stage" in text(browser, ".summary")
    assert browser.execute_script("return document.querySelector('#stale').hidden")
    until(lambda: text(browser, "h1") not in (first, ""))  # it has loaded itself again
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert process.wait(60) == 0
    until(lambda: "How it was run" in text(browser, "main"))
    stamp = browser.execute_script("return performance.timeOrigin")
    time.sleep(7)
    assert browser.execute_script("return performance.timeOrigin") == stamp, "a report does not refresh itself"


def test_it_says_that_there_is_no_sign_of_life_and_stops(
    browser: Any, command: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    process, run = at_work(command, recipe_file(backend={"steps": 400}), tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    page = run / "report.html"
    chromium.show(browser, page.as_uri())
    assert browser.execute_script("return document.querySelector('#stale').hidden"), "it was alive a moment ago"
    later = browser.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument",
        {"source": "const real = Date.now; Date.now = () => real() + 3600e3"},
    )
    try:
        chromium.show(browser, page.as_uri())  # an hour later, by the reader's clock
        browser.execute_script("sessionStorage.clear()")
        browser.get(page.as_uri())
        assert "No sign of life since" in text(browser, "#stale")
        assert f"ftkit report {run}" in text(browser, "#stale")
        assert "Silent for 1 h 0 min" in text(browser, "#age")
        looked_at_stale(browser)
        # It looks again, each time after a longer wait, and then no more.
        key = browser.execute_script("return Object.keys(sessionStorage).find((k) => k.startsWith('ftkit '))")
        until(lambda: json.loads(browser.execute_script("return sessionStorage.getItem(arguments[0])", key))["tries"])
        browser.execute_script(
            "const [k] = arguments, seen = JSON.parse(sessionStorage.getItem(k));"
            "sessionStorage.setItem(k, JSON.stringify({...seen, tries: 6})); location.reload()",
            key,
        )
        until(lambda: "does not refresh itself any more" in text(browser, "#age"))
        stamp = browser.execute_script("return performance.timeOrigin")
        time.sleep(7)
        assert browser.execute_script("return performance.timeOrigin") == stamp
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", later)
    assert command("report", run).returncode == 0
    chromium.show(browser, page.as_uri())
    assert text(browser, "h1").startswith("Killed in train at step")
    assert text(browser, "#resume") == f"ftkit run --resume {run}"


def looked_at_stale(browser: Any) -> None:
    screenshot(browser, "live-silent-1280-light", 1280)
    assert serious_faults(browser) == {}
    browser.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = false })")


def test_it_waits_while_somebody_reads_and_when_it_is_told_to(
    browser: Any, command: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    process, run = at_work(command, recipe_file(backend={"steps": 900}), tmp_path)
    chromium.show(browser, (run / "report.html").as_uri())
    browser.find_element("id", "pause").click()
    stamp = browser.execute_script("return performance.timeOrigin")
    assert text(browser, "#age") == "Paused." and text(browser, "#pause") == "Go on"
    time.sleep(7)
    assert browser.execute_script("return performance.timeOrigin") == stamp
    browser.find_element("id", "pause").click()
    until(lambda: browser.execute_script("return performance.timeOrigin") != stamp)
    stamp = browser.execute_script("return performance.timeOrigin")
    browser.execute_script("getSelection().selectAllChildren(document.querySelector('h1'))")
    time.sleep(7)
    assert browser.execute_script("return performance.timeOrigin") == stamp, "a selection stays"
    browser.execute_script("getSelection().removeAllRanges()")
    until(lambda: browser.execute_script("return performance.timeOrigin") != stamp)
    process.kill()
    process.communicate()


def test_it_looks_well_while_the_run_works(
    browser: Any, command: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = recipe_file(backend={"steps": 900, "warn": HOSTILE}, controls=["fake-echo"])
    process, run = at_work(command, recipe, tmp_path)
    looked_at(browser, run / "report.html", "live")
    process.kill()
    process.communicate()


# ---------------------------------------------------------------- ended early


@pytest.mark.parametrize(
    ("how", "headline"), [("gpu-memory", "Failed in train"), ("interrupt", "Interrupted in train")]
)
def test_it_looks_well_where_the_run_ended_early(
    browser: Any, command: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path, how: str, headline: str
) -> None:
    recipe = recipe_file(backend={"warn": f"the context is short {HOSTILE}"}, controls=["fake-echo"])
    assert command("run", recipe, FAKES=f"train={how}").returncode in (1, 130)
    run = only(tmp_path / "runs")
    looked_at(browser, run / "report.html", f"live-{how}")
    chromium.show(browser, (run / "report.html").as_uri())
    assert text(browser, "h1").startswith(headline)
    assert text(browser, "#resume") == f"ftkit run --resume {run}"
    assert browser.execute_script("return document.querySelectorAll('img, b').length") == 0
    browser.execute_script("document.querySelector('#resume').click()")


def test_without_script_it_says_what_to_do(
    browser: Any, command: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    process, run = at_work(command, recipe_file(backend={"steps": 900}), tmp_path)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get((run / "report.html").as_uri())
        main = browser.find_element("tag name", "main").text
        assert "Reload this page to see more" in main and "No sign of life" not in main
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
        process.kill()
        process.communicate()
