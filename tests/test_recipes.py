"""The shipped recipes: each loads, opens with what it shows and needs, and says what it promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ftkit.interface import shipped_recipes
from ftkit.plugins import installed_plugins
from ftkit.recipe.load import load_recipe
from ftkit.recipe.schema import recipe_schema

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_loads_and_opens_with_what_it_needs(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name
    lines = path.read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=recipe.schema.json"
    assert (
        lines[2].startswith("# Needs: ")
        and f"ftkit run recipes/{'samsum.yaml recipes/' if 'recipes/samsum.yaml ' in lines[2] else ''}" in lines[2]
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_resolved_recipe_is_the_same_recipe(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    again = tmp_path / "recipe.yaml"
    again.write_text(recipe.to_yaml())
    assert load_recipe(again).to_dict() == recipe.to_dict()


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What one `ftkit check --json` says of all recipes on a machine without network, cache and keys."""
    pytest.importorskip("trl")
    env = {k: v for k, v in os.environ.items() if not k.endswith("API_KEY")}
    env |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path_factory.mktemp("hub"))}
    line = [sys.executable, "-m", "ftkit", "check", *map(str, RECIPES), "--json"]
    folder = tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run(line, capture_output=True, text=True, env=env, cwd=folder, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    return {Path(str(found["recipe"])).stem: found for found in json.loads(done.stdout)}


def unreachable(path: Path) -> set[str]:
    """Return the keys of a recipe that name what lies on the hub or needs an account."""
    recipe = load_recipe(path)
    keys = set()
    if recipe.dataset.loader is None and not Path(recipe.dataset.path).is_absolute():
        keys.add("dataset.path")
    options = recipe.backend.options
    model = getattr(options, "base_model", "")
    if hasattr(options, "api_key_env"):
        return keys | ({"backend.api_key_env"} if options.dialect != "local" else set())
    return keys | (set() if model.startswith(("package:", "/")) else {"backend.base_model"})


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_check_finds_nothing_wrong_but_what_cannot_be_reached(
    path: Path, checked: dict[str, dict[str, list[dict[str, str]]]]
) -> None:
    found = checked[path.stem]
    errors = {error["key"]: error["message"] for error in found["errors"]}
    assert set(errors) == unreachable(path), errors
    for key, message in errors.items():
        assert ("API_KEY" if key == "backend.api_key_env" else "the hub cannot be reached") in message
    assert len(found["errors"]) == len(errors) and found["ok"] is not bool(errors)
    if "dataset.path" not in errors:
        assert all(facts["rows"] for facts in found["audit"]["splits"].values())
        tokens = found["audit"]["tokens"]
        assert ("not_checked" in tokens) == ("backend.base_model" in errors)


def test_every_recipe_ships_by_name() -> None:
    assert set(shipped_recipes()) == {p.stem for p in RECIPES}


def test_the_samsum_recipe_is_the_one_that_was_published() -> None:
    recipe = load_recipe(ROOT / "recipes" / "samsum.yaml")
    o = recipe.backend.options
    assert (o.lora_r, o.lora_alpha, o.lora_dropout, o.lora_target_modules) == (16, 32, 0.1, ["q_proj", "v_proj"])
    assert (o.max_steps, o.micro_batch_size, o.gradient_accumulation_steps) == (300, 4, 4)
    assert (o.learning_rate, o.lr_scheduler, o.warmup_steps, o.sequence_len, o.dtype) == (
        2e-4,
        "cosine",
        50,
        512,
        "auto",
    )
    assert dict(recipe.dataset.splits) == {"train": "all", "validation": 200, "test": 200} and recipe.seed == 42


def test_the_methods_differ_in_the_method_alone() -> None:
    base, lora, full = (
        load_recipe(ROOT / "recipes" / f"samsum{kind}.yaml").to_dict() for kind in ("", "-lora", "-full")
    )
    for key in ("dataset", "prompt", "generation", "evaluator", "seed"):
        assert base[key] == lora[key] == full[key]
    differing = {k for k in base["backend"] | lora["backend"] if base["backend"].get(k) != lora["backend"].get(k)}
    assert differing == {"plugin", "bnb_4bit_quant_storage"}, "the second is an option of 4-bit weights alone"


def test_the_committed_schema_is_the_one_that_the_plugins_give() -> None:
    """On a difference: ftkit schema > recipes/recipe.schema.json"""
    assert json.loads((ROOT / "recipes" / "recipe.schema.json").read_text()) == recipe_schema(installed_plugins())
