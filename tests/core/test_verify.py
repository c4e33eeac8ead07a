"""`ftkit verify`: a run that nobody touched verifies, and each kind of tampering is found and named.

Each change is looked for twice: as it is (the manifest names the file), and with the manifest written again by the
tamperer (the change no longer agrees with what else the run holds).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ftkit
from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.files import digest, file_digest, read_json, read_jsonl, write_json, write_jsonl
from ftkit.lang import speaking
from ftkit.report import write_report
from ftkit.run.manifest import MANIFEST, seal
from ftkit.run.verify import Verification, verify

Make = Callable[..., Any]
QUIET = Console(silent=True)
_made: dict[Path, Path] = {}  # one run for all tests of a session


@pytest.fixture
def run(fakes: ModuleType, recipe: Make, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A copy of a finished run with a control, failed answers, several samples' worth of files, and own rows."""
    base = tmp_path_factory.getbasetemp()
    if base not in _made:
        out = tmp_path_factory.mktemp("verified")
        shutil.copytree(tmp_path / "rows", out / "rows")
        options = {"fail": ["test-23"], "extras": True, "losses": True}
        source = recipe(options, controls=["fake-echo"], dataset={"path": str(out / "rows")}, note="a note")
        _made[base] = ftkit.run(source, out=out / "runs", console=QUIET).dir
    copy = tmp_path / _made[base].name
    shutil.copytree(_made[base], copy)
    return RunDirectory.open(copy)


def problems(found: Verification) -> list[str]:
    return [problem for check in found.checks for problem in check.problems]


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    data = read_json(path)
    changed = change(data)
    write_json(path, data if changed is None else changed)


def edit_rows(path: Path, change: Callable[[list[Any]], Any]) -> None:
    rows = list(read_jsonl(path))
    changed = change(rows)
    write_jsonl(path, rows if changed is None else changed)


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def hashed_again(run: RunDirectory, name: str) -> None:
    """Write the hashes in metrics.json again, as a tamperer would who knows of them."""
    edit(
        run.path(name, "metrics.json"),
        lambda d: d["sha256"].update({file: file_digest(run.path(name, file)) for file in d["sha256"]}),
    )


# ---------------------------------------------------------------- each kind of tampering


def wrong_answer(run: RunDirectory) -> None:
    edit_rows(run.path("tuned", "predictions.jsonl"), lambda rows: rows[3].update(text="SOMETHING ELSE"))
    hashed_again(run, "tuned")


def other_answer_of_the_same_score(run: RunDirectory) -> None:
    edit_rows(run.path("tuned", "predictions.jsonl"), lambda rows: rows[3].update(text=rows[3]["text"] + "  "))
    hashed_again(run, "tuned")


def failure_made_an_answer(run: RunDirectory) -> None:
    edit_rows(
        run.path("tuned", "predictions.jsonl"), lambda r: r[23].update(error=None, finish_reason="stop", text="TEST ROW 23 SAYS")
    )  # fmt: skip
    hashed_again(run, "tuned")


def answer_made_a_failure(run: RunDirectory) -> None:
    edit_rows(run.path("baseline", "predictions.jsonl"), lambda rows: rows[2].update(error="503", text=""))
    hashed_again(run, "baseline")


def failures_left_out(run: RunDirectory) -> None:
    for file in ("predictions.jsonl", "scores.jsonl"):
        edit_rows(run.path("tuned", file), lambda rows: rows[:23])
    hashed_again(run, "tuned")

    def hide(data: Any) -> None:
        data["cost"].update(n_failed=0, n_predictions=23)
        for metric in data["metrics"].values():
            metric["n_unscored"] = 0

    edit(run.path("tuned", "metrics.json"), hide)
    edit(run.path("tuned", "cost.json"), lambda d: d.update(n_failed=0, n_predictions=23))


def unscored_count_hidden(run: RunDirectory) -> None:
    edit(run.path("tuned", "metrics.json"), lambda d: d["metrics"]["overlap"].update(n_unscored=0))


def failed_count_hidden(run: RunDirectory) -> None:
    edit(run.path("tuned", "metrics.json"), lambda d: d["cost"].update(n_failed=0))


def score_raised(run: RunDirectory) -> None:
    edit_rows(run.path("baseline", "scores.jsonl"), lambda rows: rows[5]["values"].update(overlap=1.0))
    hashed_again(run, "baseline")


