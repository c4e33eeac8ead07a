"""One recipe, several trainings: the recipes of `ftkit run RECIPE --seeds N`."""

from __future__ import annotations

from dataclasses import replace

from ..errors import InputError
from ..recipe.load import Recipe

_LIMIT = 2**32  # seeds lie below it
_NAME = 80  # characters of a recipe's name


def with_seeds(recipe: Recipe, seeds: int) -> list[Recipe]:
    """Return the recipe `seeds` times: with its own seed and the next ones, each named NAME-seedSEED.

    Nothing else differs, so that the runs share one baseline and a report shows them as one system. Raises InputError
    where `seeds` is below 1 or a seed would be too large.
    """
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise InputError(f"--seeds {seeds}: not a number of trainings, 1 or more", "three is a start: --seeds 3")
    last = recipe.seed + seeds - 1
    if last >= _LIMIT:
        raise InputError(
            f"--seeds {seeds}: {recipe.name} starts at seed {recipe.seed}, and {last} is too large for a seed",
            f"seeds lie below {_LIMIT}: choose a smaller one, such as --set seed=42",
        )
    return [replace(recipe, seed=seed, name=_name(recipe.name, seed)) for seed in range(recipe.seed, last + 1)]


def _name(name: str, seed: int) -> str:
    ending = f"-seed{seed}"
    return name[: _NAME - len(ending)] + ending
