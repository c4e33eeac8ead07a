"""GGUF files as base models: the same model as its folder, trained by each method, and what cannot be read is one message."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytest.importorskip("gguf")

from gguf_files import TEMPLATE, write_gguf
from hub import Hub

import ftkit
from ftkit.console import Console
from ftkit.files import read_json
from ftkit.records import Finding

FTKIT = [sys.executable, "-m", "ftkit"]
PACKAGE, FILE = "ftkit_tiny_weights", "tiny.Q4_1.gguf"
FOLDER = "package:ftkit_quickstart/model"


def recipe(plugin: str, base_model: str, **options: object) -> dict[str, Any]:
    return {
        "name": plugin,
        "seed": 1,
        "dataset": {
            "path": "loader:quickstart-dialogues", "train_rows": 64, "validation_rows": 4, "test_rows": 6,
            "columns": {"input": "dialogue", "target": "summary"},
        },
        "prompt": {"template": "{input}\nSummary:"},
        "backend": {
            "plugin": plugin, "base_model": base_model, "max_steps": 8, "micro_batch_size": 4, "logging_steps": 1,
            "learning_rate": 2e-3, **options,
        },
        "generation": {"max_new_tokens": 12},
        "evaluator": "rouge",
    }  # fmt: skip


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of an installed package with a quantised file in it."""
    site = tmp_path_factory.mktemp("site")
    folder = site / PACKAGE
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('a package of weights is not imported')\n")
    write_gguf(folder / FILE, "Q4_1")
    before = os.environ.get("PYTHONPATH")
    sys.path.insert(0, str(site))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(site), before)))
    yield folder
    sys.path.remove(str(site))
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def runs(package: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ftkit.Run]:
    out = tmp_path_factory.mktemp("runs")
    models = {
        "trl-sft-lora": f"package:{PACKAGE}/{FILE}",
        "trl-sft-qlora": str(package / FILE),
        "trl-sft-full": str(write_gguf(out / "whole.gguf", "F32")),
    }
    return {
        name: ftkit.run(recipe(name, model), out=out / "runs", console=Console(silent=True))
        for name, model in models.items()
    }


def backend_of(base_model: object, plugin: str = "TrlSftLora", **options: object) -> Any:
    import ftkit_trl

    cls = getattr(ftkit_trl, plugin)
    return cls(cls.Options(base_model=str(base_model), **options))


# ---------------------------------------------------------------- what is read


def test_the_model_of_a_file_computes_what_the_model_of_its_folder_computes(tmp_path: Path) -> None:
    import torch
    from ftkit_trl._model import load_base

    ids = torch.arange(5, 60)[None]
    folder = load_base(backend_of(FOLDER))
    whole = load_base(backend_of(write_gguf(tmp_path / "whole.gguf", "F32")))
    small = load_base(backend_of(write_gguf(tmp_path / "small.gguf", "Q4_1")))
    assert torch.equal(whole(ids).logits, folder(ids).logits)
    for name, values in folder.state_dict().items():
        if values.ndim == 2:  # Q4_1: 16 levels between the smallest and the largest of 32 values
            blocks, found = values.reshape(-1, 32), small.state_dict()[name].reshape(-1, 32)
            step = (blocks.amax(1) - blocks.amin(1)) / 15
            assert ((found - blocks).abs().amax(1) <= 0.6 * step).all() and not torch.equal(found, blocks), name
    assert whole.generation_config.to_dict() == folder.generation_config.to_dict()


def test_the_tokenizer_has_the_files_template_and_special_tokens(tmp_path: Path) -> None:
    from ftkit_trl._model import load_tokenizer

    options = backend_of(write_gguf(tmp_path / "tiny.GGUF")).options
    tokenizer = load_tokenizer(options)
    assert tokenizer.chat_template == TEMPLATE and tokenizer.padding_side == "left"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<bos>", "<eos>", "<pad>")
    assert tokenizer.decode(tokenizer("Bob: yes\n12 days")["input_ids"]) == "Bob: yes\n12 days"
    plain = load_tokenizer(options.model_copy(update={"chat_template": "plain"}))
    assert plain.chat_template != TEMPLATE == load_tokenizer(options).chat_template, "what is kept is not changed"


def test_a_file_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    from ftkit_trl._gguf import dequantised

    path = write_gguf(tmp_path / "model.gguf", "Q8_0")
    assert dequantised(path) == "dequantised from Q8_0"
    path.unlink()
    write_gguf(path, "BF16")
    assert dequantised(path) is None


# ---------------------------------------------------------------- whole recipes