def score_of_a_failure(run: RunDirectory) -> None:
    edit_rows(run.path("tuned", "scores.jsonl"), lambda rows: rows[23].update(values={"overlap": 1.0, "words": 4.0}))
    hashed_again(run, "tuned")


def metric_raised(run: RunDirectory) -> None:
    edit(run.path("tuned", "metrics.json"), lambda d: d["metrics"]["overlap"].update(value=0.95))


def interval_narrowed(run: RunDirectory) -> None:
    edit(run.path("tuned", "metrics.json"), lambda d: d["metrics"]["overlap"].update(low=0.8))


def metric_removed(run: RunDirectory) -> None:
    edit(run.path("tuned", "metrics.json"), lambda d: d["metrics"].pop("words") and None)


def metric_added(run: RunDirectory) -> None:
    edit(run.path("tuned", "metrics.json"), lambda d: d["metrics"].update(f1={"value": 0.9, "n": 24}))


def generation_settings_changed(run: RunDirectory) -> None:
    edit(run.path("tuned", "metrics.json"), lambda d: d["settings"]["generation"].update(max_new_tokens=999))


def evaluator_option_changed(run: RunDirectory) -> None:
    edit(
        run.path("tuned", "metrics.json"),
        lambda d: d["settings"]["evaluators"]["fake-overlap"].update(ignore_case=True),
    )


def loss_changed(run: RunDirectory) -> None:
    edit_rows(run.path("tuned-train-rows", "losses.jsonl"), lambda rows: rows[1].update(loss=0.001))
    hashed_again(run, "tuned-train-rows")


def measured_row_changed(run: RunDirectory) -> None:
    edit_rows(run.path("data", "test.jsonl"), lambda rows: rows[7].update(targets=["TEST"]))


def training_row_changed(run: RunDirectory) -> None:
    edit_rows(run.path("data", "train.jsonl"), lambda rows: rows[2].update(targets=["X"]))


def training_row_removed(run: RunDirectory) -> None:
    edit_rows(run.path("data", "train.jsonl"), lambda rows: rows[1:])


def training_row_added(run: RunDirectory) -> None:
    edit_rows(run.path("data", "train.jsonl"), lambda rows: [*rows, {**rows[0], "id": "train-99"}])


def rows_in_another_order(run: RunDirectory) -> None:
    edit_rows(run.path("data", "validation.jsonl"), lambda rows: rows[::-1])


def row_and_its_digest_changed(run: RunDirectory) -> None:
    training_row_changed(run)
    rows = list(read_jsonl(run.path("data", "train.jsonl")))
    edit(run.path("data", "digests.json"), lambda d: d.update(train=[digest(row)[:12] for row in rows]))


def prompt_changed(run: RunDirectory) -> None:
    replaced(run.path("recipe.yaml"), "template: '{input}'", "template: 'Shout: {input}'")
    edit(run.path("lock.json"), lambda d: d.update(recipe=file_digest(run.path("recipe.yaml"))))


def messages_changed(run: RunDirectory) -> None:
    edit_rows(run.path("data", "test.jsonl"), lambda rows: rows[4]["messages"][0].update(content="the answer is X"))


def recipe_changed(run: RunDirectory) -> None:
    replaced(run.path("recipe.yaml"), "skill: 0.8", "skill: 0.7")


def seed_changed(run: RunDirectory) -> None:
    edit(run.path("lock.json"), lambda d: d.update(seed=1))


def package_version_changed(run: RunDirectory) -> None:
    edit(run.path("lock.json"), lambda d: d["packages"].update(numpy="0.1"))


def weight_changed(run: RunDirectory) -> None:
    edit(run.path("train", "model", "rule.json"), lambda d: d.update(skill=0.9))


def weights_removed(run: RunDirectory) -> None:
    run.path("train", "model", "rule.json").unlink()


def model_file_added(run: RunDirectory) -> None:
    run.path("train", "model", "extra.bin").write_bytes(b"pickle")


def other_model_named(run: RunDirectory) -> None:
    edit(run.path("train", "model.json"), lambda d: d.update(uri="elsewhere"))


def base_of_the_adapter_removed(run: RunDirectory) -> None:
    edit(run.path("train", "model.json"), lambda d: d.update(base=None))


def loss_curve_changed(run: RunDirectory) -> None:
    edit_rows(
        run.path("train", "log.jsonl"), lambda r: [x | {"loss": 0.01} if x.get("event") == "step" else x for x in r]
    )


