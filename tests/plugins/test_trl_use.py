"""Models of the TRL backends in use: asked for rows, streamed, and in one memory. The base model is in 4-bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ftkit
from ftkit.console import Console
from ftkit.data.asking import typed_question
from ftkit.errors import RunFailed
from ftkit.files import read_jsonl
from ftkit.use.models import BASE, TUNED, RunModels

torch = pytest.importorskip("torch")
QUIET = Console(silent=True)


def recipe(plugin: str = "trl-sft-qlora", **backend: Any) -> dict[str, Any]:
    options = {
        "plugin": plugin,
        "base_model": "package:ftkit_quickstart/model",
        "chat_template": "plain",
        "learning_rate": 4e-3,
        "max_steps": 8,
        "micro_batch_size": 8,
        "eval_batch_size": 8,
        "logging_steps": 1,
    }
    return {
        "name": "used",
        "dataset": {
            "path": "loader:quickstart-dialogues",
            "train_rows": 64,
            "validation_rows": 4,
            "test_rows": 20,
            "columns": {"input": "dialogue", "target": "summary"},
        },
        "prompt": {"template": "{input}\nSummary:"},
        "backend": {**options, **backend},
        "generation": {"max_new_tokens": 12},
        "evaluator": "rouge",
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ftkit.RunResult:
    return ftkit.run(recipe(), out=tmp_path_factory.mktemp("runs"), console=QUIET)


@pytest.fixture(scope="module")
def models(run: ftkit.RunResult) -> Iterator[RunModels]:
    with RunModels(run.directory) as found:
        yield found


def test_answers_to_rows_are_those_of_the_measurement_in_4_bit(run: ftkit.RunResult, tmp_path: Path) -> None:
    """In 4-bit the text of an answer depends on its batch: the batches are planned alike."""
    source = run.dir / "data" / "test.jsonl"
    line = [sys.executable, "-m", "ftkit", "predict", str(run.dir), str(source), "--out"]
    for name, options in (("tuned", []), ("baseline", ["--base"])):
        out = tmp_path / f"{name}.jsonl"
        # As many threads as the process that measured: they decide how sums are rounded.
        env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        done = subprocess.run([*line, str(out), *options, "--json"], capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["rows"] == 20
        measured = [p.text for p in run.directory.predictions(name)]
        assert [row["prediction"] for row in read_jsonl(out)] == measured
    assert ftkit.verify(run.dir).ok


def test_models_that_share_a_base_answer_as_if_they_were_alone(run: ftkit.RunResult, models: RunModels) -> None:
    examples = list(run.directory.task.test[:8])
    generation = run.directory.recipe.generation
    tuned, base = models.session(TUNED), models.session(BASE)
    assert base.weights is tuned.weights  # type: ignore[attr-defined]
    for session, name in ((base, BASE), (tuned, TUNED), (base, BASE)):
        ref = models.ref(name)
        (shared,) = session.generate([examples], generation)
        with models.backend.load(ref, models.run) as alone:
            (expected,) = alone.generate([examples], generation)
        assert [p.text for p in shared] == [p.text for p in expected]
    first = tuned.generate([examples[:2], examples[2:]], generation)
    next(iter(first))
    with pytest.raises(RuntimeError, match="two sessions share these weights"):
        next(iter(base.generate([examples], generation)))
    first.close()  # type: ignore[attr-defined]
    assert list(base.generate([examples], generation))


@pytest.mark.parametrize("stop", [[], ["o"], [" a", "at"]])
def test_a_streamed_answer_is_the_answer(run: ftkit.RunResult, models: RunModels, stop: list[str]) -> None:
    session = models.session(TUNED)
    generation = run.directory.recipe.generation.replace(stop=stop, max_new_tokens=40)
    several = 0
    for example in run.directory.task.test[:6]:
        pieces: list[str] = []
        stream = session.stream(example, generation)
        while True:
            try:
                pieces.append(next(stream))
            except StopIteration as end:
                prediction = end.value
                break
        ((expected,),) = session.generate([[example]], generation)
        assert "".join(pieces) == prediction.text == expected.text
        several += len(pieces) > 1
    assert several or stop


def test_a_stream_that_is_closed_ends_the_generation(run: ftkit.RunResult, models: RunModels) -> None:
    session = models.session(TUNED)
    stream = session.stream(run.directory.task.test[0], run.directory.recipe.generation.replace(max_new_tokens=100))
    next(stream)
    stream.close()
    example = run.directory.task.test[1]
    assert list(session.generate([[example]], run.directory.recipe.generation))


def test_typed_text_is_the_input_of_the_prompt(run: ftkit.RunResult) -> None:
    example = typed_question(run.directory.recipe, {"dialogue": "Ann: hi"})
    assert example.messages[0].content == "Ann: hi\nSummary:"


def test_a_base_model_that_is_gone_is_named(run: ftkit.RunResult, tmp_path: Path) -> None:
    changes = [f"backend.base_model={tmp_path / 'gone'}"]
    with RunModels(run.directory, overrides=changes) as gone, pytest.raises(Exception) as error:
        gone.session(BASE)
    assert "the base model cannot be loaded: backend.base_model: there is no folder" in str(error.value)
    assert not isinstance(error.value, RunFailed)
