"""What a person sees of the examples in a report, and does with them: for tests in a real browser."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from ftkit.records import Pair

SHOTS = Path(__file__).parents[2] / "test-output"


def run(page: Any, script: str, *arguments: Any) -> Any:
    return page.execute_script(script, *arguments)


def cards(page: Any) -> list[str]:
    return list(run(page, "return [...document.querySelectorAll('#cards h3')].map((h) => h.textContent)"))


def text_of(page: Any, selector: str) -> str:
    return str(run(page, "return document.querySelector(arguments[0]).textContent", selector))


def choose(page: Any, control: str, value: str) -> None:
    script = """
      const [id, value] = arguments, control = document.getElementById(id);
      control.value = value;
      control.dispatchEvent(new Event('input', {bubbles: true}));"""
    run(page, script, control, value)


def press(page: Any, keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(page).send_keys(keys).perform()


def filters(page: Any) -> dict[str, int]:
    """Return the filters that are shown, with the number that each says."""
    script = """return [...document.querySelectorAll('.filter')].filter((b) => b.offsetParent).map(
      (b) => [b.firstChild.textContent.trim(), b.querySelector('.count').textContent])"""
    return {name: int(count.replace(",", "")) for name, count in run(page, script)}


def filter_by(page: Any, words: str) -> None:
    script = "[...document.querySelectorAll('.filter')].find((b) => b.textContent.startsWith(arguments[0])).click()"
    run(page, script, words)


def status(page: Any) -> str:
    return text_of(page, "#count")


def address(page: Any) -> str:
    return str(run(page, "return location.hash"))


def overflow(page: Any) -> int:
    return int(run(page, "return document.documentElement.scrollWidth - innerWidth"))


def screenshot(page: Any, name: str) -> None:
    SHOTS.mkdir(exist_ok=True)
    script = """const top = document.getElementById('examples').getBoundingClientRect().top + scrollY;
      return [innerWidth, top, Math.min(document.documentElement.scrollHeight - top, 5000)]"""
    width, top, height = run(page, script)
    clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
    shot = page.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    (SHOTS / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))


def gain(pair: Pair, a: str = "baseline", b: str = "tuned") -> float:
    return float(pair.answers[b]["score"] - pair.answers[a]["score"])
