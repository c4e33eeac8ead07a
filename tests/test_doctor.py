"""`ftkit doctor` on machines that are really broken: a wrong library, no compiler, no network, a bad token."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hub import TOKEN, Hub

import ftkit
from ftkit import probing, versions
from ftkit.records import Diagnosis

ROOT = Path(__file__).parents[1]
HEADINGS = re.findall(r"^## (.*)$", (ROOT / "docs" / "troubleshooting.md").read_text("utf-8"), re.M)
ROWS = [{"input": f"One {i}. Two.", "target": f"One {i}."} for i in range(6)]
DATA, MODEL = "acme/chats", "acme/tiny"


def rules(folder: Path, **changes: Any) -> Path:
    """Write a recipe that needs no library: a rule answers, and rows of this machine are measured."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    made = {
        "name": "rules",
        "dataset": {"path": "rows.jsonl", "splits": {"train": 2, "validation": 2, "test": 2}},
        "backend": "first-sentences",
        "evaluator": "exact-match",
        **changes,
    }
    (folder / "recipe.yaml").write_text(json.dumps(made))
    return folder / "recipe.yaml"


def trainer(plugin: str, **options: Any) -> dict[str, Any]:
    return {"plugin": plugin, "base_model": "package:ftkit_quickstart/model", **options}


