"""The interfaces that plugins and callers rely on: what they are given, and what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ftkit
from ftkit.api import Tracker
from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.errors import InputError, RecipeError, RunFailed
from ftkit.files import read_json
from ftkit.plugins import Plugins, PluginSource, installed_plugins
from ftkit.records import GenerationConfig, Measurement, ModelRef
from ftkit.run import observers

Make = Callable[..., dict[str, Any]]
QUIET = Console(silent=True)
ROOT = Path(__file__).parents[2]


# ---------------------------------------------------------------- the package


def test_functions_stay_functions_after_their_namesakes_are_imported() -> None:
    code = (
        "import ftkit, inspect\n"
        "import ftkit.run.stages, ftkit.report.build, ftkit.score\n"
        "from ftkit.run import stages\n"
        "assert all(inspect.isfunction(f) for f in (ftkit.run, ftkit.report, ftkit.score)), ftkit.run\n"
        "assert callable(stages.execute)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there_and_typed(tmp_path: Path) -> None:
    for name in ftkit.__all__:
        assert getattr(ftkit, name) is not None
    lines = [f"from ftkit import {', '.join(ftkit.__all__)}", *(f"reveal_type({name})" for name in ftkit.__all__)]
    path = tmp_path / "user.py"
    path.write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(path)],
        capture_output=True, text=True, cwd=tmp_path, check=False, env={**os.environ, "MYPYPATH": str(ROOT)},
    )  # fmt: skip
    shown = [line for line in done.stdout.splitlines() if "Revealed type" in line]
    assert len(shown) == len(ftkit.__all__), done.stdout
    assert not [line for line in shown if '"Any"' in line]


def test_one_class_holds_the_generation_settings_and_checks_them() -> None:
    settings = GenerationConfig(max_new_tokens=5, temperature=0.5, samples=2)
    assert GenerationConfig.from_dict({**settings.to_dict(), "newer": 1}) == settings
    assert settings.replace(seed=3).seed == 3 and settings.seed == 0
    for wrong in ({"max_new_tokens": 0}, {"samples": 2}, {"temperatur": 1}, {"top_p": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            GenerationConfig(**wrong)


# ---------------------------------------------------------------- trackers and hooks


def plugins_with(**names: Any) -> Plugins:
    module = types.ModuleType("acme")
    module.__dict__.update(names)
    plugins = Plugins()
    plugins.register(module, PluginSource("acme", "acme", "ftkit-acme", "1.0"))
    return plugins


@contextlib.contextmanager
def plugin_module(**names: Any) -> Iterator[None]:
    """Install a plugin module in this process."""
    module = types.ModuleType("acme_module")
    module.__dict__.update(names)
    plugins = installed_plugins()
    sources = list(plugins.sources)
    plugins.register(module, PluginSource("acme", "acme_module", "ftkit-acme", "1.0"))
    assert not [s for s in plugins.failures if s.entry == "acme"]
    try:
        yield
    finally:
        plugins.manager.unregister(module)
        plugins.sources = sources


@pytest.mark.parametrize(
    ("method", "meant"),
    [("stage_finish", "stage_finished"), ("on_started", "started"), ("ftkit_run_failed", "failed"), ("flush", None)],
)
def test_a_misspelt_method_of_a_tracker_is_an_error(method: str, meant: str | None) -> None:
    cls = type("Mine", (Tracker,), {"name": "mine", method: lambda self, **_: None, "_own": lambda self: None})
    plugins = plugins_with(ftkit_trackers=ftkit.hookimpl(lambda: [cls]))
    (failed,) = plugins.failures
    assert f"Mine.{method} is no method that ftkit calls" in (failed.error or "")
    assert (f"did you mean {meant!r}" if meant else "a tracker has: started, logged") in (failed.error or "")


# What each notifying hook is given, as a module implements it that takes all of it.
NOTIFYING = {
    "ftkit_run_started": lambda run, record: (run, record),
    "ftkit_metrics_logged": lambda run, event: (run, event),
    "ftkit_stage_finished": lambda run, stage: (run, stage),
    "ftkit_run_failed": lambda run, record: (run, record),
    "ftkit_run_finished": lambda run, record, report: (run, record, report),
}


@pytest.mark.parametrize("hook", NOTIFYING)
@pytest.mark.parametrize("decorated", [True, False])
def test_only_decorated_hooks_of_a_module_are_called(
    recipe: Make, fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str, decorated: bool
) -> None:
    called: list[Any] = []
    names = NOTIFYING[hook].__code__.co_varnames
    scope: dict[str, Any] = {"called": called}
    exec(f"def {hook}({', '.join(names)}): called.append(({', '.join(names)}))", scope)
    function = ftkit.hookimpl(scope[hook]) if decorated else scope[hook]
    fail = hook == "ftkit_run_failed"
    if fail:
        monkeypatch.setenv("FAKES", "train=crash")
    with plugin_module(**{hook: function}), contextlib.suppress(RunFailed):
        ftkit.run(recipe(), out=tmp_path, console=QUIET)
    assert bool(called) is decorated
    if decorated:
        last = dict(zip(names, called[-1], strict=True))
        assert isinstance(last["run"], ftkit.Run)
        assert last.get("record") is None or last["record"].status in ("running", "failed" if fail else "done")
        assert last.get("event") is None or last["event"]["event"] == "end"
        assert last.get("stage") is None or last["stage"].name == "report"
        assert last.get("report") is None or last["report"].verdict == "tuned is better than baseline"


def test_a_tracker_has_its_own_patience(recipe: Make, fakes: ModuleType, tmp_path: Path) -> None:
    class Slow(Tracker):
        name = "slow"
        patience = 30.0

        def finished(self, run: Any, record: Any, report: Any) -> None:
            fakes.Hanging.released.wait(2)
            (tmp_path / "told").write_text(report.verdict)

    warnings: list[str] = []
    trackers = [("slow", Slow()), ("hanging", fakes.Hanging())]
    watching = observers.Observers(Plugins(), trackers, tmp_path, str, warnings.append)
    report = types.SimpleNamespace(verdict="better")
    watching.notify("logged", run=None, event={})
    watching.notify("finished", run=None, record=None, report=report)
    watching.close()
    fakes.Hanging.released.set()
    fakes.Hanging.released.clear()
    assert (tmp_path / "told").read_text() == "better"
    assert warnings == ["observer 'hanging' did not finish within 0.5 s; it is dropped, the run continues"]


def test_an_event_that_is_not_as_expected_costs_itself_alone(
    recipe: Make, fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = fakes.FakeBackend.train

    def odd(self: Any, task: Any, run: Any) -> ModelRef:
        for values in ({}, {"message": None}, {"message": 3}):
            run.log("warning", **values)
        run.log("step", step="one", max_steps="two", loss=1.0, tokens_per_second="many")
        run.journal.append(["not", "an", "object"])
        run.log("warning", message="the last one")
        return train(self, task, run)

    monkeypatch.setattr(fakes.FakeBackend, "train", odd)
    run = ftkit.run(recipe(), out=tmp_path, console=QUIET)
    warnings = run.directory.record().warnings
    assert {"a warning without a message", "3", "the last one"} <= set(warnings)
    assert any("could not be shown" in text for text in warnings)


# ---------------------------------------------------------------- backends


def test_facts_of_training_reach_the_lock_by_the_log(
    recipe: Make, fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = fakes.FakeBackend.train

    def chooses(self: Any, task: Any, run: Any) -> ModelRef:
        run.log("lock", layout="packed", why="it pays")
        return train(self, task, run)

    monkeypatch.setattr(fakes.FakeBackend, "train", chooses)
    run = ftkit.run(recipe(), out=tmp_path, console=QUIET)
    assert read_json(run.dir / "lock.json")["training"] == {"layout": "packed", "why": "it pays"}


@pytest.mark.parametrize("compared", [True, False])
def test_a_backends_own_measurement_may_have_any_name(
    recipe: Make, fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compared: bool
) -> None:
    """A name such as `control-x` says nothing: `compared` does."""

    def measurements(self: Any, task: Any, tuned: ModelRef | None) -> list[Measurement]:
        return [Measurement("control-x", tuned, compared=compared)] if tuned else []

    monkeypatch.setattr(fakes.FakeBackend, "measurements", measurements)
    report = ftkit.run(recipe(), out=tmp_path, console=QUIET).report
    roles = {s.name: s.role for s in report.systems}
    assert roles == {"baseline": "baseline", "tuned": "tuned", "control-x": "further" if compared else "extra"}
    assert (("baseline", "control-x") in {(d.from_, d.to) for d in report.deltas}) is compared


def test_a_further_measurement_on_other_rows_is_shown_and_not_compared(
    recipe: Make, fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measurements(self: Any, task: Any, tuned: ModelRef | None) -> list[Measurement]:
        return [Measurement("on-validation", tuned, split="validation")] if tuned else []

    monkeypatch.setattr(fakes.FakeBackend, "measurements", measurements)
    report = ftkit.run(recipe(), out=tmp_path, console=QUIET).report
    assert next(s.role for s in report.systems if s.name == "on-validation") == "extra"
    assert any("on-validation differs from the baseline in test rows" in note for note in report.notes)
    assert report.verdict == "tuned is better than baseline"


def test_answers_are_checked_against_the_backends_questions(
    command: Any, recipe_file: Any, fakes: ModuleType, tmp_path: Path
) -> None:
    assert command("run", recipe_file(), FAKES="train=detach").returncode == 130
    (run,) = (tmp_path / "runs").iterdir()
    for answer, message in (
        ("create-agian=yes", "did you mean 'create-again'?"),
        ("price=3", "create-again: yes: the provider has no such job"),
        ("create-again", "not of the form KEY=VALUE"),
    ):
        refused = command("run", "--resume", run, "--answer", answer)
        assert refused.returncode == 2 and message in refused.stderr
    assert command("run", "--resume", run, "--answer", "create-again=yes", FAKES="train=detach").returncode == 0


def test_cancelling_what_starts_nothing_elsewhere(command: Any, recipe_file: Any, tmp_path: Path) -> None:
    assert command("run", recipe_file()).returncode == 0
    (run,) = (tmp_path / "runs").iterdir()
    refused = command("cancel", run)
    assert refused.returncode == 2 and "backend 'fake' trains in the process of ftkit itself" in refused.stderr


# ---------------------------------------------------------------- prepare and execute


def test_a_prepared_directory_is_all_that_execution_needs(
    command: Any, recipe: Make, rows: Path, fakes: ModuleType, tmp_path: Path
) -> None:
    from ftkit.interface import load
    from ftkit.run.prepare import prepare

    (run,) = prepare([load(recipe())], tmp_path / "runs", QUIET)
    assert run.status() == "prepared" and not run.is_held()
    assert {"run.json", "recipe.yaml", "lock.json", "audit.json", "debug.log", "data"} == {
        p.name for p in run.dir.iterdir()
    }
    shutil.rmtree(rows)  # the rows are in the directory
    moved = tmp_path / "elsewhere"
    run.dir.rename(moved)
    done = command("run", "--resume", moved, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["verdict"] == "tuned is better than baseline"


def test_several_recipes_are_each_prepared_once(
    recipe: Make, fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[int] = []
    render = fakes.FakeBackend.render

    def counting(self: Any, examples: Any) -> Any:
        rendered.append(1)
        return render(self, examples)

    monkeypatch.setattr(fakes.FakeBackend, "render", counting)
    both = ftkit.run(recipe(), recipe(name="b", backend={"skill": 0.1}), out=tmp_path, console=QUIET)
    assert len(rendered) == 2 * 3  # splits
    assert isinstance(both, ftkit.JointResult) and len(both) == 2
    assert both[1].metrics["tuned"]["overlap"].value == both.report.systems[-1].metrics["overlap"].value
    assert (both.dir / "report.html").exists() and "fake-run" in repr(both) and "<iframe" in both._repr_html_()


def test_the_mistakes_of_all_recipes_are_reported_together_and_leave_nothing(
    recipe: Make, fakes: ModuleType, tmp_path: Path
) -> None:
    wrong = [recipe({"refuse": "no access"}), recipe(), recipe({"refuse": "no room"}, name="third")]
    with pytest.raises(RecipeError) as error:
        ftkit.run(*wrong, out=tmp_path / "runs", console=QUIET)
    assert [p.message for p in error.value.problems] == ["no access", "no room"]
    assert not (tmp_path / "runs").exists()


def test_a_launcher_stands_between_prepare_and_report(
    recipe_file: Any, fake_site: Path, fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(fake_site))
    run = ftkit.run(recipe_file(), out=tmp_path / "there", console=QUIET, where="fake-elsewhere")
    here = ftkit.run(recipe_file(), out=tmp_path / "here", console=QUIET)
    assert run.directory.record().status == "done" and run.directory.record().where == "fake-elsewhere"
    for name in ("baseline", "tuned"):
        assert (run.dir / name / "predictions.jsonl").read_bytes() == (
            here.dir / name / "predictions.jsonl"
        ).read_bytes()
    assert run.verdict == here.verdict and not (run.dir / ".work").exists()


def test_what_fails_elsewhere_is_resumed_where_it_was_started(
    recipe_file: Any, fake_site: Path, fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(fake_site))
    with pytest.raises(RunFailed, match="the fake trainer broke"):
        ftkit.run(recipe_file(), out=tmp_path, console=QUIET, where="fake-elsewhere:train=crash")
    (folder,) = (p.parent for p in tmp_path.glob("*/run.json"))
    assert read_json(folder / "run.json")["where"] == "fake-elsewhere:train=crash"
    assert ftkit.resume(folder, console=QUIET).verdict == "tuned is better than baseline"  # from its last step
    record = read_json(folder / "run.json")
    assert record["where"] == "fake-elsewhere:train=crash" and record["status"] == "done"
    assert [row["step"] for row in RunDirectory.open(folder).log_rows() if row["event"] == "step"] == [1, 2, 3, 4, 5, 6]


def test_a_launcher_that_returns_too_early_is_no_success(
    recipe: Make, fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fakes.Elsewhere, "launch", lambda self, run, where: None)
    with pytest.raises(RunFailed, match="before baseline and train and evaluate were done"):
        ftkit.run(recipe(), out=tmp_path, console=QUIET, where="fake-elsewhere")
    with pytest.raises(InputError, match="no launcher named 'fake-elsewere'"):
        ftkit.run(recipe(), out=tmp_path, console=QUIET, where="fake-elsewere:x")


def test_resuming_without_a_needed_extra_names_it(
    recipe: Make, fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKES", "interrupt=1")
    with pytest.raises(ftkit.FtkitError):
        ftkit.run(recipe(), out=tmp_path, console=QUIET)
    monkeypatch.delenv("FAKES")
    (folder,) = (p.parent for p in tmp_path.glob("*/run.json"))
    monkeypatch.setattr(fakes.FakeBackend, "requires", ftkit.Requires(("no_such_module",), "ftkit[fake]"))
    with pytest.raises(InputError, match=r"needs no_such_module[\s\S]*pip install 'ftkit\[fake\]'"):
        ftkit.resume(folder, console=QUIET)


def test_a_finished_run_is_reported_under_its_lock(recipe: Make, fakes: ModuleType, tmp_path: Path) -> None:
    run = ftkit.run(recipe(), out=tmp_path, console=QUIET)
    (run.dir / "report.json").unlink()
    with RunDirectory.open(run.dir).exclusive(), pytest.raises(InputError, match="another process is writing"):
        ftkit.resume(run.dir, console=QUIET)
    assert ftkit.resume(run.dir, console=QUIET).verdict == "tuned is better than baseline"


# ---------------------------------------------------------------- broken runs


def test_a_broken_run_costs_the_list_and_the_report_nothing_else(
    command: Any, recipe_file: Any, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        assert command("run", recipe_file(name=name)).returncode == 0
    a, b = sorted((tmp_path / "runs").iterdir())
    for text in ('{"metrics": {"overlap"', "[]", '{"metrics": {"overlap": 3}, "settings": {}}', "null"):
        (a / "tuned" / "metrics.json").write_text(text)
        listed = command("runs", "-v")
        assert listed.returncode == 0 and a.name in listed.stdout and b.name in listed.stdout
        assert f"cannot be read: runs/{a.name}/tuned/metrics.json" in listed.stderr
        refused = command("report", a)
        assert refused.returncode == 2 and "defect" not in refused.stderr and "metrics.json" in refused.stderr
    (b / "recipe.yaml").write_text("name: [broken")
    done = command("report", b)
    assert done.returncode == 0 and "defect" not in done.stderr
    assert "recipe.yaml cannot be read" in (b / "report.md").read_text()


def test_debug_of_an_early_error_shows_its_own_traceback(command: Any, tmp_path: Path) -> None:
    process = command("check", "nowhere.yaml", "--debug", wait=False)
    _, err = process.communicate(timeout=60)
    assert "UnboundLocalError" not in err and process.returncode == 2
    (tmp_path / "file").write_text("")
    console = Console(debug=True)
    with pytest.raises(FileExistsError), console.quiet(tmp_path / "file" / "log"):
        pass
