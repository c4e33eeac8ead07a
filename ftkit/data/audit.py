"""The data audit: what is worth knowing about the rows before anything is spent on them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..records import Example, Finding
from ..text import counted, normalise, visible

_EMPTY = 0.05  # share of empty targets above which a split stops the run
_SHOWN = 100  # ids listed per finding; the counts are of all


def audit(splits: Mapping[str, Sequence[Example]], chats: bool = False) -> dict[str, Any]:
    """Return what the splits hold, with inputs compared in NFC and with white space collapsed.

    `chats`: an input is a whole chat, with the names of its roles.

    `splits`: per split its `rows`, the ids of `empty_inputs` and `empty_targets`, `repeats` (rows whose input
    occurred before in the split), `copies` (rows whose target is their input) and `scripts` (share of letters per writing system, over the first 1,000 rows).
    `leaks`: rows of validation and of test whose input also occurs in train. `test_in_validation`: rows of
    test whose input also occurs in validation. An empty input is no leak.
    """
    inputs = {split: [normalise(e.input) for e in part] for split, part in splits.items()}
    report: dict[str, Any] = {"splits": {}, "leaks": {}}
    for split, part in splits.items():
        report["splits"][split] = {
            "rows": len(part),
            "empty_inputs": [e.id for e, text in zip(part, inputs[split], strict=True) if not text],
            "empty_targets": [e.id for e in part if not any(t.strip() for t in e.targets) and not _calls_tools(e)],
            "repeats": len(part) - len(set(inputs[split])),
            "copies": sum(
                bool(text) and text in map(normalise, e.targets)
                for e, text in zip(part, [normalise(_last(e)) for e in part] if chats else inputs[split], strict=True)
            ),
            "scripts": scripts(_said(e) if chats else e.input for e in part[:1000]),
        }
    for held, source in (("validation", "train"), ("test", "train"), ("test", "validation")):
        if held in splits and source in splits:
            known = set(inputs[source])
            found = [e.id for e, text in zip(splits[held], inputs[held], strict=True) if text and text in known]
            overlap = {"rows": len(found), "ids": found[:_SHOWN]}
            if source == "train":
                report["leaks"][held] = overlap
            else:
                report["test_in_validation"] = overlap
    return report


def _last(example: Example) -> str:
    """Return the text of the last message of the prompt."""
    return example.messages[-1].content if example.messages else ""


def _said(example: Example) -> str:
    """Return what the turns of a chat say: without the names of the roles, and without system messages."""
    return "\n".join(m.content for m in example.messages if m.role not in ("system", "developer"))


def _calls_tools(example: Example) -> bool:
    return example.answer is not None and bool(example.answer.tool_calls)


def without_leaked(splits: Mapping[str, Sequence[Example]]) -> tuple[Example, ...]:
    """Return the training examples whose input is neither in validation nor in test."""
    held = {normalise(e.input) for split in ("validation", "test") for e in splits.get(split, ())} - {""}
    return tuple(e for e in splits["train"] if normalise(e.input) not in held)


def audit_warnings(report: Mapping[str, Any]) -> list[str]:
    """Return the audit's findings that a reader must see, one sentence each."""
    warnings = []
    for split, facts in report["splits"].items():
        for kind in ("input", "target"):
            if empty := facts[f"empty_{kind}s"]:
                what = counted(len(empty), f"empty {kind}", f"empty {kind}s")
                warnings.append(f"{split}: {what} (id {_some(empty)})")
        if facts["copies"] * 2 >= max(facts["rows"], 1):
            warnings.append(
                f"{split}: {facts['copies']} of {facts['rows']} rows have their input as the target; "
                "`dataset.columns` says which columns are read"
            )
    for split, leak in report["leaks"].items():
        if leak["rows"]:
            warnings.append(
                f"{split}: {counted(leak['rows'], 'row has', 'rows have')} an input that also occurs in train; "
                "`dataset.drop_leaked: true` takes them out of train"
            )
    overlap = report.get("test_in_validation")
    if overlap and overlap["rows"]:
        warnings.append(
            f"test: {counted(overlap['rows'], 'row has', 'rows have')} an input that also occurs in validation"
        )
    return warnings


