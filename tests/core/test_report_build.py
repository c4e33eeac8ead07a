"""The numbers of a report: what may be compared, how examples are matched, what a reader is told."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ftkit
from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.errors import InputError, Interrupted, RunFailed
from ftkit.files import read_json, write_json
from ftkit.interface import RunResult
from ftkit.records import Report
from ftkit.report import build_report
from ftkit.report.costs import Costs
from ftkit.stats import holm

Make = Callable[..., dict[str, Any]]
QUIET = Console(silent=True)


@pytest.fixture
def go(recipe: Make, tmp_path: Path, fakes: ModuleType) -> Callable[..., RunResult]:
    def start(backend: dict[str, Any] | None = None, yes: bool = False, **keys: Any) -> RunResult:
        return ftkit.run(recipe(backend, **keys), out=tmp_path / "runs", console=QUIET, yes=yes)

    return start


@pytest.fixture
def score(tmp_path: Path, fakes: ModuleType) -> Callable[..., RunResult]:
    """Score rows that were made anywhere."""

    def make(rows: list[dict[str, Any]], name: str = "other", **columns: str) -> RunResult:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return ftkit.score(path, "fake-overlap", tmp_path / "runs", name, **columns)

    return make


def report(*runs: RunResult, anyway: bool = False) -> Report:
    return build_report([r.directory for r in runs], anyway)


# ---------------------------------------------------------------- what may be compared


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"splits": {"test": 12}}, "test rows"),
        ({"prompt": {"instruction": "Shout."}}, "prompt"),
        ({"generation": {"max_new_tokens": 17}}, r"generation settings \(max_new_tokens\)"),
        ({"evaluator": {"plugin": "fake-overlap", "ignore_case": True}}, r"evaluator settings \(fake-overlap\)"),
    ],
    ids=["rows", "prompt", "generation", "evaluator"],
)
def test_incomparable_runs_are_refused_with_the_reason(
    go: Callable[..., RunResult], rows: Path, change: dict[str, Any], reason: str
) -> None:
    first = go(name="first")
    if "splits" in change:
        change = {"dataset": {"path": str(rows), **change}}
    second = go(name="second", **change)
    with pytest.raises(InputError, match=rf"may not be compared, they differ in {reason}") as caught:
        report(first, second)
    assert "first baseline and second tuned" in str(caught.value) and "--anyway" in str(caught.value)
    marked = report(first, second, anyway=True)
    assert any(w.startswith("Not a fair comparison (shown with --anyway)") for w in marked.warnings)
    assert "Not a fair comparison" not in str(report(first).warnings)


def test_a_shared_baseline_is_shown_once_and_holm_corrects(go: Callable[..., RunResult]) -> None:
    runs = [go({"skill": skill}, name=name) for name, skill in (("a", 0.9), ("b", 0.5), ("c", 0.0))]
    found = report(*runs)
    assert [s.name for s in found.systems] == ["a baseline", "a tuned", "b tuned", "c tuned"]
    assert "b baseline, c baseline are the same measurement as a baseline, shown once" in found.notes
    tested = [d for d in found.deltas if d.metric == "overlap"]
    assert {(d.from_, d.to) for d in tested} == {
        *(("a baseline", f"{n} tuned") for n in "abc"),
        *((f"{a} tuned", f"{b} tuned") for a, b in ("ab", "ac", "bc")),
    }
    assert [d.p_adjusted for d in tested] == pytest.approx(holm([d.p_value or 0.0 for d in tested]))
    assert all((d.p_adjusted or 0) >= (d.p_value or 0) for d in tested)
    assert all(d.p_adjusted is None for d in found.deltas if d.metric != "overlap")
    assert "Holm" in found.verdict_detail
    words = {(d.from_, d.to): d.verdict for d in tested}
    assert words["a baseline", "a tuned"] == "better" and words["a baseline", "c tuned"] == "no difference shown"
    assert words["a tuned", "c tuned"] == "scored lower"  # one training each: nothing is claimed of the recipes
    assert not any(d.p_adjusted for d in report(runs[0]).deltas)


def test_two_backends_are_four_systems_with_bases_and_tuned_compared(go: Callable[..., RunResult]) -> None:
    """Two base models: each tuned model against its own base, tuned against tuned, base against base."""
    found = report(go(name="here"), go({"base_model": "other-base", "skill": 0.4, "batch_size": 5}, name="there"))
    assert [s.name for s in found.systems] == ["here baseline", "here tuned", "there baseline", "there tuned"]
    tested = [d for d in found.deltas if d.metric == "overlap"]
    assert [(d.from_, d.to) for d in tested] == [
        ("here tuned", "there tuned"),  # the headline's difference comes first
        ("here baseline", "here tuned"),
        ("there baseline", "there tuned"),
        ("here baseline", "there baseline"),
    ]
    assert [d.p_adjusted for d in tested] == pytest.approx(holm([d.p_value or 0.0 for d in tested]))
    assert [d.verdict for d in tested] == ["scored lower", "better", "better", "no difference shown"]
    assert found.verdict == "This training run scored lower than that one: there tuned against here tuned"
    assert "nothing is claimed of the recipes" in found.verdict_detail.split("\n")[0]


def test_deltas_are_paired_means(go: Callable[..., RunResult]) -> None:
    run = go({"fail": ["test-0"]})
    by_id = [{s.example_id: s.values for s in run.directory.scores(stage)} for stage in ("baseline", "tuned")]
    both = [(b["overlap"], t["overlap"]) for i, b in by_id[0].items() if b and (t := by_id[1][i])]
    (delta,) = (d for d in report(run).deltas if d.metric == "overlap")
    assert delta.n == len(both) == 23 and delta.delta == pytest.approx(sum(t - b for b, t in both) / 23)


def test_of_several_runs_the_headline_names_the_best_and_how_many_beat_the_base(go: Callable[..., RunResult]) -> None:
    """It spoke of the first run on the command line: "No difference shown" while others had gained."""
    found = report(*(go({"skill": skill}, name=name) for name, skill in (("weak", 0.0), ("good", 0.9), ("fair", 0.6))))
    base, best = found.systems[0].metrics["overlap"].value, found.systems[2].metrics["overlap"].value
    assert found.verdict.startswith(f"Best of 3: good, overlap {100 * base:.1f} → {100 * best:.1f} (+")
    assert found.verdict.endswith("; 2 of 3 beat the base model")
    assert (found.deltas[0].from_, found.deltas[0].to) == ("weak baseline", "good tuned")
    assert found.headline and found.headline.title == found.verdict
    assert found.distribution and (found.distribution.from_, found.distribution.to) == ("weak baseline", "good tuned")
    none = report(*(go({"skill": 0.0}, name=name) for name in ("p", "q", "r")))
    assert none.verdict == "None of 3 beats the base model"


def test_the_headline_counts_the_rows_and_says_what_is_wrong(go: Callable[..., RunResult]) -> None:
    run = go({"fail": ["test-0"]}, controls=["fake-echo"])
    found = report(run)
    spread, head = found.distribution, found.headline
    assert spread is not None and head is not None
    by_id = [
        {s.example_id: s.values["overlap"] for s in run.directory.scores(stage) if s.values}
        for stage in ("baseline", "tuned")
    ]
    gains = {i: after - by_id[0][i] for i, after in by_id[1].items() if i in by_id[0]}
    assert {row["id"]: row["gain"] for row in spread.gains} == pytest.approx(gains) and len(gains) == 23
    assert [row["gain"] for row in spread.gains] == sorted(gains.values(), reverse=True)
    assert spread.n_better == sum(g > 0 for g in gains.values()) and spread.n_same == sum(
        g == 0 for g in gains.values()
    )
    assert sum(spread.counts["tuned"]) == 23 and len(spread.edges) == 21
    said = f"Of the 23 rows {spread.n_better} are better, {spread.n_same} the same and {spread.n_worse} worse."
    assert said in head.text and "1 of 24 requests failed" in head.wrong
    assert any("the control fake-echo" in text for text in head.text)
    labels = [fact["label"] for fact in head.strip]
    assert labels == ["Model", "Method", "Data", "Time and price", "Seeds"]


def test_a_plugins_finding_leads_the_report(go: Callable[..., RunResult], tmp_path: Path) -> None:
    from ftkit.hookspecs import hookimpl
    from ftkit.plugins import PluginSource, installed_plugins
    from ftkit.records import Section

    class Finding:
        @hookimpl
        def ftkit_report_sections(self, runs: list[RunDirectory]) -> list[Section]:
            return [Section(f"About {r.record().name}", (), "It learned the form.", "The loss fell.") for r in runs]

    plugin = Finding()
    installed_plugins().register(plugin, PluginSource("f", "f", "f", "1"))
    try:
        runs = [go(), go(name="b")]
        found = ftkit.report(runs[0], out=tmp_path / "one")
        assert found.headline and found.headline.title == found.verdict == "It learned the form."
        assert found.headline.source == "About fake-run" and found.headline.text[0] == "The loss fell."
        assert found.verdict_detail.split("\n")[1].startswith("tuned is better than baseline: overlap")
        assert '<h2 id="verdict">It learned the form.</h2>' in (tmp_path / "one" / "report.html").read_text()
        assert "**It learned the form.**" in (tmp_path / "one" / "report.md").read_text()
        both = report(*runs)
        assert (
            both.headline
            and both.headline.source == ""
            and both.headline.text[0] == "About fake-run: It learned the form."
        )
    finally:
        installed_plugins().manager.unregister(plugin)


def test_a_brief_is_written_on_request(
    go: Callable[..., RunResult], command: Callable[..., Any], tmp_path: Path
) -> None:
    run = go()
    assert command("report", run.dir, "--out", tmp_path / "r").returncode == 0
    assert not (tmp_path / "r" / "brief.html").exists()
    assert command("report", run.dir, "--brief", "--out", tmp_path / "r").returncode == 0
    head = report(run).headline
    assert head and f'<h2 id="verdict">{head.title}</h2>' in (tmp_path / "r" / "brief.html").read_text()


def test_two_runs_of_one_name_are_called_by_what_differs(go: Callable[..., RunResult]) -> None:
    found = report(go(), go({"skill": 0.1}))
    assert [s.name for s in found.systems] == ["baseline", "skill=0.8", "skill=0.1"]
    assert found.headline and found.headline.title.startswith("skill=0.8 scored higher than skill=0.1: overlap ")
    assert found.differing and found.differing.systems == ("skill=0.8", "skill=0.1")
    assert [(row["key"], row["values"]) for row in found.differing.rows] == [("backend.skill", ["0.8", "0.1"])]


def test_two_runs_of_one_recipe_are_called_by_their_ids(go: Callable[..., RunResult]) -> None:
    runs = [go(), go()]
    names = [s.name for s in report(*runs).systems]
    assert names[1:] == [f"{run.directory.id} tuned" for run in runs]


# ---------------------------------------------------------------- money


def test_prices_of_a_machine_and_of_an_api_stand_beside_quality(go: Callable[..., RunResult], tmp_path: Path) -> None:
    local = go({"usd_per_hour": 0.8, "usd_per_answer": 1e-6}, name="local")
    api = go(
        {"base_model": "b", "usd_per_answer": 0.0003, "shutdown_date": "2027-01-14", "fail": ["test-1"]}, name="api"
    )
    found = report(local, api)
    costs = {c.system: c for c in Costs.from_dict(found.costs).systems}
    assert list(costs) == [s.name for s in found.systems]
    tuned = costs["api tuned"]
    assert tuned.usd_per_1k == pytest.approx(0.3) and tuned.train_usd == 0.25  # of the 23 answers that had a price
    assert (tuned.n_failed, tuned.n_predictions, tuned.usd_per_hour) == (1, 24, None)
    assert costs["api baseline"].shutdown_date == "2027-01-14" and costs["api baseline"].train_usd is None
    machine = costs["local tuned"]
    assert (machine.hosted_by, machine.shutdown_date, machine.usd_per_hour) == ("the run directory", None, 0.8)
    seconds = read_json(local.dir / "tuned" / "cost.json")["seconds"]
    assert machine.seconds_per_1k == pytest.approx(1000 * seconds / 24)
    meets = [(m["machine"], m["api"], m["way"]) for m in found.costs["break_evens"]]
    assert meets == [("local tuned", "api tuned", way) for way in ("machine on demand", "machine always on")]
    ftkit.report(local, api, out=tmp_path / "both")
    for name in ("report.html", "report.md", "report.json"):
        text = (tmp_path / "both" / name).read_text()
        assert all(word in text for word in ("2027-01-14", "the run directory", "machine always on")), name


def test_prices_are_set_when_the_report_is_made(
    go: Callable[..., RunResult], command: Callable[..., Any], tmp_path: Path
) -> None:
    runs = [go(name="local"), go({"base_model": "b"}, name="api")]
    assert not report(*runs).costs["break_evens"]
    prices = ["--set-price", "local.usd_per_hour=0.8", "--set-price", "api tuned.usd_per_1k=0.3"]
    done = command("report", *(r.dir for r in runs), *prices, "--out", tmp_path / "r", "--json")
    assert done.returncode == 0, done.stderr
    costs = Costs.from_dict(json.loads(done.stdout)["costs"])
    by_name = {c.system: c for c in costs.systems}
    assert by_name["local tuned"].sources == {"train_usd": "set", "usd_per_1k": "set", "usd_per_hour": "set"}
    assert by_name["api tuned"].sources["usd_per_1k"] == "set" and by_name["api tuned"].usd_per_1k == 0.3
    assert {m.machine for m in costs.break_evens} == {"local tuned"}
    wrong = command("report", runs[0].dir, "--set-price", "tund.usd_per_hour=1")
    assert wrong.returncode == 2 and "did you mean 'tuned'" in wrong.stderr


def test_estimated_and_actual_price(go: Callable[..., RunResult]) -> None:
    run = go({"usd": 0.31, "usd_per_answer": 0.001}, yes=True)
    (spent,) = report(run).costs["runs"]
    assert spent["estimated"] == 0.31 and spent["actual"] == pytest.approx(0.25 + 48 * 0.001)


# ---------------------------------------------------------------- runs of `score`


def test_scored_files_are_matched_by_id(go: Callable[..., RunResult], score: Callable[..., RunResult]) -> None:
    run = go()
    rows = [{"id": e.id, "prediction": e.targets[0], "target": e.targets[0]} for e in reversed(run.directory.task.test)]
    found = report(run, score(rows[:20]))
    (delta,) = (d for d in found.deltas if (d.from_, d.to, d.metric) == ("fake-run baseline", "other", "overlap"))
    assert delta.n == 20 and delta.delta > 0.5 and delta.verdict == "better"
    assert {"prompt of other: not known", "generation settings of other: not known"} <= set(found.notes)
    assert "other: 20 of 24 examples matched" in found.notes
    assert found.pairs[0].answers["fake-run tuned"]["text"] and sum("other" in p.answers for p in found.pairs) == 20


def test_scored_files_are_matched_by_input_text(go: Callable[..., RunResult], score: Callable[..., RunResult]) -> None:
    run = go()
    rows = [
        {"n": i, "question": e.input.strip() + "\n", "out": e.targets[0], "gold": e.targets[0]}
        for i, e in enumerate(run.directory.task.test)
    ]
    other = score(rows[::-1], input="question", prediction="out", target="gold")
    found = report(run, other)
    assert "other: 24 of 24 examples matched" in found.notes
    by_id = {p.example_id: p for p in found.pairs}
    for e in run.directory.task.test:
        assert by_id[e.id].answers["other"]["text"] == e.targets[0]


def test_scored_files_with_nothing_in_common(go: Callable[..., RunResult], score: Callable[..., RunResult]) -> None:
    other = score([{"id": "z", "input": "unheard of", "prediction": "p", "target": "t"}])
    with pytest.raises(InputError, match="other has no example in common"):
        report(go(), other)


def test_two_scored_files_of_one_name(score: Callable[..., RunResult]) -> None:
    rows = [{"id": str(i), "prediction": "a", "target": "a b"} for i in range(20)]
    first, second = score(rows), score([{**row, "prediction": "a b"} for row in rows])
    found = report(first, second)
    assert [s.name for s in found.systems] == [first.directory.id, second.directory.id]
    assert [(d.delta, d.n) for d in found.deltas if d.metric == "overlap"] == [(0.5, 20)]


def test_another_evaluator_on_scored_files_is_refused(
    go: Callable[..., RunResult], score: Callable[..., RunResult]
) -> None:
    run = go(evaluator={"plugin": "fake-overlap", "ignore_case": True})
    rows = [{"id": e.id, "prediction": "x", "target": e.targets[0]} for e in run.directory.task.test]
    with pytest.raises(InputError, match="differ in evaluator settings"):
        report(run, score(rows))


# ---------------------------------------------------------------- what is missing


@pytest.mark.parametrize(
    ("knob", "missing", "says"),
    [
        ("interrupt=2", "baseline and no tuned", "this run was interrupted in baseline; resume"),
        ("train=crash", "tuned", "this run failed in train: RuntimeError: the fake trainer broke; resume"),
    ],
    ids=["baseline", "train"],
)
def test_an_unfinished_run(
    go: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, knob: str, missing: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAKES", knob)
    with pytest.raises((Interrupted, RunFailed)):
        go(controls=["fake-echo"])
    (path,) = (tmp_path / "runs").glob("*/run.json")
    found = ftkit.report(path.parent, out=tmp_path / "report")
    assert (found.verdict, found.verdict_detail) == ("No verdict", f"There is no {missing} measurement.")
    assert found.warnings == (f"{says} with: ftkit run --resume runs/{path.parent.name}",)
    page = (tmp_path / "report" / "report.html").read_text()
    text = (tmp_path / "report" / "report.md").read_text().replace("\\", "")
    assert "No verdict" in text and says in text
    ended = "Interrupted in baseline" if "baseline" in missing else "Failed in train"
    assert ended in page and f"ftkit run --resume {path.parent}<" in page
    monkeypatch.delenv("FAKES")
    whole = go(name="whole", controls=["fake-echo"])
    assert "whole tuned" in [s.name for s in ftkit.report(whole, path.parent, out=tmp_path / "both").systems]


def test_a_run_that_was_killed_says_so_and_how_to_resume(
    command: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    def status() -> str:
        (listed,) = json.loads(command("runs", "--json").stdout)["runs"]
        return str(listed["status"])

    def warnings() -> list[str]:
        ended = command("report", run, "--out", "report")
        assert ended.returncode == 0, ended.stderr
        found = read_json(tmp_path / "report" / "report.json")
        return [w for w in found["warnings"] if w.startswith("this run")]

    process = command("run", recipe_file(), wait=False, FAKES="slow=0.2")
    deadline = time.monotonic() + 30
    while not (begun := list(tmp_path.glob("runs/*/baseline/predictions.journal"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    run = begun[0].parent.parent
    process.send_signal(signal.SIGSTOP)  # it lives, however long the two commands take
    assert status() == "running"
    assert warnings() == ["this run is still running in baseline"]
    process.kill()
    process.communicate()
    assert status() == "killed" and read_json(run / "run.json")["status"] == "running"
    assert warnings() == [f"this run was killed in baseline; resume with: ftkit run --resume runs/{run.name}"]
    shown = read_json(tmp_path / "report" / "report.json")["runs"][0]
    assert shown["status"] == "killed" and shown["stages"][-1]["status"] == "killed"
    assert command("run", "--resume", f"runs/{run.name}").returncode == 0
    assert status() == "done" and warnings() == []


def test_a_run_whose_plugin_is_gone_can_still_be_read(go: Callable[..., RunResult], fakes: ModuleType) -> None:
    from ftkit.plugins import installed_plugins

    run = go(note="a stand-in")
    offers = installed_plugins().entries
    for key in [k for k in offers if k[1].startswith("fake")]:
        del offers[key]
    found = report(RunResult(RunDirectory.open(run.dir)))
    assert found.verdict.startswith("tuned is better") and "a stand-in" in found.notes


def test_a_report_can_be_read_back(go: Callable[..., RunResult]) -> None:
    run = go()
    found = report(run)
    assert Report.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert [(c.name, c.axis) for c in found.curves] == [("loss", "loss"), ("overlap", "validation metrics")]
    assert run.report.systems == found.systems and run.report.deltas == found.deltas


# ---------------------------------------------------------------- hostile text

HOSTILE = "</script><script>document.title='owned'</script> \x1b[31mred\x07 \x00 \ud800 \u202egnp.exe \u2028 <|eot_id|> | `x` {{ 7*7 }}"


def test_hostile_text_goes_through_a_whole_run(
    go: Callable[..., RunResult], rows: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "validation", "test"):
        lines = [
            {"id": f"../../{i}{HOSTILE}", "input": f"{split} {i} {HOSTILE}", "target": HOSTILE if i else " "}
            for i in range(8)
        ]
        (rows / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = {p for p in tmp_path.rglob("*") if "runs" not in p.parts}
    capfd.readouterr()
    keys = {
        "prompt": {"instruction": "{x} <b>\u202e"},
        "note": "<img src=x onerror=alert(1)>",
        "dataset": {"path": str(rows), "columns": {"meta": ["input"]}, "allow_empty_targets": True},
    }
    backend = {"warn": "look: " + HOSTILE.replace("\ud800", "").replace("\x00", "")}  # which YAML does not know
    recipe = {"name": "hostile", "backend": {"plugin": "fake", **backend}, "evaluator": "fake-overlap", **keys}
    run = ftkit.run(recipe, out=tmp_path / "runs")
    assert {p for p in tmp_path.rglob("*") if "runs" not in p.parts} == before
    assert run.directory.record().status == "done"
    shown = capfd.readouterr()
    assert "1 empty target " in shown.err and not set("\x1b\x07\x00\u202e") & set(shown.err + shown.out)
    page = (run.dir / "report.html").read_text(encoding="utf-8")
    assert "<script>document.title" not in page and "<img src=x" not in page and "owned" in page
    text = (run.dir / "report.md").read_text(encoding="utf-8")
    assert "\x1b" not in page + text and "\x00" not in page + text and "<img" not in text.split("```")[0]
    data = read_json(run.dir / "report.json")
    assert data["pairs"][1]["input"] == f"test 1 {HOSTILE}" and data["pairs"][1]["targets"] == [HOSTILE]
    reread = RunDirectory.open(run.dir)
    assert reread.task.test[1].id == f"../../1{HOSTILE}" and reread.recipe.prompt.instruction == "{x} <b>\u202e"


def test_a_section_that_fails_costs_nothing_but_itself(go: Callable[..., RunResult], fakes: ModuleType) -> None:
    from ftkit.hookspecs import hookimpl
    from ftkit.plugins import PluginSource, installed_plugins
    from ftkit.records import Section

    class Sections:
        @hookimpl
        def ftkit_report_sections(self, runs: list[RunDirectory]) -> list[Section]:
            if len(runs) > 1:
                raise ValueError("only one, please")
            return [Section("Mine", ({"kind": "text", "text": "hello"},))]

    plugin = Sections()
    installed_plugins().register(plugin, PluginSource("s", "s", "s", "1"))
    try:
        runs = [go(), go(name="b")]
        assert [s.title for s in report(runs[0]).sections] == ["Mine"]
        both = report(*runs)
        assert not both.sections and any("only one, please" in w for w in both.warnings)
    finally:
        installed_plugins().manager.unregister(plugin)


def test_no_runs_and_torn_files(go: Callable[..., RunResult]) -> None:
    with pytest.raises(InputError, match="no runs"):
        build_report([])
    run = go()
    write_json(
        run.dir / "tuned" / "metrics.json",
        {"metrics": {}, "settings": read_json(run.dir / "tuned/metrics.json")["settings"]},
    )
    assert report(run).verdict == "No verdict"
    (run.dir / "tuned" / "predictions.jsonl").write_text('{"example_id": ')
    with pytest.raises(InputError, match=r"predictions\.jsonl:1: not JSON"):
        report(run)


def test_files_without_ids_are_matched_by_their_inputs_never_by_row_number(tmp_path: Path) -> None:
    """Two files with the same rows in opposite order: each input meets itself."""
    rows = [{"input": f"question {i}", "target": f"answer {i}", "prediction": f"answer {i}"} for i in range(12)]
    runs = []
    for name, part in (("one", rows), ("two", rows[::-1])):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(part))
        runs.append(ftkit.score(path, "exact-match", out=tmp_path / "runs", name=name))
    report = ftkit.report(*runs, out=tmp_path / "report")
    for pair in report.pairs:
        assert {a["text"] for a in pair.answers.values()} == {pair.targets[0]}


def test_files_without_ids_or_inputs_are_not_compared(tmp_path: Path) -> None:
    runs = []
    for name, order in (("one", 1), ("two", -1)):
        path = tmp_path / f"{name}.json"
        rows = [{"target": f"answer {i}", "prediction": f"answer {i}"} for i in range(12)][::order]
        path.write_text(json.dumps(rows))
        runs.append(ftkit.score(path, "exact-match", out=tmp_path / "runs", name=name))
    with pytest.raises(ftkit.FtkitError, match="no example in common"):
        ftkit.report(*runs, out=tmp_path / "report")


def test_a_named_column_is_not_taken_for_another_role(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps([{"model_answer": "wrong", "answer": "right"}]))
    with pytest.raises(ftkit.FtkitError, match="which column holds the prediction"):
        ftkit.score(path, "exact-match", out=tmp_path / "runs", target="answer")


@pytest.mark.parametrize(
    ("test", "validation", "test_in_validation", "note"),
    [
        (0, 0, 0, "no leaks found"),
        (0, 1, 0, "no test row in the training rows"),
        (0, 0, 1, "no test row in the training rows"),
        (2, 1, 1, "2 test rows also in the training rows"),
    ],
)
def test_the_strip_speaks_of_no_leaks_only_where_there_are_none(
    test: int, validation: int, test_in_validation: int, note: str
) -> None:
    from ftkit.report.strip import _data

    audit = {
        "splits": {"train": {"rows": 9}},
        "leaks": {"test": {"rows": test}, "validation": {"rows": validation}},
        "test_in_validation": {"rows": test_in_validation},
    }
    fact = _data([audit])
    assert fact is not None and fact["note"] == note