def test_each_method_trains_on_a_file(runs: dict[str, ftkit.Run]) -> None:
    for name, run in runs.items():
        losses = [row["loss"] for row in run.directory.log_rows() if row["event"] == "step"]
        (changed,) = [row for row in run.directory.log_rows() if row["event"] == "weights_changed"]
        assert len(losses) == 8 and losses[-1] < losses[0], name
        assert changed["changed"] == changed["tensors"] > 0, name
        both = [(run.dir / part / "predictions.jsonl").read_bytes() for part in ("baseline", "tuned")]
        assert both[0] != both[1], name


def test_the_run_records_the_files_hash_and_that_it_was_dequantised(runs: dict[str, ftkit.Run], package: Path) -> None:
    found = {name: read_json(run.dir / "baseline" / "key.json")["identity"] for name, run in runs.items()}
    assert {name: identity["quantisation"] for name, identity in found.items()} == {
        "trl-sft-lora": "dequantised from Q4_1",
        "trl-sft-qlora": "nf4-double, dequantised from Q4_1",
        "trl-sft-full": None,
    }
    digest = hashlib.sha256((package / FILE).read_bytes()).hexdigest()
    assert found["trl-sft-lora"]["weights"] == found["trl-sft-qlora"]["weights"] == digest
    lock = read_json(runs["trl-sft-lora"].dir / "lock.json")["model"]
    assert (lock["model"], lock["commit"], lock["weights"]) == (f"package:{PACKAGE}/{FILE}", None, digest)
    report = (runs["trl-sft-lora"].dir / "report.md").read_text()
    assert "dequantised from Q4_1" in report


def test_an_adapter_names_its_base_as_the_recipe_does(runs: dict[str, ftkit.Run]) -> None:
    config = read_json(runs["trl-sft-lora"].dir / "train" / "model" / "adapter_config.json")
    assert config["base_model_name_or_path"] == f"package:{PACKAGE}/{FILE}"
    for path in (runs["trl-sft-lora"].dir / "train" / "model").iterdir():
        if path.suffix in (".json", ".md", ".jinja"):
            assert str(Path(__file__).parents[2]) not in path.read_text()


def test_all_weights_are_handed_over_as_an_ordinary_model(runs: dict[str, ftkit.Run]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = runs["trl-sft-full"].dir / "train" / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.architectures == ["LlamaForCausalLM"] and tokenizer.chat_template == TEMPLATE
    assert torch.isfinite(model(torch.arange(5, 20)[None]).logits).all()
    assert "quantization_config" not in read_json(folder / "config.json")


@pytest.mark.parametrize("name", ["trl-sft-lora", "trl-sft-qlora", "trl-sft-full"])
def test_another_process_loads_what_was_trained(name: str, runs: dict[str, ftkit.Run]) -> None:
    run = runs[name]
    script = (
        "import sys; from pathlib import Path; from ftkit.directory import RunDirectory\n"
        "run = RunDirectory(Path(sys.argv[1])); backend = run.recipe.backend.make()\n"
        "examples = run.task.test\n"
        "with backend.load(run.model(), run) as session:\n"
        "    (answers,) = session.generate([examples], run.recipe.generation)\n"
        "import json; print(json.dumps({a.example_id: a.text for a in answers}))\n"
    )
    line = [sys.executable, "-c", script, str(run.dir)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    rows = map(json.loads, (run.dir / "tuned" / "predictions.jsonl").read_text().splitlines())
    assert json.loads(done.stdout.splitlines()[-1]) == {row["example_id"]: row["text"] for row in rows}


def test_check_says_that_the_weights_are_dequantised(package: Path, tmp_path: Path) -> None:
    checked = ftkit.check(recipe("trl-sft-lora", f"package:{PACKAGE}/{FILE}"))
    said = [problem.message for problem in checked.problems]
    assert any(f"the weights of {FILE} are dequantised from Q4_1" in message for message in said), said


# ---------------------------------------------------------------- what cannot be read


def text_file(path: Path) -> Path:
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    return path


def cut(path: Path, share: float) -> Path:
    whole = write_gguf(path).read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    return path


def folder_of_one(path: Path) -> Path:
    path.parent.joinpath("folder").mkdir()
    return write_gguf(path.parent / "folder" / path.name).parent


BROKEN: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no file": (lambda p: p, "there is no file", "HUB_ID:FILE.gguf"),
    "no such package": (
        lambda p: "package:no_such_package/x.gguf",
        "no installed package",
        "--no-deps no-such-package",
    ),
    "a folder": (folder_of_one, "no config.json", "folder/model.gguf"),
    "no GGUF file": (text_file, "model.gguf is not a GGUF file", "llama.cpp"),
    "empty": (lambda p: p.touch() or p, "is not a GGUF file", "llama.cpp"),
    "ends in its head": (lambda p: cut(p, 0.002), "is damaged", "download it again"),
    "ends in its weights": (lambda p: cut(p, 0.9), "is damaged", "download it again"),
    "lacks its last byte": (lambda p: cut(p, 0.9999999), "is damaged", "download it again"),
    "one part of several": (lambda p: write_gguf(p, parts=3), "one of 3 parts", "--merge"),
    "no weights": (lambda p: write_gguf(p, tensors=False), "holds no model", "transformers' format"),
    "an unknown architecture": (lambda p: write_gguf(p, architecture="rwkv7"), "holds a rwkv7 model", "newer version"),
    "no text": (lambda p: write_gguf(p, architecture="t5encoder"), "t5encoder", "name a model"),
    "an unknown tokenizer": (lambda p: write_gguf(p, tokenizer="rwkv"), "cannot read model.gguf", "newer version"),
}


def errors_of(backend: Any) -> list[Finding]:
    return [finding for finding in backend.check(None) if finding.level == "error"]


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_read_is_one_error_with_the_fix(case: str, tmp_path: Path) -> None:
    make, message, fix = BROKEN[case]
    backend = backend_of(make(tmp_path / "model.gguf"))
    (error,) = errors_of(backend)
    assert message in error.message and fix in (error.hint or "") and error.key == "backend.base_model"
    assert len(error.message) < 400 and "\n" not in error.message
    assert "not_estimated" in backend.estimate(None) or case == "an unknown tokenizer"


def test_a_missing_tensor_is_not_filled_with_random_numbers(tmp_path: Path) -> None:
    from ftkit_trl._model import load_base

    path = write_gguf(tmp_path / "model.gguf", drop="blk.2.ffn_up.weight")
    with pytest.raises(ftkit.FtkitError, match=r"1 tensors are missing, such as model\.layers\.2\.mlp\.up_proj"):
        load_base(backend_of(path))


def test_without_the_package_gguf_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)  # as Python sees a package that is not installed
    (error,) = errors_of(backend_of(path))
    assert "the package gguf is not installed" in error.message and error.hint == "pip install 'ftkit[gguf]'"


