"""What providers charge, in USD per million tokens. A recipe can contain its own prices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AS_OF = "autumn 2026"
BATCH_FACTOR = 0.5  # inference through the Batch API


@dataclass(frozen=True)
class Price:
    """USD per million tokens: training, and a tuned model's input and output; `base_*` where those of the base model differ."""

    training: float
    input: float
    output: float
    base_input: float | None = None
    base_output: float | None = None

    def answer(self, tokens_in: int, tokens_out: int, tuned: bool, batch: bool = False) -> float:
        """Return the USD of one answer."""
        into = self.input if tuned or self.base_input is None else self.base_input
        out = self.output if tuned or self.base_output is None else self.base_output
        return (tokens_in * into + tokens_out * out) / 1e6 * (BATCH_FACTOR if batch else 1.0)


# The last two numbers are list prices of the base models, which are below those of their fine-tunes.
OPENAI: dict[str, Price] = {
    "gpt-4.1": Price(25.0, 3.0, 12.0, 2.0, 8.0),
    "gpt-4.1-mini": Price(5.0, 0.80, 3.20, 0.40, 1.60),
    "gpt-4o": Price(25.0, 3.75, 15.0, 2.50, 10.0),
    "gpt-4o-mini": Price(3.0, 0.30, 1.20, 0.15, 0.60),
}
FREE = Price(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Prices:
    """A table of prices by model, and its date."""

    table: Mapping[str, Price]
    as_of: str

    def of(self, model: str) -> Price | None:
        """Return the price of a model; a dated or fine-tuned one has the price of its family. None where it is not known."""
        name = model.split(":")[1] if model.startswith("ft:") else model
        known = [family for family in self.table if name == family or name.startswith(f"{family}-20")]
        return self.table[max(known, key=len)] if known else None


def prices_for(dialect: str, own: Mapping[str, Any] | str | None) -> Prices:
    """Return the prices for a recipe: its own, or the built-in ones.

    `own` is {model: {training, input, output, ...}}, or the path of a YAML or JSON file with that and, optionally,
    `as_of`. Raises ValueError for anything else.
    """
    if own is not None:
        table = dict(_read(own) if isinstance(own, str) else own)
        as_of = str(table.pop("as_of", "given by the recipe"))
        return Prices({str(model): _price(str(model), entry) for model, entry in table.items()}, as_of)
    return Prices(OPENAI if dialect == "openai" else {}, AS_OF)


def _read(path: str) -> Mapping[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        data = YAML(typ="safe", pure=True).load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ValueError(f"the price file {path} cannot be read: {error}") from None
    if not isinstance(data, Mapping):
        raise ValueError(f"the price file {path} contains no table of models")
    return data


def _price(model: str, entry: Any) -> Price:
    wanted = "such as {training: 3, input: 0.3, output: 1.2}"
    if not isinstance(entry, Mapping):
        raise ValueError(f"the price of {model} must be a table, {wanted}")
    unknown = sorted(set(map(str, entry)) - set(Price.__dataclass_fields__))
    if unknown:
        raise ValueError(f"the price of {model} has an unknown key {unknown[0]!r}; write it {wanted}")
    numbers = {str(key): _usd(value) for key, value in entry.items()}
    wrong = next((key for key, number in numbers.items() if number is None), None)
    if wrong is not None:
        raise ValueError(f"the price of {model}: {wrong} must be a finite number from 0; write it {wanted}")
    try:
        return Price(**{key: number for key, number in numbers.items() if number is not None})
    except TypeError:
        raise ValueError(f"the price of {model} lacks a number; write it {wanted}") from None


def _usd(value: Any) -> float | None:
    """Return a price; None for what is none: text, a truth value, NaN, infinity, a negative number."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 <= number < math.inf else None
