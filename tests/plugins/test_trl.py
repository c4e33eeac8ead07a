"""The TRL backends, on the embedded model: labels, three methods, checkpoints, resume. All real, a few steps each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ftkit
from ftkit.console import Console
from ftkit.files import read_json
from ftkit.recipe.load import load_recipe
from ftkit.records import Example, GenerationConfig, Message, ModelRef

FTKIT = [sys.executable, "-m", "ftkit"]
BASE = {
    "seed": 1,
    "dataset": {
        "path": "loader:quickstart-dialogues",
        "train_rows": 64,
        "validation_rows": 8,
        "test_rows": 12,
        "columns": {"input": "dialogue", "target": "summary"},
    },
    "prompt": {"template": "{input}\nSummary:"},
    "generation": {"max_new_tokens": 12},
    "evaluator": "rouge",
}


def recipe(plugin: str, **options: object) -> dict[str, object]:
    backend = {
        "plugin": plugin,
        "base_model": "package:ftkit_quickstart/model",
        "chat_template": "plain",
        "max_steps": 6,
        "micro_batch_size": 4,
        "learning_rate": 4e-3,
        "logging_steps": 1,
        **options,
    }
    return {**BASE, "name": plugin, "backend": backend}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ftkit.Run]:
    """One short run of each method, beside each other."""
    out = tmp_path_factory.mktemp("runs")
    options = {
        "trl-sft-qlora": {"eval_steps": 3, "keep_best": True},
        "trl-sft-lora": {
            "snapshots": [2, 6],
            "usd_per_hour": 3.6,
            "lora_target_modules": ["q_proj", "v_proj", "k_proj", "up_proj", "down_proj"],
        },
        "trl-sft-full": {"learning_rate": 1e-3, "snapshots": [3]},
    }
    return {name: ftkit.run(recipe(name, **o), out=out, console=Console(silent=True)) for name, o in options.items()}


def test_each_method_trains_and_hands_over_safetensors_only(runs: dict[str, ftkit.Run]) -> None:
    for name, run in runs.items():
        files = {p.name for p in (run.dir / "train" / "model").iterdir()}
        assert ("model.safetensors" if name == "trl-sft-full" else "adapter_model.safetensors") in files
        assert not [f for f in files if f.endswith((".bin", ".pt", ".pth", ".pkl"))]
        losses = [row["loss"] for row in run.directory.log_rows() if row["event"] == "step"]
        assert len(losses) == 6 and losses[-1] < losses[0]
        assert (run.dir / "tuned" / "predictions.jsonl").read_bytes() != (
            run.dir / "baseline" / "predictions.jsonl"
        ).read_bytes()
        assert not (run.dir / ".work").exists(), "checkpoints hold pickles and must not stay"


def test_an_adapters_config_is_the_same_whichever_process_wrote_it(runs: dict[str, ftkit.Run]) -> None:
    """Python orders a set of names differently in each process: `random moments` of tests/soak.py found it."""
    for place in ("train/model", "train/snapshots/2"):
        names = read_json(runs["trl-sft-lora"].dir / place / "adapter_config.json")["target_modules"]
        assert names == ["down_proj", "k_proj", "q_proj", "up_proj", "v_proj"]


def test_snapshots_hold_the_weights_of_their_step_and_can_be_asked(runs: dict[str, ftkit.Run]) -> None:
    lora, full = runs["trl-sft-lora"], runs["trl-sft-full"]
    kept = {p.relative_to(r.dir / "train" / "snapshots").parent.name for r in (lora, full)
            for p in (r.dir / "train" / "snapshots").rglob("*.safetensors")}  # fmt: skip
    assert kept == {"2", "3", "6"}
    for run in (lora, full):
        files = [p.name for p in (run.dir / "train" / "snapshots").rglob("*")]
        assert not [f for f in files if f.endswith((".bin", ".pt", ".pth", ".pkl"))]
    base = lora.directory.recipe.backend.make().options.base_model
    weights = [(lora.dir / "train" / p / "adapter_model.safetensors").read_bytes()
               for p in ("snapshots/2", "snapshots/6", "model")]  # fmt: skip
    assert weights[0] != weights[1] == weights[2], "the last step's snapshot is what training handed over"
    examples = lora.directory.task.test[:4]
    for run, ref in (
        (lora, ModelRef("adapter", "train/snapshots/2", base=base)),
        (full, ModelRef("path", "train/snapshots/3", base=base, meta={"trained": True})),
    ):
        with run.directory.recipe.backend.make().load(ref, run.directory) as session:
            (answers,) = session.generate([examples], GenerationConfig(max_new_tokens=8))
        assert [a.example_id for a in answers] == [e.id for e in examples]


def test_a_machines_price_becomes_the_cost_of_training_and_of_answers(runs: dict[str, ftkit.Run]) -> None:
    priced = runs["trl-sft-lora"]
    (stage,) = [s for s in priced.directory.record().stages if s.name == "train"]
    assert stage.usd == pytest.approx(stage.meta["seconds"] * 3.6 / 3600, rel=0.05)
    cost = read_json(priced.dir / "tuned" / "cost.json")
    assert cost["usd"] == pytest.approx(cost["seconds"] * 3.6 / 3600, rel=0.05)
    (free,) = [s for s in runs["trl-sft-full"].directory.record().stages if s.name == "train"]
    assert free.usd is None and read_json(runs["trl-sft-full"].dir / "tuned" / "cost.json")["usd"] is None


def test_a_snapshot_after_the_last_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ftkit.FtkitError, match=r"snapshots: step 9 is after the last step"):
        ftkit.run(recipe("trl-sft-lora", snapshots=[9]), out=tmp_path / "runs", console=Console(silent=True))


def test_nothing_handed_over_names_a_path_of_this_machine(runs: dict[str, ftkit.Run]) -> None:
    for run in runs.values():
        for path in (run.dir / "train" / "model").iterdir():
            if path.suffix in (".json", ".md", ".jinja"):
                assert str(Path(__file__).parents[2]) not in path.read_text()


def test_the_evaluators_metric_is_logged_during_training(runs: dict[str, ftkit.Run]) -> None:
    evals = [row for row in runs["trl-sft-qlora"].directory.log_rows() if row["event"] == "eval"]
    assert [row["step"] for row in evals] == [0, 3, 6]
    assert all(0 <= row["rouge1"] <= 1 and row["n"] == 8 for row in evals)
    curves = {c.name for c in runs["trl-sft-qlora"].report.curves}
    assert {"loss", "rouge1"} <= curves


def test_one_report_compares_the_methods(runs: dict[str, ftkit.Run], tmp_path: Path) -> None:
    report = ftkit.report(*runs.values(), out=tmp_path)
    assert {s.role for s in report.systems} == {"baseline", "tuned"}
    assert sum(s.role == "tuned" for s in report.systems) == 3
    # LoRA and full fine-tuning start from one and the same unquantised model; QLoRA from its 4-bit form.
    identities = [json.loads((r.dir / "baseline" / "key.json").read_text())["identity"] for r in runs.values()]
    assert [i["quantisation"] for i in identities] == ["nf4-double", None, None]
    assert all(d.p_adjusted is not None for d in report.deltas if d.metric == report.primary)


def test_a_second_run_reuses_the_baseline_that_shares_its_key(runs: dict[str, ftkit.Run]) -> None:
    first = runs["trl-sft-lora"]
    again = ftkit.run(recipe("trl-sft-lora", max_steps=1), out=first.dir.parent, console=Console(silent=True))
    cost = json.loads((again.dir / "baseline" / "cost.json").read_text())
    assert cost["reused_from"] in {r.directory.id for r in runs.values()}
    assert (again.dir / "baseline" / "predictions.jsonl").read_bytes() == (
        first.dir / "baseline" / "predictions.jsonl"
    ).read_bytes()


def test_an_adapter_is_trained_beside_frozen_4_bit_weights() -> None:
    import torch
    from ftkit_trl._model import load_base

    backend = load_recipe(recipe("trl-sft-qlora")).backend.make()
    model = load_base(backend)
    layer = model.model.layers[0].self_attn.q_proj
    assert type(layer).__name__ == "Linear4bit"
    assert layer.weight.quant_state.quant_type == "nf4" and layer.weight.quant_state.nested
    # A pass in eval mode must leave the layer able to send a gradient back (see _model.load_base).
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        model.eval()(input_ids=ids)
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    model.train()(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad is not None and embedded.grad.abs().sum() > 0


def test_only_the_answer_and_its_end_are_learned() -> None:
    backend = load_recipe(recipe("trl-sft-qlora")).backend.make()
    example = Example("a", (Message("user", "Anna: hi\nSummary:"),), ("Anna says hi.",))
    (shown,) = backend.render([example])
    assert shown.tokens[0] == "<bos>" and shown.tokens.count("<bos>") == 1
    learned = [t for t, on in zip(shown.tokens, shown.loss_mask, strict=True) if on]
    assert learned[-1] == "<eos>"
    assert shown.loss_mask == (False,) * shown.n_prompt + (True,) * (len(shown.ids) - shown.n_prompt)


def test_a_long_prompt_is_cut_in_its_middle_and_keeps_the_answer() -> None:
    backend = load_recipe(recipe("trl-sft-qlora", sequence_len=64)).backend.make()
    example = Example("a", (Message("user", "Anna: hello there\n" * 60 + "Summary:"),), ("Anna says hi.",))
    (shown,) = backend.render([example])
    assert len(shown.ids) == 64 and shown.truncated[0] > 0 and shown.truncated[1] == 0
    assert shown.tokens[0] == "<bos>" and shown.tokens[-1] == "<eos>"


def test_a_model_that_cannot_be_had_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ftkit.FtkitError, match=r"holds no config\.json"):
        ftkit.run(recipe("trl-sft-lora", base_model=str(tmp_path)), out=tmp_path / "runs", console=Console(silent=True))
    assert not list((tmp_path / "runs").glob("*")), "nothing was spent, nothing is left"


def test_wrong_target_modules_name_the_right_ones(tmp_path: Path) -> None:
    with pytest.raises(ftkit.FtkitError, match=r"no linear layer 'query'[\s\S]*q_proj"):
        ftkit.run(
            recipe("trl-sft-lora", lora_target_modules=["query"]), out=tmp_path / "runs", console=Console(silent=True)
        )


def test_a_run_killed_in_training_resumes_to_the_same_end(tmp_path: Path) -> None:
    """kill -9 after a checkpoint, resume: predictions are equal to the unbroken run's, byte for byte."""
    path = tmp_path / "recipe.json.yaml"
    path.write_text(json.dumps(recipe("trl-sft-qlora", max_steps=12, save_steps=2, eval_steps=4, keep_best=True)))
    unbroken = ftkit.run(path, out=tmp_path / "unbroken", console=Console(silent=True))
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [*FTKIT, "run", str(path), "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(out.glob("*/.work/checkpoints/checkpoint-4/ftkit-complete")):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (directory,) = [p for p in out.iterdir() if p.is_dir()]
    torn = directory / ".work" / "checkpoints" / "checkpoint-999"  # what a kill in the middle of a save leaves behind
    torn.mkdir()
    (torn / "adapter_model.safetensors").write_bytes(b"torn")
    assert json.loads((directory / "run.json").read_text())["status"] == "running"
    assert ftkit.resume(directory, Console(silent=True)).directory.status() == "done"
    for file in ("baseline/predictions.jsonl", "tuned/predictions.jsonl"):
        ours, theirs = ((d / file).read_bytes() for d in (directory, unbroken.dir))
        assert ours == theirs
    losses = [
        [row["loss"] for row in ftkit.open_run(d).directory.log_rows() if row["event"] == "step"]
        for d in (directory, unbroken.dir)
    ]
    assert losses[0] == losses[1]
