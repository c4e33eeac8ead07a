"""Shared by all tests: the `needs` marker, and the fake plugins of tests/fakes.py."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
os.environ["FTKIT_LANG"] = "en"  # whatever the language of who runs the tests
_lacking: dict[str, int] = {}  # program -> tests that could not run without it


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "opt_in: only run by a target of its own")
    config.addinivalue_line("markers", "needs(*programs): programs on PATH, or files below the repository's root")


def pytest_runtest_setup(item: pytest.Item) -> None:
    wanted = dict.fromkeys(program for mark in item.iter_markers("needs") for program in mark.args)
    missing = [program for program in wanted if not (shutil.which(program) or (ROOT / program).exists())]
    for program in missing:
        _lacking[program] = _lacking.get(program, 0) + 1
    if missing and os.environ.get("FTKIT_REQUIRE_ALL"):
        pytest.fail(f"needs {' and '.join(missing)}")
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:  # one of several processes: tell the one that prints
        output["lacking"] = _lacking


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    for program, count in getattr(node, "workeroutput", {}).get("lacking", {}).items():
        _lacking[program] = _lacking.get(program, 0) + count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _lacking:
        terminalreporter.section("not run on this machine")
        for program, count in _lacking.items():
            terminalreporter.write_line(f"{program} is missing: {count} tests did not run (.ci/run installs it)")


@pytest.fixture(autouse=True)
def _as_from_a_terminal() -> None:
    """Let Ctrl-C and a closed terminal reach the runs under test, also where the suite runs in the background, or where an
    earlier test has ended as the command line does: what is ignored here would be ignored by every process that the
    tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def fakes() -> Iterator[ModuleType]:
    """The fake plugins, installed in this process for one test."""
    import fakes

    from ftkit.plugins import PluginSource, installed_plugins

    plugins = installed_plugins()
    sources, entries = list(plugins.sources), {key: list(found) for key, found in plugins.entries.items()}
    plugins.register(fakes, PluginSource("fakes", "fakes", "ftkit-fakes", "0.1"))
    assert not [s for s in plugins.failures if s.entry == "fakes"]
    yield fakes
    plugins.manager.unregister(fakes)
    plugins.sources, plugins.entries = sources, entries


@pytest.fixture(scope="session")
def fake_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with the fake plugins as a real distribution."""
    site = tmp_path_factory.mktemp("site")
    install_fakes(site)
    return site


def install_fakes(site: Path) -> None:
    """Put the fake plugins into a folder, as pip would."""
    shutil.copyfile(ROOT / "tests" / "fakes.py", site / "ftkit_fakes.py")
    info = site / "ftkit_fakes-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ftkit-fakes\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[ftkit]\nfakes = ftkit_fakes\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    names = ("ftkit_fakes.py", *(f"{info.name}/{name}" for name in ("METADATA", "WHEEL", "entry_points.txt", "RECORD")))
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))


@pytest.fixture
def command(fake_site: Path, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that starts `ftkit ARGUMENTS` in a process of its own, in tmp_path, with the fake plugins.

    Keyword arguments are variables of its environment; `wait=False` returns the Popen at once.
    """

    def start(*arguments: object, wait: bool = True, cwd: Path = tmp_path, **variables: str) -> Any:
        env = {**os.environ, "PYTHONPATH": str(fake_site), "COLUMNS": "120", **variables}
        line = [sys.executable, "-m", "ftkit", *map(str, arguments)]
        started = subprocess.Popen(line, stdout=-1, stderr=-1, text=True, cwd=cwd, env=env)
        if not wait:
            return started
        out, err = started.communicate(timeout=60)
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(line, started.returncode, out, err)

    return start


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A folder of splits for the fake backend: the right answer is the input in upper case."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for split, count in (("train", 20), ("validation", 4), ("test", 24)):
        lines = [
            {"input": f"{split} row {i} says {'so ' * (i % 5)}", "target": f"{split} row {i} SAYS".upper()}
            for i in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def recipe(rows: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that makes a recipe for the fakes; keyword arguments replace top-level keys or, by `backend=`, options."""

    def make(backend: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
        return {
            "name": "fake-run",
            "dataset": {"path": str(rows)},
            "backend": {"plugin": "fake", **(backend or {})},
            "generation": {"max_new_tokens": 16},
            "evaluator": {"plugin": "fake-overlap"},
            **keys,
        }

    return make


@pytest.fixture
def recipe_file(recipe: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    """Like `recipe`, written to a file (JSON is YAML)."""

    def make(file: str = "recipe.yaml", **keys: Any) -> Path:
        path = tmp_path / file
        path.write_text(json.dumps(recipe(**keys)))
        return path

    return make
