"""The data audit: in audit.json and `check --json`, right on real data, whole where no tokenizer can be had."""

from __future__ import annotations

import json
import statistics
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ftkit import interface as notebook
from ftkit.console import Console
from ftkit.errors import InputError
from ftkit.files import read_json
from ftkit.records import LengthLimit, ModelRef, Rendered, Task
from ftkit.run.prepare import _token_findings, preflight, token_lengths

ROOT = Path(__file__).parents[2]
SAMSUM = ROOT.parent / "shared" / "data" / "samsum"
FILES = {"train": "train.json", "validation": "val.json", "test": "test.json"}
real = pytest.mark.skipif(not SAMSUM.is_dir(), reason="the real SAMSum corpus is not beside the repository")


def plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def raw() -> dict[str, list[dict[str, str]]]:
    return {split: json.loads((SAMSUM / name).read_text(encoding="utf-8")) for split, name in FILES.items()}


WHOLE = ["dataset.splits={train: all, validation: all, test: all}", f"dataset.path={SAMSUM}"]


@real
def test_the_real_samsum_counted_again(fakes: Any) -> None:
    """Every count against loops over the json files that share no code with the audit."""
    recipe = notebook.load(
        ROOT / "recipes" / "samsum.yaml", [*WHOLE, "backend={plugin: fake}", "evaluator=fake-overlap"]
    )
    found = preflight(recipe)
    rows, audit = raw(), found.audit
    texts = {split: [plain(row["dialogue"]) for row in part] for split, part in rows.items()}
    for split, part in rows.items():
        facts = audit["splits"][split]
        assert facts["rows"] == len(part)
        assert facts["empty_inputs"] == [row["id"] for row in part if not row["dialogue"].strip()]
        assert facts["empty_targets"] == [row["id"] for row in part if not row["summary"].strip()]
        repeats = sum(n - 1 for n in Counter(texts[split]).values())
        assert facts["repeats"] == repeats
        said = f"{split}: {repeats} rows have the input of an earlier row, of {len(part):,}"
        assert repeats < 2 or said in [f.message for f in found.findings if f.level == "note"]
        assert next(iter(facts["scripts"])) == "Latin" and facts["scripts"]["Latin"] > 0.99
    for held, source, entry in (
        ("validation", "train", audit["leaks"]["validation"]),
        ("test", "train", audit["leaks"]["test"]),
        ("test", "validation", audit["test_in_validation"]),
    ):
        known = set(texts[source])
        ids = [row["id"] for row, text in zip(rows[held], texts[held], strict=True) if text and text in known]
        assert (entry["rows"], entry["ids"]) == (len(ids), ids[:100])
        assert not ids or any(f"{held}: {len(ids)} rows" in text for text in found.warnings)
    assert audit["splits"]["train"]["repeats"] > 100
    assert audit["leaks"]["test"]["rows"] and audit["leaks"]["validation"]["rows"]
    # the fake backend's tokens are words, and an end
    for split, part in rows.items():
        sizes = [len(r["dialogue"].split()) + len(r["summary"].split()) + 1 for r in part]
        facts = audit["tokens"][split]
        assert (facts["rendered"], facts["median"], facts["max"]) == (len(part), statistics.median(sizes), max(sizes))
        assert abs(facts["p95"] - sorted(sizes)[int(0.95 * len(sizes))]) <= 2


@real
def test_dropping_what_leaked_takes_exactly_those_rows(fakes: Any) -> None:
    keys = [*WHOLE, "backend={plugin: fake}", "evaluator=fake-overlap", "dataset.drop_leaked=true"]
    found = preflight(notebook.load(ROOT / "recipes" / "samsum.yaml", keys))
    rows = raw()
    held = {plain(row["dialogue"]) for split in ("validation", "test") for row in rows[split]}
    kept = [row["id"] for row in rows["train"] if not plain(row["dialogue"]) or plain(row["dialogue"]) not in held]
    assert found.task is not None and [e.id for e in found.task.train] == kept
    assert found.audit["dropped_from_train"] == len(rows["train"]) - len(kept) > 0
    assert found.audit["splits"]["train"]["rows"] == len(kept)
    assert [leak["rows"] for leak in found.audit["leaks"].values()] == [0, 0]
    assert any(f"train: {len(rows['train']) - len(kept)} rows left out" in f.message for f in found.findings)


