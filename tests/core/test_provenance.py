"""What lock.json records of versions, variables and code, what a resumed run says, and what a joint report says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ftkit
from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.files import read_json, write_json
from ftkit.report.build import build_report
from ftkit.report.differences import differences

Make = Callable[..., Path]
QUIET = Console(silent=True)


# ---------------------------------------------------------------- versions


def package_of(module: str, *path: Path, prelude: str = "") -> dict[str, Any]:
    """Ask a process of its own, whose PYTHONPATH begins with `path`."""
    code = f"""
import json, sys
sys.path[:0] = {[str(p) for p in path]!r}
{prelude}
from ftkit.versions import package_of, packages
found = package_of({module!r})
listed = packages()
print(json.dumps({{"found": found and [found.version, found.origin],
                   "listed": {{k: [v.version, v.origin] for k, v in listed.items()}}}}))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return json.loads(out)


def overlay(folder: Path, module: str, text: str, file: str = "__init__.py") -> Path:
    (folder / module).mkdir(parents=True)
    (folder / module / "__init__.py").write_text("")
    (folder / module / file).write_text(text)
    return folder


@pytest.mark.parametrize("file", ["__init__.py", "version.py", "_version.py", "__about__.py"])
def test_an_overlay_is_named_by_its_own_version(tmp_path: Path, file: str) -> None:
    found = package_of("click", overlay(tmp_path, "click", '__version__ = "99.1"\n', file))
    assert found["found"] == ["99.1", "overlay"] == found["listed"]["click"]


def test_an_overlay_of_one_file_and_a_distribution_of_another_name(tmp_path: Path) -> None:
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml" / "__init__.py").write_text("__version__ = '0.1'\n")
    found = package_of("yaml", tmp_path)
    assert found["found"] == ["0.1", "overlay"]
    assert [v for k, v in found["listed"].items() if k.lower() == "pyyaml"] == [["0.1", "overlay"]]


def test_an_overlay_with_metadata_as_pip_target_writes_it(tmp_path: Path) -> None:
    overlay(tmp_path, "click", "")
    info = tmp_path / "click-98.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: click\nVersion: 98.0\n")
    found = package_of("click", tmp_path)
    assert found["found"] == ["98.0", "overlay"] == found["listed"]["click"]


def test_a_version_that_is_computed_is_read_from_the_loaded_module(tmp_path: Path) -> None:
    overlay(tmp_path, "click", "__version__ = '.'.join(['97', '0'])\n")
    assert package_of("click", tmp_path)["found"] == ["unknown", "overlay"]
    assert package_of("click", tmp_path, prelude="import click")["found"] == ["97.0", "overlay"]


def test_what_is_installed_or_absent() -> None:
    found = package_of("click")
    assert found["found"][1] == "installed"
    assert package_of("no_such_module")["found"] is None
    assert found["listed"]["ftkit"][1] == "editable"


# ---------------------------------------------------------------- what a run records


def test_the_lock_holds_variables_and_code_and_no_secret_or_path(
    recipe_file: Make, command: Callable[..., Any], tmp_path: Path
) -> None:
    variables = {
        "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "AVX2", "DNNL_VERBOSE": "0", "ATEN_CPU_CAPABILITY": "avx2",
        "OPENBLAS_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NVIDIA_TF32_OVERRIDE": "0",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0",
    }  # fmt: skip
    hidden = {"CUDA_API_KEY": "s3cret", "MKL_TOKEN": "s3cret", "OMP_PASSWORD": "s3cret", "NVIDIA_SECRET": "s3cret"}
    done = command(
        "run", recipe_file(), "--out", tmp_path / "runs", CUDA_HOME="/usr/local/jane/cuda", **variables, **hidden
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "runs").glob("*/lock.json")
    lock = read_json(path)
    assert variables.items() <= lock["environment"].items()
    assert lock["environment"]["PYTHONPATH"] == "set" and lock["environment"]["CUDA_HOME"] == "set"
    assert "s3cret" not in path.read_text() and "jane" not in path.read_text()
    assert lock["packages"]["ftkit-fakes"] == "0.1" and lock["origins"]["ftkit-fakes"] == "overlay"
    assert set(lock["code"]) == {"ftkit", "backend fake", "evaluator fake-overlap"}
    assert all(len(value) == 64 for value in lock["code"].values())