def empty_targets(report: Mapping[str, Any], key: str, allowed: bool) -> list[Finding]:
    """Return an error for each split that has no target, or more empty ones than a slip explains.

    `key` is the recipe's key that names the column of targets; `allowed`: the recipe accepts a share of empty ones.
    """
    findings = []
    for split, facts in report["splits"].items():
        empty, rows = facts["empty_targets"], facts["rows"]
        if empty and len(empty) == rows:
            hint = f"name the column that holds the right answer: --set {key}=COLUMN"
            message = (
                f"{key}: {split}: {'the only row has' if rows == 1 else f'all {rows:,} rows have'} an empty target"
            )
            findings.append(Finding("error", message, hint, key))
        elif len(empty) > _EMPTY * rows and not allowed:
            share = f"{100 * len(empty) / rows:.1f} %"
            message = f"{key}: {split}: {len(empty):,} of {rows:,} targets ({share}) are empty; at most 5 % may be"
            hint = (
                f"rows: {_some(empty)}\n  fill or remove them, or accept them: --set dataset.allow_empty_targets=true"
            )
            findings.append(Finding("error", message, hint, key))
    return findings


def _some(ids: Sequence[str]) -> str:
    return visible(", ".join(ids[:5])) + (", ..." if len(ids) > 5 else "")


def audit_notes(report: Mapping[str, Any]) -> list[str]:
    """Return what may be meant, and is good to know: a row that repeats another counts once more."""
    return [
        f"{split}: {counted(facts['repeats'], 'row has', 'rows have')} the input of an earlier row, of {facts['rows']:,}"
        for split, facts in report["splits"].items()
        if facts["repeats"]
    ]


def audit_lines(report: Mapping[str, Any]) -> list[str]:
    """Return the audit in three lines: rows, what is odd about them, and how long they are in tokens."""
    splits = report["splits"]
    rows = ", ".join(f"{facts['rows']:,} {split}" for split, facts in splits.items())
    odd = {
        "also in train": sum(leak["rows"] for leak in report["leaks"].values()),
        "repeated": sum(facts["repeats"] for facts in splits.values()),
        "without input": sum(len(facts["empty_inputs"]) for facts in splits.values()),
        "without target": sum(len(facts["empty_targets"]) for facts in splits.values()),
    }
    found = ", ".join(f"{n:,} {what}" for what, n in odd.items() if n)
    return [f"rows: {rows}", f"of these: {found or 'none empty, repeated or leaked'}", f"tokens: {_lengths(report)}"]


def _lengths(report: Mapping[str, Any]) -> str:
    tokens = report.get("tokens", {})
    if "not_checked" in tokens:
        return f"not counted ({tokens['not_checked']})"
    return "; ".join(
        f"{split} {facts['median']:.0f} in the median, at most {facts['max']:,}"
        + (
            f", {counted(lost, 'row', 'rows')} cut"
            if (lost := facts["lose_prompt_tokens"] + facts["lose_target_tokens"])
            else ""
        )
        for split, facts in tokens.items()
    )


def scripts(texts: Iterable[str]) -> dict[str, float]:
    """Return the share of each writing system among the letters of `texts`, largest first."""
    counts: Counter[str] = Counter()
    for text in texts:
        for char, n in Counter(text[:2000]).items():
            if char.isalpha():
                counts["LATIN" if char.isascii() else unicodedata.name(char, "UNKNOWN").split()[0].split("-")[0]] += n
    total = sum(counts.values())
    return {name.title(): round(n / total, 4) for name, n in counts.most_common() if n / total >= 0.0005}