def test_a_sharded_model_cannot_come_from_a_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    launch = {"processes": 2, "deepspeed": "zero3"}
    (error,) = [e for e in errors_of(backend_of(path, launch=launch, micro_batch_size=2)) if "sharded" in e.message]
    assert error.key == "backend.launch" and "zero2" in (error.hint or "")


def test_the_command_says_it_without_a_traceback(tmp_path: Path) -> None:
    text_file(tmp_path / "model.gguf")
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe("trl-sft-qlora", "./model.gguf")))
    done = subprocess.run([*FTKIT, "run", "recipe.yaml"], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 2 and "is not a GGUF file" in done.stderr and "Traceback" not in done.stderr


# ---------------------------------------------------------------- on the hub


def test_a_file_on_the_hub_is_of_one_commit(tmp_path: Path) -> None:
    with Hub() as hub:
        repo = hub.add("models", "acme/tiny-GGUF")
        content = write_gguf(tmp_path / "tiny.gguf", "Q4_0").read_bytes()
        first = repo.commit({"quants/tiny.gguf": content, "README.md": b"no config.json\n"})
        file = tmp_path / "recipe.yaml"
        file.write_text(json.dumps(recipe("trl-sft-lora", "acme/tiny-GGUF:quants/tiny.gguf", max_steps=1)))
        env = {**os.environ, **hub.variables(tmp_path / "home"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}

        def command(*arguments: str) -> subprocess.CompletedProcess[str]:
            line = [*FTKIT, *arguments]
            return subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=300)

        done = command("run", str(file), "--out", "runs")
        assert done.returncode == 0, done.stderr
        (run,) = (tmp_path / "runs").iterdir()
        model = read_json(run / "lock.json")["model"]
        assert (model["commit"], model["quantisation"]) == (first, "dequantised from Q4_0")
        assert model["weights"] == hashlib.sha256(content).hexdigest()
        adapter = read_json(run / "train" / "model" / "adapter_config.json")
        assert adapter["base_model_name_or_path"] == "acme/tiny-GGUF:quants/tiny.gguf"
        done = command("check", str(file), "--set", "backend.base_model=acme/tiny-GGUF:other.gguf")
        said = " ".join((done.stdout + done.stderr).split())
        assert done.returncode == 2 and "has no file 'other.gguf' on the hub" in said and "Traceback" not in said