@pytest.fixture
def killed(recipe_file: Make, command: Callable[..., Any], tmp_path: Path) -> Path:
    """A run that failed in its baseline."""
    done = command("run", recipe_file(), "--out", tmp_path / "runs", FAKES="interrupt=0", MKL_CBWR="AVX2")
    assert done.returncode not in (0, 2), done.stderr
    (path,) = (tmp_path / "runs").iterdir()
    return path


def test_a_resumed_run_names_what_changed(killed: Path, command: Callable[..., Any]) -> None:
    lock = read_json(killed / "lock.json")
    lock["packages"]["click"] = "1.0"
    lock["code"]["evaluator fake-overlap"] = "0" * 64
    write_json(killed / "lock.json", lock)
    done = command("run", "--resume", killed, MKL_CBWR="COMPATIBLE", OMP_DYNAMIC="true")
    assert done.returncode == 0, done.stderr
    (warning,) = [w for w in read_json(killed / "run.json")["warnings"] if "since this run began" in w]
    for part in (
        "variable MKL_CBWR AVX2 -> COMPATIBLE",
        "variable OMP_DYNAMIC none -> true",
        "click 1.0 -> ",
        "code of evaluator fake-overlap 000000000000 -> ",
    ):
        assert part in warning, warning


def test_a_resumed_run_with_nothing_changed_says_nothing(killed: Path, command: Callable[..., Any]) -> None:
    done = command("run", "--resume", killed, MKL_CBWR="AVX2", HF_HUB_OFFLINE="1")
    assert done.returncode == 0 and "since this run began" not in done.stderr


# ---------------------------------------------------------------- a joint report


def test_a_joint_report_says_in_one_line_in_what_else_its_runs_differ(
    recipe_file: Make, fakes: ModuleType, tmp_path: Path
) -> None:
    runs = [
        ftkit.run(recipe_file(f"{name}.yaml", name=name), out=tmp_path / "runs", console=QUIET)
        for name in ("one", "two")
    ]
    directories = [RunDirectory.open(run.dir) for run in runs]
    assert differences(directories) == [] == differences(directories[:1])
    identity = {
        "model": "acme/tiny",
        "dtype": "float32",
        "device": "cpu",
        "commit": "a" * 40,
        "chat_template": "c" * 64,
    }
    for directory, changed in zip(
        directories, ({}, {"dtype": "bfloat16", "device": "NVIDIA T4", "commit": "b" * 40, "chat_template": "d" * 64}),
        strict=True,
    ):  # fmt: skip
        lock = read_json(directory.path("lock.json"))
        lock["model"] = {**identity, **changed}
        if changed:
            lock["packages"]["numpy"] = "1.0"
            lock["environment"]["MKL_CBWR"] = "AVX2"
        write_json(directory.path("lock.json"), lock)
    (line,) = differences(directories)
    for part in (
        f"chat template (one: {'c' * 12}, two: {'d' * 12})",
        "precision (one: float32, two: bfloat16)",
        "device (one: cpu, two: NVIDIA T4)",
        f"model commit (one: {'a' * 12}, two: {'b' * 12})",
        "versions (numpy ",
        "variables (MKL_CBWR none/AVX2)",
    ):
        assert part in line, line
    assert line in build_report(directories).notes
    lock["model"]["model"] = "acme/other"
    write_json(directories[1].path("lock.json"), lock)
    assert "model commit" not in differences(directories)[0], "two models have no commit in common"
