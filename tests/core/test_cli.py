"""The command line as scripts and people meet it: quick, one JSON document, one message per mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ftkit
from ftkit.files import read_json, read_jsonl
from ftkit.looking import Preview
from ftkit.records import Rendered

Command = Callable[..., Any]
HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "trl",
    "peft",
    "evaluate",
    "pandas",
    "numpy",
    "scipy",
    "pyarrow",
    "jinja2",
    "rouge_score",
)


def ok(done: Any) -> Any:
    """Return the one JSON document on stdout of a command that succeeded."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["check", "bad.yaml"], ["runs"], ["plugins"], ["recipes"], ["--version"]], ids=" ".join
)
def test_quick_commands_import_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"dialogue": "a", "summary": "b"}\n')
    (tmp_path / "bad.yaml").write_text(
        "name: x\nbackend: {plugin: trl-sft-qlora, lora_rank: 8}\nevaluator: rouge\n"
        "dataset: {path: rows.jsonl, columns: {input: dialog}}\n"
    )
    program = (
        "import sys\nfrom ftkit.cli.main import main\n"
        f"try: main()\nfinally: print('LOADED', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "LOADED []", done.stderr
    assert "Traceback" not in done.stderr
    if arguments[0] == "check":
        assert "bad.yaml:2:34: `lora_rank`" in done.stderr and "did you mean `dialogue`?" in done.stderr


def test_help_lists_the_commands_of_the_contract(command: Command) -> None:
    text = command("--help").stdout
    for name in (
        "run",
        "check",
        "preview",
        "score",
        "report",
        "runs",
        "open",
        "rm",
        "clean",
        "plugins",
        "schema",
        "recipes",
    ):
        assert f"\n  {name} " in text
    for option in ("--set", "--out", "--resume", "--on", "--dry-run", "--yes", "--json"):
        assert option in command("run", "--help").stdout


# ---------------------------------------------------------------- the shapes of --json


def test_run_report_runs_and_check_as_json(command: Command, recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    path = recipe_file()
    data = ok(command("run", path, "--json"))
    assert data["status"] == "done" and data["verdict"].startswith("tuned is better")
    assert {"value", "low", "high", "n", "n_unscored"} <= set(data["metrics"]["tuned"]["overlap"])
    assert 0 <= data["metrics"]["baseline"]["overlap"]["value"] < data["metrics"]["tuned"]["overlap"]["value"] <= 1
    assert Path(tmp_path, data["run"], "report.html").exists() and Path(tmp_path, data["report_html"]).exists()

    second = ok(command("run", path, "--json", "--set", "backend.skill=0.1", "--set", "name=weak"))
    joint = ok(command("report", data["run"], second["run"], "--json", "--out", "both"))
    assert [s["name"] for s in joint["systems"]] == ["fake-run baseline", "fake-run tuned", "weak tuned"]
    assert joint["report"] == "both" and joint["deltas"][0]["from"] == "fake-run tuned"  # of two, which is better?
    assert {"report.html", "report.md", "report.json"} == {p.name for p in (tmp_path / "both").iterdir()}

    listed = ok(command("runs", "--json"))["runs"]
    assert ok(command("runs", "runs", "--json"))["runs"] == listed
    assert "no runs in elsewhere/" in command("runs", "elsewhere").stderr
    assert [row["name"] for row in listed] == ["fake-run", "weak"] and all(row["status"] == "done" for row in listed)
    assert listed[0]["metrics"]["tuned"]["metric"] == "overlap"
    text = command("runs").stdout
    assert f"-> {100 * data['metrics']['tuned']['overlap']['value']:.2f}" in text
    shown = command("report", data["run"])
    assert shown.returncode == 0 and "baseline" in shown.stdout and "tuned is better than baseline" in shown.stdout

    checked = ok(command("check", path, "--json"))
    assert set(checked) >= {"ok", "errors", "warnings", "audit", "estimate"} and checked["ok"] is True
    assert checked["audit"]["splits"]["test"]["rows"] == 24 and checked["estimate"]["seconds"] == 1.5
    dry = ok(command("run", path, "--dry-run", "--json"))
    assert dry["ok"] and len(ok(command("runs", "--json"))["runs"]) == 2
    assert len(ok(command("check", path, path, "--json"))) == 2


def test_several_recipes_end_in_one_report(command: Command, recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    paths = [recipe_file("a.yaml", name="a"), recipe_file("b.yaml", name="b", backend={"skill": 0.2})]
    data = ok(command("run", *paths, "--json"))
    assert [len(r["metrics"]) for r in data["runs"]] == [2, 2]
    systems = read_json(tmp_path / data["report"] / "report.json")["systems"]
    assert [s["name"] for s in systems] == ["a baseline", "a tuned", "b tuned"]


def test_errors_as_json(command: Command, recipe_file: Callable[..., Path]) -> None:
    path = recipe_file(backend={"skil": 1, "steps": "many"}, seed=-1)
    for arguments in (("check", path), ("run", path), ("run", path, "--dry-run")):
        done = command(*arguments, "--json")
        data = json.loads(done.stdout)
        assert done.returncode == 2 and data["ok"] is False and len(data["errors"]) == 3
        assert {"file", "line", "column", "key", "message", "hint"} <= set(data["errors"][0])
        found = {e["key"]: e for e in data["errors"]}
        assert "did you mean `skill`" in found["backend.skil"]["hint"] and found["backend.skil"]["line"] == 1
        assert set(found) == {"backend.skil", "backend.steps", "seed"}
    good, missing = recipe_file("good.yaml"), "nowhere.yaml"
    assert [f["ok"] for f in json.loads(command("check", missing, good, "--json").stdout)] == [False, True]
    done = command("check", recipe_file(backend={"refuse": "no access"}), "--json")
    (error,) = json.loads(done.stdout)["errors"]
    assert (
        done.returncode == 2 and error["key"] == "backend.skill" and error["hint"] == "mend it" and error["line"] == 1
    )


def test_plugins_and_schema_as_json(command: Command) -> None:
    data = ok(command("plugins", "--json"))
    fake = next(p for p in data["plugins"] if p["name"] == "fake")
    assert (fake["kind"], fake["distribution"], fake["version"], fake["module"]) == (
        "backend",
        "ftkit-fakes",
        "0.1",
        "ftkit_fakes",
    )
    assert data["failed"] == [] and data["duplicates"] == []
    schema = ok(command("schema"))
    assert "fail_once" in json.dumps(schema)
    assert "ftkit-fakes 0.1" in command("plugins").stdout


def test_preview(command: Command, recipe_file: Callable[..., Path]) -> None:
    data = ok(command("preview", recipe_file(), "--json"))
    shown = data["example"]
    assert len(shown["ids"]) == len(shown["tokens"]) == len(shown["loss_mask"]) and data["lengths"]["train"]["max"] > 3
    text = command("preview", recipe_file(), "--index", 2).stdout
    assert "«<end>»" in text and "in the loss mask" in text
    assert "\ntrain, all 20 rows: median" in text and "lose" not in text
    assert command("preview", recipe_file(), "--index", 99).returncode == 2
    assert "does not show tokens" in command("preview", recipe_file(backend={"plugin": "fake-echo"})).stderr


def test_preview_says_which_rows_it_measured() -> None:
    example = Rendered("a", "x", (1,), ("x",), (True,), 0)
    lengths = {
        "rendered": 2000,
        "median": 99.5,
        "p95": 854.2,
        "max": 1067,
        "lose_prompt_tokens": 13,
        "lose_target_tokens": 0,
    }
    said = Preview(example, "train", 14732, {"train": lengths}, "backend.sequence_len").facts[-1]
    assert said == (
        "train, the first 2,000 of 14,732 rows: median 100, 95 % below 854, longest 1067 tokens; "
        "13 lose prompt tokens (backend.sequence_len)"
    )


# ---------------------------------------------------------------- score


PREDICTIONS = [{"prompt": f"q{i}", "expected": "a b", "completion": "a b" if i % 2 else "a"} for i in range(10)]


def test_score_other_peoples_files(command: Command, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps(PREDICTIONS))
    data = ok(command("score", "--predictions", "p.json", "--evaluator", "fake-overlap", "--json"))
    assert data["metrics"]["overlap"]["value"] == pytest.approx(0.75) and data["metrics"]["overlap"]["n"] == 10
    assert read_json(tmp_path / data["run"] / "run.json")["kind"] == "score"
    odd = [
        {"Frage": "x", "Soll": ["A B", "c"], "Ist": None if i else "a", "sample": "train", "error": 0.2}
        for i in range(4)
    ]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in odd))
    arguments = [
        "score",
        "--predictions",
        "odd.jsonl",
        "--evaluator",
        "fake-overlap",
        "--target",
        "Soll",
        "--prediction",
        "Ist",
    ]
    data = ok(command(*arguments, "--option", "ignore_case=true", "--name", "odd", "--out", "elsewhere", "--json"))
    assert data["metrics"]["overlap"]["value"] == 0.5
    assert (data["metrics"]["overlap"]["n"], data["metrics"]["overlap"]["n_unscored"]) == (1, 3)  # null is no answer
    assert data["run"].startswith("elsewhere/odd-")
    text = command(*arguments)
    assert text.returncode == 0 and "overlap" in text.stdout and "3 unscored" in text.stdout and "run: " in text.stderr


def test_score_in_python_takes_options(tmp_path: Path, fakes: Any) -> None:
    (tmp_path / "p.jsonl").write_text('{"prediction": "a b", "target": "A B"}\n')
    arguments = (tmp_path / "p.jsonl", "fake-overlap", tmp_path / "runs")
    assert ftkit.score(*arguments).metrics["predictions"]["overlap"].value == 0
    scored = ftkit.score(*arguments, options=["ignore_case=true"], prediction="prediction")
    assert scored.metrics["predictions"]["overlap"].value == 1
    with pytest.raises(ftkit.FtkitError, match="did you mean `ignore_case`"):
        ftkit.score(*arguments, options=["ignore_cas=true"])
    with pytest.raises(ftkit.FtkitError, match="given by its name"):
        ftkit.score(tmp_path / "p.jsonl", fakes.Overlap(), options=["ignore_case=true"])


def test_a_run_that_was_killed_before_it_had_a_recipe(command: Command, tmp_path: Path) -> None:
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    for arguments in (("run", "--resume", "runs/empty"), ("report", "runs/empty"), ("runs",)):
        done = command(*arguments)
        assert done.returncode == (0 if arguments == ("runs",) else 2) and len(done.stderr.splitlines()) < 5


def test_score_a_runs_own_predictions(command: Command, recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    run = ok(command("run", recipe_file(backend={"fail": ["test-1"], "extras": True}), "--json"))
    for stage in ("baseline", "tuned", "tuned-train-rows"):
        path = Path(run["run"]) / stage / "predictions.jsonl"
        again = ok(command("score", "--predictions", path, "--evaluator", "fake-overlap", "--json"))
        ours, theirs = again["metrics"]["overlap"], run["metrics"][stage]["overlap"]
        assert {k: ours[k] for k in ("value", "low", "high", "n", "n_unscored")} == {
            k: theirs[k] for k in ("value", "low", "high", "n", "n_unscored")
        }


@pytest.mark.parametrize(
    ("rows", "arguments", "says"),
    [
        ([{"a": 1, "b": 2}], [], "which column holds the prediction?\n  name it with --prediction; there are: a, b"),
        (
            [{"output": "x", "b": 2}],
            [],
            "which column holds the reference?\n  name it with --target; there are: b, output",
        ),
        ([{"output": "x", "b": 2}], ["--target", "c"], "has no column 'c'"),
        ([], [], "holds no rows"),
        ([{"output": "x", "target": "x", "id": 1}] * 2, [], "example '1' occurs twice"),
        ([{"output": "x", "target": "x"}], ["--evaluator", "fake-overlp"], "did you mean 'fake-overlap'"),
        ([{"output": "x", "target": "x"}], ["--option", "ignore_cas=true"], "did you mean `ignore_case`"),
        ([{"output": "x", "target": "x"}], ["--option", "broken=true"], "gave nan"),
    ],
)
def test_score_says_what_is_wrong_and_leaves_nothing(
    command: Command, tmp_path: Path, rows: list[Any], arguments: list[str], says: str
) -> None:
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = command("score", "--predictions", "p.jsonl", "--evaluator", "fake-overlap", *arguments)
    assert done.returncode in (1, 2) and says in done.stderr and done.stdout == ""
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("rnu x.yaml", "no command 'rnu'\n  did you mean 'run'?"),
        ("chekc x.yaml", "did you mean 'check'?"),
        ("frobnicate", "no command 'frobnicate'"),
        ("run", "name a recipe, or a run to --resume"),
        ("run x.yaml --resume runs/y", "not both"),
        ("run --resume nowhere", "nowhere is not a run directory"),
        ("run --resume nowhere --dry-run", "takes no --dry-run"),
        ("run nowhere.yaml", "there is no file nowhere.yaml"),
        ("run ../../quickstart.yaml", "no such file"),
        ("run file:///etc/passwd", "no such file"),
        ("check nowhere.yaml", "there is no file nowhere.yaml"),
        ("preview nowhere.yaml", "there is no file nowhere.yaml"),
        ("report nowhere", "not a run directory"),
        ("score --predictions nowhere.jsonl --evaluator fake-overlap", "nowhere.jsonl cannot be read: No such file"),
        ("score --predictions . --evaluator fake-overlap", "cannot read"),
        ("run --frob", "frob"),
        ("run x.yaml --on the-moon", "the-moon"),
    ],
)
def test_every_mistake_is_one_message(command: Command, line: str, says: str) -> None:
    done = command(*line.split(), "--json")
    assert done.returncode == 2 and says in done.stderr
    assert "looks like a defect" not in done.stderr and len(done.stderr.splitlines()) < 8
    data = json.loads(done.stdout)
    assert data["ok"] is False and data["errors"][0]["message"]
    assert {"file", "line", "column", "key", "message", "hint"} <= set(data["errors"][0])