def report_number_changed(run: RunDirectory) -> None:
    edit(run.path("report.json"), lambda d: d["systems"][-1]["metrics"]["words"].update(value=3.0))


def report_verdict_changed(run: RunDirectory) -> None:
    edit(run.path("report.json"), lambda d: d.update(verdict="tuned is much better than everything"))


def report_p_value_changed(run: RunDirectory) -> None:
    edit(run.path("report.json"), lambda d: d["deltas"][0].update(p_value=0.00001))


def report_answer_changed(run: RunDirectory) -> None:
    edit(run.path("report.json"), lambda d: d["pairs"][2]["answers"]["tuned"].update(text="PERFECT"))


def page_number_changed(run: RunDirectory) -> None:
    value = read_json(run.path("tuned", "metrics.json"))["metrics"]["overlap"]["value"]
    replaced(run.path("report.html"), f"{100 * value:.2f}", "99.99")


def markdown_number_changed(run: RunDirectory) -> None:
    value = read_json(run.path("tuned", "metrics.json"))["metrics"]["overlap"]["value"]
    replaced(run.path("report.md"), f"{100 * value:.1f}", "99.99")


def measurement_hidden(run: RunDirectory) -> None:
    edit(run.path("run.json"), lambda d: d.update(systems=[s for s in d["systems"] if s != "control-fake-echo"]))


def measurement_removed(run: RunDirectory) -> None:
    shutil.rmtree(run.path("control-fake-echo"))


def warning_hidden(run: RunDirectory) -> None:
    edit(run.path("report.json"), lambda d: d.update(warnings=[]))
    edit(run.path("run.json"), lambda d: d.update(warnings=["1 of 24 answers failed, and this was said"]))


def time_of_training_changed(run: RunDirectory) -> None:
    edit(run.path("run.json"), lambda d: d["stages"][2].update(seconds=9999.0))


def cost_changed(run: RunDirectory) -> None:
    edit(run.path("tuned", "cost.json"), lambda d: d.update(tokens_out=1))


def baseline_of_another_model(run: RunDirectory) -> None:
    edit(run.path("baseline", "key.json"), lambda d: d["identity"]["model"].update(uri="weaker-base"))


def plan_changed(run: RunDirectory) -> None:
    edit(run.path("tuned", "plan.json"), lambda batches: batches[::-1])


def audit_changed(run: RunDirectory) -> None:
    edit(run.path("audit.json"), lambda d: d.update(leaks={}))


TAMPERINGS = [
    (wrong_answer, "tuned/scores.jsonl: test-3"), (other_answer_of_the_same_score, "pairs.test-3.answers.tuned.text"),
    (failure_made_an_answer, "1 answers failed, and 0 did"), (answer_made_a_failure, "baseline/scores.jsonl: test-2"),
    (failures_left_out, "tuned/predictions.jsonl lacks the answer to test-23"),
    (unscored_count_hidden, "overlap.n_unscored is 0, and 1"), (failed_count_hidden, "0 answers failed, and 1 did"),
    (score_raised, "baseline/scores.jsonl: test-5: values.overlap is 1.0"),
    (score_of_a_failure, "test-23 has a score, and its answer failed"), (metric_raised, "overlap.value is 0.95"),
    (interval_narrowed, "overlap.low is 0.8"), (metric_removed, "lacks 'words'"), (metric_added, "no evaluator of the recipe gives 'f1'"),
    (generation_settings_changed, "settings.generation.max_new_tokens is 999"),
    (evaluator_option_changed, "fake-overlap.ignore_case is True"), (loss_changed, "values.loss"),
    (measured_row_changed, "data/test.jsonl: row 8 (test-7) was changed"),
    (training_row_changed, "data/train.jsonl: row 3 (train-2) was changed"),
    (training_row_removed, "data/train.jsonl: row 1 of those that were used is missing"),
    (training_row_added, "data/train.jsonl: train-99 was added"), (rows_in_another_order, "data/validation.jsonl: row 1"),
    (row_and_its_digest_changed, "the rows of train are not those that lock.json names"),
    (prompt_changed, "the prompt is not that of recipe.yaml"), (messages_changed, "data/test.jsonl: row 5 (test-4)"),
    (recipe_changed, "recipe.yaml is not the recipe that lock.json names"), (seed_changed, "seed is 1, and 42"),
    (package_version_changed, "lock.packages.numpy"), (weight_changed, "train/model/rule.json is not the file that training wrote"),
    (weights_removed, "train/model/rule.json is missing"), (model_file_added, "train/model/extra.bin was not there"),
    (other_model_named, "model.uri is 'elsewhere'"), (base_of_the_adapter_removed, "names no base model"),
    (loss_curve_changed, "curves.0.points"), (report_number_changed, "systems.tuned-train-rows.metrics.words.value"),
    (report_verdict_changed, "verdict is 'tuned is much better"), (report_p_value_changed, "deltas.0.p_value"),
    (report_answer_changed, "pairs.test-2.answers.tuned.text is 'PERFECT'"), (page_number_changed, "report.html:"),
    (markdown_number_changed, "report.md:"), (measurement_hidden, "control-fake-echo/ holds a measurement"),
    (measurement_removed, "control-fake-echo/metrics.json is missing"), (warning_hidden, "leaves out a warning"),
    (time_of_training_changed, "stages.2.seconds is"), (cost_changed, "cost.tokens_out is 1"),
    (baseline_of_another_model, "identity.model.uri is 'weaker-base'"), (plan_changed, "plan.json is not"),
    (audit_changed, "audit.json is not as report.json shows it"),
]  # fmt: skip