@real
def test_without_the_tokenizer_the_rest_is_audited(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped recipe on the local corpus, where its model cannot be had: one error, and a whole audit."""
    pytest.importorskip("trl")
    arguments = ["check", ROOT / "recipes" / "samsum.yaml", *(f"--set={key}" for key in WHOLE), "--json"]
    done = command(*arguments, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    data = json.loads(done.stdout)
    assert done.returncode == 2 and data["ok"] is False
    (error,) = data["errors"]
    assert error["key"] == "backend.base_model" and error["line"] and "hub cannot be reached" in error["message"]
    assert {s: facts["rows"] for s, facts in data["audit"]["splits"].items()} == {
        "train": 14732,
        "validation": 818,
        "test": 819,
    }
    assert "meta-llama" in data["audit"]["tokens"]["not_checked"]
    assert "not checked: token lengths" in done.stderr
    assert any("also occurs in train" in w["message"] for w in data["warnings"])


def test_audit_json_of_a_run_is_what_check_says(
    recipe: Callable[..., dict[str, Any]], tmp_path: Path, fakes: Any
) -> None:
    keys = recipe()
    run = notebook.run(keys, out=tmp_path / "runs", console=Console(silent=True))
    found = preflight(notebook.load(keys))
    written = read_json(run.dir / "audit.json")
    assert {key: value for key, value in written.items() if "estimate" not in key} == found.audit
    assert set(found.audit["splits"]["train"]) == {
        "rows",
        "empty_inputs",
        "empty_targets",
        "repeats",
        "copies",
        "scripts",
    }


# ---------------------------------------------------------------- token lengths


class Renders:
    """A backend that shows tokens for a limit: one per character."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def render(self, examples: Any) -> Iterator[Rendered]:
        for e in examples:
            prompt, answer = list(e.input), list(e.targets[0])
            kept_answer = answer[: self.limit]
            kept = prompt[: self.limit - len(kept_answer)] + kept_answer
            n_prompt = len(kept) - len(kept_answer)
            cut = (len(prompt) - n_prompt, len(answer) - len(kept_answer))
            loss_mask = (False,) * n_prompt + (True,) * len(kept_answer)
            yield Rendered(e.id, "".join(kept), tuple(map(ord, kept)), tuple(kept), loss_mask, n_prompt, cut)


def task_of(recipe: Callable[..., dict[str, Any]], path: Path, rows: list[tuple[str, str]]) -> Task:
    path.mkdir()
    for split in ("train", "validation", "test"):
        lines = [json.dumps({"input": text, "target": target}) + "\n" for text, target in rows]
        (path / f"{split}.jsonl").write_text("".join(lines))
    found = preflight(notebook.load(recipe(dataset={"path": str(path)})))
    assert found.task is not None
    return found.task


def test_every_row_of_every_split_is_measured(
    recipe: Callable[..., dict[str, Any]], tmp_path: Path, fakes: Any
) -> None:
    """Among six thousand rows only the last two are cut: a sample of the first would not see them."""
    rows = [("p" * 5, "t" * 5)] * 5998 + [("p" * 30, "tt"), ("p", "t" * 30)]
    lengths = token_lengths(Renders(20), task_of(recipe, tmp_path / "many", rows))
    assert set(lengths) == {"train", "validation", "test"}
    for facts in lengths.values():
        assert facts == {
            "rendered": 6000, "median": 10, "p95": 10, "max": 32,
            "lose_prompt_tokens": 2, "lose_target_tokens": 1, "without_loss": 0, "faults": [],
        }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"plugin": "fake-echo"}, "note: not checked: token lengths (fake-echo does not show tokens)"),
        ({"plugin": "fake", "refuse": "no access"}, None),
    ],
)
def test_what_was_not_checked_is_named(
    recipe_file: Callable[..., Path], command: Callable[..., Any], options: dict[str, Any], said: str | None
) -> None:
    done = command("check", recipe_file(backend=options), "--json")
    tokens = json.loads(done.stdout)["audit"]["tokens"]
    assert ("not_checked" in tokens) == (said is not None)
    assert said is None or said in done.stderr


