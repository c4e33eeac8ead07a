"""`ftkit serve RUN...`: the models of finished runs answer the official client; what cannot be served is refused at start."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from serving import Serving, ask, disagreements, openai
from test_trl_use import QUIET, recipe

import ftkit
from ftkit.use.models import RunModels

BASE = "package:ftkit_quickstart/model"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[ftkit.RunResult]:
    """Two adapters of one base model in 4-bit; the second recipe has another name."""
    out = tmp_path_factory.mktemp("runs")
    recipes = [recipe(), {**recipe(lora_r=4, max_steps=12), "name": "other"}]
    return [ftkit.run(r, out=out, console=QUIET) for r in recipes]


@pytest.fixture(scope="module")
def serving(runs: list[ftkit.RunResult], fake_site: Path) -> Iterator[Serving]:
    """A server of both runs, without a data folder of its own."""
    served = Serving(fake_site / "never", fake_site)
    served.process = served.launch_runs(*(run.dir for run in runs))
    assert served.process.stdout is not None
    line = served.process.stdout.readline()
    assert line, served.process.communicate()[1]
    served.url = line.split()[-1]
    yield served
    served.close()


def test_each_model_answers_as_it_did_when_it_was_measured(serving: Serving, runs: list[ftkit.RunResult]) -> None:
    client = serving.client()
    assert [model.id for model in client.models.list()] == ["used", BASE, "other"]
    found = {}
    for model, run, name in (("used", runs[0], "tuned"), ("other", runs[1], "tuned"), (BASE, runs[0], "baseline"),
                             ("used", runs[0], "tuned")):  # fmt: skip
        answers = [
            ask(client, model, e.messages[0].content, max_completion_tokens=12).choices[0].message.content
            for e in run.directory.task.test[:4]
        ]
        assert found.setdefault(model, answers) == answers
        with RunModels(run.directory) as models:
            session = models.session(name)
            generation = run.directory.recipe.generation
            alone = [
                p.text for e in run.directory.task.test[:4] for b in session.generate([[e]], generation) for p in b
            ]
        assert answers == alone, "a request is a batch of its own"
    assert len({tuple(answers) for answers in found.values()}) == 3


def test_a_stream_holds_the_same_text(serving: Serving, runs: list[ftkit.RunResult]) -> None:
    client = serving.client()
    text = runs[0].directory.task.test[0].messages[0].content
    whole = ask(client, "used", text).choices[0].message.content
    pieces = [c.choices[0].delta.content or "" for c in ask(client, "used", text, stream=True)]
    assert "".join(pieces) == whole and len(pieces) > 2


def test_responses_are_as_the_api_description_says(serving: Serving) -> None:
    """After the tests above: it looks at their requests."""
    assert serving.exchanges and not disagreements(serving.exchanges)


def test_runs_are_served_and_not_trained(serving: Serving) -> None:
    client = serving.client()
    with pytest.raises(openai.PermissionDeniedError):
        client.models.delete("used")
    with pytest.raises(openai.NotFoundError):
        ask(client, "ftkit-tiny", "hello")
    from serving import upload, upper_case

    file = upload(client, upper_case())
    with pytest.raises(openai.APIStatusError, match="used"):
        client.fine_tuning.jobs.create(model="used", training_file=file)


def test_the_runs_stay_as_they_were(serving: Serving, runs: list[ftkit.RunResult]) -> None:
    assert all(ftkit.verify(run.dir).ok for run in runs)


def refused(site: Path, *arguments: object) -> str:
    process = Serving(site / "never", site).launch_runs(*arguments)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2 and not out and "Traceback" not in err, err
    return err


def test_what_cannot_be_served_is_refused_at_start(
    runs: list[ftkit.RunResult], fakes: ModuleType, fake_site: Path, tmp_path: Path
) -> None:
    run = runs[0].dir
    assert "named twice" in refused(fake_site, run, run)
    broken = shutil.copytree(run, tmp_path / "broken")
    (broken / "train" / "model" / "adapter_model.safetensors").write_bytes(b"")
    said = refused(fake_site, broken)
    assert "cannot be served: " in said and "changed after training" in said
    (broken / "train" / "model.json").unlink()
    said = refused(fake_site, broken)
    assert "has no tuned model" in said and "--base" not in said
    models = tmp_path / "models.yaml"
    models.write_text(f"mine: {{backend: {{plugin: trl-sft-lora, base_model: {run / 'train' / 'model'}}}}}\n")
    said = refused(fake_site, "--models", models)
    assert "mine cannot be served" in said and "is an adapter, and not a whole model" in said


def test_a_model_at_a_provider_is_not_served(tmp_path: Path) -> None:
    from ftkit_serve.runs import _tuned

    from ftkit.errors import InputError
    from ftkit.records import ModelRef

    models: Any = type("Models", (), {"ref": lambda self, name: ModelRef("remote", "ft:mine")})()
    with pytest.raises(InputError, match=r"its model is at a provider \(ft:mine\)"):
        _tuned(tmp_path, models)
