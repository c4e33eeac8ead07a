"""What `ftkit doctor` tries of the local trainers, where the thing that it tries does not work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from ftkit_trl import _doctor
from ftkit_trl.options import LoraOptions

OLD_GPU = {"name": "Tesla T4", "capability": [7, 5], "memory": 16 * 10**9, "bf16": False}
CPU_BUILD = {"version": "2.13.0+cpu", "built_for": None, "gpus": [], "why": ""}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Let no test see what another one's environment gave."""
    _doctor._probe.cache_clear()
    yield
    _doctor._probe.cache_clear()


def recipe_options(**more: Any) -> LoraOptions:
    return LoraOptions(base_model="acme/tiny", **more)


def test_two_processes_that_do_not_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    found = _doctor._handshake(None)
    assert found.ok is False and "nosuch0" in found.detail and found.fix


def test_an_attention_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = _doctor._attention(recipe_options(attn_implementation="flash_attention_2"))
    assert found.ok is False and found.fix == "--set backend.attn_implementation=sdpa"
    (found,) = _doctor._attention(recipe_options(attn_implementation="eager"))
    assert found.ok is True, found


def driver(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "nvidia-smi").write_text("#!/bin/sh\necho 535.104.05\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_gpu_that_pytorch_does_not_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(tmp_path, monkeypatch)
    (found,) = _doctor._gpus(CPU_BUILD, None)
    assert found.ok is False and "535.104.05" in found.detail and found.fix and "built for CPUs" in found.fix
    (found,) = _doctor._gpus({**CPU_BUILD, "built_for": "13.0", "why": "driver too old"}, None)
    assert found.ok is False and "driver too old" in found.detail and found.fix and "update" in found.fix
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (found,) = _doctor._gpus(CPU_BUILD, None)
    assert found.ok is None and found.fix is None


def test_a_gpu_without_bf16_and_one_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(tmp_path, monkeypatch)
    facts = {**CPU_BUILD, "gpus": [OLD_GPU, {**OLD_GPU, "error": "no kernel image is available"}]}
    first, second = _doctor._gpus(facts, recipe_options())
    assert first.ok is True and "compute capability 7.5, no bf16" in first.detail and "535.104.05" in first.detail
    assert second.ok is False and "no kernel image" in second.detail
    first, _ = _doctor._gpus(facts, recipe_options(dtype="bfloat16"))
    assert first.ok is False and first.fix == "--set backend.dtype=auto"