def test_debug_shows_the_traceback_and_keeps_the_status(command: Command, recipe_file: Callable[..., Path]) -> None:
    process = command("run", recipe_file(), "--debug", wait=False, FAKES="train=crash")
    err = process.communicate(timeout=30)[1]
    assert process.returncode == 1 and "Traceback" in err and "the fake trainer broke" in err
    process = command("report", "nowhere", "--debug", wait=False)
    assert "Traceback" in process.communicate(timeout=30)[1] and process.returncode == 2


def test_an_out_folder_that_cannot_be_made(command: Command, recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    done = command("run", recipe_file(), "--out", "taken")
    assert done.returncode == 2 and "cannot make a run directory" in done.stderr and "--out" in done.stderr


def test_a_closed_pipe_is_no_error(command: Command) -> None:
    process = command("schema", wait=False)
    process.stdout.close()
    assert "Traceback" not in process.stderr.read() and process.wait(20) in (0, 1)


def test_hostile_file_names(command: Command, recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    done = command("check", "no\x1b[31mpe.yaml")
    assert done.returncode == 2 and "\x1b" not in done.stderr
    done = command("run", recipe_file(name="../evil"))
    assert done.returncode == 2 and not (tmp_path / "evil").exists()


def test_the_predictions_on_disk_are_the_contract(
    command: Command, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / ok(command("run", recipe_file(), "--json"))["run"]
    for row in read_jsonl(run / "tuned" / "predictions.jsonl"):
        assert set(row) == {
            "example_id",
            "text",
            "sample",
            "finish_reason",
            "tokens_in",
            "tokens_out",
            "usd",
            "error",
        }