def test_a_run_that_nobody_touched_verifies(run: RunDirectory) -> None:
    found = verify(run)
    assert found.ok and problems(found) == [] and found.notes == ()
    assert {c.name for c in found.checks} >= {"manifest", "data", "measurement tuned", "model", "report"}
    assert all(check.ok for check in found.checks)
    seal(run)
    assert verify(run).ok, "as the tests below seal it"


@pytest.mark.parametrize(("tamper", "named"), TAMPERINGS, ids=[t.__name__ for t, _ in TAMPERINGS])
def test_tampering_is_found_and_named(tamper: Callable[[RunDirectory], None], named: str, run: RunDirectory) -> None:
    before = {p: file_digest(p) for p in run.dir.rglob("*") if p.is_file()}
    tamper(run)
    touched = {p for p in {*before, *run.dir.rglob("*")} if p.is_file() and before.get(p) != file_digest(p)}
    gone = {p for p in before if not p.exists()}
    opened = RunDirectory.open(run.dir)  # a process of its own would read all files again
    first = verify(opened)
    manifest = next(check for check in first.checks if check.name == "manifest")
    assert not first.ok
    assert {p.split(": ")[0] for p in manifest.problems} == {p.relative_to(run.dir).as_posix() for p in touched | gone}
    seal(opened)
    found = verify(RunDirectory.open(run.dir))
    assert next(check for check in found.checks if check.name == "manifest").ok
    assert not found.ok and any(named in problem for problem in problems(found)), problems(found)


@pytest.mark.parametrize("file", ["state/x.json", "debug.log", "tuned/timings.jsonl"])
def test_what_nothing_is_computed_from_is_covered_by_the_manifest_alone(file: str, run: RunDirectory) -> None:
    run.path(file).parent.mkdir(exist_ok=True)
    with open(run.path(file), "a") as log:
        log.write("\n")
    found = verify(run)
    assert not found.ok and problems(found)[0].startswith(f"{file}: ")


# ---------------------------------------------------------------- the rest


def test_an_older_run_without_a_manifest_says_so(run: RunDirectory, command: Make) -> None:
    run.path(MANIFEST).unlink()
    found = verify(run)
    assert found.ok and found.checks[0].ok is None and "no manifest" in (found.checks[0].note or "")
    for name in ("digests.json",):
        run.path("data", name).unlink()
    edit(
        run.path("lock.json"),
        lambda d: [d.pop(k) for k in ("generation", "evaluators", "controls", "files", "trained")] and None,
    )
    edit(run.path("lock.json"), lambda d: d["data"].pop("rows") and None)
    for name in run.record().systems:
        edit(run.path(name, "metrics.json"), lambda d: d.pop("sha256") and None)
    ftkit.report(run.dir, out=run.dir)
    assert verify(RunDirectory.open(run.dir)).ok, "a run of an older ftkit lacks these"


