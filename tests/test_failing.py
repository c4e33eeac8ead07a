"""Runs that fail, are killed, or still work: what their page says, what is kept, and how to continue."""

from __future__ import annotations

import dataclasses
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ftkit
from ftkit import causes
from ftkit.causes import cause_of
from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.errors import RunFailed
from ftkit.files import read_json, write_json
from ftkit.masking import masked

Command = Callable[..., Any]
Make = Callable[..., Path]
QUIET = Console(silent=True)


def only(folder: Path) -> Path:
    (run,) = (p.parent for p in folder.glob("*/run.json"))
    return run


def page_of(run: Path) -> str:
    return (run / "report.html").read_text("utf-8")


def text_of(page: str) -> str:
    """Return what a reader sees of a page, roughly: tags removed, entities resolved."""
    import html

    body = re.sub(r"<(style|script)\b.*?</\1>", "", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def wait_for(condition: Callable[[], object], process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing happened within 60 s"
        time.sleep(0.02)


def carried_out(command_line: str, command: Command, **variables: str) -> Any:
    """Carry out a command that a page or a message names."""
    words = shlex.split(command_line)
    assert words[0] == "ftkit"
    return command(*words[1:], **variables)


@pytest.fixture
def killed(command: Command, recipe_file: Make, tmp_path: Path) -> Path:
    """A run that was killed with kill -9 in its training."""
    process = command("run", recipe_file(backend={"steps": 200}), wait=False, FAKES="slow=0.05")
    wait_for(lambda: any(p.read_text().count("\n") > 3 for p in tmp_path.glob("runs/*/train/log.jsonl")), process)
    process.kill()
    process.communicate()
    return only(tmp_path / "runs")


# ---------------------------------------------------------------- while it works


def test_the_page_of_a_run_at_work(command: Command, recipe_file: Make, tmp_path: Path) -> None:
    process = command("run", recipe_file(backend={"steps": 200}), wait=False, FAKES="slow=0.1")
    wait_for(lambda: list(tmp_path.glob("runs/*/report.html")), process)
    run = only(tmp_path / "runs")
    first = page_of(run)
    assert "Between two stages" in text_of(first) or "Measuring the base model" in text_of(first)
    wait_for(lambda: "Training: step" in text_of(page_of(run)), process)
    page = page_of(run)
    shown = text_of(page)
    assert re.search(r"Training: step \d+ of 200 .*About .* left in this stage", shown), shown
    assert "overlap" in shown and "Measured so far" in shown  # the base model's numbers are known
    assert re.search(r'<polyline class="line" points="[\d., ]+"', page)
    every = re.search(r'data-every="([\d.]+)"', page)
    assert every and 5 <= float(every[1]) < 60, "rarer where drawing takes long"
    assert 'http-equiv="refresh"' not in page.lower()
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    ended = page_of(run)
    assert "data-every" not in ended and "Interrupted in train at step" in text_of(ended)
    assert not list(run.glob(".alive*")) and not list(run.glob("*.tmp"))


def test_the_report_takes_the_place_of_the_page(command: Command, recipe_file: Make, tmp_path: Path) -> None:
    ended = command("run", recipe_file(backend={"steps": 8}), FAKES="slow=0.1")
    assert ended.returncode == 0
    run = only(tmp_path / "runs")
    assert "How it was run" in page_of(run) and "data-every" not in page_of(run)
    assert not list(run.glob(".alive*"))


def test_a_page_that_cannot_be_written_never_ends_a_run(
    recipe_file: Make, fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKES", "train=interrupt")
    with pytest.raises(ftkit.FtkitError):
        ftkit.run(recipe_file(), out=tmp_path / "runs", console=QUIET)
    run = only(tmp_path / "runs")
    monkeypatch.delenv("FAKES")
    (run / "report.html").unlink()
    for name in ("report.html", ".alive.json"):
        (run / name).mkdir()  # nothing can take its place
    with pytest.raises(RunFailed):  # of the report itself
        ftkit.resume(run, console=QUIET)
    stages = {s["name"]: s["status"] for s in read_json(run / "run.json")["stages"]}
    assert stages["train"] == stages["evaluate"] == "done" and stages["report"] == "failed"
    for name in ("report.html", ".alive.json"):
        (run / name).rmdir()
    assert ftkit.resume(run, console=QUIET).directory.record().status == "done"


def test_what_is_logged_while_the_tuned_model_answers(recipe_file: Make, fakes: ModuleType, tmp_path: Path) -> None:
    from ftkit.run.live import LivePage

    result = ftkit.run(recipe_file(), out=tmp_path / "runs", console=QUIET)
    record = dataclasses.replace(result.directory.record(), status="running")
    stages = tuple(s for s in record.stages if s.name != "report")
    record = dataclasses.replace(record, stages=(*stages[:-1], dataclasses.replace(stages[-1], status="running")))
    page = LivePage(result.directory, lambda: record)
    page.logged({"event": "step", "step": 6, "max_steps": 6, "loss": 0.1, "time": 1.0})
    page.stage()
    page.progress("tuned", 9, 24, 3.0)
    page.logged({"event": "warning", "message": "the provider answers slowly", "time": 2.0})
    page._write()
    shown = text_of(page_of(result.dir))
    assert "Measuring the tuned model: row 9 of 24" in shown and "About 5.0 s left in this stage" in shown


def test_pages_cost_less_than_one_per_cent(recipe_file: Make, fakes: ModuleType, tmp_path: Path) -> None:
    """The longest training that a page shows: 100,000 steps. A page that takes long comes less often."""
    from ftkit.run.live import LivePage

    result = ftkit.run(recipe_file(), out=tmp_path / "runs", console=QUIET)
    record = result.directory.record()
    page = LivePage(result.directory, lambda: record)
    for step in range(100_000):
        page.logged({"event": "step", "step": step, "max_steps": 200_000, "loss": 1 / (step + 1), "time": step * 0.1})
    began = time.thread_time()
    page._write()
    cost = time.thread_time() - began
    assert cost / page._every < 0.01, f"{cost:.3f} s of each {page._every:.1f} s"
    assert "step 99,999 of 200,000" in text_of(page_of(result.dir))


# ---------------------------------------------------------------- failed, killed, interrupted


def test_a_failed_run(command: Command, recipe_file: Make, tmp_path: Path) -> None:
    ended = command("run", recipe_file(), FAKES="train=crash")
    assert ended.returncode == 1
    run = only(tmp_path / "runs")
    page, shown = page_of(run), text_of(page_of(run))
    resume = f"ftkit run --resume {run}"
    for part in (
        "Failed in train at step 2 of 6",
        "RuntimeError: the fake trainer broke",
        resume,
        "overlap",
        "Traceback",
    ):
        assert part in shown, part
    assert shown.index("Failed in train") < shown.index(resume) < shown.index("Stages") < shown.index("overlap")
    assert '<polyline class="line"' in page and "test-0" in shown  # the loss, and answers of the base model
    log = (run / "debug.log").read_text()
    assert "the run failed in train" in log and "Traceback (most recent call last)" in log
    assert 'RuntimeError("the fake trainer broke")' in log and log.count("Traceback (most") == 1
    assert "debug.log" in ended.stderr and "report.html" in ended.stderr
    assert carried_out(resume, command).returncode == 0
    assert "How it was run" in page_of(run)


def test_a_run_killed_in_its_training(command: Command, killed: Path) -> None:
    page = page_of(killed)
    assert "data-every" in page and "Failed" not in page  # nobody was left to write another
    assert (killed / ".alive.json").exists()
    ended = command("report", killed)
    assert ended.returncode == 0
    page, shown = page_of(killed), text_of(page_of(killed))
    assert "data-every" not in page and "<script" not in page
    assert re.search(r"Killed in train at step \d+ of 200", shown)
    resume = f"ftkit run --resume {killed}"
    for part in ("Last sign of life", "ended from outside", resume, "overlap", "loss"):
        assert part in shown, part
    assert "killed" in command("runs").stdout
    assert carried_out(resume, command).returncode == 0
    assert "How it was run" in page_of(killed) and not (killed / ".alive.json").exists()


@pytest.mark.parametrize(
    ("sign", "says"),
    [
        ({"oom_kills": -1}, "OOM killer"),
        ({"available": 1_000_000}, "1.0 MB of"),
        ({"boot": "of another day"}, "restarted"),
    ],
    ids=["oom killer", "memory was used up", "restarted"],
)
def test_what_a_killed_run_died_of(command: Command, killed: Path, sign: dict[str, Any], says: str) -> None:
    """The last sign of life is changed as if the machine had been so then."""
    alive = read_json(killed / ".alive.json")
    assert {"time", "boot", "oom_kills", "available", "memory"} <= set(alive)
    write_json(killed / ".alive.json", {**alive, **sign})
    assert command("report", killed).returncode == 0
    shown = text_of(page_of(killed))
    assert says in shown
    assert ("backend.part_size=2" in shown) == ("restarted" not in says)  # what helps against a lack of memory


def test_a_page_that_is_written_while_the_run_works(command: Command, recipe_file: Make, tmp_path: Path) -> None:
    process = command("run", recipe_file(backend={"steps": 300}), wait=False, FAKES="slow=0.1")
    wait_for(lambda: list(tmp_path.glob("runs/*/train/log.jsonl")), process)
    run = only(tmp_path / "runs")
    assert command("report", run, "--out", tmp_path / "seen").returncode == 0
    shown = text_of((tmp_path / "seen" / "report.html").read_text())
    assert "Training" in shown and "Killed" not in shown
    process.kill()
    process.communicate()


def test_interrupted_and_prepared(command: Command, recipe_file: Make, tmp_path: Path) -> None:
    first, second = recipe_file("a.yaml", name="a"), recipe_file("b.yaml", name="b")
    assert command("run", first, second, FAKES="train=interrupt").returncode == 130
    a, b = sorted((tmp_path / "runs").iterdir())
    assert "Interrupted in train at step 2 of 6" in text_of(page_of(a))
    assert "Traceback" not in (a / "debug.log").read_text()
    assert command("report", b).returncode == 0
    shown = text_of(page_of(b))
    assert "Prepared, not started" in shown and f"ftkit run --resume {b}" in shown


def test_a_job_that_goes_on_elsewhere(command: Command, recipe_file: Make, tmp_path: Path) -> None:
    assert command("run", recipe_file(), FAKES="train=detach").returncode == 130
    shown = text_of(page_of(only(tmp_path / "runs")))
    assert "Left the job job-1" in shown and "look again later" in shown


def test_an_interruption_after_the_report_leaves_the_report(
    command: Command, recipe_file: Make, tmp_path: Path
) -> None:
    assert command("run", recipe_file()).returncode == 0
    run = only(tmp_path / "runs")
    write_json(run / "run.json", {**read_json(run / "run.json"), "status": "interrupted"})
    assert command("run", "--resume", run).returncode == 0
    assert "How it was run" in page_of(run)


def test_a_run_elsewhere_ends_with_its_report(command: Command, recipe_file: Make, tmp_path: Path) -> None:
    ended = command("run", recipe_file(), "--on", "fake-elsewhere:slow=0.01")
    assert ended.returncode == 0, ended.stderr
    assert "How it was run" in page_of(only(tmp_path / "runs"))


# ---------------------------------------------------------------- secrets


def test_no_secret_is_kept(command: Command, recipe_file: Make, tmp_path: Path) -> None:
    key = "s3cr3t/with 'quotes' & more"
    ended = command("run", recipe_file(), FAKES="train=secret", FAKE_API_KEY=key)
    assert ended.returncode == 1 and "[FAKE_API_KEY hidden]" in ended.stderr
    run = only(tmp_path / "runs")
    for path in run.rglob("*"):
        if path.is_file():
            assert "s3cr3t" not in path.read_text("utf-8", "replace"), path
    assert "s3cr3t" not in ended.stdout + ended.stderr
    assert "[FAKE_API_KEY hidden]" in (run / "debug.log").read_text()


@pytest.mark.parametrize(
    "text",
    [
        "hf_" + "aB3" * 11,
        "sk-proj-" + "x_9" * 12,
        "Authorization: Bearer abc.def-ghi_jkl",
        "https://me:pa55word@host.example/x",
        "ghp_" + "a1" * 18,
    ],
)
def test_tokens_are_known_by_their_shape(text: str) -> None:
    hidden = masked(f"before {text} after", {})
    assert text not in hidden and "hidden]" in hidden and hidden.startswith("before ") and hidden.endswith(" after")


def test_what_is_no_secret_stays() -> None:
    environment = {"TOKENIZERS_PARALLELISM": "false12", "KEY": "1", "PATH": "/usr/bin", "SSH_AUTH_SOCK": "/tmp/agent.1"}
    text = "1 of 12 at /usr/bin, false12, /tmp/agent.1: basic facts, bearer of news, sk-learn, hf_hub"
    assert masked(text, environment) == text
    lines = masked("x MIIEvQIBADANBgkqhkiG y", {"PRIVATE_KEY": "---BEGIN---\nMIIEvQIBADANBgkqhkiG\n---END---"})
    assert lines == "x [PRIVATE_KEY hidden] y"


# ---------------------------------------------------------------- causes and remedies


class _Fake(Exception):
    pass


def _named(name: str, text: str = "", base: type[Exception] = RuntimeError) -> Exception:
    return type(name, (base,), {})(text)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (_named("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB"), "gpu-memory"),
        (RuntimeError("CUDA error: out of memory"), "gpu-memory"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"), "gpu-memory"),
        (RuntimeError("cuBLAS error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), "gpu-memory"),
        (MemoryError(), "memory"),
        (_named("_ArrayMemoryError", "Unable to allocate 7.45 GiB for an array", MemoryError), "memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "memory"),
        (RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed."), "memory"),
        (OSError(12, "Cannot allocate memory"), "memory"),
        (OSError(28, "No space left on device"), "disk"),
        (OSError(122, "Disk quota exceeded"), "disk"),
        (_named("SafetensorError", "I/O error: No space left on device (os error 28)", Exception), "disk"),
        (RuntimeError("CUDA error: device-side assert triggered"), "gpu"),
        (TimeoutError("read"), "timeout"),
        (_named("ReadTimeout", "The read operation timed out", Exception), "timeout"),
        (ConnectionResetError(104, "Connection reset by peer"), "network"),
        (_named("ConnectError", "[Errno -2] Name or service not known", Exception), "network"),
        (FileNotFoundError(2, "No such file", "/data/CUDA out of memory"), "other"),
        (ValueError("the template is wrong"), "other"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{type(value).__name__}-{value}"[:40],
)  # fmt: skip
def test_the_cause_of_an_error(error: Exception, cause: str) -> None:
    assert cause_of(error).name == cause
    wrapped = _Fake("training failed")
    wrapped.__cause__ = error  # as a library does it
    assert cause_of(wrapped).name == cause


def test_each_cause_has_a_section_in_the_docs() -> None:
    page = (Path(__file__).parents[1] / "docs" / "troubleshooting.md").read_text("utf-8")
    found = [cause for cause in vars(causes).values() if isinstance(cause, causes.Cause) and cause.words]
    assert len(found) == 6
    for cause in found:
        assert f"\n## {cause.words}\n" in page


@pytest.mark.parametrize("kind", ["gpu-memory", "memory"])
def test_out_of_memory_names_commands_that_work(command: Command, recipe_file: Make, tmp_path: Path, kind: str) -> None:
    ended = command("run", recipe_file(), FAKES=f"train={kind}")
    assert ended.returncode == 1
    run = only(tmp_path / "runs")
    whole = "the GPU has not enough memory" if kind == "gpu-memory" else "this machine has not enough memory"
    assert whole in ended.stderr
    shown = text_of(page_of(run))
    resumed = f"ftkit run --resume {run} --set backend.part_size=2 --set backend.parts=2"
    again = f"ftkit run {run}/recipe.yaml --set 'backend.base_model=small one'"
    for line in (resumed, again, "nvidia-smi" if kind == "gpu-memory" else "free -h"):
        assert line in shown, line
    assert "--set backend.part_size=2" in ended.stderr
    assert carried_out(again, command).returncode == 0
    assert carried_out(resumed, command, FAKES="train=gpu-memory").returncode == 0
    assert read_json(run / "run.json")["remedies"] == []


def test_advice_that_fails_does_not_hide_the_failure(
    recipe_file: Make, fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKES", "train=crash")
    with pytest.raises(RunFailed, match="the fake trainer broke"):
        ftkit.run(recipe_file(), out=tmp_path / "runs", console=QUIET)


def test_a_full_disk_is_explained(recipe_file: Make, fakes: ModuleType, tmp_path: Path) -> None:
    from ftkit.causes import Failure
    from ftkit.report.failure import command_for, remedies_of

    run = ftkit.run(recipe_file(), out=tmp_path / "a folder", console=QUIET).directory
    remedies = remedies_of(Failure("disk", "train"), RunDirectory(run.dir), None)
    for remedy in remedies:
        done = subprocess.run(command_for(remedy, run.dir), shell=True, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout, done


# ---------------------------------------------------------------- resumed with other options


@pytest.fixture
def stopped(command: Command, recipe_file: Make, tmp_path: Path) -> Path:
    """A run that failed in its training."""
    assert command("run", recipe_file(), FAKES="train=crash").returncode == 1
    return only(tmp_path / "runs")


def test_resumed_with_options_that_change_no_number(command: Command, stopped: Path) -> None:
    before = (stopped / "baseline" / "predictions.jsonl").stat().st_mtime_ns
    changes = ("--set", "backend.part_size=2", "--set", "backend.parts=2", "--set", "backend.patience=9")
    ended = command("run", "--resume", stopped, *changes)
    assert ended.returncode == 0 and "backend.part_size: 4 -> 2" in ended.stderr, ended.stderr
    assert (stopped / "baseline" / "predictions.jsonl").stat().st_mtime_ns == before
    record = read_json(stopped / "run.json")
    assert [(c["key"], c["from"], c["to"], c["stage"]) for c in record["changes"]] == [
        ("backend.part_size", 4, 2, "train"),
        ("backend.parts", 1, 2, "train"),
        ("backend.patience", 1.0, 9.0, "train"),
    ]
    assert not [w for w in record["warnings"] if "changed since" in w]
    notes = read_json(stopped / "report.json")["notes"]
    assert "resumed with backend.part_size 2 instead of 4 (in train)" in notes
    assert "part_size: 2" in (stopped / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["backend.skill=0.1"], "--set backend.skill: cannot change in a run that has begun: it may change measured"),
        (["backend.part_size=2"], "a step would have 2 rows, not 4"),
        (["seed=3"], "the run began with its own seed"),
        (["dataset.splits.test=3"], "the rows of a run are those in its directory"),
        (["generation.max_new_tokens=3"], "answered with its own settings"),
        (["evaluator.ignore_case=true"], "scored by its own evaluators"),
        (["name=another"], "the run directory bears it"),
        (["backend.plugin=fake-echo"], "cannot change"),
        (["backend.part_sise=2"], "part_size"),
        (["backend.parts=none"], "parts"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_a_resumed_run_does_not_accept(command: Command, stopped: Path, changes: list[str], says: str) -> None:
    before = {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()}
    ended = command("run", "--resume", stopped, *(word for text in changes for word in ("--set", text)))
    assert ended.returncode == 2 and says in ended.stderr, ended.stderr
    assert {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()} == before
    if "cannot change in a run" in ended.stderr:  # what may change is named, and what to do instead
        assert f"ftkit run {stopped}/recipe.yaml --set {changes[0]}" in ended.stderr
    if changes[0].startswith("backend.skill"):
        assert "batch_size, part_size, parts, patience" in ended.stderr


def test_all_that_is_refused_is_said_at_once(command: Command, stopped: Path) -> None:
    ended = command("run", "--resume", stopped, "--set", "seed=3", "--set", "backend.skill=0.1")
    assert "seed" in ended.stderr and "backend.skill" in ended.stderr


def test_other_batches_of_answers_are_measured_again(command: Command, recipe_file: Make, tmp_path: Path) -> None:
    """Answers depend on the batch that they are made in: base and tuned model are measured in the same ones."""
    recipe = recipe_file(controls=["fake-echo"])
    assert command("run", recipe, FAKES="train=crash").returncode == 1
    run = only(tmp_path / "runs")
    control = (run / "control-fake-echo" / "predictions.jsonl").stat().st_mtime_ns
    ended = command("run", "--resume", run, "--set", "backend.batch_size=1")
    assert ended.returncode == 0 and "measured again in batches of 1: baseline" in ended.stderr, ended.stderr
    plans = [read_json(run / name / "plan.json") for name in ("baseline", "tuned")]
    assert plans[0] == plans[1] and all(len(batch) == 1 for batch in plans[0])
    assert (run / "control-fake-echo" / "predictions.jsonl").stat().st_mtime_ns == control
    steps = [row["step"] for row in ftkit.open_run(run).directory.log_rows() if row["event"] == "step"]
    assert steps == [1, 2, 3, 4, 5, 6]  # training went on
    fresh = command("run", recipe, "--set", "backend.batch_size=1", "--out", "fresh", "--no-reuse")
    assert fresh.returncode == 0
    whole = only(tmp_path / "fresh")
    for name in ("baseline", "tuned"):
        assert (run / name / "predictions.jsonl").read_bytes() == (whole / name / "predictions.jsonl").read_bytes()


def test_out_of_memory_while_the_base_model_answers(command: Command, recipe_file: Make, tmp_path: Path) -> None:
    assert command("run", recipe_file(), FAKES="baseline=gpu-memory").returncode == 1
    run = only(tmp_path / "runs")
    assert "Failed in baseline" in text_of(page_of(run))
    ended = command("run", "--resume", run, "--set", "backend.batch_size=1", FAKES="baseline=gpu-memory")
    assert ended.returncode == 0, ended.stderr


def test_trackers_and_notes_may_change(command: Command, stopped: Path, tmp_path: Path) -> None:
    tracker = f"tracking=[{{plugin: fake-recorder, file: {tmp_path / 'told'}}}]"
    ended = command("run", "--resume", stopped, "--set", tracker, "--set", "note=went on with less memory")
    assert ended.returncode == 0 and (tmp_path / "told").exists(), ended.stderr
    assert "went on with less memory" in read_json(stopped / "report.json")["notes"]


def test_a_run_that_is_done_takes_no_changes(command: Command, recipe_file: Make, tmp_path: Path) -> None:
    assert command("run", recipe_file()).returncode == 0
    ended = command("run", "--resume", only(tmp_path / "runs"), "--set", "backend.patience=2")
    assert ended.returncode == 2 and "is done" in ended.stderr


def test_the_same_value_is_no_change(stopped: Path, fakes: ModuleType) -> None:
    record = ftkit.resume(stopped, console=QUIET, overrides=["backend.part_size=4"]).directory.record()
    assert record.status == "done" and record.changes == ()