@pytest.mark.parametrize("error", [ValueError("no tokenizer"), NotImplementedError("shows nothing")])
def test_a_render_that_fails_is_told_once(
    recipe: Callable[..., dict[str, Any]], fakes: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def render(self: Any, examples: Any) -> Iterator[Rendered]:
        raise error
        yield

    monkeypatch.setattr(fakes.FakeBackend, "render", render)
    found = preflight(notebook.load(recipe()))
    told = [f for f in found.findings if str(error) in f.message]
    assert [f.level for f in told] == ["error" if isinstance(error, ValueError) else "note"]
    assert str(error) in found.audit["tokens"]["not_checked"] and found.audit["splits"]["test"]["rows"] == 24
    refused = preflight(notebook.load(recipe(backend={"refuse": "no access"})))
    assert [f.message for f in refused.findings if f.level == "error"] == ["no access"]


@pytest.mark.parametrize(
    ("refuse", "told"), [("no tokenizer", "see the error above"), ("no tokenizer at all", "no tokenizer")]
)
def test_only_the_same_error_stands_above(
    recipe: Callable[..., dict[str, Any]], fakes: Any, monkeypatch: pytest.MonkeyPatch, refuse: str, told: str
) -> None:
    def render(self: Any, examples: Any) -> Iterator[Rendered]:
        raise InputError("no tokenizer")
        yield

    monkeypatch.setattr(fakes.FakeBackend, "render", render)
    found = preflight(notebook.load(recipe(backend={"refuse": refuse})))
    assert found.findings[-1].message == f"not checked: token lengths ({told})"


def test_lost_tokens_come_with_the_limit_and_what_is_needed(
    recipe: Callable[..., dict[str, Any]], tmp_path: Path, fakes: Any
) -> None:
    rows = [("p" * 10, "t" * 5)] * 18 + [("p" * 30, "tt")] * 2
    lengths = token_lengths(Renders(20), task_of(recipe, tmp_path / "long", rows))
    (train, validation, test) = _token_findings(lengths, LengthLimit(20, "backend.sequence_len"))
    assert train.message == "train: 2 of 20 examples lose prompt tokens to the sequence limit"
    assert train.hint == "raise backend.sequence_len (now 20): 95 % of the train rows are below 32 tokens"
    assert "the sequence limit): 2 of 20;" in test.message and test.hint == (train.hint or "").replace("train", "test")
    assert validation.key == "backend.sequence_len"


def test_a_limit_that_no_option_sets_is_not_called_an_option(
    recipe: Callable[..., dict[str, Any]], tmp_path: Path, fakes: Any
) -> None:
    lengths = token_lengths(Renders(20), task_of(recipe, tmp_path / "long", [("p" * 30, "tt")] * 20))
    for limit, fix in (
        (None, "shorten the rows"),
        (LengthLimit(65_536), "shorten the rows (the limit is 65,536 tokens)"),
        (
            LengthLimit(20, None, "name a model with a longer context"),
            "shorten the rows (the limit is 20 tokens), or name a",
        ),
    ):
        for finding in _token_findings(lengths, limit):
            assert (finding.hint or "").startswith(fix) and "sequence_len" not in f"{finding.hint} {finding.key}"


# ---------------------------------------------------------------- training sees no test rows


def test_training_is_handed_no_test_rows(
    recipe: Callable[..., dict[str, Any]], tmp_path: Path, fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Task] = []
    train = fakes.FakeBackend.train

    def spy(self: Any, task: Task, run: Any) -> ModelRef:
        seen.append(task)
        return train(self, task, run)

    monkeypatch.setattr(fakes.FakeBackend, "train", spy)
    run = notebook.run(recipe(), out=tmp_path / "runs", console=Console(silent=True))
    (task,) = seen
    assert (len(task.train), len(task.validation), task.test) == (20, 4, ())
    assert run.metrics["tuned"]["overlap"].n == 24