def doctor(recipe: Path | None, *arguments: str, **environment: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit status and the verdicts by name; every section that is named must be there."""
    command = [sys.executable, "-m", "ftkit", "doctor", *([str(recipe)] if recipe else []), "--json", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=400, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] is (done.returncode == 0)
    for verdict in found["verdicts"]:
        for diagnosis in verdict["diagnoses"]:
            assert diagnosis["see"] in (None, *HEADINGS)
            assert diagnosis["ok"] is not False or diagnosis["fix"], diagnosis
    return done.returncode, {verdict["name"]: verdict for verdict in found["verdicts"]}


def of(verdict: dict[str, Any], what: str) -> dict[str, Any]:
    return next(d for d in verdict["diagnoses"] if d["what"] == what)


# ---------------------------------------------------------------- a broken library


def broken_library(folder: Path, name: str, text: str) -> str:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(text)
    return str(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('__version__ = "0.50.2"\nraise OSError("libbitsandbytes_cuda999.so: cannot open")', "cannot open"),
        ('__version__ = "0.50.2"\nimport os\nos.abort()', "SIGABRT"),
        ('__version__ = "0.50.2"\n', "bitsandbytes"),  # it can be imported, and multiplies nothing
    ],
)
def test_a_bitsandbytes_that_does_not_multiply_is_a_finding_of_qlora(tmp_path: Path, text: str, said: str) -> None:
    pytest.importorskip("bitsandbytes")
    recipe = rules(tmp_path, backend=trainer("trl-sft-qlora"))
    path = broken_library(tmp_path / "front", "bitsandbytes", text)
    status, found = doctor(recipe, PYTHONPATH=path)
    assert status == 1 and found["trl-sft-qlora"]["ok"] is False
    assert said in of(found["trl-sft-qlora"], "4-bit matmul")["detail"]
    assert path in found["trl-sft-qlora"]["fix"] and "PYTHONPATH" in found["trl-sft-qlora"]["fix"]


@pytest.mark.parametrize(
    ("text", "said"),
    [("raise ImportError('undefined symbol')", "undefined symbol"), ("import os\nos.abort()", "SIGABRT")],
)
def test_a_library_that_cannot_be_imported_is_a_finding_of_its_plugin(tmp_path: Path, text: str, said: str) -> None:
    path = broken_library(tmp_path / "front", "rouge_score", text)
    status, found = doctor(rules(tmp_path, evaluator="rouge"), PYTHONPATH=path)
    wrong = of(found["rouge"], "modules")
    assert status == 1 and "rouge_score cannot be imported" in wrong["detail"] and said in wrong["detail"]
    assert wrong["fix"] == f"remove {path} from PYTHONPATH: it hides the rouge_score that pip installed"


def test_a_pytorch_that_crashes(tmp_path: Path) -> None:
    path = broken_library(tmp_path / "front", "torch", "import os\nos.abort()")
    status, found = doctor(rules(tmp_path, backend=trainer("trl-sft-lora")), PYTHONPATH=path)
    wrong = of(found["trl-sft-lora"], "PyTorch")
    assert status == 1 and "SIGABRT" in wrong["detail"] and path in wrong["fix"]


def test_a_library_that_is_too_old_is_named_with_the_one_that_needs_it(tmp_path: Path) -> None:
    pytest.importorskip("rouge_score")
    front = Path(broken_library(tmp_path / "front", "rouge_score", ""))
    (front / "rouge_score-0.0.1.dist-info").mkdir()
    (front / "rouge_score-0.0.1.dist-info" / "METADATA").write_text("Name: rouge_score\nVersion: 0.0.1\n")
    (front / "rouge_score-0.0.1.dist-info" / "top_level.txt").write_text("rouge_score\n")
    status, found = doctor(rules(tmp_path, evaluator="rouge"), PYTHONPATH=str(front))
    clash = of(found["this machine"], "packages")
    assert status == 1 and clash["detail"] == "ftkit 0.1.0 needs rouge-score>=0.1.2, and rouge-score 0.0.1 is installed"
    assert "PYTHONPATH" in clash["fix"] and clash["see"] == "version mismatch"
    assert doctor(rules(tmp_path), PYTHONPATH=str(front))[0] == 0, "this recipe does not need it"


def test_the_tested_versions_are_those_of_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert (
        f"torch=={versions.tested_versions()['torch']}" in lines and len(versions.tested_versions()) == len(lines) - 1
    )


# ---------------------------------------------------------------- no compiler


def test_deepspeed_without_a_compiler(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    backend = trainer("trl-sft-lora", launch={"processes": 1, "deepspeed": "zero2"})
    recipe = rules(tmp_path, backend=backend)
    (tmp_path / "bin").mkdir()
    status, found = doctor(recipe, PATH=str(tmp_path / "bin"))
    chain = of(found["trl-sft-lora"], "DeepSpeed's build chain")
    assert status == 1 and chain["ok"] is False and "g++" in chain["detail"] and chain["see"] == "missing compiler"
    assert found["trl-sft-lora"]["fix"] == chain["fix"]


def test_a_compiler_that_compiles_nothing(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    for name in ("g++", "ninja"):
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text("#!/bin/sh\necho 'fatal error: vector: no such file' >&2\nexit 1\n")
        (tmp_path / "bin" / name).chmod(0o755)
    code = "from ftkit_trl._doctor import _build_chain; print(_build_chain())"
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert "g++ cannot compile a program: fatal error: vector" in done.stdout


# ---------------------------------------------------------------- the disk


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    inside = str(tmp_path / "file" / "inside")
    status, found = doctor(from_hub(tmp_path), "--out", inside, HF_HOME=inside, HF_ENDPOINT="http://127.0.0.1:9")
    assert status == 1
    for what, setting in (("disk of run directories", "--out"), ("disk of downloads", "HF_HOME")):
        said = of(found["this machine"], what)
        assert said["ok"] is False and setting in said["fix"] and str(tmp_path / "file") in said["detail"]


# ---------------------------------------------------------------- the hub


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


def from_hub(folder: Path) -> Path:
    return rules(folder, dataset={"path": DATA})


def test_no_network(tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": ""}
    begin = time.monotonic()
    status, found = doctor(from_hub(tmp_path), **environment)
    assert time.monotonic() - begin < 60
    hub = of(found["this machine"], "hub")
    assert status == 1 and hub["ok"] is False and "127.0.0.1:9" in hub["detail"] and "refused" in hub["detail"]
    assert hub["see"] == "the hub cannot be reached" and found["this machine"]["fix"] == hub["fix"]

    cached = tmp_path / "home" / "hub" / "datasets--acme--chats" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    (cached / "rows.jsonl").write_text("{}")
    status, found = doctor(from_hub(tmp_path), **environment)
    assert status == 0 and "in the cache" in of(found["this machine"], "hub")["detail"]


def test_a_recipe_without_the_hub_does_not_ask_it(tmp_path: Path) -> None:
    status, found = doctor(rules(tmp_path), HF_ENDPOINT="http://127.0.0.1:9")
    assert status == 0 and set(found) == {"this machine", "first-sentences", "exact-match"}
    assert not [d for d in found["this machine"]["diagnoses"] if d["what"] in ("hub", "disk of downloads")]


def test_tokens_and_what_they_may_read(tmp_path: Path, hub: Hub) -> None:
    repo = hub.add("datasets", DATA)
    repo.commit({"test.jsonl": b"{}\n"})
    recipe, home = from_hub(tmp_path), tmp_path / "home"

    status, found = doctor(recipe, **hub.variables(home, "hf_wrong_and_secret"))
    said = of(found["this machine"], "hub")
    assert status == 1 and "does not know the token" in said["detail"] and "HF_TOKEN" in said["fix"]
    assert "hf_wrong" not in json.dumps(found)

    status, found = doctor(recipe, **hub.variables(home))
    assert status == 0 and of(found["this machine"], f"dataset '{DATA}'")["ok"] is True

    repo.gated = True
    status, found = doctor(recipe, **hub.variables(home))
    said = of(found["this machine"], f"dataset '{DATA}'")
    assert status == 1 and "gated" in said["detail"] and "accept its licence" in said["fix"]
    status, found = doctor(recipe, **hub.variables(home, TOKEN))
    assert status == 0 and of(found["this machine"], "hub")["detail"].endswith("knows the token")


# ---------------------------------------------------------------- the command


def test_for_people(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ftkit", "doctor", str(from_hub(tmp_path))]
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 1
    assert "this machine: not usable" in done.stdout and "first-sentences (backend): usable" in done.stdout
    assert "  wrong hub: " in done.stdout and "  fix: connect" in done.stdout
    assert '  see: docs/troubleshooting.md, "the hub cannot be reached"' in done.stdout


def test_a_recipe_with_a_mistake_is_the_input_that_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ftkit", "doctor", str(rules(tmp_path, sed=1))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "did you mean `seed`" in done.stderr


def test_the_process_of_the_doctor_imports_no_heavy_library(tmp_path: Path) -> None:
    recipe = rules(tmp_path, backend=trainer("trl-sft-lora"))
    code = f"import sys, ftkit; ftkit.doctor({str(recipe)!r}); print({{'torch', 'transformers', 'trl'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# ---------------------------------------------------------------- what a plugin says


def verdict_of(fakes: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, diagnose: Any) -> Any:
    monkeypatch.setattr(fakes.Echo, "diagnose", classmethod(diagnose))
    found = ftkit.doctor(rules(folder, backend=fakes.Echo.name))
    return next(v for v in found.verdicts if v.name == fakes.Echo.name)


def test_the_options_of_the_recipe_reach_the_plugin(
    fakes: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def diagnose(cls: type, options: Any = None) -> Iterator[Diagnosis]:
        yield Diagnosis("options", isinstance(options, cls.Options))  # type: ignore[attr-defined]
        yield Diagnosis("gpu", None, "none")

    verdict = verdict_of(fakes, monkeypatch, tmp_path, diagnose)
    assert verdict.ok is True and [d.what for d in verdict.diagnoses] == ["options", "gpu"]


def test_a_plugin_whose_check_fails_or_says_something_else(
    fakes: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def raises(cls: type, options: Any = None) -> Iterator[Diagnosis]:
        yield Diagnosis("first", True)
        raise KeyError("oops")

    for diagnose, said in (
        (raises, "KeyError: 'oops'"),
        (lambda cls, options=None: ["all well"], "yielded a str"),
        (lambda cls: [], "TypeError"),
    ):
        verdict = verdict_of(fakes, monkeypatch, tmp_path, diagnose)
        assert verdict.ok is False and said in verdict.diagnoses[-1].detail
    assert verdict_of(fakes, monkeypatch, tmp_path, lambda cls, options=None: None).ok is True
    no_login = [Diagnosis("key", None, "not set", "log in")]
    assert verdict_of(fakes, monkeypatch, tmp_path, lambda cls, options=None: no_login).ok is None


# ---------------------------------------------------------------- time limits


def test_what_does_not_end_is_left_alone_and_its_processes_are_ended(tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within 0 s"):
        probing.within(0.1, lambda: time.sleep(30))
    sleeper = "import subprocess, sys, pathlib; p = subprocess.Popen(['sleep', '300']); "
    sleeper += f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(p.pid)); p.wait()"
    found = probing.in_python(["-c", sleeper], 5)
    assert found.result is None and "not finished after 5 s" in found.error and time.monotonic() - begin < 20
    child = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    last = time.monotonic() + 30  # the system may need a moment to end what was killed
    while child.exists() and child.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < last, "the child is alive"
        time.sleep(0.05)


def test_no_header_is_shown_where_it_is_refused() -> None:
    with pytest.raises(OSError, match="not allowed") as refused:
        probing.http_status("http://127.0.0.1:9/", {"Authorization": "Bearer secret\nX: y"})
    assert "secret" not in str(refused.value)
