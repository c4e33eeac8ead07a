"""The quickstart as a newcomer runs it, and what it must show."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ftkit_quickstart import QuickstartDialogues
from ftkit_quickstart._dialogues import HELD_NAMES, HELD_PLACES

import ftkit
from ftkit.console import Console
from ftkit.files import read_json

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """`ftkit run quickstart --json`, run somewhere else."""
    folder = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, "-m", "ftkit", "run", "quickstart", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    result["dir"] = folder / result["run"]
    return result


def test_the_base_model_writes_text_and_does_not_summarise(quickstart: dict) -> None:
    baseline = quickstart["metrics"]["baseline"]
    assert baseline["rouge1"]["n"] >= 150
    assert baseline["rouge1"]["value"] <= 0.25
    texts = [json.loads(line)["text"] for line in (quickstart["dir"] / "baseline/predictions.jsonl").open()]
    assert all(texts) and len(set(texts)) > 10


def test_the_tuned_model_summarises_with_the_right_facts(quickstart: dict) -> None:
    tuned = quickstart["metrics"]["tuned"]
    assert tuned["rouge1"]["value"] >= 0.60
    assert tuned["rouge1"]["value"] > quickstart["metrics"]["control-first-sentences"]["rouge1"]["high"]
    assert tuned["all_slots"]["value"] >= 0.5
    assert all(tuned[f"slot_{slot}"]["n"] == 200 for slot in ("who", "what", "where", "when"))


def test_the_report_gives_a_verdict_with_an_interval_far_from_zero(quickstart: dict) -> None:
    report = json.loads((quickstart["dir"] / "report.json").read_text())
    (delta,) = [d for d in report["deltas"] if d["metric"] == "rouge1" and d["from"] == "baseline"]
    assert delta["low"] > 0.3 and delta["p_value"] < 0.001 and delta["verdict"] == "better"
    assert report["verdict"] == "tuned is better than baseline"
    assert any("stand-in" in note and "samsum.yaml" in note for note in report["notes"])


def test_it_verifies(quickstart: dict) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ftkit", "verify", str(quickstart["dir"])], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "nothing is wrong" in done.stdout + done.stderr, done.stdout + done.stderr


def test_memory_stays_under_3_gb(quickstart: dict) -> None:
    stages = json.loads((quickstart["dir"] / "run.json").read_text())["stages"]
    peaks = [s["meta"]["peak_memory"] for s in stages if "peak_memory" in s["meta"]]
    assert peaks and max(peaks) < 3e9


def test_the_test_split_holds_out_names_places_and_phrasings() -> None:
    splits = QuickstartDialogues().load()
    train, test = ([r["dialogue"] for r in splits[s]] for s in ("train", "test"))
    assert not set(train) & set(test)
    words = {w.strip(".,:?!") for text in train for w in text.split()}
    assert not words & {*HELD_NAMES, *HELD_PLACES}
    held = [r["held_out"] for r in splits["test"]]
    for kind in ("names", "places", "phrasing"):
        assert sum(kind in h for h in held) > 30
    assert {r["intent"] for r in splits["test"] if "phrasing" in r["held_out"]} == {
        r["intent"] for r in splits["train"]
    }


def test_what_ships_is_small_and_holds_no_pickle() -> None:
    files = [
        p for p in (ROOT / "plugins" / "ftkit_quickstart").rglob("*") if p.is_file() and "__pycache__" not in p.parts
    ]
    assert sum(p.stat().st_size for p in files) <= 8e6
    assert {p.suffix for p in files} <= {".py", ".json", ".safetensors", ".md"}


def test_another_task_by_recipe_alone(tmp_path: Path) -> None:
    """Intent classification: the recipe's own words, no code."""
    overrides = ["backend.max_steps=60", "backend.eval_steps=null", "dataset.test_rows=60", "dataset.splits.test=60"]
    run = ftkit.run("quickstart-intent", out=tmp_path, overrides=overrides, console=Console(silent=True))
    tuned, baseline = (read_json(run.dir / name / "metrics.json")["metrics"] for name in ("tuned", "baseline"))
    assert tuned["exact_match"]["low"] > baseline["exact_match"]["high"]
