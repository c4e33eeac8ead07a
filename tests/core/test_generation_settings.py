"""Generation settings in the core: what a backend does not follow is refused; answers at the length limit are counted."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ftkit
from ftkit.console import Console
from ftkit.files import read_json
from ftkit.interface import load
from ftkit.records import GenerationConfig
from ftkit.run.prepare import preflight

QUIET = Console(silent=True)
Make = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({}, []),
        ({"max_new_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 3, "samples": 2}, []),
        ({"stop": [], "top_k": 0, "min_p": 0, "repetition_penalty": 1}, []),
        ({"stop": ["x"]}, ["stop"]),
        ({"temperature": 1, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}, ["top_k", "min_p", "repetition_penalty"]),
    ],
)  # fmt: skip
def test_a_setting_that_a_backend_does_not_follow_stops_the_run(
    settings: dict[str, Any], refused: list[str], recipe: Make, fakes: ModuleType, tmp_path: Path
) -> None:
    asked = recipe(generation=settings, controls=["fake-echo"])
    errors = preflight(load(asked)).errors
    assert [e.key for e in errors] == [f"generation.{name}" for name in refused] * 2
    for name, error in zip(refused, errors, strict=False):
        assert error.message == f"backend 'fake' does not support generation.{name}: it would be ignored"
        assert error.hint is not None and error.hint.startswith(
            f"remove generation.{name}; this backend follows max_new"
        )
    if refused:
        with pytest.raises(ftkit.FtkitError, match=f"does not support generation.{refused[0]}"):
            ftkit.run(asked, out=tmp_path / "runs", console=QUIET)
        assert not list((tmp_path / "runs").glob("*"))


def test_a_backend_says_which_settings_it_follows(
    recipe: Make, fakes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fakes.FakeBackend, "generation_settings", frozenset(GenerationConfig.model_fields))
    assert not preflight(load(recipe(generation={"stop": ["x"], "repetition_penalty": 1.1}))).errors


def test_settings_of_sampling_without_sampling_are_noted(recipe: Make, fakes: ModuleType) -> None:
    def notes(**generation: Any) -> list[str | None]:
        found = preflight(load(recipe(generation=generation))).findings
        return [f.key for f in found if "has no effect" in f.message and f.level == "note"]

    assert notes(top_p=0.5) == ["generation.top_p"] and notes(top_p=0.5, temperature=1) == notes() == []


def test_answers_at_the_length_limit_are_counted_and_shown(
    recipe: Make, fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = fakes.FakeSession._answer

    def limited(self: Any, example: Any, *others: Any) -> Any:
        prediction = answer(self, example, *others)
        return (
            dataclasses.replace(prediction, finish_reason="length") if example.id.endswith(("1", "3")) else prediction
        )

    monkeypatch.setattr(fakes.FakeSession, "_answer", limited)
    run = ftkit.run(recipe(generation={"max_new_tokens": 7}), out=tmp_path / "runs", console=QUIET)
    count = sum(e.id.endswith(("1", "3")) for e in run.directory.task.test)
    assert count > 1
    for system in run.report.systems:
        assert system.n_length_limit == read_json(run.dir / system.stage / "cost.json")["n_length_limit"] == count
        shown = f"{system.name}: {count} of 24 answers end at the length limit (generation.max_new_tokens 7)"
        assert shown in run.report.notes
        for page in ("report.md", "report.html"):
            assert f"{count} of 24 answers end at the length limit" in (run.dir / page).read_text()


def test_a_run_from_before_a_setting_existed_compares_with_one_from_today(
    recipe: Make, fakes: ModuleType, tmp_path: Path
) -> None:
    first, second = (ftkit.run({**recipe(), "name": name}, out=tmp_path, console=QUIET) for name in ("first", "second"))
    for stage in ("baseline", "tuned"):
        path = first.dir / stage / "metrics.json"
        data = read_json(path)
        for name in ("stop", "top_k", "min_p", "repetition_penalty"):
            del data["settings"]["generation"][name]
        path.write_text(json.dumps(data))
    assert len(ftkit.report(first.dir, second.dir, out=tmp_path / "both").systems) >= 3
