"""The shipped recipes: each loads, opens with what it shows and needs, and says what it promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftkit.notebook import shipped_recipes
from ftkit.plugins import installed_plugins
from ftkit.recipe import load_recipe
from ftkit.schema import recipe_schema

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_loads_and_opens_with_what_it_needs(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name
    lines = path.read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=../docs/recipe.schema.json"
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
    assert {k for k in base["backend"] if base["backend"][k] != lora["backend"][k]} == {"plugin"}


def test_the_committed_schema_is_the_one_that_the_plugins_give() -> None:
    """On a difference: ftkit schema > docs/recipe.schema.json"""
    assert json.loads((ROOT / "docs" / "recipe.schema.json").read_text()) == recipe_schema(installed_plugins())
