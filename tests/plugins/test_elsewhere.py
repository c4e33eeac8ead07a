"""Answers that were made elsewhere join a report: published ones, on real dialogues, by the command line alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftkit.report.costs import Costs

PUBLISHED = Path(__file__).parents[3] / "shared/data/published/llama-3.2-1b-instruct-baseline/predictions.jsonl"


def answers(command: Callable[..., Any], *arguments: object) -> dict[str, Any]:
    done = command(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published predictions are not here (../shared/data/published)")
def test_published_predictions_join_a_run_and_each_other(
    command: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in PUBLISHED.read_text(encoding="utf-8").splitlines()]
    published = json.loads((PUBLISHED.parent / "eval_results.json").read_text())
    data = tmp_path / "data"
    data.mkdir()
    for split, part in (("train", rows[:20]), ("validation", rows[:5]), ("test", rows)):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    other = tmp_path / "other.jsonl"  # another model's answers, in another order, with other names of columns
    lines = [json.dumps({"question": r["dialogue"], "said": r["reference"].split(".")[0], "gold": r["reference"]})
             for r in reversed(rows)]  # fmt: skip
    other.write_text("\n".join(lines), encoding="utf-8")

    recipe = recipe_file(
        dataset={"path": str(data), "columns": {"input": "dialogue", "target": "reference"}}, evaluator="rouge"
    )
    run = answers(command, "run", recipe)["run"]
    scored = answers(
        command,
        "score",
        "--predictions",
        PUBLISHED,
        "--evaluator",
        "rouge",
        "--input",
        "dialogue",
        "--name",
        "llama-1b",
    )
    for name in ("rouge1", "rouge2", "rougeL"):
        assert scored["metrics"][name]["value"] == pytest.approx(published[name], abs=0.0012)
    columns = ("--input", "question", "--prediction", "said", "--target", "gold", "--name", "gpt-4o-mini")
    mini = answers(command, "score", "--predictions", other, "--evaluator", "rouge", *columns)["run"]

    prices = ("--set-price", "gpt-4o-mini.usd_per_1k=0.09", "--set-price", "fake-run.usd_per_hour=0.8")
    report = answers(command, "report", run, scored["run"], mini, *prices, "--out", tmp_path / "report")
    assert [s["name"] for s in report["systems"]] == ["fake-run baseline", "fake-run tuned", "llama-1b", "gpt-4o-mini"]
    tested = {(d["from"], d["to"]): d for d in report["deltas"] if d["metric"] == "rouge1"}
    assert all(d["n"] == 200 and d["p_adjusted"] is not None for d in tested.values())
    assert ("llama-1b", "gpt-4o-mini") in tested and ("fake-run baseline", "llama-1b") in tested
    by_input = {row["dialogue"]: row for row in rows}
    for pair in report["pairs"]:  # whatever their order, each answer stands beside its own dialogue
        assert pair["answers"]["llama-1b"]["text"] == by_input[pair["input"]]["prediction"]
        assert pair["answers"]["gpt-4o-mini"]["text"] == by_input[pair["input"]]["reference"].split(".")[0]
    costs = Costs.from_dict(report["costs"])
    assert {c.system: c.sources.get("usd_per_1k") for c in costs.systems}["gpt-4o-mini"] == "set"
    assert {(m.machine, m.api) for m in costs.break_evens} == {("fake-run tuned", "gpt-4o-mini")}
    for name in ("report.html", "report.md"):
        assert "gpt-4o-mini" in (tmp_path / "report" / name).read_text(encoding="utf-8")
