"""A report in a real browser."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ftkit.records import Report
from ftkit.report.page.render import render_html

sys.path.insert(0, str(Path(__file__).parents[1] / "browser"))
import chromium


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    browser = chromium.start(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.quit()


@pytest.fixture
def page(driver: Any, tmp_path: Path) -> Callable[..., Any]:
    """Open a report from disk at a width, in a colour scheme, at a place in it."""

    def open_page(report: Report, width: int = 1440, scheme: str = "light", place: str = "") -> Any:
        path = tmp_path / "report.html"
        path.write_text(render_html(report), "utf-8")
        chromium.show(driver, path.as_uri() + place, width, scheme)
        return driver

    return open_page
