"""A third-party package is installed into a fresh environment, found, run and removed.

One environment serves all tests; it holds ftkit with its core dependencies only, from a copy of this repository.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ACME = ROOT / "tests" / "third_party_plugin"
RECIPE = str(ACME / "recipe.yaml")
NOT_COPIED = (".*", "*.egg-info", "__pycache__", "build", "dist", "node_modules", "runs", "test-output", "tests")


@dataclass
class Environment:
    """A fresh virtual environment, and the folder in which its commands run."""

    folder: Path
    work: Path

    @property
    def packages(self) -> Path:
        return next(self.folder.glob("[Ll]ib/python*/site-packages"), self.folder / "Lib" / "site-packages")

    def command(self, name: str) -> str:
        return str(self.folder / ("Scripts" if os.name == "nt" else "bin") / name)

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"PYTHONNOUSERSITE": "1"}
        return subprocess.run(command, cwd=self.work, env=environ, capture_output=True, text=True, timeout=300)

    def pip(self, *arguments: str) -> None:
        done = self.call(self.command("python"), "-m", "pip", "--quiet", *arguments)
        offline = "No matching distribution" in done.stderr or "Could not fetch URL" in done.stderr
        if offline and not os.environ.get("FTKIT_REQUIRE_ALL"):
            pytest.skip("needs a package index")
        assert done.returncode == 0, done.stderr

    def ftkit(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = self.call(self.command("ftkit"), *arguments)
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def refused(self, *arguments: str) -> str:
        """Run a recipe that must be refused: exit status 2, a message, and no trace on the disk."""
        done = self.ftkit("run", *arguments, "--out", "refused", status=2)
        assert not (self.work / "refused").exists()
        return done.stderr

    def plugins(self) -> dict[str, dict[str, str]]:
        listed = json.loads(self.ftkit("plugins", "--json").stdout)
        return {plugin["name"]: plugin for plugin in listed["plugins"]}


@pytest.fixture(scope="session")
def core(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Return an environment with ftkit and ftkit-acme, as pip installs them for a user."""
    folder = tmp_path_factory.mktemp("stranger")
    environment = Environment(folder / "venv", folder / "work")
    environment.work.mkdir()
    subprocess.run([sys.executable, "-m", "venv", environment.folder], check=True)
    # Copies: building in place would leave build/ and *.egg-info behind.
    shutil.copytree(ROOT, folder / "ftkit", ignore=shutil.ignore_patterns(*NOT_COPIED))
    shutil.copytree(ACME, folder / "acme", ignore=shutil.ignore_patterns(*NOT_COPIED))
    constraints = ROOT / "constraints.txt"
    pins = ["--constraint", str(constraints)] if constraints.exists() else []
    environment.pip("install", "--no-compile", *pins, str(folder / "ftkit"), str(folder / "acme"))
    return environment


# ---------------------------------------------------------------- a plugin that works


def test_it_is_listed_with_its_distribution(core: Environment) -> None:
    plugins = core.plugins()
    for name, kind in (("word-overlap", "evaluator"), ("acme-first-sentences", "backend")):
        found = plugins[name]
        assert (found["kind"], found["distribution"], found["version"]) == (kind, "ftkit-acme", "1.2.3")
    assert plugins["first-sentences"]["distribution"] == "ftkit"  # ours are loaded the same way
    assert "ftkit-acme 1.2.3" in core.ftkit("plugins").stdout


def test_a_recipe_runs_it(core: Environment) -> None:
    done = json.loads(core.ftkit("run", RECIPE, "--json").stdout)
    assert done["status"] == "done"
    baseline, tuned = (done["metrics"][name]["overlap"] for name in ("baseline", "tuned"))
    assert tuned["value"] > baseline["value"] > 0
    assert tuned["n"] == 6
    assert done["verdict"] == "tuned is better than baseline"
    report = json.loads((core.work / done["report_json"]).read_text(encoding="utf-8"))
    assert [system["name"] for system in report["systems"]] == ["baseline", "tuned"]
    assert {system["method"] for system in report["systems"]} == {"acme-first-sentences"}
    assert "overlap" in (core.work / done["report_html"]).read_text(encoding="utf-8")


