"""What preflight finds in a managed recipe: key, model, permission to train, the rows, the price."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from openai_kit import finished, recipe, run, stub, write_rows
from openai_stub import KEY, MODEL, Stub

import ftkit
from ftkit.errors import InputError
from ftkit.files import read_jsonl
from ftkit.recipe.load import load_recipe
from ftkit.records import Finding

__all__ = ["stub"]


def check(stub: Stub, tmp_path: Path, **backend: Any) -> list[Finding]:
    """Return what preflight finds in a recipe."""
    from ftkit.run.prepare import preflight

    return preflight(load_recipe(recipe(stub, write_rows(tmp_path / "rows"), **backend))).findings


def errors(found: list[Finding]) -> list[str]:
    return [f"{f.message} | {f.hint}" for f in found if f.level == "error"]


def test_preflight_is_free_and_reports_the_shutdown_date(stub: Stub, tmp_path: Path) -> None:
    found = check(stub, tmp_path)
    assert errors(found) == []
    assert any("is shut down on 2027-01-14" in f.message for f in found)
    assert not [s for s in stub.requests if s.method != "GET"]


@pytest.mark.parametrize("key", [None, "sk-wrong"])
def test_a_missing_or_wrong_key_is_reported_without_the_key(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    if key:
        monkeypatch.setenv("OPENAI_API_KEY", key)
        (said,) = errors(check(stub, tmp_path))
        assert said.startswith("OpenAI does not accept the key in OPENAI_API_KEY (401)") and "sk-wrong" not in said
    else:  # on loopback a key may be missing: the server says whether it needs one
        (said,) = errors(check(stub, tmp_path, base_url="http://provider.invalid/v1"))
        assert said.startswith("no API key: OPENAI_API_KEY is not set") and ".env" in said


def test_the_key_may_stand_in_a_dotenv_file(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    (tmp_path / ".env").write_text(f"MY_KEY={KEY}\n")
    finished(run(stub, tmp_path, api_key_env="MY_KEY"), stub)
    assert "MY_KEY" not in os.environ


def test_an_unknown_model_and_similar_names(stub: Stub, tmp_path: Path) -> None:
    (said,) = errors(
        check(
            stub,
            tmp_path,
            base_model="gpt-4o-mini-2024-07-81",
            prices={"gpt-4o-mini": {"training": 1, "input": 1, "output": 1}},
        )
    )
    assert "no model 'gpt-4o-mini-2024-07-81'" in said and MODEL in said


@pytest.mark.parametrize(("days", "level"), [(-1, "error"), (10, "warning"), (400, "note")])
def test_a_model_that_shuts_down_soon(stub: Stub, tmp_path: Path, days: int, level: str) -> None:
    import datetime

    last = datetime.date.today() + datetime.timedelta(days=days)
    stub.add_model(MODEL, last.isoformat())
    assert [f.level for f in check(stub, tmp_path) if last.isoformat() in f.message] == [level]


def test_training_that_is_not_allowed_is_reported_beforehand_with_the_probe(stub: Stub, tmp_path: Path) -> None:
    assert errors(check(stub, tmp_path, probe_training=True)) == [] and not stub.jobs
    error = {
        "message": "Fine-tuning is not available to your organization",
        "code": "training_not_available",
        "type": "x",
    }
    stub.fail("POST", "/v1/fine_tuning/jobs", status=403, error=error)
    (said,) = errors(check(stub, tmp_path, probe_training=True))
    assert "training_not_available" in said and "2027-01-06" in said and "recipes/samsum.yaml" in said


def test_lint_problems_stop_a_run_with_their_lines(stub: Stub, tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "rows")
    rows = list(read_jsonl(folder / "train.jsonl"))
    rows[4]["input"] += " <|endoftext|>"
    rows[7]["input"] += " <|endoftext|>"
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    from ftkit.run.prepare import preflight

    found = errors(preflight(load_recipe(recipe(stub, folder))).findings)
    assert any("train, lines 5, 8: the text contains the special token <|endoftext|>" in e for e in found)


def test_the_price_is_confirmed_or_refused(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ftkit.console import Console

    made = recipe(stub, write_rows(tmp_path / "rows"))
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(InputError, match="nothing was spent"):
        ftkit.run(made, out=tmp_path / "runs", console=Console())
    assert stub.answered == 0 and not stub.jobs
    (said,) = errors(check(stub, tmp_path, max_usd=0.0001))
    assert "above max_usd" in said and "as of autumn 2026" in said
    (said,) = errors(check(stub, tmp_path, max_usd=1.0, prices={"other": {"training": 1, "input": 1, "output": 1}}))
    assert "the price is not known" in said
