"""What is varied: `KEY=VALUE,VALUE,...`, or `KEY=LOW..HIGH` where a search chooses between two ends."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..recipe.yaml import scalar
from ..records import Record

Values = dict[str, str]  # key of the recipe -> the value as `--set` takes it

_RANGE = re.compile(r"\s*([-+.\deE]+?)\s*\.\.\s*([-+.\deE]+?)\s*(:\s*log)?\s*")
_OPENING, _CLOSING = "[{", "]}"
# What a setting must not change: by these keys the trials would not be alike, or not be measured alike.
_FIXED = {
    "name": "it names the trials",
    "note": "it changes nothing that is measured",
    "measure": "the trials are measured on the validation rows, and the winner on the test rows",
    "evaluator": "trials that are scored differently cannot be compared",
    "controls": "it changes no trained model",
    "tracking": "it changes nothing that is measured",
}


@dataclass(frozen=True)
class Parameter(Record):
    """One key that is varied: a list of `values`, or every number from `low` to `high`.

    `log`: a search tries as many values between 1 and 10 as between 10 and 100. `whole`: whole numbers only.
    """

    key: str
    values: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False

    @property
    def is_range(self) -> bool:
        return self.low is not None

    @property
    def ends(self) -> tuple[str, ...]:
        """The values that are checked beforehand: all of a list, both ends of a range."""
        return self.values or tuple(self.written(end) for end in (self.low or 0.0, self.high or 0.0))

    def written(self, value: float) -> str:
        """Return a number of the range as `--set` takes it, with four digits that count."""
        if self.whole:
            return str(round(value))
        assert self.low is not None and self.high is not None
        return f"{min(max(float(f'{value:.4g}'), self.low), self.high):.6g}"


def parameters(vary: Sequence[str] | Mapping[str, Any]) -> list[Parameter]:
    """Return what is varied, from texts such as "seed=1,2,3" or a mapping of keys to lists (or to a text "1..5").

    Raises InputError for what cannot be varied, or is not understood.
    """
    pairs: list[tuple[str, Any]] = list(vary.items()) if isinstance(vary, Mapping) else [_pair(text) for text in vary]
    if not pairs:
        raise InputError("there is nothing to vary", "such as: --vary backend.learning_rate=2e-4,2e-5")
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"--vary {key} is given twice", "name all its values at once, with commas between them")
        why = _FIXED.get(key.partition(".")[0])
        if why:
            raise InputError(f"--vary {key}: cannot be varied: {why}")
    return [_parameter(key, values) for key, values in pairs]


def _pair(text: str) -> tuple[str, str]:
    key, equals, values = text.partition("=")
    if not equals or not key.strip() or not values.strip():
        raise InputError(
            f"--vary {text}: not of the form KEY=VALUE,VALUE,...", "such as: --vary backend.learning_rate=2e-4,2e-5"
        )
    return key.strip(), values


def _parameter(key: str, values: Any) -> Parameter:
    if isinstance(values, str):
        found = _RANGE.fullmatch(values)
        if found:
            return _range(key, *found.groups())
        texts = list(_parts(values))
    elif isinstance(values, Sequence):
        texts = [_text(value) for value in values]
    else:
        raise InputError(f"vary {key}: a list of values is needed, not {values!r}")
    if any(not text for text in texts):
        raise InputError(f"--vary {key}: a value between two commas is missing")
    if len(texts) < 2:
        hint = f"to fix it for all trials: --set {key}={texts[0]}" if texts else None
        raise InputError(f"--vary {key}: one value is no choice", hint)
    read = [(isinstance(scalar(text), bool), scalar(text)) for text in texts]  # True == 1
    twice = next((text for i, text in enumerate(texts) if read[i] in read[:i]), None)
    if twice is not None:
        raise InputError(f"--vary {key}: the value {twice} is there twice")
    return Parameter(key, tuple(texts))


def _range(key: str, low: str, high: str, log: str | None) -> Parameter:
    ends = scalar(low), scalar(high)
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
        raise InputError(f"--vary {key}={low}..{high}: not a range of numbers")
    a, b = float(ends[0] or 0), float(ends[1] or 0)
    if not a < b:
        raise InputError(f"--vary {key}={low}..{high}: the first number must be below the second")
    if log and a <= 0:
        raise InputError(f"--vary {key}={low}..{high}:log: a logarithmic range begins above 0")
    return Parameter(key, low=a, high=b, log=bool(log), whole=all(isinstance(end, int) for end in ends))


def _parts(text: str) -> Iterator[str]:
    """Split at commas, but not within brackets or quotes."""
    depth, quote, part = 0, "", ""
    for char in text:
        if char == "," and not depth and not quote:
            yield part.strip()
            part = ""
            continue
        part += char
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        else:
            depth += (char in _OPENING) - (char in _CLOSING)
    yield part.strip()


def _text(value: Any) -> str:
    """Return a Python value as `--set` takes it."""
    if isinstance(value, str):
        plain = isinstance(scalar(value), str) and value.strip() == value and value[:1] not in "[{\"'"
        return value if plain and value else json.dumps(value)
    return json.dumps(value)


# ---------------------------------------------------------------- settings


def grid(varied: Sequence[Parameter]) -> list[Values]:
    """Return all combinations; the last key changes fastest."""
    keys = [p.key for p in varied]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(p.values for p in varied))]


def one_at_a_time(varied: Sequence[Parameter]) -> list[Values]:
    """Return the recipe's own setting (no values), then each value of each key alone."""
    return [{}, *({p.key: value} for p in varied for value in p.values)]


def refuse_ranges(varied: Sequence[Parameter]) -> None:
    """Raise InputError for a range: only a search can choose from one."""
    for p in varied:
        if p.is_range:
            low, high = p.ends
            raise InputError(
                f"--vary {p.key}={low}..{high}: a range needs a search that chooses from it",
                f"add --search tpe --trials 20, or list values: --vary {p.key}={low},{high}",
            )


def overrides_of(values: Mapping[str, str]) -> list[str]:
    """Return values as `--set` takes them."""
    return [f"{key}={value}" for key, value in values.items()]


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return each key's last part, or the whole key where two end alike."""
    last = {key: key.rpartition(".")[2] for key in keys}
    return {key: name if list(last.values()).count(name) == 1 else key for key, name in last.items()}


def setting_text(values: Mapping[str, str], keys: Sequence[str]) -> str:
    """Return a setting in words: "learning_rate=2e-4 batch_size=8"; "the recipe's own" where nothing is changed."""
    names = short_names(keys)
    return " ".join(f"{names[key]}={value}" for key, value in values.items()) or "the recipe's own setting"