def test_its_options_are_checked_like_ours(core: Environment) -> None:
    assert "did you mean `evaluator.ignore_case`?" in core.refused(RECIPE, "--set", "evaluator.ignorecase=true")
    assert "`backend.most` must be at least 1" in core.refused(RECIPE, "--set", "backend.most=0")


def test_a_misspelt_name_gets_the_nearest(core: Environment) -> None:
    message = core.refused(RECIPE, "--set", "evaluator.plugin=word-overlp")
    assert "did you mean 'word-overlap'?" in message
    assert "installed: exact-match" in message


def test_pip_uninstall_removes_it(core: Environment) -> None:
    core.pip("uninstall", "--yes", "ftkit-acme")
    try:
        assert not {"word-overlap", "acme-first-sentences"} & set(core.plugins())
        message = core.refused(RECIPE)
        assert "recipe.yaml:10:3: no backend named 'acme-first-sentences'" in message
        assert "did you mean 'first-sentences'?" in message
        assert "recipe.yaml:13:3: no evaluator named 'word-overlap'\n  installed: exact-match" in message
    finally:
        core.pip("install", "--no-deps", "--no-compile", str(core.folder.parent / "acme"))


# ---------------------------------------------------------------- ftkit without its extras


def test_shipped_recipes_are_in_the_wheel(core: Environment) -> None:
    shipped = core.ftkit("recipes").stdout
    for path in (ROOT / "recipes").glob("*.yaml"):
        assert path.stem in shipped


def test_a_missing_extra_is_named(core: Environment) -> None:
    assert "pip install 'ftkit[trl]'" in core.refused("quickstart")


# ---------------------------------------------------------------- plugins that do not work

IMPORT_ERROR = "import no_such_module"

MISSPELT = """
from ftkit import hookimpl

@hookimpl
def ftkit_evaluaters():
    return []
"""

DUPLICATE = """
from ftkit import Evaluator, Score, hookimpl

class WordOverlap(Evaluator):
    name = "word-overlap"
    primary = "overlap"

    def score(self, example, prediction):
        return Score(example.id, {"overlap": 1.0}, prediction.sample)

@hookimpl
def ftkit_evaluators():
    return [WordOverlap]
"""

WRONG_ARGUMENT = """
from ftkit import hookimpl

@hookimpl
def ftkit_evaluators(recipe):
    return []
"""

# distribution -> code, what `ftkit plugins` says of it, the evaluator that a recipe would name
BROKEN = {
    "ftkit-gone": (IMPORT_ERROR, "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'", "gone"),
    "ftkit-misspelt": (MISSPELT, "unknown hook 'ftkit_evaluaters'; did you mean 'ftkit_evaluators'?", "misspelt"),
    "ftkit-argued": (WRONG_ARGUMENT, "ftkit_evaluators(recipe)", "argued"),
    "ftkit-double": (DUPLICATE, "evaluator 'word-overlap' is offered by both", "word-overlap"),
}


@contextlib.contextmanager
def installed(environment: Environment, name: str, code: str, commands: tuple[str, ...] = ()) -> Iterator[None]:
    """Install a module as pip would: its file and the metadata by which it is found."""
    module = environment.packages / f"{name.replace('-', '_')}.py"
    info = environment.packages / f"{module.stem}-0.9.dist-info"
    info.mkdir()
    try:
        module.write_text(code, encoding="utf-8")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.9\n", encoding="utf-8")
        entry = name.removeprefix("ftkit-")
        brought = "".join(f"{command} = {module.stem}:hello\n" for command in commands)
        points = f"[ftkit]\n{entry} = {module.stem}\n\n[ftkit.commands]\n{brought}"
        (info / "entry_points.txt").write_text(points, encoding="utf-8")
        yield
    finally:
        module.unlink()
        shutil.rmtree(info)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_has_its_own_message(core: Environment, name: str) -> None:
    code, message, evaluator = BROKEN[name]
    with installed(core, name, code):
        lines = [line for line in core.ftkit("plugins").stdout.splitlines() if message in line]
        assert len(lines) == 1 and f"{name} 0.9" in lines[0]
        refusal = core.refused(RECIPE, "--set", f"evaluator.plugin={evaluator}")
        assert message in refusal and f"{name} 0.9" in refusal
        if name == "ftkit-double":
            assert "ftkit-acme 1.2.3" in lines[0] and "uninstall one of them" in refusal
            core.ftkit("run", RECIPE, "--set", "evaluator.plugin=exact-match", "--out", f"beside-{name}")
        else:
            core.ftkit("run", RECIPE, "--out", f"beside-{name}")


