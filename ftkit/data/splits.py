"""Which rows make up a split: it depends on the data alone, never on a seed.

Rows are ordered by the SHA-256 of their text, so that runs with other seeds stay comparable.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction

from ..errors import InputError, Problem
from ..text import counted, normalise
from .formats import Row

Wanted = Mapping[str, str | int | float]
Rows = list[tuple[int, Row]]  # each with its index in the source

SPLITS = ("train", "validation", "test")


def _order(row: Row) -> str:
    text = json.dumps(row, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def select(rows: Sequence[Row], wanted: str | int) -> list[int]:
    """Return the indices of the wanted rows, ascending: "all" or a count.

    The first ones in hash order are taken, so that 200 of a split are a part of its 400.
    Raises InputError where there are fewer rows than wanted.
    """
    if wanted == "all":
        return list(range(len(rows)))
    if int(wanted) > len(rows):
        raise InputError(f"{wanted} rows are wanted and there are only {len(rows)}")
    return sorted(sorted(range(len(rows)), key=lambda i: _order(rows[i]))[: int(wanted)])


def source_of(split: str, found: Iterable[str]) -> str:
    """Return which part of the data a split is taken from: its own, or what it is cut from (the only table, or train)."""
    found = set(found)
    return split if split in found else "all" if "all" in found else "train"


def amounts(wanted: Wanted, sizes: Mapping[str, int]) -> dict[str, str | int]:
    """Return "all" or a count of rows per split. A share is one of all rows of the split's source.

    Shares of one source are rounded together: 0.8, 0.1 and 0.1 are all of its rows, whatever their number.
    """
    found: dict[str, str | int] = {s: n for s, n in wanted.items() if not isinstance(n, float)}
    for source, shares in _shares(wanted, sizes).items():
        exact = {split: share * sizes.get(source, 0) for split, share in shares.items()}
        counts = {split: math.floor(rows) for split, rows in exact.items()}
        left = round(sum(exact.values())) - sum(counts.values())
        for split in sorted(exact, key=lambda s: counts[s] - exact[s])[:left]:  # the largest remainders
            counts[split] += 1
        found |= counts
    return found


def _shares(wanted: Wanted, found: Iterable[str]) -> dict[str, dict[str, Fraction]]:
    """Return the shares that are wanted, by the part of the data that they are shares of; exact, as they are written."""
    shares: dict[str, dict[str, Fraction]] = {}
    for split in SPLITS:
        if isinstance(share := wanted.get(split), float):
            shares.setdefault(source_of(split, found), {})[split] = Fraction(str(share))
    return shares


def cut_splits(
    rows: Mapping[str, list[Row]], wanted: Wanted, key_of: Callable[[str, int, Row], str]
) -> tuple[dict[str, Rows], list[str], list[Problem]]:
    """Return the rows per split, notes on how splits were cut, and what is wrong with `wanted`.

    A split that the source lacks is cut out of train (or of the only table): test first, then validation, in hash
    order of the input, so that rows with one input stay together. `key_of(source, index, row)` is that input.
    """
    notes: list[str] = []
    problems = unfit_splits(rows, wanted)
    wrong = {problem.key for problem in problems}
    result: dict[str, Rows] = {}
    sizes = {source: len(part) for source, part in rows.items()}
    counts = amounts(wanted, sizes)
    for split, count in counts.items():
        if count == 0 and wanted[split] != 0 and sizes.get(source_of(split, rows)):
            message = f"a share of {wanted[split]} of {sizes[source_of(split, rows)]} rows is less than one row"
            problems.append(split_problem(split, message))
            wrong.add(f"dataset.splits.{split}")
    pool_name = source_of("train", rows)
    pool = list(enumerate(rows.get(pool_name, [])))
    left_out = 0
    for split in ("test", "validation"):
        if split not in wanted or split in rows or f"dataset.splits.{split}" in wrong:
            continue
        count = int(counts[split])
        if count >= len(pool):
            message = f"{count} rows are wanted and there are only {len(pool)} to cut from"
            problems.append(split_problem(split, message))
            continue
        keys = {i: _hash(key_of(pool_name, i, row)) for i, row in pool}
        pool.sort(key=lambda item: (keys[item[0]], _order(item[1])))
        taken = {keys[i] for i, _ in pool[:count]}
        result[split] = sorted(pool[:count], key=lambda item: item[0])
        dropped = [item for item in pool[count:] if keys[item[0]] in taken]
        left_out += len(dropped)
        pool = sorted((item for item in pool[count:] if keys[item[0]] not in taken), key=lambda item: item[0])
        notes.append(
            f"{split}: {count} rows cut from {pool_name}"
            + (f"; {counted(len(dropped), 'repeat', 'repeats')} left out" if dropped else "")
        )
    for split in SPLITS:
        if split in result or split not in wanted or (split != "train" and split not in rows):
            continue
        source = pool if split == "train" else list(enumerate(rows[split]))
        count_or_all = counts[split]
        short = int(count_or_all) - len(source) if count_or_all != "all" else 0
        if isinstance(wanted[split], float) and split == "train" and 0 < short <= left_out:
            count_or_all = "all"  # the share was there; repeats of what was cut are not trained on
        try:
            result[split] = [source[i] for i in select([row for _, row in source], count_or_all)]
        except InputError as error:
            cut = " and ".join(s for s in ("validation", "test") if s in result and s not in rows)
            if split == "train" and cut:
                message = f"{count_or_all} rows are wanted and only {len(source)} are left after {cut} were cut"
                hint = f"write `all` for those that are left, or ask for fewer {cut} rows"
                problems.append(split_problem("train", message, hint))
            else:
                problems.append(split_problem(split, error.message))
    if not problems:
        notes += _unused(rows, result, pool_name, left_out)
    return {s: result[s] for s in SPLITS if s in result}, notes, problems


def _hash(text: str) -> str:
    return hashlib.sha256(normalise(text).encode("utf-8", "surrogatepass")).hexdigest()


def _unused(rows: Mapping[str, list[Row]], result: Mapping[str, Rows], pool: str, left_out: int) -> list[str]:
    """Return a note for each part of the data of which rows are in no split; repeats left out are known already."""
    notes = []
    for source, part in rows.items():
        taken = [split for split in result if source_of(split, rows) == source]
        unused = len(part) - sum(len(result[split]) for split in taken) - (left_out if source == pool else 0)
        if unused > 0 and (taken or source == pool):
            of = "" if source == "all" else f"{source}: "
            notes.append(f"{of}{unused:,} of {len(part):,} rows {'is' if unused == 1 else 'are'} in no split")
    return notes


# ---------------------------------------------------------------- what no data of these splits can give


def split_problem(split: str, message: str, hint: str | None = None) -> Problem:
    key = f"dataset.splits.{split}"
    return Problem(f"{key}: {message}", key=key, hint=hint)


def unfit_splits(found: Iterable[str], wanted: Wanted) -> list[Problem]:
    """Return a problem for each split that is wanted and cannot be had from data with these splits, whatever their size."""
    found = set(found)
    has = "it is one table" if found == {"all"} else f"it has {', '.join(sorted(found))}"
    problems = [
        split_problem(split, f"the data has no {split} split ({has})",
                      f"say how many: --set dataset.splits.{split}=200")
        for split in ("test", "validation")
        if split not in found and wanted.get(split) == "all"
    ]  # fmt: skip
    for source, shares in _shares(wanted, found).items():
        if sum(shares.values()) > 1:
            whole = "rows" if source == "all" else f"{source} rows"
            parts = " + ".join(str(wanted[split]) for split in shares)
            message = f"the shares of {' and '.join(shares)} are more than all {whole}: {parts} = {float(sum(shares.values())):g}"
            problems.append(split_problem(list(shares)[-1], message, "shares of the same rows add up to at most 1"))
    return problems
