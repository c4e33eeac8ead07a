"""Generation of the TRL backends: random state, the recipe's settings and no others, stop strings."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_trl import recipe

import ftkit
from ftkit.console import Console

# ---------------------------------------------------------------- random state


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_measurements_during_training_do_not_change_the_training(temperature: float, tmp_path: Path) -> None:
    losses = []
    for name, options in (("without", {}), ("every step", {"eval_steps": 1}), ("every third", {"eval_steps": 3})):
        asked: dict[str, Any] = recipe("trl-sft-lora", lora_dropout=0.4, max_steps=6, **options)
        asked["generation"] = {"max_new_tokens": 6, "temperature": temperature}
        run = ftkit.run(asked, out=tmp_path / name, console=Console(silent=True))
        rows = run.directory.log_rows()
        assert len([r for r in rows if r["event"] == "eval"]) == {"without": 0, "every step": 7, "every third": 3}[name]
        losses.append([row["loss"] for row in rows if row["event"] == "step"])
    assert len(losses[0]) == 6 and losses[1] == losses[0] and losses[2] == losses[0]


def test_every_generator_is_as_it_was_after_a_measurement() -> None:
    import torch
    from ftkit_trl._random import preserved_random_state

    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), torch.rand(1).item()]

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with pytest.raises(KeyError), preserved_random_state():
        draw()
        torch.manual_seed(5), random.seed(5), np.random.seed(5)
        raise KeyError
    assert draw() == expected