def test_several_broken_plugins_at_once_stop_nothing_else(core: Environment) -> None:
    with contextlib.ExitStack() as stack:
        for name, (code, _, _) in BROKEN.items():
            stack.enter_context(installed(core, name, code))
        listed = json.loads(core.ftkit("plugins", "--json").stdout)
        assert {failed["distribution"] for failed in listed["failed"]} == set(BROKEN) - {"ftkit-double"}
        assert all(failed["version"] == "0.9" for failed in listed["failed"])
        assert len(listed["duplicates"]) == 1
        assert {"acme-first-sentences", "exact-match"} <= {plugin["name"] for plugin in listed["plugins"]}
        core.ftkit("run", RECIPE, "--set", "evaluator.plugin=exact-match", "--out", "beside-all")


# ---------------------------------------------------------------- commands

COMMAND = """
import click

@click.command()
def hello():
    \"\"\"Greet the user.\"\"\"
    click.echo("hello from " + __name__)
"""


def test_a_command_of_a_plugin_stands_in_the_help_with_its_line(core: Environment) -> None:
    with installed(core, "ftkit-greets", COMMAND, ("hello",)):
        assert re.search(r"hello +Greet the user\.", core.ftkit("--help").stdout)
        assert core.ftkit("hello").stdout == "hello from ftkit_greets\n"


def test_a_command_that_two_plugins_bring_is_refused_with_both_named(core: Environment) -> None:
    with installed(core, "ftkit-greets", COMMAND, ("hello",)), installed(core, "ftkit-waves", COMMAND, ("hello",)):
        both = r"'hello' is offered by both ftkit-greets 0\.9 \(ftkit_greets:hello\) and ftkit-waves 0\.9 \(ftkit_waves:hello\)"
        refused = core.ftkit("hello", status=2)
        assert re.search(both, refused.stderr) and "uninstall one of them" in refused.stderr
        shown = " ".join(core.ftkit("--help").stdout.split())
        assert re.search(both, shown) and "Refused" in shown
        (conflict,) = json.loads(core.ftkit("plugins", "--json").stdout)["duplicates"]
        assert re.search(both, conflict)
        assert core.ftkit("runs").returncode == 0


def test_a_command_named_like_one_of_ftkits_own_is_refused(core: Environment) -> None:
    with installed(core, "ftkit-greets", COMMAND, ("runs",)):
        both = r"command 'runs' is offered by both ftkit 0\.1\.0 and ftkit-greets 0\.9 \(ftkit_greets:hello\)"
        assert re.search(both, " ".join(core.ftkit("--help").stdout.split()))
        assert re.search(both, core.ftkit("plugins").stdout)
        used = core.ftkit("runs", "empty")
        assert "hello" not in used.stdout and re.search(both, used.stderr)


def test_a_command_that_cannot_be_loaded_costs_only_itself(core: Environment) -> None:
    with installed(core, "ftkit-greets", IMPORT_ERROR, ("hello",)):
        assert "cannot be loaded: No module named 'no_such_module'" in " ".join(core.ftkit("--help").stdout.split())
        refused = core.ftkit("hello", status=2)
        assert "command 'hello' of ftkit-greets 0.9" in refused.stderr
