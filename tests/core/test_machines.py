"""Machines that are not here: names, sizes, several GPUs, and names that are not known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import ftkit
from ftkit.api import Backend
from ftkit.errors import InputError
from ftkit.machines import GPUS, machine
from ftkit.records import Machine

Command = Callable[..., Any]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a10g", Machine("a10g", 23028 * 2**20)),
        ("A10G", Machine("a10g", 23028 * 2**20)),
        ("24GB", Machine("24gb", 24 * 10**9)),
        ("22.5 GiB", Machine("22.5 gib", int(22.5 * 2**30))),
        ("4x24GB", Machine("24gb", 24 * 10**9, 4)),
        ("8xh100", Machine("h100", 81559 * 2**20, 8)),
        ("RTX 4090", Machine("rtx4090", 24564 * 2**20)),
        ("4090", Machine("rtx4090", 24564 * 2**20)),
        ("NVIDIA L4", Machine("l4", 23034 * 2**20)),
    ],
)
def test_names(text: str, expected: Machine) -> None:
    assert machine(text) == expected


@pytest.mark.parametrize(
    ("text", "near"),
    [("a100g", "a10g"), ("h10", "h100"), ("rtx4900", "rtx4090"), ("", None), ("x", None), ("0GB", None)],
)
def test_unknown_names(text: str, near: str | None) -> None:
    with pytest.raises(InputError) as caught:
        machine(text)
    if near:
        assert f"did you mean {near}?" in str(caught.value) or near in str(caught.value)
    if text != "0GB":
        assert all(name in str(caught.value) for name in GPUS)


def test_every_listed_gpu_is_read() -> None:
    assert all(machine(name).name == name for name in GPUS)


def test_a_backend_is_told_of_the_machine(
    recipe: Callable[..., Any], fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend that does not look at it works as before; one that does finds it in `check` and `estimate`."""
    seen = []

    def estimate(self: Backend, task: object, trains: bool = True) -> dict[str, Any]:
        seen.append(self.machine)
        return {"memory": "needs about 1.0 GB a GPU; a10g has 24.1 GB: it fits"}

    assert ftkit.check(recipe(), gpu="a10g").ok
    monkeypatch.setattr(fakes.FakeBackend, "estimate", estimate)
    ftkit.check(recipe(), gpu="2xa10g")
    ftkit.check(recipe())
    assert seen == [Machine("a10g", 23028 * 2**20, 2), None]


def test_the_command(command: Command, recipe_file: Callable[..., Any]) -> None:
    path = recipe_file()
    unknown = command("check", path, "--gpu", "a100g")
    assert unknown.returncode == 2
    assert "no GPU of this name is known" in unknown.stderr
    assert command("check", path, "--gpu", "t4").returncode == 0
    assert command("run", path, "--dry-run", "--gpu", "t4").returncode == 0
    alone = command("run", path, "--gpu", "t4")
    assert alone.returncode == 2
    assert "--dry-run" in alone.stderr
