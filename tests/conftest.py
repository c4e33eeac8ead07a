"""Shared by all tests: the `needs` marker."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*programs): programs on PATH, or files below the repository's root")


def pytest_runtest_setup(item: pytest.Item) -> None:
    wanted = dict.fromkeys(program for mark in item.iter_markers("needs") for program in mark.args)
    missing = [program for program in wanted if not (shutil.which(program) or (ROOT / program).exists())]
    if missing and os.environ.get("FTKIT_REQUIRE_ALL"):
        pytest.fail(f"needs {' and '.join(missing)}")
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")