@pytest.mark.parametrize(
    "content", ["", "[]", "null", "{}", '{"a": ' * 3000, "\udcff".encode("utf-8", "surrogateescape")]
)
@pytest.mark.parametrize(
    "file",
    ["lock.json", "data/task.json", "tuned/metrics.json", "tuned/scores.jsonl", "tuned/predictions.jsonl", "report.json",
     "train/model.json", "recipe.yaml", "baseline/key.json", "data/digests.json"],
)  # fmt: skip
def test_a_damaged_file_is_a_problem_and_no_crash(file: str, content: str | bytes, run: RunDirectory) -> None:
    run.path(file).write_bytes(content if isinstance(content, bytes) else content.encode())
    found = verify(RunDirectory.open(run.dir))
    assert not found.ok and found.checks[0].problems == (f"{file}: was changed after the run was sealed",)


def test_the_command_names_problems_and_fails(run: RunDirectory, command: Make) -> None:
    done = command("verify", run.dir)
    assert done.returncode == 0 and "nothing is wrong" in done.stdout, done.stdout
    metric_raised(run)
    seal(run)
    done = command("verify", run.dir)
    assert done.returncode == 1 and "measurement tuned: WRONG" in done.stdout and "overlap.value is 0.95" in done.stdout
    said = json.loads(command("verify", run.dir, "--json").stdout)
    assert said["ok"] is False and [c["name"] for c in said["checks"] if c["ok"] is False] == [
        "measurement tuned",
        "report",
    ]


def test_a_report_of_another_version_is_compared_by_its_numbers(run: RunDirectory) -> None:
    edit(run.path("lock.json"), lambda d: d["code"].update(ftkit="0" * 64))
    edit(run.path("report.json"), lambda d: d["runs"][0]["lock"]["code"].update(ftkit="0" * 64))
    replaced(run.path("report.html"), "<h2", "<h3")  # another version may lay out the page otherwise
    seal(run)
    found = verify(RunDirectory.open(run.dir))
    assert found.ok and "code of ftkit 000000000000 -> " in found.notes[0], problems(found)
    value = f"{100 * read_json(run.path('tuned', 'metrics.json'))['metrics']['overlap']['value']:.1f}"
    page = run.path("report.html")
    page.write_text(page.read_text().replace(value, "99.99"))
    seal(run)
    assert any(f"does not show overlap {value} of tuned" in p for p in problems(verify(RunDirectory.open(run.dir))))


def test_a_report_in_japanese_verifies(run: RunDirectory) -> None:
    with speaking("ja"):
        write_report([run], run.dir)
    seal(run)
    assert '<html lang="ja"' in run.path("report.html").read_text()
    assert problems(verify(RunDirectory.open(run.dir))) == []
    replaced(run.path("report.md"), "ベースモデル", "他のモデル")
    seal(run)
    assert any("report.md" in p for p in problems(verify(RunDirectory.open(run.dir))))


def test_against_the_source(run: RunDirectory, command: Make, tmp_path: Path) -> None:
    source = Path(read_json(run.path("lock.json"))["data"]["path"])
    copy = tmp_path / "source"
    shutil.copytree(source, copy)
    assert verify(run, str(copy)).checks[-1].ok
    test = copy / "test.jsonl"
    lines = test.read_text().splitlines()
    test.write_text("\n".join([lines[0].replace("row 0", "row 00"), *lines[1:-1]]) + "\n")
    (copy / "train.jsonl").write_text((copy / "train.jsonl").read_text() + '{"input": "new", "target": "NEW"}\n')
    found = verify(run, str(copy)).checks[-1]
    assert found.ok is False
    assert "test: test-0 is another row in the source" in found.problems
    assert "test: test-23 is not in the source" in found.problems
    assert "train: train-20 is in the source alone" in found.problems
    done = command("verify", run.dir, "--against", tmp_path / "none")
    assert done.returncode == 1 and "none" in done.stdout


def test_a_file_of_scored_predictions_verifies(fakes: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"prediction": "A b", "target": "A c"}\n{"prediction": null, "target": "x"}\n{"prediction": "y", "target": "y"}\n'
    )
    scored = ftkit.score(path, "fake-overlap", out=tmp_path / "runs", options=["ignore_case=true"])
    found = verify(scored.directory)
    assert found.ok, problems(found)
    edit(scored.dir / "predictions" / "metrics.json", lambda d: d["metrics"]["overlap"].update(value=1.0))
    seal(scored.directory)
    assert any("overlap.value is 1.0, and 0.75" in p for p in problems(verify(scored.directory)))


def test_a_run_whose_plugins_are_not_installed_here_is_one_message(
    run: RunDirectory, command: Make, tmp_path: Path
) -> None:
    done = command("verify", run.dir, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2 and "no backend named 'fake'" in done.stderr
